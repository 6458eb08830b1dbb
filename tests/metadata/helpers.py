"""What the tests of the metadata share: short ways to make nodes, write chunks, pack them, look into a closed store."""

from __future__ import annotations

import stat
import subprocess
from collections.abc import Coroutine
from contextlib import closing
from pathlib import Path
from typing import TypeVar

import apsw

from cuckoo_mount.metadata.records import NewNode
from cuckoo_mount.metadata.schema import JOURNALED
from cuckoo_mount.metadata.store import SqliteMetadata, StoreOptions, create_store
from cuckoo_mount.types import (
    ROOT_INODE,
    ChunkIndex,
    ChunkRow,
    ChunkWritten,
    CloudName,
    DirtyChunk,
    Inode,
    InodeChanges,
    InodeNo,
    PackNo,
    Partial,
    SealedChunk,
    ShareRow,
    VersionNo,
)

T = TypeVar("T")
ROOT = ROOT_INODE
DIGEST = bytes(range(32))
NO_CHANGES = InodeChanges()


def at_once(call: Coroutine[object, object, T]) -> T:
    """Run a method that promises never to wait, outside of any loop."""
    try:
        call.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    raise AssertionError("the method waited")


async def new_store(path: Path, options: StoreOptions | None = None) -> SqliteMetadata:
    return await create_store(path, uid=7, gid=8, now_ns=1, options=options or StoreOptions())


def node(kind: int = stat.S_IFREG, *, now_ns: int = 10, target: bytes | None = None) -> NewNode:
    return NewNode(mode=kind | 0o644, uid=1, gid=2, now_ns=now_ns, target=target)


async def make_file(store: SqliteMetadata, name: bytes, parent: InodeNo = ROOT) -> InodeNo:
    return (await store.make_node(parent, name, node())).ino


async def make_directory(store: SqliteMetadata, name: bytes, parent: InodeNo = ROOT) -> InodeNo:
    return (await store.make_node(parent, name, node(stat.S_IFDIR))).ino


async def write(
    store: SqliteMetadata, ino: InodeNo, index: int, length_bytes: int = 100, partial: Partial | None = None
) -> VersionNo:
    """Write one chunk under a new version and return that."""
    version = await store.new_versions(1)
    chunk = ChunkWritten(ChunkIndex(index), version, length_bytes, partial)
    await store.apply_written(ino, InodeChanges(size_bytes=length_bytes), [chunk])
    return version


def sealed(chunk: DirtyChunk, offset: int = 64) -> SealedChunk:
    return SealedChunk(chunk, offset, chunk.length_bytes + 16, DIGEST)


async def pack(
    store: SqliteMetadata, chunks: list[DirtyChunk], pack_id: int = 1, overwritten: frozenset[VersionNo] = frozenset()
) -> PackNo:
    """Enter a pack of 1000 bytes with one share on cloud `a`."""
    name = pack_id.to_bytes(16, "big")
    await store.begin_pack(name)
    shares = [ShareRow(0, CloudName("a"), DIGEST)]
    return await store.finish_pack(name, "1", 1000, shares, [sealed(c) for c in chunks], overwritten)


async def pack_all(store: SqliteMetadata, pack_id: int = 1) -> PackNo:
    return await pack(store, await store.dirty_chunks(1000, ()), pack_id)


async def only_row(store: SqliteMetadata, ino: InodeNo, index: int = 0) -> ChunkRow:
    (row,) = await store.chunk_rows(ino, ChunkIndex(index), ChunkIndex(index))
    return row


async def names_in(store: SqliteMetadata, ino: InodeNo = ROOT) -> dict[bytes, Inode]:
    return {entry.name: entry.inode for entry in await store.list_directory(ino, 0, 10_000)}


def journaled_rows(path: Path) -> dict[str, list[tuple[object, ...]]]:
    """Return all rows of all journaled tables of a closed store."""
    with closing(apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)) as connection:
        return {
            table.name: list(connection.execute(f"SELECT * FROM {table.name} ORDER BY {', '.join(table.keys)}"))
            for table in JOURNALED
        }


def copy_as_after_kill(source: Path, target: Path) -> None:
    """Copy a live store's files as a kill would leave them.

    By another process: closing a descriptor of a database in ours would drop the locks that SQLite holds on it.
    """
    for suffix in ("", "-wal"):
        subprocess.run(["cp", f"{source}{suffix}", f"{target}{suffix}"], check=True)

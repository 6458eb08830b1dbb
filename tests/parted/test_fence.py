"""A drive that may not be written any more: every call is tried, and a new one must be put into a table here."""

from __future__ import annotations

import errno
import inspect
import os
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import pytest
import trio
from attrs import evolve, frozen

from cuckoo_mount.cache.pressure import CacheLimits
from cuckoo_mount.errors import ReadOnly, StaleInode
from cuckoo_mount.metadata.records import JournalRecord, MetadataStatistics
from cuckoo_mount.parted.partedfs import PartedFS
from cuckoo_mount.parted.tree import AttributeRequest, Caller, Tree
from cuckoo_mount.testing.rig import Rig, RigPlace
from cuckoo_mount.types import ROOT_INODE, DirectoryEntry, Inode, InodeNo

ROOT: Final = Caller(0, 0)
LIMITS: Final = CacheLimits(limit_bytes=16 << 20)
DIRECTORY, REGULAR = stat.S_IFDIR | 0o755, stat.S_IFREG | 0o644
REASON: Final = "machine other took the drive over"
CONTENT: Final = b"content"
NO_CHANGE: Final = AttributeRequest()


@frozen
class Look:
    """A drive at one moment, with what the metadata has not got yet."""

    statistics: MetadataStatistics
    pending_files: int
    outbox: list[JournalRecord]
    root: Inode
    entries: list[DirectoryEntry]


@frozen
class Scene:
    """A drive with a file, an empty directory and a link, all of it on the cloud; numbers are open handles."""

    rig: Rig
    file: InodeNo
    directory: InodeNo
    link: InodeNo
    reading: int
    writing: int
    listing: int

    @property
    def fs(self) -> PartedFS:
        return self.rig.filesystem

    @property
    def tree(self) -> Tree:
        return self.rig.filesystem.tree

    async def look(self) -> Look:
        """Return what any change would change."""
        return Look(
            evolve(self.rig.metadata.statistics(), commits=0, syncs=0),
            self.rig.cache.statistics().pending_files,
            await self.rig.metadata.journal(10_000),
            await self.tree.inode(ROOT_INODE),
            await self.tree.entries(ROOT_INODE, 2, 100),
        )


@asynccontextmanager
async def set_up(root: Path) -> AsyncIterator[Scene]:
    """A scene whose drive must be in order at the end."""
    async with RigPlace(root).opened(LIMITS) as rig:
        fs, tree = rig.filesystem, rig.filesystem.tree
        writing, file = await fs.create(ROOT_INODE, b"file", 0o644, ROOT)
        await fs.write(writing, 0, CONTENT)
        await tree.set_xattr(file.ino, b"user.x", b"value")
        directory = await tree.make(ROOT_INODE, b"dir", DIRECTORY, ROOT)
        link = await tree.make(ROOT_INODE, b"link", stat.S_IFLNK | 0o777, ROOT, target=b"file")
        reading, listing = await fs.open(file.ino, os.O_RDONLY), await fs.open_directory(directory.ino)
        with trio.fail_after(30):
            await rig.cache.send_all()  # what is done in the background is done
        # Long ago: the clock ticks every few milliseconds only, and a change shows in a time.
        await tree.set_attributes(file.ino, AttributeRequest(atime_ns=1, mtime_ns=2, ctime_ns=3))
        yield Scene(rig, file.ino, directory.ino, link.ino, reading, writing, listing)
        assert await rig.cache.check_invariants() == []


Call = Callable[[Scene], Awaitable[object]]

# By method; what stands behind its name tells several calls of one apart.
CHANGING: Final[dict[str, Call]] = {
    "Tree.make": lambda s: s.tree.make(ROOT_INODE, b"new", REGULAR, ROOT),
    "Tree.make a directory": lambda s: s.tree.make(s.directory, b"new", DIRECTORY, ROOT),
    "Tree.make a symbolic link": lambda s: s.tree.make(ROOT_INODE, b"s", stat.S_IFLNK | 0o777, ROOT, target=b"t"),
    "Tree.link": lambda s: s.tree.link(s.file, ROOT_INODE, b"new"),
    "Tree.unlink": lambda s: s.tree.unlink(ROOT_INODE, b"link"),
    "Tree.rmdir": lambda s: s.tree.rmdir(ROOT_INODE, b"dir"),
    "Tree.rename": lambda s: s.tree.rename(ROOT_INODE, b"file", s.directory, b"moved"),
    "Tree.rename onto another": lambda s: s.tree.rename(ROOT_INODE, b"file", ROOT_INODE, b"link"),
    "Tree.set_attributes": lambda s: s.tree.set_attributes(s.file, AttributeRequest(mode=0o600)),
    "Tree.set_attributes of ctime alone": lambda s: s.tree.set_attributes(s.file, NO_CHANGE),
    "Tree.set_xattr": lambda s: s.tree.set_xattr(s.file, b"user.y", b""),
    "Tree.remove_xattr": lambda s: s.tree.remove_xattr(s.file, b"user.x"),
    "PartedFS.create": lambda s: s.fs.create(ROOT_INODE, b"new", 0o644, ROOT),
    "PartedFS.open to empty": lambda s: s.fs.open(s.file, os.O_WRONLY | os.O_TRUNC),
    "PartedFS.open to read and empty": lambda s: s.fs.open(s.file, os.O_RDONLY | os.O_TRUNC),
    "PartedFS.write": lambda s: s.fs.write(s.writing, 0, b"C"),
    # The kernel's writeback brings bytes by any handle.
    "PartedFS.write by a handle for reading": lambda s: s.fs.write(s.reading, len(CONTENT), b"more"),
    "PartedFS.set_attributes": lambda s: s.fs.set_attributes(s.link, AttributeRequest(uid=7), None),
    "PartedFS.set_attributes shorter": lambda s: s.fs.set_attributes(s.file, NO_CHANGE, 1),
    "PartedFS.set_attributes longer": lambda s: s.fs.set_attributes(s.file, NO_CHANGE, 1 << 30),
}
# Would have changed nothing by themselves.
REFUSED_TOO: Final[dict[str, Call]] = {
    "PartedFS.open to write": lambda s: s.fs.open(s.file, os.O_WRONLY),
    "PartedFS.open to read and write": lambda s: s.fs.open(s.file, os.O_RDWR),
}
READING: Final[dict[str, Call]] = {
    "Tree.lookup": lambda s: s.tree.lookup(ROOT_INODE, b"file"),
    "Tree.inode": lambda s: s.tree.inode(s.file),
    "Tree.entries": lambda s: s.tree.entries(ROOT_INODE, 2, 10),
    "Tree.readlink": lambda s: s.tree.readlink(s.link),
    "Tree.get_xattr": lambda s: s.tree.get_xattr(s.file, b"user.x"),
    "Tree.list_xattrs": lambda s: s.tree.list_xattrs(s.file),
    "Tree.forget": lambda s: s.tree.forget(s.file, 1),
    "PartedFS.open": lambda s: s.fs.open(s.file, os.O_RDONLY),
    "PartedFS.read": lambda s: s.fs.read(s.reading, 0, 100),
    "PartedFS.read by a handle for writing": lambda s: s.fs.read(s.writing, 0, 100),
    "PartedFS.sync_file": lambda s: s.fs.sync_file(s.writing),
    "PartedFS.release": lambda s: s.fs.release(s.reading),
    "PartedFS.release what was written": lambda s: s.fs.release(s.writing),
    "PartedFS.open_directory": lambda s: s.fs.open_directory(s.directory),
    "PartedFS.read_directory": lambda s: s.fs.read_directory(s.listing, 0, 10),
    "PartedFS.sync_directory": lambda s: s.fs.sync_directory(s.listing),
    "PartedFS.release_directory": lambda s: s.fs.release_directory(s.listing),
    "PartedFS.space": lambda s: s.fs.space(),
}


def async_methods(kind: type) -> set[str]:
    found = inspect.getmembers(kind, inspect.iscoroutinefunction)
    return {f"{kind.__name__}.{name}" for name, _ in found if not name.startswith("_")}


def test_every_method_is_in_a_table() -> None:
    methods = async_methods(Tree) | async_methods(PartedFS)
    changing, reading = ({call.split()[0] for call in table} for table in (CHANGING, READING))
    assert "Tree.make" in methods
    assert changing | reading == methods
    assert changing & reading == {"PartedFS.open"}


@pytest.mark.parametrize("what", CHANGING)
async def test_what_changes_does(tmp_path: Path, what: str) -> None:
    """Else the tests of what is refused would show nothing."""
    async with set_up(tmp_path) as scene:
        before = await scene.look()
        await CHANGING[what](scene)
        assert await scene.look() != before


@pytest.mark.parametrize("what", CHANGING | REFUSED_TOO)
async def test_changes_are_refused(tmp_path: Path, what: str) -> None:
    async with set_up(tmp_path) as scene:
        scene.fs.refuse_writes(REASON)
        before, handles, references = await scene.look(), len(scene.fs.handles), len(scene.tree.references)
        with pytest.raises(ReadOnly, match=REASON) as refused:
            await (CHANGING | REFUSED_TOO)[what](scene)
        assert refused.value.errno == errno.EROFS
        assert await scene.look() == before
        assert (len(scene.fs.handles), len(scene.tree.references)) == (handles, references)
        assert await scene.fs.read(scene.reading, 0, 100) == CONTENT


@pytest.mark.parametrize("what", READING)
async def test_reading_goes_on_and_leaves_no_trace(tmp_path: Path, what: str) -> None:
    async with set_up(tmp_path) as scene:
        scene.fs.refuse_writes(REASON)
        before = await scene.look()
        got = await READING[what](scene)
        assert await scene.look() == before
        assert got == CONTENT or not isinstance(got, bytes) or what.startswith("Tree.")


async def test_the_first_reason_stays(tmp_path: Path) -> None:
    async with set_up(tmp_path) as scene:
        assert scene.fs.writes_refused == ""
        scene.fs.refuse_writes(REASON)
        scene.fs.refuse_writes("something else")
        assert scene.fs.writes_refused == REASON
        with pytest.raises(ReadOnly, match=REASON):
            await scene.tree.unlink(ROOT_INODE, b"file")


async def test_reading_moves_no_atime(tmp_path: Path) -> None:
    for name, refused in (("allowed", False), ("refused", True)):
        async with set_up(tmp_path / name) as scene:
            if refused:
                scene.fs.refuse_writes(REASON)
            before = await scene.look()
            assert await scene.fs.read(scene.reading, 0, 100) == CONTENT
            assert (await scene.look() == before) == refused


async def test_what_was_written_before_is_kept(tmp_path: Path) -> None:
    """Also when the program has not closed, or synced, it yet."""
    place = RigPlace(tmp_path)
    async with place.opened(LIMITS, crash=True) as rig:
        fs = rig.filesystem
        handle, inode = await fs.create(ROOT_INODE, b"file", 0o644, ROOT)
        await fs.write(handle, 0, CONTENT)
        fs.refuse_writes(REASON)
        with pytest.raises(ReadOnly):
            await fs.write(handle, 0, b"refused")
        await fs.sync_file(handle)
        await fs.release(handle)
        assert (await fs.tree.inode(inode.ino)).size_bytes == len(CONTENT)
    async with place.opened(LIMITS) as rig:
        fs = rig.filesystem
        assert not fs.writes_refused
        handle = await fs.open((await fs.tree.lookup(ROOT_INODE, b"file")).ino, os.O_RDONLY)
        assert await fs.read(handle, 0, 100) == CONTENT
        assert await rig.cache.check_invariants() == []


async def test_what_lost_its_name_before_ends_with_its_last_use(tmp_path: Path) -> None:
    async with set_up(tmp_path) as scene:
        await scene.tree.unlink(ROOT_INODE, b"file")
        scene.fs.refuse_writes(REASON)
        await scene.fs.release(scene.reading)
        assert await scene.fs.read(scene.writing, 0, 100) == CONTENT
        await scene.fs.release(scene.writing)
        with pytest.raises(StaleInode):
            await scene.tree.inode(scene.file)

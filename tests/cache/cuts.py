"""What the tests of cuts share: making one, and reading it back from the cloud objects alone."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import apsw
from attrs import define, field

from cuckoo_mount.cache.cutting import ContentCut
from cuckoo_mount.testing.rig import Rig
from cuckoo_mount.types import CHUNK_SIZE_BYTES, Location, VersionNo

_FILES = (
    "SELECT d.name, i.ino, i.size, i.mtime FROM dentry d JOIN inode i ON i.ino = d.ino WHERE i.mode & 61440 = 32768"
)
_CHUNKS = "SELECT idx, version FROM chunk WHERE ino = ? ORDER BY idx"
_VERSION = "SELECT pack, offset, length, plain, digest FROM version WHERE version = ?"


@define(eq=False)
class Recovered:
    """What an epoch would say of one file."""

    size_bytes: int
    mtime_ns: int
    chunks: list[tuple[int, Location]]


@define(eq=False)
class Epoch:
    """A cut with the metadata as they were at its moment."""

    cut: ContentCut
    pinned: apsw.Connection
    files: dict[bytes, Recovered] = field(factory=dict)

    def note(self) -> None:
        """After it was sent: put together what the rows of the moment and the cut say."""
        for name, ino, size, mtime in self._rows(_FILES):
            chunks: list[tuple[int, Location]] = []
            for index, version in self._rows(_CHUNKS, ino):
                named = self.cut.duplicates.get((ino, index), version)
                chunks.append((index, self._location(named)))
            self.files[name] = Recovered(size, mtime, chunks)

    def _location(self, version: VersionNo) -> Location:
        rows = self._rows(_VERSION, version)
        return Location(*rows[0]) if rows else self.cut.locations[version]

    def _rows(self, sql: str, *values: int) -> list[tuple[Any, ...]]:
        return self.pinned.execute(sql, values).fetchall()

    async def contents(self, rig: Rig) -> dict[bytes, bytes]:
        """Return the files as they are on the cloud."""
        return {name: await self._content(rig, found) for name, found in self.files.items()}

    async def _content(self, rig: Rig, found: Recovered) -> bytes:
        content = bytearray(found.size_bytes)
        for index, location in found.chunks:
            rig.reader.forget(location.pack)
            data = await rig.reader.read(location)
            start = index * CHUNK_SIZE_BYTES
            assert start < found.size_bytes, "a chunk behind the end"
            assert len(data) <= CHUNK_SIZE_BYTES
            content[start : start + len(data)] = data
        return bytes(content[: found.size_bytes])


@asynccontextmanager
async def cutting(rig: Rig, path: Path, number: int, note: Callable[[], None] = lambda: None) -> AsyncIterator[Epoch]:
    """Cut, as the engine will; `note` is called at the moment.  `path`: the drive's root."""
    pinned = apsw.Connection(str(path / "state" / "metadata.sqlite"), flags=apsw.SQLITE_OPEN_READONLY)

    async def at_moment() -> None:
        await rig.metadata.commit()
        pinned.execute("BEGIN")
        pinned.execute("SELECT count(*) FROM chunk").fetchall()
        note()

    try:
        async with rig.cache.cut(number, at_moment) as cut:
            yield Epoch(cut, pinned)
    finally:
        pinned.close(True)

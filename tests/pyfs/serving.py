"""A drive for the tests of its PyFilesystem: the lower half in one process, and what a test wants to happen inside."""

from __future__ import annotations

import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import trio
from attrs import define, field

from cuckoo_mount.cache.pressure import CacheLimits
from cuckoo_mount.parted.partedfs import PartedFS
from cuckoo_mount.parted.tree import Caller
from cuckoo_mount.pyfs.filesystem import CuckooFS
from cuckoo_mount.testing.rig import Rig, RigPlace
from cuckoo_mount.types import ROOT_INODE, InodeNo

LIMITS: Final = CacheLimits(limit_bytes=256 << 20, floor_bytes=0)
OWNER: Final = Caller(0, 0)
Step = Callable[[Rig], Awaitable[None]]


@define(eq=False)
class Served:
    """A rig, as a CuckooFS wants its drive.  `at_sync` is what `CuckooFS.sync` does, if given."""

    rig: Rig
    at_sync: Step | None = None

    @property
    def filesystem(self) -> PartedFS:
        return self.rig.filesystem

    async def send_all(self) -> None:
        await trio.lowlevel.checkpoint()
        if self.at_sync is None:
            await self.rig.cache.send_all()
        else:
            await self.at_sync(self.rig)


@define(eq=False)
class DriveFolder:
    """A drive that can be opened again and again; its invariants are checked whenever it closes.

    `prepare`: done in the loop before the file system is there, for what PyFilesystem has no method for.
    """

    root: Path
    limits: CacheLimits = LIMITS
    prepare: Step | None = None
    at_sync: Step | None = None
    place: RigPlace = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.place = RigPlace(self.root)

    def open(self) -> CuckooFS:
        """Return the drive as a file system, to be closed."""
        return CuckooFS("test", self._opened)

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[Served]:
        async with self.place.opened(self.limits) as rig:
            if self.prepare is not None:
                await self.prepare(rig)
            yield Served(rig, self.at_sync)
            assert await rig.cache.check_invariants() == []


async def symlink(rig: Rig, name: bytes, target: bytes, parent: InodeNo = ROOT_INODE) -> None:
    """Make a symbolic link."""
    await rig.filesystem.tree.make(parent, name, stat.S_IFLNK | 0o777, OWNER, target=target)


async def folder(rig: Rig, name: bytes, parent: InodeNo = ROOT_INODE) -> InodeNo:
    """Make a directory."""
    return (await rig.filesystem.tree.make(parent, name, stat.S_IFDIR | 0o755, OWNER)).ino


async def file(rig: Rig, name: bytes, content: bytes = b"", parent: InodeNo = ROOT_INODE) -> InodeNo:
    """Make a file."""
    handle, inode = await rig.filesystem.create(parent, name, 0o644, OWNER)
    await rig.filesystem.write(handle, 0, content)
    await rig.filesystem.release(handle)
    return inode.ino

"""A disk with a write cache that a power cut empties: one file of a FUSE file system, to be made a loop device.

A program of its own, `python -m tests.mount.lossydisk IMAGE FOLDER`, started by disks.py.  It prints "ready" when the
file FOLDER/disk is there.  What is written lies in the cache until the next flush.

The line "hold N" on standard input announces a cut: it comes when N writes are not flushed, or after `PATIENCE_S`.
From that moment on nothing is answered; the program prints "held".  Then the next line, a seed, throws away what was
not flushed, by dice: each block of `BLOCK` bytes of each write is dropped or kept.  It prints how they fell, as JSON,
and ends at once.  At the end of its input it ends as well, and nothing is lost.

Every request is one step of the loop, so that a flush covers exactly the writes that were answered before it.
"""

from __future__ import annotations

import json
import os
import random
import sys
from typing import Final, NoReturn

import pyfuse3
import trio

BLOCK: Final = 4096
"""What a disk writes wholly or not at all; file systems rely on it for their superblock."""
NAME: Final = b"disk"
PATIENCE_S: Final = 0.3
_INODE: Final = 2
_FOREVER_S: Final = 86_400.0


class WriteCache:
    """The bytes of the disk as they are read, and what of them a cut would throw away."""

    def __init__(self, image: str) -> None:
        self.fd: Final = os.open(image, os.O_RDWR | os.O_CLOEXEC)
        self.size_bytes: Final = os.fstat(self.fd).st_size
        self.flushes = 0
        self.holds_at = 0
        """How many writes that are not flushed bring the cut; 0: none is announced."""
        self._unflushed: list[tuple[int, bytes, bytes]] = []

    def read(self, offset: int, size: int) -> bytes:
        return os.pread(self.fd, size, offset)

    def write(self, offset: int, data: bytes) -> int:
        start = offset // BLOCK * BLOCK
        end = -(-(offset + len(data)) // BLOCK) * BLOCK
        before = os.pread(self.fd, end - start, start)
        after = before[: offset - start] + data + before[offset - start + len(data) :]
        os.pwrite(self.fd, data, offset)
        self._unflushed.append((start, before, after))
        if 0 < self.holds_at <= len(self._unflushed):
            self.hold()
        return len(data)

    def hold(self) -> NoReturn:
        """Do nothing any more but what is asked on standard input; blocks, so that no request is served."""
        print("held", flush=True)
        if seed := sys.stdin.readline():
            print(json.dumps(self.cut(random.Random(seed))), flush=True)
        os._exit(0)  # the kernel takes the mount down with us

    def flush(self) -> None:
        self.flushes += 1
        self._unflushed.clear()

    def cut(self, choose: random.Random) -> dict[str, int]:
        """Throw dice for every block that was written since the last flush; return how they fell."""
        blocks: dict[int, bytes] = {}
        tally = {"flushes": self.flushes, "writes": len(self._unflushed), "dropped": 0, "torn": 0}
        dropping = choose.choice((0.2, 0.5, 0.9))
        for start, before, after in self._unflushed:
            starts = range(0, len(before), BLOCK)
            lost = set(starts) if choose.random() < dropping else set()
            if choose.random() < 0.3:
                lost = {position for position in starts if choose.random() < dropping}
            tally["dropped"] += len(lost) == len(starts)
            tally["torn"] += 0 < len(lost) < len(starts)
            for position in starts:
                blocks.setdefault(start + position, before[position : position + BLOCK])
                if position not in lost:
                    blocks[start + position] = after[position : position + BLOCK]
        for start, data in blocks.items():
            os.pwrite(self.fd, data, start)
        return tally


class LossyDisk(pyfuse3.Operations):
    """The file system: a folder with one file."""

    def __init__(self, cache: WriteCache) -> None:
        super().__init__()
        self._cache = cache

    async def getattr(
        self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext | None = None
    ) -> pyfuse3.EntryAttributes:
        attributes = pyfuse3.EntryAttributes()
        is_folder = inode == pyfuse3.ROOT_INODE
        attributes.st_ino = inode
        attributes.st_mode = pyfuse3.ModeT(0o40700 if is_folder else 0o100600)
        attributes.st_nlink = 1
        attributes.st_size = 0 if is_folder else self._cache.size_bytes
        attributes.st_blksize = BLOCK
        attributes.attr_timeout = attributes.entry_timeout = _FOREVER_S
        return attributes

    async def lookup(
        self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        if name != NAME:
            raise pyfuse3.FUSEError(2)
        return await self.getattr(pyfuse3.InodeT(_INODE))

    async def open(self, inode: pyfuse3.InodeT, flags: pyfuse3.FlagT, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(1), keep_cache=True)

    async def read(self, fh: pyfuse3.FileHandleT, off: int, size: int) -> bytes:
        return self._cache.read(off, size)

    async def write(self, fh: pyfuse3.FileHandleT, off: int, buf: bytes) -> int:
        return self._cache.write(off, buf)

    async def fsync(self, fh: pyfuse3.FileHandleT, datasync: bool) -> None:
        self._cache.flush()

    async def flush(self, fh: pyfuse3.FileHandleT) -> None:
        """Of a closed descriptor, not of the disk."""

    async def release(self, fh: pyfuse3.FileHandleT) -> None:
        """Nothing to do."""


async def _obey(cache: WriteCache) -> NoReturn:
    await trio.lowlevel.wait_readable(sys.stdin.fileno())
    words = sys.stdin.readline().split()
    if words[:1] != ["hold"]:
        os._exit(0)
    cache.holds_at = int(words[1])
    await trio.sleep(PATIENCE_S)
    cache.hold()


async def _serve(cache: WriteCache) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pyfuse3.main)
        nursery.start_soon(_obey, cache)
        print("ready", flush=True)


def main() -> None:
    """Serve until told otherwise."""
    image, folder = sys.argv[1:]
    cache = WriteCache(image)
    options = {*pyfuse3.default_options, "fsname=lossydisk"}
    pyfuse3.init(LossyDisk(cache), folder, options)
    trio.run(_serve, cache)


if __name__ == "__main__":
    main()

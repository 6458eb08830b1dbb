"""What is done with open files, by the number that `open` gives, as async functions over PartedFS.

Used by actions.py, filesystem.py and rawfile.py, through the loop's thread.  Loop only.  Nothing but reading waits for
a cloud.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from typing import Final

import trio

from cuckoo_mount.errors import AlreadyExists, InvalidArgument, IsADirectory, NotFound, StaleInode
from cuckoo_mount.locks import Flights
from cuckoo_mount.parted.partedfs import PartedFS
from cuckoo_mount.parted.tree import AttributeRequest, Caller
from cuckoo_mount.pyfs.loopthread import LoopEnded
from cuckoo_mount.pyfs.resolving import Names, resolve, there
from cuckoo_mount.types import CHUNK_SIZE_BYTES, ROOT_INODE, Inode, InodeNo

PIECE_BYTES: Final = 4 << 20
"""The most that is read or written at once: all of it is in memory, and meanwhile the loop does nothing else."""
_ZEROS: Final = bytes(CHUNK_SIZE_BYTES)
_NEW_FILE: Final = 0o666


class OpenFiles:
    """The open files of one drive.  `umask`: what new files are not to have."""

    def __init__(self, filesystem: PartedFS, caller: Caller, umask: int) -> None:
        self._fs = filesystem
        self._tree = filesystem.tree
        self._caller = caller
        self._umask = umask
        self._open: set[int] = set()
        self._appending: Flights[InodeNo] = Flights()
        self._reads: set[trio.CancelScope] = set()
        self._ending = False

    async def copy(self, source: Names, names: Names, *, overwrite: bool, keep_times: bool) -> None:
        """Copy a file's bytes, holes as holes; a new file gets the permissions of the other.

        Raises: IsADirectory, InvalidArgument (neither file nor directory), AlreadyExists, NotFound; NoSpace and what
        reading raises, after which the copy is shorter.
        """
        inode = there(await resolve(self._tree, source, follow=True))
        reading = await self._open_node(inode, writing=False, truncate=False)
        try:
            target = await resolve(self._tree, names, follow=True)
            if overwrite and target.inode is not None and target.inode.ino == inode.ino:
                return  # truncated it would be lost
            writing = await self.open(names, writing=True, create=True, exclusive=not overwrite, truncate=True)
            try:
                await self._copy_bytes(reading, writing)
                ino = self._fs.handles.file(writing).state.ino
            finally:
                await self.release(writing)
            mode = stat.S_IMODE(inode.mode) & 0o777 & ~self._umask if target.inode is None else None
            times = (inode.atime_ns, inode.mtime_ns) if keep_times else (None, None)
            request = AttributeRequest(mode=mode, atime_ns=times[0], mtime_ns=times[1])
            if request != AttributeRequest():
                await self._tree.set_attributes(ino, request)
        finally:
            await self.release(reading)

    async def _copy_bytes(self, reading: int, writing: int) -> None:
        offset = 0
        while data := await self.read(reading, offset, CHUNK_SIZE_BYTES):
            await trio.lowlevel.checkpoint()
            if data != _ZEROS[: len(data)]:
                await self.write(writing, offset, data)
            offset += len(data)
        if self.size(writing) < offset:
            await self.resize(writing, offset)

    async def open(self, names: Names, *, writing: bool, create: bool, exclusive: bool, truncate: bool) -> int:
        """Open a regular file.  Raises: NotFound, AlreadyExists (exclusive), IsADirectory, InvalidArgument."""
        while True:
            spot = await resolve(self._tree, names, follow=not exclusive)
            if spot.inode is None and not create:
                raise NotFound("it does not exist")
            if spot.inode is not None and exclusive:
                raise AlreadyExists("it exists")
            try:
                if spot.inode is not None:
                    return await self._open_node(spot.inode, writing=writing, truncate=truncate)
                mode = _NEW_FILE & ~self._umask
                number, _ = await self._fs.create(spot.parent, spot.name, mode, self._caller)
                self._open.add(number)
                return number
            except (AlreadyExists, StaleInode):
                # Somebody else has made it, or removed it, since we looked.
                await trio.lowlevel.checkpoint()

    async def _open_node(self, inode: Inode, *, writing: bool, truncate: bool) -> int:
        if stat.S_ISDIR(inode.mode):
            raise IsADirectory("a directory")
        if not stat.S_ISREG(inode.mode):
            raise InvalidArgument("neither file nor directory")
        flags = (os.O_RDWR if writing else os.O_RDONLY) | (os.O_TRUNC if truncate else 0)
        number = await self._fs.open(inode.ino, flags)
        self._open.add(number)
        return number

    async def read(self, number: int, offset: int, size_bytes: int) -> bytes:
        """Return up to `size_bytes` bytes, fewer only at the end.  Raises: DataUnavailable, DataTimeout, LoopEnded."""
        with trio.CancelScope() as scope:
            if self._ending:
                scope.cancel()
            self._reads.add(scope)
            try:
                return await self._fs.read(number, offset, size_bytes)
            finally:
                self._reads.discard(scope)
        raise LoopEnded("the drive is closed")

    async def stop_reading(self) -> None:
        """Let nobody wait for a cloud any more: a thread that does holds its file, which is to be closed now."""
        self._ending = True
        for scope in self._reads:
            scope.cancel()

    async def write(self, number: int, offset: int | None, data: bytes) -> int:
        """Put `data` at `offset` (None: at the end, wherever that is by then); return the offset behind it.

        Raises: NoSpace, FileTooBig, OSError of the local disk.
        """
        if offset is not None:
            return offset + await self._fs.write(number, offset, data)
        state = self._fs.handles.file(number).state
        while state.ino in self._appending:
            await self._appending.wait(state.ino)
        self._appending.begin(state.ino)
        try:
            end = state.size_bytes
            return end + await self._fs.write(number, end, data)
        finally:
            self._appending.end(state.ino)

    async def write_and_release(self, number: int, parts: Sequence[tuple[int | None, bytes]]) -> None:
        """Write what a forgotten file still had, in order, and close it."""
        try:
            for offset, data in parts:
                await self.write(number, offset, data)
        finally:
            await self.release(number)

    def size(self, number: int) -> int:
        """Return the size of an open file, in bytes.  No checkpoint."""
        return self._fs.handles.file(number).state.size_bytes

    async def ask_size(self, number: int) -> int:
        """Return the size of an open file, in bytes."""
        return self.size(number)

    async def read_all(self, names: Names) -> bytes:
        """Return a file's content.  Raises: as `open` and `read`."""
        number = await self.open(names, writing=False, create=False, exclusive=False, truncate=False)
        parts, offset = list[bytes](), 0
        try:
            while (left := self.size(number) - offset) > 0:
                parts.append(await self.read(number, offset, min(left, PIECE_BYTES)))
                offset += len(parts[-1])
                await trio.lowlevel.checkpoint()
        finally:
            await self.release(number)
        return b"".join(parts)

    async def write_all(self, names: Names, content: bytes) -> None:
        """Make a file, or empty one, and give it this content.  Raises: as `open` and `write`."""
        number = await self.open(names, writing=True, create=True, exclusive=False, truncate=True)
        try:
            for start in range(0, len(content), PIECE_BYTES):
                await self.write(number, start, content[start : start + PIECE_BYTES])
                await trio.lowlevel.checkpoint()
        finally:
            await self.release(number)

    async def resize(self, number: int, size_bytes: int) -> None:
        """Cut or lengthen an open file.  Raises: FileTooBig."""
        await self._fs.set_attributes(self._fs.handles.file(number).state.ino, AttributeRequest(), size_bytes)

    async def release(self, number: int) -> None:
        """Close; nothing if it was closed already."""
        if number in self._open:
            self._open.discard(number)
            await self._fs.release(number)

    async def release_all(self) -> None:
        """Close everything that is open."""
        for number in list(self._open):
            await self.release(number)

    async def make_durable(self, names: Names) -> None:
        """Return when what a path leads to survives a power cut, its bytes, attributes and names.  Raises: OSError."""
        inode = there(await resolve(self._tree, names, follow=True))
        if stat.S_ISREG(inode.mode):
            number = await self._open_node(inode, writing=False, truncate=False)
            try:
                await self._fs.sync_file(number)
            finally:
                await self.release(number)
        else:
            number = await self._fs.open_directory(inode.ino if stat.S_ISDIR(inode.mode) else ROOT_INODE)
            try:
                await self._fs.sync_directory(number)
            finally:
                await self._fs.release_directory(number)

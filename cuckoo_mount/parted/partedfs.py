"""The file system: a file is a row of chunks, a directory a set of names.  Knows nothing of FUSE.

Used by fuse/ and pyfs.py.  Loop only.  No call but `read` ever waits for a cloud; `sync_file` and shrinking wait for
the local disk.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Final

import trio
from attrs import frozen

from cuckoo_mount.cache.chunkcache import ChunkCache
from cuckoo_mount.cache.state import FileState
from cuckoo_mount.clock import now_ns
from cuckoo_mount.errors import (
    DataTimeout,
    FileTooBig,
    InvalidArgument,
    IsADirectory,
    NotADirectory,
    NotFound,
    StaleInode,
)
from cuckoo_mount.metadata.base import Metadata
from cuckoo_mount.parted.durability import Durability
from cuckoo_mount.parted.fence import Fence
from cuckoo_mount.parted.handles import DirectoryHandle, FileHandle, HandleTable
from cuckoo_mount.parted.marks import Marks
from cuckoo_mount.parted.redundancy import Redundancy
from cuckoo_mount.parted.stillness import Stillness
from cuckoo_mount.parted.tree import AttributeRequest, Caller, Tree, without_set_id
from cuckoo_mount.types import (
    CHUNK_SIZE_BYTES,
    SIZE_MAX_BYTES,
    ChunkIndex,
    DirectoryEntry,
    Inode,
    InodeChanges,
    InodeNo,
)

DEADLINE_S: Final = 60.0
IMPATIENT_S: Final = 1.0
"""After a read-ahead failed, the kernel reads the page once more before the program is told: that must not wait
again."""
AGAIN_S: Final = 0.2
DAY_NS: Final = 24 * 3600 * 10**9


@frozen(slots=True)
class SpaceLeft:
    """What can be stored, in bytes."""

    total_bytes: int
    free_bytes: int


class PartedFS:
    """One drive's files."""

    def __init__(
        self,
        metadata: Metadata,
        cache: ChunkCache,
        *,
        space: Callable[[], Awaitable[SpaceLeft]],
        redundancy: Redundancy,
        durability: Durability,
        deadline_s: float = DEADLINE_S,
    ) -> None:
        self._metadata = metadata
        self._cache = cache
        self._space = space
        self._deadline_s = deadline_s
        self._durability = durability
        self._fence = Fence()
        self._stillness = Stillness()
        self.tree: Final = Tree(metadata, cache, self._fence, Marks(metadata, (redundancy, durability)))
        self.handles: Final = HandleTable()
        self.access_times = True
        """Whether reading moves atime, as relatime does."""
        self.on_attributes_stale: Callable[[InodeNo], None] = lambda ino: None
        """Called when attributes are no longer what callers were told, for another reason than what they asked for."""
        self.on_first_writer: Callable[[InodeNo], None] = lambda ino: None
        """Called within `open`, before it answers, when a file without content is opened for writing: `is_written`
        is news, and must be known to who asks next."""
        self.on_name_stale: Callable[[InodeNo, bytes], None] = lambda parent, name: None
        """Called when a name in a directory came, went or changed by itself: by a repair."""

    def refuse_writes(self, reason: str) -> None:
        """Let every call that changes names, attributes or content raise ReadOnly(reason) from now on; reads go on.

        There is no way back; when called again the first reason stays.  Calls under way may still finish.  What was
        written before is kept, and can be made durable; bytes that the kernel brings later are refused, which
        programs are told at fsync or close.
        """
        self._fence.refuse(reason)

    @property
    def writes_refused(self) -> str:
        """The reason given to `refuse_writes`, or "" while writes are allowed."""
        return self._fence.reason

    async def create(self, parent: InodeNo, name: bytes, mode: int, caller: Caller) -> tuple[int, Inode]:
        """Make a regular file and open it; return (handle, node).  Raises: AlreadyExists, NotFound, NoSpace, …"""
        inode = await self.tree.make(parent, name, stat.S_IFREG | stat.S_IMODE(mode), caller)
        state = self._cache.open_new(inode)
        self.tree.references.add(inode.ino)
        return self.handles.add_file(FileHandle(state, writing=True, drops_privileges=_has_set_id(inode.mode))), inode

    async def open(self, ino: InodeNo, flags: int) -> int:
        """Open a regular file with open(2)'s flags (O_TRUNC included); return its handle.  Raises: StaleInode, …"""
        writing = flags & os.O_ACCMODE != os.O_RDONLY or bool(flags & os.O_TRUNC)
        if writing:
            self._fence.check()
        inode = await self._metadata.get_inode(ino)
        if stat.S_ISDIR(inode.mode):
            raise IsADirectory("open of a directory")
        state = await self._open_state(ino, writing=writing)
        self.tree.references.add(ino)
        drops_privileges = writing and _has_set_id(inode.mode)
        # Through a handle that only writes, the kernel reads the rest of a page that is written in part.
        leaves_atime = bool(flags & os.O_NOATIME) or flags & os.O_ACCMODE == os.O_WRONLY
        handle = FileHandle(state, writing=writing, drops_privileges=drops_privileges, leaves_atime=leaves_atime)
        number = self.handles.add_file(handle)
        if writing and state.writers == 1 and not self._cache.overlay(inode).chunk_count:
            self.on_first_writer(ino)
        if flags & os.O_TRUNC:
            try:
                await (self._resize(handle, 0) if state.size_bytes else self._drop_privileges(handle))
            except BaseException:
                await self.release(number)
                raise
        return number

    def is_written(self, ino: InodeNo) -> bool:
        """Whether somebody has a file open for writing."""
        return self._cache.has_writers(ino)

    async def _open_state(self, ino: InodeNo, *, writing: bool) -> FileState:
        """As `ChunkCache.open`; who will write waits until nobody holds the file still; nobody does from then on."""
        state = await self._cache.open(ino, writing=writing)
        if writing and self._stillness.is_held(ino):
            try:
                await self._stillness.wait(ino)
            except BaseException:
                self._cache.release(state, writing=True)
                raise
        return state

    @contextmanager
    def still_chunk(self, ino: InodeNo, index: ChunkIndex, margin_bytes: int) -> Iterator[tuple[int, bytes] | None]:
        """Yield (offset, bytes) of what is here of a chunk, and keep the file from changing until the block ends.

        Yields None if nothing is here, or somebody has the file open for writing.  Opening it for writing, and
        truncating it, wait meanwhile; reads do not.  `margin_bytes` at a side of the chunk are left out where the chunk
        beside it is not here: a read over the border may wait for that one.
        """
        found = None
        if not self._stillness.is_held(ino):
            found = self._cache.present_part(ino, index, margin_bytes)
        if found is None:
            yield None
            return
        start, data = found
        with self._stillness.hold(ino):
            yield index * CHUNK_SIZE_BYTES + start, data

    async def read(self, number: int, offset: int, size_bytes: int) -> bytes:
        """Return up to `size_bytes` bytes, fewer only at the end of the file.

        Waits for clouds up to the deadline.  Raises: DataUnavailable, DataTimeout, InvalidArgument.
        """
        handle = self.handles.file(number)
        if not handle.leaves_atime:
            handle.leaves_atime = True
            if self.access_times:
                await self._note_access(handle.state.ino)
        deadline_s = AGAIN_S if trio.current_time() < handle.impatient_until_s else self._deadline_s
        with trio.move_on_after(deadline_s):
            return await self._cache.read(handle.state, offset, size_bytes)
        handle.impatient_until_s = trio.current_time() + IMPATIENT_S
        raise DataTimeout(f"inode {handle.state.ino}: the bytes did not arrive within {self._deadline_s:g} s")

    async def _note_access(self, ino: InodeNo) -> None:
        """Move atime as mount option relatime does; behind the fence it stays, as on any read-only mount."""
        if self._fence.reason:
            return
        inode = await self._metadata.get_inode(ino)
        now = now_ns()
        if inode.atime_ns <= max(inode.mtime_ns, inode.ctime_ns) or now - inode.atime_ns > DAY_NS:
            await self._metadata.change_inode(ino, InodeChanges(atime_ns=now))

    async def write(self, number: int, offset: int, data: bytes) -> int:
        """Put `data` at `offset` (also for O_APPEND files: who calls knows the end); return its length.

        Raises: NoSpace, FileTooBig, InvalidArgument, ReadOnly, OSError of the local disk.
        """
        if self._fence.reason:  # looked at from here: a call less for each write
            self._fence.check()
        handle = self.handles.file(number)
        if offset + len(data) > SIZE_MAX_BYTES:
            raise FileTooBig(f"a file has at most {SIZE_MAX_BYTES} bytes")
        if handle.drops_privileges:
            await self._drop_privileges(handle)
        await self._cache.write(handle.state, offset, data)
        return len(data)

    async def _drop_privileges(self, handle: FileHandle) -> None:
        if not handle.drops_privileges:
            return
        handle.drops_privileges = False
        ino = handle.state.ino
        inode = await self._metadata.get_inode(ino)
        if without_set_id(inode.mode) != inode.mode:
            await self._metadata.change_inode(ino, InodeChanges(mode=without_set_id(inode.mode)))
            self.on_attributes_stale(ino)

    async def release(self, number: int) -> None:
        """Close a file's handle.  Its bytes are kept whether or not a flush ever came."""
        handle = self.handles.remove_file(number)
        self._cache.release(handle.state, writing=handle.writing)
        await self.tree.forget(handle.state.ino, 1)

    async def sync_file(self, number: int) -> None:
        """Return when the file's bytes, attributes and names survive a power cut of this machine.

        Where its durability says so, when they are on the clouds.  Raises: OSError, and as `Durability.synced`.
        """
        state = self.handles.file(number).state
        await self._cache.sync_file(state)
        await self._cache.make_durable()
        await self._durability.synced(state.ino)

    async def sync_directory(self, number: int) -> None:
        """Return when the directory's names survive a power cut of this machine; else as `sync_file`."""
        ino = self.handles.directory(number).ino
        await self._cache.make_durable()
        await self._durability.synced(ino)

    async def set_attributes(self, ino: InodeNo, request: AttributeRequest, size_bytes: int | None) -> Inode:
        """Change attributes, and first the size if given; return the node.  Raises: StaleInode, InvalidArgument, …"""
        self._fence.check()
        if size_bytes is not None:
            inode = await self._metadata.get_inode(ino)
            if not stat.S_ISREG(inode.mode):
                raise InvalidArgument("only a regular file has a size")
            if not 0 <= size_bytes <= SIZE_MAX_BYTES:
                raise FileTooBig(f"a file has at most {SIZE_MAX_BYTES} bytes")
            await self._truncate(inode, size_bytes)
            if request == AttributeRequest():
                return await self.tree.inode(ino)
        return await self.tree.set_attributes(ino, request)

    def believe_times(self, ino: InodeNo) -> None:
        """Say that the caller has told all mtimes it knows of a file: what `write` stamped since was not news.

        For a caller that owns times, as the kernel does with its write-back cache: it tells them after the bytes, but
        only when they moved.  Two writes within one tick of its clock, the first of which was sent and told before the
        second: then the second arrives late, gets a later stamp here, and no time follows it.
        """
        self._cache.undo_stamp(ino)

    async def _truncate(self, inode: Inode, size_bytes: int) -> None:
        state = await self._open_state(inode.ino, writing=True)
        handle = FileHandle(state, writing=True, drops_privileges=_has_set_id(inode.mode))
        try:
            await self._resize(handle, size_bytes)
        finally:
            self._cache.release(state, writing=True)

    async def _resize(self, handle: FileHandle, size_bytes: int) -> None:
        await self._drop_privileges(handle)
        await self._cache.set_size(handle.state, size_bytes, now_ns())

    async def open_directory(self, ino: InodeNo) -> int:
        """Open a directory; return its handle.  Raises: NotADirectory, StaleInode."""
        inode = await self._metadata.get_inode(ino)
        if not stat.S_ISDIR(inode.mode):
            raise NotADirectory("opendir of something else")
        self.tree.references.add(ino)
        return self.handles.add_directory(DirectoryHandle(ino))

    async def read_directory(self, number: int, after_cookie: int, limit: int) -> list[DirectoryEntry]:
        """Return up to `limit` entries behind `after_cookie` (0: from the start), `.` and `..` included.

        Cookies stay valid while names come and go: no entry that stays is skipped or seen twice.
        """
        ino = self.handles.directory(number).ino
        found: list[DirectoryEntry] = []
        if after_cookie < 2:
            here = await self.tree.inode(ino)
            try:
                above = await self._metadata.get_parent(ino)
            except (NotFound, StaleInode):
                above = here
            found = [
                e for e in (DirectoryEntry(1, b".", here), DirectoryEntry(2, b"..", above)) if e.cookie > after_cookie
            ]
        return found + await self.tree.entries(ino, max(after_cookie, 2), limit)

    async def release_directory(self, number: int) -> None:
        """Close a directory's handle."""
        await self.tree.forget(self.handles.remove_directory(number).ino, 1)

    async def space(self) -> SpaceLeft:
        """Return what can still be stored.  Never waits for a cloud."""
        return await self._space()


def _has_set_id(mode: int) -> bool:
    return without_set_id(mode) != mode

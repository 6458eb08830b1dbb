"""Whole chunks for the kernel's page cache, where small reads at random places ask for them piece by piece.

Used by operations.py.  Loop only, but for the call itself, which runs in a thread of its own: it waits for the locks of
pages, that is for READs under way, so that no handler may ever call it.
What makes it safe (docs/concurrency.md): only of files that nobody has open for writing, from open to release, which
lasts as long as any mapping; opening for writing and truncating wait until a push under way has ended; never beyond the
size; and no page of a READ that may have to wait for a cloud.
Where pushed pages do not stay (the memory is small), the same chunk is asked for again: then pushing of that file
pauses, each time twice as long.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from typing import Final

import pyfuse3
import trio
from attrs import define, field

from cuckoo_mount.fuse.guard import Upcalls
from cuckoo_mount.parted.handles import FileHandle
from cuckoo_mount.parted.partedfs import PartedFS
from cuckoo_mount.types import CHUNK_SIZE_BYTES, ChunkIndex, InodeNo

log = logging.getLogger(__name__)
SMALL_BYTES: Final = 16 << 10
"""A READ up to this size counts as small.  The kernel's read-ahead asks for up to 128 KiB."""
READS_MIN: Final = 2
MARGIN_BYTES: Final = 128 << 10
QUEUE_MAX: Final = 64
FILES_MAX: Final = 1024
CHUNKS_MAX: Final = 4096
REGRETS_MIN: Final = 16
"""Reads of pushed chunks, of one file, that do not count yet."""
REGRETS_PART: Final = 8
"""Pushing of a file pauses when more than one in so many of its pushes was in vain."""
PAUSE_MIN_S: Final = 60.0
PAUSE_MAX_S: Final = 3600.0
_QUEUED: Final = -1
_PUSHED: Final = -2


@define(slots=True, eq=False)
class _File:
    """What is known of one file.  `reads`: small reads at random places, by chunk; _QUEUED and _PUSHED afterwards."""

    reads: OrderedDict[ChunkIndex, int] = field(factory=OrderedDict)
    pushes: int = 0
    regrets: int = 0
    pause_s: float = PAUSE_MIN_S
    paused_until_s: float = 0.0


class Pusher:
    """Decides which chunks are pushed, pushes them, and counts that in `upcalls`."""

    def __init__(self, filesystem: PartedFS, upcalls: Upcalls) -> None:
        self._fs = filesystem
        self._upcalls = upcalls
        self._files: OrderedDict[InodeNo, _File] = OrderedDict()
        self._margin_bytes = MARGIN_BYTES
        self._limiter = trio.CapacityLimiter(1)
        self._wanted, self._receiver = trio.open_memory_channel[tuple[InodeNo, ChunkIndex]](QUEUE_MAX)

    def note_read(self, handle: FileHandle, offset: int, size_bytes: int) -> None:
        """Account for a READ that was answered.  No checkpoint."""
        is_random = offset != handle.read_end
        handle.read_end = offset + size_bytes
        self._margin_bytes = max(self._margin_bytes, size_bytes)
        if is_random and size_bytes <= SMALL_BYTES and not handle.state.writers:
            self._note_random(handle.state.ino, ChunkIndex(offset // CHUNK_SIZE_BYTES))

    def _note_random(self, ino: InodeNo, index: ChunkIndex) -> None:
        file = self._files.get(ino)
        if file is None:
            file = self._files[ino] = _File()
            if len(self._files) > FILES_MAX:
                self._files.popitem(last=False)
        self._files.move_to_end(ino)
        now_s = trio.current_time()
        if now_s < file.paused_until_s:
            return
        reads = file.reads.get(index, 0)
        if reads == _PUSHED:
            self._note_regret(file, now_s)
        elif reads >= 0:
            self._count(file, ino, index, reads + 1)

    def _count(self, file: _File, ino: InodeNo, index: ChunkIndex, reads: int) -> None:
        file.reads[index] = reads
        if len(file.reads) > CHUNKS_MAX:
            file.reads.popitem(last=False)
        if reads >= READS_MIN:
            try:
                self._wanted.send_nowait((ino, index))
            except trio.WouldBlock:
                return  # the next read of it asks again
            file.reads[index] = _QUEUED

    def _note_regret(self, file: _File, now_s: float) -> None:
        file.regrets += 1
        if file.regrets > max(REGRETS_MIN, file.pushes // REGRETS_PART):
            file.paused_until_s = now_s + file.pause_s
            file.pause_s = min(2 * file.pause_s, PAUSE_MAX_S)
            file.reads.clear()
            file.pushes = file.regrets = 0

    async def run(self) -> None:
        """Push what is wanted, until cancelled: one chunk at a time.

        A push that is cancelled goes on in its thread; it must be certain by then that no handler runs any more.
        """
        async for ino, index in self._receiver:
            with self._fs.still_chunk(ino, index, self._margin_bytes) as found:
                is_pushed = found is not None and await self._push(ino, *found)
            file = self._files.get(ino)
            if file is not None and index in file.reads:
                file.reads[index] = _PUSHED if is_pushed else 0
                file.pushes += is_pushed

    async def _push(self, ino: InodeNo, offset: int, data: bytes) -> bool:
        try:
            await trio.to_thread.run_sync(
                pyfuse3.notify_store,
                pyfuse3.InodeT(ino),
                offset,
                data,
                limiter=self._limiter,
                abandon_on_cancel=True,
            )
        except OSError as error:
            log.debug("inode %d: nothing pushed: %s", ino, error)
            return False
        self._upcalls.pushes += 1
        self._upcalls.pushed_bytes += len(data)
        return True

"""Front door of the cache: file content by byte range, local durability, sending, eviction.

Used by parted/ and drive.py.  Loop only.  Builds its parts and runs their tasks inside `running`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Final

import trio
from attrs import evolve, frozen

from cuckoo_mount.cache.checkpoint import Checkpointer
from cuckoo_mount.cache.checks import check_cache
from cuckoo_mount.cache.completing import Completer
from cuckoo_mount.cache.content import Content
from cuckoo_mount.cache.cutting import ContentCut, Cutter, Moment
from cuckoo_mount.cache.eviction import Evictor
from cuckoo_mount.cache.fetching import ChunkReader
from cuckoo_mount.cache.files import LocalFiles
from cuckoo_mount.cache.placing import note_moved
from cuckoo_mount.cache.pressure import CacheLimits, Pressure
from cuckoo_mount.cache.recovery import begin_session, end_session, prepare_folder, recover_files
from cuckoo_mount.cache.sending import PackSender
from cuckoo_mount.cache.state import FileState
from cuckoo_mount.cache.truncate import set_size
from cuckoo_mount.cache.writeback import WriteBack
from cuckoo_mount.clock import later
from cuckoo_mount.clouds.base import Space
from cuckoo_mount.metadata.base import Metadata
from cuckoo_mount.packs.writer import PackWriter
from cuckoo_mount.types import CHUNK_SIZE_BYTES, ChunkIndex, Inode, InodeNo, Location, VersionNo


@frozen(slots=True)
class CacheStatistics:
    """Counters; bytes are plain bytes in local files.

    `misses`: chunks that a read had to wait for.  `prefetched`: chunks fetched ahead of reads; `prefetch_hits`: those
    of them, and of those under way, that were read afterwards.
    """

    used_bytes: int
    limit_bytes: int
    dirty_bytes: int
    pending_bytes: int
    pending_files: int
    hits: int
    misses: int
    prefetched: int
    prefetch_hits: int
    evicted_bytes: int
    checkpoints: int
    file_syncs: int
    packs_sent: int
    last_error: str


class ChunkCache:
    """All content of a drive, as seen by the layers above."""

    def __init__(
        self,
        metadata: Metadata,
        reader: ChunkReader,
        writer: PackWriter,
        *,
        state_folder: Path,
        cache_folder: Path,
        limits: CacheLimits,
        digest: Callable[[bytes], bytes],
        ticks: tuple[int, int],
        cloud_room: Callable[[], Space | None] = lambda: None,
    ) -> None:
        """`cloud_room`: see `CloudRoom`, `left`."""
        files = LocalFiles(state_folder / "files", cache_folder / "files")
        self._aside = state_folder / "aside"
        self._metadata = metadata
        self._pressure: Final = Pressure(
            limits,
            state_folder,
            metadata.held_bytes,
            metadata.dirty_bytes,
            cloud_room,
            lambda: writer.is_full(CHUNK_SIZE_BYTES),
            metadata.has_room,
        )
        self._content: Final = Content(
            metadata,
            files,
            reader,
            self._pressure,
            digest=digest,
            aside_folder=self._aside,
            boot_tick=ticks[0],
            unverified_tick=ticks[1],
        )
        self._checkpointer: Final = Checkpointer(self._content)
        completer = Completer(self._content, self._checkpointer, reader)
        self._writer: Final = writer
        self._sender: Final = PackSender(self._content, writer)
        self._writeback: Final = WriteBack(
            self._content,
            self._checkpointer,
            self._sender,
            completer,
            policies=writer.policies,
            pack_size_bytes=writer.pack_size_bytes,
        )
        self._cutter: Final = Cutter(
            self._content, self._checkpointer, self._writeback, self._sender, completer, writer
        )
        self._evictor: Final = Evictor(self._content, self._checkpointer)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Recover what a crash left, run the background tasks, and leave everything in order at the end.

        What is unsent at the end stays in the state folder.  Raises: OSError, MetadataError.
        """
        await recover_files(self._metadata, self._content.files, self._aside)
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(self._content.fetcher.run)
                for task in (self._checkpointer.run, self._writeback.run, self._evictor.run):
                    nursery.start_soon(task)
                yield
                nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await self._checkpointer.checkpoint()
                await end_session(self._metadata, self._content.files)
        finally:
            self._content.files.close()

    async def open(self, ino: InodeNo, *, writing: bool) -> FileState:
        """Return the state of a regular file, to be given back by `release`.  Raises: StaleInode."""
        return await self._content.open(ino, writing=writing)

    def open_new(self, inode: Inode) -> FileState:
        """Return the state of a regular file that was made just now, open for writing."""
        return self._content.adopt_new(inode)

    def release(self, state: FileState, *, writing: bool) -> None:
        """Give back what `open` returned."""
        self._content.release(state, writing=writing)
        if writing and not state.writers:
            self._checkpointer.settle(state.ino)

    def is_known(self, ino: InodeNo) -> bool:
        """Whether something of a file's rows is in memory: it is open, or has changes that are not in them yet."""
        return ino in self._content.states

    def has_writers(self, ino: InodeNo) -> bool:
        """Whether somebody has a file open for writing."""
        state = self._content.states.get(ino)
        return state is not None and state.writers > 0

    async def read(self, state: FileState, offset: int, size_bytes: int) -> bytes:
        """Return up to `size_bytes` bytes from `offset`.  Raises: DataUnavailable, DataTimeout."""
        return await self._content.read(state, offset, size_bytes)

    def present_part(self, ino: InodeNo, index: ChunkIndex, margin_bytes: int) -> tuple[int, bytes] | None:
        """Return what is here of a chunk of a file that nobody may write to; see `Content.present_part`."""
        return self._content.present_part(ino, index, margin_bytes)

    async def write(self, state: FileState, offset: int, data: bytes) -> None:
        """Put `data` at `offset`.  Raises: NoSpace, OSError."""
        await self._content.write(state, offset, data)
        if self._pressure.is_high:
            self._checkpointer.want()

    async def admit_file(self) -> None:
        """Return when a new file may be made.  Raises: NoSpace."""
        await self._pressure.admit(0, creating=True)

    async def set_size(self, state: FileState, size_bytes: int, now_ns: int) -> None:
        """Truncate or grow.  Raises: StaleInode."""
        await set_size(self._content, state, size_bytes, now_ns)

    def set_times(self, ino: InodeNo, *, mtime_ns: int | None, ctime_ns: int) -> bool:
        """Set the times of a file whose content has pending changes, to enter the metadata together with them.

        Returns False for any other: then the caller brings them there.
        """
        state = self._content.states.get(ino)
        if state is None:
            return False
        state.note_told(mtime_ns=mtime_ns, ctime_ns=ctime_ns)
        if not state.is_pending:
            return False
        state.serial += 1
        if mtime_ns is not None:
            state.mtime_ns = mtime_ns
        state.ctime_ns = ctime_ns
        return True

    def undo_stamp(self, ino: InodeNo) -> None:
        """Make a file's times what they were last set to, whatever was written since; see `PartedFS.believe_times`."""
        state = self._content.states.get(ino)
        if state is not None:
            state.undo_stamp()

    def pending_state(self, ino: InodeNo) -> FileState | None:
        """Return the state of a file with pending changes, else None."""
        state = self._content.states.get(ino)
        return state if state is not None and state.is_pending else None

    def overlay(self, inode: Inode) -> Inode:
        """Return the node as programs must see it: with the changes of content that the metadata has not got yet."""
        state = self.pending_state(inode.ino)
        if state is None:
            return inode
        new = sum(slot.committed is None for slot in state.slots.values())
        return evolve(
            inode,
            size_bytes=state.size_bytes,
            mtime_ns=inode.mtime_ns if state.mtime_ns is None else state.mtime_ns,
            ctime_ns=inode.ctime_ns if state.ctime_ns is None else later(inode.ctime_ns, state.ctime_ns),
            chunk_count=inode.chunk_count + new,
        )

    async def sync_file(self, state: FileState) -> None:
        """Bring the file's bytes to the disk and its rows into the metadata (not yet durable).  Raises: OSError."""
        await self._checkpointer.sync_file(state)

    async def make_durable(self) -> None:
        """Make the metadata durable, with all that waits for it."""
        await self._checkpointer.make_durable()

    async def checkpoint(self) -> None:
        """Make everything written so far durable on the local disk."""
        await self._checkpointer.checkpoint()

    async def send_all(self) -> None:
        """Return when everything written before is on clouds; waits as long as that takes."""
        await self._writeback.send_all()

    def cut(self, epoch: int, at_moment: Moment) -> AbstractAsyncContextManager[ContentCut]:
        """Freeze all that is dirty at one moment, to bring it to the clouds as it was then.  See `Cutter.cut`."""
        return self._cutter.cut(epoch, at_moment)

    def stop_sending(self) -> None:
        """Send nothing more by itself, for as long as the drive is open; what is dirty stays so."""
        self._writeback.stop()

    def retry_sending(self) -> None:
        """Try again now what clouds would not take: one of them is back, or has room again."""
        self._writeback.retry()
        self._pressure.made_progress()

    def cloud_room(self) -> Space | None:
        """Return how many bytes programs may have written in all, and how many more they may write; None: no limit."""
        return self._pressure.clouds.room()

    def when_full(self, may_free: Callable[[], bool]) -> None:
        """Have `may_free` asked whether room is being made, or will be, when a writer finds the clouds full.

        Writers look again when `retry_sending` is called.
        """
        self._pressure.clouds.may_free = may_free

    async def purge(self, ino: InodeNo) -> None:
        """Remove a node without names and uses, and its content."""
        state = self._content.states.get(ino)
        if state is not None:
            async with state.rows_lock:
                state.removed = True
                await self._metadata.purge_inode(ino)
                self._content.frozen.displace(ino, ChunkIndex(0))
            self._content.settle_account(state)
            self._content.forget_idle(state)
        else:
            await self._metadata.purge_inode(ino)
            self._content.frozen.displace(ino, ChunkIndex(0))
        self._checkpointer.doom(ino)

    def note_moved(self, places: Mapping[VersionNo, Location]) -> None:
        """Account for versions that compaction moved to other packs; no checkpoint since their rows changed."""
        note_moved(self._content, places)

    async def evict(self, wanted_bytes: int) -> int:
        """Give back about `wanted_bytes` of clean chunks; return how many were."""
        return await self._evictor.evict(wanted_bytes)

    def statistics(self) -> CacheStatistics:
        """Return the counters."""
        held = self._metadata.statistics()
        return CacheStatistics(
            used_bytes=self._pressure.used_bytes,
            limit_bytes=self._pressure.limits.limit_bytes,
            dirty_bytes=held.dirty_bytes,
            pending_bytes=self._pressure.pending_bytes,
            pending_files=sum(state.is_pending for state in self._content.states.values()),
            hits=self._content.hits,
            misses=self._content.fetcher.misses,
            prefetched=self._content.fetcher.prefetched,
            prefetch_hits=self._content.fetcher.prefetch_hits,
            evicted_bytes=self._evictor.evicted_bytes,
            checkpoints=self._checkpointer.checkpoints,
            file_syncs=self._checkpointer.file_syncs,
            packs_sent=self._sender.packs_sent,
            last_error=str(self._sender.last_error or ""),
        )

    async def check_invariants(self) -> list[str]:
        """Return one line per violated invariant of cache, metadata, packs and clouds; empty when all hold."""
        found = await self._metadata.check_invariants() + await check_cache(self._content)
        return found + await self._writer.check_invariants()


async def open_session(metadata: Metadata, *, state_folder: Path, cache_folder: Path) -> tuple[int, int]:
    """Prepare the folders and begin a mount; return what `ChunkCache` wants as `ticks`."""
    prepare_folder(state_folder)
    prepare_folder(cache_folder)
    return await begin_session(metadata, cache_folder)

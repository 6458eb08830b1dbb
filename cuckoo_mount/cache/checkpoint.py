"""Local durability: fsync of one file, and the checkpoint that does it for all every few seconds.

Used by chunkcache.py.  Loop only; disk flushes run in threads.  The order is always: bytes on the disk → rows →
commit → commit on the disk.
What has to wait until a commit is durable (deleting local files, moving them to the cache folder) is done here.
Invariants: I-2, I-5, I-12, I-13.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from typing import Final

import trio

from cuckoo_mount.cache.content import Content
from cuckoo_mount.cache.files import FEW_FILES
from cuckoo_mount.cache.state import FileState, Snapshot
from cuckoo_mount.errors import StaleInode
from cuckoo_mount.types import InodeNo

log = logging.getLogger(__name__)
COMMIT_S: Final = 1.0
CHECKPOINT_S: Final = 2.0
PENDING_BYTES: Final = 32 << 20
"""So much pending data makes a checkpoint at once: what is pending can neither be sent nor evicted."""
_BATCH: Final = 64


class Checkpointer:
    """Brings pending changes into the metadata, and what follows from that."""

    def __init__(self, content: Content) -> None:
        self._content = content
        self._metadata = content.metadata
        self._files = content.files
        self._doomed: set[InodeNo] = set()
        self._settled: set[InodeNo] = set()
        self._wanted = trio.Event()
        self._is_durable = True
        self.checkpoints = 0
        self.file_syncs = 0

    def doom(self, ino: InodeNo) -> None:
        """Delete the local file of a purged inode once the purge is durable."""
        self._doomed.add(ino)

    def settle(self, ino: InodeNo) -> None:
        """Move the local file to the cache folder once it is durable that nothing in it is dirty."""
        self._settled.add(ino)

    def want(self) -> None:
        """Ask for a checkpoint now rather than at its time."""
        self._wanted.set()

    async def sync_file(self, state: FileState) -> None:
        """Return when what was written to the file before this call is in its rows and its bytes on the disk.

        The rows are not yet durable: that is `Metadata.make_durable`.  Raises: OSError, MetadataError.
        """
        target = state.serial
        while state.durable_serial < target and not state.removed:
            snapshot = state.snapshot()
            file = self._files.get(state.ino)
            self.file_syncs += 1
            await self._files.sync([file] if file is not None else [])
            await self._apply(state, snapshot)

    async def _apply(self, state: FileState, snapshot: Snapshot) -> None:
        """Enter a snapshot whose bytes are on the disk, unless it was overtaken: then the next one brings it."""
        async with state.rows_lock:
            if (
                snapshot.truncations == state.truncations
                and snapshot.serial > state.durable_serial
                and not state.removed
                and not state.is_renewed(snapshot)
            ):
                chunks = [chunk for chunk in snapshot.chunks if state.is_pending_chunk(chunk)]
                try:
                    await self._metadata.apply_written(state.ino, snapshot.changes, chunks)
                except StaleInode:
                    state.removed = True
                else:
                    state.note_applied(snapshot)
                self._content.settle_account(state)
        self._content.forget_idle(state)

    async def checkpoint(self) -> None:
        """Do it for every file, and make all of the metadata durable.  Raises: OSError, MetadataError."""
        self.checkpoints += 1
        await self.enter_pending()
        await self.make_durable()

    async def enter_pending(self) -> None:
        """Do it for every file, but for what is made durable: the rows are in the metadata, and may go with a power
        cut."""
        pending = [state for state in self._content.states.values() if state.is_pending and not state.removed]
        if pending:
            snapshots = [state.snapshot() for state in pending]
            await self._sync_bytes(pending)
            for number, (state, snapshot) in enumerate(zip(pending, snapshots, strict=True)):
                await self._apply(state, snapshot)
                if state.durable_serial < snapshot.serial:
                    await self.sync_file(state)  # overtaken; who called wants it all the same
                if number % _BATCH == 0:
                    await trio.lowlevel.checkpoint()

    async def _sync_bytes(self, states: list[FileState]) -> None:
        if len(states) > FEW_FILES:
            await self._files.sync_all()
            return
        found = [self._files.get(state.ino) for state in states]
        await self._files.sync([file for file in found if file is not None])

    async def make_durable(self) -> None:
        """Make the metadata durable, then do what waited for it."""
        doomed, self._doomed = self._doomed, set()
        settled, self._settled = self._settled, set()
        # Looked at before: what becomes clean while the disk is busy is not durably so.  It will be settled again.
        clean = {ino for ino in settled if not await self._metadata.has_dirty(ino)}
        self._is_durable = True
        try:
            await self._metadata.make_durable()
        except BaseException:
            self._is_durable = False
            self._doomed |= doomed
            self._settled |= settled
            raise
        await self._remove_files(doomed)
        await self._trim_files()
        await self._settle_files(clean)

    async def _remove_files(self, doomed: set[InodeNo]) -> None:
        for number, ino in enumerate(doomed):
            if ino in self._content.frozen or self._files.is_busy(ino):
                self._doomed.add(ino)
                continue
            self._content.untrimmed.discard(ino)
            self._files.remove(ino)
            if number % _BATCH == 0:
                await trio.lowlevel.checkpoint()
        await self._files.free_removed()
        if doomed:
            self._content.pressure.made_progress()

    async def _settle_files(self, settled: set[InodeNo]) -> None:
        for number, ino in enumerate(settled):
            state = self._content.states.get(ino)
            file = self._files.get(ino)
            if ino in self._content.frozen:
                continue  # the thaw settles it again
            if file is None or (state is not None and (state.is_pending or state.writers)):
                continue  # the end of writing settles it again
            if not await self._metadata.has_dirty(ino):
                await self._files.to_cache(file)
            if number % _BATCH == 0:
                await trio.lowlevel.checkpoint()

    async def _trim_files(self) -> None:
        """Give back the room behind the ends of files that were cut while something of them was frozen."""
        for ino in list(self._content.untrimmed):
            state = self._content.states.get(ino)
            file = self._files.get(ino)
            if ino in self._content.frozen or (state is not None and (state.is_pending or state.writers)):
                continue
            self._content.untrimmed.discard(ino)
            with suppress(StaleInode):
                # As nothing is pending and nobody is just cutting it, its size is the whole truth, and durable.
                inode = await self._metadata.get_inode(ino)
                if file is not None and file.moving is None and os.fstat(file.fd).st_size > inode.size_bytes:
                    os.ftruncate(file.fd, inode.size_bytes)

    async def run(self) -> None:
        """Commit every second, checkpoint every two while something is pending; until cancelled.

        An error of the local disk is logged and tried again: the data stay pending, fsync reports it to programs.
        """
        since_checkpoint = 0.0
        while True:
            with trio.move_on_after(COMMIT_S) as timeout:
                await self._wanted.wait()
            self._wanted = trio.Event()
            since_checkpoint += COMMIT_S
            now = not timeout.cancelled_caught or self._content.pressure.pending_bytes > PENDING_BYTES
            try:
                if now or since_checkpoint >= CHECKPOINT_S:
                    since_checkpoint = 0.0
                    await self._touch()
                    if await self._metadata.commit() or self._has_work() or not self._is_durable:
                        await self.checkpoint()
                elif await self._metadata.commit():
                    self._is_durable = False
            except OSError as error:
                log.error("the local disk refused a checkpoint: %s; trying again", error)

    def _has_work(self) -> bool:
        waiting = any(ino not in self._content.frozen for ino in self._doomed)
        return waiting or bool(self._settled) or any(s.is_pending for s in self._content.states.values())

    async def _touch(self) -> None:
        touched, self._content.touched = self._content.touched, set()
        if touched:
            await self._metadata.touch_held(touched, self._content.tick)

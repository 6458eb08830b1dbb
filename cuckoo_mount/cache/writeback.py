"""Sending what is dirty: freeze, seal into packs, store, record.

Used by chunkcache.py.  Loop only.  A pack is begun when enough is dirty for a full one, when nothing changed for
`IDLE_S`, or when somebody waits for everything (`sync`).  Failures of clouds are a state, not an error: the data stay
dirty and are tried again with growing pauses.  Invariants: I-7, I-8, I-9.
"""

from __future__ import annotations

import logging
import random
from typing import Final

import trio

from cuckoo_mount.cache.checkpoint import Checkpointer
from cuckoo_mount.cache.content import Content
from cuckoo_mount.cache.dedup import Deduplicator
from cuckoo_mount.cache.frozen import Frozen
from cuckoo_mount.cache.placing import note_stored
from cuckoo_mount.errors import CloudError, CuckooError, MetadataError, StaleInode
from cuckoo_mount.packs.builder import BuiltPack
from cuckoo_mount.packs.choosing import MAX_CHUNKS_PER_PACK
from cuckoo_mount.packs.writer import PackWriter, StoredPack
from cuckoo_mount.types import ChunkIndex, DirtyChunk, InodeNo, VersionNo

log = logging.getLogger(__name__)
IDLE_S: Final = 5.0
POLL_S: Final = 1.0
MAX_PACKS_AT_ONCE: Final = 3
MAX_PAUSE_S: Final = 60.0
MAX_PARTIALS: Final = 64


class WriteBack:
    """Sends dirty chunks."""

    def __init__(self, content: Content, checkpointer: Checkpointer, writer: PackWriter) -> None:
        self._content = content
        self._metadata = content.metadata
        self._checkpointer = checkpointer
        self._writer = writer
        self._dedup = Deduplicator(content, writer)
        self._limiter = trio.CapacityLimiter(MAX_PACKS_AT_ONCE)
        self._hurry = 0
        self._kick = trio.Event()
        self._completing = False
        self.last_error: CuckooError | OSError | None = None
        self.failures = 0
        self.packs_sent = 0

    async def send_all(self) -> None:
        """Return when everything written before this call is on clouds.  Waits as long as it takes; cancel to give
        up."""
        # First, so that whole packs are begun: what is dirty in the middle of it would make small ones.
        await self._checkpointer.checkpoint()
        newest = await self._metadata.new_versions(1)
        self._hurry += 1
        try:
            while await self._is_unsent(newest):
                self._kick.set()
                await self._content.pressure.room.wait()
        finally:
            self._hurry -= 1
        await self._checkpointer.make_durable()

    async def _is_unsent(self, before: VersionNo) -> bool:
        oldest = await self._metadata.dirty_chunks(1, ())
        partial = await self._metadata.partial_chunks(1)
        return bool(partial) or (bool(oldest) and oldest[0].version < before)

    async def run(self) -> None:
        """Send until cancelled."""
        idle_s = 0.0
        seen = 0
        async with trio.open_nursery() as nursery:
            while True:
                with trio.move_on_after(POLL_S) as timeout:
                    await self._kick.wait()
                self._kick = trio.Event()
                statistics = self._metadata.statistics()
                idle_s = idle_s + POLL_S if statistics.dirty_bytes == seen and timeout.cancelled_caught else 0.0
                seen = statistics.dirty_bytes
                if not statistics.dirty_chunks:
                    continue
                urgent = self._hurry > 0 or self._content.pressure.is_high or idle_s >= IDLE_S
                if not self._completing:
                    self._completing = True
                    nursery.start_soon(self._complete_partials)
                await self._start_packs(nursery, urgent=urgent)

    async def _pause(self) -> None:
        longest = min(MAX_PAUSE_S, 2.0 ** min(self.failures, 6))
        with trio.move_on_after(longest * random.uniform(0.5, 1.0)):
            await self._kick.wait()

    async def _start_packs(self, nursery: trio.Nursery, *, urgent: bool) -> None:
        while True:
            ticket = object()
            await self._limiter.acquire_on_behalf_of(ticket)
            await self._content.versions.reserve(MAX_CHUNKS_PER_PACK)
            batch = await self._next_batch(urgent=urgent)
            # No checkpoint between the look at what is dirty and the freeze.
            for frozen in batch:
                self._content.freeze(frozen)
            if not batch:
                self._limiter.release_on_behalf_of(ticket)
                return
            nursery.start_soon(self._send_batch, batch, ticket)

    async def _next_batch(self, *, urgent: bool) -> list[Frozen]:
        """Return the oldest dirty chunks that fill a pack, or all there are if `urgent`."""
        frozen = {f.version for f in self._content.frozen}
        chunks: list[DirtyChunk] = []
        total = 0
        for chunk in await self._metadata.dirty_chunks(MAX_CHUNKS_PER_PACK, frozen):
            if self._content.frozen.get(chunk.ino, chunk.index) is not None:
                continue  # an older version of the same chunk is under way; its bytes must stay where they are
            chunks.append(chunk)
            total += chunk.length_bytes
            if total >= self._writer.pack_size_bytes:
                break
        if total < self._writer.pack_size_bytes and len(chunks) < MAX_CHUNKS_PER_PACK and not urgent:
            return []
        return [Frozen(c.ino, c.index, c.version, c.length_bytes) for c in chunks]

    async def _send_batch(self, batch: list[Frozen], ticket: object) -> None:
        """Seal, store and record one pack; whatever happens, thaw."""
        try:
            await self._send(batch)
        except (CuckooError, OSError) as error:
            if isinstance(error, MetadataError):
                raise
            self._note_failure(error)
        finally:
            for frozen in batch:
                self._content.frozen.thaw(frozen)
            self._limiter.release_on_behalf_of(ticket)
            self._content.pressure.made_progress()
            self._kick.set()

    def _note_failure(self, error: CuckooError | OSError) -> None:
        self.failures += 1
        self.last_error = error
        log.warning("sending a pack failed, it will be tried again: %s", error)

    async def _send(self, batch: list[Frozen]) -> None:
        built = await self._dedup.build(batch)
        if built is not None:
            await self._send_pack(built, batch)
        for ino in {f.ino for f in batch}:
            self._checkpointer.settle(ino)

    async def _send_pack(self, built: BuiltPack, batch: list[Frozen]) -> None:
        for chunk in built.missing:
            log.error("inode %d chunk %d is dirty but its local file is gone", chunk.ino, chunk.index)
        if not built.sealed:
            await self._writer.discard(built)
            return
        stored = await self._store(built)
        overwritten = self._dedup.overwritten(batch)
        number = await self._metadata.finish_pack(
            built.pack_id, stored.policy, built.size_bytes, stored.shares, built.sealed, overwritten, stored.strays
        )
        note_stored(self._content, number, built.sealed)
        self.packs_sent += 1
        await self._dedup.link(built.repeats, batch)

    async def _store(self, built: BuiltPack) -> StoredPack:
        """Store the pack, however long the clouds take to accept it; the same pack, so that a retry is idempotent."""
        while True:
            try:
                stored = await self._writer.store(built)
            except CloudError as error:
                self._note_failure(error)
                await self._pause()
            except CuckooError:
                await self._writer.discard(built)
                raise
            else:
                self.failures = 0
                return stored

    async def _complete_partials(self) -> None:
        """Fetch what is missing under partly written chunks, so that they can be sent."""
        partial = await self._metadata.partial_chunks(MAX_PARTIALS)
        try:
            for ino, index in partial:
                await self._complete(ino, index)
        except (CuckooError, OSError) as error:
            if isinstance(error, MetadataError):
                raise
            self._note_failure(error)
            await self._pause()
        finally:
            self._completing = False
            if partial:
                self._kick.set()

    async def _complete(self, ino: InodeNo, index: ChunkIndex) -> None:
        try:
            state = await self._content.open(ino, writing=False)
        except StaleInode:
            return
        try:
            await self._content.load(state, index, index)
            slot = state.slots.get(index)
            if slot is not None and slot.base is not None:
                await self._content.fetcher.bring(state, index)
            await self._checkpointer.sync_file(state)
        finally:
            self._content.release(state, writing=False)

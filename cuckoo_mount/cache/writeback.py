"""Sending what is dirty as it comes: when to freeze what, and pack after pack.

Used by chunkcache.py.  Loop only.  A pack is begun when enough is dirty for a full one, when nothing changed for some
seconds (pausing.py), or when somebody waits for everything (`sync`); none while a cut is made and sent (cutting.py).
Failures of clouds are a state, not an error: the data stay dirty and are tried again with growing pauses.  Invariant:
I-7.
"""

from __future__ import annotations

from typing import Final

import trio

from cuckoo_mount.cache.checkpoint import Checkpointer
from cuckoo_mount.cache.completing import Completer
from cuckoo_mount.cache.content import Content
from cuckoo_mount.cache.frozen import Frozen
from cuckoo_mount.cache.pausing import SendPauses
from cuckoo_mount.cache.sending import PackSender
from cuckoo_mount.errors import CuckooError, MetadataError
from cuckoo_mount.locks import Pulse
from cuckoo_mount.multi.policies import Policies
from cuckoo_mount.packs.choosing import MAX_CHUNKS_PER_PACK
from cuckoo_mount.types import VersionNo

POLL_S: Final = 1.0
MAX_PACKS_AT_ONCE: Final = 3


class WriteBack:
    """Sends dirty chunks.  `limiter`: so many packs are under way at once, those of a cut included."""

    def __init__(
        self,
        content: Content,
        checkpointer: Checkpointer,
        sender: PackSender,
        completer: Completer,
        *,
        policies: Policies,
        pack_size_bytes: int,
    ) -> None:
        self._content = content
        self._metadata = content.metadata
        self._checkpointer = checkpointer
        self._sender = sender
        self._completer = completer
        self._policies = policies
        self._pack_size_bytes = pack_size_bytes
        self.limiter: Final = trio.CapacityLimiter(MAX_PACKS_AT_ONCE)
        self._hurry = 0
        self._held = False
        self._stopped = False
        self._under_way = 0
        self._ended = Pulse()
        self._completing = False
        self._pauses = SendPauses()

    async def send_all(self) -> None:
        """Return when everything written before this call is on clouds.  Waits as long as it takes; cancel to give
        up."""
        # First, so that whole packs are begun: what is dirty in the middle of it would make small ones.
        await self._checkpointer.checkpoint()
        newest = await self._metadata.new_versions(1)
        self._hurry += 1
        try:
            while await self._is_unsent(newest):
                self._sender.kick.set()
                await self._content.pressure.room.wait()
        finally:
            self._hurry -= 1
        await self._checkpointer.make_durable()

    def retry(self) -> None:
        """Try again now what clouds would not take: one of them is back."""
        self._sender.kick.set()

    def stop(self) -> None:
        """Begin no more packs, ever: somebody else writes the drive now.  What is dirty stays so."""
        self._stopped = True

    async def hold(self) -> None:
        """Begin no more packs, and return when none is under way; `resume` must follow, also if this is cancelled.

        What is just being transferred is waited for; what no cloud takes is given up, and is only dirty again.
        """
        assert not self._held, "sending is held already"
        self._held = self._sender.gives_way = True
        self._sender.kick.set()
        while self._under_way:
            await self._ended.wait()
        if dirty_bytes := self._metadata.statistics().dirty_bytes:
            self._pauses.note_sent(dirty_bytes)  # by the cut

    def resume(self) -> None:
        """Begin packs again."""
        self._held = self._sender.gives_way = False
        self._sender.kick.set()

    async def _is_unsent(self, before: VersionNo) -> bool:
        oldest = await self._metadata.dirty_chunks(1, ())
        partial = await self._metadata.partial_chunks(1)
        return bool(partial) or (bool(oldest) and oldest[0].version < before)

    async def run(self) -> None:
        """Send until cancelled."""
        idle_s = 0.0
        seen, is_idle = 0, False
        async with trio.open_nursery() as nursery:
            while True:
                with trio.move_on_after(POLL_S) as timeout:
                    await self._sender.kick.wait()
                self._sender.kick = trio.Event()
                statistics = self._metadata.statistics()
                idle_s = idle_s + POLL_S if statistics.dirty_bytes == seen and timeout.cancelled_caught else 0.0
                seen = statistics.dirty_bytes
                is_idle = is_idle and idle_s > 0.0
                if not statistics.dirty_chunks or self._held or self._stopped:
                    continue
                pressure = self._content.pressure
                if not is_idle and idle_s >= self._pauses.pause_s(statistics.dirty_bytes):
                    is_idle = True
                    self._pauses.note_sent(statistics.dirty_bytes)
                urgent = self._hurry > 0 or pressure.is_high or pressure.clouds.waiting > 0 or is_idle
                if not self._completing:
                    self._completing = True
                    nursery.start_soon(self._complete_partials)
                await self._start_packs(nursery, urgent=urgent)

    async def _start_packs(self, nursery: trio.Nursery, *, urgent: bool) -> None:
        while True:
            ticket = object()
            await self.limiter.acquire_on_behalf_of(ticket)
            await self._content.versions.reserve(MAX_CHUNKS_PER_PACK)
            batch = [] if self._held or self._stopped else await self._next_batch(urgent=urgent)
            # No checkpoint between the look at what is dirty and the freeze.
            for frozen in batch:
                self._content.freeze(frozen)
            if not batch:
                self.limiter.release_on_behalf_of(ticket)
                return
            self._under_way += 1
            nursery.start_soon(self._send_batch, batch, ticket)

    async def _next_batch(self, *, urgent: bool) -> list[Frozen]:
        """Return the oldest dirty chunks of one policy that fill a pack, or all there are of one if `urgent`."""
        frozen = {f.version for f in self._content.frozen}
        dirty = await self._metadata.dirty_chunks(MAX_CHUNKS_PER_PACK, frozen)
        # An older version of the same chunk may be under way; its bytes must stay where they are.
        chunks = [chunk for chunk in dirty if self._content.frozen.get(chunk.ino, chunk.index) is None]
        own = {} if self._policies.is_uniform else await self._metadata.redundancies({chunk.ino for chunk in chunks})
        groups: dict[str, list[Frozen]] = {}
        totals: dict[str, int] = {}
        for chunk in chunks:
            policy = own.get(chunk.ino, self._policies.default)
            group = groups.setdefault(policy, [])
            group.append(Frozen(chunk.ino, chunk.index, chunk.version, chunk.length_bytes, policy))
            totals[policy] = totals.get(policy, 0) + chunk.length_bytes
            if totals[policy] >= self._pack_size_bytes:
                return group
        # Where as many as are looked at do not fill a pack, waiting would not show more of them.
        if urgent or len(chunks) == MAX_CHUNKS_PER_PACK:
            return max(groups.values(), key=len, default=[])
        return []

    async def _send_batch(self, batch: list[Frozen], ticket: object) -> None:
        """Seal, store and record one pack; whatever happens, thaw."""
        try:
            await self._sender.send(batch)
        except (CuckooError, OSError) as error:
            if isinstance(error, MetadataError):
                raise
            self._sender.note_failure(error)
            await self._sender.pause()
        finally:
            for frozen in batch:
                self._content.frozen.thaw(frozen)
                self._checkpointer.settle(frozen.ino)
            self.limiter.release_on_behalf_of(ticket)
            self._under_way -= 1
            self._ended.beat()
            self._content.pressure.made_progress()
            self._sender.kick.set()

    async def _complete_partials(self) -> None:
        """Fetch what is missing under partly written chunks, so that they can be sent."""
        again = True
        try:
            again = await self._completer.complete_some()
        except (CuckooError, OSError) as error:
            if isinstance(error, MetadataError):
                raise
            self._sender.note_failure(error)
            await self._sender.pause()
        finally:
            self._completing = False
            if again:
                self._sender.kick.set()

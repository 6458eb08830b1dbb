"""What an open drive does by itself: looks after clouds and epochs, heals, deletes and compacts, makes room when full.

Used by drive.py.  For one trio loop.  Four tasks: renewing the right to write, the round of every minute, healing, and
making room for writers who find the clouds full.  An idle drive makes at most about one request per minute and cloud.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from cuckoo_mount.cache.chunkcache import ChunkCache
from cuckoo_mount.epochs.engine import EpochEngine
from cuckoo_mount.errors import CuckooError, MetadataError, ReadOnly
from cuckoo_mount.metadata.base import Metadata
from cuckoo_mount.multi.multifs import MultiFS
from cuckoo_mount.packs.collecting import Collected, Collector
from cuckoo_mount.packs.healing import Healing
from cuckoo_mount.packs.passing import passed_ns
from cuckoo_mount.roster import Roster

log = logging.getLogger(__name__)
HOUSEKEEPING_S: Final = 60.0
PASSED_EVERY: Final = 60
"""Rounds between two notes of how much time has passed: what is not noted does not count after a reboot."""
TIGHT_PART: Final = 0.1
"""When less of the room than this is left, `gc` keeps no older epochs."""
MAKE_ROOM_PAUSE_S: Final = 0.25
MAKE_ROOM_PAUSE_MAX_S: Final = 8.0
"""A full drive on which something is overwritten all the time makes an epoch no more often than this."""


class Housekeeper:
    """The drive's own work.  `writing`: whether it was opened for writing."""

    def __init__(
        self,
        roster: Roster,
        metadata: Metadata,
        multifs: MultiFS,
        cache: ChunkCache,
        collector: Collector,
        engine: EpochEngine,
        *,
        writing: bool,
    ) -> None:
        self._roster = roster
        self._metadata = metadata
        self._multifs = multifs
        self._cache = cache
        self._collector = collector
        self._engine = engine
        self._writing = writing
        self._short_of_room = trio.Event()
        self._seen_died_bytes = -1
        cache.when_full(self._may_make_room)
        collector.healer.may_free = self._may_make_room

    @property
    def may_write(self) -> bool:
        """Whether this machine may change anything on the clouds."""
        return self._writing and not self._engine.refused

    async def run(self) -> None:
        """Work until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_claim)
            nursery.start_soon(self._every_minute)
            nursery.start_soon(self._make_room)
            nursery.start_soon(self._collector.run_healing, lambda: self.may_write)

    async def correct_usage(self) -> None:
        """Have the clouds' room counted anew from the metadata, unless shares are on their way that have no rows."""
        if not await self._metadata.pack_intents():
            self._multifs.rooms.set_usage(await self._metadata.cloud_usage())

    def healing(self, degraded: int) -> Healing:
        """Return how healing goes, with so many packs left."""
        return self._collector.healer.status(degraded)

    async def collect(self, *, keep: int | None = None, thorough: bool = True) -> Collected:
        """Delete what is dead and compact what is mostly dead; see `Collector.collect`.

        `keep`: how many epochs stay; None: the last 3, one per hour for a day, one per day for a week, but only the
        newest where little room is left.  Raises: ReadOnly, MetadataError.
        """
        if not self.may_write:
            raise ReadOnly(self._engine.refused or "the drive is open for reading only; nothing is collected")
        if keep is None and self._is_tight():
            keep = 1
        if thorough:
            # One request each: what is read from a cloud that went away unnoticed is waited for up to the deadline.
            await self._multifs.probe()
        oldest = self._trim(keep) if thorough else self._oldest_kept
        collected = await self._collector.collect(oldest_kept_epoch=oldest, thorough=thorough)
        if thorough and self._is_tight():
            collected += await self._collector.make_room(oldest_kept_epoch=oldest)
        self._note(collected)
        return collected

    def _trim(self, keep: int | None) -> Callable[[], Awaitable[int]]:
        async def oldest() -> int:
            # What died since the last epoch can go when a new one is durable.
            return await self._engine.trim(keep)

        return oldest

    async def _oldest_kept(self) -> int:
        return self._engine.oldest_kept

    def _is_tight(self) -> bool:
        """Return whether older epochs have to go, as what only they need takes room that is needed now."""
        room = self._cache.cloud_room()
        return room is not None and room.free_bytes < TIGHT_PART * room.total_bytes

    def _note(self, collected: Collected) -> None:
        if collected.packs_deleted or collected.packs_compacted or collected.packs_healed or collected.packs_repacked:
            log.info("collected: %s", collected)
            self._cache.retry_sending()

    async def _keep_claim(self) -> None:
        """A task of its own: a round of the other may take longer than a claim lasts, where clouds are slow."""
        while True:
            await trio.sleep(HOUSEKEEPING_S)
            if self.may_write:
                await self._engine.keep_claim()

    async def _every_minute(self) -> None:
        for minute in itertools.count():
            if self._writing and minute % PASSED_EVERY == 0:
                await passed_ns(self._metadata)
            await trio.sleep(HOUSEKEEPING_S)
            await self._multifs.look_after()
            await self.correct_usage()
            # Nothing here waits for its turn: while packs are moved or a cloud is cleared the rest goes on.
            if self.may_write:
                if not self._roster.lock.locked():
                    await self._roster.sign_new()
                await self._engine.look_after()
            if self.may_write and not self._collector.is_busy:
                await self.collect(thorough=False)

    # -- room for writers --

    def _may_make_room(self) -> bool:
        """Return whether room is being made, or will be; see `ChunkCache.when_full`.  Never waits."""
        if self._short_of_room.is_set():
            return True
        if not self.may_write or self._metadata.statistics().pack_died_bytes == self._seen_died_bytes:
            return False
        self._short_of_room.set()
        return True

    async def _make_room(self) -> None:
        """Whenever a writer, or healing, found the clouds full, and something died since the last time: delete it.

        Kept epochs or not: a drive that is full keeps no older states, they are given up before a program is told that
        there is no room, and before data stay with too few shares.
        """
        pause_s = MAKE_ROOM_PAUSE_S
        while True:
            await self._short_of_room.wait()
            died_bytes, collected = self._metadata.statistics().pack_died_bytes, Collected()
            try:
                collected = await self._collector.make_room(oldest_kept_epoch=self._trim(1))
                await self._multifs.refresh_space(self._multifs.rooms.short())
            except (CuckooError, OSError) as error:
                if isinstance(error, MetadataError):
                    raise
                log.warning("no room could be made on the clouds: %s", error)
            self._seen_died_bytes = died_bytes
            self._short_of_room = trio.Event()
            self._note(collected)
            self._cache.retry_sending()
            self._collector.healer.wake()
            # One that gave nothing back is not worth an epoch every second.
            pause_s = MAKE_ROOM_PAUSE_S if collected.freed_bytes else min(2 * pause_s, MAKE_ROOM_PAUSE_MAX_S)
            await trio.sleep(pause_s)

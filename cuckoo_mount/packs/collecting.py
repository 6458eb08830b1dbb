"""What keeps the clouds tidy: dead packs deleted, sparse and small ones compacted, left-over objects removed.

Used by the drive: every minute by itself, thoroughly when `cuckoo gc` asks.  For one trio loop; one run at a time.
An idle drive costs no request: everything begins with what the metadata says is to be done.
"""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

import trio
from attrs import frozen

from cuckoo_mount.catalogue import CollectedCatalogue
from cuckoo_mount.multi.multifs import MultiFS
from cuckoo_mount.multi.redundancy import parse_policy
from cuckoo_mount.packs.choosing import (
    SMALL,
    SPARSE_FILL,
    Batch,
    choose_now_and_then,
    choose_thoroughly,
    choose_to_squeeze,
)
from cuckoo_mount.packs.compaction import Compactor, Moved
from cuckoo_mount.packs.garbage import Garbage, clear_strays, collect_garbage, delete_unknown
from cuckoo_mount.packs.healing import Healer
from cuckoo_mount.packs.passing import passed_ns
from cuckoo_mount.packs.reader import PackReader
from cuckoo_mount.packs.repacking import Repacker
from cuckoo_mount.packs.writer import PackWriter
from cuckoo_mount.types import PackFill, PackNo

log = logging.getLogger(__name__)

COMPACTION_S: Final = 600.0
"""By itself the drive compacts at most this often, …"""
BATCHES_AT_ONCE: Final = 8
"""… and then so many packs."""


OldestKept = Callable[[], Awaitable[int | None]]
"""Returns the oldest epoch that is kept: packs that it refers to stay.  None: there are none, nothing stays."""


async def _no_epochs() -> None:
    """There are no epochs."""


def keeping(epoch: int) -> OldestKept:
    """Return what says that `epoch` is the oldest one kept, whenever it is asked."""

    async def oldest() -> int:
        return epoch

    return oldest


@frozen(slots=True, kw_only=True)
class Collected:
    """What one run did.  `freed_bytes`: of all shares deleted; `packs_kept`: dead, but a cloud did not confirm.

    `objects_deleted`: that nothing referred to; `objects_young`: such objects that are not yet known for long enough.
    """

    packs_deleted: int = 0
    packs_compacted: int = 0
    packs_healed: int = 0
    packs_repacked: int = 0
    packs_kept: int = 0
    freed_bytes: int = 0
    objects_deleted: int = 0
    objects_young: int = 0

    def __add__(self, other: Collected) -> Collected:
        """Return the sum of two runs, the second right after the first; what is kept is what the second kept."""
        return Collected(
            packs_deleted=self.packs_deleted + other.packs_deleted,
            packs_compacted=self.packs_compacted + other.packs_compacted,
            packs_healed=self.packs_healed + other.packs_healed,
            packs_repacked=self.packs_repacked + other.packs_repacked,
            packs_kept=other.packs_kept,
            freed_bytes=self.freed_bytes + other.freed_bytes,
            objects_deleted=self.objects_deleted + other.objects_deleted,
            objects_young=self.objects_young + other.objects_young,
        )


class Collector:
    """Collects for one drive.  `moved`: see packs/compaction.py; `is_idle`: whether nothing waits to be sent.

    `heal_rate_bytes`: see `Healer`.
    """

    def __init__(
        self,
        metadata: CollectedCatalogue,
        multifs: MultiFS,
        writer: PackWriter,
        reader: PackReader,
        *,
        drive_id: bytes,
        moved: Moved,
        is_idle: Callable[[], bool],
        heal_rate_bytes: int | None = None,
    ) -> None:
        self._metadata = metadata
        self._multifs = multifs
        self._writer = writer
        self._drive_id = drive_id
        self._is_idle = is_idle
        self._compactor = Compactor(metadata, writer, reader, moved)
        self.healer: Final = Healer(metadata, multifs, writer, self._compactor, is_idle, rate_bytes=heal_rate_bytes)
        self._repacker = Repacker(metadata, writer, self._compactor, is_idle)
        self._lock = trio.Lock()
        self._compacted_at = -math.inf
        self._after: PackNo | None = None

    async def collect(self, *, oldest_kept_epoch: OldestKept = _no_epochs, thorough: bool) -> Collected:
        """Do what is to be done, and return what was.  Checkpoint; may be cancelled anywhere.

        Always: delete dead packs that no kept epoch refers to (see `collect_garbage`), withdraw what failed uploads
        left, and let a few packs follow a change of redundancy (packs/repacking.py), or all of them if `thorough`.  Not
        `thorough`: compact a little, now and then, while the drive is idle.  `thorough`: heal all that can be, compact
        until little more is stored than lives, and delete unknown objects, which lists every cloud.
        What is written meanwhile is left for the next time.
        `oldest_kept_epoch`: asked after the compaction, so that a new epoch may come between it and the deletions.
        A cloud that does not answer is a figure, not an error.  Raises: MetadataError.
        """
        async with self._lock:
            self._compactor.unreachable.clear()
            await self._withdraw()
            healed = await self.healer.heal_all() if thorough else 0
            repacked = await self._repacker.repack_some()
            while thorough and (more := await self._repacker.repack_some()):
                repacked += more
            compacted = await (self._compact_all() if thorough else self._compact_some())
            # After the compaction, so that its old packs go at once.
            garbage = await self._delete_dead(await oldest_kept_epoch(), thorough=thorough)
            if thorough and garbage.packs and (more := await self._compact_all()):
                # There was no room for it before.
                compacted += more
                garbage = _sum(garbage, await self._delete_dead(await oldest_kept_epoch(), thorough=True))
            deleted = young = 0
            if thorough:
                passed = await passed_ns(self._metadata)
                deleted, young = await delete_unknown(self._metadata, self._multifs, self._drive_id, now_ns=passed)
        return Collected(
            packs_deleted=garbage.packs,
            packs_compacted=compacted,
            packs_healed=healed,
            packs_repacked=repacked,
            packs_kept=garbage.kept,
            freed_bytes=garbage.freed_bytes,
            objects_deleted=deleted,
            objects_young=young,
        )

    async def _withdraw(self) -> None:
        """Delete what uploads that were given up have left."""
        await self._writer.withdraw_left()
        await clear_strays(self._metadata, self._multifs, self._drive_id, shares=self._writer.policies.most_shares)

    async def run_healing(self, may_write: Callable[[], bool]) -> None:
        """Heal whatever can be, as it comes, until cancelled; see `Healer.run`."""
        await self.healer.run(self._lock, may_write)

    async def make_room(self, *, oldest_kept_epoch: OldestKept) -> Collected:
        """Delete what is dead; if nothing was, compact a few packs that free most, and delete those.  Checkpoint.

        What failed uploads have left goes, too.

        For clouds that have no room any more: needs little of it, and lists nothing.  Raises: MetadataError.
        """
        compacted = 0
        async with self._lock:
            await self._withdraw()
            garbage = await self._delete_dead(await oldest_kept_epoch(), thorough=True)
            if not garbage.packs:
                fills = self._readable(await self._metadata.pack_fills(100, 0))
                batches = choose_to_squeeze(fills, self._writer.pack_size_bytes)
                if compacted := await self._compact(batches[:BATCHES_AT_ONCE], lambda: False):
                    garbage = await self._delete_dead(await oldest_kept_epoch(), thorough=True)
        return Collected(
            packs_deleted=garbage.packs,
            packs_compacted=compacted,
            packs_kept=garbage.kept,
            freed_bytes=garbage.freed_bytes,
        )

    async def heal_all(self) -> int:
        """Heal whatever can be healed now, also what could not be read before; return how many packs were written anew.

        Checkpoint; may be cancelled anywhere.  Raises: MetadataError.
        """
        async with self.alone():
            return await self.healer.heal_all()

    @property
    def is_busy(self) -> bool:
        """Whether something is collected or moved just now."""
        return self._lock.locked()

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[Compactor]:
        """Have the compactor inside the `with`, while nothing is collected."""
        async with self._lock:
            self._compactor.failed.clear()
            self._compactor.unreachable.clear()
            yield self._compactor

    async def delete_dead(self, oldest_kept_epoch: OldestKept) -> Garbage:
        """Delete all dead packs that no kept epoch refers to, and what failed uploads left.  As `collect` otherwise."""
        async with self._lock:
            await self._withdraw()
            return await self._delete_dead(await oldest_kept_epoch(), thorough=True)

    async def _delete_dead(self, oldest_kept_epoch: int | None, *, thorough: bool) -> Garbage:
        """Delete dead packs, a page after the other; the next run goes on where one ended that met a silent cloud."""
        packs = freed_bytes = kept = 0
        after = None if thorough else self._after
        while True:
            page = await collect_garbage(
                self._metadata, self._multifs, after=after, oldest_kept_epoch=oldest_kept_epoch
            )
            packs, freed_bytes, kept = packs + page.packs, freed_bytes + page.freed_bytes, kept + page.kept
            after = page.last
            if after is None or (page.kept and not thorough):
                self._after = after
                return Garbage(packs, freed_bytes, kept)

    async def _compact_some(self) -> int:
        if trio.current_time() < self._compacted_at + COMPACTION_S or not self._is_idle():
            return 0
        self._compacted_at = trio.current_time()
        size = self._writer.pack_size_bytes
        fills = await self._metadata.pack_fills(round(100 * SPARSE_FILL), size // SMALL)
        batches = choose_now_and_then(self._readable(fills), size)
        return await self._compact(batches[:BATCHES_AT_ONCE], lambda: not self._is_idle())

    async def _compact_all(self) -> int:
        total = 0
        self._compactor.failed.clear()
        # What programs write meanwhile is not waited for: a drive in use would never be done.
        newest = await self._metadata.newest_pack()
        while True:
            fills = [pack for pack in await self._metadata.pack_fills(100, 0) if pack.number <= newest]
            fills = self._readable(fills)
            done = await self._compact(choose_thoroughly(fills, self._writer.pack_size_bytes), lambda: False)
            total += done
            # One that cannot be read is out now; what was to be merged with it finds others.
            if not done and len(fills) == len(self._readable(fills)):
                return total

    def _readable(self, packs: list[PackFill]) -> list[PackFill]:
        out = self._compactor.failed | self._compactor.unreachable
        return [pack for pack in packs if pack.number not in out]

    async def _compact(self, batches: list[Batch], is_enough: Callable[[], bool]) -> int:
        """Compact batch by batch; return how many packs were replaced."""

        def is_over() -> bool:
            wanted = parse_policy(self._writer.policies.default).shares
            return is_enough() or len(self._writer.clouds_up) < min(wanted, len(self._multifs.names))

        return await self._compactor.compact_batches(batches, is_over)


def _sum(first: Garbage, second: Garbage) -> Garbage:
    return Garbage(first.packs + second.packs, first.freed_bytes + second.freed_bytes, second.kept)

"""Evens out how full the clouds are: packs on the fullest are written anew, and placement puts them on the emptiest.

Used by drive.py, for commands.  For one trio loop.  In rounds, because old packs take room until an epoch is durable
without them and they are deleted: plan (multi/balancing.py), write some anew, delete, plan again from what is then.
Nothing is remembered, so that after a kill or a cancellation the next call goes on.
Older epochs are forgotten, as they need the old packs.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import trio
from attrs import asdict, evolve, frozen

from cuckoo_mount.epochs.engine import EpochEngine
from cuckoo_mount.errors import ReadOnly, UsageError
from cuckoo_mount.metadata.base import Metadata
from cuckoo_mount.multi.balancing import Moves, PackPlace, choose_moves, spread, takes_part
from cuckoo_mount.multi.multifs import MultiFS
from cuckoo_mount.multi.placement import CloudState, fill_level, total_bytes
from cuckoo_mount.multi.redundancy import parse_policy
from cuckoo_mount.packs.collecting import Collector
from cuckoo_mount.packs.moving import ROUND_BYTES, Mover
from cuckoo_mount.packs.writer import PackWriter
from cuckoo_mount.types import PackRow

log = logging.getLogger(__name__)
PAGE: Final = 1000
LOOKED_AT: Final = 1024
ROUNDS_MAX: Final = 1000
LEAST_GAIN: Final = 0.001
"""Two rounds that make the spread smaller by less than this are the last ones."""


@frozen(slots=True, kw_only=True)
class Level:
    """One cloud: which part of what it can have is used, now and after; None where it is left as it is."""

    name: str
    used_bytes: int
    total_bytes: int
    fill: float
    fill_after: float | None


@frozen(slots=True, kw_only=True)
class Balance:
    """How even the clouds are: `spread` is the greatest difference of their levels, 0 to 1.

    `packs`, `bytes`: living ones written anew, or to be written anew.  `trouble`: why it did not get better; or empty.
    """

    clouds: tuple[Level, ...]
    spread: float
    spread_after: float
    packs: int
    bytes: int
    trouble: str = ""


class Rebalancer:
    """Rebalances one drive.

    `progress`: while `run` works, `packs_left` and `bytes_left` of what was planned at the beginning.
    """

    def __init__(
        self,
        metadata: Metadata,
        multifs: MultiFS,
        writer: PackWriter,
        collector: Collector,
        engine: EpochEngine,
        *,
        may_write: Callable[[], bool],
    ) -> None:
        self._metadata = metadata
        self._multifs = multifs
        self._collector = collector
        self._engine = engine
        self._may_write = may_write
        self._mover = Mover(metadata, writer, collector)
        self._moved_bytes = 0
        self._is_running = False
        self.progress: dict[str, int] = {}

    async def plan(self) -> dict[str, object]:
        """Return what is to be done, JSON-able (`Balance`).  Dead packs count as deleted.  Checkpoint.

        Raises: ReadOnly, MetadataError.
        """
        clouds, rows = await self._look()
        moves = await self._moves(clouds, rows)
        chosen = set(moves.packs)
        size_bytes = sum(row.live_bytes for row in rows if row.number in chosen)
        return asdict(_balance(clouds, moves.after, len(chosen), size_bytes))

    async def run(self) -> dict[str, object]:
        """Rebalance; return what was done, JSON-able (`Balance`).  May be cancelled anywhere.

        Raises: UsageError (that is being done already), ReadOnly, MetadataError.
        """
        if self._is_running:
            raise UsageError("the drive is being rebalanced already")
        self._is_running = True
        try:
            return asdict(await self._run())
        finally:
            self._is_running = False
            self.progress = {}

    async def _run(self) -> Balance:
        await self._collector.delete_dead(self._trim)
        clouds, rows = await self._look()
        first, packs, stale, trouble = clouds, 0, 0, ""
        self._moved_bytes = 0
        shares_max = max((parse_policy(row.policy).shares for row in rows), default=1)
        moves = await self._moves(clouds, rows)
        sizes = {row.number: row.live_bytes for row in rows}
        self.progress = {"packs_left": len(moves.packs), "bytes_left": sum(sizes[number] for number in moves.packs)}
        for _ in range(ROUNDS_MAX):
            if not moves.packs:
                break
            moved = await self._mover.move(moves.packs[:LOOKED_AT], self._note, merge=False)
            await self._collector.delete_dead(self._trim)
            packs, trouble, before = packs + moved.replaced, moved.trouble, spread(clouds)
            clouds, rows = await self._look()
            stale = stale + 1 if before - spread(clouds) < LEAST_GAIN else 0
            if stale > 1 or not moved.replaced:
                break
            # What is written in one round; the first plan, of all of it, said how much that is.
            moves = await self._moves(clouds, rows, most_bytes=shares_max * ROUND_BYTES)
        log.info("rebalanced: %d packs written anew, spread %.3f, was %.3f", packs, spread(clouds), spread(first))
        return _balance(first, clouds, packs, self._moved_bytes, trouble)

    def _note(self, packs: int, size_bytes: int) -> None:
        self._moved_bytes += size_bytes
        done = {"packs_left": packs, "bytes_left": size_bytes}
        self.progress = {key: max(0, left - done[key]) for key, left in self.progress.items()}

    async def _trim(self) -> int:
        return await self._engine.trim(1)

    async def _moves(
        self, clouds: Sequence[CloudState], rows: Sequence[PackRow], *, most_bytes: float = math.inf
    ) -> Moves:
        places = [_place(row) for row in rows if row.used_bytes]
        return await trio.to_thread.run_sync(partial(choose_moves, clouds, places, most_bytes=most_bytes))

    async def _look(self) -> tuple[list[CloudState], list[PackRow]]:
        """Return the clouds as if dead packs were deleted, and the living packs.  Raises: ReadOnly, MetadataError."""
        if not self._may_write():
            raise ReadOnly(self._engine.refused or "the drive is open for reading only; nothing is moved")
        await self._multifs.refresh_space()
        rows: list[PackRow] = []
        dead_bytes = dict.fromkeys(self._multifs.names, 0)
        after = None
        while page := await self._metadata.packs(PAGE, after=after):
            after = page[-1].number
            rows += (row for row in page if not row.dead)
            for row in page:
                if row.dead:
                    for share in row.shares:
                        length = parse_policy(row.policy).share_bytes(row.size_bytes)
                        dead_bytes[share.cloud] = dead_bytes.get(share.cloud, 0) + length
            await trio.lowlevel.checkpoint()
        return [_without(cloud, dead_bytes.get(cloud.name, 0)) for cloud in self._multifs.rooms.states()], rows


def _without(cloud: CloudState, dead_bytes: int) -> CloudState:
    free_bytes = None if cloud.free_bytes is None else cloud.free_bytes + dead_bytes
    return evolve(cloud, placed_bytes=max(0, cloud.placed_bytes - dead_bytes), free_bytes=free_bytes)


def _place(row: PackRow) -> PackPlace:
    policy = parse_policy(row.policy)
    clouds = tuple(share.cloud for share in row.shares)
    return PackPlace(row.number, policy.share_bytes(row.size_bytes), policy.shares, clouds)


def _balance(
    now: Sequence[CloudState], after: Sequence[CloudState], packs: int, size_bytes: int, trouble: str = ""
) -> Balance:
    later = {cloud.name: cloud for cloud in after}
    levels = tuple(
        Level(
            name=cloud.name,
            used_bytes=cloud.placed_bytes,
            total_bytes=total_bytes(cloud),
            fill=fill_level(cloud),
            fill_after=fill_level(later[cloud.name]) if takes_part(cloud) and cloud.name in later else None,
        )
        for cloud in now
    )
    return Balance(
        clouds=levels,
        spread=spread(now),
        spread_after=spread(after),
        packs=packs,
        bytes=size_bytes,
        trouble=trouble,
    )

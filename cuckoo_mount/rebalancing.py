"""Evens out how full the clouds are: packs on the fullest are written anew, and placement puts them on the emptiest.

Used by drive.py, for commands.  For one trio loop.  In rounds, because old packs take room until an epoch is durable
without them and they are deleted: plan (multi/balancing.py), write some anew, delete, plan again from what is then.
Nothing is remembered, so that after a kill or a cancellation the next call goes on.
Older epochs are forgotten, as they need the old packs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import trio
from attrs import asdict, evolve, frozen

from cuckoo_mount.epochs.engine import EpochEngine
from cuckoo_mount.errors import ReadOnly
from cuckoo_mount.metadata.base import Metadata
from cuckoo_mount.multi.balancing import Moves, PackPlace, choose_moves, spread, takes_part
from cuckoo_mount.multi.multifs import MultiFS
from cuckoo_mount.multi.placement import CloudState, fill_level, total_bytes
from cuckoo_mount.multi.redundancy import parse_policy
from cuckoo_mount.packs.collecting import Collector
from cuckoo_mount.packs.moving import Mover
from cuckoo_mount.packs.writer import PackWriter
from cuckoo_mount.types import PackRow

log = logging.getLogger(__name__)
PAGE: Final = 1000
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

    `progress`: while `run` does, `packs_left` and `bytes_left` of what is planned, and the `spread` at that time.
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
        self.progress: dict[str, float] = {}

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

        Raises: ReadOnly, MetadataError.
        """
        try:
            return asdict(await self._run())
        finally:
            self.progress = {}

    async def _run(self) -> Balance:
        await self._collector.delete_dead(self._trim)
        clouds, rows = await self._look()
        first, packs, stale, trouble = clouds, 0, 0, ""
        self._moved_bytes = 0
        for _ in range(ROUNDS_MAX):
            moves = await self._moves(clouds, rows)
            if not moves.packs:
                break
            sizes = {row.number: row.live_bytes for row in rows}
            self._show(len(moves.packs), sum(sizes[number] for number in moves.packs), spread(clouds))
            moved = await self._mover.move(moves.packs, self._note, merge=False)
            await self._collector.delete_dead(self._trim)
            packs, trouble, before = packs + moved.replaced, moved.trouble, spread(clouds)
            clouds, rows = await self._look()
            stale = stale + 1 if before - spread(clouds) < LEAST_GAIN else 0
            if stale > 1 or not moved.replaced:
                break
        log.info("rebalanced: %d packs written anew, spread %.3f, was %.3f", packs, spread(clouds), spread(first))
        return _balance(first, clouds, packs, self._moved_bytes, trouble)

    def _show(self, packs: int, size_bytes: int, level: float) -> None:
        self.progress = {"packs_left": packs, "bytes_left": size_bytes, "spread": level}

    def _note(self, packs: int, size_bytes: int) -> None:
        self._moved_bytes += size_bytes
        left = {"packs_left": packs, "bytes_left": size_bytes}
        self.progress = {
            key: max(0, value - left[key]) if key in left else value for key, value in self.progress.items()
        }

    async def _trim(self) -> int:
        return await self._engine.trim(1)

    async def _moves(self, clouds: Sequence[CloudState], rows: Sequence[PackRow]) -> Moves:
        places = [_place(row) for row in rows if row.used_bytes]
        return await trio.to_thread.run_sync(partial(choose_moves, clouds, places))

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
        return [_without(cloud, dead_bytes.get(cloud.name, 0)) for cloud in self._multifs.states()], rows


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

"""The right to write is renewed whatever else takes its time: else another machine would take the drive over."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Final, TypeVar

import pytest
import trio
from attrs import define, field

from cuckoo_mount import drive, processes
from cuckoo_mount.clouds import jobs
from cuckoo_mount.epochs.claims import RENEW_S, STALE_S
from cuckoo_mount.housekeeping import HOUSEKEEPING_S
from cuckoo_mount.multi.jobs import put_share
from cuckoo_mount.packs.choosing import MERGE_COUNT
from cuckoo_mount.packs.collecting import COMPACTION_S
from cuckoo_mount.testing.workclock import WorkClock
from cuckoo_mount.workers import WorkerPool, open_worker_pool
from tests.pool.conftest import MakePool
from tests.pool.pooling import folder_place

pytestmark = [pytest.mark.slow]

T = TypeVar("T")
SLOW_S: Final = 3 * STALE_S


@define(eq=False)
class SlowUploads:
    """A pool whose uploads of packs take long while `is_slow`, as over a thin line.  `renewed_at_s`: claims put."""

    pool: WorkerPool
    is_slow: bool = False
    slowed: int = 0
    renewed_at_s: list[float] = field(factory=list)

    async def run(
        self,
        function: Callable[..., T],
        *args: object,
        deadline_s: float,
        started: Callable[[], object] = lambda: None,
    ) -> T:
        """See WorkerPool.run."""
        if function is put_share and self.is_slow:
            self.slowed += 1
            await trio.sleep(SLOW_S)
        if function is jobs.put and "/lease/" in str(args[1]):
            self.renewed_at_s.append(trio.current_time())
        return await self.pool.run(function, *args, deadline_s=deadline_s, started=started)


def test_while_packs_are_compacted_over_a_thin_line(
    tmp_path: Path, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    mount = make_pool([folder_place(tmp_path / "clouds", "a")])
    clock = WorkClock()
    pools: list[SlowUploads] = []

    @asynccontextmanager
    async def opened_pool() -> AsyncIterator[SlowUploads]:
        async with open_worker_pool() as pool:
            clock.watch(lambda: pool.statistics().running)
            pools.append(SlowUploads(pool))
            yield pools[0]

    async def main() -> None:
        async with mount.opened() as opened:
            for number in range(MERGE_COUNT):
                await opened.write(f"f{number}", b"%d" % number * 1000)
                await opened.sync()
            (pool,) = pools
            pool.is_slow = True
            await trio.sleep(COMPACTION_S + 2 * SLOW_S)
            pool.is_slow = False
            assert pool.slowed, "nothing was compacted"
            gaps_s = [after - before for before, after in pairwise(pool.renewed_at_s)]
            assert len(gaps_s) > 2 * SLOW_S / STALE_S
            assert max(gaps_s) < RENEW_S + 2 * HOUSEKEEPING_S <= STALE_S

    monkeypatch.setattr(drive, "open_worker_pool", opened_pool)
    monkeypatch.setattr("cuckoo_mount.workers.end", clock.counted(processes.end))
    with clock.set():
        trio.run(main, clock=clock)

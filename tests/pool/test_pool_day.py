"""A day of small changes: nothing grows that should not, and the clouds are asked for as little as was promised.

Everything below FUSE is real (drive, worker processes, threads, two folders as clouds); only time goes by as fast as
that can be done (testing/workclock.py).  Somebody saves, appends, replaces, renames and removes small files twice a
minute, with a night in between.
"""

from __future__ import annotations

import gc
import os
import random
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Final

import pytest
import trio
from attrs import define, field, frozen

from cuckoo_mount import drive, processes
from cuckoo_mount.cache.pausing import AGAIN_S
from cuckoo_mount.epochs.timing import EPOCH_MAX_S, EPOCH_S
from cuckoo_mount.packs.collecting import COMPACTION_S
from cuckoo_mount.testing.faulty import read_counts, write_plan
from cuckoo_mount.testing.workclock import WorkClock
from cuckoo_mount.types import ROOT_INODE
from cuckoo_mount.workers import WorkerPool, open_worker_pool
from tests.pool.conftest import MakePool
from tests.pool.pooling import OpenedDrive, Place, PoolMount, folder_place

pytestmark = [pytest.mark.slow]

SEED: Final = 20_261_201
HOUR_S: Final = 3600.0
MINUTE_S: Final = 60.0
NAMES: Final = 60
PAUSES_S: Final = (20.0, 40.0)
SIZE_MAX: Final = 20_000
LOG_BYTES: Final = 200_000
SETTLED_S: Final = COMPACTION_S + 300.0
"""After the last change: the last epoch, a compaction, and the epoch that says so."""
GROWTH_KIB: Final = 8 << 10
"""A process may have so much more at the end: 3.6 MiB were seen from hour 2 to hour 24, 4.8 in between, most of it from
hour 2 to 4: SQLite's cache of the growing database, and what malloc does not give back.  8 MiB are 1.2 KiB for each of
the day's 7,000 requests."""
FILES_BESIDES: Final = 16
"""Open files besides those of the beginning and one per local file: what is under way."""
LIVING_PACKS_MAX: Final = 48
"""Eight small packs of each of four tiers, and those since the last compaction."""
DRIVER_CALLS: Final = frozenset({"put", "get", "get_range", "delete", "list", "space"})


@frozen
class Sample:
    """What there is at one moment.  `requests`: per cloud, since the beginning; `workers`: their memory and files."""

    at_s: float
    memory_kib: int
    files: int
    threads: int
    workers: tuple[tuple[int, int], ...]
    epoch: int
    packs: int
    living_packs: int
    packs_sent: int
    requests: tuple[int, ...]


def memory_kib(pid: int | str = "self") -> int:
    """Return the resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024


def open_files(pid: int | str = "self") -> int:
    """Return how many descriptors a process has."""
    return len(os.listdir(f"/proc/{pid}/fd"))


@define
class Day:
    """One drive, and what was done to it.  `contents`: what its files must hold."""

    mount: PoolMount
    places: Sequence[Place]
    clock: WorkClock
    dice: random.Random
    contents: dict[str, bytes] = field(factory=dict)
    changes: int = 0
    samples: list[Sample] = field(factory=list)

    async def live(self, opened: OpenedDrive, pool: WorkerPool, *, hours: float, night: tuple[float, float]) -> None:
        """Change something twice a minute, but from hour to hour `night`; take a sample each half hour."""
        for place in self.places:
            write_plan(place.plan)
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch, opened, pool, began, hours)
            while (now_s := trio.current_time() - began) < hours * HOUR_S:
                if not night[0] * HOUR_S <= now_s < night[1] * HOUR_S:
                    await self.change(opened)
                await trio.sleep(self.dice.uniform(*PAUSES_S))

    async def _watch(self, opened: OpenedDrive, pool: WorkerPool, began: float, hours: float) -> None:
        for number in range(round(2 * hours) + 1):
            await trio.sleep_until(began + number * HOUR_S / 2)
            self.samples.append(await self.sample(opened, pool, trio.current_time() - began))
            assert await opened.drive.check_invariants() == []

    async def sample(self, opened: OpenedDrive, pool: WorkerPool, at_s: float) -> Sample:
        """Return how much there is of everything."""
        gc.collect()
        metadata = opened.drive._metadata
        status = await opened.drive.status()
        epoch, cache = status["epoch"], status["cache"]
        assert isinstance(epoch, dict)
        assert isinstance(cache, dict)
        taken = Sample(
            at_s=at_s,
            memory_kib=memory_kib(),
            files=open_files(),
            threads=threading.active_count(),
            workers=tuple((memory_kib(pid), open_files(pid)) for pid in pool.worker_pids()),
            epoch=epoch["local"],
            packs=metadata.statistics().packs,
            living_packs=len(await metadata.pack_fills(100, 1 << 30)),
            packs_sent=cache["packs_sent"],
            requests=tuple(
                sum(count for call, count in read_counts(place.plan).items() if call in DRIVER_CALLS)
                for place in self.places
            ),
        )
        print(taken)
        return taken

    async def change(self, opened: OpenedDrive) -> None:
        """Do one of the things that are done to files."""
        self.changes += 1
        name = f"f{self.dice.randrange(NAMES)}"
        old = self.contents.get(name)
        data = self.dice.randbytes(self.dice.randrange(1, SIZE_MAX))
        choice = self.dice.random()
        if old is None or choice < 0.3:
            await opened.write(name, data)
            self.contents[name] = data
        elif choice < 0.5:
            offset = self.dice.randrange(len(old))
            await self.write_at(opened, name, offset, data)
            self.contents[name] = old[:offset] + data + old[offset + len(data) :]
        elif choice < 0.7:
            await opened.write("new", data)
            await opened.drive.filesystem.tree.rename(ROOT_INODE, b"new", ROOT_INODE, name.encode())
            self.contents[name] = data
        elif choice < 0.8:
            await opened.unlink(name)
            del self.contents[name]
        else:
            log = self.contents.get("log", b"")
            if not log or len(log) > LOG_BYTES:
                log = b""
                await opened.write("log", log)
            await self.write_at(opened, "log", len(log), data[:1000])
            self.contents["log"] = log + data[:1000]

    async def write_at(self, opened: OpenedDrive, name: str, offset: int, data: bytes) -> None:
        """Write into a file, or behind its end."""
        files = opened.drive.filesystem
        handle = await files.open((await files.tree.lookup(ROOT_INODE, name.encode())).ino, os.O_WRONLY)
        try:
            assert await files.write(handle, offset, data) == len(data)
        finally:
            await files.release(handle)

    async def compare(self, opened: OpenedDrive) -> None:
        """Read everything back from the clouds."""
        await opened.sync()
        await opened.evict()
        assert sorted(await opened.names()) == sorted(self.contents)
        for name, data in self.contents.items():
            assert await opened.read(name) == data


def at_most_little_more(samples: Sequence[Sample], warm_s: float) -> None:
    """From `warm_s` on, nothing of the processes grows."""
    warm, *later = (sample for sample in samples if sample.at_s >= warm_s)
    for sample in later:
        assert sample.memory_kib <= warm.memory_kib + GROWTH_KIB
        assert sample.files <= samples[0].files + NAMES + FILES_BESIDES
        assert sample.threads <= warm.threads + 2
        assert len(sample.workers) <= 2
        assert all(kib <= max(kib for kib, _ in warm.workers) + GROWTH_KIB for kib, _ in sample.workers)
        assert all(count <= 8 for _, count in sample.workers)
        assert sample.living_packs <= LIVING_PACKS_MAX


def asked_for_little(samples: Sequence[Sample], night: tuple[float, float]) -> None:
    """Epochs, packs and requests of each half hour are within what was promised."""
    for before, after in pairwise(samples):
        minutes = (after.at_s - before.at_s) / MINUTE_S
        epochs, packs = after.epoch - before.epoch, after.packs_sent - before.packs_sent
        requests = [last - first for first, last in zip(before.requests, after.requests, strict=True)]
        # Samples are a little late.
        if before.at_s >= night[0] * HOUR_S + SETTLED_S and after.at_s <= night[1] * HOUR_S + PAUSES_S[0]:
            assert packs == 0
            assert epochs <= 1, "what only the catalogue changed, once an hour"
            assert all(count <= minutes for count in requests), "an idle drive asks once a minute and cloud"
        else:
            assert epochs <= minutes * MINUTE_S / EPOCH_S
            assert epochs <= minutes * MINUTE_S / EPOCH_MAX_S + 6, "a trickle lets epochs wait"
            assert packs <= epochs + minutes * MINUTE_S / AGAIN_S, "and packs for them"
            # Share, object and look at the claims; the claim, a look for room; compaction and what is deleted.
            assert all(count <= 3 * epochs + 2 * minutes + 40 for count in requests)


def spend(
    tmp_path: Path,
    make_pool: MakePool,
    monkeypatch: pytest.MonkeyPatch,
    *,
    hours: float,
    night: tuple[float, float],
    warm_s: float,
) -> None:
    """Let the hours pass, and see what they cost."""
    places = [folder_place(tmp_path / "clouds", name) for name in "ab"]
    mount = make_pool(places, redundancy="2")
    clock = WorkClock()
    day = Day(mount, places, clock, random.Random(SEED))
    pools: list[WorkerPool] = []

    @asynccontextmanager
    async def opened_pool() -> AsyncIterator[WorkerPool]:
        async with open_worker_pool() as pool:
            clock.watch(lambda: pool.statistics().running)
            pools.append(pool)
            yield pool

    async def main() -> None:
        async with mount.opened() as opened:
            await day.live(opened, pools[0], hours=hours, night=night)
            await day.compare(opened)

    monkeypatch.setattr(drive, "open_worker_pool", opened_pool)
    monkeypatch.setattr("cuckoo_mount.workers.end", clock.counted(processes.end))
    with clock.set():
        trio.run(main, clock=clock)
    print(f"seed {SEED}: {day.changes} changes in {hours:g} h, {clock.jumps} jumps")
    assert day.changes > 60
    at_most_little_more(day.samples, warm_s)
    asked_for_little(day.samples, night)


def test_two_hours_of_small_changes(tmp_path: Path, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    spend(tmp_path, make_pool, monkeypatch, hours=2, night=(1, 2), warm_s=HOUR_S / 2)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_day_of_small_changes(tmp_path: Path, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    spend(tmp_path, make_pool, monkeypatch, hours=24, night=(12, 17), warm_s=2 * HOUR_S)

"""The disk below state and cache is filled by somebody else at random moments: nothing is lost, and all goes on."""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.mount.crashing import SEED_VARIABLE
from tests.mount.disks import can_cut_power
from tests.mount.finishing import finished_mount
from tests.mount.fulldisk import PATIENCE_S, Asker, Filler, SmallDiskMount, Worker
from tests.mount.mounting import MountError

pytestmark = [
    pytest.mark.mount,
    pytest.mark.slow,
    pytest.mark.skipif(not can_cut_power(), reason="it takes root, a loop device and mkfs.ext4"),
]
SIZE_BYTES: Final = 200 << 20
ROUNDS: Final = 1
ROUNDS_LONG: Final = 40
WORKERS: Final = 2
STEPS: Final = 15


@pytest.fixture
def small(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[SmallDiskMount]:
    """A drive on a disk of 200 MiB, not yet mounted."""
    with finished_mount(SmallDiskMount(tmp_path / "drive", SIZE_BYTES), request) as drive:
        yield drive


@pytest.fixture
def seed() -> int:
    """All dice of a test, printed."""
    seed = int(os.environ.get(SEED_VARIABLE, random.SystemRandom().randrange(10**9)))
    print(f"{SEED_VARIABLE}={seed}")
    return seed


def test_a_disk_that_is_full_now_and_then(small: SmallDiskMount, seed: int) -> None:
    fill_many(small, seed, ROUNDS)


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_a_disk_that_is_full_again_and_again(small: SmallDiskMount, seed: int) -> None:
    fill_many(small, seed, ROUNDS_LONG)


def fill_many(mount: SmallDiskMount, seed: int, rounds: int) -> None:
    """Work while the disk is full at times, with kills, starts, epochs and compaction; then compare everything."""
    mount.deadline_s = 300.0
    mount.start(cache_limit="64MiB")
    workers = [Worker(mount, f"worker{number}", f"{seed} {number}") for number in range(WORKERS)]
    for worker in workers:
        worker.folder.mkdir()
    refused_starts = fills = 0
    for number in range(rounds):
        before = refusals(workers)
        with Filler(
            mount.disk,
            f"{seed} filler {number}",
            is_felt=lambda before=before: refusals(workers) > before,  # type: ignore[misc]
            full_s=2.0,
            free_s=0.5,
        ) as filler:
            refused_starts += not work_on_full_disk(mount, workers, filler, f"{seed} {number}", crashes=number % 2 == 0)
        fills += filler.fills
        mount.check()
    print(f"{fills=} {refused_starts=}", [worker.refused for worker in workers], [w.promises for w in workers])
    assert mount.sync()["bytes"] == 0
    compare_all(mount, workers)
    assert fills >= rounds
    assert refusals(workers) >= rounds
    assert sum(worker.promises for worker in workers) >= rounds


def refusals(workers: list[Worker]) -> int:
    """Return how often programs were told that there is no room."""
    return sum(sum(list(worker.refused.values())) for worker in workers)


def work_on_full_disk(
    mount: SmallDiskMount, workers: list[Worker], filler: Filler, seed: str, *, crashes: bool
) -> bool:
    """Work for a while, and compare; return False if the daemon, killed, could not be started on the full disk."""
    started = True
    asker = Asker(mount, seed)
    for worker in workers:
        worker.start()
    wanted = sum(worker.steps for worker in workers) + STEPS
    end = time.monotonic() + 2 * PATIENCE_S
    while not filler.fills or sum(worker.steps for worker in workers) < wanted:
        assert time.monotonic() < end, "nobody gets on"
        problems = [problem for worker in workers for problem in worker.problems]
        assert not problems, problems
        time.sleep(0.02)
    time.sleep(random.Random(seed).uniform(0.0, 1.0))  # the moment at which it is killed
    asker.is_over.set()
    if crashes:
        for worker in workers:
            worker.is_killing.set()
        mount.kill(detach=False)
    asker.stop()
    for worker in workers:
        worker.stop()
    if crashes:
        mount.detach()
        started = start_somehow(mount, filler)
    for worker in workers:
        worker.compare(crashed=crashes)
    return started


def start_somehow(mount: SmallDiskMount, filler: Filler) -> bool:
    """Mount after a kill; return whether that was possible while the disk was full, else it was said that it is."""
    try:
        mount.start()
    except MountError as error:
        said = str(error)
    else:
        return True
    assert "is full" in said or "No space" in said, said
    mount.forget_ended()
    filler.stop()
    mount.start()
    return False


def compare_all(mount: SmallDiskMount, workers: list[Worker]) -> None:
    """Compare what the clouds have, too, and have `fsck` look at everything."""
    mount.umount()
    shutil.rmtree(mount.paths.cache)
    mount.start()
    for worker in workers:
        worker.compare()
    done = mount.cuckoo("fsck")
    assert done.stdout == b"The drive is as it should be.\n"

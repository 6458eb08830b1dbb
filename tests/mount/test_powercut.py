"""The power is cut at random moments: as the kill test, with what was not synced on the local disk thrown away.

How the power is cut: disks.py, powercut.py.  How the work goes on and what is compared: crashing.py, promises.py,
committing.py.  Here, and not in the kill test, it shows if an fsync is missing.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.mount import committing
from tests.mount.crashing import SEED_VARIABLE, Trial
from tests.mount.disks import can_cut_power
from tests.mount.finishing import finished_mount
from tests.mount.powercut import PoweredMount
from tests.mount.stored import unexplained

pytestmark = [
    pytest.mark.mount,
    pytest.mark.slow,
    pytest.mark.skipif(not can_cut_power(), reason="it takes root, a loop device and mkfs.ext4"),
]

CUTS: Final = 2
CUTS_LONG: Final = 50
DISKS_LONG: Final = [
    pytest.param(("ext4",), id="one-disk"),
    pytest.param(("ext4", "ext4"), id="cache-on-another"),
    pytest.param(
        ("xfs",), id="xfs", marks=pytest.mark.skipif(not shutil.which("mkfs.xfs"), reason="mkfs.xfs is missing")
    ),
]


@pytest.fixture
def kinds(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """File systems of the disks; given by tests as a parameter."""
    found: tuple[str, ...] = getattr(request, "param", ("ext4",))
    return found


@pytest.fixture
def seed() -> int:
    """All dice of a test, printed; the kernel and the daemon have their own."""
    seed = int(os.environ.get(SEED_VARIABLE, random.SystemRandom().randrange(10**9)))
    print(f"{SEED_VARIABLE}={seed}")
    return seed


@pytest.fixture
def powered(
    tmp_path: Path, request: pytest.FixtureRequest, kinds: tuple[str, ...], seed: int
) -> Iterator[PoweredMount]:
    """A drive on disks that can lose power, not yet mounted."""
    with finished_mount(PoweredMount(tmp_path / "drive", kinds, seed), request) as drive:
        drive.deadline_s = 120.0
        yield drive


def test_what_fsync_returned_for_survives_power_cuts(powered: PoweredMount, seed: int) -> None:
    cut_many(powered, seed, CUTS)


@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("kinds", DISKS_LONG, indirect=True)
def test_what_fsync_returned_for_survives_many_power_cuts(powered: PoweredMount, seed: int) -> None:
    cut_many(powered, seed, CUTS_LONG)


def cut_many(mount: PoweredMount, seed: int, cuts: int) -> None:
    """Cut, then send everything, delete the cache, and compare again with what the cloud has."""
    mount.start(cache_limit="16MiB")
    trial = Trial(mount, seed, programs=committing.KINDS)
    trial.seed()
    for number in range(cuts):
        trial.work_and_kill(number)
    print(trial.tally, mount.losses, f"cache lost {mount.cache_losses} times")
    assert mount.sync()["bytes"] == 0
    mount.control("gc", keep=1)
    mount.umount()
    assert unexplained(mount) == set()
    mount.delete_cache()
    mount.start()
    trial.compare_all()
    # Without these nothing was shown.
    tally, losses = trial.tally, mount.losses
    assert losses.cuts >= cuts
    assert losses.writes > 0
    assert tally.promises.total() > cuts
    assert tally.commits >= len(committing.KINDS) * cuts
    assert tally.at_risk > 0
    assert tally.kills_with_loss > 0
    assert tally.packs > 0
    assert tally.evicted_bytes > 0


@pytest.mark.parametrize("is_unmounted", [True, False])
def test_what_came_from_clouds(powered: PoweredMount, *, is_unmounted: bool) -> None:
    """Nothing syncs it while it comes, and its row may be durable before it; who ends in order says: believe it."""
    powered.is_flushing = powered.deletes_cache = False
    data = random.Random(1).randbytes(2_500_000)
    powered.start()
    (powered.path / "file").write_bytes(data)
    powered.sync()
    powered.umount()
    powered.delete_cache()
    powered.start()
    assert (powered.path / "file").read_bytes() == data
    if is_unmounted:
        powered.umount()
        powered.cut_while_unmounted()
    else:
        write_and_sync(powered.path / "other", b"its fsync brings all rows to the disk")
        powered.kill()
    powered.start()
    assert (powered.path / "file").read_bytes() == data


def test_the_only_copy_stays_until_its_row_is_gone_for_good(powered: PoweredMount) -> None:
    """The disk stores the names and sizes of local files at once, and the metadata when they are synced."""
    powered.is_flushing = False
    data = random.Random(1).randbytes(200_000)
    powered.start()
    for name in ("cut", "removed"):
        write_and_sync(powered.path / name, data)
    os.truncate(powered.path / "cut", 5000)
    (powered.path / "removed").unlink()
    write_and_sync(powered.disks[0].path / "brings names and sizes to the disk", b"")
    powered.kill()
    powered.start()
    assert (powered.path / "cut").read_bytes() in (data[:5000], data)
    assert not (powered.path / "removed").exists() or (powered.path / "removed").read_bytes() == data


def write_and_sync(path: Path, data: bytes) -> None:
    """Make a file, and return when it is promised to stay."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


@pytest.mark.long
def test_power_cut_while_a_drive_is_made(powered: PoweredMount, seed: int) -> None:
    """The next mount takes what is there of it, or makes it again."""
    choose = random.Random(seed)
    for _ in range(3):
        powered.start_and_kill(choose.uniform(0.3, 1.5))
    powered.start()
    (powered.path / "file").write_bytes(b"bytes")
    assert powered.sync()["bytes"] == 0

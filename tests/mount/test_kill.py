"""kill -9 at random moments: what fsync returned for is there afterwards, everything else is old, new or shorter.

The drive has three clouds, and two copies of everything.  All of them fail, are late, cut transfers off and say of what
they did that they failed; one of them lies, too (flaky.py).  Packs are compacted and deleted meanwhile.
How the work goes on and what is compared: crashing.py, promises.py, committing.py.
"""

from __future__ import annotations

import json
import os
import random
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import pytest

from cuckoo_mount.clouds.registry import TESTING_VARIABLE
from cuckoo_mount.drive import METADATA_FILE
from cuckoo_mount.epochs.timing import EPOCH_VARIABLE
from cuckoo_mount.packs.garbage import UNKNOWN_AGE_NS
from cuckoo_mount.testing.killing import KINDS, Line, content
from tests.mount import committing
from tests.mount.crashing import SEED_VARIABLE, Trial
from tests.mount.finishing import finished_mount
from tests.mount.flaky import ACTIONS, FlakyClouds
from tests.mount.promises import Expected, Found, Node, Tree, is_mixture
from tests.pool.pooling import PoolMount, folder_place, take_inventory

pytestmark = [pytest.mark.mount, pytest.mark.slow]

KILLS: Final = 2
KILLS_LONG: Final = 200
KILLS_PER_LOOK: Final = 25
"""After so many everything is sent, forgotten here, and compared with what the clouds have."""
EPOCH_S: Final = 1.0


class KilledMount(PoolMount):
    """Makes epochs all the time."""

    @property
    def environment(self) -> dict[str, str]:
        return super().environment | {EPOCH_VARIABLE: str(EPOCH_S)}


@pytest.fixture
def pool(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[PoolMount]:
    """A drive with three clouds, not yet mounted."""
    monkeypatch.setenv(TESTING_VARIABLE, "1")
    places = [folder_place(tmp_path / "clouds", name) for name in ("a", "b", "c")]
    with finished_mount(KilledMount(tmp_path / "drive", places, redundancy="2"), request) as drive:
        yield drive


def test_what_fsync_returned_for_survives_kills(pool: PoolMount) -> None:
    kill_many(pool, KILLS, programs=("git", "wal"))


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_what_fsync_returned_for_survives_many_kills(pool: PoolMount) -> None:
    kill_many(pool, KILLS_LONG, programs=committing.KINDS)


def kill_many(mount: PoolMount, kills: int, programs: tuple[str, ...]) -> None:
    """Kill, then send everything, forget everything that is here, and compare again with what the clouds have."""
    seed = int(os.environ.get(SEED_VARIABLE, random.SystemRandom().randrange(10**9)))
    print(f"{SEED_VARIABLE}={seed}")
    mount.deadline_s = 240.0
    mount.start(cache_limit="96MiB")
    clouds = FlakyClouds(mount.places, random.Random(f"clouds {seed}"))
    trial = Trial(mount, seed, programs=programs, clouds=clouds)
    trial.seed()
    for number in range(1, kills + 1):
        trial.work_and_kill(number)
        if number % KILLS_PER_LOOK == 0 or number == kills:
            print(trial.tally, dict(clouds.faults))
            look_at_clouds(trial, clouds)
            if number < kills:
                mount.start(cache_limit="96MiB")
    assert "died" in mount.log_text(), "no dead mount was mounted over"
    # Without these nothing was shown.
    tally, faults = trial.tally, clouds.faults
    assert tally.kills_with_pending > kills // 2
    assert tally.kills_with_loss > 0
    assert tally.kills_while_packing > 0
    assert tally.packs > kills // 2
    assert tally.packs_compacted > 0
    assert tally.packs_deleted > 0
    assert tally.evicted_bytes > 0
    assert tally.overwritten > kills
    assert tally.commits >= len(programs) * kills
    for kind in KINDS:
        assert tally.kills_at_risk[kind] * 3 >= kills, kind
        assert tally.promises[kind] > kills, kind
        assert tally.turns[kind] * 3 > 0.8 * tally.turns.total(), "each kind is a third, but for turns under way"
    assert faults.total() > faults["delay"]
    if kills >= KILLS_PER_LOOK:
        assert all(faults[action] for action in ACTIONS), faults


def look_at_clouds(trial: Trial, clouds: FlakyClouds) -> None:
    """Everything that is known is on the clouds, nothing else is, and `fsck` finds nothing but what a cloud lied about.

    That is mended; afterwards it finds nothing.
    """
    mount = trial.mount
    assert isinstance(mount, PoolMount)
    assert mount.sync()["bytes"] == 0
    mount.control("gc", keep=1)
    mount.umount()
    let_a_day_pass(mount)
    mount.delete_cache()
    mount.start()
    trial.compare_all()
    found = fsck(mount)
    assert (found["problems"], found["damaged"]) == ([], []), found
    scrub = found["scrub"]
    print(f"{clouds.lies} lies so far; {scrub}")
    assert scrub["lost"] == 0
    if not found["clean"]:
        assert clouds.lies
        assert fsck(mount, "--repair")["clean"]
    mount.control("gc", keep=1)
    found = fsck(mount)
    assert (found["clean"], found["orphans"]["objects"]) == (True, 0), found
    mount.umount()
    inventory = take_inventory(mount)
    print(inventory)
    assert (inventory.orphans, inventory.dangling, inventory.intents, inventory.strays) == ([], [], 0, 0)
    assert inventory.single == 0


def fsck(mount: PoolMount, *options: str) -> dict[str, Any]:
    done = mount.cuckoo("fsck", "--json", "--yes", *options, check=False)
    assert done.returncode in (0, 3), done
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def let_a_day_pass(mount: PoolMount) -> None:
    """What nothing explains on the clouds is known for long enough to be deleted; the drive is not mounted."""
    assert not mount.is_running
    with closing(sqlite3.connect(mount.paths.state / METADATA_FILE)) as database, database:
        database.execute("UPDATE unknown_object SET seen = seen - ?", (UNKNOWN_AGE_NS,))


def test_is_mixture() -> None:
    """What the kill test believes of files that were not synced."""
    old, new = b"a" * 10_000, b"b" * 10_000
    assert is_mixture(old, [old])
    assert not is_mixture(new, [old])
    assert is_mixture(old[:5000] + new[5000:], [old, new])
    assert not is_mixture(old[:5000] + b"c" + new[5001:], [old, new])
    assert not is_mixture(old[:5000] + b"\0" * 5000, [old, new])
    assert not is_mixture(old[:9999], [old, new])
    assert is_mixture(b"\0" * 4096 + new[4096:], [b"", new])
    assert is_mixture(new[:77], [b"", new])


def test_git_promises_nothing_when_the_mount_is_gone(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="gone"):
        committing.sync_folders(tmp_path / "gone")


def test_broken_promises_are_seen() -> None:
    """The kill test's own judgement, by cases."""
    lines: list[Line] = [
        {"number": 1, "what": "create", "file": "a 1", "path": "a"},
        {"done": 1},
        {"number": 2, "what": "write", "file": "a 1", "offset": 0, "size": 9000},
        {"done": 2},
        {"number": 3, "what": "fsync", "file": "a 1"},
        {"done": 3},
        {"number": 4, "what": "utime", "file": "a 1", "mtime_ns": 5},
        {"done": 4},
        {"number": 5, "what": "unlink", "path": "old"},
    ]
    data, old = content("a 1", 2, 9000), Found(b"old", 1)

    def problems(after: Tree, count: int) -> int:
        expected = Expected({"old": old})
        expected.replay(lines[:count])
        return len(list(expected.problems(after)))

    assert problems({"old": old}, 4) == 0  # nothing was promised yet
    assert problems({"old": old, "a": Found(data[:4096], 1)}, 4) == 0
    assert problems({"old": old, "a": Found(data, 1)}, 6) == 0
    assert problems({"old": old}, 6) == 1  # fsync returned: it is gone
    assert problems({"old": old, "a": Found(data[:4096], 1)}, 6) == 1  # shorter
    assert problems({"a": Found(data, 1)}, 6) == 1  # another file is gone
    assert problems({"a": Found(data, 1)}, 9) == 0  # its unlink had begun
    assert problems({"old": old, "a": Found(data, 1), "b": old}, 9) == 1  # came from nowhere
    with pytest.raises(AssertionError, match="before the kill"):
        Expected({}).replay([{"error": "EIO"}])


def test_size_and_time_mean_the_bytes() -> None:
    """What rsync's quick check would believe has to be there."""
    node = Node([b"", b"half", b"whole"], stamps={7: b"whole"})
    assert node.fits("a", Found(b"whole", 7))
    assert node.fits("a", Found(b"half", 7))
    assert node.fits("a", Found(b"half\0", 6))
    assert not node.fits("a", Found(b"half\0", 7))

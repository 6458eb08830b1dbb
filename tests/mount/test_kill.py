"""kill -9 at random moments: what fsync returned for is there afterwards, everything else is old, new or shorter.

How the work goes on and what is compared: crashing.py, promises.py.
"""

from __future__ import annotations

import os
import random
import shutil
from typing import Final

import pytest

from cuckoo_mount.testing.killing import Line, content
from tests.mount.crashing import SEED_VARIABLE, Trial
from tests.mount.mounting import Mount
from tests.mount.promises import Expected, Found, Node, Tree, is_mixture

pytestmark = [pytest.mark.mount, pytest.mark.slow]

KILLS: Final = 8
KILLS_LONG: Final = 150


@pytest.fixture
def trial(mount: Mount, request: pytest.FixtureRequest) -> Trial:
    """A drive with files on its cloud, mounted, and a seed that is printed."""
    seed = int(os.environ.get(SEED_VARIABLE, random.SystemRandom().randrange(10**9)))
    print(f"{SEED_VARIABLE}={seed}")
    mount.deadline_s = 120.0
    mount.start(cache_limit="16MiB")
    trial = Trial(mount, seed)
    trial.seed()
    return trial


def test_what_fsync_returned_for_survives_kills(trial: Trial) -> None:
    kill_many(trial, KILLS)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_what_fsync_returned_for_survives_many_kills(trial: Trial) -> None:
    kill_many(trial, KILLS_LONG)


def kill_many(trial: Trial, kills: int) -> None:
    """Kill, then send everything, forget everything that is here, and compare again with what the cloud has."""
    mount, tally = trial.mount, trial.tally
    for number in range(kills):
        trial.work_and_kill(number)
    print(tally)
    assert mount.sync()["bytes"] == 0
    mount.evict()
    mount.drop_caches()
    trial.compare_all()
    mount.umount()
    shutil.rmtree(mount.paths.cache)
    mount.start()
    trial.compare_all()
    # Without these nothing was shown.
    assert tally.kills_with_pending > kills // 2
    assert tally.at_risk > 0
    assert tally.kills_with_loss > 0
    assert tally.kills_while_packing > 0
    assert tally.packs > kills // 2
    assert tally.evicted_bytes > 0


def test_a_mount_whose_daemon_died_is_mounted_over(mount: Mount) -> None:
    mount.start()
    (mount.path / "file").write_bytes(b"bytes")
    os.stat(mount.path)  # the kernel may go on answering this for a dead mount, out of its cache
    mount.kill(detach=False)
    mount.start()
    assert "died" in mount.log_text()


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

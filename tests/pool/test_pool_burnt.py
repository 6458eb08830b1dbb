"""The burnt laptop: killed and deleted at a random moment, recovered elsewhere as of one moment not long before.

A writer makes numbered steps (numbering.py) while epochs go to three clouds, of which one fails, and packs are
compacted and deleted; then the laptop is gone, one cloud perhaps, too, and on a new one everything has to be as after
one and the same step, no earlier than what `status` and `sync` had promised.  The contract: docs/format.md, "Epochs";
design §3.6.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Final

import pytest
from attrs import evolve

from tests.pool.burning import FAULTS, Fire, Tally
from tests.pool.numbered import Seen, State, find_state, is_part
from tests.pool.numbering import all_steps
from tests.pool.pooling import Place, folder_place

pytestmark = [pytest.mark.mount, pytest.mark.slow]

SEED_VARIABLE: Final = "CUCKOO_BURNT_SEED"
GENERATIONS: Final = 2
GENERATIONS_MAX: Final = 6
DRIVES_LONG: Final = 26
GENERATIONS_LONG: Final = 26


class Fires:
    """Makes drives to be burnt."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.tally: Final = Tally()
        self._folder: Final = folder
        self._seed = seed
        self._made: list[Fire] = []

    def light(self) -> Fire:
        """Return a new drive, mounted on its first laptop."""
        number = len(self._made)
        folder = self._folder / f"fire{number}"
        places: Sequence[Place] = [folder_place(folder / "clouds", name) for name in ("one", "two", "three")]
        fire = Fire(folder, places, f"{self._seed} {number}", self.tally)
        self._made.append(fire)
        fire.begin()
        return fire

    def clear_away(self) -> None:
        for fire in self._made:
            fire.clear_away()


@pytest.fixture
def fires(tmp_path: Path) -> Iterator[Fires]:
    """Prints the seed of all that follows; what is left of a test that failed can be looked at."""
    seed = int(os.environ.get(SEED_VARIABLE, random.SystemRandom().randrange(10**9)))
    print(f"{SEED_VARIABLE}={seed}")
    fires = Fires(tmp_path, seed)
    try:
        yield fires
    finally:
        fires.clear_away()


def burn_drives(fires: Fires, count: int) -> None:
    """Each time another drive."""
    for number in range(count):
        fire = fires.light()
        fire.work_and_burn(FAULTS[number % len(FAULTS)])
        fire.end()
        shutil.rmtree(fire.folder)
    judge(fires.tally, count)


def burn_generations(fires: Fires, count: int, *, at_most: int = 0) -> None:
    """One drive; each laptop goes on where the one before was recovered to.

    `at_most`: as few may have been lucky, more of them until one burnt in the middle of sending.
    """
    fire = fires.light()
    for number in range(max(count, at_most)):
        if number >= count and fires.tally.half_sent + fires.tally.cutting > 0:
            break
        fire.work_and_burn(FAULTS[number % len(FAULTS)])
    fire.end()
    shutil.rmtree(fire.folder)
    judge(fires.tally, fires.tally.moments if at_most else count)


def judge(tally: Tally, moments: int) -> None:
    """Without these nothing was shown."""
    print(tally)
    assert tally.moments == moments > 0
    assert tally.not_durable > 0, "no epoch was at risk"
    assert tally.half_sent + tally.cutting > 0, "no kill came in the middle of sending"
    assert tally.with_loss > 0, "nothing was ever lost, so nothing was under way"
    assert tally.epochs > moments // 4
    assert tally.syncs > 0
    assert tally.failing == moments
    assert tally.faults > 0
    assert tally.packs_deleted > 0
    assert tally.packs_compacted > 0


def test_a_burnt_laptop_comes_back_as_of_one_moment(fires: Fires) -> None:
    burn_generations(fires, GENERATIONS, at_most=GENERATIONS_MAX)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_many_burnt_laptops_come_back_as_of_one_moment(fires: Fires) -> None:
    burn_drives(fires, DRIVES_LONG)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_many_laptops_burn_one_after_the_other(fires: Fires) -> None:
    burn_generations(fires, GENERATIONS_LONG)


def states(seed: str, count: int) -> list[Seen]:
    """Return what is to be seen after each of the first steps."""
    state, found = State(), []
    for step in islice(all_steps(seed), count):
        state.apply(step)
        found.append(Seen(frozenset(state.folders), dict(state.names), dict(state.contents), dict(state.rows)))
    return found


def test_what_was_not_cut_at_one_moment_is_seen() -> None:
    """The test's own judgement."""
    count = 120
    seen = states("7", count)
    assert all(find_state("7", seen[number - 1], 0, count) >= number for number in range(1, count, 7))
    whole, later = seen[79], seen[99]
    with pytest.raises(AssertionError, match="not a state"):
        find_state("7", whole, 100, count)  # older than what was promised
    with pytest.raises(AssertionError, match="not a state"):
        find_state("7", later, 0, 80)  # newer than its cut
    file = next(path for path in whole.names if path.startswith("folders/"))
    for torn in (
        evolve(whole, names=later.names, contents={**whole.contents, **later.contents}),
        evolve(whole, rows=later.rows),
        evolve(whole, rows={**whole.rows, "wal": whole.rows["wal"] - 1}),
        evolve(whole, contents={**whole.contents, whole.names[file]: b"?"}),
        evolve(whole, names={**whole.names, "cut": whole.names["number"]}),
    ):
        with pytest.raises(AssertionError, match="not a state"):
            find_state("7", torn, 0, count)


def test_is_part() -> None:
    """What may be found of a write that was under way."""
    before, after = b"a" * 5000, b"b" * 10_000
    assert is_part(before, before, after)
    assert is_part(after, before, after)
    assert is_part(after[:4096] + before[4096:], before, after)
    assert is_part(before + b"\0" * 3192 + after[8192:], before, after)
    assert not is_part(b"\0" * 4096 + after[4096:], before, after)
    assert not is_part(before[:100] + after[100:], before, after)
    assert not is_part(after + b"b", before, after)

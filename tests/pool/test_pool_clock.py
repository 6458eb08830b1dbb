"""Clocks that are set by a day, mounted or not, and machines whose clocks are a day apart: it makes no difference."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.mount.disks import ROOT
from tests.pool.machines import Machine, three_folders
from tests.pool.pooling import Place
from tests.pool.surveys import assert_same_survey, survey, write_settled

pytestmark = [pytest.mark.mount, pytest.mark.slow, pytest.mark.long]

DAY_S: Final = 24 * 3600


class ClockedMachine(Machine):
    """As `Machine`; `set_clock` moves the time of day of all its processes, those that run, too."""

    def __init__(self, folder: Path, places: list[Place]) -> None:
        self._clock: Final = folder.with_name(f"{folder.name}.clock")
        self.set_clock(0)
        super().__init__(folder, places)

    def set_clock(self, offset_s: int) -> None:
        """Let its clock be so far ahead of ours."""
        new = self._clock.with_suffix(".new")
        new.write_text(str(offset_s), "ascii")
        new.rename(self._clock)

    @property
    def environment(self) -> dict[str, str]:
        paths = os.pathsep.join((str(Path(__file__).parent / "clocked"), str(ROOT)))
        return super().environment | {"PYTHONPATH": paths, "CUCKOO_TEST_CLOCK": str(self._clock)}


@contextmanager
def pair(tmp_path: Path) -> Iterator[tuple[ClockedMachine, ClockedMachine]]:
    """Give two machines of one drive: the first one has it mounted, the second one has recovered it."""
    places = three_folders(tmp_path)
    with ExitStack() as stack:
        first, second = (ClockedMachine(tmp_path / name, places) for name in ("first", "second"))
        for machine in (first, second):
            stack.callback(machine.clear_away)
        first.make()
        first.start()
        write_settled(first.path / "file", b"common")
        first.cuckoo("sync")
        second.recover(places[1])
        yield first, second
        for machine in (first, second):
            machine.finish()


@pytest.mark.parametrize("jump_s", [-DAY_S, DAY_S])
def test_a_writer_is_not_dead_because_a_clock_was_set(tmp_path: Path, jump_s: int) -> None:
    with pair(tmp_path) as (first, second):
        assert "is in use by" in second.start_refused()
        second.set_clock(jump_s)
        assert "is in use by" in second.start_refused()
        write_settled(first.path / "more", b"more")
        first.cuckoo("sync")
        first.umount()
        second.start()
        assert (second.path / "more").read_bytes() == b"more"


@pytest.mark.parametrize("jump_s", [-DAY_S, DAY_S])
def test_a_clock_that_is_set_while_mounted(tmp_path: Path, jump_s: int) -> None:
    """Nothing is lost, made old, or put off for a day; other machines go on from there."""
    with pair(tmp_path) as (first, second):
        unknown = Path(first.places[0].config.url, first.identity()).parent / "packs" / "ab" / f"{'ab' * 16}.0"
        unknown.parent.mkdir(parents=True, exist_ok=True)
        unknown.write_bytes(b"of an upload that is under way elsewhere")
        assert first.control("gc")["objects_young"] == 1
        epochs = [first.status()["epoch"]["cloud"]]
        for number, offset_s in enumerate((jump_s, 0, jump_s, 2 * jump_s)):
            first.set_clock(offset_s)
            write_settled(first.path / f"file {number}", b"x" * number)
            (first.path / "file").chmod(0o600 + number)
            first.cuckoo("sync")
            epochs.append(first.status()["epoch"]["cloud"])
            assert first.control("gc")["objects_young"] == 1
            assert unknown.exists()
            first.check()
        assert epochs == sorted(set(epochs)), "an epoch for each"
        wanted = survey(first.path)
        first.umount()
        second.start()
        assert_same_survey(survey(second.path), wanted)
        assert second.cuckoo("fsck", check=False).stdout.endswith(b"The drive is as it should be.\n")


def test_clocks_a_day_apart(tmp_path: Path) -> None:
    """By turns, each with a clock of its own; a claim of tomorrow or yesterday is as good as any."""
    with pair(tmp_path) as (first, second):
        first.umount()
        second.set_clock(DAY_S)
        first.set_clock(-DAY_S)
        for number in range(4):
            machine, other = (second, first) if number % 2 == 0 else (first, second)
            machine.start()
            assert "is in use by" in other.start_refused()
            write_settled(machine.path / f"turn {number}", b"x")
            assert len(list(machine.path.glob("turn *"))) == number + 1
            machine.umount()

"""Two machines take turns with one drive: one at a time, nothing is lost, and who went on alone is told so."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest

from tests.pool.conftest import MakeMachine
from tests.pool.machines import Machine, View, fill, three_folders
from tests.pool.surveys import Survey, assert_same_survey, survey, write_settled
from tests.pool.trees import check_clone, clone, make_repository, make_source_tree, run

pytestmark = [pytest.mark.mount, pytest.mark.slow]

KIB = 1 << 10


def pair(tmp_path: Path, make_machine: MakeMachine) -> tuple[Machine, Machine]:
    """Return a machine with a new drive, mounted, and one that does not know the drive yet."""
    places = three_folders(tmp_path)
    first, second = make_machine(places), make_machine(places)
    first.make()
    first.start()
    return first, second


def received_bytes(machine: Machine) -> int:
    """Return how many bytes of packs came from the clouds since the mount."""
    return sum(int(cloud["bytes_down"]) for cloud in machine.status()["clouds"])


def work(machine: Machine, number: int) -> None:
    """Do what a day of work does: many new files, some changed, renamed and removed, a folder moved."""
    dice = random.Random(number)
    today = machine.path / f"day{number}"
    today.mkdir()
    for name in range(60):
        write_settled(today / f"{name}", dice.randbytes(dice.randrange(20 * KIB)))
    for name in range(20):
        (today / f"{name}").rename(today / f"renamed {name}")
    yesterday = machine.path / f"day{number - 1}"
    if yesterday.exists():
        for path in sorted(yesterday.iterdir())[:10]:
            path.unlink()
        for path in sorted(yesterday.iterdir())[:10]:
            write_settled(path, dice.randbytes(3 * KIB))
        yesterday.rename(machine.path / "days" / f"day{number - 1}")


@pytest.mark.long
def test_turn_by_turn(tmp_path: Path, make_machine: MakeMachine) -> None:
    first, second = pair(tmp_path, make_machine)
    fill(first, tmp_path / "source", files=50, random_mib=8)
    (first.path / "days").mkdir()
    first.umount()
    second.recover(second.places[1])
    unchanged = (tmp_path / "source" / "big").read_bytes()
    machines = [second, first]
    wanted: Survey = {}
    for number in range(6):
        machine = machines[number % 2]
        machine.start()
        if number:
            assert_same_survey(survey(machine.path), wanted)
        work(machine, number)
        wanted = survey(machine.path)
        machine.umount()
    first.start()
    first.drop_caches()
    before = received_bytes(first)
    assert (first.path / "big").read_bytes() == unchanged
    assert received_bytes(first) == before
    assert first.status()["cache"]["misses"] == 0


@pytest.mark.long
def test_a_repository_that_goes_to_and_fro(tmp_path: Path, make_machine: MakeMachine) -> None:
    """Commits, repacking and a rename of everything, by turns."""
    first, second = pair(tmp_path, make_machine)
    make_source_tree(tmp_path / "source", 120)
    make_repository(tmp_path / "repository", tmp_path / "source", commits=3)
    clone(tmp_path / "repository", first.path / "work")
    first.umount()
    second.recover(second.places[0])
    for number, machine in enumerate((second, first, second, first)):
        machine.start()
        check_clone(machine.path / "work")
        (machine.path / "work" / f"new{number}").write_text(f"{number}")
        git = ("git", "-C", machine.path / "work", "-c", "user.name=Test", "-c", "user.email=test@localhost")
        moved = next(
            path for path in sorted((machine.path / "work").iterdir()) if path.is_dir() and path.name != ".git"
        )
        run(*git, "mv", moved.name, f"moved{number}")
        run(*git, "add", "--all")
        run(*git, "commit", "--quiet", "--message", f"turn {number}")
        run(*git, "gc", "--quiet")
        machine.umount()
    second.start()
    check_clone(second.path / "work")
    assert {f"new{number}" for number in range(4)} <= set(os.listdir(second.path / "work"))


@pytest.mark.long
def test_an_old_state_folder_is_brought_up_to_date(tmp_path: Path, make_machine: MakeMachine) -> None:
    """Its cache is newer than it is, and what another machine wrote is there as well."""
    first, second = pair(tmp_path, make_machine)
    fill(first, tmp_path / "source", files=50, random_mib=1)
    (first.path / "days").mkdir()
    first.umount()
    shutil.copytree(first.paths.state, tmp_path / "backup")
    first.start()
    work(first, 0)
    first.umount()
    second.recover(second.places[0])
    second.start()
    work(second, 1)
    wanted = survey(second.path)
    second.umount()
    shutil.rmtree(first.paths.state)
    shutil.copytree(tmp_path / "backup", first.paths.state)
    first.start()
    assert_same_survey(survey(first.path), wanted)
    first.check()
    work(first, 2)
    wanted = survey(first.path)
    first.umount()
    second.start()
    assert_same_survey(survey(second.path), wanted)


def test_a_killed_machine_mounts_again_at_once(tmp_path: Path, make_machine: MakeMachine) -> None:
    first, _ = pair(tmp_path, make_machine)
    (first.path / "sent").write_bytes(b"sent")
    first.sync()
    with (first.path / "unsent").open("wb") as file:
        file.write(b"unsent")
        file.flush()
        os.fsync(file.fileno())
    first.kill()
    first.start()
    assert (first.path / "sent").read_bytes() == b"sent"
    assert (first.path / "unsent").read_bytes() == b"unsent"
    (first.path / "more").write_bytes(b"more")
    first.cuckoo("sync")


def test_one_machine_at_a_time(tmp_path: Path, make_machine: MakeMachine) -> None:
    first, second = pair(tmp_path, make_machine)
    (first.path / "file").write_bytes(b"old")
    first.umount()
    second.recover(second.places[2])
    first.start()
    (first.path / "file").write_bytes(b"new")
    first.sync()
    said = second.start_refused()
    assert f"in use by the machine '{os.uname().nodename}'" in said
    assert "--take-over" in said
    assert "-o ro" in said
    (first.path / "later").write_bytes(b"later")
    first.sync()


@pytest.mark.long
def test_looking_on_while_another_machine_works(tmp_path: Path, make_machine: MakeMachine) -> None:
    """-o ro shows its last epoch, and leaves nothing that is in the way afterwards."""
    first, second = pair(tmp_path, make_machine)
    (first.path / "file").write_bytes(b"old")
    first.umount()
    second.recover(second.places[2])
    first.start()
    (first.path / "file").write_bytes(b"new")
    first.sync()
    second.start("-o", "ro")
    assert (second.path / "file").read_bytes() == b"new"
    assert second.status()["state"] == "read-only"
    with pytest.raises(OSError, match="Read-only"):
        (second.path / "mine").write_bytes(b"mine")
    (first.path / "later").write_bytes(b"later")
    first.sync()
    assert not (second.path / "later").exists()
    assert first.status()["state"] == "ok"
    second.umount()
    second.start("-o", "ro")
    assert (second.path / "later").read_bytes() == b"later"
    assert (second.path / "file").read_bytes() == b"new"
    second.umount()
    first.umount()
    first.start()
    (first.path / "last").write_bytes(b"last")
    first.umount()
    second.start()
    assert (second.path / "last").read_bytes() == b"last"
    (second.path / "file").write_bytes(b"newest")


@pytest.mark.long
def test_an_older_epoch_beside_the_drive(tmp_path: Path, make_machine: MakeMachine) -> None:
    first, second = pair(tmp_path, make_machine)
    fill(first, tmp_path / "source", files=50, random_mib=1)
    old = survey(first.path)
    epoch = int(first.status()["epoch"]["cloud"])
    shutil.rmtree(first.path / "d0")
    (first.path / "kinds" / "setuid").write_bytes(b"changed")
    (first.path / "names").rename(first.path / "other names")
    first.sync()
    new = survey(first.path)
    second.recover(second.places[0])
    for machine in (first, second):
        view = View(machine, epoch)
        try:
            view.start()
            assert_same_survey(survey(view.path), old)
            assert view.status()["state"] == "read-only"
            with pytest.raises(OSError, match="Read-only"):
                (view.path / "new").touch()
            if machine is first:
                assert_same_survey(survey(first.path), new)
                (first.path / "beside").write_bytes(b"beside")
                first.sync()
                (first.path / "beside").unlink()
            view.finish()
        finally:
            view.clear_away()
        assert not list((machine.folder / "xdg" / "cache" / "cuckoo").glob("*.epoch*"))
    assert_same_survey(survey(first.path), new | {b"": survey(first.path)[b""]})
    assert "epoch 999 is not on the clouds" in View(second, 999).start_refused(2)

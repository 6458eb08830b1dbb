"""A machine with its state folder is cloned, and both go on: the drive is always one of the two, never a mixture.

A cloned virtual machine boots with everything the first one had, its claim of the right to write and what it had not
sent included.  Copied while the daemon is at work, the folder is as after a crash.
"""

from __future__ import annotations

import os
import random
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Final

import pytest

from tests.mount.crashing import SEED_VARIABLE
from tests.mount.mounting import ControlError, MountError
from tests.pool.conftest import MakeMachine
from tests.pool.machines import Machine, fill, three_folders
from tests.pool.surveys import Survey, assert_same_survey, survey, write_settled
from tests.pool.test_pool_fork import assert_told, no_connection

pytestmark = [pytest.mark.mount, pytest.mark.slow]

ROUNDS: Final = 12


def clone(machine: Machine, make_machine: MakeMachine) -> Machine:
    """Return another machine with all that lies on the disk of the first one, as it is now."""
    copy = make_machine(machine.places)
    for name in ("config", "state", "cache", "data"):
        target = copy.folder / "xdg" / name
        shutil.rmtree(target)
        copy_as_it_is(machine.folder / "xdg" / name, target)
    return copy


def copy_as_it_is(source: Path, target: Path) -> None:
    """Copy a tree in which somebody works: what goes away meanwhile is not there.

    The database comes first and its log second, as both are only ever appended to between two copies of the log.
    """
    target.mkdir(mode=0o700)
    entries = sorted(source.iterdir(), key=lambda path: (path.name.endswith("-shm"), path.is_dir(), path.name))
    for entry in entries:
        with suppress(FileNotFoundError):
            if entry.is_dir():
                copy_as_it_is(entry, target / entry.name)
            elif entry.is_file() and not entry.name.endswith("-shm"):
                shutil.copy2(entry, target / entry.name)


def made(tmp_path: Path, make_machine: MakeMachine) -> Machine:
    """Return a machine with a drive, mounted."""
    machine = make_machine(three_folders(tmp_path))
    machine.make()
    machine.start()
    write_settled(machine.path / "file", b"common")
    machine.cuckoo("sync")
    return machine


def assert_whole(machine: Machine) -> None:
    """Fail if `fsck` finds anything; objects that a branch given up left on the clouds are nothing."""
    assert machine.cuckoo("fsck").stdout.endswith(b"The drive is as it should be.\n")


def killed_with_unsent_data(machine: Machine) -> None:
    """End a daemon that has something that is on no cloud."""
    with no_connection(machine):
        write_settled(machine.path / "unsent", b"of both")
        with (machine.path / "unsent").open("rb") as file:
            os.fsync(file.fileno())
        machine.kill()


def test_a_clone_of_a_machine_that_crashed(tmp_path: Path, make_machine: MakeMachine) -> None:
    """Both have the same unsent data and the same claim: the first one that is mounted goes on, the other is told."""
    first = made(tmp_path, make_machine)
    killed_with_unsent_data(first)
    second = clone(first, make_machine)
    first.start()
    said = second.start_refused()
    assert "is in use by" in said
    assert "if one is a copy of the other" in said
    write_settled(first.path / "file", b"of the first")
    first.umount()
    assert_told(second)


@pytest.mark.long
def test_a_clone_that_is_kept(tmp_path: Path, make_machine: MakeMachine) -> None:
    first = made(tmp_path, make_machine)
    killed_with_unsent_data(first)
    second = clone(first, make_machine)
    first.start()
    write_settled(first.path / "file", b"of the first")
    first.umount()
    assert_told(second)
    second.start("--take-over")
    assert (second.path / "unsent").read_bytes() == b"of both"
    assert (second.path / "file").read_bytes() == b"common"
    second.cuckoo("sync")
    assert_whole(second)
    second.umount()
    assert_told(first)


@pytest.mark.long
def test_a_clone_of_a_machine_that_was_shut_down(tmp_path: Path, make_machine: MakeMachine) -> None:
    """Nothing is unsent, so that they can take turns."""
    first = made(tmp_path, make_machine)
    first.umount()
    second = clone(first, make_machine)
    for number, machine in enumerate((second, first, second)):
        machine.start()
        write_settled(machine.path / f"turn {number}", b"x")
        assert len(list(machine.path.glob("turn *"))) == number + 1
        other = first if machine is second else second
        assert "is in use by" in other.start_refused()
        machine.umount()


@pytest.mark.long
def test_a_clone_of_a_machine_that_goes_on(tmp_path: Path, make_machine: MakeMachine) -> None:
    """Right after it was copied, its claim looks like the clone's own; who has it learns that, and loses nothing."""
    first = made(tmp_path, make_machine)
    second = clone(first, make_machine)
    write_settled(first.path / "mine", b"mine")
    second.start()
    write_settled(second.path / "theirs", b"theirs")
    refused = first.cuckoo("sync", check=False)
    assert b"another machine has taken the drive over" in refused.stderr
    with pytest.raises(OSError, match="Read-only"):
        (first.path / "more").write_bytes(b"more")
    assert first.status()["state"] == "read-only"
    assert (first.path / "mine").read_bytes() == b"mine"
    second.cuckoo("sync")
    wanted = survey(second.path)
    assert_whole(second)
    first.umount()
    second.umount()
    assert_told(first)
    second.start()
    assert_same_survey(survey(second.path), wanted)
    second.umount()
    first.start("--take-over")
    assert (first.path / "mine").read_bytes() == b"mine"


@pytest.mark.long
def test_a_clone_that_was_made_while_packs_were_compacted(tmp_path: Path, make_machine: MakeMachine) -> None:
    """Its notes of uploads under way are about packs that the other one finished: they must stay."""
    first = made(tmp_path, make_machine)
    (first.path / "file").unlink()
    fill(first, tmp_path / "source", files=200, random_mib=1)
    second = None
    for number in range(40):
        for name in first.path.glob(f"d*/*{number % 10}"):
            name.unlink()
        first.cuckoo("sync")
        first.control("gc", keep=1)
        if number == 5:
            second = clone(first, make_machine)
    assert second is not None
    wanted = survey(first.path)
    first.umount()
    second.start()
    second.drop_caches()
    assert_same_survey(survey(second.path), wanted)
    assert_whole(second)


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_clones_at_random_moments(tmp_path: Path, make_machine: MakeMachine) -> None:
    """Copied at work, killed or unmounted; either or both go on; what is on the clouds is always what one of them had.

    Each file names all files that were there when it was written, so that a mixture is seen.
    """
    seed = int(os.environ.get(SEED_VARIABLE, random.SystemRandom().randrange(10**9)))
    print(f"{SEED_VARIABLE}={seed}")
    dice = random.Random(seed)
    machine = made(tmp_path, make_machine)
    told = 0
    for number in range(ROUNDS):
        work(machine, number, "before", dice)
        how = dice.choice(("running", "running", "killed", "unmounted"))
        if how == "killed":
            machine.kill()
        elif how == "unmounted":
            machine.umount()
        copy = clone(machine, make_machine)
        pair = [machine, copy]
        dice.shuffle(pair)
        for one in (*pair, *pair):
            told += not go_on(one, number, dice)
        for one in pair:
            if one.is_running:
                one.umount(wait=False)
        keeper, given_up = pair
        if not start_if_allowed(keeper):
            keeper.start("--take-over")
        consistent(keeper)
        keeper.cuckoo("sync")
        wanted = survey(keeper.path)
        assert_whole(keeper)
        keeper.umount()
        shutil.rmtree(given_up.paths.state)
        given_up.start()
        assert_same_survey(survey(given_up.path), wanted)
        given_up.umount()
        shutil.rmtree(given_up.folder / "xdg")
        machine = keeper
        machine.start()
    print(f"{told=}")
    assert told > ROUNDS // 2


def work(machine: Machine, number: int, name: str, dice: random.Random) -> None:
    """Write files of which each names those before it, remove some, send some of it."""
    for part in range(dice.randrange(1, 8)):
        names = sorted(path.name for path in machine.path.glob("log *"))
        text = "\n".join(names).encode() + b"\n" + dice.randbytes(dice.choice((10, 100_000))).hex().encode()
        write_settled(machine.path / f"log {number:03} {name} {part}", text)
        if dice.random() < 0.3:
            with suppress(AssertionError):
                machine.cuckoo(dice.choice(("sync", "gc")))


def go_on(machine: Machine, number: int, dice: random.Random) -> bool:
    """Have a machine work if it can; return whether it could."""
    if dice.random() < 0.2 or (not machine.is_running and not start_if_allowed(machine)):
        return False
    try:
        work(machine, number, machine.folder.name, dice)
    except OSError:
        assert machine.status()["state"] == "read-only"
        machine.umount(wait=False)
        return False
    if dice.random() < 0.5:
        try:
            machine.umount(wait=dice.random() < 0.5)
        except ControlError:
            assert machine.status()["state"] == "read-only"
            machine.umount(wait=False)
            return False
    elif dice.random() < 0.3:
        machine.kill()
    return True


def start_if_allowed(machine: Machine) -> bool:
    """Mount; return False if it was refused with a line that says what to do."""
    try:
        machine.start()
    except MountError as error:
        said = str(error)
    else:
        return True
    assert "--take-over" in said or "just being mounted" in said, said
    machine.forget_ended()
    return False


def consistent(machine: Machine) -> Survey:
    """Fail unless everything that a file names is there and readable."""
    found = survey(machine.path)
    for path in machine.path.glob("log *"):
        for name in path.read_bytes().splitlines()[:-1]:
            assert not name or name in found, f"{path} was written when {name!r} was there"
    return found

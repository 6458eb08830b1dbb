"""Two machines went on alone: nobody's work is merged or lost in silence, the user chooses, and both choices work."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.pool.conftest import MakeMachine
from tests.pool.machines import Machine, fill, three_folders, wait_until
from tests.pool.surveys import assert_same_survey, survey, write_settled

pytestmark = [pytest.mark.mount, pytest.mark.slow]

LOAD: Final = """
import os, sys
for number in range(1_000_000):
    with open(os.path.join(sys.argv[1], f"load{number}"), "wb") as file:
        file.write(os.urandom(50_000))
    with open(sys.argv[2], "w") as done:
        done.write(str(number))
"""


def pair(tmp_path: Path, make_machine: MakeMachine) -> tuple[Machine, Machine]:
    """Return a machine with a drive, mounted, and one that has recovered it and is not mounted."""
    places = three_folders(tmp_path)
    first, second = make_machine(places), make_machine(places)
    first.make()
    first.start()
    fill(first, tmp_path / "source", files=20, random_mib=1)
    write_settled(first.path / "file", b"common")
    first.umount()
    second.recover(second.places[1])
    first.start()
    return first, second


@contextmanager
def no_connection(machine: Machine) -> Iterator[None]:
    """Let no cloud answer inside the `with`."""
    folders = [Path(place.config.url) for place in machine.places]
    for folder in folders:
        folder.rename(folder.with_name(f"{folder.name}.away"))
    try:
        yield
    finally:
        for folder in folders:
            folder.with_name(f"{folder.name}.away").rename(folder)


def fork(first: Machine, second: Machine) -> None:
    """Write on the first machine while it has no connection, and then on the second one, which took over."""
    with no_connection(first):
        write_settled(first.path / "file", b"of the first")
        write_settled(first.path / "mine", b"mine")
        first.umount(wait=False)
    second.start("--take-over")
    assert (second.path / "file").read_bytes() == b"common"
    write_settled(second.path / "file", b"of the second")
    write_settled(second.path / "theirs", b"theirs")
    second.umount()


def assert_told(machine: Machine) -> None:
    """Fail unless the mount is refused with both choices."""
    said = machine.start_refused()
    assert "was changed elsewhere (epoch " in said
    assert f"move {machine.paths.state} away and mount again" in said
    assert "cuckoo-mount --take-over" in said


@pytest.mark.long
def test_a_machine_that_was_away_takes_what_is_on_the_clouds(tmp_path: Path, make_machine: MakeMachine) -> None:
    first, second = pair(tmp_path, make_machine)
    fork(first, second)
    for _ in range(2):
        assert_told(first)
    first.paths.state.rename(tmp_path / "moved away")
    first.start()
    assert (first.path / "file").read_bytes() == b"of the second"
    assert (first.path / "theirs").read_bytes() == b"theirs"
    assert not (first.path / "mine").exists()
    first.check()
    write_settled(first.path / "file", b"of the first again")
    first.umount()
    second.start()
    assert (second.path / "file").read_bytes() == b"of the first again"


@pytest.mark.long
def test_a_machine_that_was_away_keeps_what_it_has(tmp_path: Path, make_machine: MakeMachine) -> None:
    first, second = pair(tmp_path, make_machine)
    fork(first, second)
    assert_told(first)
    first.start("--take-over")
    assert (first.path / "file").read_bytes() == b"of the first"
    assert (first.path / "mine").read_bytes() == b"mine"
    assert not (first.path / "theirs").exists()
    first.cuckoo("sync")
    first.check()
    wanted = survey(first.path)
    first.umount()
    # What the second one wrote is nowhere but on it, and it is asked in its turn.
    assert_told(second)
    second.paths.state.rename(tmp_path / "moved away")
    second.start()
    assert_same_survey(survey(second.path), wanted)
    second.umount()
    third = Machine(tmp_path / "third", first.places)
    third.recover(third.places[0])
    third.start()
    try:
        assert_same_survey(survey(third.path), wanted)
        third.finish()
    finally:
        third.clear_away()


@pytest.mark.long
def test_a_machine_without_connection_goes_on_where_nobody_else_wrote(
    tmp_path: Path, make_machine: MakeMachine
) -> None:
    first, second = pair(tmp_path, make_machine)
    with no_connection(first):
        write_settled(first.path / "file", b"of the first")
        first.umount(wait=False)
        first.start()
        assert (first.path / "file").read_bytes() == b"of the first"
        write_settled(first.path / "mine", b"mine")
        first.umount(wait=False)
    first.start()
    first.cuckoo("sync")
    wanted = survey(first.path)
    first.umount()
    second.start()
    assert_same_survey(survey(second.path), wanted)


@pytest.mark.long
def test_a_machine_mounted_without_connection_learns_of_the_other_one(
    tmp_path: Path, make_machine: MakeMachine
) -> None:
    """It joins when a cloud is back; then it may not write, and says why."""
    first, second = pair(tmp_path, make_machine)
    with no_connection(first):
        first.umount(wait=False)
        first.start()
        write_settled(first.path / "mine", b"mine")
    second.start("--take-over")
    write_settled(second.path / "theirs", b"theirs")
    second.umount()
    said = first.cuckoo("sync", check=False)
    assert said.returncode != 0
    assert said.stderr.count(b"\n") == 1
    assert b"changed elsewhere" in said.stderr
    assert_read_only(first)
    assert "changed elsewhere" in first.cuckoo("status").stdout.decode()
    first.umount()
    assert_told(first)
    first.start("--take-over")
    assert (first.path / "mine").read_bytes() == b"mine"


def assert_read_only(machine: Machine) -> None:
    """Fail unless new writes end with EROFS and reads go on."""
    with pytest.raises(OSError, match="Read-only") as caught:
        (machine.path / "more").write_bytes(b"more")
    assert caught.value.errno == errno.EROFS
    assert machine.status()["state"] == "read-only"
    assert (machine.path / "names").is_dir()


@contextmanager
def load_on(machine: Machine) -> Iterator[subprocess.Popen[bytes]]:
    """Write files without end inside the `with`, and return it when the first of them are there."""
    progress = machine.folder / "progress"
    command = [sys.executable, "-c", LOAD, str(machine.path), str(progress)]
    with (machine.folder / "load").open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd="/")
    try:
        wait_until(lambda: progress.exists() and int(progress.read_text() or "0") >= 50, "50 files are written")
        yield process
    finally:
        process.kill()
        process.wait(60)


@pytest.mark.long
def test_a_machine_wakes_up_and_the_drive_is_another_ones(tmp_path: Path, make_machine: MakeMachine) -> None:
    """Stopped while it writes, taken over from, and woken up: it learns it, and harms nothing."""
    first, second = pair(tmp_path, make_machine)
    first.sync()
    with load_on(first) as load:
        with first.asleep():
            assert "--take-over" in second.start_refused()
            second.start("--take-over")
            assert (second.path / "file").read_bytes() == b"common"
            write_settled(second.path / "file", b"of the second")
            for number in range(100):
                write_settled(second.path / f"theirs{number}", bytes([number]) * 30_000)
            second.cuckoo("sync")
        refused = first.cuckoo("sync", check=False)
        assert refused.returncode != 0
        assert refused.stderr.count(b"\n") == 1
        assert b"another machine has taken the drive over" in refused.stderr
        load.wait(60)
    # The kernel makes EIO of it where it takes bytes and brings them later.
    said = (first.folder / "load").read_text()
    assert "Read-only file system" in said or "Input/output error" in said
    assert_read_only(first)
    said = first.cuckoo("status").stdout.decode()
    assert "Read-only: another machine has taken the drive over" in said
    assert "Unmount, and mount again" in said
    second.check()
    write_settled(second.path / "last", b"last")
    second.cuckoo("sync")
    wanted = survey(second.path)
    assert second.status()["state"] == "ok"
    unmounted = first.cuckoo("umount", first.path, check=False)
    assert unmounted.returncode == 3
    first.ended()
    said = first.start_refused()
    assert "in use by" in said
    second.umount()
    third = Machine(tmp_path / "third", first.places)
    try:
        third.recover(third.places[2])
        third.start()
        assert_same_survey(survey(third.path), wanted)
        third.finish()
    finally:
        third.clear_away()
    assert_told(first)
    first.paths.state.rename(tmp_path / "moved away")
    first.start()
    assert_same_survey(survey(first.path), wanted)


@pytest.mark.long
def test_an_idle_machine_that_was_taken_over_from_follows(tmp_path: Path, make_machine: MakeMachine) -> None:
    """It has nothing of its own, so that it goes on with what the other one wrote."""
    first, second = pair(tmp_path, make_machine)
    first.sync()
    second.start("--take-over")
    write_settled(second.path / "theirs", b"theirs")
    second.umount()
    first.umount()
    first.start()
    assert (first.path / "theirs").read_bytes() == b"theirs"

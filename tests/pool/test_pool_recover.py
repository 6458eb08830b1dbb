"""A machine is lost with everything on it; any one of the clouds and the passphrase bring the drive back, all of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from cuckoo_mount.config import read_config
from cuckoo_mount.config.secrets import VALUE
from tests.pool.conftest import MakeMachine
from tests.pool.machines import CLOUDS, Machine, fill, three_folders
from tests.pool.pooling import take_inventory
from tests.pool.surveys import Survey, assert_same_survey, survey
from tests.pool.threeservers import ThreeServers

pytestmark = [pytest.mark.mount, pytest.mark.slow]


def lose(machine: Machine, how: str) -> None:
    """Take everything from a machine."""
    if how == "killed":
        machine.kill()
    else:
        machine.umount()
    machine.wipe()


def verify(machine: Machine, wanted: Survey, *options: str) -> None:
    """Mount what was recovered, compare everything, and unmount."""
    machine.start(*options)
    assert_same_survey(survey(machine.path), wanted)
    machine.check()
    machine.umount()


def from_every_cloud(machine: Machine, source: Path, how: str, *, files: int, random_mib: int) -> None:
    """Lose a machine with a big tree, and recover it from each of its clouds in turn."""
    machine.make()
    machine.start()
    wanted = fill(machine, source, files=files, random_mib=random_mib)
    lose(machine, how)
    for number, place in enumerate(machine.places):
        said = machine.recover(place).stdout.decode()
        is_in_use = how == "killed" and not number
        assert ("mount with: cuckoo-mount ~/Cuckoo --take-over" in said) == is_in_use, said
        if is_in_use:
            assert "--take-over" in machine.start_refused()
        verify(machine, wanted, *(["--take-over"] if is_in_use else []))
        inventory = take_inventory(machine)
        assert (inventory.dangling, inventory.single) == ([], 0)
        machine.wipe()


@pytest.mark.long
@pytest.mark.parametrize("how", ["unmounted", "killed"])
def test_every_cloud_is_enough(tmp_path: Path, make_machine: MakeMachine, how: str) -> None:
    machine = make_machine(three_folders(tmp_path))
    from_every_cloud(machine, tmp_path / "source", how, files=200, random_mib=16)


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("how", ["unmounted", "killed"])
def test_every_cloud_is_enough_for_a_gib(tmp_path: Path, make_machine: MakeMachine, how: str) -> None:
    machine = make_machine(three_folders(tmp_path), deadline_s=900)
    from_every_cloud(machine, tmp_path / "source", how, files=4000, random_mib=1024)


@pytest.mark.parametrize("lost", [CLOUDS[0], *(pytest.param(name, marks=pytest.mark.long) for name in CLOUDS[1:])])
def test_one_cloud_is_lost_with_the_machine(tmp_path: Path, make_machine: MakeMachine, lost: str) -> None:
    """The drive comes back through each of the two that are left."""
    machine = make_machine(three_folders(tmp_path))
    machine.make()
    machine.start()
    wanted = fill(machine, tmp_path / "source")
    lose(machine, "unmounted")
    gone = machine.place(lost)
    folder = Path(gone.config.url)
    folder.rename(folder.with_name("away"))
    for place in machine.places:
        if place is gone:
            assert f"folder {folder} is not there" in machine.recovery_refused(1, gone)
            continue
        said = machine.recover(place).stdout.decode()
        assert f"{lost} does not: " in said
        assert f"cuckoo cloud set {lost} --url" in said
        verify(machine, wanted)
        machine.wipe()


@pytest.mark.long
def test_the_recovery_key_opens_it_too(tmp_path: Path, make_machine: MakeMachine) -> None:
    """In its own option, where a passphrase is asked for, and however it was written down."""
    machine = make_machine(three_folders(tmp_path))
    machine.make()
    machine.start()
    wanted = fill(machine, tmp_path / "source", files=20, random_mib=1)
    recovery_key = machine.recovery_key()
    lose(machine, "unmounted")
    written = machine.secret_file("written", recovery_key)
    scribbled = machine.secret_file("scribbled", recovery_key.lower().replace("-", " "))
    for option, file in (
        ("--recovery-key-file", written),
        ("--recovery-key-file", scribbled),
        ("--passphrase-file", written),
    ):
        machine.recover(machine.places[1], option, file)
        verify(machine, wanted)
        assert machine.recovery_key() == recovery_key
        machine.wipe()


@pytest.mark.long
def test_without_a_key_file(tmp_path: Path, make_machine: MakeMachine) -> None:
    """--ask leaves no key on the disk; then the mount takes the passphrase."""
    machine = make_machine(three_folders(tmp_path))
    machine.make()
    machine.start()
    wanted = fill(machine, tmp_path / "source", files=20, random_mib=1)
    lose(machine, "unmounted")
    said = machine.recover(machine.places[2], "--ask").stdout.decode()
    assert "Its key is in" not in said
    assert not machine.paths.key_file.exists()
    verify(machine, wanted, "--passphrase-file", str(machine.passphrase_file))


@pytest.mark.long
def test_a_drive_that_is_not_encrypted_needs_nothing(tmp_path: Path, make_machine: MakeMachine) -> None:
    machine = make_machine(three_folders(tmp_path))
    machine.make("--no-encryption")
    machine.start()
    wanted = fill(machine, tmp_path / "source")
    lose(machine, "unmounted")
    for place in machine.places:
        machine.recover(place)
        verify(machine, wanted)
        machine.wipe()


@pytest.mark.long
def test_a_folder_has_moved(tmp_path: Path, make_machine: MakeMachine) -> None:
    """--cloud says where it is now; what is the door need not be named."""
    machine = make_machine(three_folders(tmp_path))
    machine.make()
    machine.start()
    wanted = fill(machine, tmp_path / "source", files=20, random_mib=1)
    lose(machine, "unmounted")
    moved = {}
    for name in ("b", "c"):
        folder = Path(machine.place(name).config.url)
        moved[name] = folder.rename(tmp_path / f"moved {name}")
    machine.recover(moved["c"], "--cloud", f"b={moved['b']}")
    config = read_config(machine.paths)
    assert config is not None
    urls = {cloud.name: cloud.url for cloud in config.clouds}
    assert urls == {"a": machine.places[0].config.url, **{name: str(folder) for name, folder in moved.items()}}
    machine.start()
    assert {cloud["name"]: cloud["state"] for cloud in machine.status()["clouds"]} == dict.fromkeys(CLOUDS, "ok")
    assert_same_survey(survey(machine.path), wanted)
    (machine.path / "more").write_bytes(b"more")
    machine.cuckoo("sync")
    lose(machine, "unmounted")
    # Each machine has its own idea of where a folder is: the next one has to be told again, or first `cloud set`.
    said = machine.recovery_refused(1, machine.places[0])
    assert "only 1 of 3 clouds answer" in said
    assert "--cloud NAME=URL" in said
    machine.recover(machine.places[0], *(f"--cloud={name}={folder}" for name, folder in moved.items()))
    machine.start()
    assert {cloud["name"]: cloud["state"] for cloud in machine.status()["clouds"]} == dict.fromkeys(CLOUDS, "ok")
    assert (machine.path / "more").read_bytes() == b"more"


@pytest.mark.long
def test_one_server_leads_to_the_others(tmp_path: Path, make_machine: MakeMachine, three_servers: ThreeServers) -> None:
    """Through the folder the S3 clouds are found, and opened with the secrets that the drive remembers; and from one
    of those the folder and the other one."""
    machine = make_machine(three_servers.places)
    machine.cuckoo("init", "--redundancy", "2", "--passphrase-file", machine.passphrase_file)
    for place in machine.places:
        machine.cuckoo("cloud", "add", place.name, *machine.door(place))
    machine.start()
    wanted = fill(machine, tmp_path / "source", files=200, random_mib=16)
    lose(machine, "unmounted")
    for place in (three_servers.weed, three_servers.rclone):
        for key, _ in place.config.secrets:
            (machine.folder / f"{place.name}.{key}").unlink()
    machine.recover(three_servers.folder)
    config = read_config(machine.paths)
    assert config is not None
    for cloud in config.clouds:
        known = machine.place(cloud.name).config
        assert (cloud.url, dict(cloud.secrets)) == (known.url, dict(known.secrets))
        assert all(value.startswith(VALUE) for value in dict(cloud.secrets).values())
    machine.start()
    assert {cloud["state"] for cloud in machine.status()["clouds"]} == {"ok"}
    assert_same_survey(survey(machine.path), wanted)
    lose(machine, "killed")
    for place in (three_servers.weed, three_servers.rclone):
        machine.recover(place)
        verify(machine, wanted, "--take-over")
        machine.wipe()

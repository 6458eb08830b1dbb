"""`cuckoo cloud` on a drive that is not mounted, over folders: what each command does, and what it says."""

from __future__ import annotations

import getpass
import json
import os
import sys
from pathlib import Path

import pytest
import trio

from cuckoo_mount.cli import cloud as cloud_command
from cuckoo_mount.cli.lock import LockHolder, hold
from cuckoo_mount.config import DrivePaths, read_config, read_drive_key
from cuckoo_mount.drive import open_drive
from cuckoo_mount.format import identity_name
from cuckoo_mount.parted.tree import Caller
from cuckoo_mount.types import ROOT_INODE
from tests.cli.commanding import Shell, clouds_in_file, empty_drive

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(base: Path) -> Path:
    (base / "usb").mkdir()
    return base / "usb"


def write_file(paths: DrivePaths, data: bytes) -> None:
    """Store a file in the drive, and return when it is on the clouds."""

    async def write() -> None:
        config = read_config(paths)
        assert config is not None
        async with open_drive(config, paths, read_drive_key(paths.key_file)) as drive:
            files = drive.filesystem
            handle, _ = await files.create(ROOT_INODE, b"file", 0o644, Caller(os.getuid(), os.getgid()))
            await files.write(handle, 0, data)
            await files.release(handle)
            await drive.send_all()

    trio.run(write)


def test_a_clouds_life(shell: Shell, folder: Path, paths: DrivePaths) -> None:
    config = empty_drive(paths)
    assert "No clouds yet.  Add one:  cuckoo cloud add NAME URL" in shell.done("cloud", "list")
    said = shell.done("cloud", "add", "usb", folder, "--capacity", "10GB", "--reserve", "1MiB", "--group", "desk")
    assert said == f"Cloud 'usb' added: {folder}\n"
    assert (folder / "cuckoo" / identity_name(config.drive_id).removeprefix("cuckoo/")).is_file()
    added = clouds_in_file(paths)["usb"]
    assert (added.url, added.capacity_bytes, added.reserve_bytes, added.group) == (
        str(folder),
        10_000_000_000,
        1 << 20,
        "desk",
    )

    (listed,) = shell.records("cloud", "list")
    assert (
        listed.items()
        >= {
            "name": "usb",
            "url": str(folder),
            "state": "ok",
            "capacity_bytes": 10_000_000_000,
            "reserve_bytes": 1 << 20,
            "group": "desk",
            "read_only": False,
            "packs": 0,
            "used_bytes": 0,
        }.items()
    )
    assert "usb    ok" in shell.done("cloud", "list")

    shell.done("cloud", "set", "usb", "--capacity", "none", "--reserve", "0", "--group", "", "--read-only")
    changed = clouds_in_file(paths)["usb"]
    assert (changed.capacity_bytes, changed.reserve_bytes, changed.group, changed.read_only) == (None, 0, "", True)
    assert changed.cloud_id == added.cloud_id
    assert "ok, read-only" in shell.done("cloud", "list")
    shell.done("cloud", "set", "usb", "--no-read-only")
    assert not clouds_in_file(paths)["usb"].read_only

    assert "Cloud 'usb' removed" in shell.done("cloud", "remove", "usb")
    assert clouds_in_file(paths) == {}
    assert shell.records("cloud", "list") == []


def test_test_shows_how_long_each_step_took(shell: Shell, folder: Path, paths: DrivePaths) -> None:
    empty_drive(paths)
    shell.done("cloud", "add", "usb", folder)
    trial = shell.record("cloud", "test", "usb")
    assert trial["error"] is None
    assert {step["step"] for step in trial["steps"]} >= {"connect", "store", "read", "delete"}
    assert all(step["seconds"] >= 0 for step in trial["steps"])
    assert trial["capabilities"]["atomic_put"] is True
    said = shell.done("cloud", "test", "usb")
    assert "store  " in said
    assert " ms\n" in said
    assert not any(path.is_file() for path in folder.glob("cuckoo/*/packs/*/*"))


def test_test_of_a_cloud_that_is_gone_says_why(shell: Shell, folder: Path, paths: DrivePaths) -> None:
    empty_drive(paths)
    shell.done("cloud", "add", "usb", folder)
    folder.rename(folder.with_name("elsewhere"))
    assert shell("cloud", "test", "usb", "--json") == 1
    assert json.loads(shell.out)["error"]
    assert "usb" in shell.err
    assert shell.err.count("\n") == 1
    (listed,) = shell.records("cloud", "list")
    assert listed["state"] != "ok"
    # The same storage at another place is the same cloud.
    shell.done("cloud", "set", "usb", "--url", folder.with_name("elsewhere"))
    (listed,) = shell.records("cloud", "list")
    assert listed["state"] == "ok"


def test_a_plain_path_is_made_absolute(
    shell: Shell, folder: Path, paths: DrivePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty_drive(paths)
    monkeypatch.chdir(folder.parent)
    shell.done("cloud", "add", "usb", "usb")
    assert clouds_in_file(paths)["usb"].url == str(folder)


def test_copies_that_need_more_clouds_are_said(shell: Shell, folder: Path, base: Path, paths: DrivePaths) -> None:
    empty_drive(paths, redundancy="3")
    assert "For 3 copies 2 more are needed." in shell.done("cloud", "add", "usb", folder)
    (base / "disk").mkdir()
    assert "For 3 copies 1 more is needed." in shell.done("cloud", "add", "disk", base / "disk")


def test_the_only_copy_is_not_given_up_by_chance(shell: Shell, folder: Path, paths: DrivePaths) -> None:
    empty_drive(paths)
    shell.done("cloud", "add", "usb", folder)
    write_file(paths, os.urandom(100_000))
    assert "lie nowhere else" in shell.refused(2, "cloud", "remove", "usb")
    # Nobody can be asked here.
    assert "say --yes" in shell.refused(2, "cloud", "remove", "usb", "--lost")
    assert list(clouds_in_file(paths)) == ["usb"]
    result = shell.record("cloud", "remove", "usb", "--lost", "--yes")
    assert result["lost_packs"] == 1
    assert clouds_in_file(paths) == {}


def test_a_cloud_that_has_a_copy_elsewhere_can_go(shell: Shell, folder: Path, base: Path, paths: DrivePaths) -> None:
    empty_drive(paths, redundancy="2")
    (base / "disk").mkdir()
    shell.done("cloud", "add", "usb", folder)
    shell.done("cloud", "add", "disk", base / "disk")
    write_file(paths, os.urandom(100_000))
    assert "1 pack has fewer copies than wanted now" in shell.done("cloud", "remove", "usb")
    (listed,) = shell.records("cloud", "list")
    assert (listed["name"], listed["packs"]) == ("disk", 1)


def test_secrets_are_kept_as_references(
    shell: Shell, folder: Path, paths: DrivePaths, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = empty_drive(paths)
    monkeypatch.setenv("THE_PASSWORD", "hush-env")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    monkeypatch.setattr(getpass, "getpass", lambda prompt: "hush-typed")
    (base / "user").write_text("hush-file\n")
    sent: list[tuple[str, dict[str, object]]] = []

    def send(drive: str, command: str, **arguments: object) -> dict[str, object]:
        sent.append((command, arguments))
        return {"url": "mem://"}

    # A folder takes no secrets; what goes to the drive is looked at instead.
    monkeypatch.setattr(cloud_command, "run_on_drive", send)
    specs = ["--secret", f"user=file:{base}/user", "--secret", "password=env:THE_PASSWORD", "--secret", "pin=prompt"]
    shell.done("cloud", "add", "m", "mem://", *specs, "--option", "b=2", "--option", "a=1")
    ((command, arguments),) = sent
    assert command == "cloud-add"
    assert arguments["secrets"] == {"user": "hush-file", "password": "hush-env", "pin": "hush-typed"}
    document = arguments["cloud"]
    assert isinstance(document, dict)
    assert document["options"] == {"a": "1", "b": "2"}
    assert document["secrets"] == {
        "user": f"file:{base}/user",
        "password": "env:THE_PASSWORD",
        "pin": "value:hush-typed",
    }
    assert config.clouds == ()


def test_another_command_at_work_is_said(shell: Shell, folder: Path, paths: DrivePaths) -> None:
    empty_drive(paths)
    with hold(paths.lock) as lock:
        lock.describe(LockHolder(pid=os.getpid(), mountpoint=Path("/mnt/x"), command=True))
        said = shell.refused(1, "cloud", "list")
        assert f"another command is at work on drive 'default' (pid {os.getpid()})" in said
        assert shell.records("drives")[0]["state"] == "not mounted"
    shell.done("cloud", "list")
    # What it wrote into the lock file is no trace of a mount, and the last mountpoint is still known.
    assert "cuckoo-mount /mnt/x" in shell.refused(1, "status")


def test_a_dead_cloud_can_be_removed(shell: Shell, base: Path, paths: DrivePaths) -> None:
    empty_drive(paths)
    for name in "ab":
        (base / name).mkdir()
        shell.done("cloud", "add", name, base / name)
    (base / "a").rename(base / "gone")
    assert shell("cloud", "test", "a") == 1
    said = shell.done("cloud", "remove", "a", "--dry-run")
    assert "0 packs lie on 'a', none of them nowhere else.  Nothing was changed." in said
    assert list(clouds_in_file(paths)) == ["a", "b"]
    shell.done("cloud", "remove", "a", "--lost", "--yes")
    assert list(clouds_in_file(paths)) == ["b"]


def test_requests_per_second(shell: Shell, folder: Path, paths: DrivePaths) -> None:
    empty_drive(paths)
    said = shell.refused(2, "cloud", "add", "usb", folder, "--requests-per-second", "many")
    assert "requests per second are a number above 0" in said
    shell.done("cloud", "add", "usb", folder, "--requests-per-second", "50")
    assert clouds_in_file(paths)["usb"].options == (("limit.requests", "50"),)
    (listed,) = shell.records("cloud", "list")
    assert listed["requests_per_second"] == 50.0
    shell.done("cloud", "set", "usb", "--requests-per-second", "none")
    assert clouds_in_file(paths)["usb"].options == ()

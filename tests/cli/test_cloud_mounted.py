"""`cuckoo cloud` and `gc` on a mounted drive: its daemon does the work, at once and with the values it is sent."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from cuckoo_mount.config import create_empty_drive, read_config, write_config
from cuckoo_mount.testing.servers import S3Server, s3_server
from tests.mount.mounting import Mount, MountError

pytestmark = [pytest.mark.mount, pytest.mark.slow]


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """A drive, not yet mounted."""
    drive = Mount(tmp_path / "drive")
    try:
        yield drive
        drive.finish()
    finally:
        drive.clear_away()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[S3Server]:
    with s3_server("rclone", tmp_path / "rclone") as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "usb").mkdir()
    return tmp_path / "usb"


def clouds(mount: Mount) -> dict[str, dict[str, Any]]:
    """Return what `cuckoo cloud list --json` says, by name."""
    return {cloud["name"]: cloud for cloud in json.loads(mount.cuckoo("cloud", "list", "--json").stdout)}


def refusal(mount: Mount, status: int, *arguments: str | Path) -> str:
    """Run a command that has to fail; return what it says."""
    done = mount.cuckoo(*arguments, check=False)
    said = done.stderr.decode()
    assert done.returncode == status, said
    assert said.count("\n") == 1, said
    return said


def test_clouds_come_and_go_while_files_are_written(mount: Mount, folder: Path) -> None:
    mount.start()
    (mount.path / "first").write_bytes(os.urandom(300_000))
    mount.sync()
    assert b"Cloud 'usb' added" in mount.cuckoo("cloud", "add", "usb", folder, "--capacity", "1GB").stdout
    assert clouds(mount)["usb"]["state"] == "ok"
    assert b" ms\n" in mount.cuckoo("cloud", "test", "usb").stdout
    mount.cuckoo("cloud", "set", "local", "--read-only")
    (mount.path / "second").write_bytes(os.urandom(300_000))
    mount.sync()
    assert {name: cloud["packs"] for name, cloud in clouds(mount).items()} == {"local": 1, "usb": 1}
    assert "lie nowhere else" in refusal(mount, 2, "cloud", "remove", "usb")

    (mount.path / "second").unlink()
    assert json.loads(mount.cuckoo("gc", "--keep", "1", "--json").stdout)["packs_deleted"] == 1
    assert b"Cloud 'usb' removed" in mount.cuckoo("cloud", "remove", "usb").stdout
    config = read_config(mount.paths)
    assert config is not None
    # What the daemon writes leaves what belongs to this machine.
    assert config.mountpoint == mount.path
    assert [cloud.name for cloud in config.clouds] == ["local"]


def test_mistakes_on_a_mounted_drive(mount: Mount, folder: Path) -> None:
    mount.start()
    (mount.path / "sub").mkdir()
    said = refusal(mount, 2, "cloud", "add", "inside", mount.path / "sub")
    assert f"inside the mountpoint {mount.path} of drive 'default'" in said
    (folder / "link").symlink_to(mount.path / "sub")
    assert "inside the mountpoint" in refusal(mount, 2, "cloud", "add", "inside", folder / "link")
    assert "the same place is already cloud 'local'" in refusal(mount, 2, "cloud", "add", "again", mount.cloud)
    (folder / "way").symlink_to(mount.cloud)
    assert "cloud 'local'" in refusal(mount, 2, "cloud", "add", "again", folder / "way")
    assert list(clouds(mount)) == ["local"]


def test_secrets_reach_the_daemon_and_nothing_else(
    mount: Mount, server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    mount.start()
    specs = ["--secret", "user=env:S3_USER", "--secret", "password=env:S3_PASSWORD"]
    monkeypatch.setenv("S3_USER", server.access_key)
    monkeypatch.setenv("S3_PASSWORD", "wrong" * 8)
    assert "check the secret password" in refusal(mount, 1, "cloud", "add", "off", server.url("a"), *specs)
    # The daemon was started without these variables: it gets the values from the command.
    monkeypatch.setenv("S3_PASSWORD", server.secret_key)
    mount.cuckoo("cloud", "add", "off", server.url("a"), *specs)
    assert clouds(mount)["off"]["state"] == "ok"
    (mount.path / "file").write_bytes(os.urandom(300_000))
    mount.sync()
    files = [path for path in mount.folder.rglob("*") if path.is_file() and mount.path not in path.parents]
    assert not any(server.secret_key.encode() in path.read_bytes() for path in files)
    mount.umount()
    for name in ("S3_USER", "S3_PASSWORD"):
        monkeypatch.delenv(name)
    mount.start()
    off = clouds(mount)["off"]
    assert off["state"] != "ok"
    assert "the variable S3_PASSWORD is not set" in off["last_error"]


def test_a_drive_without_clouds_is_not_mounted(mount: Mount, folder: Path) -> None:
    create_empty_drive(mount.paths, redundancy="none", pack_size_bytes=1 << 20, encrypted=True, ask=False)
    with pytest.raises(MountError, match="drive 'default' has no clouds; add one: cuckoo cloud add NAME URL"):
        mount.start()
    mount.clear_away()
    mount.cuckoo("cloud", "add", "usb", folder)
    mount.start()
    (mount.path / "file").write_bytes(os.urandom(300_000))
    mount.sync()
    assert clouds(mount)["usb"]["packs"] == 1


def test_what_was_edited_meanwhile_is_kept(mount: Mount, folder: Path) -> None:
    mount.start()
    config = read_config(mount.paths)
    assert config is not None
    write_config(evolve(config, deadline_s=7.0), mount.paths)
    mount.cuckoo("cloud", "add", "usb", folder)
    config = read_config(mount.paths)
    assert config is not None
    assert (config.deadline_s, len(config.clouds)) == (7.0, 2)

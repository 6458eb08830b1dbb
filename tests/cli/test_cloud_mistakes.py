"""Mistakes with clouds that are folders, or nothing at all: one line that says what to do, and nothing has changed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import evolve

from cuckoo_mount.cli import places
from cuckoo_mount.cli.mounts import CuckooMount
from cuckoo_mount.config import CloudConfig, DriveConfig, DrivePaths, drive_paths, write_config
from tests.cli.commanding import Shell, clouds_in_file, empty_drive


@pytest.fixture
def drive(base: Path, paths: DrivePaths) -> Iterator[DriveConfig]:
    """A drive with the cloud `usb`, which must look the same afterwards; beside it the folder `free`."""
    for name in ("usb", "free", "mnt", "mnt/sub"):
        (base / name).mkdir()
    (base / "file").touch()
    (base / "link").symlink_to(base / "mnt" / "sub")
    cloud = CloudConfig(name="usb", url=str(base / "usb"), cloud_id=bytes(16))
    config = evolve(empty_drive(paths), clouds=(cloud,), mountpoint=base / "mnt")
    write_config(config, paths)
    before = paths.config_file.read_bytes()
    yield config
    assert paths.config_file.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        pytest.param(["s4://bucket"], "s4:// is not known; known: a path,", id="scheme"),
        pytest.param(["osf:///x"], "did you mean osfs://?", id="scheme-misspelt"),
        pytest.param(["dropbox://x"], "a Dropbox has no host; write dropbox:///folder", id="no-host"),
        pytest.param(["dropbox:///x"], "a login needs the key of an app; make one at www.dropbox.com", id="no-app"),
        pytest.param(["zip:///x.zip"], "zip:// cannot be a cloud:", id="scheme-refused"),
        pytest.param([""], "'' cannot be the place of a cloud", id="empty"),
        pytest.param(["{base}/\udcff"], "cannot be the place of a cloud", id="no-utf-8"),
        pytest.param(["osfs://sub"], "is a relative path", id="relative"),
        pytest.param(["{base}/absent"], "does not exist; make it with: mkdir -p {base}/absent", id="absent"),
        pytest.param(["{base}/file"], "is no folder", id="file"),
        pytest.param(["{base}/usb"], "the same place is already cloud 'usb'", id="same-url"),
        pytest.param(["{base}/mnt"], "inside the mountpoint {base}/mnt of drive 'default'", id="mountpoint"),
        pytest.param(["{base}/mnt/sub"], "inside the mountpoint {base}/mnt of drive 'default'", id="in-mountpoint"),
        pytest.param(["{base}/link"], "inside the mountpoint {base}/mnt of drive 'default'", id="link-into-it"),
        pytest.param(["osfs://{base}/mnt/sub"], "inside the mountpoint", id="in-mountpoint-url"),
        pytest.param(["{base}"], "mountpoint {base}/mnt lies inside {base}", id="around-mountpoint"),
        pytest.param(["{base}/state/cuckoo/default"], "own folder {base}/state/cuckoo", id="own-state"),
        pytest.param(["{base}/config/cuckoo"], "own folder {base}/config/cuckoo", id="own-config"),
        pytest.param(["{base}/cache/cuckoo/default"], "own folder {base}/cache/cuckoo", id="own-cache"),
        pytest.param(["{base}/state"], "own folder {base}/state/cuckoo", id="around-own-state"),
        pytest.param(["{base}/data"], "own folder {base}/data/cuckoo", id="around-own-data"),
        pytest.param(["{base}/free", "--capacity", "lots"], "'lots' is no size; write for example", id="capacity"),
        pytest.param(["{base}/free", "--reserve", "-1"], "'-1' is no size", id="reserve"),
        pytest.param(["{base}/free", "--option", "color"], "--option is written K=V", id="option"),
        pytest.param(["{base}/free", "--option", "color=red"], "has no option 'color'; leave it out", id="unknown"),
        pytest.param(["{base}/free", "--option", "expect.cloud=0"], "set by cuckoo-mount itself", id="own-option"),
        pytest.param(["{base}/free", "--secret", "password=hush"], "password=prompt", id="secret"),
        pytest.param(["{base}/free", "--secret", "pin=prompt"], "pin=prompt needs a terminal", id="prompt"),
        pytest.param(["faulty+osfs://{base}/free"], "only tests", id="faulty"),
    ],
)
@pytest.mark.slow
def test_what_was_typed_is_wrong(arguments: list[str], says: str, base: Path, drive: DriveConfig, shell: Shell) -> None:
    given = [argument.format(base=base) for argument in arguments]
    said = shell.refused(2, "cloud", "add", "new", *given)
    assert says.format(base=base) in said
    assert "hush" not in said


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["add", "usb", "{base}/free"], "has a cloud 'usb' already; choose another name, or change that one:"),
        (["add", "my cloud", "{base}/free"], "'my cloud' cannot name a cloud"),
        (["add", "../x", "{base}/free"], "'../x' cannot name a cloud"),
        (["test", "usc"], "drive 'default' has no cloud 'usc'; its clouds: usb"),
        (["remove", "usc"], "has no cloud 'usc'"),
        (["set", "usc", "--capacity", "1GB"], "has no cloud 'usc'"),
        (["set", "usb"], "nothing of cloud 'usb' would change"),
        (["set", "usb", "--capacity", "none"], "nothing of cloud 'usb' would change"),
        (["set", "usb", "--capacity", "1 GBit"], "is no size"),
        (["set", "usb", "--url", "{base}/mnt"], "inside the mountpoint"),
        (["set", "usb", "--no-new", "--capacity", "1 GBit"], "is no size"),
        (["login", "usb"], "has no login in a browser; its secrets are changed with: cuckoo cloud set usb --secret"),
        (["lst"], "did you mean list?"),
    ],
)
def test_what_was_asked_for_is_wrong(
    arguments: list[str], says: str, base: Path, drive: DriveConfig, shell: Shell
) -> None:
    status = shell("cloud", *(argument.format(base=base) for argument in arguments))
    assert status == 2
    assert shell.out == ""
    assert says in shell.err
    assert 1 <= shell.err.count("\n") <= 2


@pytest.mark.slow
def test_the_same_place_by_another_way_is_the_same_place(base: Path, paths: DrivePaths, shell: Shell) -> None:
    empty_drive(paths)
    (base / "usb").mkdir()
    (base / "way").symlink_to(base / "usb")
    shell.done("cloud", "add", "usb", base / "usb")
    for other in (f"osfs://{base}/usb", base / "way", f"{base}/free/../usb"):
        assert "usb" in shell.refused(2, "cloud", "add", "again", other)
    assert list(clouds_in_file(paths)) == ["usb"]


def test_a_mount_of_another_drive_is_no_place(
    base: Path, drive: DriveConfig, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = [CuckooMount("photos", base / "free")]
    monkeypatch.setattr(places, "cuckoo_mounts", lambda: mounts)
    said = shell.refused(2, "cloud", "add", "new", base / "free")
    assert f"inside the mountpoint {base}/free of drive 'photos'" in said


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_folder_of_somebody_else_is_no_place(drive: DriveConfig, shell: Shell) -> None:
    assert "you may not write to /usr" in shell.refused(2, "cloud", "add", "new", "/usr")


@pytest.mark.parametrize("arguments", [["add", "a", "/"], ["list"], ["test", "a"], ["set", "a"], ["remove", "a"]])
def test_no_drive(arguments: list[str], shell: Shell) -> None:
    said = shell.refused(2, "cloud", *arguments)
    assert "there is no drive 'default' here.  `cuckoo-mount MOUNTPOINT` makes one" in said
    assert "`cuckoo init`" in said
    said = shell.refused(2, "cloud", *arguments, "--drive", "photos")
    assert "`cuckoo init --drive photos`" in said
    assert not drive_paths("photos").lock.exists()

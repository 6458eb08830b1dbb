"""What a folder as a cloud does beyond the suite: leftovers, replaced roots, errors of the operating system."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cuckoo_mount.clouds.base import CloudSettings
from cuckoo_mount.clouds.osfs import LEFTOVER_AGE_S, FolderCloud
from cuckoo_mount.errors import CloudFull, CloudMissing, CloudRefused, CloudUnavailable

OpenFolder = Callable[[], FolderCloud]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "a $HOME @ 100%41 root!"  # nothing in a path has a meaning of its own
    root.mkdir()
    return root


@pytest.fixture
def open_folder(root: Path) -> OpenFolder:
    return lambda: FolderCloud(CloudSettings(name="usb", url=str(root)), str(root))


def leftover(folder: Path, *, age_s: float, name: str = "~put-0123456789abcdef") -> Path:
    path = folder / name
    path.write_bytes(b"half")
    then = time.time() - age_s
    os.utime(path, (then, then))
    return path


def test_objects_are_plain_files_below_the_root(root: Path, open_folder: OpenFolder) -> None:
    open_folder().put("cuckoo/d/drive.json", b"{}")
    assert (root / "cuckoo/d/drive.json").read_bytes() == b"{}"
    assert [path.name for path in (root / "cuckoo/d").iterdir()] == ["drive.json"]


@pytest.mark.parametrize("trigger", ["put", "list"])
def test_only_our_old_leftovers_are_removed(root: Path, open_folder: OpenFolder, trigger: str) -> None:
    folder = root / "cuckoo/packs"
    folder.mkdir(parents=True)
    old = leftover(folder, age_s=LEFTOVER_AGE_S + 60)
    young = leftover(folder, age_s=LEFTOVER_AGE_S - 60, name="~put-00000000000000ff")
    foreign = [
        leftover(folder, age_s=1e6, name=name) for name in ("~put-xyz", "~put-0123456789abcdef0", "Notes~", ".DS_Store")
    ]
    cloud = open_folder()
    if trigger == "put":
        cloud.put("cuckoo/packs/object", b"x")
    else:
        assert list(cloud.list("cuckoo/")) == []
    assert not old.exists()
    assert young.exists()
    assert all(path.exists() for path in foreign)


def test_what_cannot_be_an_object_is_not_listed(root: Path, open_folder: OpenFolder) -> None:
    cloud = open_folder()
    cloud.put("cuckoo/object", b"x")
    (root / "cuckoo/Photo.JPG").write_bytes(b"theirs")
    (root / "cuckoo/link").symlink_to("/etc/passwd")
    (root / "Lost+Found").mkdir()
    (root / "Lost+Found/file").write_bytes(b"theirs")
    assert [info.name for info in cloud.list("")] == ["cuckoo/object"]


def test_a_killed_put_leaves_no_object(root: Path) -> None:
    """The write is cut by the kernel: a file size limit kills the process in the middle."""
    program = (
        "import resource, signal, sys\n"
        "from cuckoo_mount.clouds.base import CloudSettings\n"
        "from cuckoo_mount.clouds.osfs import FolderCloud\n"
        "cloud = FolderCloud(CloudSettings(name='usb', url=sys.argv[1]), sys.argv[1])\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_DFL)\n"
        "resource.setrlimit(resource.RLIMIT_CORE, (0, 0))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
        "cloud.put('cuckoo/object', bytes(1 << 20))\n"
    )
    ended = subprocess.run([sys.executable, "-c", program, str(root)], check=False)
    assert ended.returncode < 0, "nothing was cut"
    cloud = FolderCloud(CloudSettings(name="usb", url=str(root)), str(root))
    assert len(list((root / "cuckoo").iterdir())) == 1, "nothing was at risk"
    assert list(cloud.list("")) == []
    with pytest.raises(CloudMissing):
        cloud.get("cuckoo/object")


def test_a_put_without_room_is_full_and_leaves_nothing(root: Path, open_folder: OpenFolder) -> None:
    cloud = open_folder()
    cloud.put("cuckoo/object", b"whole")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
    try:
        with pytest.raises(CloudFull) as caught:
            cloud.put("cuckoo/object", bytes(1 << 20))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (caught.value.cloud, caught.value.name) == ("usb", "cuckoo/object")
    assert cloud.get("cuckoo/object") == b"whole"
    assert [path.name for path in (root / "cuckoo").iterdir()] == ["object"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(root: Path, open_folder: OpenFolder) -> None:
    cloud = open_folder()
    root.chmod(0o500)
    try:
        with pytest.raises(CloudRefused):
            cloud.put("cuckoo/object", b"x")
    finally:
        root.chmod(0o700)


def test_no_folder_at_the_root_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for name in ("absent", "file"):
        with pytest.raises(CloudUnavailable, match="is not there; mount the disk"):
            FolderCloud(CloudSettings(name="usb", url=""), str(tmp_path / name))


def test_an_unmounted_disk_is_unavailable_and_gets_nothing(root: Path, open_folder: OpenFolder) -> None:
    cloud = open_folder()
    cloud.put("cuckoo/object", b"x")
    disk = root.rename(root.with_name("disk"))
    root.mkdir()  # the empty mountpoint
    calls: list[Callable[[], object]] = [
        lambda: cloud.get("cuckoo/object"),
        lambda: cloud.put("cuckoo/object", b"x"),
        lambda: cloud.put("cuckoo/new/object", b"x"),
        lambda: cloud.delete("cuckoo/object"),
        lambda: list(cloud.list("cuckoo/")),
    ]
    for call in calls:
        with pytest.raises(CloudUnavailable, match="another folder stands"):
            call()
    assert list(root.iterdir()) == []
    root.rmdir()
    disk.rename(root)
    assert cloud.get("cuckoo/object") == b"x"
    cloud.put("cuckoo/new/object", b"y")


def test_a_disk_mounted_again_under_another_number_is_taken(root: Path, open_folder: OpenFolder) -> None:
    cloud = open_folder()
    cloud.put("cuckoo/object", b"x")
    root.rename(root.with_name("old"))
    (root / "cuckoo").mkdir(parents=True)
    (root / "cuckoo/other").write_bytes(b"y")
    with pytest.raises(CloudMissing):
        cloud.get("cuckoo/object")
    assert cloud.get("cuckoo/other") == b"y"


def test_a_folder_removed_meanwhile_is_made_again(root: Path, open_folder: OpenFolder) -> None:
    cloud = open_folder()
    cloud.put("cuckoo/packs/one", b"x")
    (root / "cuckoo/packs/one").unlink()
    (root / "cuckoo/packs").rmdir()
    cloud.put("cuckoo/packs/two", b"y")
    assert cloud.get("cuckoo/packs/two") == b"y"


def test_a_file_in_the_place_of_a_folder_is_an_error_of_the_cloud(root: Path, open_folder: OpenFolder) -> None:
    cloud = open_folder()
    (root / "cuckoo").write_bytes(b"theirs")
    with pytest.raises(CloudUnavailable):
        cloud.put("cuckoo/object", b"x")
    with pytest.raises(CloudMissing):
        cloud.get("cuckoo/object")
    assert (root / "cuckoo").read_bytes() == b"theirs"

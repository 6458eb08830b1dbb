"""Mount options: what is shown, what is stored, and what is refused."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from cuckoo_mount.cli.mounts import mount_at
from cuckoo_mount.errors import UsageError
from cuckoo_mount.fuse.options import MountOptions, parse_mount_options
from tests.mount.mounting import Mount
from tests.mount.pagecache import forget_pages

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
mounts = pytest.mark.mount


def test_options_are_parsed() -> None:
    found = parse_mount_options(["ro,uid=1000", "gid=0,umask=027,noxattr,x-systemd.automount,noauto, noatime", "rw"])
    assert found == MountOptions(
        kernel=frozenset({"ro", "noatime"}), uid=1000, gid=0, umask=0o027, xattrs=False, pushing=True
    )
    assert found.read_only
    assert not found.access_times
    assert not found.acls
    assert parse_mount_options([]) == MountOptions()


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("nonsense", "unknown mount option 'nonsense'; known are"),
        ("ro=1", "unknown mount option 'ro=1'"),
        ("uid=me", "-o uid=1000, a number"),
        ("uid=-1", "-o uid=1000, a number"),
        ("gid=4294967295", "-o gid=1000, a number"),
        ("umask=8", "an octal number"),
        ("umask=1000", "an octal number"),
        ("umask=", "an octal number"),
        ("allow_other,allow_root", "leave allow_root out"),
    ],
)
def test_wrong_options_are_refused(option: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        parse_mount_options([option])


@mounts
@needs_root
def test_owner_and_mode_are_shown_otherwise_and_stored_as_they_are(mount: Mount) -> None:
    mount.start()
    (mount.path / "file").write_bytes(b"x")
    os.chown(mount.path / "file", 10, 20)
    (mount.path / "file").chmod(0o640)
    (mount.path / "folder").mkdir(mode=0o700)
    (mount.path / "link").symlink_to("file")
    mount.umount()
    mount.start("-o", "uid=123,gid=456,umask=027")
    for name, kind in (("file", stat.S_IFREG), ("folder", stat.S_IFDIR)):
        found = (mount.path / name).stat()
        assert (found.st_uid, found.st_gid, found.st_mode) == (123, 456, kind | 0o750)
    assert (mount.path / "link").lstat().st_mode == stat.S_IFLNK | 0o777
    listed = {entry.name: entry.stat().st_uid for entry in os.scandir(mount.path)}
    assert set(listed.values()) == {123}
    (mount.path / "new").write_bytes(b"y")
    assert (mount.path / "new").stat().st_uid == 123
    mount.umount()
    mount.start()
    found = (mount.path / "file").stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (10, 20, 0o640)
    assert (mount.path / "new").stat().st_uid == 0


@mounts
def test_noxattr(mount: Mount) -> None:
    mount.start()
    path = mount.path / "file"
    path.write_bytes(b"x")
    os.setxattr(path, "user.a", b"kept")
    mount.umount()
    mount.start("-o", "noxattr")
    for call in (
        lambda: os.getxattr(path, "user.a"),
        lambda: os.setxattr(path, "user.a", b"new"),
        lambda: os.removexattr(path, "user.a"),
        lambda: os.listxattr(path),
    ):
        with pytest.raises(OSError, match="not supported") as caught:
            call()
        assert caught.value.errno == errno.EOPNOTSUPP
    path.write_bytes(b"more")
    asked = mount.upcalls()
    assert (asked["setxattr"], asked["removexattr"]) == (1, 1)
    mount.umount()
    mount.start()
    assert os.getxattr(path, "user.a") == b"kept"


@mounts
@pytest.mark.parametrize("option", ["noatime", "relatime"])
def test_reading_moves_the_atime_unless_told_otherwise(mount: Mount, option: str) -> None:
    mount.start("-o", option)
    path = mount.path / "file"
    path.write_bytes(b"x")
    os.utime(path, ns=(10**18, 2 * 10**18))
    forget_pages(path)  # what the kernel answers by itself moves no atime
    assert path.read_bytes() == b"x"
    mount.umount()
    mount.start()
    assert (path.stat().st_atime_ns == 10**18) == (option == "noatime")


@mounts
def test_the_table_of_mounts_names_drive_and_kind(mount: Mount) -> None:
    mount.start("-o", "ro")
    found = mount_at(mount.path)
    assert found is not None
    line = next(line for line in Path("/proc/self/mounts").read_text().splitlines() if f" {mount.path} " in line)
    source, _, kind, flags, *_ = line.split()
    assert (source, kind) == (f"cuckoo:{mount.drive}", "fuse.cuckoo")
    assert "ro" in flags.split(",")
    with pytest.raises(OSError, match="Read-only") as caught:
        (mount.path / "file").write_bytes(b"x")
    assert caught.value.errno == errno.EROFS

"""What POSIX and Linux promise to programs, asked of a mount: cases by name, then random calls against a local folder.

One drive serves the whole module, each test has a folder of its own; the tests that remount do it for all.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import mmap
import os
import random
import socket
import stat
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import pytest
from attrs import define, field, frozen

from tests.mount.mounting import Mount, mounted

pytestmark = [pytest.mark.mount, pytest.mark.slow, pytest.mark.timeout(240)]

CHUNK: Final = 1 << 20
NOREPLACE: Final = 1
EXCHANGE: Final = 2
NOBODY: Final = 65534
OLD_NS: Final = 10**18
"""Times that tests set lie before this (2001-09-09), those that "now" sets after it."""
_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_AT_FDCWD: Final = -100


def renameat2(old: bytes, new: bytes, flags: int) -> None:
    if _LIBC.renameat2(_AT_FDCWD, old, _AT_FDCWD, new, flags) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


START_OPTIONS: Final = ("-o", "allow_other") if os.geteuid() == 0 else ()


@pytest.fixture(scope="module")
def drive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """One mount for all tests of this module, open to other users: some tests are somebody else."""
    with mounted(tmp_path_factory.mktemp("posix") / "drive", *START_OPTIONS, deadline_s=600) as found:
        yield found


def remount(drive: Mount) -> None:
    drive.umount(wait=False)
    drive.start(*START_OPTIONS)


@pytest.fixture
def here(drive: Mount, request: pytest.FixtureRequest) -> Path:
    """A folder for the test, on the mount; the drive is mounted anew if the test before has lost it."""
    if not drive.is_running:
        drive.clear_away()
        drive.start(*START_OPTIONS)
    folder = drive.path / hashlib.sha256(request.node.name.encode()).hexdigest()[:16]
    folder.mkdir()
    return folder


def refused(call: Callable[[], object]) -> int:
    with pytest.raises(OSError) as caught:  # noqa: PT011  the errno is compared by who calls
        call()
    assert caught.value.errno is not None
    return caught.value.errno


def as_nobody(folder: Path, *command: str) -> subprocess.CompletedProcess[bytes]:
    """Run a command in `folder` as somebody without rights (the folder is entered first, as root)."""
    return subprocess.run(
        command, cwd=folder, user=NOBODY, group=NOBODY, extra_groups=[], capture_output=True, timeout=60, check=False
    )


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user, so it has to start as root")


# -- names --


def test_names_of_255_bytes_with_newlines_and_invalid_utf_8(drive: Mount, here: Path) -> None:
    folder = os.fsencode(here)
    names = {b"\xff" * 255, b"\n" * 255, b"a\nb", b"\xc3\x28", b"\xed\xa0\x80", b"\x01\x7f", b"-rf", b"'\"$ *", b"\\"}
    names |= {"ä".encode(), "a\u0308".encode(), b"X", b"x", b"..."}
    for name in names:
        fd = os.open(folder + b"/" + name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        os.write(fd, name)
        os.close(fd)
    for after_remount in (False, True):
        if after_remount:
            remount(drive)
        assert set(os.listdir(folder)) == names
        for name in names:
            with open(folder + b"/" + name, "rb") as file:
                assert file.read() == name


def test_256_bytes_are_too_long(here: Path) -> None:
    name = str(here / ("n" * 256))
    assert refused(lambda: Path(name).touch()) == errno.ENAMETOOLONG
    assert refused(lambda: os.mkdir(name)) == errno.ENAMETOOLONG
    assert refused(lambda: os.stat(name)) == errno.ENAMETOOLONG
    (here / "short").touch()
    assert refused(lambda: os.rename(here / "short", name)) == errno.ENAMETOOLONG
    assert refused(lambda: os.link(here / "short", name)) == errno.ENAMETOOLONG
    assert refused(lambda: os.symlink("x", name)) == errno.ENAMETOOLONG
    assert os.listdir(here) == ["short"]


def test_statfs_tells_the_longest_name_and_some_room(here: Path) -> None:
    found = os.statvfs(here)
    assert found.f_namemax == 255
    assert 0 < found.f_bavail <= found.f_blocks
    assert found.f_ffree > 0


def test_a_symbolic_link_of_4095_bytes(drive: Mount, here: Path) -> None:
    target = "t/" * 2047 + "t"
    os.symlink(target, here / "long")
    assert refused(lambda: os.symlink(target + "t", here / "longer")) == errno.ENAMETOOLONG
    assert os.lstat(here / "long").st_size == 4095
    remount(drive)
    assert os.readlink(here / "long") == target
    assert refused(lambda: os.stat(here / "long")) == errno.ENOENT


def test_the_errno_of_the_usual_mistakes(here: Path) -> None:
    folder, file = here / "folder", here / "file"
    (folder / "child").mkdir(parents=True)
    file.touch()
    assert refused(folder.rmdir) == errno.ENOTEMPTY
    assert refused(lambda: os.rename(here / "folder" / "child", here / "nothing" / "x")) == errno.ENOENT
    assert refused(lambda: os.rename(file, folder)) == errno.EISDIR
    assert refused(lambda: os.rename(folder, file)) == errno.ENOTDIR
    assert refused(lambda: os.rename(folder, folder / "child" / "x")) == errno.EINVAL
    assert refused(lambda: os.unlink(folder)) == errno.EISDIR
    assert refused(file.rmdir) == errno.ENOTDIR
    assert refused(lambda: os.stat(file / "x")) == errno.ENOTDIR
    assert refused(lambda: folder.open("wb")) == errno.EISDIR
    assert refused(lambda: os.open(file, os.O_CREAT | os.O_EXCL)) == errno.EEXIST
    assert refused(lambda: os.open(file, os.O_DIRECTORY)) == errno.ENOTDIR
    assert refused(lambda: os.link(folder, here / "hard")) == errno.EPERM
    assert refused(lambda: os.readlink(file)) == errno.EINVAL
    assert refused(lambda: os.getxattr(file, "user.none")) == errno.ENODATA
    assert refused(lambda: os.setxattr(file, "user.x", bytes(65537))) == errno.E2BIG
    assert refused(lambda: os.mkdir(folder)) == errno.EEXIST
    (here / "other" / "full").mkdir(parents=True)
    assert refused(lambda: os.rename(folder, here / "other")) == errno.ENOTEMPTY


# -- renames, links, directories --


def test_rename_noreplace_and_exchange(drive: Mount, here: Path) -> None:
    a, b, c = (os.fsencode(here / name) for name in "abc")
    Path(os.fsdecode(a)).write_bytes(b"A")
    os.mkdir(b)
    assert refused(lambda: renameat2(a, b, NOREPLACE)) == errno.EEXIST
    renameat2(a, c, NOREPLACE)
    assert sorted(os.listdir(here)) == ["b", "c"]
    before = os.stat(here).st_nlink
    renameat2(b, c, EXCHANGE)
    assert os.path.isdir(c)
    assert (here / "b").read_bytes() == b"A"
    assert refused(lambda: renameat2(a, c, EXCHANGE)) == errno.ENOENT
    assert refused(lambda: renameat2(b, c, NOREPLACE | EXCHANGE)) == errno.EINVAL
    assert os.stat(here).st_nlink == before
    os.mkdir(here / "d")
    renameat2(b, os.fsencode(here / "c" / "inner"), NOREPLACE)
    renameat2(os.fsencode(here / "c" / "inner"), os.fsencode(here / "d"), EXCHANGE)
    assert os.stat(here).st_nlink == before
    assert os.stat(here / "c").st_nlink == 3
    remount(drive)
    assert (here / "d").read_bytes() == b"A"
    assert (here / "c" / "inner").is_dir()


def test_links_of_directories_and_files(drive: Mount, here: Path) -> None:
    assert here.stat().st_nlink == 2
    for name in "abc":
        (here / name).mkdir()
    (here / "file").touch()
    os.link(here / "file", here / "a" / "hard")
    assert here.stat().st_nlink == 5
    os.rename(here / "a", here / "b" / "a")
    os.rmdir(here / "c")
    remount(drive)
    assert (here.stat().st_nlink, (here / "b").stat().st_nlink) == (3, 3)
    assert (here / "file").stat().st_nlink == 2
    assert (here / "file").samefile(here / "b" / "a" / "hard")
    (here / "file").unlink()
    assert (here / "b" / "a" / "hard").stat().st_nlink == 1


def test_a_directory_that_changes_while_it_is_read(here: Path) -> None:
    """An entry that stays is seen exactly once, and no name is seen twice."""
    stay = {f"stay{number:04}" for number in range(700)}
    for number in range(700):
        (here / f"go{number:04}").touch()
        (here / f"stay{number:04}").touch()
    seen: list[str] = []
    with os.scandir(here) as entries:
        for number, entry in enumerate(entries):
            seen.append(entry.name)
            if number < 700:
                (here / f"go{(number * 37) % 700:04}").unlink()
                (here / f"new{number:04}").touch()
    assert len(seen) == len(set(seen))
    assert {name for name in seen if name.startswith("stay")} == stay
    assert len(os.listdir(here)) == 1400


def test_rewinddir_shows_what_came_since(here: Path) -> None:
    for number in range(200):
        (here / f"f{number}").touch()
    fd = os.open(here, os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert len(os.listdir(fd)) == 200
        (here / "late").touch()
        (here / "f0").unlink()
        os.lseek(fd, 0, os.SEEK_SET)
        assert set(os.listdir(fd)) == {f"f{number}" for number in range(1, 200)} | {"late"}
    finally:
        os.close(fd)


@needs_root
def test_setgid_directories_and_sticky_ones(drive: Mount, here: Path) -> None:
    shared, sticky = here / "shared", here / "sticky"
    shared.mkdir()
    os.chown(shared, 0, NOBODY)
    shared.chmod(0o2777)
    sticky.mkdir()
    sticky.chmod(0o1777)
    (sticky / "roots").touch()
    assert as_nobody(shared, "sh", "-c", "touch file && mkdir below").returncode == 0
    (shared / "roots").touch()
    assert (shared / "roots").stat().st_gid == NOBODY
    assert stat.S_IMODE((shared / "below").stat().st_mode) & stat.S_ISGID
    assert as_nobody(sticky, "rm", "-f", "roots").returncode != 0
    assert as_nobody(sticky, "sh", "-c", "touch mine && mv mine mine2 && rm mine2").returncode == 0
    remount(drive)
    assert stat.S_IMODE(shared.stat().st_mode) == 0o2777
    assert stat.S_IMODE(sticky.stat().st_mode) == 0o1777


@needs_root
@pytest.mark.parametrize("how", ["printf x >> file", "truncate -s 0 file", "printf x > file", "chgrp NOGROUP file"])
def test_a_write_by_somebody_else_takes_the_set_id_bits(here: Path, how: str) -> None:
    file = here / "file"
    file.write_bytes(b"content")
    os.chown(file, NOBODY, NOBODY)
    file.chmod(0o6777)
    here.chmod(0o777)
    assert as_nobody(here, "sh", "-c", how.replace("NOGROUP", str(NOBODY))).returncode == 0
    fd = os.open(file, os.O_RDONLY)
    try:
        os.fsync(fd)
        # A late WRITE of the page cache tells the kernel of the new mode after it was answered.
        for _ in range(1000):
            if stat.S_IMODE(os.fstat(fd).st_mode) == 0o777:
                break
            os.fsync(fd)
        assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o777
    finally:
        os.close(fd)


@needs_root
def test_permissions_are_kept_by_the_kernel(here: Path) -> None:
    secret = here / "secret"
    secret.write_bytes(b"x")
    secret.chmod(0o600)
    assert as_nobody(here, "cat", "secret").returncode != 0
    assert as_nobody(here, "touch", "new").returncode != 0
    subprocess.run(["setfacl", "-m", f"u:{NOBODY}:r", secret], check=True, timeout=60)
    shown = as_nobody(here, "cat", "secret")
    assert (shown.returncode, shown.stdout, shown.stderr) == (0, b"x", b"")
    secret.chmod(0o600)  # now the mask
    assert as_nobody(here, "cat", "secret").returncode != 0


# -- ACLs, attributes, times --


def acl_of(path: Path) -> list[str]:
    return (
        subprocess.run(["getfacl", "-cnE", "--", path], check=True, capture_output=True, timeout=60)
        .stdout.decode()
        .split()
    )


def test_chmod_and_acl_say_the_same(drive: Mount, here: Path) -> None:
    file = here / "file"
    file.touch()
    file.chmod(0o640)
    assert os.listxattr(file) == []
    subprocess.run(["setfacl", "-m", "u:1234:rwx,g:77:r", file], check=True, timeout=60)
    assert stat.S_IMODE(file.stat().st_mode) == 0o670
    file.chmod(0o604)
    entries = ["user::rw-", "user:1234:rwx", "group::r--", "group:77:r--", "mask::---", "other::r--"]
    assert acl_of(file) == entries
    subprocess.run(["setfacl", "-m", "m::rw", file], check=True, timeout=60)
    assert stat.S_IMODE(file.stat().st_mode) == 0o664
    remount(drive)
    assert stat.S_IMODE(file.stat().st_mode) == 0o664
    assert acl_of(file) == [entry.replace("mask::---", "mask::rw-") for entry in entries]
    subprocess.run(["setfacl", "-b", file], check=True, timeout=60)
    assert acl_of(file) == ["user::rw-", "group::r--", "other::r--"]
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    assert "system.posix_acl_access" not in os.listxattr(file)


def test_a_default_acl_is_inherited(drive: Mount, here: Path) -> None:
    subprocess.run(["setfacl", "-d", "-m", "u::rwx,u:1234:rwx,g::rx,o::-", here], check=True, timeout=60)
    old = os.umask(0)
    try:
        os.close(os.open(here / "file", os.O_CREAT | os.O_WRONLY, 0o666))
        os.mkdir(here / "below", 0o777)
        os.mkfifo(here / "fifo", 0o644)
    finally:
        os.umask(old)
    remount(drive)
    assert stat.S_IMODE((here / "file").stat().st_mode) == 0o660
    assert acl_of(here / "file") == ["user::rw-", "user:1234:rwx", "group::r-x", "mask::rw-", "other::---"]
    assert stat.S_IMODE((here / "fifo").stat().st_mode) == 0o640
    default = [f"default:{entry}" for entry in acl_of(here / "below")[:5]]
    assert acl_of(here / "below")[5:] == default
    assert stat.S_IMODE((here / "below").stat().st_mode) == 0o770


def test_extended_attributes(drive: Mount, here: Path) -> None:
    file = here / "file"
    file.touch()
    values = {"user.empty": b"", "user.binary": bytes(range(256)), "user.big": b"x" * 65536, "user." + "n" * 250: b"1"}
    for name, value in values.items():
        os.setxattr(file, name, value)
    assert refused(lambda: os.setxattr(file, "user.empty", b"", os.XATTR_CREATE)) == errno.EEXIST
    assert refused(lambda: os.setxattr(file, "user.no", b"", os.XATTR_REPLACE)) == errno.ENODATA
    os.setxattr(file, "user.gone", b"x")
    os.removexattr(file, "user.gone")
    assert refused(lambda: os.removexattr(file, "user.gone")) == errno.ENODATA
    remount(drive)
    assert {name: os.getxattr(file, name) for name in os.listxattr(file)} == values


@pytest.mark.parametrize(
    "times", [(1, 2), (0, 0), (1_234_567_890_123_456_789, 987_654_321_987_654_321), (-5, -(10**18))]
)
def test_times_to_the_nanosecond(drive: Mount, here: Path, times: tuple[int, int]) -> None:
    (here / "file").write_bytes(b"x")
    (here / "folder").mkdir()
    os.symlink("x", here / "link")
    for name in ("file", "folder", "link"):
        os.utime(here / name, ns=times, follow_symlinks=False)
    if times == (1, 2):
        remount(drive)
    for name in ("file", "folder", "link"):
        found = os.lstat(here / name)
        assert (found.st_atime_ns, found.st_mtime_ns) == times


def test_a_write_moves_mtime_and_ctime_forward_only(drive: Mount, here: Path) -> None:
    file = here / "file"
    file.write_bytes(b"x")
    os.utime(file, ns=(OLD_NS, OLD_NS))
    with file.open("r+b") as opened:
        opened.write(b"yy")
        opened.flush()
        first = os.fstat(opened.fileno())
        os.fsync(opened.fileno())
        second = os.fstat(opened.fileno())
    assert OLD_NS < first.st_mtime_ns <= second.st_mtime_ns
    remount(drive)
    third = file.stat()
    assert (third.st_mtime_ns, third.st_size) == (second.st_mtime_ns, 2)
    assert third.st_ctime_ns >= first.st_ctime_ns


# -- content --


def test_more_than_a_hundred_different_chunks_come_back_in_order(drive: Mount, here: Path) -> None:
    """The first CuckooDrive sorted its parts by name: 0, 1, 10, 100, 101, 11, …."""
    count = 105
    with (here / "file").open("wb") as file:
        for index in range(count):
            file.write(struct.pack(">I", index) * (CHUNK // 4))
    remount(drive)
    drive.sync()
    assert drive.evict() >= count * CHUNK
    with (here / "file").open("rb") as file:
        for index in range(count):
            assert file.read(CHUNK) == struct.pack(">I", index) * (CHUNK // 4)
        assert file.read() == b""


def test_an_edit_that_keeps_the_size_is_noticed(drive: Mount, here: Path) -> None:
    """The first CuckooDrive compared sizes only: such an edit was never uploaded."""
    file = here / "file"
    data = random.Random(1).randbytes(3 * CHUNK)
    file.write_bytes(data)
    drive.sync()
    with file.open("r+b") as opened:
        opened.seek(CHUNK + 5)
        opened.write(b"edited")
    changed = data[: CHUNK + 5] + b"edited" + data[CHUNK + 11 :]
    drive.sync()
    remount(drive)
    drive.evict()
    assert file.read_bytes() == changed


def test_a_huge_sparse_file_costs_nothing(drive: Mount, here: Path) -> None:
    file = here / "file"
    size = 10**15
    with file.open("w+b") as opened:
        opened.truncate(size)
        opened.seek(size - 10)
        assert opened.read() == bytes(10)
    remount(drive)
    found = file.stat()
    assert (found.st_size, found.st_blocks) == (size, 0)
    with file.open("r+b") as opened:
        for offset in (0, size // 2 - 100, size - 100):
            opened.seek(offset)
            assert opened.read(100) == bytes(100)
        assert opened.read() == b""
        middle = 10**13
        opened.seek(middle)
        opened.write(b"middle")
        opened.truncate(middle + 3)
        opened.truncate(middle + 6)
    assert file.stat().st_blocks * 512 <= CHUNK
    drive.sync()
    drive.evict()
    drive.drop_caches()
    with file.open("r+b") as opened:
        opened.seek(middle - 3)
        assert opened.read() == b"\0\0\0mid\0\0\0"
        opened.truncate(0)
    assert file.read_bytes() == b""


def test_bytes_beyond_what_the_local_disk_can_address_are_refused_aloud(drive: Mount, here: Path) -> None:
    """A chunk lies at its own offset in the local file, and ext4 ends at 16 TiB: the program must be told."""
    file = here / "file"
    fd = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        os.write(fd, b"kept")
        os.fsync(fd)
        os.pwrite(fd, b"too far", (1 << 63) - 1 - 4096)
        assert refused(lambda: os.fsync(fd)) in (errno.EIO, errno.EFBIG)
        os.ftruncate(fd, 4)
        os.fsync(fd)
    finally:
        os.close(fd)
    try:
        drive.sync()
        drive.check()
        drive.evict()
        drive.drop_caches()
        assert file.read_bytes() == b"kept"
    finally:
        file.unlink()


def test_holes_read_as_zeros(drive: Mount, here: Path) -> None:
    file = here / "file"
    parts = {0: b"start", CHUNK - 3: b"over the edge", 5 * CHUNK + 100: b"far", 9 * CHUNK: b"end"}
    with file.open("wb") as opened:
        for offset, data in parts.items():
            opened.seek(offset)
            opened.write(data)
    expected = bytearray(9 * CHUNK + 3)
    for offset, data in parts.items():
        expected[offset : offset + len(data)] = data
    assert file.read_bytes() == expected
    drive.sync()
    remount(drive)
    drive.evict()
    assert file.read_bytes() == expected


def test_an_unlinked_file_stays_readable_and_writable(drive: Mount, here: Path) -> None:
    file = here / "file"
    with file.open("w+b") as opened:
        opened.write(b"before")
        opened.flush()
        file.unlink()
        assert os.listdir(here) == []
        opened.write(b" after")
        opened.flush()
        os.fsync(opened.fileno())
        drive.sync()
        drive.evict()
        drive.drop_caches()
        opened.seek(0)
        assert opened.read() == b"before after"
        assert os.fstat(opened.fileno()).st_nlink == 0
        os.fchmod(opened.fileno(), 0o600)
        os.ftruncate(opened.fileno(), 3)
        opened.seek(0)
        assert opened.read() == b"bef"
        file.write_bytes(b"another one")
    assert file.read_bytes() == b"another one"


def test_a_file_renamed_over_while_open(drive: Mount, here: Path) -> None:
    (here / "old").write_bytes(b"old")
    (here / "new").write_bytes(b"new")
    with (here / "old").open("r+b") as opened:
        os.rename(here / "new", here / "old")
        assert opened.read() == b"old"
        opened.write(b" more")
        opened.flush()
        os.fsync(opened.fileno())
        opened.seek(0)
        assert opened.read() == b"old more"
    remount(drive)
    assert (here / "old").read_bytes() == b"new"
    assert os.listdir(here) == ["old"]


def test_open_flags(here: Path) -> None:
    file = here / "file"
    file.write_bytes(b"0123456789")
    first, second = os.open(file, os.O_WRONLY | os.O_APPEND), os.open(file, os.O_RDWR | os.O_APPEND)
    try:
        os.write(first, b"a")
        os.write(second, b"b")
        os.write(first, b"c")
        # pwrite appends whatever its offset is (pwrite(2), BUGS): with O_APPEND, as on every Linux file system.
        os.pwrite(second, b"d", 0)
        assert os.pread(second, 100, 0) == b"0123456789abcd"
    finally:
        os.close(first)
        os.close(second)
    reading = os.open(file, os.O_RDONLY)
    os.close(os.open(file, os.O_WRONLY | os.O_TRUNC))
    try:
        assert os.read(reading, 100) == b""
        assert os.fstat(reading).st_size == 0
        assert refused(lambda: os.write(reading, b"x")) == errno.EBADF
    finally:
        os.close(reading)


def test_o_direct_and_the_page_cache_agree(here: Path) -> None:
    file = here / "file"
    size = 2 * CHUNK
    buffer = mmap.mmap(-1, size)
    buffer.write(b"d" * size)
    direct = os.open(file, os.O_RDWR | os.O_CREAT | os.O_DIRECT, 0o644)
    try:
        assert os.pwritev(direct, [buffer], 0) == size
        assert file.read_bytes() == b"d" * size
        with file.open("r+b") as opened:
            opened.seek(4096)
            opened.write(b"cached")
            opened.flush()
            assert os.preadv(direct, [buffer], 0) == size
        assert buffer[4090:4110] == b"d" * 6 + b"cached" + b"d" * 8
    finally:
        os.close(direct)
        buffer.close()


def test_a_shared_mapping_is_written_and_read(drive: Mount, here: Path) -> None:
    file = here / "file"
    size = CHUNK + 8192
    with file.open("w+b") as opened:
        opened.truncate(size)
        with mmap.mmap(opened.fileno(), size) as first, mmap.mmap(opened.fileno(), size) as second:
            first[CHUNK - 3 : CHUNK + 3] = b"mapped"
            assert second[CHUNK - 3 : CHUNK + 3] == b"mapped"
            assert os.pread(opened.fileno(), 6, CHUNK - 3) == b"mapped"
            os.pwrite(opened.fileno(), b"written", 0)
            assert second[:7] == b"written"
            first.flush()
            first[size - 1 :] = b"!"
    expected = b"written".ljust(CHUNK - 3, b"\0") + b"mapped" + bytes(size - CHUNK - 4) + b"!"
    assert file.read_bytes() == expected
    remount(drive)
    assert file.read_bytes() == expected


def test_nodes_of_every_kind(drive: Mount, here: Path) -> None:
    os.mkfifo(here / "fifo", 0o640)
    with socket.socket(socket.AF_UNIX) as bound:
        fd = os.open(here, os.O_RDONLY)
        bound.bind(f"/proc/self/fd/{fd}/socket")
        os.close(fd)
    kinds = {"fifo": stat.S_IFIFO, "socket": stat.S_IFSOCK}
    if os.geteuid() == 0:
        os.mknod(here / "block", stat.S_IFBLK | 0o600, os.makedev(7, 300))
        os.mknod(here / "character", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        os.mknod(here / "regular", stat.S_IFREG | 0o644)
        kinds |= {"block": stat.S_IFBLK, "character": stat.S_IFCHR, "regular": stat.S_IFREG}
    remount(drive)
    assert {name: stat.S_IFMT(os.lstat(here / name).st_mode) for name in os.listdir(here)} == kinds
    if os.geteuid() == 0:
        assert os.lstat(here / "block").st_rdev == os.makedev(7, 300)
    reader = os.open(here / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(here / "fifo", os.O_WRONLY)
    try:
        os.write(writer, b"through")
        assert os.read(reader, 10) == b"through"
    finally:
        os.close(reader)
        os.close(writer)


# -- random calls, on the mount and on a local folder --

FOLDERS: Final = (b"d", b"d/e", b"g")
NAMES: Final = (b"a", b"b", b"c", b"\xff\n", b"d", b"d/a", b"d/b", b"d/e", b"d/e/a", b"d/e/f", b"g", b"g/a", b"g/h")
EDGES: Final = (0, 1, 4095, 4096, 70_001, CHUNK - 1, CHUNK, CHUNK + 7, 3 * CHUNK - 5)
SIZES: Final = (1, 100, 4096, 70_000, CHUNK + 3)
ATTRIBUTES: Final = ("user.a", "user.b")
_Outcome = object


@frozen
class Step:
    """One call: its name, two paths, two numbers and a seed."""

    action: str
    first: bytes
    second: bytes
    a: int
    b: int
    seed: int


def random_steps(seed: int, count: int) -> list[Step]:
    dice = random.Random(seed)
    actions = [name for name, weight in WEIGHTS.items() for _ in range(weight)]
    return [
        Step(
            dice.choice(actions),
            dice.choice(NAMES),
            dice.choice(NAMES),
            dice.choice(EDGES),
            dice.choice(SIZES),
            dice.getrandbits(32),
        )
        for _ in range(count)
    ]


@define
class Side:
    """Plays steps in one folder.  Every action returns what a program would see; an OSError becomes its errno."""

    root: bytes
    handles: dict[int, int] = field(factory=dict)

    def play(self, step: Step) -> _Outcome:
        try:
            return getattr(self, step.action)(step)
        except OSError as error:
            return f"errno {errno.errorcode.get(error.errno or 0, error.errno)}"

    def path(self, name: bytes) -> bytes:
        return self.root + b"/" + name

    def data(self, step: Step) -> bytes:
        return random.Random(step.seed).randbytes(step.b)

    def open_handle(self, step: Step) -> _Outcome:
        """Keep a file open for later steps, whatever becomes of its name."""
        slot = step.seed % 3
        self.close_handle(step)
        flags = (os.O_RDONLY, os.O_RDWR, os.O_WRONLY, os.O_RDWR | os.O_APPEND)[step.seed // 3 % 4]
        flags |= (0, os.O_CREAT, os.O_CREAT, os.O_CREAT | os.O_EXCL, os.O_TRUNC, os.O_CREAT | os.O_TRUNC)[
            step.seed // 12 % 6
        ]
        self.handles[slot] = os.open(self.path(step.first), flags | os.O_NONBLOCK | os.O_NOFOLLOW, 0o666)
        return "opened"

    def close_handle(self, step: Step) -> _Outcome:
        fd = self.handles.pop(step.seed % 3, None)
        if fd is not None:
            os.close(fd)
        return fd is not None

    def close_all(self) -> None:
        for fd in self.handles.values():
            os.close(fd)
        self.handles.clear()

    def _handle(self, step: Step) -> int:
        fd = self.handles.get(step.seed % 3)
        if fd is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return fd

    def write_handle(self, step: Step) -> _Outcome:
        return os.pwrite(self._handle(step), self.data(step), step.a)

    def read_handle(self, step: Step) -> _Outcome:
        return os.pread(self._handle(step), step.b, step.a)

    def append_handle(self, step: Step) -> _Outcome:
        os.lseek(self._handle(step), 0, os.SEEK_END)
        return os.write(self._handle(step), self.data(step)[:1000])

    def truncate_handle(self, step: Step) -> None:
        os.ftruncate(self._handle(step), step.a)

    def sync_handle(self, step: Step) -> None:
        os.fsync(self._handle(step))

    def stat_handle(self, step: Step) -> _Outcome:
        return describe(os.fstat(self._handle(step)))

    def map_handle(self, step: Step) -> _Outcome:
        fd = self._handle(step)
        status = os.fstat(fd)
        size = status.st_size
        if not size or not stat.S_ISREG(status.st_mode):
            return "nothing to map"
        with mmap.mmap(fd, size) as mapped:
            start = step.a % size
            piece = self.data(step)[: size - start]
            mapped[start : start + len(piece)] = piece
            return hashlib.sha256(mapped).hexdigest()

    def write(self, step: Step) -> _Outcome:
        fd = os.open(self.path(step.first), os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK, 0o644)
        try:
            return os.pwrite(fd, self.data(step), step.a)
        finally:
            os.close(fd)

    def replace(self, step: Step) -> None:
        """As editors do: a new file, renamed over the old one."""
        fd = os.open(self.path(b"temporary"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o640)
        try:
            os.write(fd, self.data(step))
        finally:
            os.close(fd)
        try:
            os.rename(self.path(b"temporary"), self.path(step.first))
        except OSError:
            os.unlink(self.path(b"temporary"))
            raise

    def read(self, step: Step) -> _Outcome:
        fd = os.open(self.path(step.first), os.O_RDONLY | os.O_NONBLOCK)
        try:
            return os.pread(fd, step.b, step.a)
        finally:
            os.close(fd)

    def truncate(self, step: Step) -> None:
        if os.stat(self.path(step.first)).st_size != step.a:  # else POSIX leaves mtime alone, and ext4 does not
            os.truncate(self.path(step.first), step.a)

    def preallocate(self, step: Step) -> None:
        fd = os.open(self.path(step.first), os.O_RDWR | os.O_NONBLOCK)
        try:
            os.posix_fallocate(fd, step.a % 10_000, 1 + step.b % 5000)
            # glibc's stand-in leaves blocks alone that have bytes; ext4 moves mtime in any case.
            os.utime(fd, ns=(1, 2))
        finally:
            os.close(fd)

    def make_directory(self, step: Step) -> None:
        os.mkdir(self.path(step.first), 0o777 if step.seed % 2 else 0o2750)

    def remove_directory(self, step: Step) -> None:
        os.rmdir(self.path(step.first))

    def unlink(self, step: Step) -> None:
        os.unlink(self.path(step.first))

    def rename(self, step: Step) -> None:
        renameat2(self.path(step.first), self.path(step.second), step.seed % 3)

    def link(self, step: Step) -> None:
        os.link(self.path(step.first), self.path(step.second), follow_symlinks=False)

    def symlink(self, step: Step) -> None:
        os.symlink(step.first, self.path(step.second))

    def readlink(self, step: Step) -> _Outcome:
        return os.readlink(self.path(step.first))

    def fifo(self, step: Step) -> None:
        os.mkfifo(self.path(step.first), 0o600)

    def chmod(self, step: Step) -> None:
        # Set-id bits of files go with a write on the mount, whoever writes; on ext4 root's writes keep them.
        keep = 0o7777 if os.path.isdir(self.path(step.first)) else 0o1777
        os.chmod(self.path(step.first), step.seed & keep)

    def chown(self, step: Step) -> None:
        # Somebody without rights may not give files away, and would not see the same errno for nodes of either side.
        if os.geteuid() != 0:
            return
        uid, gid = (-1, 0, 1000)[step.seed % 3], (-1, 0, 1000)[step.seed // 3 % 3]
        os.chown(self.path(step.first), uid, gid, follow_symlinks=bool(step.seed // 9 % 2))

    def utime(self, step: Step) -> None:
        times = (step.seed, step.seed * 7919 % OLD_NS)
        os.utime(self.path(step.first), ns=times, follow_symlinks=bool(step.seed % 2))

    def set_attribute(self, step: Step) -> None:
        name = ATTRIBUTES[step.seed % 2]
        os.setxattr(self.path(step.first), name, self.data(step)[: step.seed % 200], step.seed // 2 % 3)

    def get_attribute(self, step: Step) -> _Outcome:
        return os.getxattr(self.path(step.first), ATTRIBUTES[step.seed % 2])

    def remove_attribute(self, step: Step) -> None:
        os.removexattr(self.path(step.first), ATTRIBUTES[step.seed % 2])

    def look(self, step: Step) -> _Outcome:
        return describe(os.lstat(self.path(step.first)))

    def list(self, step: Step) -> _Outcome:
        return sorted(os.listdir(self.path(step.first)))

    def snapshot(self) -> dict[bytes, _Outcome]:
        """Everything a program can see of the tree, hard links included."""
        found: dict[bytes, _Outcome] = {}
        inodes: dict[int, bytes] = {}
        for folder, folders, files in os.walk(self.root):
            folders.sort()
            for name in sorted([*folders, *files]):
                path = os.path.join(folder, name)
                key = path[len(self.root) :]
                status = os.lstat(path)
                same = inodes.setdefault(status.st_ino, key)
                attributes = {
                    name: os.getxattr(path, name, follow_symlinks=False)
                    for name in os.listxattr(path, follow_symlinks=False)
                    if name.startswith("user.")
                }
                found[key] = (describe(status), attributes, same, _content(path, status))
        return found


def _content(path: bytes, status: os.stat_result) -> _Outcome:
    if stat.S_ISLNK(status.st_mode):
        return os.readlink(path)
    if not stat.S_ISREG(status.st_mode):
        return None
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def describe(status: os.stat_result) -> _Outcome:
    """What is compared of a node; a time that a test did not set is "now", wherever that was."""
    size = status.st_size if not stat.S_ISDIR(status.st_mode) else 0
    mtime = status.st_mtime_ns if status.st_mtime_ns < OLD_NS else "now"
    return oct(status.st_mode), status.st_nlink, status.st_uid, status.st_gid, status.st_rdev, size, mtime


WEIGHTS: Final = {
    "open_handle": 8,
    "close_handle": 2,
    "write_handle": 6,
    "read_handle": 4,
    "append_handle": 2,
    "truncate_handle": 3,
    "sync_handle": 1,
    "stat_handle": 2,
    "map_handle": 2,
    "write": 5,
    "replace": 2,
    "read": 3,
    "truncate": 3,
    "preallocate": 1,
    "make_directory": 5,
    "remove_directory": 2,
    "unlink": 3,
    "rename": 6,
    "link": 3,
    "symlink": 2,
    "readlink": 1,
    "fifo": 1,
    "chmod": 3,
    "chown": 2,
    "utime": 3,
    "set_attribute": 3,
    "get_attribute": 1,
    "remove_attribute": 1,
    "look": 3,
    "list": 2,
}


def disturb(drive: Mount, number: int) -> None:
    """What must change nothing that programs see; the kind changes with `number`."""
    if number % 3 == 0:
        remount(drive)
    elif number % 3 == 1:
        drive.sync()
        drive.evict()
        drive.drop_caches()
    else:
        drive.check()


def differential(drive: Mount, mounted: Path, local: Path, seed: int, count: int) -> None:
    print(f"seed {seed}, {count} steps")
    sides = [Side(os.fsencode(mounted)), Side(os.fsencode(local))]
    for side in sides:
        for folder in FOLDERS:
            os.mkdir(side.path(folder))
    history: list[str] = []
    done = 0
    try:
        for number, step in enumerate(random_steps(seed, count), 1):
            ours, theirs = (side.play(step) for side in sides)
            history.append(f"{number} {step} -> {theirs!r:.200}")
            done += not repr(theirs).startswith("'errno")
            assert ours == theirs, f"seed {seed}, {step}: {ours!r:.300}\n" + "\n".join(history[-40:])
            if number % 100 == 0:
                before = sides[0].snapshot()
                for side in sides if number % 300 == 0 else []:
                    side.close_all()
                disturb(drive, number // 100)
                found, expected = (side.snapshot() for side in sides)
                assert before == expected, f"seed {seed}, before step {number + 1}\n" + "\n".join(history[-100:])
                assert found == expected, f"seed {seed}, disturbed after step {number}\n" + "\n".join(history[-100:])
    finally:
        for side in sides:
            with suppress(OSError):
                side.close_all()
    print(f"{done} of {count} calls succeeded")
    assert done > count // 5


@pytest.mark.parametrize("seed", [1, 2])
def test_random_calls_do_what_they_do_on_a_local_folder(drive: Mount, here: Path, tmp_path: Path, seed: int) -> None:
    differential(drive, here, tmp_path, seed, 600)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_very_many_random_calls(drive: Mount, here: Path, tmp_path: Path) -> None:
    for _ in range(8):
        seed = random.randrange(1 << 32)
        mounted, local = here / str(seed), tmp_path / str(seed)
        mounted.mkdir()
        local.mkdir()
        differential(drive, mounted, local, seed, 3000)

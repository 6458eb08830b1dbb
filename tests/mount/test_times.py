"""Which call moves which time of which node: on the mount it is what it is on a local disk."""

from __future__ import annotations

import mmap
import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.mount.mounting import Mount, mounted

pytestmark = [pytest.mark.mount, pytest.mark.slow, pytest.mark.timeout(240)]

OLD_NS: Final = 10**18
CLOCK_REALTIME_COARSE: Final = 5
NAMES: Final = (".", "file", "hard", "other", "folder", "folder/file", "full", "link", "fifo")
Moved = dict[str, str]


def make(folder: Path) -> None:
    """A folder with a node of each kind, whose atime and mtime are old and whose bytes are in no page cache."""
    folder.mkdir()
    for name in ("folder", "full", "full/inner"):
        (folder / name).mkdir()
    for name in ("file", "other", "folder/file"):
        (folder / name).write_bytes(b"content")
        os.setxattr(folder / name, "user.x", b"x")
        fd = os.open(folder / name, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)
    os.link(folder / "file", folder / "hard")
    os.symlink("file", folder / "link")
    os.mkfifo(folder / "fifo")
    for name in NAMES:
        os.utime(folder / name, ns=(OLD_NS, OLD_NS), follow_symlinks=False)


def times(folder: Path) -> dict[int, tuple[int, int, int]]:
    """Return the times of all nodes, by inode number: a node keeps it under whatever name."""
    found = {}
    for name in (*NAMES, "new", "folder/new"):  # not by listing: that moves times, too
        try:
            status = (folder / name).lstat()
        except FileNotFoundError:
            continue
        found[status.st_ino] = status.st_atime_ns, status.st_mtime_ns, status.st_ctime_ns
    return found


def wait_for_the_next_tick(newest_ns: int) -> None:
    """Return when the clock that files are stamped with has passed a time; it moves every few milliseconds."""
    while time.clock_gettime_ns(CLOCK_REALTIME_COARSE) <= newest_ns:
        pass


def moved_by(folder: Path, action: Callable[[Path], object]) -> Moved:
    """Return which of the times (a, m, c) of which nodes an action moves."""
    make(folder)
    names = {(folder / name).lstat().st_ino: name for name in reversed(NAMES)}
    before = times(folder)
    wait_for_the_next_tick(max(max(stamps) for stamps in before.values()))
    action(folder)
    after = times(folder)
    moved = {}
    for ino, name in names.items():
        if ino in after:
            moved[name] = "".join(
                letter for letter, one, two in zip("amc", before[ino], after[ino], strict=True) if one != two
            )
    return {name: letters for name, letters in moved.items() if letters}


def _with_file(folder: Path, flags: int, use: Callable[[int], object]) -> None:
    fd = os.open(folder / "file", flags)
    try:
        use(fd)
        os.fsync(fd)
    finally:
        os.close(fd)


def refused(call: Callable[[], object]) -> None:
    with pytest.raises(OSError):  # noqa: PT011  whatever the errno is
        call()


def _map_and_write(fd: int) -> None:
    with mmap.mmap(fd, 7) as mapped:
        mapped[0] = 65
        mapped.flush()


ACTIONS: Final[dict[str, Callable[[Path], object]]] = {
    "stat": lambda folder: [(folder / name).lstat() for name in NAMES],
    "open and close": lambda folder: _with_file(folder, os.O_RDWR, lambda fd: None),
    "read": lambda folder: _with_file(folder, os.O_RDONLY, lambda fd: os.read(fd, 100)),
    "read with O_NOATIME": lambda folder: _with_file(folder, os.O_RDONLY | os.O_NOATIME, lambda fd: os.read(fd, 9)),
    "read nothing": lambda folder: _with_file(folder, os.O_RDONLY, lambda fd: os.read(fd, 0)),
    "write": lambda folder: _with_file(folder, os.O_WRONLY, lambda fd: os.write(fd, b"x")),
    "write the same": lambda folder: _with_file(folder, os.O_WRONLY, lambda fd: os.write(fd, b"content")),
    "write nothing": lambda folder: _with_file(folder, os.O_WRONLY, lambda fd: os.write(fd, b"")),
    "append": lambda folder: _with_file(folder, os.O_WRONLY | os.O_APPEND, lambda fd: os.write(fd, b"x")),
    "write through a mapping": lambda folder: _with_file(folder, os.O_RDWR, _map_and_write),
    "open with O_TRUNC": lambda folder: _with_file(folder, os.O_WRONLY | os.O_TRUNC, lambda fd: None),
    "truncate, shorter": lambda folder: os.truncate(folder / "file", 3),
    "truncate, longer": lambda folder: os.truncate(folder / "file", 30),
    "ftruncate, as it is": lambda folder: _with_file(folder, os.O_WRONLY, lambda fd: os.ftruncate(fd, 7)),
    "chmod": lambda folder: os.chmod(folder / "file", 0o600),
    "chmod, as it is": lambda folder: os.chmod(folder / "file", stat.S_IMODE((folder / "file").stat().st_mode)),
    "chown to nobody else": lambda folder: os.chown(folder / "file", os.geteuid(), os.getegid()),
    "utime": lambda folder: os.utime(folder / "file", ns=(1, 2)),
    "touch": lambda folder: os.utime(folder / "folder"),
    "setxattr": lambda folder: os.setxattr(folder / "file", "user.y", b"y"),
    "removexattr": lambda folder: os.removexattr(folder / "file", "user.x"),
    "getxattr": lambda folder: os.getxattr(folder / "file", "user.x"),
    "link": lambda folder: os.link(folder / "other", folder / "folder" / "new"),
    "unlink one of two names": lambda folder: os.unlink(folder / "hard"),
    "unlink": lambda folder: os.unlink(folder / "other"),
    "rmdir": lambda folder: os.rmdir(folder / "full" / "inner"),
    "mkdir": lambda folder: os.mkdir(folder / "folder" / "new"),
    "create": lambda folder: (folder / "folder" / "new").touch(),
    "create what is there": lambda folder: os.close(os.open(folder / "file", os.O_CREAT | os.O_WRONLY, 0o644)),
    "mkfifo": lambda folder: os.mkfifo(folder / "folder" / "new"),
    "symlink": lambda folder: os.symlink("x", folder / "folder" / "new"),
    "readlink": lambda folder: os.readlink(folder / "link"),
    "list": lambda folder: os.listdir(folder / "full"),
    "rename here": lambda folder: os.rename(folder / "other", folder / "new"),
    "rename of a folder": lambda folder: os.rename(folder / "full", folder / "folder" / "new"),
    "rename to elsewhere": lambda folder: os.rename(folder / "other", folder / "folder" / "new"),
    "rename over": lambda folder: os.rename(folder / "other", folder / "folder" / "file"),
    "rename over one of two names": lambda folder: os.rename(folder / "other", folder / "file"),
    "rename of a name over its other name": lambda folder: os.rename(folder / "file", folder / "hard"),
    "failed rmdir": lambda folder: refused(lambda: os.rmdir(folder / "full")),
    "failed link": lambda folder: refused(lambda: os.link(folder / "file", folder / "other")),
}

DIFFERENCES: Final[dict[str, Moved]] = {"readlink": {}, "list": {}}
"""What the mount moves where it is meant to differ; the reasons are in docs/semantics.md."""


@pytest.fixture(scope="module")
def drive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """One mount for all tests of this module."""
    with mounted(tmp_path_factory.mktemp("times") / "drive", deadline_s=600) as found:
        yield found


@pytest.mark.parametrize("name", ACTIONS)
def test_a_call_moves_the_times_that_it_moves_on_a_local_disk(drive: Mount, tmp_path: Path, name: str) -> None:
    local = moved_by(tmp_path / "local", ACTIONS[name])
    mounted = moved_by(drive.path / name.replace(" ", "_"), ACTIONS[name])
    assert mounted == DIFFERENCES.get(name, local), f"on a local disk: {local}"

"""open(2) with every combination of flags: on the mount it does what it does on a local disk of this machine.

The table is not written down but made, each time, from the kernel and the disk that the tests run on: the same opens,
reads, writes and seeks are done in a local folder and on the mount, as root and as somebody without rights, and have to
come to the same.  What FUSE or pyfuse3 makes different is in `DIFFERENCES`, each with its reason (and in
docs/semantics.md); any other difference fails, and so does one of these that has vanished.
"""

from __future__ import annotations

import itertools
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest
from attrs import frozen

from tests.mount import opening
from tests.mount.mounting import Mount, mounted
from tests.mount.opening import BLOCK, Answer

pytestmark = [pytest.mark.mount, pytest.mark.slow, pytest.mark.timeout(280)]

NOBODY: Final = 65534
OLD_NS: Final = 10**18
ACCESS: Final = {"O_RDONLY": os.O_RDONLY, "O_WRONLY": os.O_WRONLY, "O_RDWR": os.O_RDWR}
OPTIONS: Final = (
    "O_CREAT",
    "O_EXCL",
    "O_TRUNC",
    "O_APPEND",
    "O_NOFOLLOW",
    "O_DIRECTORY",
    "O_NOATIME",
    "O_SYNC",
    "O_DIRECT",
    "O_TMPFILE",
    "O_PATH",
)
FURTHER: Final = (
    ("O_CREAT", "O_TRUNC", "O_APPEND"),
    ("O_CREAT", "O_TRUNC", "O_DIRECT"),
    ("O_CREAT", "O_APPEND", "O_SYNC"),
    ("O_TRUNC", "O_APPEND", "O_DIRECT"),
    ("O_APPEND", "O_SYNC", "O_DIRECT"),
    ("O_DIRECTORY", "O_NOFOLLOW", "O_PATH"),
    *(("O_CREAT", "O_EXCL", option) for option in OPTIONS[2:]),
)
"""Combinations of three that programs use, besides all singles and pairs."""
CONTENT: Final = b"0" * BLOCK


@frozen
class Combination:
    """One access mode and some options."""

    access: str
    options: tuple[str, ...]

    @property
    def flags(self) -> int:
        """The number for open(2)."""
        flags = ACCESS[self.access]
        for option in self.options:
            flags |= getattr(os, option)
        return flags | os.O_NONBLOCK | os.O_CLOEXEC  # of use for FIFOs, without effect elsewhere

    def __str__(self) -> str:
        return "|".join((self.access, *self.options))


def combinations() -> list[Combination]:
    """All singles and pairs of options, and the triples of `FURTHER`, with each access mode."""
    chosen = [c for size in range(3) for c in itertools.combinations(OPTIONS, size)]
    return [Combination(access, options) for access in ACCESS for options in (*chosen, *FURTHER)]


# -- what is opened --


def _file(folder: Path, mode: int = 0o666) -> None:
    file = folder / "target"
    file.write_bytes(CONTENT)
    file.chmod(mode)


def _directory(folder: Path) -> None:
    (folder / "target").mkdir(mode=0o777)
    (folder / "target").chmod(0o777)


def _symlink(folder: Path) -> None:
    (folder / "real").write_bytes(CONTENT)
    (folder / "real").chmod(0o666)
    os.symlink("real", folder / "target")


def _fifo(folder: Path) -> None:
    os.mkfifo(folder / "target")
    (folder / "target").chmod(0o666)


def _closed_directory(folder: Path) -> None:
    """Opened is a file in it."""
    _file(folder)
    folder.chmod(0o700)


def _directory_that_may_be_read_only(folder: Path) -> None:
    """Opened is a name that is not there yet."""
    folder.chmod(0o755)


TARGETS: Final[dict[str, Callable[[Path], None]]] = {
    "absent": lambda folder: None,
    "file": _file,
    "empty directory": _directory,
    "symlink to a file": _symlink,
    "dangling symlink": lambda folder: os.symlink("nowhere", folder / "target"),
    "FIFO": _fifo,
    "read-only file": lambda folder: _file(folder, 0o444),
    "file that only root may read": lambda folder: _file(folder, 0o600),
    "file in a closed directory": _closed_directory,
    "absent in a read-only directory": _directory_that_may_be_read_only,
}


# -- what is different, and why --


@frozen
class Difference:
    """A difference that is meant: which answers it replaces, and why.

    `expected`: turns the local disk's answer into the one the mount has to give; None where it does not apply.
    """

    reason: str
    expected: Callable[[Combination, Answer], Answer | None]


def _no_temporary_file(case: Combination, local: Answer) -> Answer | None:
    opens = "refused" not in local and "O_TMPFILE" in case.options and "O_PATH" not in case.options
    return {"refused": "ENOTSUP", "left behind": local["left behind"]} if opens else None


def _nothing_was_read(case: Combination, local: Answer) -> Answer | None:
    return {**local, "atime": "stays"} if local.get("read") == "" and local["atime"] == "moved" else None


DIFFERENCES: Final = (
    Difference("pyfuse3 has no call for TMPFILE, so the kernel refuses O_TMPFILE", _no_temporary_file),
    Difference("the kernel sends no READ for an empty file, so that its atime stays", _nothing_was_read),
)


# -- both sides --


def prepare(folder: Path, target: str, count: int) -> None:
    """Make `count` folders, each with a target of its own: its times are old, its bytes in no page cache."""
    folder.mkdir()
    folder.chmod(0o755)
    for number in range(count):
        case = folder / str(number)
        case.mkdir()
        case.chmod(0o777)
        TARGETS[target](case)
    subprocess.run(["sync", "-f", folder], check=True, timeout=120)
    for file in folder.glob("*/*"):
        if not stat.S_ISREG(file.lstat().st_mode):
            continue
        fd = os.open(file, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)
        os.utime(file, ns=(0, OLD_NS))


def ask(folder: Path, cases: list[Combination], uid: int) -> list[Answer]:
    """Open the targets in `folder`, as `uid`, and return what came of it."""
    targets = [(f"{number}/target", case.flags) for number, case in enumerate(cases)]
    done = subprocess.run(
        [sys.executable, "-I", "-W", "error", "-c", Path(opening.__file__).read_text("utf-8")],
        input=json.dumps({"uid": uid, "targets": targets}).encode(),
        cwd=folder,  # entered as root: the folders above may be closed
        capture_output=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    answers: list[Answer] = json.loads(done.stdout)
    return answers


def left_behind(folder: Path) -> dict[str, object]:
    """Return what is in a folder afterwards: kind, mode, owner, size and content of everything."""
    found: dict[str, object] = {}
    for path in sorted(folder.iterdir()):
        status = path.lstat()
        content = opening.told(path.read_bytes()) if stat.S_ISREG(status.st_mode) else ""
        size = status.st_size if stat.S_ISREG(status.st_mode) else 0
        mtime = "old" if status.st_mtime_ns == OLD_NS else "now"
        found[path.name] = [oct(status.st_mode), status.st_uid, status.st_gid, size, mtime, content]
    return found


def play(folder: Path, target: str, uid: int) -> list[Answer]:
    """Do everything in one folder; return an answer for each combination, with what it left behind."""
    cases = combinations()
    prepare(folder, target, len(cases))
    answers = ask(folder, cases, uid)
    for number, answer in enumerate(answers):
        answer["left behind"] = left_behind(folder / str(number))
    return answers


def meant(case: Combination, local: Answer) -> Answer:
    """Return what the mount has to answer where a local disk answers `local`."""
    for difference in DIFFERENCES:
        local = difference.expected(case, local) or local
    return local


@pytest.fixture(scope="module")
def drive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """One mount for all tests of this module, open to other users."""
    with mounted(
        tmp_path_factory.mktemp("flags") / "drive",
        *(("-o", "allow_other") if os.geteuid() == 0 else ()),
        deadline_s=900,
    ) as found:
        yield found


def users() -> list[int]:
    """Root and somebody without rights; else whoever runs the tests."""
    return [0, NOBODY] if os.geteuid() == 0 else [os.geteuid()]


@pytest.mark.parametrize("uid", users())
@pytest.mark.parametrize("target", TARGETS)
def test_open_does_what_it_does_on_a_local_disk(drive: Mount, tmp_path: Path, target: str, uid: int) -> None:
    cases = combinations()
    theirs = play(tmp_path / "local", target, uid)
    ours = play(drive.path / f"{target} {uid}", target, uid)
    if os.statvfs(tmp_path).f_flag & os.ST_NOATIME:
        for answer in (*ours, *theirs):
            answer.pop("atime", None)
    wrong: list[str] = []
    for case, mount, local in zip(cases, ours, theirs, strict=True):
        expected = meant(case, local)
        keys = sorted(key for key in mount.keys() | expected.keys() if mount.get(key) != expected.get(key))
        wrong += [f"{case} {key}: {mount.get(key)} on the mount, expected {expected.get(key)}" for key in keys]
    opened = sum("refused" not in answer for answer in theirs)
    print(f"{len(cases)} combinations, {opened} of them open something")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("flag", ["O_SYNC", "O_DSYNC"])
def test_each_write_with_o_sync_is_followed_by_an_fsync(drive: Mount, flag: str) -> None:
    fd = os.open(drive.path / flag, os.O_WRONLY | os.O_CREAT | getattr(os, flag), 0o644)
    try:
        before = drive.upcalls()["fsync"]
        for number in range(3):
            os.write(fd, b"written")
            assert drive.upcalls()["fsync"] == before + number + 1
    finally:
        os.close(fd)


def test_o_direct_takes_any_offset_and_length(drive: Mount) -> None:
    """A local disk may refuse with EINVAL what does not fit its blocks."""
    file = drive.path / "direct"
    fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_DIRECT, 0o644)
    try:
        assert os.pwrite(fd, b"written", 3) == 7
        assert os.pread(fd, 5, 1) == b"\0\0wri"
    finally:
        os.close(fd)
    assert file.read_bytes() == b"\0\0\0written"

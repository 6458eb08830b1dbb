"""The table of mounts, read as the kernel writes it; and the lock that says who has a drive."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cuckoo_mount.cli.lock import DriveLock, LockHeld, LockHolder, hold, read_holder
from cuckoo_mount.cli.mounts import CuckooMount, is_dead, parse_mountinfo, unmount
from cuckoo_mount.errors import ConfigurationError

OPTIONS = b"rw,nosuid,nodev,relatime"


def line(place: bytes, source: bytes, *, optional: bytes = b"") -> bytes:
    return b"44 27 0:41 / " + place + b" " + OPTIONS + b" " + optional + b"- fuse.cuckoo " + source + b" rw,user_id=0\n"


@pytest.mark.parametrize(
    ("table", "mounts"),
    [
        pytest.param(b"", [], id="empty"),
        pytest.param(line(b"/mnt", b"/dev/sda1"), [], id="other"),
        pytest.param(line(b"/mnt", b"cuckoo:photos"), [CuckooMount("photos", Path("/mnt"))], id="ours"),
        pytest.param(
            line(b"/mnt", b"cuckoo:a", optional=b"shared:7 master:1 "),
            [CuckooMount("a", Path("/mnt"))],
            id="optional-fields",
        ),
        pytest.param(
            line(rb"/a\040b\134c\012\377", b"cuckoo:a"),
            [CuckooMount("a", Path(os.fsdecode(b"/a b\\c\n\xff")))],
            id="escapes",
        ),
        pytest.param(line(b"/mnt", b"cuckoo:a") + line(b"/mnt", b"tmpfs"), [], id="covered"),
        pytest.param(
            line(b"/mnt", b"cuckoo:a") + line(b"/mnt", b"cuckoo:b"), [CuckooMount("b", Path("/mnt"))], id="topmost"
        ),
        pytest.param(b"what is this\n\n", [], id="damaged"),
    ],
)
def test_mountinfo(table: bytes, mounts: list[CuckooMount]) -> None:
    assert parse_mountinfo(table) == mounts


def test_a_folder_that_answers_is_not_dead(tmp_path: Path) -> None:
    assert not is_dead(CuckooMount("default", tmp_path))


def test_what_is_not_mounted_cannot_be_unmounted(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be unmounted: ") as caught:
        unmount(tmp_path)
    assert "\n" not in str(caught.value)


# -- the lock --


@pytest.fixture
def lock_file(tmp_path: Path) -> Path:
    return tmp_path / "state" / "cuckoo" / "default" / "lock"


def test_nobody_has_held_it_yet(lock_file: Path) -> None:
    assert read_holder(lock_file) is None


def test_the_second_is_told_about_the_first(lock_file: Path) -> None:
    first = LockHolder(pid=os.getpid(), mountpoint=Path("/mnt/ü"), socket=Path("/run/s"), ending=True)
    with hold(lock_file) as lock:
        lock.describe(LockHolder(pid=1, mountpoint=Path("/" + "long" * 500)))
        lock.describe(first)
        with pytest.raises(LockHeld) as caught:
            DriveLock(lock_file)
        assert caught.value.holder == LockHolder(
            pid=os.getpid(), mountpoint=Path("/mnt/ü"), socket=Path("/run/s"), ending=True, alive=True
        )
    after = read_holder(lock_file)
    assert after is not None
    assert (after.pid, after.alive) == (os.getpid(), False)
    with hold(lock_file):
        pass


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"pid": "x", "mountpoint": 3}'])
def test_a_holder_that_cannot_be_read_is_still_alive(content: bytes, lock_file: Path) -> None:
    with hold(lock_file) as lock:
        os.ftruncate(lock.fd, 0)
        os.pwrite(lock.fd, content, 0)
        assert read_holder(lock_file) == LockHolder(pid=0, alive=True)


def test_the_lock_goes_with_its_process(lock_file: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from cuckoo_mount.cli.lock import DriveLock\n"
        "lock = DriveLock(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    )
    root = Path(__file__).resolve().parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", program, lock_file], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=root
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(LockHeld):
            DriveLock(lock_file)
        process.send_signal(signal.SIGKILL)
    DriveLock(lock_file).close()

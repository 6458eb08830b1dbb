"""stress-ng's stressors of a file system: several at once in an ordinary run, each alone with --long.

With --verify they read back what they wrote; a stressor that finds the file system unable says "skipping", which is a
failure here: what cannot work is named in LEFT_OUT.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from typing import Final

import pytest

from tests.mount.mounting import Mount
from tests.programs.running import need

pytestmark = [pytest.mark.mount, pytest.mark.slow, pytest.mark.timeout(240)]

AT_ONCE: Final = ("chdir", "chmod", "chown", "dentry", "dir", "fstat", "getdent", "hdd", "mmap", "msync", "rename")
AT_ONCE_TOO: Final = ("seek", "touch", "utime")
ALONE: Final = (
    *("access", "aio", "aiol", "chattr", "chdir", "chmod", "chown", "copy-file", "dentry", "dir", "dirdeep", "dirmany"),
    *("dnotify", "dup", "fallocate", "fanotify", "fcntl", "file-ioctl", "filename", "flock", "fpunch", "fsize"),
    *("fstat", "getdent", "handle", "hdd", "inotify", "io", "iomix", "lease", "link", "locka", "lockf"),
    *("lockofd", "mknod", "mmap", "msync", "msyncmany", "open", "readahead", "rename", "revio", "seek", "sendfile"),
    *("symlink", "sync-file", "touch", "utime", "xattr"),
)
"""`fallocate`, `fpunch`, `chattr` and `file-ioctl` accept that the calls are refused."""
LEFT_OUT: Final = {
    "fiemap": "asks for extents by an ioctl, which pyfuse3 has no call for",
    "verity": "the same; the local disk has none either",
    "io-uring": "fails on a local disk as well: it asks for the attributes of a file that it has removed",
    "rawdev": "reads the disk below, not the file system",
    "inode-flags": "does nothing, on a local disk either",
    "bind-mount": "mounts its own",
    "binderfs": "mounts its own",
    "procfs": "is about /proc",
    "eventfd": "has no files",
    "ioprio": "has no files",
}
SIZES: Final = {
    "copy-file": "128M",
    "fallocate": "16M",
    "hdd": "32M",
    "iomix": "4M",
    "mmap": "8M",
    "msync": "8M",
    "readahead": "32M",
    "sync-file": "16M",
}
_ROUNDS: Final = re.compile(r"metrc: \[\d+\] ([a-z-]+) +(\d+) +\d+\.\d+ ")
OPTIONS: Final = {"mmap": ("--mmap-file",), "seek": ("--seek-size", "8M"), "dirdeep": ("--dirdeep-inodes", "1000")}


def stressor(name: str, workers: int) -> list[str]:
    size = [f"--{name}-bytes", SIZES[name]] if name in SIZES else []
    return [f"--{name}", str(workers), *size, *OPTIONS.get(name, ())]


def stress(mount: Mount, options: Sequence[str], seconds: int) -> None:
    """Run stress-ng in a folder of its own.  It has to succeed and leave nothing out; each does something."""
    folder = mount.path / "stress"
    folder.mkdir()
    command = ["stress-ng", *options, "--timeout", str(seconds), "--verify", "--metrics-brief", "--temp-path"]
    done = subprocess.run(
        [*command, folder],
        # It writes a log of its own into the current folder if it cannot into the system's.
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=seconds + 150,
        check=False,
    )
    said = done.stdout.decode("utf-8", "replace")
    print(said)
    assert done.returncode == 0, said
    assert not re.search(r"skipp|fail:|unimplemented", said), said
    done_nothing = [name for name, rounds in _ROUNDS.findall(said) if int(rounds) == 0]
    assert done_nothing == []
    assert [path.name for path in folder.iterdir()] == []
    folder.rmdir()


@pytest.mark.long
def test_many_stressors_at_once(mount: Mount) -> None:
    need("stress-ng")
    mount.start()
    options = [option for name in (*AT_ONCE, *AT_ONCE_TOO) for option in stressor(name, 1)]
    stress(mount, options, 4)


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", ALONE)
def test_each_stressor_with_four_workers(mount: Mount, name: str) -> None:
    need("stress-ng")
    mount.start()
    # One round of xattr is thousands of attributes.
    stress(mount, stressor(name, 4), 30 if name == "xattr" else 5)


@pytest.mark.long
def test_every_stressor_of_files_is_run_or_named() -> None:
    need("stress-ng")
    known: set[str] = set()
    for kind in ("filesystem", "io"):
        done = subprocess.run(
            ["stress-ng", "--class", f"{kind}?"], capture_output=True, text=True, check=False, timeout=60
        )
        known |= set((done.stdout + done.stderr).partition("stressors:")[2].split())
    assert known
    assert known - set(ALONE) - set(LEFT_OUT) == set()

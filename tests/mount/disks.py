"""A real file system on a disk whose power can be cut: what was not synced is lost as that file system loses it.

Used by the power-cut test.  The file system is the kernel's ext4 (or XFS, where its mkfs is installed) on a loop device
over lossydisk.py.  At a cut its page cache is lost, and the disk below throws away what its own write cache had.  When
the power comes back, the file system replays its journal.  No model of ours says what may be lost: it is what programs
on such a machine lose.

Only root can mount a file system on a loop device; `can_cut_power` says whether this machine lets us.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import select
import shutil
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from attrs import define

ROOT: Final = Path(__file__).resolve().parent.parent.parent
SIZE_BYTES: Final = 4 << 30
PATIENCE_S: Final = 60.0
_MAKE: Final = {
    "ext4": ("mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0"),
    "xfs": ("mkfs.xfs", "-q"),
}
_OPTIONS: Final = {
    # `commit`: after so many seconds names and sizes go to the disk by themselves.
    "ext4": ("commit=1", "commit=5", "commit=60", "commit=5,data=writeback,noauto_da_alloc"),
    "xfs": ("rw",),
}
_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_LIBC.sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
_WRITE_OUT: Final = 2
"""SYNC_FILE_RANGE_WRITE."""


def can_cut_power() -> bool:
    """Return whether disks can be made here."""
    devices = all(os.access(device, os.R_OK | os.W_OK) for device in ("/dev/fuse", "/dev/loop-control"))
    return devices and os.geteuid() == 0 and shutil.which("mkfs.ext4") is not None


@define
class Losses:
    """What cuts threw away: writes of file systems that the disk had in its cache, and those dropped or torn."""

    cuts: int = 0
    flushes: int = 0
    writes: int = 0
    dropped: int = 0
    torn: int = 0


class Disk:
    """A disk with one file system, mounted at `path` while it has power.  `losses` grows with each cut.

    `options`: one of these mount options is chosen each time.
    """

    def __init__(self, folder: Path, kind: str, choose: random.Random, options: tuple[str, ...] = ()) -> None:
        self.path: Final = folder / "mounted"
        self.losses: Final = Losses()
        self._choose = choose
        self._kind = kind
        self._options = options or _OPTIONS[kind]
        self._image = folder / "image"
        self._device = folder / "device"
        self._server: subprocess.Popen[str] | None = None
        for made in (self.path, self._device):
            made.mkdir(parents=True)
        with self._image.open("wb") as file:
            file.truncate(SIZE_BYTES)
        _run(*_MAKE[kind], str(self._image))

    def power_on(self) -> None:
        """Start the disk and mount it, which brings the file system in order after a cut."""
        assert self._server is None, "it has power"
        server = self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.mount.lossydisk", self._image, self._device],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        assert server.stdout is not None
        assert select.select([server.stdout], [], [], PATIENCE_S)[0], "the disk does not start"
        assert server.stdout.readline() == "ready\n", "the disk did not start"
        options = f"loop,{self._choose.choice(self._options)}"
        _run("mount", "-t", self._kind, "-o", options, str(self._device / "disk"), str(self.path))

    def hold(self) -> None:
        """Return after the moment of a cut: nothing is written any more, and who waits for the disk goes on waiting.

        It comes as soon as there is something to lose in the disk's cache.
        """
        server = self._server
        assert server is not None, "it has no power"
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.write(f"hold {self._choose.choice((1, 1, 2, 5))}\n")
        server.stdin.flush()
        assert server.stdout.readline() == "held\n", "the disk does not obey"

    def cut(self) -> None:
        """After `hold`: throw away what was not flushed.  Who has files open there gets errors; then comes `unplug`."""
        said = self._end(f"{self._choose.random()}\n")
        self.losses.cuts += 1
        for name, count in json.loads(said).items():
            setattr(self.losses, name, getattr(self.losses, name) + count)

    def unplug(self) -> None:
        """Forget the file system that was cut off.  Waits for whoever still has something open there to end."""
        _umount(self.path)
        if self._server is not None:
            self._end("")
        _umount(self._device)  # the loop device lets go of it a little later

    def cut_and_boot(self) -> None:
        """Cut the power when nobody has anything open there, and start again."""
        self.hold()
        self.cut()
        self.unplug()
        self.power_on()

    def power_off(self) -> None:
        """Unmount in order; nothing is lost.  Fine without power, too."""
        if self._server is not None:
            _run("sync", "-f", str(self.path))
            self.unplug()

    def clear_away(self) -> None:
        """End everything, in whatever state it is; for a teardown."""
        for mounted in (self.path, self._device):
            subprocess.run(["umount", "--lazy", mounted], capture_output=True, check=False, timeout=PATIENCE_S)
        if self._server is not None:
            self._server.kill()
            self._server.communicate()

    def _end(self, last_words: str) -> str:
        server, self._server = self._server, None
        assert server is not None, "it has no power"
        said, _ = server.communicate(last_words, PATIENCE_S)
        return said


class Flusher:
    """Writes out parts of files by dice, without any promise, as the kernel does in the background all the time."""

    def __init__(self, folders: list[Path], seed: float) -> None:
        self._folders = folders
        self._choose = random.Random(seed)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._over.wait(self._choose.uniform(0.0, 0.05)):
            with suppress(OSError, IndexError):  # it is gone, or the power is
                folder = self._choose.choice([place for place in self._folders if place.exists()])
                path = self._choose.choice([path for path in folder.rglob("*") if path.is_file()])
                self._write_out(path)

    def _write_out(self, path: Path) -> None:
        fd = os.open(path, os.O_RDONLY)
        try:
            size = os.fstat(fd).st_size
            start = self._choose.randrange(size + 1) >> 12 << 12
            _LIBC.sync_file_range(
                fd, start, self._choose.randrange(size + 1) if self._choose.random() < 0.5 else 0, _WRITE_OUT
            )
        finally:
            os.close(fd)

    def stop(self) -> None:
        """Return when it has no file open any more."""
        self._over.set()
        self._thread.join()


def _umount(folder: Path) -> None:
    end = time.monotonic() + PATIENCE_S
    while not _try("umount", str(folder)):
        assert time.monotonic() < end, f"{folder} is busy:\n{_users(folder)}"
        time.sleep(0.02)


def _users(folder: Path) -> str:
    """Return which processes have something open in a folder, a line each."""
    found = set()
    for link in (*Path("/proc").glob("[0-9]*/fd/*"), *Path("/proc").glob("[0-9]*/cwd")):
        with suppress(OSError):
            target = os.readlink(link)
            if target.startswith(f"{folder}/") or target == str(folder):
                command = Path("/proc", link.parts[2], "cmdline").read_bytes().replace(b"\0", b" ")
                found.add(f"{link.parts[2]} {command!r}: {target}")
    return "\n".join(sorted(found))


def _try(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, check=False, timeout=PATIENCE_S, cwd="/").returncode == 0


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, check=False, timeout=PATIENCE_S, cwd="/")
    assert done.returncode == 0, f"{command}: {done.stderr.decode('utf-8', 'replace')}"

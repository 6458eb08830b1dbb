"""A drive whose state and cache lie on a small disk that somebody else fills, and programs with a model beside them.

Used by test_disk_full.py.  The disk is the kernel's ext4 in a file of its own; what fills it is one big file beside
the drive's folders.  Only root can mount it; `can_cut_power` of disks.py says whether this machine lets us.
"""

from __future__ import annotations

import errno
import os
import random
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from attrs import define, field

from tests.mount.mounting import ControlError, Mount, MountError
from tests.mount.promises import is_mixture

PATIENCE_S: Final = 60.0
PIECE: Final = 1 << 20
NAMES: Final = 12
"""Of one worker."""
_GONE: Final = frozenset({errno.ENOTCONN, errno.ECONNABORTED, errno.EIO})
"""What a program gets when the daemon is killed; EIO where the kernel had its bytes and not yet told it."""


class SmallDisk:
    """The kernel's ext4 in a file of `size_bytes`, mounted at `path`; `fill` is done by another program.

    That file is open all the time: whatever becomes of the mount, no other disk is ever filled.
    """

    def __init__(self, folder: Path, size_bytes: int) -> None:
        self.path: Final = folder / "disk"
        self.path.mkdir(parents=True)
        outside = self.path.stat().st_dev
        image = folder / "image"
        with image.open("wb") as file:
            file.truncate(size_bytes)
        _run("mkfs.ext4", "-q", "-m", "0", "-E", "lazy_itable_init=0,lazy_journal_init=0", str(image))
        _run("mount", "-o", "loop", str(image), str(self.path))
        self._filler = os.open(self.path / "of another program", os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        assert os.fstat(self._filler).st_dev != outside

    def fill(self) -> None:
        """Take all that is left, to the last byte."""
        for piece in (PIECE, 4096, 1):
            with suppress(OSError):
                while True:
                    os.write(self._filler, b"x" * piece)

    def make_room(self, left_bytes: int = 0) -> None:
        """Give back what `fill` took, but for so many bytes."""
        os.ftruncate(self._filler, min(left_bytes, os.fstat(self._filler).st_size))
        # What was freed can be used when the journal is written.  It may tell of bytes that had no room before.
        subprocess.run(["sync", "-f", self.path], capture_output=True, check=False, timeout=PATIENCE_S)

    def unmount(self) -> None:
        """Let it go, whoever is still there; for a teardown.  Nobody fills it any more."""
        os.close(self._filler)
        subprocess.run(["umount", "--lazy", self.path], capture_output=True, check=False, timeout=PATIENCE_S)


class SmallDiskMount(Mount):
    """As `Mount`, with state, cache and configuration on `disk`, of `size_bytes`."""

    def __init__(self, folder: Path, size_bytes: int) -> None:
        super().__init__(folder)
        self.disk: Final = SmallDisk(folder, size_bytes)
        for name in ("config", "state", "cache"):
            (folder / "xdg" / name).rmdir()
            (self.disk.path / name).mkdir(mode=0o700)
            (folder / "xdg" / name).symlink_to(self.disk.path / name)

    def clear_away(self) -> None:
        super().clear_away()
        self.disk.unmount()


class Filler:
    """Another program that fills the disk and frees it, again and again, by dice, until `stop`.

    The first time it is full until `is_felt()`, that is until somebody was refused, or `PATIENCE_S`.
    """

    def __init__(
        self, disk: SmallDisk, seed: str, *, is_felt: Callable[[], bool], full_s: float, free_s: float
    ) -> None:
        self.fills = 0
        self._disk = disk
        self._is_felt = is_felt
        self._dice = random.Random(seed)
        self._full_s = full_s
        self._free_s = free_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def __enter__(self) -> Filler:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _run(self) -> None:
        while not self._over.is_set():
            began_s = time.monotonic()
            full_s = self._dice.uniform(0.1, self._full_s) if self.fills else PATIENCE_S
            while time.monotonic() < began_s + full_s and not self._over.is_set():
                self._disk.fill()  # what the drive gave back meanwhile, too
                self._over.wait(0.05)
                if not self.fills and self._is_felt():
                    break
            self.fills += 1
            self._disk.make_room(self._dice.choice((0, 0, 5 << 20)))
            self._over.wait(self._dice.uniform(0.1, self._free_s))

    def stop(self) -> None:
        """Return when it does nothing any more; what it took is given back."""
        self._over.set()
        self._thread.join()
        self._disk.make_room()


class Asker:
    """Somebody who has the drive make epochs, send, compact and evict, again and again, until `stop`.

    `is_over`: set when the daemon may be killed.
    """

    def __init__(self, mount: Mount, seed: str) -> None:
        self.is_over: Final = threading.Event()
        self.refused: list[str] = []
        self._mount = mount
        self._dice = random.Random(seed)
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self.is_over.wait(self._dice.uniform(0.0, 0.3)):
            try:
                self._mount.control(self._dice.choice(("gc", "evict", "sync", "check")))
            except ControlError as error:
                self.refused.append(str(error))
            except (OSError, MountError) as error:
                if not self.is_over.is_set():
                    self._failure = error
                return

    def stop(self) -> None:
        """Return when nothing is asked any more.  Raises: what failed before `is_over` was set."""
        self.is_over.set()
        self._thread.join()
        if self._failure is not None:
            raise self._failure


@define(eq=False)
class Expected:
    """What is under a name.  `now`: its bytes, None: nothing; `is_sure`: it was not refused half-way.

    `after_crash`: what there may be after a kill, also a mixture of these; None: nothing.
    """

    now: bytes | None = None
    is_sure: bool = True
    after_crash: list[bytes | None] = field(factory=lambda: [None])

    def begin(self, data: bytes | None) -> None:
        """It is being changed to `data`."""
        self.is_sure = False
        self.after_crash.append(data)

    def end(self, data: bytes | None, *, durable: bool) -> None:
        """It was."""
        self.now, self.is_sure = data, True
        if durable:
            self.after_crash = [data]

    def fits(self, found: bytes | None, *, crashed: bool) -> bool:
        """Return whether `found` may be there."""
        if self.is_sure and not crashed:
            return found == self.now
        possible = [one for one in self.after_crash if one is not None]
        if found is None:
            return None in self.after_crash
        return is_mixture(found, [*possible, b""] if None in self.after_crash or not self.is_sure else possible)


class Worker:
    """A program: puts, overwrites, renames and removes files in a folder of its own, until `stop` or a crash.

    The disk may refuse it for want of room, and in no other way; it may always remove.  `refused`: how often it was;
    `problems`: what must not be.  `is_killing`: set before the daemon is killed.
    """

    def __init__(self, mount: Mount, name: str, seed: str) -> None:
        self.folder: Final = mount.path / name
        self.files: Final = {f"{number}": Expected() for number in range(NAMES)}
        self.refused: dict[str, int] = {}
        self.problems: list[str] = []
        self.promises = 0
        self.steps = 0
        self.is_killing: Final = threading.Event()
        self._dice = random.Random(seed)
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to work, or go on."""
        self._over.clear()
        self.is_killing.clear()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Return when it does nothing any more.  Raises: AssertionError with what must not be."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()
        assert not self.problems, self.problems

    def _run(self) -> None:
        steps = (self._put, self._put, self._put_quickly, self._overwrite, self._replace, self._remove, self._read)
        while not self._over.is_set():
            step, name = self._dice.choice(steps), self._dice.choice(list(self.files))
            try:
                step(name, self.files[name])
            except OSError as error:
                if error.errno in _GONE and self.is_killing.is_set():
                    return
                self.refused[step.__name__] = self.refused.get(step.__name__, 0) + 1
                if error.errno != errno.ENOSPC or step.__name__ in ("_remove", "_read"):
                    self.problems.append(f"{step.__name__} {self.folder / name}: {error}")
                    return
            self.steps += 1
            self._over.wait(0.002)

    def _data(self) -> bytes:
        return self._dice.randbytes(self._dice.choice((0, 100, 5000, 70_000, 600_000, 2_500_000)))

    def _put(self, name: str, file: Expected) -> None:
        self._write(name, file, self._data(), sync=True)

    def _put_quickly(self, name: str, file: Expected) -> None:
        """Without fsync: then close may tell what fails."""
        self._write(name, file, self._data(), sync=False)

    def _write(self, name: str, file: Expected, data: bytes, *, sync: bool) -> None:
        file.begin(data)
        file.after_crash.append(b"")
        fd = os.open(self.folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        self._write_and_close(fd, data, 0, sync=sync)
        file.end(data, durable=sync)
        self.promises += sync

    def _write_and_close(self, fd: int, data: bytes, offset: int, *, sync: bool) -> None:
        try:
            while data:
                done = os.pwrite(fd, data, offset)
                data, offset = data[done:], offset + done
            if sync:
                os.fsync(fd)
        except OSError:
            with suppress(OSError):
                os.close(fd)
            raise
        os.close(fd)

    def _overwrite(self, name: str, file: Expected) -> None:
        if not file.now or not file.is_sure:
            return
        offset = self._dice.randrange(len(file.now))
        data = self._dice.randbytes(self._dice.randrange(len(file.now) - offset + 1))
        changed = file.now[:offset] + data + file.now[offset + len(data) :]
        file.begin(changed)
        self._write_and_close(os.open(self.folder / name, os.O_WRONLY), data, offset, sync=True)
        file.end(changed, durable=True)
        self.promises += 1

    def _replace(self, name: str, file: Expected) -> None:
        """As editors save."""
        other = self._dice.choice([one for one in self.files if one != name])
        source, data = self.files[other], self._data()
        self._write(other, source, data, sync=True)
        for changed, becomes in ((file, data), (source, None)):
            changed.begin(becomes)
        os.rename(self.folder / other, self.folder / name)
        for changed, becomes in ((file, data), (source, None)):
            changed.end(becomes, durable=False)

    def _remove(self, name: str, file: Expected) -> None:
        file.begin(None)
        with suppress(FileNotFoundError):
            os.unlink(self.folder / name)
        file.end(None, durable=False)
        if self._dice.random() < 0.5:
            fd = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
            file.end(None, durable=True)

    def _read(self, name: str, file: Expected) -> None:
        if file.is_sure and (found := self._found(name)) != file.now:
            self.problems.append(f"{self.folder / name}: {_length(found)} instead of {_length(file.now)}")

    def _found(self, name: str) -> bytes | None:
        try:
            return (self.folder / name).read_bytes()
        except FileNotFoundError:
            return None

    def compare(self, *, crashed: bool = False) -> None:
        """Fail unless what is there may be there; then that is what is expected.

        What was refused half-way is removed then: the kernel goes on showing bytes that it could not write out, as it
        does for any file system, so that a program has to write all of them again.
        """
        for name, file in self.files.items():
            found = self._found(name)
            possible = [_length(one) for one in file.after_crash]
            assert file.fits(found, crashed=crashed), (
                f"{self.folder / name}: {_length(found)}; was {_length(file.now)}, sure: {file.is_sure}, "
                f"after a crash {possible}"
            )
            if crashed:
                file.end(found, durable=True)
            elif not file.is_sure:
                self._remove(name, file)
        assert {path.name for path in self.folder.iterdir()} <= self.files.keys()


def _length(data: bytes | None) -> str:
    return "nothing" if data is None else f"{len(data)} bytes"


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, check=False, timeout=PATIENCE_S, cwd="/")
    assert done.returncode == 0, f"{command}: {done.stderr.decode('utf-8', 'replace')}"

"""One daemon per drive: a lock on `<state>/lock`, whose content says who holds it.

Used by the daemon, which holds it from its first look at the drive to its very end, and by commands that want to know.
The lock is flock(2)'s: it goes with the process, however that ends.  The content is for people and commands only.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from attrs import asdict, frozen

_CONTENT_BYTES: Final = 16 << 10
_TRIES: Final = 5
_BETWEEN_TRIES_S: Final = 0.02


@frozen(slots=True, kw_only=True)
class LockHolder:
    """Who has the drive.  `alive`: the lock is held right now.  `ending`: unmounted, still sending.

    `command`: not a daemon but a command, at work on a drive that is not mounted.
    """

    pid: int
    mountpoint: Path | None = None
    socket: Path | None = None
    ending: bool = False
    command: bool = False
    alive: bool = False


class LockHeld(Exception):
    """Somebody else has the lock."""

    def __init__(self, holder: LockHolder | None) -> None:
        super().__init__(holder)
        self.holder = holder


class DriveLock:
    """The lock, held.  Survives fork: it is given back when the last process that has it closes it or ends."""

    def __init__(self, path: Path) -> None:
        """Take the lock.  Raises: LockHeld, OSError."""
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.fd: Final = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            _take(self.fd)
        except BlockingIOError as error:
            os.close(self.fd)
            raise LockHeld(read_holder(path)) from error
        except BaseException:
            os.close(self.fd)
            raise

    def describe(self, holder: LockHolder) -> None:
        """Write down who holds it.  Raises: OSError."""
        values = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(holder).items()}
        # Padded to one length and written at once, so that a reader sees the old content or the new.
        os.pwrite(self.fd, json.dumps(values).encode("ascii").ljust(_CONTENT_BYTES - 1) + b"\n", 0)

    def close(self) -> None:
        """Give it back, unless another process has it too."""
        with suppress(OSError):
            os.close(self.fd)


@contextmanager
def hold(path: Path) -> Iterator[DriveLock]:
    """Hold the lock inside the `with`.  Raises: LockHeld, OSError."""
    lock = DriveLock(path)
    try:
        yield lock
    finally:
        lock.close()


def read_holder(path: Path) -> LockHolder | None:
    """Return who holds the lock, or held it last; None when nobody ever did or it cannot be told."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        alive = _is_held(fd)
        values = _parse(os.pread(fd, _CONTENT_BYTES, 0))
    except OSError:
        return None
    finally:
        os.close(fd)
    pid, mountpoint, socket = values.get("pid"), values.get("mountpoint"), values.get("socket")
    return LockHolder(
        pid=pid if isinstance(pid, int) else 0,
        mountpoint=Path(mountpoint) if isinstance(mountpoint, str) else None,
        socket=Path(socket) if isinstance(socket, str) else None,
        ending=values.get("ending") is True,
        command=values.get("command") is True,
        alive=alive,
    )


def _parse(content: bytes) -> dict[str, object]:
    try:
        values: object = json.loads(content)
    except ValueError:
        return {}
    return values if isinstance(values, dict) else {}


def _take(fd: int) -> None:
    """Take the lock; a few times, for `_is_held` in another process has it for some microseconds."""
    for _ in range(_TRIES - 1):
        with suppress(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(_BETWEEN_TRIES_S)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_held(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(fd, fcntl.LOCK_UN)
    return False

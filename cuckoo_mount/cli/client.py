"""The commands' end of the control socket: asks the daemon of a drive, and explains why nobody answers.

Used by the commands.  Blocking, one request per connection.  Imports little: `cuckoo status` has to start quickly.
"""

from __future__ import annotations

import json
import select
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final, cast

from cuckoo_mount.cli.common import drive_argument
from cuckoo_mount.cli.lock import LockHolder, read_holder
from cuckoo_mount.config.paths import DrivePaths, drive_paths, list_drives, shown
from cuckoo_mount.errors import CuckooError, UsageError
from cuckoo_mount.fuse.controlsocket import LINE_MAX_BYTES, connect, encode_line, peer_pid

CONNECT_TIMEOUT_S: Final = 5.0
REPLY_TIMEOUT_S: Final = 30.0
"""How long the daemon may say nothing: commands that wait tell how far they are, twice a second."""
Progress = Callable[[Mapping[str, object]], None]
Result = dict[str, object]


class NotMounted(CuckooError):
    """No daemon of this drive runs."""


class NoAnswer(CuckooError):
    """The daemon runs but says nothing, or ended in the middle."""


class DaemonRefused(CuckooError):
    """The daemon answered with an error; `status` is what the command is to end with."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Connection:
    """A connection to a drive's daemon, for one request.  A context manager."""

    def __init__(self, drive: str) -> None:
        """Raises: NotMounted, NoAnswer, UsageError."""
        self.drive: Final = drive
        self._socket = _connect(drive_paths(drive))
        self._received = b""

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    @property
    def pid(self) -> int:
        """Process id of the daemon; 0 if it cannot be known."""
        return peer_pid(self._socket)

    def ask(self, command: str, progress: Progress | None = None, **arguments: object) -> Result:
        """Return the result of a command.  Raises: DaemonRefused, NoAnswer."""
        self._socket.settimeout(REPLY_TIMEOUT_S)
        try:
            self._socket.sendall(encode_line({"command": command, "arguments": arguments}))
            while True:
                reply = self._receive()
                if "result" in reply:
                    return cast(Result, reply["result"])
                if "error" in reply:
                    raise DaemonRefused(str(reply["error"]), int(str(reply.get("exit", 1))))
                if progress is not None:
                    progress(cast(Mapping[str, object], reply.get("progress", {})))
        except TimeoutError as error:
            raise NoAnswer(
                f"the daemon of drive {self.drive!r} (pid {self.pid}) has not answered for {REPLY_TIMEOUT_S:.0f} s; "
                f"see {shown(drive_paths(self.drive).log)}"
            ) from error
        except (OSError, ValueError) as error:
            raise self._ended() from error

    def _receive(self) -> dict[str, object]:
        while b"\n" not in self._received:
            data = self._socket.recv(1 << 16)
            if not data or len(self._received) > LINE_MAX_BYTES:
                raise self._ended()
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        reply: object = json.loads(line)
        if not isinstance(reply, dict):
            raise self._ended()
        return reply

    def _ended(self) -> NoAnswer:
        log = drive_paths(self.drive).log
        return NoAnswer(f"the daemon of drive {self.drive!r} ended before it answered; see {shown(log)}")


def ask(drive: str, command: str, progress: Progress | None = None, **arguments: object) -> Result:
    """Ask the daemon of `drive` once.  Raises: NotMounted, DaemonRefused, NoAnswer, UsageError."""
    with Connection(drive) as connection:
        return connection.ask(command, progress, **arguments)


def no_drive(drive: str) -> UsageError:
    """Return the error for a drive that this machine does not know."""
    known, option = list_drives(), drive_argument(drive)
    hint = f"; there are: {', '.join(known)}" if known else ""
    return UsageError(
        f"there is no drive {drive!r} here{hint}.  `cuckoo-mount MOUNTPOINT{option}` makes one with a folder as its "
        f"cloud, `cuckoo init{option}` one for clouds of your own"
    )


def wait_for_end(pidfd: int, timeout_s: float) -> bool:
    """Return whether the process behind `pidfd` has ended within `timeout_s`."""
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(timeout_s * 1000))


def _connect(paths: DrivePaths) -> socket.socket:
    holder = read_holder(paths.lock)
    for path in _places(paths, holder):
        with suppress(FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
            try:
                return connect(path, CONNECT_TIMEOUT_S)
            except PermissionError as error:
                raise NotMounted(f"{shown(path)} belongs to another user; ask as the user who mounted it") from error
            except TimeoutError as error:
                raise NoAnswer(f"the daemon of drive {paths.name!r} does not answer; see {shown(paths.log)}") from error
    raise _nobody(paths, holder)


def _places(paths: DrivePaths, holder: LockHolder | None) -> list[Path]:
    """Where the socket may be: where its daemon says, and where it would be with our environment."""
    places = [paths.socket, paths.state / paths.socket.name]
    return [holder.socket, *places] if holder is not None and holder.socket is not None else places


def _nobody(paths: DrivePaths, holder: LockHolder | None) -> CuckooError:
    drive, option = paths.name, drive_argument(paths.name)
    place = shown(holder.mountpoint) if holder is not None and holder.mountpoint is not None else "MOUNTPOINT"
    if holder is not None and holder.alive and holder.command:
        return NoAnswer(
            f"another command is at work on drive {drive!r} (pid {holder.pid}); try again when it has ended"
        )
    if holder is not None and holder.alive:
        return NoAnswer(
            f"drive {drive!r} is just being mounted or unmounted (pid {holder.pid}); try again, "
            f"or see {shown(paths.log)}"
        )
    if not paths.config_file.exists():
        return no_drive(drive)
    return NotMounted(f"drive {drive!r} is not mounted; mount it with: cuckoo-mount {place}{option}")

"""Going to the background, and telling whoever started us how it went: a waiting parent, a terminal, or systemd.

Used by the daemon, before trio runs: a fork must not copy threads.
Source: daemon(7), sd_notify(3).
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol

from cuckoo_mount.config.paths import shown

_PID: Final = "pid"
_SAY: Final = "say"
_EXIT: Final = "exit"


class Reporter(Protocol):
    """How the daemon speaks to whoever started it, until it is ready or has failed."""

    def say(self, line: str) -> None:
        """Show a line."""

    def ready(self) -> None:
        """The mount answers."""

    def fail(self, line: str, exit_status: int) -> None:
        """It will not be mounted; the process is about to end with `exit_status`."""


class TerminalReporter:
    """For --foreground: prints, and notifies systemd."""

    def say(self, line: str) -> None:
        print(line, flush=True)

    def ready(self) -> None:
        notify_systemd("READY=1")

    def fail(self, line: str, exit_status: int) -> None:
        pass  # in the foreground the log goes to the terminal, and has it


class PipeReporter:
    """For a daemon: lines of JSON to the parent that waits at the other end."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._send({_PID: os.getpid()})

    def say(self, line: str) -> None:
        self._send({_SAY: line})

    def ready(self) -> None:
        self._send({_EXIT: 0})
        self._close()

    def fail(self, line: str, exit_status: int) -> None:
        self._send({_SAY: line, _EXIT: exit_status})
        self._close()

    def _send(self, message: dict[str, str | int]) -> None:
        if self._fd >= 0:
            with suppress(BrokenPipeError):  # nobody waits any more
                os.write(self._fd, json.dumps(message).encode("ascii") + b"\n")

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1


def fill_standard_streams() -> None:
    """Open what is closed of stdin, stdout and stderr, so that no file of ours gets their numbers."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)


def go_to_background(log: Path, keep: Iterable[int]) -> Reporter:
    """Return in the daemon, with a reporter for it; in the process that called wait for it, and end as it says.

    `keep`: the file descriptors above 2 that the daemon needs; all others are closed.
    """
    print(end="", flush=True)
    print(end="", flush=True, file=sys.stderr)
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        os.waitpid(child, 0)
        sys.exit(_wait_for_daemon(reading, log))
    os.setsid()
    if os.fork():
        os._exit(0)
    os.chdir("/")
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in range(3):
        os.dup2(nothing, fd)
    _close_others({writing, *keep})
    return PipeReporter(writing)


def _close_others(keep: set[int]) -> None:
    """Close what is above 2 and not ours: a test harness or a `$(…)` would wait for the daemon's end otherwise."""
    low = 3
    for fd in sorted(fd for fd in keep if fd > 2):
        os.closerange(low, fd)
        low = fd + 1
    os.closerange(low, max(low, os.sysconf("SC_OPEN_MAX")))


def _wait_for_daemon(fd: int, log: Path) -> int:
    """Show what the daemon says; return the exit status it names.  Ctrl-C ends the daemon too."""
    pid = 0
    try:
        with os.fdopen(fd, "r", encoding="ascii") as lines:
            for line in lines:
                message: dict[str, str | int] = json.loads(line)
                pid = int(message.get(_PID, pid))
                failed = bool(message.get(_EXIT, 0))
                if _SAY in message:
                    text = str(message[_SAY])
                    print(f"cuckoo-mount: {text}" if failed else text, file=sys.stderr if failed else sys.stdout)
                if _EXIT in message:
                    return int(message[_EXIT])
    except KeyboardInterrupt:
        if pid:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        print("\ncuckoo-mount: interrupted; nothing was mounted", file=sys.stderr)
        return 130
    print(f"cuckoo-mount: the daemon ended before the drive was mounted; see {shown(log)}", file=sys.stderr)
    return 1


def notify_systemd(state: str) -> None:
    """Tell the service manager, if one asked for it by NOTIFY_SOCKET."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection:
        connection.connect(f"\0{address[1:]}" if address.startswith("@") else address)
        connection.sendall(state.encode("utf-8"))

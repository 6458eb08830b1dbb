"""Commands and daemons with a time limit, what they cost, and mountpoints.

Nothing here can hang: whoever waits gives up in time, and only processes that were started here are killed.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Final

START_TIMEOUT_S: Final = 60.0
END_TIMEOUT_S: Final = 120.0
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")


class Failed(Exception):
    """A command or daemon did not do what it has to; says which."""


def cache_drops() -> int:
    """Return how often a program on this machine dropped the whole page cache."""
    counters = dict(line.split() for line in Path("/proc/vmstat").read_text().splitlines())
    return int(counters.get("drop_pagecache", 0))


def run(
    command: Sequence[str | Path],
    *,
    timeout_s: float,
    log: IO[bytes] | None = None,
    environment: Mapping[str, str] | None = None,
    statuses: Sequence[int] = (0,),
) -> str:
    """Run a command to its end and return what it printed; stderr goes to `log`.  Raises: Failed."""
    process = subprocess.Popen(
        [str(part) for part in command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=log or subprocess.DEVNULL,
        env=dict(os.environ, **(environment or {})),
        start_new_session=True,
    )
    try:
        printed, _ = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        # Not waited for: in a mount that hangs even SIGKILL has no effect until the mount is gone.
        raise Failed(f"{process.args!r} did not end within {timeout_s:.0f} s") from None
    if process.returncode not in statuses:
        raise Failed(f"{process.args!r} ended with status {process.returncode}")
    return printed.decode(errors="replace")


def start(
    command: Sequence[str | Path], *, log: IO[bytes], environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start a process that stays."""
    return subprocess.Popen(
        [str(part) for part in command],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        env=dict(os.environ, **(environment or {})),
    )


def end(process: subprocess.Popen[bytes], timeout_s: float = END_TIMEOUT_S) -> None:
    """Return when a process that was told to end has ended; kill it if it does not.  Raises: Failed."""
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        raise Failed(f"{process.args!r} did not end within {timeout_s:.0f} s, killed") from None


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process, its children (also those that have ended) and their children."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        # A child belongs to the thread that started it.
        lists = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    except OSError:
        return 0.0
    children = " ".join(lists).split()
    return sum(map(int, fields[11:15])) / _TICKS_PER_S + sum(cpu_seconds(int(child)) for child in children)


def free_port() -> int:
    """Return a TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    """Return when somebody listens.  Raises: Failed."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise Failed(f"{process.args!r} does not listen on port {port}")


def is_mounted(mountpoint: Path) -> bool:
    """Look into the mount table, as a stat of a hung mountpoint would hang."""
    table = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
    return any(line.split(" ")[4] == str(mountpoint) for line in table.splitlines())


def wait_for_mount(mountpoint: Path, process: subprocess.Popen[bytes]) -> None:
    """Return when the mountpoint is mounted and answers.  Raises: Failed."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while not is_mounted(mountpoint):
        if process.poll() is not None:
            raise Failed(f"{process.args!r} ended with status {process.returncode}")
        if time.monotonic() > deadline:
            raise Failed(f"{process.args!r} has not mounted within {START_TIMEOUT_S:.0f} s")
        time.sleep(0.01)
    run(["ls", mountpoint], timeout_s=START_TIMEOUT_S)


def detach(mountpoint: Path) -> None:
    """Take away what is mounted there, whoever still uses it."""
    if is_mounted(mountpoint):
        subprocess.run(["fusermount3", "-u", "-z", str(mountpoint)], timeout=START_TIMEOUT_S, check=False)

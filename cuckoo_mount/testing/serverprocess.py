"""A foreign server on loopback as a child process, for tests: found, started on free ports, waited for, ended.

Used by servers.py, fileservers.py and cloudservers.py, which know what each kind is asked.  Any thread; blocks.
"""

from __future__ import annotations

import atexit
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Final

HOST: Final = "127.0.0.1"
START_TIMEOUT_S: Final = 60.0
STOP_TIMEOUT_S: Final = 2.0
"""A server that was asked to end and has not by then is killed."""
# Below the range from which the kernel takes the ports of outgoing connections (32768 on), so that nobody takes one
# between our look and the server's bind by chance; and above the well-known ones.
_PORTS: Final = range(20000, 32000)
_START_ATTEMPTS: Final = 3
_LOG_TAIL_CHARACTERS: Final = 2000
POLL_S: Final = 0.02


def find_program(name: str) -> str:
    """Return the path of program `name`, beside this Python or else on PATH or where daemons lie.

    Raises: FileNotFoundError with a line that says what to install.
    """
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.is_file() else shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if found is None:
        raise FileNotFoundError(f"program {name} is not installed; ./bootstrap test installs what tests need")
    return found


def free_ports(count: int) -> list[int]:
    """Return `count` different loopback ports on which nothing listens."""
    found: list[int] = []
    for port in random.SystemRandom().sample(_PORTS, len(_PORTS)):
        if len(found) == count:
            return found
        with closing(socket.socket()) as probe, suppress(OSError):
            probe.bind((HOST, port))
            found.append(port)
    raise OSError(f"no {count} free ports between {_PORTS.start} and {_PORTS.stop}")


class ServerProcess(ABC):
    """What all servers have in common.  `folder`: the server's own, where it runs and where its log is."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind: Final = kind
        self.folder: Final = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._ports: list[int] = []

    @property
    def port(self) -> int:
        """The port that clients use; the same after a restart."""
        return self._ports[0]

    @property
    def pid(self) -> int:
        """Process id.  Raises: RuntimeError when it does not run."""
        if self._process is None:
            raise RuntimeError(f"{self.kind} does not run")
        return self._process.pid

    @abstractmethod
    def start(self) -> None:
        """Start it on its ports with its data, and wait until it is ready.  Raises: RuntimeError."""

    @abstractmethod
    def stop(self) -> None:
        """End it and wait for that; may be called twice."""

    def restart(self) -> None:
        """Stop it and start it again on the same ports."""
        self.stop()
        self.start()

    @abstractmethod
    def _answers(self) -> bool:
        """Return whether it can be used now."""

    def _start_on_free_ports(self, count: int) -> None:
        """Start it for the first time.  Raises: RuntimeError with the end of its log."""
        for attempt in range(_START_ATTEMPTS):
            try:
                self._ports = free_ports(count)
                self.start()
                return
            except RuntimeError:  # most likely another program took a port
                if attempt == _START_ATTEMPTS - 1:
                    raise

    def _spawn(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(
                [find_program(command[0]), *command[1:]],
                cwd=self.folder,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        atexit.register(self.stop)

    def _take_process(self) -> subprocess.Popen[bytes] | None:
        """Return the process, which is the caller's to end, or None if it does not run."""
        atexit.unregister(self.stop)
        process, self._process = self._process, None
        return process

    def _wait_until_it_answers(self) -> None:
        """Poll: a foreign program has no other way to say that it listens.  Raises: RuntimeError."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._answers():
            if self._process is None or self._process.poll() is not None:
                raise RuntimeError(f"{self.kind} ended while it was started: {self._log_tail()}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.kind} did not answer in {START_TIMEOUT_S:g} s: {self._log_tail()}")
            time.sleep(POLL_S)

    @property
    def _log(self) -> Path:
        return self.folder / "server.log"

    def _log_tail(self) -> str:
        return self._log.read_text(errors="replace")[-_LOG_TAIL_CHARACTERS:]


class ListeningServer(ServerProcess):
    """A server that is ready when it listens, with its data in a folder; it may have a process for each connection."""

    @property
    def data(self) -> Path:
        """The folder that is served."""
        return self.folder / "data"

    @property
    def endpoint_url(self) -> str:
        """Where a server of HTTP listens: `http://127.0.0.1:<port>`; the same after a restart."""
        return f"http://{HOST}:{self.port}"

    def stop(self) -> None:
        """End it and what it has started, and wait for that; may be called twice.  Its data stay, if it keeps any."""
        process = self._take_process()
        if process is None:
            return
        children = descendants(process.pid)
        process.send_signal(signal.SIGCONT)
        end_process(process, signal.SIGTERM)
        for child in children:  # those of connections outlive the server
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)

    def _start_with(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start it by a command, and wait until it listens.  Raises: RuntimeError."""
        self._spawn(command, environment)
        try:
            self._wait_until_it_answers()
        except BaseException:
            self.stop()
            raise

    def _answers(self) -> bool:
        try:
            with closing(socket.create_connection((HOST, self.port), timeout=START_TIMEOUT_S)):
                return True
        except OSError:
            return False


def descendants(pid: int) -> list[int]:
    """Return the processes that `pid` has started and they have, as far as they have not left it."""
    found: list[int] = []
    pending = [pid]
    while pending:
        parent = pending.pop()
        with suppress(OSError):
            for task in os.listdir(f"/proc/{parent}/task"):
                with open(f"/proc/{parent}/task/{task}/children") as file:
                    children = [int(word) for word in file.read().split()]
                found += children
                pending += children
    return found


def is_stopped(pid: int) -> bool:
    """Return whether no thread of a process runs, after SIGSTOP, which returns before that is so, or as it ended."""
    with suppress(OSError):
        tasks = Path(f"/proc/{pid}/task").iterdir()
        states = [(task / "stat").read_text().rpartition(")")[2].split()[0] for task in tasks]
        return all(state in "TtZX" for state in states)
    return not Path(f"/proc/{pid}").exists()


def end_process(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Ask a process to end by a signal, and wait for that; kill it if it takes too long."""
    process.send_signal(number)
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()

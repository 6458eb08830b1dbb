"""Programs at work in a mount while something is done to its clouds: one writes, one reads what must be on the clouds.

Used by the tests of draining and rebalancing:
    load = Load(mount, files=20)
    with load.running():
        …                               # every byte that is read meanwhile is compared
        load.kill()                    # the daemon; from then on errors are no surprise
    load.verify()                       # also what the writer had synced when the daemon was killed
"""

from __future__ import annotations

import json
import os
import random
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final

from attrs import evolve

from cuckoo_mount.config import write_config
from cuckoo_mount.fuse.controlsocket import connect, encode_line
from cuckoo_mount.testing.faulty import write_plan
from tests.pool.pooling import Place, PoolMount

KIB: Final = 1 << 10
FILE_BYTES: Final = 700 * KIB
PACK_BYTES: Final = 1 << 20
PAUSE_S: Final = 0.02
PATIENCE_S: Final = 60.0


def small_packs(mount: PoolMount) -> None:
    """Have the drive, which was not mounted yet, close packs at 1 MiB: many of them with little data."""
    write_config(evolve(mount.configure(), pack_size_bytes=PACK_BYTES), mount.paths)


class Load:
    """A writer and a reader.  `files`: how many there are to read (`make`); `written`: what the writer synced."""

    def __init__(self, mount: PoolMount, *, files: int) -> None:
        self.mount: Final = mount
        self.files: Final = files
        self.written: dict[str, str] = {}
        self.reads = 0
        self._errors: list[str] = []
        self._stop = threading.Event()
        self._ending = threading.Event()
        self._writing = ""
        self._number = 0

    def make(self) -> None:
        """Make the files, one pack each, on the clouds."""
        for number in range(self.files):
            (self.mount.path / f"r{number}").write_bytes(content(f"r{number}", FILE_BYTES))
            self.mount.sync()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Write and read inside the `with`; fail at its end if anything was wrong."""
        self._stop.clear()
        self._ending.clear()
        threads = [threading.Thread(target=self._run, args=(step,)) for step in (self._write, self._read)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()
        assert not self._errors, "\n".join(self._errors)

    def kill(self) -> None:
        """Kill the daemon.  The dead mount stays until the next start, lest somebody writes to the folder below it."""
        self._ending.set()
        self.mount.kill(detach=False)

    def _run(self, step: object) -> None:
        assert callable(step)
        dice = random.Random(str(step))
        while not self._stop.is_set():
            try:
                step(dice)
            except (OSError, AssertionError) as error:
                if not self._ending.is_set():
                    self._errors.append(f"{error!r}")
                return
            self._stop.wait(PAUSE_S)

    def _write(self, dice: random.Random) -> None:
        self._number += 1
        name = self._writing = f"w{dice.randrange(8)}"
        seed = f"{name} {self._number}"
        data = content(seed, dice.randrange(20 * KIB, 200 * KIB))
        with open(self.mount.path / name, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        self.written[name] = seed
        assert (self.mount.path / name).read_bytes() == data, name
        self._writing = ""

    def _read(self, dice: random.Random) -> None:
        self._read_one(f"r{dice.randrange(self.files)}")
        if self.reads % 10 == 0:
            self.mount.evict()

    def _read_one(self, name: str) -> None:
        path = self.mount.path / name
        with open(path, "rb") as file:
            # The kernel's copy goes, so that the daemon is asked.
            with suppress(OSError):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            assert file.read() == content(name, FILE_BYTES), name
        self.reads += 1

    def verify(self) -> None:
        """Read everything from the clouds, and compare; but for what was being written when the daemon died."""
        self.mount.evict()
        self.mount.drop_caches()
        for number in range(self.files):
            self._read_one(f"r{number}")
        for name, seed in self.written.items():
            if name != self._writing:
                data = (self.mount.path / name).read_bytes()
                assert data == content(seed, len(data)), name
                assert data
        if self._writing:
            (self.mount.path / self._writing).unlink(missing_ok=True)
            self.written.pop(self._writing, None)
            self._writing = ""


def content(seed: str, size_bytes: int) -> bytes:
    """Return bytes that follow from `seed` alone."""
    return random.Random(seed).randbytes(size_bytes)


@contextmanager
def asked(mount: PoolMount, command: str, **arguments: object) -> Iterator[Iterator[dict[str, Any]]]:
    """Ask the daemon for something that takes long; what is yielded tells how far it is, until it is done."""
    with connect(mount.paths.socket, PATIENCE_S) as connection:
        connection.settimeout(PATIENCE_S)
        connection.sendall(encode_line({"command": command, "arguments": arguments}))
        yield _progress(connection)


def _progress(connection: socket.socket) -> Iterator[dict[str, Any]]:
    received = b""
    while data := connection.recv(1 << 16):
        *lines, received = (received + data).split(b"\n")
        for line in lines:
            reply: dict[str, Any] = json.loads(line)
            if "progress" not in reply:
                return
            yield reply["progress"]


def slow_down(places: Sequence[Place], calls: str, match: str, seconds: float) -> None:
    """Make each such call take that long, so that a kill comes in the middle of them; 0: as before."""
    rules = [{"calls": [calls], "match": match, "action": "delay", "seconds": seconds}] if seconds else []
    for place in places:
        write_plan(place.plan, *rules)

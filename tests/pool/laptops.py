"""A laptop on which somebody works, what it promised meanwhile, and its end.

Used by burning.py.  The writer is numbering.py in a process of its own; threads ask what is durable, and collect.
What has to be there afterwards is known from two sides.  `epoch.local` of `status` is N - 2 or less: the cut of epoch N
comes later, as it is made only after epoch N - 1; so every step that was done before the question is in epoch N.
(While `epoch.local` is N - 1 that cut may have been taken already.)  And `sync` returns: every step that was done
before it.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from attrs import frozen

from cuckoo_mount.epochs.timing import EPOCH_VARIABLE
from tests.mount.mounting import ControlError, MountError
from tests.pool.machines import Machine, wait_until
from tests.pool.numbered import ROOT

EPOCH_S: Final = 0.3
POLL_S: Final = 0.02


class Laptop(Machine):
    """A machine that makes epochs all the time."""

    @property
    def environment(self) -> dict[str, str]:
        return super().environment | {EPOCH_VARIABLE: str(EPOCH_S)}


@frozen
class Poll:
    """One `status`.  `done`: the newest step that was done before it was asked for."""

    done: int
    local: int
    cloud: int


class Work:
    """The writer on a mounted laptop, and the threads that ask meanwhile what is durable.

    `promised`: the newest step of which `sync` said that it is on the clouds.  `collected`: what `gc` did;
    `was_collecting`: whether it was at work when the laptop burnt.
    """

    def __init__(self, laptop: Laptop, seed: str, first: int) -> None:
        self.polls: Final[list[Poll]] = []
        self.began_ns: Final = time.time_ns()
        self.promised = 0
        self.syncs = 0
        self.collected: Final[Counter[str]] = Counter()
        self.was_collecting = False
        self._is_collecting = False
        self._laptop = laptop
        self._choose = random.Random(f"{seed} {first}")
        self._journal = laptop.folder / "journal"
        self._ending = laptop.folder / "ending"
        self._journal.touch()
        self._failures: list[Exception] = []
        arguments = [*map(str, (laptop.path, self._journal, self._ending)), seed, str(first)]
        program = [sys.executable, "-m", "tests.pool.numbering", "write", *arguments]
        self._writer = subprocess.Popen(program, cwd=ROOT)
        self._first = first
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(task,)) for task in (self._poll, self._sync, self._collect)
        ]
        for thread in self._threads:
            thread.start()

    # -- what the journal says --

    @property
    def done(self) -> int:
        """The newest step that is done."""
        return self._last("d")

    @property
    def begun(self) -> int:
        """The newest step that was begun."""
        return self._last("b")

    def begun_before(self, time_ns: int) -> int:
        """Return the newest step that was begun before that time of the day."""
        begun = (line.split() for line in self._lines() if line.startswith("b"))
        return max((int(number) for _, number, at_ns in begun if int(at_ns) <= time_ns), default=self._first - 1)

    def _lines(self) -> list[str]:
        return self._journal.read_text("utf-8").split("\n")[:-1]

    def _last(self, kind: str) -> int:
        with self._journal.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - 400))
            lines = file.read().decode().split("\n")[:-1]
        numbers = [int(line.split()[1]) for line in lines if line.startswith(f"{kind} ")]
        return max(numbers, default=self._first - 1)

    # -- meanwhile --

    def _run(self, task: Callable[[], None]) -> None:
        try:
            while not self._over.wait(POLL_S):
                task()
        except (OSError, MountError, ControlError) as error:
            if not self._ending.exists():
                self._failures.append(error)

    def _poll(self) -> None:
        done = self.done
        epoch = self._laptop.status()["epoch"]
        self.polls.append(Poll(done, epoch["local"], epoch["cloud"] or 0))

    def _sync(self) -> None:
        if self._over.wait(self._choose.uniform(0.1, 1.5)):
            return
        done = self.done
        self._laptop.sync()
        self.promised = done
        self.syncs += 1

    def _collect(self) -> None:
        """Compact, and delete dead packs and old epochs: nothing of which an epoch that may be recovered has need."""
        if not self.syncs or self._over.wait(self._choose.uniform(0.1, 0.8)):
            return
        self._is_collecting = True
        self.collected.update(self._laptop.control("gc", keep=self._choose.choice((None, 3, 1))))
        self._is_collecting = False

    def wait(self, steps: int) -> None:
        """Return when so many steps were done, and an epoch was seen."""

        def has_begun() -> bool:
            assert self._writer.poll() is None, f"the writer ended with {self._writer.poll()}: {self._lines()[-1:]}"
            assert not self._failures, self._failures
            return self.done >= self._first - 1 + steps and bool(self.polls)

        wait_until(has_begun, f"{steps} steps")

    def burn(self) -> None:
        """Kill the daemon; return when all have noticed.  Raises: what failed before that.

        Its workers die with it, but for a few times: then what they were told to put still arrives.
        """
        self._ending.touch()
        self.was_collecting = self._is_collecting
        workers = _descendants(self._laptop.pid) if self._choose.random() < 0.8 else []
        try:
            os.kill(self._laptop.pid, signal.SIGKILL)
            for pid in workers:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            # Not detached before everybody has noticed: the writer would go on in the empty folder below.
            self._laptop.kill(detach=False)
        finally:
            self._over.set()
            for thread in self._threads:
                thread.join()
            try:
                self._writer.wait(30)
            finally:
                self._writer.kill()
        self._laptop.detach()
        errors = [line for line in self._lines() if line.startswith("e ")]
        assert not errors, errors
        assert not self._failures, self._failures

    def bound(self, epoch: int) -> int:
        """Return a step that was surely done before this epoch was cut; 0 if nothing is known."""
        return max((poll.done for poll in self.polls if poll.local <= epoch - 2), default=0)

    @property
    def cloud(self) -> int:
        """The newest epoch that was reported as durable."""
        return max((poll.cloud for poll in self.polls), default=0)


def _descendants(pid: int) -> list[int]:
    """Return the processes that were started by a process, and by those."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            for child in (task / "children").read_text("ascii").split():
                found += [int(child), *_descendants(int(child))]
    return found

"""Jobs for tests of the worker pool: importable, of the standard library, and telling the test what they do by files.

Used by tests/test_workers.py.  Files, because a job's process may be killed at any moment; waiting is by polling a
file every few milliseconds, with no limit of its own: the pool's deadline is what is being tested.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import NoReturn

_POLL_S = 0.005


def double(data: bytes) -> bytes:
    """Return `data` twice."""
    return data + data


def describe(prefix: str, number: int) -> dict[str, int]:
    """Return a value that is not bytes."""
    return {prefix: number}


def loaded_modules() -> list[str]:
    """Return the names of all modules that this worker has imported."""
    return sorted(sys.modules)


def say_and_wait(said: str, until: str) -> int:
    """Append a line with our process id to file `said`, wait until file `until` exists; return the process id."""
    with open(said, "a", encoding="ascii") as file:
        file.write(f"{os.getpid()}\n")
    while not Path(until).exists():
        time.sleep(_POLL_S)
    return os.getpid()


def wait_the_first_time(said: str) -> int:
    """Append our process id to file `said`; hang if the file is new, else return the process id."""
    first = not Path(said).exists()
    with open(said, "a", encoding="ascii") as file:
        file.write(f"{os.getpid()}\n")
    if first:
        hang()
    return os.getpid()


def hang() -> NoReturn:
    """Never return."""
    threading.Event().wait()
    raise AssertionError


def die() -> NoReturn:
    """End the worker as the OOM killer would."""
    os.kill(os.getpid(), signal.SIGKILL)
    hang()


class UnpicklableError(Exception):
    """Survives pickling, but not unpickling: its arguments are not those of its constructor."""

    def __init__(self, *, why: str) -> None:
        super().__init__(f"because {why}")


def fail(error: BaseException) -> NoReturn:
    """Raise `error`."""
    raise error


def fail_unpicklably(why: str) -> NoReturn:
    """Raise what cannot be brought back."""
    raise UnpicklableError(why=why)


def return_unpicklable() -> object:
    """Return what cannot be brought back."""
    return threading.Lock()

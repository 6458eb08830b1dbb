"""The kernel's page cache in tests: dropped for one file only, and counts that hold where nobody else drops it.

Used by tests that count upcalls.  Other tests run beside them, and some of them drop the whole page cache.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

_VMSTAT: Final = Path("/proc/vmstat")
_COUNTERS: Final = ("drop_pagecache", "drop_slab")
ATTEMPTS: Final = 20


def forget_pages(path: Path) -> None:
    """Write a file's dirty pages out and drop all its pages that nobody has mapped."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def times_dropped() -> int:
    """Return how often somebody dropped the page cache, or the names and attributes, of the whole machine."""
    rows = (line.split() for line in _VMSTAT.read_text("ascii").splitlines())
    return sum(int(value) for name, value in rows if name in _COUNTERS)


def undisturbed(attempt: Callable[[], None]) -> None:
    """Run `attempt`, which asserts what the kernel still has; again, if it failed while somebody dropped the caches."""
    for _ in range(ATTEMPTS):
        before = times_dropped()
        try:
            attempt()
        except AssertionError:
            if times_dropped() == before:
                raise
        else:
            return
    raise AssertionError(f"somebody dropped the page cache in each of {ATTEMPTS} attempts")

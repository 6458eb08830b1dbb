"""The time of day as the kernel stamps files with it.

Used wherever a node gets a time.  With the write-back cache some stamps are the kernel's and some ours: taken from two
clocks, a later change could show the earlier time.  Source: the kernel's fs/inode.c; clock_gettime(2).
"""

from __future__ import annotations

import time
from typing import Final

_CLOCK_REALTIME_COARSE: Final = 5
"""Linux's number; Python has no name for it.  It moves with the timer, every 1 to 10 ms."""


def now_ns() -> int:
    """Return the time of day in nanoseconds since the epoch, up to 10 ms behind `time.time_ns()`, never ahead."""
    return time.clock_gettime_ns(_CLOCK_REALTIME_COARSE)

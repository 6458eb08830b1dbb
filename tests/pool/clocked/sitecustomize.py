"""Sets the clock of every Python process that finds this first: the file that CUCKOO_TEST_CLOCK names has seconds.

Used by test_pool_clock.py through PYTHONPATH, for daemon, workers and commands.  Only the time of day moves, as where
somebody sets it; what counts since the boot does not.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

_FILE = Path(os.environ["CUCKOO_TEST_CLOCK"])
_OF_THE_DAY = (time.CLOCK_REALTIME, 5)
_time_ns, _clock_gettime_ns = time.time_ns, time.clock_gettime_ns


def _offset_ns() -> int:
    return int(_FILE.read_text("ascii") or "0") * 10**9


def _now_ns() -> int:
    return _time_ns() + _offset_ns()


def _now_s() -> float:
    return _now_ns() / 1e9


def _gettime_ns(clock: int) -> int:
    return _clock_gettime_ns(clock) + (_offset_ns() if clock in _OF_THE_DAY else 0)


time.time_ns, time.time, time.clock_gettime_ns = _now_ns, _now_s, _gettime_ns

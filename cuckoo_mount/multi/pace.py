"""How long requests to each cloud take: what is usual there, what is to be expected now, and when one is late.

Used by multi/requests.py, which reports, and by multi/fetching.py, which asks.  For one trio loop, never waits.
Requests are compared with those of the same cloud, kind and class of size only, so that no bandwidth has to be known.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Final

import trio
from attrs import define, field

from cuckoo_mount.multi.health import Request
from cuckoo_mount.types import CloudName

CLASSES_BYTES: Final = (256 << 10, 2 << 20)
"""Ends of the classes of size; what is larger is the last one."""
KNOWN_FROM: Final = 8
"""So many requests it takes to know what is usual."""
REMEMBERED: Final = 64
_RECENT_WEIGHT: Final = 0.3
USUAL_FLOOR_S: Final = 0.1
"""Nobody minds how many times this a cloud next door takes longer than usual."""
LATE_PART: Final = 0.95
LATE_FLOOR_S: Final = 0.05
"""No request counts as late before."""
UNKNOWN_LATE_S: Final = 1.0
UNKNOWN_BYTES_PER_S: Final = 1 << 20
"""Where nothing is known, a request is late after UNKNOWN_LATE_S and its bytes at this rate."""
_GIVEN_UP_COUNTS: Final = 2.0
_GIVEN_UP_MAX_S: Final = 60.0
"""A request that was given up would have taken longer; how much, nobody knows: each time twice as long is expected."""
HALF_LIFE_S: Final = 120.0
"""A cloud that is not asked any more because it was slow gets another chance: what was measured counts half by then."""


@define(eq=False)
class _Series:
    """Times in seconds of one cloud's requests of one kind and class."""

    times: deque[float] = field(factory=lambda: deque(maxlen=REMEMBERED))
    usual_s: float = 0.0
    recent_s: float = 0.0
    count: int = 0
    noted_at_s: float = 0.0


class Paces:
    """Times of requests to all clouds of a drive."""

    def __init__(self, *, clock: Callable[[], float] = trio.current_time) -> None:
        self._clock = clock
        self._series: dict[tuple[CloudName, Request, int], _Series] = {}

    def note(self, cloud: CloudName, request: Request, size_bytes: int, seconds: float) -> float | None:
        """Take note of a request that worked; return how many times as long as usual it took, if that is known."""
        series = self._of(cloud, request, size_bytes)
        pace = self._pace(series, seconds)
        series.count += 1
        series.times.append(seconds)
        series.usual_s += (seconds - series.usual_s) / min(series.count, REMEMBERED)
        series.recent_s += (seconds - series.recent_s) * (_RECENT_WEIGHT if series.count > 1 else 1.0)
        series.noted_at_s = self._clock()
        return pace

    def note_given_up(self, cloud: CloudName, request: Request, size_bytes: int, seconds: float) -> float | None:
        """Take note of a late one that was given up after so long; return as `note`."""
        series = self._of(cloud, request, size_bytes)
        series.recent_s = min(_GIVEN_UP_MAX_S, _GIVEN_UP_COUNTS * max(series.recent_s, seconds))
        series.noted_at_s = self._clock()
        return self._pace(series, series.recent_s)

    def expected_s(self, cloud: CloudName, request: Request, size_bytes: int) -> float:
        """Return about how long such a request takes now; 0 where nothing is known, so that it is tried."""
        series = self._of(cloud, request, size_bytes)
        age_s = self._clock() - series.noted_at_s
        return float(series.recent_s * 0.5 ** (age_s / HALF_LIFE_S))

    def late_s(self, cloud: CloudName, request: Request, size_bytes: int) -> float:
        """Return after how long such a request is later than all but one in twenty."""
        times = sorted(self._of(cloud, request, size_bytes).times)
        if len(times) < KNOWN_FROM:
            return UNKNOWN_LATE_S + size_bytes / UNKNOWN_BYTES_PER_S
        return max(LATE_FLOOR_S, times[math.ceil(LATE_PART * len(times)) - 1])

    def forget(self, cloud: CloudName) -> None:
        """Drop what is known of a cloud."""
        for key in [key for key in self._series if key[0] == cloud]:
            del self._series[key]

    def _of(self, cloud: CloudName, request: Request, size_bytes: int) -> _Series:
        size_class = sum(size_bytes > limit for limit in CLASSES_BYTES)
        return self._series.setdefault((cloud, request, size_class), _Series())

    def _pace(self, series: _Series, seconds: float) -> float | None:
        if series.count < KNOWN_FROM:
            return None
        return seconds / max(series.usual_s, USUAL_FLOOR_S)

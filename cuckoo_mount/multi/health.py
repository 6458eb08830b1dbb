"""The state of every cloud: what happened last, and when it is worth asking again.

Used by multi/multifs.py, which reports each request; read by placement, `status` and whoever wants to tell the user.
`next_state` is a pure function; `Health` applies it, with trio's clock.  For one trio loop; nothing here waits.
A cloud starts as *unknown*: nothing is written to it before its drive.json was read (docs/format.md).
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable, Iterable
from enum import Enum
from typing import Final

import trio
from attrs import evolve, frozen

from cuckoo_mount.errors import (
    CloudCorrupt,
    CloudError,
    CloudFull,
    CloudMissing,
    CloudNotOurs,
    CloudRefused,
    CloudTimeout,
)
from cuckoo_mount.types import CloudName

log = logging.getLogger(__name__)

BACKOFF_FIRST_S: Final = 1.0
BACKOFF_MAX_S: Final = 30.0
"""Below the 60 s that a read may wait, so that every read gets at least one try."""
FULL_RETRY_S: Final = 300.0
_DOUBLINGS_MAX: Final = 16


class Condition(Enum):
    """What a cloud's last answers mean.  The values are what `status --json` shows as `state`."""

    UNKNOWN = "unknown"
    OK = "ok"
    FULL = "full"
    DOWN = "down"
    REFUSED = "refused"
    NOT_OURS = "not-ours"


class Request(Enum):
    """What was asked; a read that works says nothing about room, and only a probe says whose the place is.

    NOTE: a small object was stored or deleted, which a cloud may do that has no room for a share.
    """

    PROBE = "probe"
    READ = "read"
    NOTE = "note"
    WRITE = "write"
    DELETE = "delete"


@frozen(slots=True)
class State:
    """One cloud's state.  `failures`: in a row.  `retry_at_s`: before this time of trio's clock, asking is no use."""

    condition: Condition = Condition.UNKNOWN
    failures: int = 0
    retry_at_s: float = 0.0
    last_error: str = ""


@frozen(slots=True)
class Counters:
    """What was asked of a cloud since the mount; bytes of objects, without protocol overhead."""

    requests: int = 0
    errors: int = 0
    bytes_up: int = 0
    bytes_down: int = 0


def backoff_s(failures: int, jitter: float) -> float:
    """Return how long to leave a cloud alone after `failures` (≥ 1) in a row; `jitter` in [0, 1) takes up to half."""
    full = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2.0 ** min(failures - 1, _DOUBLINGS_MAX))
    return full * (1.0 - jitter / 2)


def next_state(state: State, request: Request, error: CloudError | None, *, now_s: float, jitter: float) -> State:
    """Return the state after a request that worked (`error` None) or failed.

    A damaged or missing object is no fault of the cloud as a whole: only the text is kept.
    """
    if error is None:
        return _after_success(state, request)
    text = str(error)
    if isinstance(error, CloudMissing | CloudCorrupt):
        return evolve(state, last_error=text)
    if isinstance(error, CloudFull):
        return State(Condition.FULL, state.failures + 1, now_s + FULL_RETRY_S * (1.0 - jitter / 2), text)
    condition = Condition.DOWN
    if isinstance(error, CloudNotOurs):
        condition = Condition.NOT_OURS
    elif isinstance(error, CloudRefused):
        condition = Condition.REFUSED
    elif isinstance(error, CloudTimeout) and state.condition is Condition.OK and request is not Request.PROBE:
        # One slow transfer does not make a cloud that answers count as down; the next failure does.
        condition = Condition.OK if state.failures == 0 else Condition.DOWN
    failures = state.failures + 1
    return State(condition, failures, now_s + backoff_s(failures, jitter), text)


def _after_success(state: State, request: Request) -> State:
    if request is Request.PROBE:
        full = state.condition is Condition.FULL
        return state if full else State(Condition.OK, last_error=state.last_error)
    if state.condition in (Condition.UNKNOWN, Condition.NOT_OURS):
        return state  # until drive.json was read there
    if state.condition is Condition.FULL and request in (Request.READ, Request.NOTE):
        return state
    return State(Condition.OK, last_error=state.last_error)


class Health:
    """The states and counters of all clouds of a drive; passed into the constructors of those who report or read."""

    def __init__(
        self,
        *,
        clock: Callable[[], float] = trio.current_time,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._clock = clock
        self._jitter = jitter
        self._states: dict[CloudName, State] = {}
        self._counters: dict[CloudName, Counters] = {}
        self._heard_at_s: dict[CloudName, float] = {}
        self._failed_at_s: dict[CloudName, float] = {}

    def state(self, cloud: CloudName) -> State:
        """Return a cloud's state; *unknown* for one never asked."""
        return self._states.get(cloud, State())

    def counters(self, cloud: CloudName) -> Counters:
        """Return a cloud's counters."""
        return self._counters.get(cloud, Counters())

    def report(
        self, cloud: CloudName, request: Request, error: CloudError | None, *, bytes_up: int = 0, bytes_down: int = 0
    ) -> None:
        """Take note of one request's outcome; a change of condition is logged."""
        before = self.state(cloud)
        after = next_state(before, request, error, now_s=self._clock(), jitter=self._jitter())
        counted = self.counters(cloud)
        self._states[cloud] = after
        if error is None:
            self._heard_at_s[cloud] = self._clock()
        else:
            self._failed_at_s[cloud] = self._clock()
        self._counters[cloud] = Counters(
            counted.requests + 1,
            counted.errors + (error is not None),
            counted.bytes_up + bytes_up,
            counted.bytes_down + bytes_down,
        )
        if after.condition is not before.condition:
            level = logging.INFO if after.condition is Condition.OK else logging.WARNING
            log.log(level, "cloud %s is now %s: %s", cloud, after.condition.value, error or "it answers")

    def may_ask(self, cloud: CloudName) -> bool:
        """Return whether its backoff is over; always so for a cloud that is well."""
        state = self.state(cloud)
        return state.condition in (Condition.OK, Condition.FULL) or self._clock() >= state.retry_at_s

    def is_up(self, cloud: CloudName) -> bool:
        """Return whether its identity is confirmed and it answers; only then does "not found" mean lost."""
        return self.state(cloud).condition in (Condition.OK, Condition.FULL)

    def silent_s(self, cloud: CloudName) -> float:
        """Return how many seconds ago a request to the cloud last worked; infinity if none ever did."""
        heard_at_s = self._heard_at_s.get(cloud)
        return math.inf if heard_at_s is None else self._clock() - heard_at_s

    def error_age_s(self, cloud: CloudName) -> float | None:
        """Return how many seconds ago a request to the cloud last failed; None if none did."""
        failed_at_s = self._failed_at_s.get(cloud)
        return None if failed_at_s is None else self._clock() - failed_at_s

    def is_full(self, cloud: CloudName) -> bool:
        """Return whether it said lately that it has no room; after a while it may be tried again."""
        state = self.state(cloud)
        return state.condition is Condition.FULL and self._clock() < state.retry_at_s

    def wait_s(self, clouds: Iterable[CloudName]) -> float:
        """Return in how many seconds the first of these clouds may be asked; 0 for now."""
        now_s = self._clock()
        return min((0.0 if self.may_ask(name) else self.state(name).retry_at_s - now_s for name in clouds), default=0.0)

    def forget(self, cloud: CloudName) -> None:
        """Drop what is known of a cloud that was removed from the drive."""
        self._states.pop(cloud, None)
        self._counters.pop(cloud, None)
        self._heard_at_s.pop(cloud, None)
        self._failed_at_s.pop(cloud, None)

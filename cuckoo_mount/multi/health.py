"""The state of every cloud: what happened last, and when it is worth asking again.

Used by multi/multifs.py, which reports each request; read by placement, `status` and whoever wants to tell the user.
`next_state` is a pure function; `Health` applies it, with trio's clock.  For one trio loop; nothing here waits.
A cloud starts as *unknown*: nothing is written to it before its drive.json was read (docs/format.md).
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable, Collection, Iterable
from enum import Enum
from typing import Final

import trio
from attrs import evolve, frozen

from cuckoo_mount.errors import (
    CloudBusy,
    CloudCorrupt,
    CloudError,
    CloudFull,
    CloudMissing,
    CloudNeedsLogin,
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
BUSY_DOWN_S: Final = 15.0
"""A cloud that has done nothing but reject requests for so long is down, whatever it calls it."""
SLOW_FROM: Final = 8.0
"""*Slow*: its requests take this many times as long as they usually do there, on the average of about the last four."""
SLOW_UNTIL: Final = 3.0
_SLOWNESS_WEIGHT: Final = 0.25
_SLOWNESS_MAX: Final = 24.0
"""No request counts for more: one alone makes no cloud slow, and after the worst nine good ones make it well again."""
FAILING_FROM: Final = 0.3
"""*Failing*: it answers, but this part of its requests fails, on the average of about the last ten.  What fails while
it is down anyway does not count."""
FAILING_UNTIL: Final = 0.1
_FAILURE_WEIGHT: Final = 0.1


class Condition(Enum):
    """What a cloud's last answers mean.  The values are what `status --json` shows as `state`."""

    UNKNOWN = "unknown"
    OK = "ok"
    SLOW = "slow"
    FAILING = "failing"
    FULL = "full"
    READ_ONLY = "read-only"
    DOWN = "down"
    REFUSED = "refused"
    NEEDS_LOGIN = "needs-login"
    NOT_OURS = "not-ours"


UP: Final = frozenset({Condition.OK, Condition.SLOW, Condition.FAILING, Condition.FULL, Condition.READ_ONLY})
"""Its drive.json was read and it answers."""
USABLE: Final = frozenset({Condition.OK, Condition.SLOW, Condition.FAILING})
"""Of these, those that take something."""
HOPELESS: Final = frozenset({Condition.REFUSED, Condition.NEEDS_LOGIN, Condition.NOT_OURS})
"""Waiting alone does not help; somebody has to mend it."""
_CLOSED: Final = frozenset({Condition.FULL, Condition.READ_ONLY})


class Request(Enum):
    """What was asked; a read that works says nothing about room, and only a probe says whose the place is.

    NOTE: a small object was stored or deleted, which a cloud may do that has no room for a share.
    """

    PROBE = "probe"
    READ = "read"
    NOTE = "note"
    WRITE = "write"
    DELETE = "delete"


_CHANGES: Final = frozenset({Request.WRITE, Request.DELETE})


@frozen(slots=True)
class State:
    """One cloud's state.  `failures`: in a row.  `retry_at_s`: before this time of trio's clock, asking is no use.

    `slowness`: average of how many times as long as usual its requests take; `failing`: of the part that fails;
    `is_slow`, `is_failing`: these averages' verdict, which lasts until they are well below what began it.
    `is_confirmed`: its drive.json was read, and no other was found there since.
    `rejected_since_s`: when it began to reject every request as too many; None: it does not.
    """

    condition: Condition = Condition.UNKNOWN
    failures: int = 0
    retry_at_s: float = 0.0
    last_error: str = ""
    slowness: float = 1.0
    failing: float = 0.0
    is_slow: bool = False
    is_failing: bool = False
    is_confirmed: bool = False
    rejected_since_s: float | None = None


@frozen(slots=True)
class Counters:
    """What was asked of a cloud since the mount; bytes of objects, without protocol overhead.

    `rejected`: of the errors, those that mean "too many requests".  `hedged`: how often a share of another cloud was
    asked for as well, because this one was late.
    """

    requests: int = 0
    errors: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    rejected: int = 0
    hedged: int = 0


def backoff_s(failures: int, jitter: float) -> float:
    """Return how long to leave a cloud alone after `failures` (≥ 1) in a row; `jitter` in [0, 1) takes up to half."""
    full = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2.0 ** min(failures - 1, _DOUBLINGS_MAX))
    return full * (1.0 - jitter / 2)


def next_state(
    state: State,
    request: Request,
    error: CloudError | None,
    *,
    now_s: float,
    jitter: float,
    pace: float | None = None,
) -> State:
    """Return the state after a request that worked (`error` None) or failed.

    `pace`: how many times as long as usual it took, if that is known.
    A damaged or missing object is no fault of the cloud as a whole: only the text is kept; but where it is drive.json
    that is damaged, nothing says any more whose place that is.
    """
    if pace is not None:
        state = _with_pace(state, pace)
    if error is None:
        return _after_success(_with_failing(state, failed=False), request)
    text = str(error)
    is_identity = request is Request.PROBE and isinstance(error, CloudCorrupt)
    if isinstance(error, CloudMissing | CloudCorrupt) and not is_identity:
        return evolve(state, last_error=text)
    if isinstance(error, CloudBusy):
        return _after_rejection(state, error, now_s=now_s, jitter=jitter)
    failures = state.failures + 1
    if isinstance(error, CloudFull) and state.is_confirmed:
        return evolve(
            state,
            condition=Condition.FULL,
            failures=failures,
            retry_at_s=now_s + FULL_RETRY_S * (1.0 - jitter / 2),
            last_error=text,
            rejected_since_s=None,
        )
    retry_at_s = now_s + backoff_s(failures, jitter)
    condition = Condition.DOWN
    if isinstance(error, CloudNotOurs) or is_identity:
        condition = Condition.NOT_OURS
        state = evolve(state, is_confirmed=False)
    elif isinstance(error, CloudNeedsLogin):
        condition = Condition.NEEDS_LOGIN
    elif isinstance(error, CloudRefused):
        condition = Condition.REFUSED
        if request in _CHANGES and state.condition in UP:
            # What is there can still be read; only a refused read or probe says otherwise.
            condition, retry_at_s = Condition.READ_ONLY, now_s + FULL_RETRY_S * (1.0 - jitter / 2)
    else:
        if state.condition in UP:
            state = _with_failing(state, failed=True)
        if isinstance(error, CloudTimeout) and request is not Request.PROBE and not state.failures:
            # One slow transfer does not make a cloud that answers count as down; the next failure does.
            condition = _well(state) if state.condition in USABLE else condition
    return evolve(
        state,
        condition=condition,
        failures=failures,
        retry_at_s=retry_at_s,
        last_error=text,
        rejected_since_s=None,
    )


def _with_pace(state: State, pace: float) -> State:
    slowness = state.slowness + _SLOWNESS_WEIGHT * (min(pace, _SLOWNESS_MAX) - state.slowness)
    return evolve(state, slowness=slowness, is_slow=slowness >= (SLOW_UNTIL if state.is_slow else SLOW_FROM))


def _with_failing(state: State, *, failed: bool) -> State:
    failing = state.failing + _FAILURE_WEIGHT * (failed - state.failing)
    return evolve(state, failing=failing, is_failing=failing >= (FAILING_UNTIL if state.is_failing else FAILING_FROM))


def _well(state: State) -> Condition:
    """Return what a cloud is that answers and takes something."""
    if state.is_failing:
        return Condition.FAILING
    return Condition.SLOW if state.is_slow else Condition.OK


def _after_rejection(state: State, error: CloudBusy, *, now_s: float, jitter: float) -> State:
    """Too many requests are no trouble of a cloud that otherwise works: it gets fewer (limits.py)."""
    since_s = now_s if state.rejected_since_s is None else state.rejected_since_s
    failures = state.failures + 1
    pause_s = error.retry_after_s
    condition = state.condition
    if condition not in UP or pause_s > BACKOFF_MAX_S or now_s - since_s >= BUSY_DOWN_S:
        pause_s = max(pause_s, backoff_s(failures, jitter))
        condition = condition if condition in HOPELESS else Condition.DOWN
    # A cloud that is full or read-only keeps its own time for another try.
    retry_at_s = state.retry_at_s if condition in _CLOSED else now_s + pause_s
    return evolve(
        state,
        condition=condition,
        failures=failures,
        retry_at_s=retry_at_s,
        last_error=str(error),
        rejected_since_s=since_s,
    )


def _after_success(state: State, request: Request) -> State:
    state = evolve(state, rejected_since_s=None)
    if request is Request.PROBE:
        state, keeps = evolve(state, is_confirmed=True), state.condition in _CLOSED
    else:
        # Until drive.json was read there, nothing else that works says whose place it is.
        keeps = not state.is_confirmed or (state.condition in _CLOSED and request in (Request.READ, Request.NOTE))
    return state if keeps else evolve(state, condition=_well(state), failures=0, retry_at_s=0.0)


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
        self._late_at_s: dict[CloudName, float] = {}

    def state(self, cloud: CloudName) -> State:
        """Return a cloud's state; *unknown* for one never asked."""
        return self._states.get(cloud, State())

    def counters(self, cloud: CloudName) -> Counters:
        """Return a cloud's counters."""
        return self._counters.get(cloud, Counters())

    def report(
        self,
        cloud: CloudName,
        request: Request,
        error: CloudError | None,
        *,
        bytes_up: int = 0,
        bytes_down: int = 0,
        pace: float | None = None,
    ) -> None:
        """Take note of one request's outcome; a change of condition is logged.  `pace`: see `next_state`."""
        before = self.state(cloud)
        after = next_state(before, request, error, now_s=self._clock(), jitter=self._jitter(), pace=pace)
        counted = self.counters(cloud)
        if error is None:
            self._heard_at_s[cloud] = self._clock()
        else:
            self._failed_at_s[cloud] = self._clock()
        self._counters[cloud] = evolve(
            counted,
            requests=counted.requests + 1,
            errors=counted.errors + (error is not None),
            bytes_up=counted.bytes_up + bytes_up,
            bytes_down=counted.bytes_down + bytes_down,
            rejected=counted.rejected + isinstance(error, CloudBusy),
        )
        self._enter(cloud, after, error)

    def note_late(self, cloud: CloudName, pace: float | None) -> None:
        """Take note of a late request that nobody waits for any more; `pace`: see `next_state`."""
        self._late_at_s[cloud] = self._clock()
        if pace is not None:
            self._enter(cloud, _relabelled(_with_pace(self.state(cloud), pace)), None)

    def note_hedged(self, cloud: CloudName) -> None:
        """Count that another cloud was asked as well, because this one was late."""
        counted = self.counters(cloud)
        self._counters[cloud] = evolve(counted, hedged=counted.hedged + 1)

    def _enter(self, cloud: CloudName, after: State, error: CloudError | None) -> None:
        before = self.state(cloud)
        self._states[cloud] = after
        if after.condition is not before.condition:
            level = logging.INFO if after.condition is Condition.OK else logging.WARNING
            why = f"{after.slowness:.0f} times as slow as usual" if after.condition is Condition.SLOW else "it answers"
            log.log(level, "cloud %s is now %s: %s", cloud, after.condition.value, error or why)

    def may_ask(self, cloud: CloudName) -> bool:
        """Return whether its backoff is over; always so for a cloud that is well."""
        state = self.state(cloud)
        return state.condition in UP or self._clock() >= state.retry_at_s

    def is_up(self, cloud: CloudName) -> bool:
        """Return whether its identity is confirmed and it answers; only then does "not found" mean lost."""
        return self.state(cloud).condition in UP

    def is_well(self, cloud: CloudName) -> bool:
        """Return whether it is up, and neither slow nor failing nor asking for a pause: else others are asked first."""
        state = self.state(cloud)
        if state.condition not in UP or state.is_slow or state.is_failing:
            return False
        return state.rejected_since_s is None or self._clock() >= state.retry_at_s

    def is_suspect(self, cloud: CloudName) -> bool:
        """Return whether a request was given up as late, and none has worked since: perhaps it answers no more."""
        return cloud in self._late_at_s and self._late_at_s[cloud] >= self._heard_at_s.get(cloud, -math.inf)

    def silent_s(self, cloud: CloudName) -> float:
        """Return how many seconds ago a request to the cloud last worked; infinity if none ever did."""
        heard_at_s = self._heard_at_s.get(cloud)
        return math.inf if heard_at_s is None else self._clock() - heard_at_s

    def error_age_s(self, cloud: CloudName) -> float | None:
        """Return how many seconds ago a request to the cloud last failed; None if none did."""
        failed_at_s = self._failed_at_s.get(cloud)
        return None if failed_at_s is None else self._clock() - failed_at_s

    def takes_nothing(self, cloud: CloudName) -> bool:
        """Return whether it said lately that it has no room, or lets nothing be stored; later it may be tried again."""
        state = self.state(cloud)
        return state.condition in _CLOSED and self._clock() < state.retry_at_s

    def wait_s(self, clouds: Iterable[CloudName]) -> float:
        """Return in how many seconds the first of these clouds may be asked; 0 for now."""
        now_s = self._clock()
        return min((0.0 if self.may_ask(name) else self.state(name).retry_at_s - now_s for name in clouds), default=0.0)

    def check(self, clouds: Collection[CloudName]) -> list[str]:
        """Return what is wrong with the book of these clouds, which are all of the drive."""
        known = self._states.keys() | self._counters.keys() | self._heard_at_s.keys() | self._failed_at_s.keys()
        problems = [f"I-35: {name} is no cloud of the drive any more" for name in known - set(clouds)]
        for name in clouds:
            state, counted = self.state(name), self.counters(name)
            if state.condition in UP and not state.is_confirmed:
                problems.append(f"I-35: cloud {name} is {state.condition.value}, and its drive.json was not read")
            if not 0 <= counted.rejected <= counted.errors <= counted.requests:
                problems.append(f"I-35: the counters of cloud {name} do not add up: {counted}")
        return problems

    def forget(self, cloud: CloudName) -> None:
        """Drop what is known of a cloud that was removed from the drive."""
        self._states.pop(cloud, None)
        self._counters.pop(cloud, None)
        self._heard_at_s.pop(cloud, None)
        self._failed_at_s.pop(cloud, None)
        self._late_at_s.pop(cloud, None)


def _relabelled(state: State) -> State:
    return evolve(state, condition=_well(state)) if state.condition in USABLE else state

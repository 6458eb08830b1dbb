"""How a cloud's state follows from what happened to its requests."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
    CloudUnavailable,
)
from cuckoo_mount.multi.health import (
    BACKOFF_MAX_S,
    BUSY_DOWN_S,
    FAILING_FROM,
    FAILING_UNTIL,
    SLOW_FROM,
    SLOW_UNTIL,
    UP,
    USABLE,
    Condition,
    Health,
    Request,
    State,
    backoff_s,
    next_state,
)
from cuckoo_mount.types import CloudName

A = CloudName("a")


def after(*events: tuple[Request, CloudError | None]) -> State:
    state = State()
    for request, error in events:
        state = next_state(state, request, error, now_s=100.0, jitter=0.0)
    return state


FINE = (Request.PROBE, None)
DOWN = (Request.READ, CloudUnavailable("no answer"))
FULL = (Request.WRITE, CloudFull("no room"))
LOCKED = (Request.DELETE, CloudRefused("read-only"))
BUSY = (Request.READ, CloudBusy("too many", retry_after_s=2.0))
STRANGE = (Request.PROBE, CloudNotOurs("empty folder"))


@pytest.mark.parametrize(
    ("events", "condition"),
    [
        ([], Condition.UNKNOWN),
        ([FINE], Condition.OK),
        ([(Request.READ, None)], Condition.UNKNOWN),
        ([(Request.WRITE, None)], Condition.UNKNOWN),
        ([FINE, DOWN], Condition.DOWN),
        ([FINE, DOWN, (Request.READ, None)], Condition.OK),
        ([FINE, DOWN, FINE], Condition.OK),
        ([FINE, (Request.READ, CloudMissing("x"))], Condition.OK),
        ([FINE, (Request.READ, CloudCorrupt("x"))], Condition.OK),
        ([FINE, (Request.READ, CloudRefused("x"))], Condition.REFUSED),
        ([FINE, STRANGE], Condition.NOT_OURS),
        ([FINE, STRANGE, (Request.WRITE, None)], Condition.NOT_OURS),
        ([FINE, STRANGE, FINE], Condition.OK),
        ([FINE, FULL], Condition.FULL),
        ([FINE, FULL, (Request.READ, None)], Condition.FULL),
        ([FINE, FULL, FINE], Condition.FULL),
        ([FINE, FULL, (Request.DELETE, None)], Condition.OK),
        ([FINE, FULL, (Request.WRITE, None)], Condition.OK),
        ([FINE, FULL, (Request.NOTE, None)], Condition.FULL),
        ([FINE, (Request.WRITE, CloudTimeout("slow"))], Condition.OK),
        ([FINE, (Request.WRITE, CloudTimeout("slow")), (Request.WRITE, CloudTimeout("slow"))], Condition.DOWN),
        ([(Request.PROBE, CloudTimeout("slow"))], Condition.DOWN),
        ([FINE, (Request.READ, CloudNeedsLogin("x"))], Condition.NEEDS_LOGIN),
        ([FINE, (Request.WRITE, CloudNeedsLogin("x"))], Condition.NEEDS_LOGIN),
        ([FINE, (Request.READ, CloudNeedsLogin("x")), FINE], Condition.OK),
        ([FINE, LOCKED], Condition.READ_ONLY),
        ([FINE, LOCKED, (Request.READ, None), FINE], Condition.READ_ONLY),
        ([FINE, LOCKED, (Request.WRITE, None)], Condition.OK),
        ([FINE, LOCKED, (Request.READ, CloudRefused("x"))], Condition.REFUSED),
        ([LOCKED], Condition.REFUSED),
        ([FINE, LOCKED, DOWN], Condition.DOWN),
        ([FINE, BUSY], Condition.OK),
        ([FINE, *[BUSY] * 100], Condition.OK),
        ([FINE, BUSY, (Request.READ, None)], Condition.OK),
        ([FINE, (Request.READ, CloudBusy("x", retry_after_s=3600.0))], Condition.DOWN),
        ([FINE, FULL, BUSY], Condition.FULL),
        ([DOWN, BUSY], Condition.DOWN),
        ([(Request.PROBE, CloudRefused("x")), BUSY], Condition.REFUSED),
        ([DOWN, (Request.READ, None)], Condition.DOWN),
        ([FULL, FINE], Condition.OK),
        ([FINE, *[DOWN, FINE] * 3], Condition.OK),
        ([FINE, *[DOWN, FINE] * 9], Condition.FAILING),
        ([FINE, *[DOWN] * 99, FINE], Condition.OK),
    ],
)
def test_conditions(events: list[tuple[Request, CloudError | None]], condition: Condition) -> None:
    assert after(*events).condition is condition


def test_backoff_grows_to_its_limit_and_jitter_halves_at_most() -> None:
    times = [backoff_s(failures, 0.0) for failures in range(1, 100)]
    assert times == sorted(times)
    assert times[0] == 1.0
    assert times[-1] == BACKOFF_MAX_S


@given(st.integers(1, 10_000), st.floats(0, 1, exclude_max=True))
def test_backoff_stays_in_its_bounds(failures: int, jitter: float) -> None:
    assert backoff_s(failures, 0.0) / 2 <= backoff_s(failures, jitter) <= BACKOFF_MAX_S


def test_failures_count_until_one_works() -> None:
    assert after(FINE, DOWN, DOWN, DOWN).failures == 3
    assert after(FINE, DOWN, DOWN, DOWN).retry_at_s == 104.0
    well = after(FINE, DOWN, DOWN, (Request.READ, None))
    assert (well.condition, well.failures, well.retry_at_s, well.last_error) == (Condition.OK, 0, 0.0, "no answer")


def test_health_waits_and_counts(caplog: pytest.LogCaptureFixture) -> None:
    now_s = 0.0
    health = Health(clock=lambda: now_s, jitter=lambda: 0.0)
    assert health.may_ask(A)
    assert not health.is_up(A)
    health.report(A, Request.PROBE, None)
    assert health.is_up(A)
    with caplog.at_level(logging.WARNING):
        health.report(A, Request.READ, CloudUnavailable("no answer", cloud="a"))
    assert "cloud a is now down" in caplog.text
    caplog.clear()
    assert not health.is_up(A)
    assert not health.may_ask(A)
    assert health.wait_s([A]) == 1.0
    assert health.wait_s([A, CloudName("never asked")]) == 0.0
    assert health.wait_s([]) == 0.0
    now_s = 1.0
    assert health.may_ask(A)
    health.report(A, Request.WRITE, None, bytes_up=10)
    health.report(A, Request.READ, None, bytes_down=7)
    counters = health.counters(A)
    assert (counters.requests, counters.errors, counters.bytes_up, counters.bytes_down) == (4, 1, 10, 7)
    assert health.state(A).last_error == "cloud a: no answer"
    health.forget(A)
    assert health.state(A) == State()


def test_a_full_cloud_is_tried_again_later() -> None:
    now_s = 0.0
    health = Health(clock=lambda: now_s, jitter=lambda: 0.0)
    health.report(A, Request.PROBE, None)
    health.report(A, Request.WRITE, CloudFull("no room"))
    assert health.is_up(A)
    assert health.may_ask(A), "for reading it is as good as any"
    assert health.takes_nothing(A)
    now_s = 1e6
    assert not health.takes_nothing(A)


def paced(state: State, *paces: float) -> State:
    for pace in paces:
        state = next_state(state, Request.READ, None, now_s=100.0, jitter=0.0, pace=pace)
    return state


def test_slow_begins_late_and_ends_late() -> None:
    assert paced(after(FINE), 1000.0).condition is Condition.OK, "one request makes no cloud slow"
    slow = paced(after(FINE), *[10.0] * 6)
    assert slow.condition is Condition.SLOW
    assert paced(slow, *[4.0] * 100).condition is Condition.SLOW, "still slower than it was"
    assert paced(slow, *[1.0] * 9).condition is Condition.OK
    assert paced(after(FINE), *[7.0] * 100).condition is Condition.OK


def test_rejections_alone_are_a_cloud_that_is_down() -> None:
    state = after(FINE, BUSY)
    later = next_state(state, *BUSY, now_s=100.0 + BUSY_DOWN_S, jitter=0.0)
    assert later.condition is Condition.DOWN
    between = next_state(state, Request.READ, None, now_s=105.0, jitter=0.0)
    assert next_state(between, *BUSY, now_s=100.0 + BUSY_DOWN_S, jitter=0.0).condition is Condition.OK


def test_a_pause_is_kept() -> None:
    now_s = 0.0
    health = Health(clock=lambda: now_s, jitter=lambda: 0.0)
    health.report(A, Request.PROBE, None)
    health.report(A, Request.READ, CloudBusy("too many", retry_after_s=20.0))
    assert health.is_up(A)
    assert not health.is_well(A), "others first"
    now_s = 20.0
    assert health.is_well(A)
    health.report(A, Request.READ, CloudBusy("banned", retry_after_s=3600.0))
    assert not health.may_ask(A)
    assert health.wait_s([A]) == 3600.0
    assert health.counters(A).rejected == 2


def test_a_late_request_raises_a_suspicion_until_one_works() -> None:
    now_s = 0.0
    health = Health(clock=lambda: now_s, jitter=lambda: 0.0)
    health.report(A, Request.PROBE, None)
    assert not health.is_suspect(A)
    now_s = 1.0
    health.note_late(A, None)
    assert health.is_suspect(A)
    now_s = 2.0
    health.report(A, Request.READ, None)
    assert not health.is_suspect(A)


ERRORS = (
    None,
    CloudUnavailable("x"),
    CloudTimeout("x"),
    CloudBusy("x"),
    CloudBusy("x", retry_after_s=10.0),
    CloudBusy("x", retry_after_s=600.0),
    CloudFull("x"),
    CloudRefused("x"),
    CloudNeedsLogin("x"),
    CloudMissing("x"),
    CloudCorrupt("x"),
    CloudNotOurs("x"),
)
Steps = st.lists(
    st.tuples(
        st.sampled_from(list(Request)),
        st.sampled_from(ERRORS),
        st.floats(0, 100),
        st.floats(0, 1, exclude_max=True),
        st.none() | st.floats(0, 1000),
    ),
    max_size=20,
)


@given(Steps)
def test_the_machine_as_a_whole(
    steps: list[tuple[Request, CloudError | None, float, float, float | None]],
) -> None:
    state, now_s, was_probed = State(), 0.0, False
    for request, error, after_s, jitter, pace in steps:
        now_s += after_s
        before, state = state, next_state(state, request, error, now_s=now_s, jitter=jitter, pace=pace)
        was_probed = was_probed or (request is Request.PROBE and error is None)
        assert state.condition not in UP or was_probed, "nobody is up whose drive.json was not read"
        assert state.condition is not Condition.UNKNOWN or before.condition is Condition.UNKNOWN
        if isinstance(error, CloudCorrupt) and request is Request.PROBE:
            assert (state.condition, state.is_confirmed) == (Condition.NOT_OURS, False), "whose place is that?"
        elif isinstance(error, CloudMissing | CloudCorrupt):
            assert state.condition is before.condition, "an object is not the cloud"
        elif error is None and request is Request.PROBE:
            assert state.condition in UP
        elif isinstance(error, CloudBusy) and before.condition in UP and error.retry_after_s <= BACKOFF_MAX_S:
            assert state.condition in (before.condition, Condition.DOWN)
        elif error is not None:
            assert state.failures == before.failures + 1
            assert state.condition not in USABLE or isinstance(error, CloudTimeout)
        if state.condition is Condition.DOWN and error is not None and before.condition is not Condition.DOWN:
            assert state.retry_at_s > now_s
            longest = max(BACKOFF_MAX_S, error.retry_after_s if isinstance(error, CloudBusy) else 0.0)
            assert state.retry_at_s <= now_s + longest
        assert state.condition is not Condition.SLOW or state.is_slow
        assert state.condition is not Condition.FAILING or state.is_failing
        assert state.slowness < SLOW_FROM or state.is_slow
        assert state.slowness >= SLOW_UNTIL or not state.is_slow
        assert state.failing < FAILING_FROM or state.is_failing
        assert state.failing >= FAILING_UNTIL or not state.is_failing
    for _ in range(20):
        state = next_state(state, Request.PROBE, None, now_s=now_s, jitter=0.0, pace=1.0)
        state = next_state(state, Request.WRITE, None, now_s=now_s, jitter=0.0, pace=1.0)
    assert state.condition is Condition.OK, "whatever happened, a cloud that works for long is well"

"""How a cloud's state follows from what happened to its requests."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuckoo_mount.errors import (
    CloudCorrupt,
    CloudError,
    CloudFull,
    CloudMissing,
    CloudNotOurs,
    CloudRefused,
    CloudTimeout,
    CloudUnavailable,
)
from cuckoo_mount.multi.health import (
    BACKOFF_MAX_S,
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
    assert after(FINE, DOWN, DOWN, (Request.READ, None)) == State(Condition.OK, last_error="no answer")


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
    assert health.is_full(A)
    now_s = 1e6
    assert not health.is_full(A)

"""When epochs are due, by a clock that jumps."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from cuckoo_mount.epochs.timing import (
    CATALOGUE_S,
    EPOCH_MAX_S,
    EPOCH_S,
    EPOCH_VARIABLE,
    LITTLE_BYTES,
    LITTLE_ROWS,
    EpochTimer,
)

HOUR_S = 3600.0


async def wait_until_due(timer: EpochTimer, changes: int, dirty_bytes: int = 0, catalogue: int = 0) -> float:
    """Ask every second; return after how many it was due, and begin."""
    began = trio.current_time()
    while not timer.is_due(changes, catalogue, dirty_bytes):  # noqa: ASYNC110 (as the engine does)
        await trio.sleep(1)
    timer.begin(changes, dirty_bytes)
    return trio.current_time() - began


async def test_nothing_is_due_while_nothing_changes(autojump_clock: trio.testing.MockClock) -> None:
    timer = EpochTimer()
    for _ in range(100):
        assert not timer.is_due(0, 0, 0)
        await trio.sleep(60)


async def test_an_epoch_comes_after_the_first_change(autojump_clock: trio.testing.MockClock) -> None:
    timer = EpochTimer()
    assert not timer.is_due(0, 0, 0)
    await trio.sleep(HOUR_S)
    assert await wait_until_due(timer, 1) == EPOCH_S


async def test_a_trickle_waits_longer_each_time(autojump_clock: trio.testing.MockClock) -> None:
    timer = EpochTimer()
    waits = [await wait_until_due(timer, 1, 100) for _ in range(6)]
    assert waits == [EPOCH_S, EPOCH_S, 2 * EPOCH_S, EPOCH_MAX_S, EPOCH_MAX_S, EPOCH_MAX_S]
    # After a pause the first change is as quick as ever.
    assert not timer.is_due(0, 0, 0)
    await trio.sleep(HOUR_S)
    timer.begin(1, 0)
    assert await wait_until_due(timer, 1) == EPOCH_S


@pytest.mark.parametrize(("changes", "dirty_bytes"), [(LITTLE_ROWS, 0), (1, LITTLE_BYTES), (0, LITTLE_BYTES)])
async def test_much_never_waits_longer(changes: int, dirty_bytes: int, autojump_clock: trio.testing.MockClock) -> None:
    timer = EpochTimer()
    for _ in range(3):
        await wait_until_due(timer, 1)
    waits = [await wait_until_due(timer, changes, dirty_bytes) for _ in range(3)]
    assert waits == [EPOCH_S] * 3


async def test_the_catalogue_alone_can_wait(autojump_clock: trio.testing.MockClock) -> None:
    timer = EpochTimer()
    assert timer.is_due(0, 1, 0)  # after a mount: of who knows when
    timer.begin(0, 0)
    assert await wait_until_due(timer, 0, catalogue=1) == CATALOGUE_S


async def test_what_failed_is_not_tried_again_at_once(autojump_clock: trio.testing.MockClock) -> None:
    timer = EpochTimer()
    await wait_until_due(timer, 1, LITTLE_BYTES)
    timer.failed()
    assert await wait_until_due(timer, 1, LITTLE_BYTES) == EPOCH_S


async def test_only_tests_may_hurry(monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock) -> None:
    monkeypatch.setenv(EPOCH_VARIABLE, "0.5")
    monkeypatch.setenv("CUCKOO_TESTING", "1")
    assert await wait_until_due(EpochTimer(), 1) == 1
    monkeypatch.delenv("CUCKOO_TESTING")
    assert await wait_until_due(EpochTimer(), 1) == EPOCH_S

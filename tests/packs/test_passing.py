"""Time that passes for a drive: no clock that is set changes it, and it never runs early."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from cuckoo_mount.clock import APART_NS, Moment, later
from cuckoo_mount.packs.passing import PASSED, passed_ns
from tests.metadata.helpers import new_store

DAY_NS = 24 * 3600 * 10**9


async def test_it_passes_as_the_machine_is_on(tmp_path: Path) -> None:
    async with await new_store(tmp_path / "metadata") as store:
        start = await passed_ns(store, Moment("one", 5 * DAY_NS))
        assert abs(start - time.time_ns()) < DAY_NS, "what was noted by the time of day before is not younger now"
        assert await passed_ns(store, Moment("one", 5 * DAY_NS + 7)) == start + 7
        assert await passed_ns(store, Moment("one", 6 * DAY_NS)) == start + DAY_NS


async def test_what_nobody_saw_does_not_count(tmp_path: Path) -> None:
    """Between boots, and where the folder was copied to another machine that has been up for long."""
    async with await new_store(tmp_path / "metadata") as store:
        start = await passed_ns(store, Moment("one", 100))
        assert await passed_ns(store, Moment("two", 30 * DAY_NS)) == start
        assert await passed_ns(store, Moment("two", 30 * DAY_NS + 9)) == start + 9
        assert await passed_ns(store, Moment("", 40 * DAY_NS)) == start + 9, "no boot id, no time"
        assert await passed_ns(store, Moment("", 41 * DAY_NS)) == start + 9


@pytest.mark.parametrize("jump_ns", [-DAY_NS, DAY_NS])
async def test_no_clock_that_is_set_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jump_ns: int) -> None:
    async with await new_store(tmp_path / "metadata") as store:
        start = await passed_ns(store)
        now_ns = time.time_ns()
        monkeypatch.setattr(time, "time_ns", lambda: now_ns + jump_ns)
        assert 0 <= await passed_ns(store) - start < DAY_NS // 2
        assert len(await store.local_settings(PASSED)) == 1


def test_stamps_go_back_only_with_the_clock() -> None:
    assert later(None, 5) == 5
    assert later(5, 7) == 7
    assert later(7, 5) == 7, "two clocks of one machine are a little apart"
    assert later(7 + DAY_NS, 7) == 7, "the clock was set back: what changes now is to be seen by backup programs"
    assert later(APART_NS, 0) == APART_NS

"""Asking one more when somebody is late: the race, its budget, what is usual, and reading from clouds of folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
import trio
import trio.testing

from cuckoo_mount.clouds.base import CloudSettings
from cuckoo_mount.errors import CloudTimeout, DataUnavailable
from cuckoo_mount.multi.erasure import parity_of, parity_path, split
from cuckoo_mount.multi.health import Condition, Health, Request
from cuckoo_mount.multi.hedging import CREDIT_MAX, EXTRA_PART, HedgeBudget, race
from cuckoo_mount.multi.multifs import MultiFS
from cuckoo_mount.multi.pace import KNOWN_FROM, LATE_FLOOR_S, UNKNOWN_LATE_S, Paces
from cuckoo_mount.multi.redundancy import Policy
from cuckoo_mount.multi.stripejobs import read_range
from cuckoo_mount.multi.stripes import Wanted
from cuckoo_mount.types import CloudName, ShareRow
from tests.packs.packtools import DRIVE, PACK, InlinePool, make_clouds

T = TypeVar("T")
NEVER = float("inf")


# -- the race --


class Runners:
    """Attempts that take as long as told and succeed or not; takes note of who began, ended and was cancelled."""

    def __init__(self, **times: float) -> None:
        self.times = times
        self.log: list[str] = []

    async def attempt(self, name: str) -> bool:
        self.log.append(name)
        try:
            await trio.sleep(abs(self.times[name]))
        except trio.Cancelled:
            self.log.append(f"{name} cancelled")
            raise
        return self.times[name] >= 0

    async def run(self, needed: int = 1, *, late_s: float = NEVER, hedges: int = 100) -> int:
        allowed = iter(range(hedges))
        return await race(
            self.times,
            needed,
            self.attempt,
            late_s=lambda _: late_s,
            may_hedge=lambda _late, _next: next(allowed, None) is not None,
        )


async def test_nobody_else_runs_while_nobody_is_late(autojump_clock: trio.testing.MockClock) -> None:
    runners = Runners(a=1, b=1)
    assert await runners.run(late_s=2) == 1
    assert runners.log == ["a"]


async def test_the_next_one_runs_when_one_fails(autojump_clock: trio.testing.MockClock) -> None:
    runners = Runners(a=-1, b=-1, c=1, d=1)
    assert await runners.run(late_s=2) == 1
    assert runners.log == ["a", "b", "c"]


async def test_a_late_one_is_overtaken_and_cancelled(autojump_clock: trio.testing.MockClock) -> None:
    runners, begun_s = Runners(a=1000, b=1), trio.current_time()
    assert await runners.run(late_s=2) == 1
    assert runners.log == ["a", "b", "a cancelled"]
    assert trio.current_time() - begun_s == pytest.approx(3)


async def test_a_late_one_that_wins_is_as_good(autojump_clock: trio.testing.MockClock) -> None:
    runners = Runners(a=3, b=1000)
    assert await runners.run(late_s=2) == 1
    assert runners.log == ["a", "b", "b cancelled"]


async def test_without_budget_a_late_one_is_waited_for(autojump_clock: trio.testing.MockClock) -> None:
    runners = Runners(a=1000, b=1)
    assert await runners.run(late_s=2, hedges=0) == 1
    assert runners.log == ["a"]


async def test_several_are_needed(autojump_clock: trio.testing.MockClock) -> None:
    runners = Runners(a=1, b=1000, c=-1, d=1, e=1)
    assert await runners.run(3, late_s=5) == 3
    assert set(runners.log[:3]) == {"a", "b", "c"}
    assert set(runners.log[3:5]) == {"d", "e"}
    assert runners.log[5:] == ["b cancelled"]


async def test_nobody_succeeds(autojump_clock: trio.testing.MockClock) -> None:
    assert await Runners(a=-1, b=-3).run(late_s=2) == 0
    assert await Runners().run() == 0


async def test_what_an_attempt_raises_comes_out_as_it_is(autojump_clock: trio.testing.MockClock) -> None:
    async def attempt(name: str) -> bool:
        await trio.sleep(1)
        raise DataUnavailable(name)

    with pytest.raises(DataUnavailable, match="a"):
        await race("ab", 1, attempt, late_s=lambda _: NEVER, may_hedge=lambda *_: True)


def test_the_budget_keeps_extra_requests_few() -> None:
    budget, extra, requests = HedgeBudget(), 0, 10_000
    for _ in range(requests):
        budget.earn()
        extra += budget.spend()
    assert extra <= CREDIT_MAX + EXTRA_PART * requests
    assert extra >= EXTRA_PART * requests


# -- what is usual --

A, B = CloudName("a"), CloudName("b")


def test_a_request_is_late_after_what_nineteen_of_twenty_take() -> None:
    paces = Paces(clock=lambda: 0.0)
    assert paces.late_s(A, Request.READ, 0) == UNKNOWN_LATE_S
    for number in range(20):
        paces.note(A, Request.READ, 1000, 0.1 + number / 100)
    assert paces.late_s(A, Request.READ, 1000) == pytest.approx(0.28)
    assert paces.late_s(A, Request.READ, 100_000) == pytest.approx(0.28), "of the same class"
    assert paces.late_s(A, Request.READ, 16 << 20) > 1, "nothing is known of large ones"
    for _ in range(100):
        paces.note(A, Request.READ, 1000, 0.001)
    assert paces.late_s(A, Request.READ, 1000) == LATE_FLOOR_S


def test_pace_is_measured_against_what_is_usual_there() -> None:
    paces = Paces(clock=lambda: 0.0)
    assert [paces.note(A, Request.READ, 1000, 0.5) for _ in range(KNOWN_FROM)] == [None] * KNOWN_FROM
    assert paces.note(A, Request.READ, 1000, 5.0) == pytest.approx(10.0)
    assert paces.note(A, Request.WRITE, 1000, 5.0) is None
    assert paces.note(B, Request.READ, 1000, 5.0) is None


def test_a_slow_cloud_gets_another_chance() -> None:
    now_s = 0.0
    paces = Paces(clock=lambda: now_s)
    paces.note(A, Request.READ, 1000, 4.0)
    assert paces.expected_s(A, Request.READ, 1000) == 4.0
    assert paces.expected_s(B, Request.READ, 1000) == 0.0, "not known: it is tried"
    now_s = 1200.0
    assert paces.expected_s(A, Request.READ, 1000) < 0.01


# -- reading --


class DelayingPool(InlinePool):
    """Jobs on a cloud take as many seconds as `delays` says."""

    def __init__(self) -> None:
        super().__init__()
        self.delays: dict[str, float] = {}
        self.under_way = 0

    async def run(
        self,
        function: Callable[..., T],
        *args: object,
        deadline_s: float,
        started: Callable[[], object] = lambda: None,
    ) -> T:
        started()
        cloud = args[0].name if args and isinstance(args[0], CloudSettings) else ""
        self.under_way += 1
        try:
            await trio.sleep(self.delays.get(cloud, 0.01))
        finally:
            self.under_way -= 1
        return await super().run(function, *args, deadline_s=deadline_s)


class Reading:
    """Copies of one pack on clouds a, b, …"""

    def __init__(self, root: Path, *names: str) -> None:
        self.pool = DelayingPool()
        self.health = Health(jitter=lambda: 0.0)
        self.multifs = MultiFS(make_clouds(root, *names), self.pool, self.health, DRIVE)
        self.pack = root / "pack file"
        self.pack.write_bytes(bytes(range(256)) * 10)
        self.shares: tuple[ShareRow, ...] = ()

    async def store(self) -> None:
        await self.multifs.probe()
        policy = str(len(self.multifs.names))
        self.shares = await self.multifs.put_pack(PACK, str(self.pack), 2560, policy, b"d" * 32)

    async def read(self) -> float:
        """Return how long it took."""
        begun_s = trio.current_time()
        assert len(await self.multifs.get_range(PACK, self.shares, 7, 100, deadline_s=60.0)) == 100
        return trio.current_time() - begun_s

    def hedged(self) -> int:
        return sum(cloud.hedged for cloud in self.multifs.statistics())


async def test_one_slow_cloud_does_not_slow_reads(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    reading = Reading(tmp_path, "a", "b")
    await reading.store()
    for _ in range(40):
        assert await reading.read() < 0.02
    slow = reading.pool.calls[-1][1]
    reading.pool.delays = {"a": 20.0, "b": 20.0, ("b" if slow == "a" else "a"): 0.01}
    times = [await reading.read() for _ in range(40)]
    assert max(times) <= LATE_FLOOR_S + 0.02, times
    assert max(times[5:]) < 0.02, "after a few it is not asked first any more"
    assert 1 <= reading.hedged() <= 5
    assert reading.pool.under_way == 0, "who lost is not left behind"
    figures = {cloud.name: cloud for cloud in reading.multifs.statistics()}
    assert figures[CloudName(slow)].hedged == reading.hedged()
    assert figures[CloudName(slow)].errors == 0


async def test_a_cloud_that_hangs_is_looked_at(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    reading = Reading(tmp_path, "a", "b")
    await reading.store()
    for _ in range(20):
        await reading.read()
    reading.pool.delays = {reading.pool.calls[-1][1]: 1e6}
    await reading.read()
    reading.pool.calls.clear()
    reading.pool.delays = {}
    await reading.multifs.look_after()
    assert ("check_identity", next(c.name for c in reading.multifs.statistics() if c.hedged)) in reading.pool.calls


async def test_one_share_is_never_asked_twice(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    reading = Reading(tmp_path, "a")
    await reading.store()
    reading.pool.delays = {"a": 20.0}
    reading.pool.calls.clear()
    assert await reading.read() == pytest.approx(20.0)
    assert len(reading.pool.calls) == 1
    assert reading.hedged() == 0


async def test_extra_requests_are_few_where_all_are_slow(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    reading = Reading(tmp_path, "a", "b", "c")
    await reading.store()
    for _ in range(20):
        await reading.read()
    reading.pool.delays = dict.fromkeys("abc", 3.0)
    for _ in range(200):
        await reading.read()
    assert reading.hedged() <= CREDIT_MAX + EXTRA_PART * 220


async def test_a_cloud_that_becomes_slow_gets_nothing_new_until_it_is_well(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    reading = Reading(tmp_path, "a", "b", "c")
    await reading.multifs.probe()

    async def store(number: int) -> set[str]:
        shares = await reading.multifs.put_pack(bytes([number]) * 16, str(reading.pack), 2560, "2", b"d" * 32)
        return {share.cloud for share in shares}

    for number in range(20):
        await store(number)
    reading.pool.delays = {"c": 5.0}
    used = [await store(number) for number in range(20, 40)]
    assert reading.health.state(CloudName("c")).condition is Condition.SLOW
    assert "c" in set().union(*used[:5])
    assert "c" not in set().union(*used[-5:])
    reading.multifs.drop_cloud(CloudName("a"))
    assert await store(60) == {"b", "c"}, "nobody else can take it"
    reading.pool.delays = {}
    for _ in range(15):
        await trio.sleep(60)
        await reading.multifs.look_after()
    assert reading.health.state(CloudName("c")).condition is Condition.OK


def make_parity(pack: Path, policy: Policy) -> bytes:
    """Make the files of the parity shares beside a pack file; return its content."""
    content = pack.read_bytes()
    for number, data in enumerate(parity_of(split(content, policy), policy), start=policy.data):
        Path(parity_path(str(pack), number)).write_bytes(data)
    return content


async def test_fragments_are_computed_from_others_when_one_is_late(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    reading = Reading(tmp_path, "a", "b", "c", "d", "e")
    await reading.multifs.probe()
    policy = Policy(3, 2)
    pack = make_parity(reading.pack, policy)
    shares = await reading.multifs.put_pack(PACK, str(reading.pack), len(pack), "3+2", b"", [b"d" * 32] * 5)
    late = next(share.cloud for share in shares if share.share == 0)

    async def read() -> float:
        begun_s = trio.current_time()
        wanted = Wanted(PACK, shares, policy, len(pack), 10, 90)
        data = await reading.multifs.read_stripe(wanted, read_range, 10, 80, deadline_s=60.0)
        assert data == pack[10:90]
        return trio.current_time() - begun_s

    for _ in range(30):
        assert await read() < 0.02
    reading.pool.delays = {late: 20.0}
    times = [await read() for _ in range(10)]
    assert max(times) < 0.2
    assert max(times[3:]) < 0.03
    assert 1 <= reading.hedged() <= 3
    assert reading.pool.under_way == 0


async def test_a_cloud_that_timed_out_gets_nothing_new_before_it_answers(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    reading = Reading(tmp_path, "a", "b", "c")
    await reading.multifs.probe()
    reading.pool.always["c"] = CloudTimeout("did not end")
    reading.pool.delays["c"] = 30.0
    times = []
    for number in range(6):
        begun_s = trio.current_time()
        shares = await reading.multifs.put_pack(bytes([number]) * 16, str(reading.pack), 2560, "2", b"d" * 32)
        assert {share.cloud for share in shares} == {"a", "b"}
        times.append(trio.current_time() - begun_s)
    assert [time for time in times if time > 1] == [pytest.approx(30, abs=1)]
    assert reading.health.is_up(CloudName("c")), "one transfer is not enough to call it down"
    await reading.multifs.look_after()
    assert reading.health.state(CloudName("c")).condition is Condition.DOWN

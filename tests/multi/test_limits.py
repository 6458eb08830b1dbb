"""How many requests an account gets: the machine of its rate, the queue before it, and both before a server's limit."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing
from attrs import define, evolve, field
from hypothesis import given
from hypothesis import strategies as st

from cuckoo_mount.clouds import jobs
from cuckoo_mount.clouds.accounts import account_of, requests_per_second
from cuckoo_mount.clouds.base import CloudSettings
from cuckoo_mount.errors import CloudBusy, CloudRefused, UsageError
from cuckoo_mount.multi.health import Condition, Health, Request
from cuckoo_mount.multi.limits import FALL, PAUSE_S, RATE_MIN, Limits, Rate, rejected, risen
from cuckoo_mount.multi.requests import CloudRequests
from cuckoo_mount.types import CloudName
from tests.packs.packtools import DRIVE, InlinePool, make_clouds

A = CloudName("a")
ACCOUNT = ("s3", "http://here")
HOUR_S = 3600.0


@define
class Server:
    """A server that takes `per_s` requests per second, and `burst` at once; the rest it rejects."""

    per_s: float
    burst: float
    retry_after_s: float
    latency_s: float
    stock: float = field(init=False)
    at_s: float = 0.0
    outcomes: list[tuple[float, bool]] = field(factory=list)

    def __attrs_post_init__(self) -> None:
        self.stock = self.burst

    async def ask(self) -> None:
        await trio.sleep(self.latency_s / 2)
        now_s = trio.current_time()
        self.stock = min(self.burst, self.stock + (now_s - self.at_s) * self.per_s)
        self.at_s = now_s
        is_taken = self.stock >= 1
        self.stock -= is_taken
        self.outcomes.append((now_s, is_taken))
        await trio.sleep(self.latency_s / 2)
        if not is_taken:
            raise CloudBusy("too many", retry_after_s=self.retry_after_s)

    def rejected_part(self, since_s: float) -> float:
        late = [is_taken for at_s, is_taken in self.outcomes if at_s >= since_s]
        return late.count(False) / len(late)

    def taken(self, since_s: float) -> int:
        return sum(is_taken for at_s, is_taken in self.outcomes if at_s >= since_s)


async def keep_asking(limits: Limits, server: Server, *, tasks: int, seconds: float) -> None:
    """Ask all the time from several tasks, as a drive with much to send."""

    async def work() -> None:
        while True:
            await limits.turn(ACCOUNT, 1, urgent=False, deadline_s=HOUR_S)
            try:
                await server.ask()
            except CloudBusy as error:
                limits.note_rejected(ACCOUNT, error.retry_after_s)
            else:
                limits.note_accepted(ACCOUNT, 1)

    with trio.move_on_after(seconds):
        async with trio.open_nursery() as nursery:
            for _ in range(tasks):
                nursery.start_soon(work)


@pytest.mark.parametrize("tasks", [1, 8])
@pytest.mark.parametrize(
    ("per_s", "burst", "retry_after_s", "latency_s"),
    [(5, 1, 1, 0.05), (10, 10, 1, 0.05), (10, 2, 0, 0.3), (3, 3, 5, 0.1)],
)
async def test_a_steady_limit_is_hardly_ever_exceeded_and_made_use_of(
    per_s: float,
    burst: float,
    retry_after_s: float,
    latency_s: float,
    tasks: int,
    autojump_clock: trio.testing.MockClock,
) -> None:
    server = Server(per_s, burst, retry_after_s, latency_s)
    begun_s = server.at_s = trio.current_time()
    await keep_asking(Limits(), server, tasks=tasks, seconds=300)
    possible = min(per_s, tasks / latency_s) * 240
    part = server.rejected_part(begun_s + 60)
    print(f"{part:.2%} rejected, {server.taken(begun_s + 60) / possible:.0%} used")
    assert part < 0.01
    assert server.taken(begun_s + 60) > 0.4 * possible


async def test_nothing_is_limited_before_a_rejection(autojump_clock: trio.testing.MockClock) -> None:
    limits, begun_s = Limits(), trio.current_time()
    for _ in range(1000):
        await limits.turn(ACCOUNT, 1, urgent=False, deadline_s=1.0)
        limits.note_accepted(ACCOUNT, 1)
    assert trio.current_time() == begun_s
    assert limits.per_s(ACCOUNT) is None
    assert limits.batch(ACCOUNT, 100) == 100


async def test_a_pause_that_is_asked_for_is_kept(autojump_clock: trio.testing.MockClock) -> None:
    limits, begun_s = Limits(), trio.current_time()
    limits.note_rejected(ACCOUNT, 20.0)
    with pytest.raises(CloudBusy, match="another 20 s"):
        await limits.turn(ACCOUNT, 1, urgent=True, deadline_s=10.0)
    assert trio.current_time() == begun_s, "waiting in vain helps nobody"
    await limits.turn(ACCOUNT, 1, urgent=True, deadline_s=30.0)
    assert trio.current_time() == begun_s + 20.0
    await limits.turn(("another",), 1, urgent=False, deadline_s=1.0)
    assert trio.current_time() == begun_s + 20.0


async def test_urgent_requests_overtake_and_none_waits_for_ever(autojump_clock: trio.testing.MockClock) -> None:
    limits, order = Limits(), list[str]()
    limits.set_ceiling(ACCOUNT, 1.0)

    async def ask(name: str, *, urgent: bool) -> None:
        await limits.turn(ACCOUNT, 1, urgent=urgent, deadline_s=HOUR_S)
        order.append(name)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(ask, "first", urgent=True))
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(partial(ask, "background", urgent=False))
        for number in range(9):
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(partial(ask, f"urgent {number}", urgent=True))
            await trio.sleep(0.9)
    assert order[:3] == ["first", "urgent 0", "urgent 1"]
    assert 4 <= order.index("background") < 9, order


async def test_a_turn_given_up_is_no_ones_loss(autojump_clock: trio.testing.MockClock) -> None:
    limits = Limits()
    limits.set_ceiling(ACCOUNT, 1.0)
    await limits.turn(ACCOUNT, 1, urgent=True, deadline_s=1.0)
    begun_s = trio.current_time()
    async with trio.open_nursery() as nursery:
        with trio.move_on_after(0.5):
            await limits.turn(ACCOUNT, 1, urgent=True, deadline_s=HOUR_S)
        nursery.start_soon(lambda: limits.turn(ACCOUNT, 1, urgent=True, deadline_s=HOUR_S))
    assert trio.current_time() == pytest.approx(begun_s + 1.0)
    with pytest.raises(CloudBusy):
        await limits.turn(ACCOUNT, 1, urgent=True, deadline_s=0.5)


async def test_the_users_number_is_never_exceeded(autojump_clock: trio.testing.MockClock) -> None:
    limits, server = Limits(), Server(per_s=1e6, burst=1e6, retry_after_s=0, latency_s=0.01)
    limits.set_ceiling(ACCOUNT, 7.0)
    begun_s = server.at_s = trio.current_time()
    await keep_asking(limits, server, tasks=4, seconds=60)
    assert 7 * 58 <= server.taken(begun_s) <= 7 * 60 + 2
    assert limits.batch(ACCOUNT, 100) == 1
    limits.set_ceiling(ACCOUNT, None)
    assert limits.per_s(ACCOUNT) is None


async def test_a_limit_that_rises_is_found_again(autojump_clock: trio.testing.MockClock) -> None:
    limits, server = Limits(), Server(per_s=3, burst=3, retry_after_s=1, latency_s=0.2)
    server.at_s = trio.current_time()
    await keep_asking(limits, server, tasks=8, seconds=60)
    assert 1 < (limits.per_s(ACCOUNT) or 0.0) < 5
    server.per_s = server.burst = 20
    await keep_asking(limits, server, tasks=8, seconds=180)
    assert 10 < (limits.per_s(ACCOUNT) or 0.0) < 30


Events = st.lists(
    st.tuples(st.sampled_from(["taken", "rejected"]), st.floats(0, 100), st.floats(0, 60), st.floats(0, 1000)),
    max_size=60,
)


@given(Events, st.none() | st.floats(0.5, 100))
def test_the_rate_stays_in_its_bounds(events: list[tuple[str, float, float, float]], ceiling: float | None) -> None:
    rate, now_s = Rate(per_s=ceiling, rejected_per_s=ceiling or 0.0, ceiling_per_s=ceiling), 0.0
    for what, after_s, retry_after_s, taken_per_s in events:
        now_s += after_s
        before, was_paused = rate, now_s < rate.paused_until_s
        if what == "taken":
            rate = risen(rate, taken_per_s, now_s=now_s)
            assert rate.per_s is None or before.per_s is None or rate.per_s >= before.per_s
        else:
            rate = rejected(rate, taken_per_s, retry_after_s, now_s=now_s)
            assert rate.per_s is not None
            assert rate.paused_until_s >= now_s + (retry_after_s if was_paused else max(retry_after_s, PAUSE_S))
            if not was_paused and before.per_s is not None and before.per_s > RATE_MIN:
                assert rate.per_s <= max(RATE_MIN, FALL * before.per_s) + 1e-9
        assert rate.per_s is None or rate.per_s >= min(RATE_MIN, ceiling or RATE_MIN)
        assert ceiling is None or (rate.per_s is not None and rate.per_s <= max(ceiling, RATE_MIN) + 1e-9)


def s3(name: str, bucket: str = "b", *, key: str = "k", server: str = "http://h", **options: str) -> CloudSettings:
    return CloudSettings(
        name=name,
        url=f"s3://{bucket}/prefix-{name}?endpoint_url={server}",
        secrets=(("password", "s"), ("user", key)),
        options=tuple(options.items()),
    )


def test_an_account_is_a_server_and_credentials() -> None:
    assert account_of(s3("a")) == account_of(s3("b", "other-bucket"))
    assert account_of(s3("a")) != account_of(s3("b", key="somebody"))
    assert account_of(s3("a")) != account_of(s3("b", server="http://elsewhere"))
    dav = "webdavs://me:pw@host:81"
    assert account_of(CloudSettings(name="a", url=f"{dav}/x")) == account_of(CloudSettings(name="b", url=f"{dav}/y"))
    assert account_of(CloudSettings(name="a", url=f"{dav}/x")) != account_of(CloudSettings(name="b", url="ftp://host"))
    assert account_of(CloudSettings(name="a", url="/x")) != account_of(CloudSettings(name="b", url="/x"))


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "many", ""])
def test_a_limit_is_a_number(text: str) -> None:
    with pytest.raises(UsageError, match="requests per second are a number"):
        requests_per_second(CloudSettings(name="a", url="/x", options=(("limit.requests", text),)))


def test_a_limit_may_be_less_than_one() -> None:
    assert requests_per_second(CloudSettings(name="a", url="/x", options=(("limit.requests", "0.5"),))) == 0.5
    assert requests_per_second(CloudSettings(name="a", url="/x")) is None


async def test_each_account_waits_for_itself(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    """A folder is an account of its own; what an option says is none of its identity."""
    clouds = make_clouds(tmp_path, "a", "c")
    health, pool = Health(jitter=lambda: 0.0), InlinePool()
    requests = CloudRequests(clouds, pool, health, DRIVE)
    limit = (("limit.requests", "2"),)
    clouds[A] = evolve(clouds[A], settings=evolve(clouds[A].settings, options=limit))
    account = account_of(clouds[A].settings)
    begun_s = trio.current_time()
    for _ in range(9):
        await requests.probe(A)
    assert trio.current_time() - begun_s == pytest.approx(4.0)
    assert requests.per_second(A) == 2.0
    assert requests.batch(A, 100) == 1
    for _ in range(9):
        await requests.probe(CloudName("c"))
    assert trio.current_time() - begun_s == pytest.approx(4.0)
    assert account == account_of(evolve(clouds[A].settings, options=()))
    clouds[A] = evolve(clouds[A], settings=evolve(clouds[A].settings, options=(("limit.requests", "x"),)))
    with pytest.raises(CloudRefused, match="requests per second"):
        await requests.probe(A)
    assert health.state(A).condition is Condition.REFUSED


async def test_what_is_rejected_is_asked_again_in_its_time(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    clouds, pool, health = make_clouds(tmp_path, "a"), InlinePool(), Health(jitter=lambda: 0.0)
    requests = CloudRequests(clouds, pool, health, DRIVE)
    await requests.probe(A)
    pool.failures["a"] = [CloudBusy("too many", retry_after_s=7.0), CloudBusy("too many", retry_after_s=5.0)]
    begun_s = trio.current_time()
    await requests.ask(A, Request.WRITE, jobs.put, "cuckoo/object", b"x", deadline_s=60.0)
    assert 12.0 <= trio.current_time() - begun_s < 20.0
    assert health.counters(A).rejected == 2
    assert health.state(A).condition is Condition.OK
    pool.failures["a"] = [CloudBusy("too many", retry_after_s=7.0)]
    with pytest.raises(CloudBusy, match="cloud a"):
        await requests.ask(A, Request.READ, jobs.get, "cuckoo/object", deadline_s=60.0, urgent=True)
    with pytest.raises(CloudBusy, match="cloud a: wants no request for another 7 s"):
        await requests.ask(A, Request.READ, jobs.get, "cuckoo/object", deadline_s=2.0, urgent=True)
    assert await requests.ask(A, Request.READ, jobs.get, "cuckoo/object", deadline_s=30.0, urgent=True) == b"x"

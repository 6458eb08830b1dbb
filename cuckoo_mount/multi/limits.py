"""How many requests per second an account gets: found out from its rejections, waited for in order.

Used by multi/requests.py.  `Rate` is a pure machine of what happened when; `Limits` makes callers wait, for one trio
loop.  Nothing is limited before the first rejection, unless the user set a number.

The rule, as TCP's: a rejection makes the rate fall, by a third below what the account has lately taken; then it
rises by the same step again and again, up to where it was rejected within `REGAIN_S`, and ever faster beyond.  At a
server's steady limit of L per second that is a rejection or two per REGAIN_S · L requests.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable
from itertools import count
from typing import Final

import trio
from attrs import define, evolve, field, frozen

from cuckoo_mount.clouds.accounts import Account
from cuckoo_mount.errors import CloudBusy

FALL: Final = 0.7
REGAIN_S: Final = 120.0
"""From the rate after a rejection back to the one that was rejected."""
BEYOND: Final = 1.05
"""Above this multiple of what was rejected, the limit must have risen: the rate doubles every `DOUBLES_S`."""
DOUBLES_S: Final = 10.0
RATE_MIN: Final = 0.2
FIRST_RATE: Final = 2.0
"""The least that the first rejection is taken to be about: answers to what was sent before may not be back yet."""
FREE_RATE: Final = 200.0
FREE_TIMES: Final = 4.0
"""From here on, and at this multiple of what was rejected, an account is not limited any more."""
PAUSE_S: Final = 1.0
"""After a rejection that named no time.  Rejections during a pause are of requests that were under way: they count as
one."""
MEASURED_S: Final = 5.0
_ROUNDING: Final = 1e-6
HEAD_START_S: Final = 5.0
"""So much earlier an urgent request counts as having come: it overtakes others, and none waits for ever."""


@frozen(slots=True)
class Rate:
    """What an account gets: `per_s` requests per second; None: as many as are wanted.

    `rejected_per_s`: the rate at the last rejection.  `paused_until_s`: nothing before.  `ceiling_per_s`: the user's.
    """

    per_s: float | None = None
    rejected_per_s: float = 0.0
    paused_until_s: float = 0.0
    updated_at_s: float = 0.0
    ceiling_per_s: float | None = None


def rejected(rate: Rate, taken_per_s: float, retry_after_s: float, *, now_s: float) -> Rate:
    """Return the rate after a rejection.  `taken_per_s`: requests per second that were accepted lately."""
    until_s = now_s + max(retry_after_s, PAUSE_S)
    if now_s < rate.paused_until_s:
        return evolve(rate, paused_until_s=max(rate.paused_until_s, until_s if retry_after_s else 0.0))
    current = taken_per_s if rate.per_s is None else min(rate.per_s, max(taken_per_s, FALL * rate.per_s))
    current = max(current, FIRST_RATE if rate.per_s is None else RATE_MIN)
    return evolve(
        rate,
        per_s=max(RATE_MIN, FALL * current),
        rejected_per_s=current,
        paused_until_s=until_s,
        updated_at_s=until_s,
    )


def risen(rate: Rate, taken_per_s: float, *, now_s: float) -> Rate:
    """Return the rate after a request that was accepted; it rises only while it is made use of."""
    if rate.per_s is None or now_s <= rate.updated_at_s:
        return rate
    if taken_per_s < FALL * rate.per_s:
        return evolve(rate, updated_at_s=now_s)
    elapsed_s = min(now_s - rate.updated_at_s, 1.0 / rate.per_s + 1.0)
    if rate.per_s < BEYOND * rate.rejected_per_s:
        per_s = rate.per_s + elapsed_s * (1 - FALL) * rate.rejected_per_s / REGAIN_S
    else:
        per_s = rate.per_s * 2.0 ** (min(elapsed_s, DOUBLES_S) / DOUBLES_S)
    if rate.ceiling_per_s is not None:
        per_s = min(per_s, rate.ceiling_per_s)
    elif per_s >= max(FREE_RATE, FREE_TIMES * rate.rejected_per_s):
        return Rate()
    return evolve(rate, per_s=per_s, updated_at_s=now_s)


@define(eq=False)
class _Queue:
    """One account: its rate, the requests it may take at once, who waits, and when requests were accepted."""

    rate: Rate
    stock: float = 1.0
    filled_at_s: float = 0.0
    waiting: list[tuple[float, int]] = field(factory=list)
    changed: trio.Event = field(factory=trio.Event)
    accepted: deque[tuple[float, int]] = field(factory=deque)

    def wake(self) -> None:
        """Let everybody who waits look again."""
        self.changed.set()
        self.changed = trio.Event()

    def wait_s(self, now_s: float) -> float:
        """Return in how many seconds the next request may begin; fills the stock up to now."""
        if now_s < self.rate.paused_until_s:
            self.filled_at_s = self.rate.paused_until_s
            return self.rate.paused_until_s - now_s
        if self.rate.per_s is None:
            return 0.0
        # A quarter of a second's worth at most: servers count by the second, or less.
        most = max(1.0, self.rate.per_s / 4)
        self.stock = min(most, self.stock + max(0.0, now_s - self.filled_at_s) * self.rate.per_s)
        self.filled_at_s = now_s
        # Not quite a whole one is enough: waiting for the rounding error would be waiting for nothing.
        return 0.0 if self.stock > 1.0 - _ROUNDING else (1.0 - self.stock) / self.rate.per_s

    def taken_per_s(self, now_s: float) -> float:
        """Return how many requests per second were accepted lately."""
        while self.accepted and self.accepted[0][0] < now_s - MEASURED_S:
            self.accepted.popleft()
        if not self.accepted:
            return 0.0
        span_s = max(1.0, now_s - self.accepted[0][0])
        return sum(requests for _, requests in self.accepted) / span_s


class Limits:
    """Makes requests wait for their turn; one queue for each account."""

    def __init__(self, *, clock: Callable[[], float] = trio.current_time) -> None:
        self._clock = clock
        self._queues: dict[Account, _Queue] = {}
        self._numbers = count()

    def set_ceiling(self, account: Account, per_s: float | None) -> None:
        """Set how many requests per second the user allows at most; None: no limit of theirs."""
        queue = self._queue(account)
        if per_s != queue.rate.ceiling_per_s:
            queue.rate = Rate(per_s=per_s, rejected_per_s=per_s or 0.0, ceiling_per_s=per_s, updated_at_s=self._clock())
            queue.wake()

    async def turn(self, account: Account, requests: int, *, urgent: bool, deadline_s: float) -> None:
        """Return when `requests` requests may begin now; urgent ones overtake others.  Checkpoint.

        More requests than the account's stock begin at once, and the next ones wait the longer.
        Raises: CloudBusy when that is not before `deadline_s` has passed.
        """
        await trio.lowlevel.checkpoint()
        queue, now_s = self._queue(account), self._clock()
        ends_at_s = now_s + deadline_s
        ticket = (now_s if urgent else now_s + HEAD_START_S, next(self._numbers))
        heapq.heappush(queue.waiting, ticket)
        try:
            while True:
                now_s = self._clock()
                wait_s = queue.wait_s(now_s)
                is_first = queue.waiting[0] == ticket
                if is_first and wait_s <= 0.0:
                    queue.stock -= requests
                    break
                left_s = ends_at_s - now_s
                if left_s <= 0.0 or queue.rate.paused_until_s > ends_at_s:
                    pause_s = max(0.0, queue.rate.paused_until_s - now_s)
                    raise CloudBusy(f"wants no request for another {pause_s:.0f} s", retry_after_s=pause_s)
                changed = queue.changed
                with trio.move_on_after(min(left_s, wait_s) if is_first else left_s):
                    await changed.wait()
        finally:
            queue.waiting.remove(ticket)
            heapq.heapify(queue.waiting)
            queue.wake()

    def note_accepted(self, account: Account, requests: int) -> None:
        """Take note of requests that were not rejected."""
        queue, now_s = self._queue(account), self._clock()
        queue.accepted.append((now_s, requests))
        queue.rate = risen(queue.rate, queue.taken_per_s(now_s), now_s=now_s)

    def note_rejected(self, account: Account, retry_after_s: float) -> None:
        """Take note of a request that was one too many."""
        queue, now_s = self._queue(account), self._clock()
        queue.rate = rejected(queue.rate, queue.taken_per_s(now_s), retry_after_s, now_s=now_s)
        queue.stock = min(queue.stock, 1.0)
        queue.wake()

    def batch(self, account: Account, most: int) -> int:
        """Return how many requests one job should make in a row, 1 to `most`: they cannot be paused within."""
        per_s = self._queue(account).rate.per_s
        return most if per_s is None else max(1, min(most, int(per_s / 4)))

    def per_s(self, account: Account) -> float | None:
        """Return the account's limit now, None without one."""
        return self._queue(account).rate.per_s

    def check(self) -> list[str]:
        """Return what is wrong with the queues: who stands first in one, and how fast an account may be asked."""
        problems = []
        for queue in self._queues.values():
            ceiling_per_s, per_s = queue.rate.ceiling_per_s, queue.rate.per_s
            if queue.waiting and queue.waiting[0] != min(queue.waiting):
                problems.append("I-35: somebody stands before who came first")
            if ceiling_per_s is not None and (per_s is None or per_s > ceiling_per_s):
                problems.append(f"I-35: {per_s} requests per second are allowed, the user said {ceiling_per_s}")
        return problems

    def keep_only(self, accounts: Iterable[Account]) -> None:
        """Forget all other accounts that nobody waits for."""
        kept = set(accounts)
        for account in [known for known, queue in self._queues.items() if known not in kept and not queue.waiting]:
            del self._queues[account]

    def _queue(self, account: Account) -> _Queue:
        return self._queues.setdefault(account, _Queue(Rate()))

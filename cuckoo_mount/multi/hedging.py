"""Asking one more when somebody is late: the race, and the budget that keeps the extra requests few.

Used by multi/fetching.py and multi/stripes.py.  For one trio loop.  Who loses is cancelled: its job in a worker goes on
to its own end or deadline, and its outcome is dropped.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import Final, TypeVar

import trio

T = TypeVar("T")
EXTRA_PART: Final = 0.05
"""Extra requests per request, in the long run."""
CREDIT_MAX: Final = 8.0
"""Extra requests in a row: when a cloud stops answering, many are late at the same time."""


class HedgeBudget:
    """How many extra requests there may be."""

    def __init__(self) -> None:
        self._credit = CREDIT_MAX

    def earn(self) -> None:
        """Count a request that would have been made anyway."""
        self._credit = min(CREDIT_MAX, self._credit + EXTRA_PART)

    def spend(self, requests: int = 1) -> bool:
        """Return whether so many extra requests may be made, and count them."""
        if self._credit < requests:
            return False
        self._credit -= requests
        return True


async def race(
    candidates: Iterable[T],
    needed: int,
    attempt: Callable[[T], Awaitable[bool]],
    *,
    late_s: Callable[[T], float],
    may_hedge: Callable[[T, T], bool],
) -> int:
    """Run `attempt` on candidates until `needed` were successful, or none is left; return how many were.

    `needed` run at a time; another begins when one fails, and when one takes longer than `late_s(candidate)` seconds
    and `may_hedge(the late one, the next one)`.  Those still running when enough were successful are cancelled.
    `attempt` returns whether it was; what it raises ends all and is raised.  Checkpoint.
    """
    waiting = deque(candidates)
    late_at: dict[T, float] = {}
    running: set[T] = set()
    successes = 0
    failures: list[Exception] = []
    changed = trio.Event()

    async def run(candidate: T) -> None:
        nonlocal successes
        try:
            is_success = await attempt(candidate)
            successes += is_success  # not in one: what it was before the wait would be added to
        except Exception as error:  # raised below: here it would come out of the nursery in a group
            failures.append(error)
        finally:
            running.discard(candidate)
            late_at.pop(candidate, None)
            changed.set()

    def begin(nursery: trio.Nursery) -> None:
        candidate = waiting.popleft()
        running.add(candidate)
        late_at[candidate] = trio.current_time() + late_s(candidate)
        nursery.start_soon(run, candidate)

    async with trio.open_nursery() as nursery:
        while successes < needed and not failures and (running or waiting):
            while waiting and len(running) < needed - successes:
                begin(nursery)
            changed = trio.Event()
            soonest = min(late_at, key=late_at.__getitem__, default=None) if waiting else None
            with trio.move_on_at(late_at[soonest] if soonest is not None else float("inf")) as scope:
                await changed.wait()
            if scope.cancelled_caught and soonest is not None and soonest in late_at:
                del late_at[soonest]  # each is late once
                if waiting and may_hedge(soonest, waiting[0]):
                    begin(nursery)
        nursery.cancel_scope.cancel()
    if failures and successes < needed:
        raise failures[0]
    return successes

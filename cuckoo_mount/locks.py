"""The project's own synchronisation primitives; the only place that builds them.

All are for one trio loop, not for threads.  Acquire async, release sync.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

import trio
from attrs import define, field

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


@define(slots=True, eq=False)
class _Flight(Generic[T]):
    done: trio.Event = field(factory=trio.Event)
    value: T | None = None
    error: Exception | None = None
    succeeded: bool = False


class SingleFlight(Generic[K, T]):
    """Runs a function once for all tasks that ask for the same key at the same time.

    The work runs in the task that asked first.  If that task is cancelled, one of those who wait starts again.
    An error is raised in everyone who waited for it.
    """

    def __init__(self) -> None:
        self._flights: dict[K, _Flight[T]] = {}

    def __len__(self) -> int:
        """Number of keys under way."""
        return len(self._flights)

    async def run(self, key: K, function: Callable[[], Awaitable[T]]) -> T:
        """Return `function()`, or the outcome of the one already running for `key`.  Checkpoint."""
        while True:
            flight = self._flights.get(key)
            if flight is None:
                return await self._lead(key, function)
            await flight.done.wait()
            if flight.error is not None:
                raise flight.error
            if flight.succeeded:
                return flight.value  # type: ignore[return-value]  # set together with `succeeded`, may be None itself

    async def _lead(self, key: K, function: Callable[[], Awaitable[T]]) -> T:
        flight = self._flights[key] = _Flight[T]()
        try:
            flight.value = await function()
        except Exception as error:
            flight.error = error
            raise
        else:
            flight.succeeded = True
            return flight.value
        finally:
            del self._flights[key]
            flight.done.set()


class Pulse:
    """A level that tasks wait for to change: every `beat` wakes all who wait now."""

    def __init__(self) -> None:
        self._event = trio.Event()

    def beat(self) -> None:
        """Wake everyone who waits."""
        self._event.set()
        self._event = trio.Event()

    async def wait(self) -> None:
        """Return at the next beat.  Checkpoint."""
        await self._event.wait()

"""The project's own synchronisation primitives; the only place that builds them.

All are for one trio loop, not for threads.  Acquire async, release sync.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

import trio
from attrs import define, field

K = TypeVar("K", bound=Hashable)


@define(slots=True, eq=False)
class _Flight:
    done: trio.Event = field(factory=trio.Event)
    error: Exception | None = None


class Flights(Generic[K]):
    """What is under way, by key: whoever needs a key that is waits for its end instead of starting it again.

    One task may have any number of flights.  Who waits for one has no part in it: it goes on when they are cancelled.
    """

    def __init__(self) -> None:
        self._flights: dict[K, _Flight] = {}

    def __len__(self) -> int:
        """Number of keys under way."""
        return len(self._flights)

    def __contains__(self, key: K) -> bool:
        """Whether `key` is under way."""
        return key in self._flights

    def begin(self, key: K) -> None:
        """Say that `key` is under way; it must not be already.  Whoever calls this calls `end`, in a `finally`."""
        assert key not in self._flights, f"{key} is under way already"
        self._flights[key] = _Flight()

    def end(self, key: K, error: Exception | None = None) -> None:
        """Let everyone who waits for `key` go on, or raise `error` in them; nothing happens if it ended before."""
        flight = self._flights.pop(key, None)
        if flight is not None:
            flight.error = error
            flight.done.set()

    async def wait(self, key: K) -> None:
        """Return when `key` is not under way (any more).  Checkpoint if it was.  Raises: what `end` was given."""
        flight = self._flights.get(key)
        if flight is not None:
            await flight.done.wait()
            if flight.error is not None:
                raise flight.error


class Gate:
    """Open, or closed for a moment: whoever comes then waits until it is open again."""

    def __init__(self) -> None:
        self._opened = trio.Event()
        self._opened.set()

    @property
    def is_open(self) -> bool:
        """Whether nobody has to wait."""
        return self._opened.is_set()

    def close(self) -> None:
        """Let nobody through until `open`; it must be open."""
        assert self.is_open, "the gate is closed already"
        self._opened = trio.Event()

    def open(self) -> None:
        """Let everyone through who waits, and who comes."""
        self._opened.set()

    async def wait(self) -> None:
        """Return when the gate is open.  Checkpoint only if it is closed; it may be closed again, so look."""
        if not self.is_open:
            await self._opened.wait()


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

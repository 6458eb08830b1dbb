"""Clouds in which everything goes wrong now and then, for the kill test.

What goes wrong: testing/faulty.py.  Every cloud fails, is late, is cut off while it stores, and says of what it did that
it failed.  One of them, always the same, also stores and gives other bytes than it should and says that it did what it
did not: with two copies of everything that is as much as may be borne.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import Final

from cuckoo_mount.testing.faulty import read_counts, write_plan
from tests.pool.pooling import Place

Rule = dict[str, object]
_CALLS: Final = ["put", "get", "get_range", "delete", "list"]


class FlakyClouds:
    """Clouds of a drive.  `faults`: how often each action of testing/faulty.py was taken."""

    def __init__(self, places: Sequence[Place], choose: random.Random) -> None:
        self.faults: Final[Counter[str]] = Counter()
        self._places: Final = places
        self._choose: Final = choose
        self._liar: Final = choose.choice(places)
        self._rules: dict[str, list[Rule]] = {place.name: [] for place in places}

    @property
    def lies(self) -> int:
        """How often something was not stored as it was said to be."""
        return self.faults["lie_success"] + self.faults["corrupt"]

    def trouble(self) -> None:
        """Let things go wrong from now on, in other ways than before."""
        for place in self._places:
            self._put(place, [*(self._lies() if place is self._liar else []), *self._faults()])

    def work(self) -> None:
        """Let everything work."""
        for place in self._places:
            self._put(place, [])

    def _put(self, place: Place, rules: list[Rule]) -> None:
        counts = read_counts(place.plan)
        for number, rule in enumerate(self._rules[place.name]):
            self.faults[str(rule["action"])] += counts.get(f"acted {number}", 0)
        self._rules[place.name] = rules
        write_plan(place.plan, *rules, seed=self._choose.randrange(10**9))

    def _faults(self) -> list[Rule]:
        often = self._choose.choice((0.02, 0.1, 0.2))
        return [
            _rule("fail", _CALLS, often),
            _rule("timeout", _CALLS, often / 3),
            _rule("lie_failure", ["put", "delete"], often),
            _rule("cut", ["put"], often),
            _rule("busy", _CALLS, often / 10, seconds=0.1),
            _rule("delay", _CALLS, 2 * often, seconds=self._choose.uniform(0.05, 0.6)),
        ]

    def _lies(self) -> list[Rule]:
        often = self._choose.choice((0.02, 0.1))
        return [
            _rule("lie_success", ["put", "delete"], often),
            _rule("corrupt", ["put", "get", "get_range"], often),
            _rule("cut", ["get", "get_range"], often),
        ]


def _rule(action: str, calls: list[str], probability: float, **more: object) -> Rule:
    return {"action": action, "calls": calls, "probability": probability, **more}

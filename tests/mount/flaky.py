"""Clouds in which everything goes wrong now and then, for the kill test.

What goes wrong: testing/faulty.py.  By turns every cloud fails, is late, is cut off while it stores, and says of what
it did that it failed; or one of them does all that, stores and gives other bytes than it should, and says that it did
what it did not.  That is as much as two copies of everything can bear: while clouds fail, some packs get one copy only,
which must not be the liar's.  None rejects requests as too many: the drive then asks ever less, as it should.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import Final

from cuckoo_mount.testing.faulty import read_counts, write_plan
from tests.pool.pooling import Place

Rule = dict[str, object]
ACTIONS: Final = ("fail", "timeout", "delay", "cut", "corrupt", "lie_failure", "lie_success")
_CALLS: Final = ["put", "get", "get_range", "delete", "list"]


class FlakyClouds:
    """Clouds of a drive.  `faults`: how often each action of testing/faulty.py was taken."""

    def __init__(self, places: Sequence[Place], choose: random.Random) -> None:
        self.faults: Final[Counter[str]] = Counter()
        self._places: Final = places
        self._choose: Final = choose
        self._liar: Final = choose.choice(places)
        self._turn = 0
        self._rules: dict[str, list[Rule]] = {place.name: [] for place in places}

    @property
    def lies(self) -> int:
        """How often something was not stored as it was said to be."""
        return self.faults["lie_success"] + self.faults["corrupt"]

    @property
    def is_next_lying(self) -> bool:
        """Whether one cloud lies in the next trouble; then everything has to have two copies before."""
        return self._turn % 2 == 1

    def trouble(self) -> None:
        """Let things go wrong from now on, in other ways than before."""
        for place in self._places:
            if not self.is_next_lying:
                self._put(place, self._faults())
            elif place is self._liar:
                self._put(place, [*self._lies(), *self._faults()])
            else:
                self._put(place, [_rule("delay", _CALLS, 0.1, seconds=0.1)])
        self._turn += 1

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
        often = self._choose.choice((0.05, 0.1, 0.2))
        return [
            # However little is sent, these are met.
            *(_first(action) for action in ("lie_failure", "cut", "fail")),
            _rule("fail", _CALLS, often),
            _rule("timeout", _CALLS, often / 3),
            _rule("lie_failure", ["put", "delete"], often),
            _rule("cut", ["put"], often),
            _rule("delay", _CALLS, 2 * often, seconds=self._choose.uniform(0.02, 0.4)),
        ]

    def _lies(self) -> list[Rule]:
        often = self._choose.choice((0.05, 0.2))
        return [
            *(_first(action) for action in ("lie_success", "corrupt")),
            _rule("lie_success", ["put", "delete"], often),
            _rule("corrupt", ["put", "get", "get_range"], often),
            _rule("cut", ["get", "get_range"], often),
        ]


def _first(action: str) -> Rule:
    """Act on the first put that no rule before this one acts on."""
    return {"action": action, "calls": ["put"], "match": "/packs/", "nth": 1}


def _rule(action: str, calls: list[str], probability: float, **more: object) -> Rule:
    return {"action": action, "calls": calls, "probability": probability, **more}

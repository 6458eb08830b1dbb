"""Looks for what is wrong: all at once for tests, or beside the work that goes on, for fsck.

Used by store.py.  `check_invariants` reads every row in the loop; the others read in threads, from what is committed.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

import trio

from cuckoo_mount.metadata.counters import Counters
from cuckoo_mount.metadata.database import Part
from cuckoo_mount.metadata.problems import CHECKS, Kind, Problem
from cuckoo_mount.metadata.records import DamagedName
from cuckoo_mount.metadata.schema import JOURNALED
from cuckoo_mount.metadata.survey import damaged_names, find_problems
from cuckoo_mount.types import VersionNo

_SHOWN: Final = 10
"""Of each kind of violation so many are named, and the rest counted."""


class Checks(Part):
    """See `Metadata` for the public method."""

    async def check_invariants(self) -> list[str]:
        lines: list[str] = []
        for check in CHECKS:
            rows = self._db.rows(check.sql)
            lines += [f"{check.text}: {row[0] if len(row) == 1 else row}" for row in rows[:_SHOWN]]
            if len(rows) > _SHOWN:
                lines.append(f"{check.text}: and {len(rows) - _SHOWN} more")
        lines += self._trigger_lines()
        counted = Counters.load(self._db.rows)
        if counted != self._db.counters:
            lines.append(f"I-16: counters in memory are {self._db.counters}, the tables say {counted}")
        return lines

    async def find_problems(self) -> list[Problem]:
        self._db.commit()
        problems = await find_problems(self._db.path)
        problems += [Problem(Kind.TRIGGER, line, (), 1) for line in self._trigger_lines()]
        return problems

    async def damaged_names(self, versions: Collection[VersionNo]) -> list[DamagedName]:
        self._db.commit()
        return await trio.to_thread.run_sync(damaged_names, self._db.path, frozenset(versions))

    def _trigger_lines(self) -> list[str]:
        wanted = {name: statement for table in JOURNALED for name, statement in table.triggers()}
        found: dict[str, str] = dict(self._db.rows("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'"))
        return [
            f"I-14: trigger {name} is missing, changed or unknown"
            for name in sorted(wanted.keys() | found.keys())
            if wanted.get(name) != found.get(name)
        ]

"""Which epochs stay, and when the next one is a snapshot.

Used by engine.py.  Pure functions.
Epochs are kept so that yesterday can be looked at: the last 3, one per hour for a day, one per day for a week (design
§3.18).  Of an hour or a day the oldest snapshot is kept, if it has one, because that needs no other object.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from cuckoo_mount.epochs.ledger import Entry
from cuckoo_mount.metadata.schema import JOURNAL_SCHEMA

NEWEST: Final = 3
HOURS: Final = 24
DAYS: Final = 7
HOUR_NS: Final = 3600 * 10**9
DAY_NS: Final = 24 * HOUR_NS

JOURNALS_MAX: Final = 300
"""Recovery reads one object per journal; more than so many after a snapshot make a new one."""
SMALL_BYTES: Final = 1 << 20
"""A snapshot up to this size is made anew every hour, so that recovery reads few journals."""
JOURNAL_BYTES_MIN: Final = 256 << 10


def wants_snapshot(parts: Sequence[Entry], now_ns: int) -> bool:
    """Return whether the next epoch is a snapshot.  `parts`: what loading the last one takes (`Ledger.parts`)."""
    if not parts or parts[-1].header.schema != JOURNAL_SCHEMA:
        return True
    snapshot, journals = parts[0], parts[1:]
    snapshot_bytes = snapshot.size_bytes or 0
    journal_bytes = sum(entry.size_bytes or 0 for entry in journals)
    if len(journals) >= JOURNALS_MAX or journal_bytes >= max(JOURNAL_BYTES_MIN, snapshot_bytes // 2):
        return True
    new_hour = snapshot.header.time_ns // HOUR_NS != now_ns // HOUR_NS
    return bool(journals) and new_hour and snapshot_bytes <= SMALL_BYTES


def kept_epochs(entries: Sequence[Entry], now_ns: int, newest: int | None = None) -> frozenset[int]:
    """Return the numbers of those that stay.  `entries`: oldest first, the last one durable.

    `newest`: just so many of the newest, and nothing for hours and days; None: the rule above.
    """
    if newest is not None:
        return frozenset(entry.name.epoch for entry in entries[-max(newest, 1) :])
    kept = {entry.name.epoch for entry in entries[-NEWEST:]}
    for unit_ns, count in ((HOUR_NS, HOURS), (DAY_NS, DAYS)):
        buckets: dict[int, Entry] = {}
        for entry in entries:
            bucket = entry.header.time_ns // unit_ns
            if now_ns // unit_ns - count < bucket:
                best = buckets.get(bucket)
                if best is None or best.name.kind != "snapshot":
                    buckets[bucket] = entry
        kept.update(entry.name.epoch for entry in buckets.values())
    return frozenset(kept)


def needed_entries(entries: Sequence[Entry], kept: frozenset[int]) -> tuple[Entry, ...]:
    """Return the entries of which an object is needed to load one of the kept epochs, oldest first."""
    needed: list[Entry] = []
    wanted = False
    for entry in reversed(entries):
        wanted = wanted or entry.name.epoch in kept
        if wanted:
            needed.append(entry)
        if entry.name.kind == "snapshot":
            wanted = False
    return tuple(reversed(needed))

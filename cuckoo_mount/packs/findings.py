"""What a scrub has found so far, kept so that a deep one that was interrupted goes on where it was.

Used by scrubbing.py.  Local settings of the metadata: `scrub.position`, and one `scrub.found.<pack>` for each pack with
a bad share, all written in one change with the position up to which packs were read; and `scrubbed`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Final

from attrs import define, field, frozen

from cuckoo_mount.packs.comparing import Verdict
from cuckoo_mount.types import PackNo, ShareRow

log = logging.getLogger(__name__)
SCRUB_PREFIX: Final = "scrub."
POSITION: Final = f"{SCRUB_PREFIX}position"
FOUND_PREFIX: Final = f"{SCRUB_PREFIX}found."
GOES_ON_NS: Final = 30 * 24 * 3600 * 10**9
"""What was read before that says little: a deep scrub that began so long ago is not gone on with."""
LAST: Final = "scrubbed"
"""Local setting: what the last scrub that came to its end left, for `status`."""


@define(slots=True)
class Finding:
    """Bad shares of one pack, by number.  `is_lost`: too few whole ones are left to read all of it."""

    missing: set[int] = field(factory=set)
    damaged: set[int] = field(factory=set)
    is_lost: bool = False

    @property
    def bad(self) -> int:
        """How many."""
        return len(self.missing | self.damaged)

    def add(self, verdicts: Mapping[ShareRow, Verdict], *, is_lost: bool) -> None:
        """Take in the verdicts on shares of the pack."""
        for share, verdict in verdicts.items():
            if verdict is Verdict.MISSING:
                self.missing.add(share.share)
                self.damaged.discard(share.share)
            elif verdict is Verdict.DAMAGED and share.share not in self.missing:
                self.damaged.add(share.share)
        self.is_lost = self.is_lost or is_lost


@frozen(slots=True)
class Position:
    """How far a deep scrub is: packs up to `after` were read, `last` is the last one to be; `checked` shares so far.

    `since_ns`: when it began.
    """

    after: PackNo
    last: PackNo
    since_ns: int
    checked: int = 0


def read_findings(settings: Mapping[str, str], now_ns: int) -> tuple[Position | None, dict[PackNo, Finding]]:
    """Return where an interrupted deep scrub was, None if there is none that began lately, and what it had found.

    `settings`: the local ones with `SCRUB_PREFIX`.  What cannot be understood counts as none: everything is read anew.
    """
    try:
        record = json.loads(settings[POSITION])
        position = Position(
            PackNo(record["after"]), PackNo(record["last"]), int(record["since_ns"]), int(record["checked"])
        )
        found = {
            PackNo(int(key.removeprefix(FOUND_PREFIX))): _finding(text)
            for key, text in settings.items()
            if key.startswith(FOUND_PREFIX)
        }
    except KeyError:
        return None, {}
    except (ValueError, TypeError) as error:
        log.warning("how far the last deep scrub was is not understood (%s); it begins anew", error)
        return None, {}
    is_old = now_ns - position.since_ns > GOES_ON_NS
    return (None, {}) if is_old else (position, found)


def as_settings(position: Position, found: Mapping[PackNo, Finding]) -> dict[str, str | None]:
    """Return them as local settings."""
    record = {
        "after": position.after,
        "last": position.last,
        "since_ns": position.since_ns,
        "checked": position.checked,
    }
    settings: dict[str, str | None] = {POSITION: json.dumps(record)}
    for number, finding in found.items():
        record_of_pack = {
            "missing": sorted(finding.missing),
            "damaged": sorted(finding.damaged),
            "lost": finding.is_lost,
        }
        settings[f"{FOUND_PREFIX}{number}"] = json.dumps(record_of_pack)
    return settings


def last_setting(now_ns: int, *, deep: bool, left: int, lost: int) -> dict[str, str | None]:
    """Return as a local setting what a scrub left: `left` shares, `lost` packs."""
    return {LAST: json.dumps({"time_ns": now_ns, "deep": deep, "left": left, "lost": lost})}


def read_last(text: str | None) -> dict[str, object] | None:
    """Return what `last_setting` wrote; None where there was no scrub yet, or it is not understood."""
    try:
        record = json.loads(text or "")
        return {key: record[key] for key in ("time_ns", "deep", "left", "lost")}
    except (ValueError, KeyError, TypeError):
        return None


def _finding(text: str) -> Finding:
    record = json.loads(text)
    return Finding(set(record["missing"]), set(record["damaged"]), bool(record["lost"]))

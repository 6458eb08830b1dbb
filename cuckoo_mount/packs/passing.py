"""How much time has passed for a drive, for what may be deleted at a certain age.

Used by collecting.py and housekeeping.  The clock of the machine is not asked, as it may be set: what was made a minute
ago must not look a day old.  Time counts while the machine is on, sleep included, from one call of `passed_ns` to the
next; what lies between two boots does not count.  So it runs late rather than early.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Final, Protocol

from attrs import frozen

from cuckoo_mount.clock import Moment

PASSED: Final = "passed"
"""Local setting: ns that passed, and the moment at which that was so.  It began with the time of day, so that what was
noted before there was this setting is not younger than it was."""


class LocalSettings(Protocol):
    """What is needed of the metadata."""

    async def local_settings(self, prefix: str) -> dict[str, str]:
        """Return the local settings whose keys begin so."""

    async def set_locals(self, local: Mapping[str, str | None]) -> None:
        """Set local settings."""


@frozen(slots=True)
class _Noted:
    ns: int
    moment: Moment


async def passed_ns(metadata: LocalSettings, now: Moment | None = None) -> int:
    """Return a time in ns that grows as time passes, and note it.  Raises: MetadataError."""
    now = now or Moment.now()
    text = (await metadata.local_settings(PASSED)).get(PASSED)
    noted = _Noted(time.time_ns(), now) if text is None else _parse(text)
    passed = noted.ns + now.since_ns(noted.moment)
    await metadata.set_locals({PASSED: f"{passed} {now.ns} {now.boot_id}"})
    return passed


def _parse(text: str) -> _Noted:
    passed, ns, boot_id = (*text.split(" "), "")[:3]
    return _Noted(int(passed), Moment(boot_id, int(ns)))

"""When the next epoch is due (design §3.2, §3.18).

Used by engine.py.  For one trio loop; no checkpoints.
"""

from __future__ import annotations

import math
import os
from typing import Final

import trio

from cuckoo_mount.clouds.registry import TESTING_VARIABLE

EPOCH_S: Final = 30.0
"""After the first change the next epoch waits so long, …"""
EPOCH_MAX_S: Final = 120.0
"""… or, while little comes again and again, twice as long each time up to this."""
EPOCH_VARIABLE: Final = "CUCKOO_EPOCH_S"
"""Environment variable: seconds in place of `EPOCH_S`; looked at with CUCKOO_TESTING=1 only."""
CATALOGUE_S: Final = 3600.0
"""What only the catalogue changed (packs moved or deleted) waits for the next epoch, so long at most."""
LITTLE_ROWS: Final = 64
LITTLE_BYTES: Final = 1 << 20
"""Fewer changed rows and dirty bytes than these are little."""


class EpochTimer:
    """Asked every second or so, says when an epoch is due."""

    def __init__(self) -> None:
        is_test = os.environ.get(TESTING_VARIABLE) == "1"
        self._least_s = float(os.environ.get(EPOCH_VARIABLE, EPOCH_S)) if is_test else EPOCH_S
        self._wait_s = self._least_s
        self._changed_at_s = math.inf
        self._made_at_s = -math.inf

    def is_due(self, changes: int, catalogue: int, dirty_bytes: int) -> bool:
        """Return whether an epoch is to be made now.

        `changes`, `catalogue`: as `Metadata.outbox_changes`, counted up to `LITTLE_ROWS` at least.
        """
        now_s = trio.current_time()
        if not changes and not dirty_bytes:
            self._changed_at_s = math.inf
            return bool(catalogue) and now_s >= self._made_at_s + CATALOGUE_S
        self._changed_at_s = min(self._changed_at_s, now_s)
        return now_s >= self._changed_at_s + (self._wait_s if _is_little(changes, dirty_bytes) else self._least_s)

    def begin(self, changes: int, dirty_bytes: int) -> None:
        """An epoch is made now, of so much."""
        now_s = trio.current_time()
        again = now_s < self._made_at_s + 3 * self._wait_s
        grows = again and _is_little(changes, dirty_bytes)
        self._wait_s = min(EPOCH_MAX_S, 2 * self._wait_s) if grows else self._least_s
        self._changed_at_s, self._made_at_s = math.inf, now_s

    def failed(self) -> None:
        """It could not be made: it is not tried again at once."""
        self._changed_at_s = trio.current_time()


def _is_little(changes: int, dirty_bytes: int) -> bool:
    return changes < LITTLE_ROWS and dirty_bytes < LITTLE_BYTES

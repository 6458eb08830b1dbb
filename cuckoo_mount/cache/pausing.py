"""How long what is dirty rests before it is sent though it fills no pack (design §3.2, §3.18).

Used by writeback.py.  For one trio loop; no checkpoints.  Little that comes again and again must not become a pack each
time: a change every half minute would be 2,900 packs a day, which kept epochs keep for a week.  It may as well wait for
the next cut, as nobody can recover it from the clouds before.
"""

from __future__ import annotations

import math
from typing import Final

import trio

IDLE_S: Final = 5.0
"""Without a change for so long, what is dirty is sent, …"""
IDLE_MAX_S: Final = 120.0
"""… or, when little was sent so short ago, after twice as long each time up to this."""
AGAIN_S: Final = 300.0
"""So short ago: longer than the longest time between two epochs of a trickle, which send what is dirty, too."""
LITTLE_BYTES: Final = 1 << 20
"""Less than this is little."""


class SendPauses:
    """Asked every second or so, says how long nothing must have changed."""

    def __init__(self) -> None:
        self._pause_s = IDLE_S
        self._sent_at_s = -math.inf

    def pause_s(self, dirty_bytes: int) -> float:
        """Return how many seconds so much is to rest before it is sent."""
        is_again = trio.current_time() < self._sent_at_s + AGAIN_S
        return self._pause_s if is_again and dirty_bytes < LITTLE_BYTES else IDLE_S

    def note_sent(self, dirty_bytes: int) -> None:
        """So much, more than nothing, is being sent now, in packs that need not be full."""
        grows = dirty_bytes < LITTLE_BYTES
        self._pause_s = min(IDLE_MAX_S, 2 * self.pause_s(dirty_bytes)) if grows else IDLE_S
        self._sent_at_s = trio.current_time()

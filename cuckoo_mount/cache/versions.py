"""Version numbers at hand: reserved from the metadata in blocks, taken one by one without waiting.

Used by content.py.  Loop only.  Numbers that are not used are lost; there are 2^63 (I-6).
"""

from __future__ import annotations

from typing import Final

from cuckoo_mount.metadata.base import Metadata
from cuckoo_mount.types import VersionNo

BLOCK: Final = 256


class VersionNumbers:
    """A supply of fresh version numbers."""

    def __init__(self, metadata: Metadata) -> None:
        self._metadata = metadata
        self._next = VersionNo(0)
        self._left = 0

    def has(self, count: int) -> bool:
        """Return whether `take` may be called `count` times."""
        return self._left >= count

    def take(self) -> VersionNo:
        """Return a number never used before; the caller made sure by `reserve` or `has`.  No checkpoint."""
        assert self._left > 0, "version numbers were not reserved"
        version = self._next
        self._next = VersionNo(version + 1)
        self._left -= 1
        return version

    async def reserve(self, count: int) -> None:
        """Make sure that `take` may be called `count` times, as long as nobody else does in between."""
        while not self.has(count):
            wanted = max(count, BLOCK)
            first = await self._metadata.new_versions(wanted)
            if not self.has(count):
                self._next, self._left = first, wanted

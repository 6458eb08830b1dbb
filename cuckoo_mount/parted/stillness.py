"""Files whose content must not change for a moment, because a copy of it is on its way to where it would be believed.

Used by partedfs.py.  Loop only, no I/O.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trio
from attrs import define, field

from cuckoo_mount.types import InodeNo


@define(slots=True, eq=False)
class Stillness:
    """Who wants to change a file waits until nobody holds it still.  One holder per file at a time."""

    _held: dict[InodeNo, trio.Event] = field(factory=dict)

    def is_held(self, ino: InodeNo) -> bool:
        """Return whether the file is held still now."""
        return ino in self._held

    @contextmanager
    def hold(self, ino: InodeNo) -> Iterator[None]:
        """Hold the file still for the length of the block; the caller has seen that nobody may change it now."""
        assert ino not in self._held, "one holder at a time"
        released = self._held[ino] = trio.Event()
        try:
            yield
        finally:
            del self._held[ino]
            released.set()

    async def wait(self, ino: InodeNo) -> None:
        """Return when nobody holds the file still.  Checkpoint only if somebody does.

        Who announced before that it will change the file (see `Content.open`) is sure that nobody holds it afterwards.
        """
        while (released := self._held.get(ino)) is not None:
            await released.wait()

"""Writers and the room on the clouds: what no cloud can take is refused, while the local disk could still take it.

Used by pressure.py, before each WRITE and each new file.  Loop only.
What is unsent counts with its plain bytes.  Compressed, or stored already, it may take less; so a writer for whom there
is no room waits while packs are being sent or room is being made, for a short while, before it gets NoSpace.  Who comes
after it gets NoSpace at once until there is more room than it saw: the kernel has hundreds of WRITEs in stock, and
behind each of them a program that waits to be told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import trio

from cuckoo_mount.clouds.base import Space
from cuckoo_mount.errors import NoSpace
from cuckoo_mount.locks import Pulse

STALL_S: Final = 5.0
WAIT_MAX_S: Final = 20.0
_LOOK_S: Final = 1.0


class CloudRoom:
    """The account.  `left`: plain bytes that the clouds hold at most, and can take, what is unsent included; None:
    no limit.

    `unsent_bytes`: of programs' data on this machine.  `is_full`: whether not even a chunk could be sent now.
    `may_free`: whether room is being made, or will be, because somebody waits; asked only then.
    """

    def __init__(
        self,
        left: Callable[[], Space | None],
        unsent_bytes: Callable[[], int],
        is_full: Callable[[], bool],
        changed: Pulse,
    ) -> None:
        self.may_free: Callable[[], bool] = lambda: False
        self.waiting = 0
        self._left = left
        self._unsent_bytes = unsent_bytes
        self._is_full = is_full
        self._changed = changed
        self._sending = 0
        self._promised_bytes = 0
        self._known: Space | None = None
        self._known_until_s = -1.0
        self._given_up_bytes = -1

    @contextmanager
    def sending(self) -> Iterator[None]:
        """Within the block something is being sent that may turn out to take less room than it was given."""
        self._sending += 1
        try:
            yield
        finally:
            self._sending -= 1
            self._known_until_s = -1.0

    @contextmanager
    def promised(self, more_bytes: int) -> Iterator[None]:
        """Within the block so much was admitted, and may not have been written yet."""
        self._promised_bytes += more_bytes
        try:
            yield
        finally:
            self._promised_bytes -= more_bytes

    def room(self, *, as_of_now: bool = True) -> Space | None:
        """Return how many bytes programs may have written in all, and how many more they may write, both ≥ 0.

        None: no limit.  `as_of_now` False: what the clouds take may be what it was a second ago.
        """
        now_s = trio.current_time()
        if as_of_now or now_s >= self._known_until_s:
            self._known, self._known_until_s = self._left(), now_s + _LOOK_S
        if self._known is None:
            return None
        free_bytes = max(0, self._known.free_bytes - self._unsent_bytes() - self._promised_bytes)
        return Space(self._known.total_bytes, min(self._known.total_bytes, free_bytes))

    def fits(self, more_bytes: int) -> bool:
        """Return whether so much more may be written now."""
        room = self.room(as_of_now=False)
        return room is None or more_bytes <= room.free_bytes

    async def admit(self, more_bytes: int) -> None:
        """Return when `more_bytes` may be added.  Checkpoint.  Raises: NoSpace."""
        self.waiting += 1
        try:
            with trio.move_on_after(WAIT_MAX_S):
                while not self._fits_now(more_bytes) and self._may_change():
                    with trio.fail_after(STALL_S):
                        await self._changed.wait()
        except trio.TooSlowError:
            pass
        finally:
            self.waiting -= 1
        if not self._fits_now(more_bytes):
            self._given_up_bytes = max(self._given_up_bytes, self._free_bytes())
            raise NoSpace("the clouds are full")
        self._given_up_bytes = -1

    def _fits_now(self, more_bytes: int) -> bool:
        room = self.room()
        return room is None or more_bytes <= room.free_bytes

    def _free_bytes(self) -> int:
        room = self.room()
        return 0 if room is None else room.free_bytes

    def _may_change(self) -> bool:
        if self.may_free():
            return True
        if self._free_bytes() <= self._given_up_bytes:
            return False
        return self._sending > 0 or (self._unsent_bytes() > 0 and not self._is_full())

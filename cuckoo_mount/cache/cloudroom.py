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

from cuckoo_mount.errors import NoSpace
from cuckoo_mount.locks import Pulse

STALL_S: Final = 5.0
WAIT_MAX_S: Final = 20.0
_LOOK_S: Final = 1.0


class CloudRoom:
    """The account.  `left_bytes`: plain bytes that the clouds can still take, what is unsent included; None: no limit.

    `unsent_bytes`: of programs' data on this machine.  `is_full`: whether not even a chunk could be sent now.
    `may_free`: whether room is being made, or will be, because somebody waits; asked only then.
    """

    def __init__(
        self,
        left_bytes: Callable[[], int | None],
        unsent_bytes: Callable[[], int],
        is_full: Callable[[], bool],
        room: Pulse,
    ) -> None:
        self.may_free: Callable[[], bool] = lambda: False
        self.waiting = 0
        self._left_bytes = left_bytes
        self._unsent_bytes = unsent_bytes
        self._is_full = is_full
        self._room = room
        self._sending = 0
        self._known_left_bytes: int | None = None
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

    def free_bytes(self) -> int | None:
        """Return how many more bytes programs may write, ≥ 0; None: no limit."""
        now_s = trio.current_time()
        if now_s >= self._known_until_s:
            self._known_left_bytes, self._known_until_s = self._left_bytes(), now_s + _LOOK_S
        left = self._known_left_bytes
        return None if left is None else max(0, left - self._unsent_bytes())

    def fits(self, more_bytes: int) -> bool:
        """Return whether so much more may be written now."""
        free = self.free_bytes()
        return free is None or more_bytes <= free

    async def admit(self, more_bytes: int) -> None:
        """Return when `more_bytes` may be added.  Checkpoint.  Raises: NoSpace."""
        self.waiting += 1
        try:
            with trio.move_on_after(WAIT_MAX_S):
                while not self._fits_now(more_bytes) and self._may_change():
                    with trio.fail_after(STALL_S):
                        await self._room.wait()
        except trio.TooSlowError:
            pass
        finally:
            self.waiting -= 1
        if not self._fits_now(more_bytes):
            self._given_up_bytes = max(self._given_up_bytes, self.free_bytes() or 0)
            raise NoSpace("the clouds are full")
        self._given_up_bytes = -1

    def _fits_now(self, more_bytes: int) -> bool:
        self._known_until_s = -1.0
        return self.fits(more_bytes)

    def _may_change(self) -> bool:
        if self.may_free():
            return True
        if (self.free_bytes() or 0) <= self._given_up_bytes:
            return False
        return self._sending > 0 or (self._unsent_bytes() > 0 and not self._is_full())

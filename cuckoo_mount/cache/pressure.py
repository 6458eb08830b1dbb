"""How full the cache is, and how writers are slowed: hard limit, soft limit, floor of free disk space.

Used by content.py (before each WRITE), eviction.py and writeback.py.  Loop only.

    0 ───────── low water 80 % ─── high water 90 % ─── limit ─── limit + overshoot
       free use      eviction stops     eviction starts   writers wait    NoSpace after the wait

A writer above the limit waits for room while there is progress (something was evicted or sent), at most `STALL_S`
without any.
Where the local disk itself is full, as others filled it, the first writer waits and those after it are refused at once.
Then it goes on up to the overshoot, which is what the kernel may hold dirty anyway, and above that gets NoSpace: the
kernel reports it at fsync or close.  Creating files stops at the limit.
What the clouds cannot take is refused in the same way, however empty the cache is (cloudroom.py).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import trio
from attrs import field, frozen, validators

from cuckoo_mount.cache.cloudroom import CloudRoom
from cuckoo_mount.clouds.base import Space
from cuckoo_mount.errors import NoSpace
from cuckoo_mount.locks import Pulse

STALL_S: Final = 5.0
FETCH_STALL_S: Final = 0.5
LOW_WATER: Final = 0.8
HIGH_WATER: Final = 0.9
_LOW_BYTES: Final = 16 << 20


@frozen(slots=True)
class CacheLimits:
    """`limit_bytes` bounds what is held, `overshoot_bytes` what unsent data may add to it; the disk keeps
    `floor_bytes` free."""

    limit_bytes: int = field(default=10 << 30, validator=validators.ge(16 << 20))
    overshoot_bytes: int = field(default=128 << 20, validator=validators.ge(0))
    floor_bytes: int = field(default=256 << 20, validator=validators.ge(0))


class Pressure:
    """The account.  `held_bytes` tells what the metadata counts, `pending_bytes` is kept here.

    `coming_bytes`: what is being fetched ahead; eviction makes room for it before it comes.  `displaced_bytes`: frozen
    versions that files do not consist of any more (frozen.py); they go as they are stored.
    """

    def __init__(
        self,
        limits: CacheLimits,
        folder: Path,
        held_bytes: Callable[[], int],
        dirty_bytes: Callable[[], int],
        cloud_room: Callable[[], Space | None],
        is_full: Callable[[], bool],
        metadata_room: Callable[[], bool] = lambda: True,
    ) -> None:
        """`cloud_room`, `is_full`: see `CloudRoom`.  `metadata_room`: see `Metadata.has_room`."""
        self.limits: Final = limits
        self.pending_bytes = 0
        self.coming_bytes = 0
        self.displaced_bytes = 0
        self.room = Pulse()
        self.need = trio.Event()
        self.clouds: Final = CloudRoom(cloud_room, lambda: dirty_bytes() + self.unentered_bytes, is_full, self.room)
        self._folder = folder
        self._held_bytes = held_bytes
        self._metadata_room = metadata_room
        self._disk_is_low = False
        self._is_hopeless = False

    @property
    def used_bytes(self) -> int:
        """Bytes in local files, as far as they are accounted for."""
        return self._held_bytes() + self.unentered_bytes

    @property
    def unentered_bytes(self) -> int:
        """Bytes in local files that no row of the metadata speaks of; all are unsent."""
        return self.pending_bytes + self.displaced_bytes

    @property
    def is_high(self) -> bool:
        """Whether eviction should start."""
        return self.used_bytes + self.coming_bytes > self.limits.limit_bytes * HIGH_WATER or self._disk_is_low

    @property
    def excess_bytes(self) -> int:
        """How much should be evicted to come down to the low water."""
        excess = self.used_bytes + self.coming_bytes - int(self.limits.limit_bytes * LOW_WATER)
        return max(excess, _LOW_BYTES if self._disk_is_low else 0)

    @property
    def spare_bytes(self) -> int:
        """How much may still come here without making anybody wait; 0 when the disk or the cache is full."""
        return 0 if self._disk_is_low else max(0, self.limits.limit_bytes - self.used_bytes - self.coming_bytes)

    def _is_over(self, more_bytes: int) -> bool:
        self.check_disk()
        return self.is_disk_short or self.used_bytes + more_bytes > self.limits.limit_bytes

    @property
    def is_disk_short(self) -> bool:
        """Whether the local disk has less room than the floor, or the metadata hardly any."""
        return self._disk_is_low or not self._metadata_room()

    def check_disk(self) -> None:
        """Look at the free space of the local disk: some µs, so before every write, as others fill it quickly."""
        status = os.statvfs(self._folder)
        self._disk_is_low = status.f_bavail * status.f_frsize < self.limits.floor_bytes
        self._is_hopeless = self._is_hopeless and self._disk_is_low

    async def admit(self, more_bytes: int, *, creating: bool = False) -> None:
        """Return when `more_bytes` may be added; no checkpoint when there is room.

        Raises: NoSpace when nothing made room for `STALL_S` and the overshoot is used up (or a file is to be created),
        or when the clouds cannot take it.
        """
        if self.is_high:
            self.need.set()
        if self._is_over(more_bytes):
            await self._wait_for_room(more_bytes, creating=creating)
        # Last: until `CloudRoom.promised` begins nobody else may come in between.
        if not self.clouds.fits(more_bytes or 1):
            await self.clouds.admit(more_bytes or 1)

    async def _wait_for_room(self, more_bytes: int, *, creating: bool) -> None:
        refused_at_s = trio.current_time() + STALL_S
        while self._is_over(more_bytes):
            self.need.set()
            # What is sent and evicted here is progress, but need not help where others take what it frees.
            self._is_hopeless = self._is_hopeless or (self.is_disk_short and trio.current_time() >= refused_at_s)
            if self._is_hopeless and self.is_disk_short:
                # Who comes next need not wait as long for somebody else's disk, until something is freed here.
                raise NoSpace("the local disk is full")
            with trio.move_on_after(STALL_S) as stalled:
                await self.room.wait()
            if stalled.cancelled_caught and not self.is_disk_short:
                top = self.limits.limit_bytes + self.limits.overshoot_bytes
                if creating or self.used_bytes + more_bytes > top:
                    raise NoSpace("the cache is full of data that no cloud has taken yet")
                return

    async def make_way(self, more_bytes: int) -> None:
        """Return when fetched bytes may be kept: soon, room or not, because a read must not fail for want of it."""
        if self.is_high:
            self.need.set()
        if self._is_over(more_bytes):
            with trio.move_on_after(FETCH_STALL_S):
                await self.room.wait()

    def made_progress(self) -> None:
        """Something was evicted, sent or deleted: writers look again."""
        self._is_hopeless = False
        self.room.beat()

"""Packs with too few shares, or with a damaged one, are written anew with all their shares.

Used by packs/collecting.py.  For one trio loop; by compaction, so that at every moment what lives is in a stored pack,
and a kill or a cancellation leaves everything as it was.  That sends a pack's content once for each of its shares,
where the missing share alone would do; in return dead bytes go, small packs are merged, and one mechanism does it all.

`run` goes on for as long as there is something to heal, one pack at a time.  It gives way to what programs write, and
keeps to a rate.  What is to be healed stands in the metadata, so that the next mount goes on where this one ends.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import trio
from attrs import frozen

from cuckoo_mount.catalogue import CollectedCatalogue
from cuckoo_mount.errors import CuckooError, MetadataError
from cuckoo_mount.multi.multifs import MultiFS
from cuckoo_mount.multi.redundancy import parse_policy
from cuckoo_mount.packs.choosing import fill_of
from cuckoo_mount.packs.compaction import Compactor
from cuckoo_mount.packs.writer import FRAME_BYTES, FRAME_PART, PackWriter
from cuckoo_mount.types import PackNo, PackRow

log = logging.getLogger(__name__)
LOOKED_AT: Final = 4096
"""So many degraded packs are listed at once, those with the fewest shares first."""
POLL_S: Final = 1.0
LOOK_AGAIN_S: Final = 60.0
"""When nothing can be healed, and the clouds stay as they are, it is tried again after this."""
GIVE_WAY_S: Final = 15.0
"""While programs write, a pack is healed so seldom: every pack that waits may be the next to be lost."""
RATE_WINDOW_S: Final = 120.0


@frozen(slots=True)
class Healing:
    """How healing goes.  `healed`: packs since the mount; `bytes_per_s`: sent lately; `time_left_s`: None if unknown.

    Contract: `status --json`, `packs.healing`.
    """

    healed: int
    bytes_per_s: float
    time_left_s: float | None


@frozen(slots=True)
class _Done:
    """One batch: when it began and ended, how many packs it replaced, bytes of shares sent."""

    began_s: float
    ended_s: float
    packs: int
    sent_bytes: int


class Healer:
    """Heals the packs of one drive.  `is_idle`: whether nothing waits to be sent.

    `rate_bytes`: how many bytes healing may send per second, on average; None: as many as the clouds take.
    """

    def __init__(
        self,
        metadata: CollectedCatalogue,
        multifs: MultiFS,
        writer: PackWriter,
        compactor: Compactor,
        is_idle: Callable[[], bool],
        *,
        rate_bytes: int | None = None,
    ) -> None:
        self._metadata = metadata
        self._multifs = multifs
        self._writer = writer
        self._compactor = compactor
        self._is_idle = is_idle
        self.may_free: Callable[[], bool] = lambda: False
        """Asked whether room is being made, or will be, when packs are not healed for want of room; then `wake`."""
        self._needs_room = False
        self._rate_bytes = rate_bytes
        self._waiting: deque[PackNo] = deque()
        self._aside: set[PackNo] = set()
        self._wake = trio.Event()
        self._healed = 0
        self._lately: deque[_Done] = deque()

    def wake(self) -> None:
        """Look at once what there is to heal: something was found damaged or lost."""
        self._wake.set()

    def status(self, degraded: int) -> Healing:
        """Return how healing goes, with so many packs left."""
        now_s = trio.current_time()
        while self._lately and self._lately[0].ended_s < now_s - RATE_WINDOW_S:
            self._lately.popleft()
        packs = sum(done.packs for done in self._lately)
        if not packs:
            return Healing(self._healed, 0.0, None)
        took_s = max(now_s - self._lately[0].began_s, 0.001)
        sent_bytes = sum(done.sent_bytes for done in self._lately)
        return Healing(self._healed, sent_bytes / took_s, degraded * took_s / packs)

    async def run(self, lock: trio.Lock, may_write: Callable[[], bool]) -> None:
        """Heal until cancelled, a batch at a time, each with `lock` held.  Raises: MetadataError."""
        while True:
            if not may_write():
                # Nobody takes what reads found damaged, so that it is nothing to wait for: that would never wait.
                await trio.sleep(POLL_S)
                continue
            clouds = self._multifs.conditions
            self._wake = trio.Event()
            await self._give_way()
            async with lock:
                done = await self.heal_batch()
            if done is not None:
                await trio.sleep(self._pause_s(done))
            elif self._needs_room and self.may_free():
                # What was healed before is kept twice, until older epochs are given up.
                await self._wake.wait()
            else:
                await self._wait(clouds)

    async def heal_all(self) -> int:
        """Heal all that can be of what there is now; return how many packs were replaced.

        Checkpoint.  Raises: MetadataError.
        """
        self._aside.clear()
        self._waiting.clear()
        total = 0
        newest = await self._metadata.newest_pack()  # as clouds come and go, there may always be another one
        while (done := await self.heal_batch(newest)) is not None:
            total += done.packs
        return total

    async def heal_batch(self, newest: PackNo | None = None) -> _Done | None:
        """Write one pack anew, or several small ones as one, where more shares than they have can be stored now.

        `newest`: those behind it are left out; None: none are.
        None: there is none, or it is not possible now.  Checkpoint, may be cancelled anywhere.  Raises: MetadataError.
        """
        while batch := await self._next_batch(newest):
            if not self._has_room(batch):
                self._waiting.extendleft(pack.number for pack in reversed(batch[1:]))
                batch = batch[:1]
                if not self._has_room(batch):
                    self._needs_room = True
                    self._waiting.clear()
                    return None
            began_s = trio.current_time()
            try:
                is_done = await self._compactor.compact(tuple(fill_of(pack) for pack in batch))
            except (CuckooError, OSError) as error:
                if isinstance(error, MetadataError):
                    raise
                log.warning("packs are not healed now: %s", error)
                self._waiting.clear()
                return None
            if is_done:
                policy = parse_policy(batch[0].policy)
                sent_bytes = _live_bytes(batch) * policy.shares // policy.data
                done = _Done(began_s, trio.current_time(), len(batch), sent_bytes)
                self._healed += done.packs
                self._lately.append(done)
                return done
            self._put_aside([pack.number for pack in batch])
        return None

    def _put_aside(self, batch: list[PackNo]) -> None:
        """Leave out for now those that could not be read; if it was none of them, all."""
        unread = [number for number in batch if self._is_out(number)]
        self._aside.update(unread or batch)
        self._waiting.extendleft(number for number in reversed(batch) if number not in self._aside)

    async def _next_batch(self, newest: PackNo | None) -> list[PackRow]:
        """Return packs that can be healed now and fit into one, in order; empty: there are none."""
        if not self._waiting:
            await self._look()
            self._waiting = deque(number for number in self._waiting if newest is None or number <= newest)
        batch: list[PackRow] = []
        while self._waiting:
            await trio.lowlevel.checkpoint()
            pack = await self._living(self._waiting[0])
            if pack is not None and batch and not self._fits(batch, pack):
                break
            self._waiting.popleft()
            if pack is not None:
                batch.append(pack)
        return batch

    def _fits(self, batch: Sequence[PackRow], pack: PackRow) -> bool:
        return pack.policy == batch[0].policy and _live_bytes((*batch, pack)) <= self._writer.pack_size_bytes

    async def _look(self) -> None:
        """List what is to be healed: damaged ones first, then those with the fewest shares."""
        for pack_id in self._multifs.take_damaged():
            pack = await self._metadata.find_pack(pack_id)
            if pack is not None and not self._is_out(pack.number):
                self._waiting.append(pack.number)
        self._needs_room = False
        hurt = frozenset(self._waiting)
        for number in await self._metadata.degraded(LOOKED_AT):
            if number not in hurt and not self._is_out(number):
                await trio.lowlevel.checkpoint()
                pack = await self._living(number)
                if pack is not None and self._can_improve(pack):
                    self._waiting.append(number)

    def _is_out(self, number: PackNo) -> bool:
        return number in self._aside or number in self._compactor.failed or number in self._compactor.unreachable

    async def _living(self, number: PackNo) -> PackRow | None:
        rows = await self._metadata.packs(1, after=PackNo(number - 1))
        return next((pack for pack in rows if pack.number == number and not pack.dead and pack.used_bytes), None)

    def _can_improve(self, pack: PackRow) -> bool:
        """Return whether a new pack would get more shares than this one has on the drive's clouds."""
        have = self._have(pack)
        if have < parse_policy(pack.policy).data:
            return False
        if self._multifs.shares_possible(pack.size_bytes, pack.policy) > have:
            return True
        self._needs_room |= self._multifs.shares_possible(0, pack.policy) > have
        return False

    def _has_room(self, batch: Sequence[PackRow]) -> bool:
        """Return whether the new pack would get more shares than one of these has, or all there can be."""
        used_bytes, policy = sum(pack.used_bytes for pack in batch), batch[0].policy
        wanted = min(parse_policy(policy).shares, min(self._have(pack) for pack in batch) + 1)
        size_bytes = used_bytes + used_bytes // FRAME_PART + FRAME_BYTES
        return self._multifs.shares_possible(size_bytes, policy) >= wanted

    def _have(self, pack: PackRow) -> int:
        """Return how many shares are on the drive's clouds."""
        return sum(share.cloud in self._multifs.names for share in pack.shares)

    # -- politeness --

    async def _give_way(self) -> None:
        with trio.move_on_after(GIVE_WAY_S):
            while not self._is_idle():  # noqa: ASYNC110 (who writes tells nobody when it is all sent)
                await trio.sleep(POLL_S / 4)

    def _pause_s(self, done: _Done) -> float:
        if self._rate_bytes is None:
            return 0.0
        return max(0.0, done.sent_bytes / self._rate_bytes - (done.ended_s - done.began_s))

    async def _wait(self, clouds: object) -> None:
        """Return when more may be possible than it was while the clouds were `clouds`."""
        with trio.move_on_after(LOOK_AGAIN_S):
            while self._multifs.conditions == clouds and not self._multifs.has_damaged and not self._wake.is_set():
                with trio.move_on_after(POLL_S):
                    await self._wake.wait()
        self._aside.clear()
        self._compactor.unreachable.clear()


def _live_bytes(packs: Iterable[PackRow]) -> int:
    return sum(pack.live_bytes for pack in packs)

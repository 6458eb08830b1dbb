"""Reading from whichever share gives the right bytes: the order of asking, the waiting, and the giving up.

Used by multi/multifs.py.  For one trio loop.  The fastest cloud that is well is asked first, and when it is late, and
somebody waits for the bytes, the next one as well (hedging.py).  Owns: a share that gave wrong bytes is asked once more
within one read, and only if no other one is whole (it may have been the transfer), trouble that may pass is waited for
up to the deadline, and the error names every cloud and object that failed.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Sequence
from typing import Final, NoReturn, TypeVar

import trio

from cuckoo_mount.errors import CloudCorrupt, CloudError, CloudMissing, CloudUnavailable, DataTimeout, DataUnavailable
from cuckoo_mount.format import pack_share_name
from cuckoo_mount.multi.health import HOPELESS, Health, Request
from cuckoo_mount.multi.hedging import HedgeBudget, race
from cuckoo_mount.multi.records import transfer_deadline_s
from cuckoo_mount.multi.requests import CloudRequests
from cuckoo_mount.types import CloudName, ShareRow

log = logging.getLogger(__name__)

T = TypeVar("T")
DAMAGED_MAX: Final = 10_000
"""Packs remembered as damaged, until somebody heals them; the next read of another one finds it again."""
RETRY_PAUSE_S: Final = 0.25
"""Shortest pause before the same clouds are asked again, however soon they may be."""
_PART_OF_TIME: Final = 0.95
"""A job gets a little less than is left, so that its own deadline passes first and the cloud's health learns of it."""
ALIKE_S: Final = 0.03
"""Clouds that are to answer within this time are equally near; beyond it, within the same power of two of it."""
MUCH_SLOWER: Final = 4.0
"""So many times as long one request may take before several others are made in its place."""


class ShareReader:
    """Runs a job on one share after the other until one succeeds."""

    def __init__(self, requests: CloudRequests, health: Health, drive_id: bytes, clouds: Collection[CloudName]) -> None:
        self._requests = requests
        self._health = health
        self._drive_id = drive_id
        self._clouds = clouds
        self._damaged: set[bytes] = set()
        self.budget: Final = HedgeBudget()

    def note_damaged(self, pack_id: bytes) -> None:
        """Remember that a share of the pack is not what was stored."""
        if len(self._damaged) < DAMAGED_MAX:
            self._damaged.add(pack_id)

    def take_damaged(self) -> frozenset[bytes]:
        """Return what was noted since the last call."""
        found = frozenset(self._damaged)
        self._damaged.clear()
        return found

    @property
    def has_damaged(self) -> bool:
        """Whether anything was noted."""
        return bool(self._damaged)

    async def first_whole(
        self,
        pack_id: bytes,
        shares: Sequence[ShareRow],
        job: Callable[..., T],
        *args: object,
        length_bytes: int,
        deadline_s: float,
        urgent: bool,
    ) -> T:
        """See MultiFS.first_whole."""
        reading = self._begin(pack_id, shares, length_bytes, deadline_s, urgent=urgent)
        found: dict[int, T] = {}
        # The scope also ends the waiting for a free worker, which a job's own deadline does not count.
        with trio.move_on_at(reading.ends_at):
            while not found:
                await self._ask_some(reading, 1, found, job, *args)
                if not found:
                    await self._pause(reading)
            return next(iter(found.values()))
        for share in reading.shares:
            reading.errors.setdefault(share, self._health.state(share.cloud).last_error)
        reading.give_up()

    def _begin(
        self, pack_id: bytes, shares: Sequence[ShareRow], length_bytes: int, deadline_s: float, *, urgent: bool
    ) -> _Reading:
        reading = _Reading(pack_id, shares, length_bytes, deadline_s, urgent=urgent)
        for share in shares:
            if share.cloud not in self._clouds:
                reading.drop(share, f"cloud {share.cloud}: is not one of this drive's any more")
        return reading

    async def _ask_some(
        self, reading: _Reading, needed: int, found: dict[int, T], job: Callable[..., T], *args: object
    ) -> None:
        """Ask all shares worth asking now, one after the other, until `needed` more of them are found."""
        limit_s = reading.part_of_time_s()

        async def attempt(share: ShareRow) -> bool:
            try:
                await self._confirm(reading, share)
                found[share.share] = await self.try_share(
                    reading.pack_id,
                    share,
                    job,
                    *args,
                    length_bytes=reading.length_bytes,
                    deadline_s=limit_s,
                    urgent=reading.urgent,
                )
                reading.shares.remove(share)
                return True
            except CloudError as error:
                reading.note(share, pack_share_name(self._drive_id, reading.pack_id, share.share), error)
                return False

        def late_s(share: ShareRow) -> float:
            if not reading.urgent:
                return math.inf
            self.budget.earn()
            return self.late_s(share.cloud, reading.length_bytes)

        def may_hedge(late: ShareRow, following: ShareRow) -> bool:
            return self._health.is_well(following.cloud) and self.spend(late.cloud, 1)

        due = self._in_order(reading)
        needed -= await race(due, needed, attempt, late_s=late_s, may_hedge=may_hedge)
        if needed:
            await race(self._written_off(reading), needed, attempt, late_s=late_s, may_hedge=lambda *_: False)

    def spend(self, late: CloudName, requests: int) -> bool:
        """Return whether so many extra requests may be made because a cloud is late, and count them."""
        if not self.budget.spend(requests):
            return False
        self._health.note_hedged(late)
        return True

    def late_s(self, cloud: CloudName, length_bytes: int) -> float:
        """Return after how many seconds a read of about that size is late there."""
        return self._requests.paces.late_s(cloud, Request.READ, length_bytes)

    def is_ready(self, share: ShareRow) -> bool:
        """Return whether the share's cloud is one of the drive's and answers."""
        return share.cloud in self._clouds and self._health.is_up(share.cloud)

    def is_much_slower(self, share: ShareRow, others: Sequence[ShareRow], needed: int, length_bytes: int) -> bool:
        """Return whether `needed` of the others together are to be expected much sooner than this one share."""

        def expected_s(share: ShareRow) -> float:
            return max(ALIKE_S, self._requests.paces.expected_s(share.cloud, Request.READ, length_bytes))

        well = sorted(expected_s(other) for other in others if self._health.is_well(other.cloud))
        if len(well) < needed:
            return False
        return not self._health.is_well(share.cloud) or expected_s(share) > MUCH_SLOWER * well[needed - 1]

    async def try_share(
        self,
        pack_id: bytes,
        share: ShareRow,
        job: Callable[..., T],
        *args: object,
        length_bytes: int,
        deadline_s: float,
        urgent: bool,
    ) -> T:
        """Return `job(settings, object name, *args)` for one share, asked once.  Raises: CloudError."""
        name = pack_share_name(self._drive_id, pack_id, share.share)
        limit_s = min(deadline_s, transfer_deadline_s(length_bytes))
        try:
            return await self._requests.ask_for_object(
                share.cloud, job, name, *args, deadline_s=limit_s, bytes_down=length_bytes, urgent=urgent
            )
        except (CloudCorrupt, CloudMissing) as error:
            log.warning("a share is damaged or lost: %s", _with_object(error, name))
            self.note_damaged(pack_id)
            raise

    async def some(
        self,
        pack_id: bytes,
        shares: Sequence[ShareRow],
        needed: int,
        job: Callable[..., T],
        *args: object,
        length_bytes: int,
        deadline_s: float,
        urgent: bool,
    ) -> dict[int, T]:
        """Return `job(settings, object name, *args)` of at least `needed` shares, by share; they are asked together.

        Waits for clouds whose trouble may pass.  Raises: DataUnavailable (too few are left), DataTimeout.
        """
        reading = self._begin(pack_id, shares, length_bytes, deadline_s, urgent=urgent)
        found: dict[int, T] = {}
        with trio.move_on_at(reading.ends_at):
            while len(found) < needed:
                if len(found) + len(reading.shares) < needed:
                    reading.shares.clear()  # those that may still come do not help
                    reading.give_up()
                await self._ask_some(reading, needed - len(found), found, job, *args)
                if len(found) + len(reading.shares) >= needed > len(found):
                    await self._pause(reading)
            return found
        reading.give_up()

    def _in_order(self, reading: _Reading) -> list[ShareRow]:
        """Return the shares worth asking for now: on clouds that are well first, of these on the fastest.

        Among those about as fast, the cloud with the least to do; among equals each pack has an order of its own, so
        that reading on spreads over the clouds.
        """
        due = [share for share in reading.shares if self._health.may_ask(share.cloud)]

        def preference(share: ShareRow) -> tuple[bool, bool, int, int, int]:
            cloud, under_way = share.cloud, self._requests.under_way(share.cloud)
            expected_s = self._requests.paces.expected_s(cloud, Request.READ, reading.length_bytes) * (1 + under_way)
            nearness = max(0, math.ceil(math.log2(max(expected_s, ALIKE_S) / ALIKE_S)))
            turn = (share.share + reading.pack_id[0]) % len(due)
            return not self._health.is_up(cloud), not self._health.is_well(cloud), nearness, under_way, turn

        return sorted(due, key=preference)

    def _written_off(self, reading: _Reading) -> list[ShareRow]:
        """Return, for when no other share is left, those on clouds thought hopeless that this read has not asked.

        Somebody may have mounted the disk again: that must be looked at before a program is told that its bytes are
        gone.
        """
        return [
            share
            for share in reading.shares
            if share not in reading.asked and self._health.state(share.cloud).condition in HOPELESS
        ]

    async def _confirm(self, reading: _Reading, share: ShareRow) -> None:
        """Look first whether a cloud that was thought hopeless still is.  Raises: CloudError."""
        reading.asked.add(share)
        if self._health.state(share.cloud).condition in HOPELESS:
            await self._requests.probe(share.cloud)

    async def _pause(self, reading: _Reading) -> None:
        """Wait until one of the clouds may be asked again.  Raises: DataUnavailable when no share is left."""
        if reading.take_doubtful():
            return
        for share in list(reading.shares):
            state = self._health.state(share.cloud)
            if state.condition in HOPELESS:
                reading.drop(share, state.last_error)
        if not reading.shares:
            reading.give_up()
        await trio.sleep(max(RETRY_PAUSE_S, self._health.wait_s(share.cloud for share in reading.shares)))


def _with_object(error: CloudError, name: str) -> str:
    """Return what an error says, with the object that it is about."""
    return str(error) if error.name else f"{error} ({name})"


class _Reading:
    """One read under way: which shares are left, and what went wrong with which."""

    def __init__(
        self, pack_id: bytes, shares: Sequence[ShareRow], length_bytes: int, deadline_s: float, *, urgent: bool
    ) -> None:
        self.pack_id: Final = pack_id
        self.length_bytes: Final = length_bytes
        self.urgent: Final = urgent
        self.shares = list(shares)
        self.errors: dict[ShareRow, str] = {}
        self.asked: set[ShareRow] = set()
        self._wrong: set[ShareRow] = set()
        self._is_doubtful = False
        self.ends_at = trio.current_time() + deadline_s
        self._deadline_s = deadline_s

    def part_of_time_s(self) -> float:
        """Return how long one share may take: one that hangs must leave time for the others."""
        left_s = max(0.001, self.ends_at - trio.current_time())
        return left_s * _PART_OF_TIME / max(1, len(self.shares))

    def drop(self, share: ShareRow, why: str) -> None:
        """Do not ask for this share any more."""
        self.errors.setdefault(share, why)
        self.shares.remove(share)

    def note(self, share: ShareRow, name: str, error: CloudError) -> None:
        """Take note of a failure; the share is out unless the trouble may pass."""
        self.errors[share] = _with_object(error, name)
        if isinstance(error, CloudCorrupt) and share not in self._wrong:
            self._wrong.add(share)
            self._is_doubtful = True
        elif not isinstance(error, CloudUnavailable):
            self.shares.remove(share)

    def take_doubtful(self) -> bool:
        """Return whether a share gave wrong bytes for the first time since the last call: it may give right ones."""
        is_doubtful, self._is_doubtful = self._is_doubtful, False
        return is_doubtful

    def give_up(self) -> NoReturn:
        what = "; ".join(self.errors.values()) or "the pack has no shares"
        if self.shares:
            raise DataTimeout(f"not read within {self._deadline_s:g} s: {what}")
        raise DataUnavailable(f"no cloud gave the bytes back whole: {what}")

"""Reading packs whose shares are fragments: from the one share that has the bytes, else from any that are enough.

Used by multi/multifs.py.  For one trio loop.  A range of a pack is a range of one data share, most of the time; where
that fails, or the range lies in two, the same range of K shares is fetched and the bytes are computed in a worker.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

import trio
from attrs import evolve, frozen

from cuckoo_mount.errors import CloudCorrupt, CloudError, DataTimeout, DataUnavailable, FileSystemError
from cuckoo_mount.multi.fetching import ShareReader
from cuckoo_mount.multi.hedging import race
from cuckoo_mount.multi.redundancy import Policy
from cuckoo_mount.multi.requests import CloudRequests
from cuckoo_mount.multi.stripejobs import get_columns, on_fragment, on_stripe, pieces_of, stripe_of
from cuckoo_mount.types import ShareRow

log = logging.getLogger(__name__)
T = TypeVar("T")
COMPUTE_DEADLINE_S: Final = 30.0
ALONE_PART: Final = 0.4
"""The part of a read's time that the one share with the bytes may take."""


@frozen(slots=True)
class Wanted:
    """A range of a pack: bytes `start` to `end` of `pack_bytes`, whose shares were made by `policy`."""

    pack_id: bytes
    shares: Sequence[ShareRow]
    policy: Policy
    pack_bytes: int
    start: int
    end: int


class StripeReader:
    """Runs a job (see multi/stripejobs.py) on a range of a pack."""

    def __init__(self, requests: CloudRequests, reader: ShareReader) -> None:
        self._requests = requests
        self._reader = reader

    async def read(self, wanted: Wanted, job: Callable[..., T], *args: object, deadline_s: float, urgent: bool) -> T:
        """Return `job(source, object name, *args)`.  Raises: DataUnavailable, DataTimeout, as `first_whole`."""
        ends_at_s = trio.current_time() + deadline_s
        share_bytes = wanted.policy.share_bytes(wanted.pack_bytes)
        pieces = pieces_of(wanted.start, wanted.end, share_bytes)
        rows = {row.share: row for row in wanted.shares}
        row = rows.get(pieces[0][0]) if len(pieces) == 1 else None
        if row is not None and self._is_near(wanted, row):
            found: list[T] = []
            others = _without(wanted, row)
            trouble: list[FileSystemError] = []

            async def attempt(is_alone: bool) -> bool:
                try:
                    if is_alone:
                        found.append(await self._alone(wanted, row, job, *args, ends_at_s=ends_at_s, urgent=urgent))
                    else:
                        enough = len(others.shares) >= wanted.policy.data
                        asked = others if enough else wanted
                        found.append(await self._compute(asked, job, *args, ends_at_s=ends_at_s, urgent=urgent))
                except CloudError as error:
                    log.info("read from other shares instead: %s", error)
                except (DataTimeout, DataUnavailable) as error:
                    trouble.append(error)
                return bool(found)

            def late_s(is_alone: bool) -> float:
                return self._reader.late_s(row.cloud, wanted.end - wanted.start) if is_alone and urgent else math.inf

            await race((True, False), 1, attempt, late_s=late_s, may_hedge=lambda *_: self._may_hedge(others, row))
            if not found:
                raise trouble[-1]
            return found[0]
        return await self._compute(wanted, job, *args, ends_at_s=ends_at_s, urgent=urgent)

    async def _alone(
        self, wanted: Wanted, row: ShareRow, job: Callable[..., T], *args: object, ends_at_s: float, urgent: bool
    ) -> T:
        """Ask the one share with the bytes.  Raises: CloudError."""
        if urgent:
            self._reader.budget.earn()
        base = row.share * wanted.policy.share_bytes(wanted.pack_bytes)
        return await self._reader.try_share(
            wanted.pack_id,
            row,
            on_fragment,
            base,
            job,
            *args,
            length_bytes=wanted.end - wanted.start,
            deadline_s=ALONE_PART * max(0.0, ends_at_s - trio.current_time()),
            urgent=urgent,
        )

    def _is_near(self, wanted: Wanted, row: ShareRow) -> bool:
        """Return whether to ask the one share with the bytes first."""
        others, length_bytes = _without(wanted, row).shares, wanted.end - wanted.start
        return self._reader.is_ready(row) and not self._reader.is_much_slower(
            row, others, wanted.policy.data, length_bytes
        )

    def _may_hedge(self, others: Wanted, late: ShareRow) -> bool:
        """Return whether the bytes may be computed from others: as many requests as there are data shares."""
        ready = sum(self._reader.is_ready(share) for share in others.shares)
        return ready >= others.policy.data and self._reader.spend(late.cloud, others.policy.data)

    async def _compute(self, wanted: Wanted, job: Callable[..., T], *args: object, ends_at_s: float, urgent: bool) -> T:
        policy = wanted.policy
        stripe = stripe_of(wanted.start, wanted.end, policy.share_bytes(wanted.pack_bytes))
        length_bytes = sum(end - start for start, end in stripe.columns)
        found: dict[int, list[bytes]] = {}
        for needed in range(policy.data, policy.shares + 1):
            missing = [row for row in wanted.shares if row.share not in found]
            try:
                found |= await self._reader.some(
                    wanted.pack_id,
                    missing,
                    needed - len(found),
                    get_columns,
                    stripe.columns,
                    length_bytes=length_bytes,
                    deadline_s=max(0.0, ends_at_s - trio.current_time()),
                    urgent=urgent,
                )
            except (DataTimeout, DataUnavailable):
                if needed == policy.data:
                    raise
                break
            where = ", ".join(row.cloud for row in wanted.shares if row.share in found)
            try:
                return await self._requests.compute(
                    on_stripe, stripe, found, policy, where, job, *args, deadline_s=COMPUTE_DEADLINE_S
                )
            except CloudCorrupt as error:
                log.warning("bytes of shares together are wrong: %s", error)
                self._reader.note_damaged(wanted.pack_id)
        clouds = ", ".join(row.cloud for row in wanted.shares)
        raise DataUnavailable(f"no {policy.data} shares of the pack on {clouds} give the right bytes")


def _without(wanted: Wanted, row: ShareRow) -> Wanted:
    return evolve(wanted, shares=[share for share in wanted.shares if share is not row])

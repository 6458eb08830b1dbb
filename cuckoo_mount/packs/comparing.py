"""What share rows promise against what clouds show: verdicts on shares, and what follows for their pack.

Used by scrubbing.py.  Pure functions.  A cloud that was not listed proves nothing; what a listing alone says is a
suspicion until the cloud was asked for the object itself.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from enum import Enum
from typing import Final

from attrs import frozen

from cuckoo_mount.multi.redundancy import parse_policy
from cuckoo_mount.types import CloudName, PackRow, ShareRow

Listing = Mapping[bytes, int]
"""Sizes in bytes of the shares on one cloud, by `share_key`."""


class Verdict(Enum):
    """What is known of a share.  DAMAGED: an object is there, but not the one that was stored."""

    WHOLE = "whole"
    UNKNOWN = "unknown"
    MISSING = "missing"
    DAMAGED = "damaged"
    ELSEWHERE = "elsewhere"


BAD: Final = frozenset({Verdict.MISSING, Verdict.DAMAGED})


@frozen(slots=True)
class Consequence:
    """What follows from the verdicts on a pack's shares.

    `drop`: rows to go, because the pack can be read without them.  `keep`: bad shares whose rows stay: what is left of
    them may be needed.  `is_lost`: fewer whole shares are left than reading all of the pack takes, even if the clouds
    that were not looked at have theirs.
    """

    drop: tuple[ShareRow, ...] = ()
    keep: tuple[ShareRow, ...] = ()
    is_lost: bool = False


def share_key(pack_id: bytes, share: int) -> bytes:
    """Return a short name of a share: pack id and number."""
    return pack_id + bytes((share,))


def compare(
    pack: PackRow, listings: Mapping[CloudName, Listing], clouds: Collection[CloudName]
) -> dict[ShareRow, Verdict]:
    """Return the verdict on every share of a pack.  `listings`: of the clouds that answered; `clouds`: the drive's."""
    length_bytes = parse_policy(pack.policy).share_bytes(pack.size_bytes)
    return {share: _verdict(pack.pack_id, share, length_bytes, listings, clouds) for share in pack.shares}


def _verdict(
    pack_id: bytes,
    share: ShareRow,
    length_bytes: int,
    listings: Mapping[CloudName, Listing],
    clouds: Collection[CloudName],
) -> Verdict:
    if share.cloud not in clouds:
        return Verdict.ELSEWHERE
    listing = listings.get(share.cloud)
    if listing is None:
        return Verdict.UNKNOWN
    found_bytes = listing.get(share_key(pack_id, share.share))
    if found_bytes is None:
        return Verdict.MISSING
    return Verdict.WHOLE if found_bytes == length_bytes else Verdict.DAMAGED


def decide(policy: str, verdicts: Mapping[ShareRow, Verdict]) -> Consequence:
    """Return what follows for a pack of this policy.

    A missing share has nothing left to give: its row goes as soon as the others, also those not looked at, may be
    enough.  A damaged one may have most chunks right: its row goes only where enough others are known to be whole.
    """
    needed = parse_policy(policy).data
    by_verdict = {verdict: tuple(share for share, found in verdicts.items() if found is verdict) for verdict in Verdict}
    missing, damaged = by_verdict[Verdict.MISSING], by_verdict[Verdict.DAMAGED]
    whole = len(by_verdict[Verdict.WHOLE])
    possible = whole + len(by_verdict[Verdict.UNKNOWN])
    drop: tuple[ShareRow, ...] = ()
    if possible >= needed:
        drop += missing
    if whole >= needed:
        drop += damaged
    keep = tuple(share for share in (*missing, *damaged) if share not in drop)
    return Consequence(drop, keep, is_lost=possible < needed)

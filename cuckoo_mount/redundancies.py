"""What the redundancies of a drive mean for its epochs and for `df`, and how the drive's own is changed.

Used by drive.py.  Loop only.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from cuckoo_mount.errors import UsageError
from cuckoo_mount.metadata.base import Metadata
from cuckoo_mount.multi.multifs import MultiFS
from cuckoo_mount.multi.policies import Policies
from cuckoo_mount.multi.redundancy import check_redundancy, parse_policy
from cuckoo_mount.packs.repacking import ask_for_repacking
from cuckoo_mount.parted.partedfs import SpaceLeft

log = logging.getLogger(__name__)


def clouds_wanted(multifs: MultiFS, policies: Policies) -> int:
    """Return on how many clouds an epoch is durable (design §3.5)."""
    return max(1, min(places_of(multifs), max(policies.losses + 1, 2)))


def places_of(multifs: MultiFS) -> int:
    """Return how many clouds take objects."""
    return sum(multifs.takes_objects(name) for name in multifs.names)


def space_of(multifs: MultiFS, policies: Policies) -> Callable[[], Awaitable[SpaceLeft]]:
    """Return what tells how much the drive can hold, all of it with its own redundancy; it never asks a cloud."""

    async def space() -> SpaceLeft:
        room = await multifs.free_space(parse_policy(policies.default))
        return SpaceLeft(room.total_bytes, room.free_bytes)

    return space


async def change_redundancy(text: str, metadata: Metadata, multifs: MultiFS, policies: Policies) -> str:
    """Give the drive another redundancy, and have its packs written anew as that wants; return it as it is kept.

    Files with one of their own keep it.  Durable when this returns.  Raises: UsageError, MetadataError.
    """
    text = check_redundancy(text)
    needed, places = parse_policy(text).data, places_of(multifs)
    if needed > places:
        raise UsageError(
            f"redundancy {text} takes at least {needed} clouds; the drive has {places}: cuckoo cloud add …"
        )
    if parse_policy(text) != parse_policy(policies.default):
        log.info("the redundancy is %s from now on", text)
        await ask_for_repacking(metadata)
        await metadata.set_setting("redundancy", text)
        policies.set_default(text)
        await metadata.make_durable()
    return text

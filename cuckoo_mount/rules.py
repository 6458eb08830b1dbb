"""Redundancy and durability of a drive: what they mean for its epochs and for `df`, and how its own are changed.

Used by drive.py.  Loop only.
"""

from __future__ import annotations

import logging

import trio

from cuckoo_mount.cache.chunkcache import ChunkCache
from cuckoo_mount.clouds.base import Space
from cuckoo_mount.errors import UsageError
from cuckoo_mount.metadata.base import Metadata
from cuckoo_mount.multi.multifs import MultiFS
from cuckoo_mount.multi.policies import Policies
from cuckoo_mount.multi.redundancy import check_redundancy, parse_policy
from cuckoo_mount.packs.repacking import ask_for_repacking
from cuckoo_mount.parted.durability import Durability
from cuckoo_mount.parted.partedfs import SpaceLeft
from cuckoo_mount.roster import Roster

log = logging.getLogger(__name__)


def clouds_wanted(multifs: MultiFS, policies: Policies) -> int:
    """Return on how many clouds an epoch is durable (design §3.5)."""
    return max(1, min(places_of(multifs), max(policies.losses + 1, 2)))


def places_of(multifs: MultiFS) -> int:
    """Return how many clouds take objects."""
    return sum(multifs.takes_objects(name) for name in multifs.names)


def cloud_room(multifs: MultiFS, policies: Policies) -> Space | None:
    """Return what the clouds can hold and still take, all of it with the drive's own redundancy.

    None: a drive without clouds, which only the local disk limits.
    """
    return multifs.rooms.usable(parse_policy(policies.default)) if multifs.names else None


async def space_left(cache: ChunkCache) -> SpaceLeft:
    """Return what `df` shows; it never asks a cloud."""
    await trio.lowlevel.checkpoint()
    room = cache.cloud_room()
    return SpaceLeft(0, 0) if room is None else SpaceLeft(room.total_bytes, room.free_bytes)


class Rules:
    """The redundancies and durabilities of one open drive, and the ways to change the drive's own."""

    def __init__(
        self, metadata: Metadata, multifs: MultiFS, roster: Roster, policies: Policies, durability: Durability
    ) -> None:
        self._metadata = metadata
        self._multifs = multifs
        self._roster = roster
        self._policies = policies
        self._durability = durability

    def status(self) -> dict[str, object]:
        """Return what `status --json` says of them."""
        return {
            "redundancy": self._roster.config.redundancy,
            "redundancies": sorted(self._policies.others),
            "durability": self._durability.default,
        }

    async def set_durability(self, text: str) -> None:
        """Let fsync wait for the clouds, or for this disk only.  Raises: UsageError, MetadataError."""
        await self._durability.set_default(text)

    async def set_redundancy(self, text: str) -> None:
        """Give the drive another redundancy, and have its packs written anew as that wants.

        Files with one of their own keep it.  Durable when this returns.
        Raises: UsageError, MetadataError, ConfigurationError, OSError (the TOML file; the drive has it then).
        """
        text = check_redundancy(text)
        needed, places = parse_policy(text).data, places_of(self._multifs)
        if needed > places:
            raise UsageError(
                f"redundancy {text} takes at least {needed} clouds, there are {places}: cuckoo cloud add …"
            )
        if parse_policy(text) != parse_policy(self._policies.default):
            log.info("the redundancy is %s from now on", text)
            await ask_for_repacking(self._metadata)
            await self._metadata.set_setting("redundancy", text)
            self._policies.set_default(text)
            await self._metadata.make_durable()
        await self._roster.note_redundancy(text)

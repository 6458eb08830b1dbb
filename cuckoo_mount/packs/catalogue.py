"""What packs asks of the metadata: a part of metadata.base.Metadata, whose docstrings are binding.

Used by packs/*.  Declared here because packs and metadata are neighbours that do not import each other.
"""

from __future__ import annotations

from typing import Protocol

from cuckoo_mount.types import PackNo, PackRow


class PackCatalogue(Protocol):
    """The methods of Metadata about packs and durability."""

    async def begin_pack(self, pack_id: bytes) -> None:
        """Record the intention to store a pack."""

    async def pack_intents(self) -> list[bytes]:
        """Return the ids of all packs begun and neither finished nor abandoned."""

    async def abandon_pack(self, pack_id: bytes) -> None:
        """Remove the intent of a pack of which nothing is stored any more."""

    async def get_pack(self, number: PackNo) -> PackRow:
        """Return a pack with its shares.  Raises: MetadataError when there is none."""

    async def dead_packs(self, limit: int) -> list[PackRow]:
        """Return packs marked dead."""

    async def forget_pack(self, number: PackNo) -> None:
        """Remove the rows of a dead pack whose shares are deleted."""

    async def make_durable(self) -> None:
        """Return when everything changed before this call survives a power cut."""

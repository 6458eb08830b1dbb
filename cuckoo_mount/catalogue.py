"""What packs asks of the metadata, as protocols; metadata/basepacks.py builds on them.

Used by packs/* and metadata/*, which are neighbours that do not import each other.  The rules of metadata/base.py hold.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from cuckoo_mount.types import (
    CloudName,
    Location,
    PackFill,
    PackNo,
    PackRow,
    SealedChunk,
    ShareRow,
    StoredVersion,
    VersionNo,
)


class PackCatalogue(Protocol):
    """The methods of Metadata about packs and durability."""

    async def begin_pack(self, pack_id: bytes) -> None:
        """Record the intention to store a pack.  Must be made durable before its first byte is sent."""

    async def pack_intents(self) -> list[bytes]:
        """Return the ids of all packs begun and neither finished nor abandoned."""

    async def cloud_usage(self) -> dict[CloudName, tuple[int, int]]:
        """Return per cloud how many packs have a share there, and the bytes of those shares."""

    async def abandon_pack(self, pack_id: bytes) -> None:
        """Remove the intent of a pack of which nothing is stored any more."""

    async def get_pack(self, number: PackNo) -> PackRow:
        """Return a pack with its shares.  Raises: MetadataError when there is none."""

    async def dead_packs(
        self, limit: int, *, after: PackNo | None = None, oldest_kept_epoch: int | None = None
    ) -> list[PackRow]:
        """Return up to `limit` dead packs, by number, from behind `after` on.

        `oldest_kept_epoch`: only those that no kept epoch refers to: dead in it already, or never alive at a cut.
        None: there are no epochs.
        """

    async def forget_shares(self, number: PackNo, clouds: Collection[CloudName]) -> None:
        """Remove the rows of a dead pack's shares on these clouds, where they are deleted."""

    async def forget_pack(self, number: PackNo) -> None:
        """Remove the rows of a dead pack whose shares are deleted."""

    async def make_durable(self) -> None:
        """Return when everything changed before this call survives a power cut."""


class CollectedCatalogue(PackCatalogue, Protocol):
    """What collecting.py, garbage.py and compaction.py ask besides."""

    async def find_pack(self, pack_id: bytes) -> PackRow | None:
        """Return the pack of this id, None when there is none."""

    async def packs(self, limit: int, *, after: PackNo | None = None) -> list[PackRow]:
        """Return up to `limit` packs, dead ones included, by number, from behind `after` on."""

    async def newest_pack(self) -> PackNo:
        """Return the highest number of a pack; 0: there is none."""

    async def strays(self) -> list[tuple[bytes, CloudName]]:
        """Return (pack id, cloud) where an object may lie that no share row lists: an upload given up there."""

    async def forget_stray(self, pack_id: bytes, cloud: CloudName) -> None:
        """Remove such an entry: the cloud confirmed that nothing of the kind is there."""

    async def note_unknown(self, cloud: CloudName, names: Collection[str], now_ns: int) -> dict[str, int]:
        """Record that exactly these objects of a cloud are unknown; return since when each of them is."""

    async def degraded(self, limit: int) -> list[PackNo]:
        """Return up to `limit` living packs with fewer shares on the drive's clouds than their policy wants.

        Those first that can lose the fewest.  Reads all packs.
        """

    async def living_on(self, cloud: CloudName, limit: int) -> list[PackNo]:
        """Return up to `limit` living packs with a share on this cloud, by number.  Reads all shares."""

    async def pack_fills(self, percent: int, small_bytes: int) -> list[PackFill]:
        """Return the packs alive of whose bytes at most `percent` % live, or < `small_bytes` sealed bytes."""

    async def versions_in(self, pack: PackNo) -> list[StoredVersion]:
        """Return the versions that live in a pack, by offset."""

    async def redundancies_in(self, pack: PackNo) -> list[tuple[VersionNo, str | None]]:
        """Return, for each version in a pack, the redundancies of the files that name it; None: they have none."""

    async def get_setting(self, key: str) -> str | None:
        """Return a setting of the drive, None when it is not there."""

    async def set_setting(self, key: str, value: str) -> None:
        """Set a setting of the drive."""

    async def delete_setting(self, key: str) -> None:
        """Remove a setting of the drive, if it is there."""

    async def local_settings(self, prefix: str) -> dict[str, str]:
        """Return all settings of this machine's copy whose key begins with `prefix`, sorted by key."""

    async def set_locals(self, local: Mapping[str, str | None]) -> None:
        """Set settings of this machine's copy, in one change; None removes one."""

    async def move_versions(
        self,
        pack_id: bytes,
        policy: str,
        size_bytes: int,
        shares: Sequence[ShareRow],
        moved: Sequence[SealedChunk],
        strays: Collection[CloudName] = (),
    ) -> Mapping[VersionNo, Location]:
        """Enter a stored pack into which versions of other packs were sealed again; return where these are now.

        A version that died meanwhile is left out; a pack that nothing is left in is dead.  Else as `finish_pack`.
        """


class ScrubbedCatalogue(CollectedCatalogue, Protocol):
    """What scrubbing.py asks besides."""

    async def count_shares(self, after: PackNo, last: PackNo) -> tuple[int, int]:
        """Return how many shares living packs behind `after` and up to `last` have, and their bytes.  Reads all."""

    async def drop_shares(
        self, number: PackNo, shares: Collection[ShareRow], *, left_over: Collection[CloudName] = ()
    ) -> int:
        """Remove the rows of shares that are lost or damaged, and return how many these were.

        So the pack counts as degraded.  Only rows that are still as given, of a pack that lives; and none of them if
        fewer would be left than reading the pack takes (I-8).  `left_over`: clouds where an object of the share is
        still there, which becomes a stray.
        """

    async def degraded_packs(self) -> int:
        """Return how many living packs have fewer shares on the drive's clouds than their policy wants.

        Reads all of them.
        """

    async def paths_of(self, versions: Collection[VersionNo], limit: int) -> list[bytes]:
        """Return up to `limit` names, as paths from the root, of files with a chunk of one of these versions.

        At most some hundred versions.  Reads all names.
        """

    async def commit(self) -> bool:
        """Commit what was changed so far, so that it survives a kill of this process; return whether there was any."""

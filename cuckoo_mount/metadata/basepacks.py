"""The part of the protocol about packs, shares and clouds; base.py has the rules."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from cuckoo_mount.types import (
    CloudName,
    CloudRow,
    Duplicate,
    Linked,
    Location,
    PackFill,
    PackNo,
    PackRow,
    SealedChunk,
    ShareRow,
    StoredVersion,
    VersionNo,
)


class PackMetadata(Protocol):
    """The catalogue."""

    async def begin_pack(self, pack_id: bytes) -> None:
        """Record the intention to store a pack.  Must be made durable before its first byte is sent."""

    async def pack_intents(self) -> list[bytes]:
        """Return the ids of all packs begun and neither finished nor abandoned."""

    async def finish_pack(
        self,
        pack_id: bytes,
        policy: str,
        size_bytes: int,
        shares: Sequence[ShareRow],
        sealed: Sequence[SealedChunk],
        overwritten: Collection[VersionNo],
        strays: Collection[CloudName] = (),
    ) -> PackNo:
        """Enter a stored pack: location rows for the versions still named, pack and share rows; the intent goes.

        Chunks held dirty become clean, or, if their version is in `overwritten` (the local bytes are newer already),
        are no longer held.  A pack in which nothing is named any more is entered as dead.
        `strays`: clouds that may hold a share that `shares` does not list, see `strays()`.
        """

    async def find_duplicates(
        self, policy: str, clouds: Collection[CloudName], wanted: Collection[tuple[bytes, int]]
    ) -> dict[tuple[bytes, int], VersionNo]:
        """Return living versions with these (digest, plain bytes), where there are any in packs of this policy.

        Only in packs with as many shares on `clouds`, which are those that are up, as a new pack would have.
        """

    async def link_duplicates(
        self, duplicates: Sequence[Duplicate], overwritten: Collection[VersionNo]
    ) -> list[Linked]:
        """Let dirty chunks name stored versions with their bytes; return those for which that was done.

        Not for one whose row names another version by now, or whose stored version died.  Held rows as `finish_pack`.
        """

    async def pack_fills(self, percent: int, small_bytes: int) -> list[PackFill]:
        """Return the packs alive of whose bytes at most `percent` % live, or < `small_bytes` sealed bytes."""

    async def versions_in(self, pack: PackNo) -> list[StoredVersion]:
        """Return the versions that live in a pack, by offset."""

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

    async def abandon_pack(self, pack_id: bytes) -> None:
        """Remove the intent of a pack of which nothing is stored any more."""

    async def get_pack(self, number: PackNo) -> PackRow:
        """Return a pack with its shares.  Raises: MetadataError when there is none."""

    async def find_pack(self, pack_id: bytes) -> PackRow | None:
        """Return the pack of this id, None when there is none."""

    async def packs(self, limit: int, *, after: PackNo | None = None) -> list[PackRow]:
        """Return up to `limit` packs, dead ones included, by number, from behind `after` on."""

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

    async def strays(self) -> list[tuple[bytes, CloudName]]:
        """Return (pack id, cloud) where an object may lie that no share row lists: an upload given up there."""

    async def forget_stray(self, pack_id: bytes, cloud: CloudName) -> None:
        """Remove such an entry: the cloud confirmed that nothing of the kind is there."""

    async def note_unknown(self, cloud: CloudName, names: Collection[str], now_ns: int) -> dict[str, int]:
        """Record that exactly these objects of a cloud are unknown; return since when each of them is."""

    async def clouds(self) -> list[CloudRow]:
        """Return the drive's clouds in the order they were added."""

    async def put_cloud(self, cloud: CloudRow) -> None:
        """Add a cloud or change the one of that name."""

    async def remove_cloud(self, cloud: CloudName) -> None:
        """Remove a cloud, and its shares of packs that lie elsewhere too.

        Those that lie nowhere else stay on record (I-8): they can be read again if the cloud ever comes back.

        Raises: MetadataError when there is no such cloud.
        """

    async def only_on(self, cloud: CloudName) -> tuple[int, int]:
        """Return how many living packs lie on this cloud and on no other, and their bytes."""

    async def degraded_packs(self) -> int:
        """Return how many living packs have fewer shares on the drive's clouds than their policy wants.

        Reads all of them.
        """

    async def cloud_usage(self) -> dict[CloudName, tuple[int, int]]:
        """Return per cloud: packs with a share there, and bytes of those shares."""

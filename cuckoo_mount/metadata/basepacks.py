"""The part of the protocol about packs, shares and clouds; base.py has the rules."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from cuckoo_mount.catalogue import ScrubbedCatalogue
from cuckoo_mount.types import (
    CloudLoad,
    CloudName,
    CloudRow,
    Duplicate,
    Linked,
    PackNo,
    SealedChunk,
    ShareRow,
    VersionNo,
)


class PackMetadata(ScrubbedCatalogue, Protocol):
    """The catalogue: also how packs are entered, and the clouds."""

    async def finish_pack(
        self,
        pack_id: bytes,
        policy: str,
        size_bytes: int,
        shares: Sequence[ShareRow],
        sealed: Sequence[SealedChunk],
        overwritten: Collection[VersionNo],
        strays: Collection[CloudName] = (),
        epoch: int | None = None,
    ) -> PackNo:
        """Enter a stored pack: location rows for the versions still named, pack and share rows; the intent goes.

        Chunks held dirty become clean, or, if their version is in `overwritten` (the local bytes are newer already),
        are no longer held.  A pack in which nothing is named any more is entered as dead.
        `strays`: clouds that may hold a share that `shares` does not list, see `strays()`.
        `epoch`: the one whose cut these versions belong to, if it is not the one being written: it names them all, also
        those that no row names any more.  So even a pack that is dead at once stays until that epoch is not kept.
        """

    async def enter_epoch(self, number: int) -> None:
        """Say that all that was changed so far belongs to epoch `number`, what follows to `number` + 1.

        In the transaction that ends with the cut's commit.  When a cut was given up and its number is used again, what
        was born or died since then is taken to have done so before this cut: no epoch knows otherwise.
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

    async def load_of(self, cloud: CloudName) -> CloudLoad:
        """Return what packs have on this cloud.  Reads all shares."""

    async def degraded_packs(self) -> int:
        """Return how many living packs have fewer shares on the drive's clouds than their policy wants.

        Reads all of them.
        """

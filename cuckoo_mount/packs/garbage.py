"""Deletes dead packs, and finds objects that nobody knows.

Used by packs/collecting.py, by fsck and by tests.  For one trio loop.  Owns I-10 for packs: shares are deleted only
after the commit that made their pack dead is durable; and I-17 for what uploads that failed leave behind.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Iterable
from functools import partial
from typing import Final

import trio
from attrs import evolve, frozen

from cuckoo_mount.catalogue import CollectedCatalogue, PackCatalogue
from cuckoo_mount.errors import CloudError, FormatError
from cuckoo_mount.format import pack_share_name, parse_pack_share_name
from cuckoo_mount.multi.multifs import MultiFS
from cuckoo_mount.multi.redundancy import parse_policy
from cuckoo_mount.types import CloudName, PackNo, PackRow, ShareRow

log = logging.getLogger(__name__)

GARBAGE_BATCH: Final = 1000
UNKNOWN_AGE_NS: Final = 24 * 3600 * 10**9


@frozen(slots=True)
class Garbage:
    """Packs deleted, bytes of all their shares, and packs kept because a cloud did not confirm.

    `last`: the dead pack with the highest number that was looked at; None when the end of the list was reached.
    """

    packs: int
    freed_bytes: int
    kept: int
    last: PackNo | None = None


@frozen(slots=True)
class Orphan:
    """An object below packs/ that neither a pack row nor an intent explains."""

    cloud: CloudName
    name: str
    size_bytes: int


@frozen(slots=True)
class Known:
    """What the metadata knows: ids of packs begun, and all pack rows, dead ones included."""

    intents: Collection[bytes]
    packs: Iterable[PackRow]


@frozen(slots=True)
class OrphanSearch:
    """What was found, and the clouds that could not be listed, with the reason."""

    orphans: tuple[Orphan, ...]
    not_listed: tuple[tuple[CloudName, str], ...]


async def collect_garbage(
    metadata: PackCatalogue,
    multifs: MultiFS,
    *,
    after: PackNo | None = None,
    oldest_kept_epoch: int | None = None,
    limit: int = GARBAGE_BATCH,
) -> Garbage:
    """Delete the shares of up to `limit` dead packs, then their rows; by number, from behind `after` on.  Checkpoint.

    Only packs that no kept epoch refers to: shares go when the epoch in which their pack died, or a later one, is
    durable on the clouds and no older one is kept.  `oldest_kept_epoch`: the oldest such epoch; None: there are none.
    A share on a cloud that is not up waits for it, without a request; its pack keeps its row, for it alone.  If
    cancelled, some shares may be gone and their rows not: the next call deletes them again.  Raises: MetadataError.
    """
    dead = await metadata.dead_packs(limit, after=after, oldest_kept_epoch=oldest_kept_epoch)
    if not dead:
        return Garbage(0, 0, 0)
    # After the list, so that it covers each of them; death is final, so that none can come back meanwhile.
    await metadata.make_durable()
    # Both before the first request: a cloud that comes up meanwhile was not asked.
    waiting = {pack.number: _waiting(multifs, pack) for pack in dead}
    deletable = [evolve(pack, shares=_deletable(multifs, pack)) for pack in dead]
    deleted = await multifs.delete_packs(deletable)
    packs = freed_bytes = 0
    for pack in deleted:
        share_bytes = parse_policy(pack.policy).share_bytes(pack.size_bytes)
        freed_bytes += share_bytes * len(pack.shares)
        # In one step with the rows, so that the book of room agrees with them (I-34).
        multifs.rooms.note_deleted([share.cloud for share in pack.shares], share_bytes)
        if waiting[pack.number]:
            await metadata.forget_shares(pack.number, {share.cloud for share in pack.shares})
        else:
            await metadata.forget_pack(pack.number)
            packs += 1
    last = dead[-1].number if len(dead) == limit else None
    return Garbage(packs, freed_bytes, len(dead) - packs, last)


def _deletable(multifs: MultiFS, pack: PackRow) -> tuple[ShareRow, ...]:
    """Return the shares that can be deleted now: those on clouds that are up."""
    return tuple(share for share in pack.shares if share.cloud in multifs.names and multifs.is_up(share.cloud))


def _waiting(multifs: MultiFS, pack: PackRow) -> bool:
    """Return whether a share waits for its cloud; one on a cloud that left the drive does not, nothing can be done."""
    return any(share.cloud in multifs.names and not multifs.is_up(share.cloud) for share in pack.shares)


async def clear_strays(metadata: CollectedCatalogue, multifs: MultiFS, drive_id: bytes, *, shares: int) -> int:
    """Delete what uploads that were given up may have left; return how many (pack, cloud) wait for their cloud.

    Only on clouds that are up; no request where nothing is known to be left.  `shares`: how many a pack may have had.
    What is left of a living pack with too few shares stays: a damaged share has most chunks right, and until the pack
    is healed nobody knows whether the others keep.  Not on a cloud that takes nothing new: it is to become empty.
    Checkpoint.  Raises: MetadataError.
    """
    waiting = 0
    for pack_id, cloud in await metadata.strays():
        if cloud not in multifs.names:
            await metadata.forget_stray(pack_id, cloud)  # the cloud left the drive
            continue
        pack = await metadata.find_pack(pack_id)
        known = pack.shares if pack is not None else ()
        if _is_spare_part(pack) and multifs.takes_objects(cloud):
            waiting += 1
            continue
        wanted = {share.share for share in known if share.cloud == cloud}
        count = max(shares, len(multifs.names), *(share.share + 1 for share in known), 1)
        names = [pack_share_name(drive_id, pack_id, number) for number in range(count) if number not in wanted]
        try:
            if not multifs.is_up(cloud):
                raise CloudError("is not up", cloud=cloud)
            await multifs.delete_objects(cloud, names)
        except CloudError:
            waiting += 1
        else:
            await metadata.forget_stray(pack_id, cloud)
    return waiting


def _is_spare_part(pack: PackRow | None) -> bool:
    return pack is not None and not pack.dead and len(pack.shares) < parse_policy(pack.policy).shares


async def delete_unknown(
    metadata: CollectedCatalogue, multifs: MultiFS, drive_id: bytes, *, now_ns: int, min_age_ns: int = UNKNOWN_AGE_NS
) -> tuple[int, int]:
    """Delete objects below packs/ that nothing explains since `min_age_ns`; return (deleted, not old enough).

    `now_ns`: see `passed_ns`; no time of day.

    Lists every cloud.  When an object was first seen is remembered here, because not every cloud tells its age; so
    the first call after it appeared deletes nothing.  The metadata is read again before anything is deleted.
    Checkpoint.  Raises: MetadataError.
    """
    load = partial(load_known, metadata)
    search = await find_orphans(multifs, drive_id, load)
    skipped = {cloud for cloud, _ in search.not_listed}
    deleted = young = 0
    for cloud in multifs.names:
        if cloud in skipped:
            continue
        names = [orphan.name for orphan in search.orphans if orphan.cloud == cloud]
        since = await metadata.note_unknown(cloud, names, now_ns)
        old = [name for name in names if now_ns - since[name] >= min_age_ns]
        young += len(names) - len(old)
        if not old:
            continue
        explained = _Explained(await load(), drive_id)
        old = [name for name in old if not explained.covers(cloud, name)]
        try:
            await multifs.delete_objects(cloud, old)
        except CloudError as error:
            log.warning("objects that nothing refers to stay: %s", error)
        else:
            deleted += len(old)
    return deleted, young


async def load_known(metadata: CollectedCatalogue) -> Known:
    """Read all that the metadata knows, intents before packs: a pack finished meanwhile is among one of the two."""
    intents = await metadata.pack_intents()
    packs: list[PackRow] = []
    while found := await metadata.packs(GARBAGE_BATCH, after=packs[-1].number if packs else None):
        packs += found
        await trio.lowlevel.checkpoint()
    return Known(intents, packs)


async def find_orphans(multifs: MultiFS, drive_id: bytes, load_known: Callable[[], Awaitable[Known]]) -> OrphanSearch:
    """Return every object below packs/ of every cloud that nobody knows.  Checkpoint; nothing is changed.

    `load_known` reads the metadata, intents before packs, and is called after the clouds were listed: so a pack stored
    meanwhile is never taken for an orphan.
    """
    listed, failed = [], []
    for cloud in multifs.names:
        try:
            listed.append((cloud, await multifs.list_packs(cloud)))
        except CloudError as error:
            failed.append((cloud, str(error)))
    explained = _Explained(await load_known(), drive_id)
    orphans = [
        Orphan(cloud, found.name, found.size_bytes)
        for cloud, objects in listed
        for found in objects
        if not explained.covers(cloud, found.name)
    ]
    return OrphanSearch(tuple(orphans), tuple(failed))


class _Explained:
    """Which objects what is known explains."""

    def __init__(self, known: Known, drive_id: bytes) -> None:
        self._drive_id = drive_id
        self._intents = frozenset(known.intents)
        self._shares = {(share.cloud, pack.pack_id, share.share) for pack in known.packs for share in pack.shares}

    def covers(self, cloud: CloudName, name: str) -> bool:
        """Return whether a share row or an intent speaks of this object."""
        try:
            pack_id, share = parse_pack_share_name(self._drive_id, name)
        except FormatError:
            return False
        return pack_id in self._intents or (cloud, pack_id, share) in self._shares

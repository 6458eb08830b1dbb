"""Deletes dead packs, and finds objects that nobody knows.

Used by the drive now and then, by fsck and by tests.  For one trio loop.  Owns I-10 for packs: shares are deleted only
after the commit that made their pack dead is durable.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable
from typing import Final

from attrs import frozen

from cuckoo_mount.errors import CloudError, FormatError
from cuckoo_mount.format import parse_pack_share_name
from cuckoo_mount.multi.multifs import MultiFS
from cuckoo_mount.packs.catalogue import PackCatalogue
from cuckoo_mount.types import CloudName, PackRow

GARBAGE_BATCH: Final = 1000


@frozen(slots=True)
class Collected:
    """Packs deleted, bytes of all their shares, and packs kept because a cloud did not confirm."""

    packs: int
    freed_bytes: int
    kept: int


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


async def collect_garbage(metadata: PackCatalogue, multifs: MultiFS, *, limit: int = GARBAGE_BATCH) -> Collected:
    """Delete the shares of up to `limit` dead packs, then their rows.  Checkpoint.

    A pack of which a share could not be deleted keeps its row for the next time.  If cancelled, some shares may be
    gone and their rows not: the next call deletes them again.  Raises: MetadataError.
    """
    dead = await metadata.dead_packs(limit)
    # After the list, so that it covers each of them; death is final, so that none can come back meanwhile.
    await metadata.make_durable()
    deleted = await multifs.delete_packs(dead)
    for pack in deleted:
        await metadata.forget_pack(pack.number)
    freed_bytes = sum(pack.size_bytes * len(pack.shares) for pack in deleted)
    return Collected(len(deleted), freed_bytes, len(dead) - len(deleted))


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
    known = await load_known()
    intents = frozenset(known.intents)
    shares = {(share.cloud, pack.pack_id, share.share) for pack in known.packs for share in pack.shares}
    orphans = [
        Orphan(cloud, found.name, found.size_bytes)
        for cloud, objects in listed
        for found in objects
        if not _is_known(cloud, drive_id, found.name, intents, shares)
    ]
    return OrphanSearch(tuple(orphans), tuple(failed))


def _is_known(
    cloud: CloudName,
    drive_id: bytes,
    name: str,
    intents: Collection[bytes],
    shares: Collection[tuple[CloudName, bytes, int]],
) -> bool:
    try:
        pack_id, share = parse_pack_share_name(drive_id, name)
    except FormatError:
        return False
    return pack_id in intents or (cloud, pack_id, share) in shares

"""The extra records of an epoch: where the versions are that its cut names and that were sent after it.

Used by whatever sends a cut's frozen versions.  Pure functions.  They follow the cut's own records, and a later record
for a row counts.  They speak of the state at the cut, so that a version whose chunk was overwritten while it was sent
has its place in the epoch and nowhere else; replay counts references anew and removes what nothing names.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cuckoo_mount.format import DIGEST_BYTES, ID_BYTES
from cuckoo_mount.metadata.catalogue import share_length_bytes
from cuckoo_mount.metadata.records import JournalRecord
from cuckoo_mount.types import LOST_PACK, ChunkIndex, DirtyChunk, InodeNo, Location, PackRow, VersionNo


def chunk_record(ino: InodeNo, index: ChunkIndex, version: VersionNo) -> JournalRecord:
    """Return the record by which a chunk of the cut names a stored version with the same bytes instead of its own."""
    return JournalRecord("chunk", (ino, index), (version,))


def version_record(version: VersionNo, location: Location) -> JournalRecord:
    """Return the record of a version's place; its pack's records belong into the epoch, too."""
    place = (location.pack, location.offset, location.length_bytes, location.plain_bytes, location.digest)
    return JournalRecord("version", (version,), (*place, 1))


def pack_records(pack: PackRow, born_epoch: int) -> Iterator[JournalRecord]:
    """Yield the records of a stored pack and of its shares: alive, whatever became of it since.

    `born_epoch`: as in its row.
    """
    counters = (pack.live_bytes, pack.used_bytes)
    yield JournalRecord(
        "pack", (pack.number,), (pack.pack_id, pack.policy, pack.size_bytes, *counters, born_epoch, None)
    )
    length = share_length_bytes(pack.policy, pack.size_bytes)
    for share in pack.shares:
        yield JournalRecord("share", (pack.number, share.share), (share.cloud, share.digest, length))


def lost_records(missing: Sequence[DirtyChunk]) -> Iterator[JournalRecord]:
    """Yield the records of versions whose bytes cannot be had any more: in pack 0, which has no shares.

    So whoever reads them after a recovery is told, and everything else of the epoch can be had.
    """
    if missing:
        yield JournalRecord("pack", (LOST_PACK,), (bytes(ID_BYTES), "1", 0, 0, 0, 0, None))
    for chunk in missing:
        yield JournalRecord("version", (chunk.version,), (LOST_PACK, 0, 1, chunk.length_bytes, bytes(DIGEST_BYTES), 1))

"""Makes one epoch: from the cut to an object on the local disk that is ready to be sent.

Used by engine.py.  For one trio loop; writing objects and reading cuts run in threads.

    cut ─▶ commit durable ─▶ records put aside, cut closed ─▶ frozen versions on clouds ─▶ object in state/epochs
      ─▶ one change: outbox cleared, ledger has the object ─▶ durable

Nothing of an object is sent before the ledger has it, so that an object that the ledger does not know was never sent
and is made again, and one that it knows is only ever sent as it is (I-20, I-21).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from functools import partial
from itertools import chain
from typing import Final

import trio

from cuckoo_mount.cache.chunkcache import ChunkCache
from cuckoo_mount.cache.cutting import ContentCut
from cuckoo_mount.epochformat import NO_PREDECESSOR, EpochName, LeaseName
from cuckoo_mount.epochs.joining import Joining
from cuckoo_mount.epochs.ledger import OBJECT_PREFIX, Entry, Ledger
from cuckoo_mount.epochs.looking import epoch_path
from cuckoo_mount.epochs.objects import new_header, write_epoch
from cuckoo_mount.epochs.placing import chunk_record, lost_records, pack_records, version_record
from cuckoo_mount.epochs.sealing import EpochKeys
from cuckoo_mount.epochs.spool import read_spool, write_spool
from cuckoo_mount.metadata.base import Metadata
from cuckoo_mount.metadata.cut import Cut
from cuckoo_mount.metadata.records import JournalRecord

log = logging.getLogger(__name__)
_SPOOL: Final = "cut.spool"
_SLICE: Final = 500
"""Records compared with their rows in one step of the loop, some 20 µs each."""


class EpochMaker:
    """Makes epochs of one drive, one at a time."""

    def __init__(self, metadata: Metadata, cache: ChunkCache, joining: Joining) -> None:
        self._metadata = metadata
        self._cache = cache
        self._keys = EpochKeys(joining.keys)
        self._drive_id = joining.drive_id
        self._folder = joining.folder
        self._encrypted = joining.encrypted

    async def make(self, ledger: Ledger, claim: LeaseName, *, as_snapshot: bool) -> Entry:
        """Cut now, wait until all of the cut is on clouds, and return the new epoch, which the store's ledger has.

        Waits for clouds as long as it takes; cancelled or failed, nothing has happened but that packs were sent.
        Checkpoint.  Raises: MetadataError, OSError, DataUnavailable, NoSpace (the local disk).
        """
        tip = ledger.tip
        name = EpochName(claim.term, ledger.epoch + 1, claim.writer, "snapshot" if as_snapshot else "journal")
        await trio.to_thread.run_sync(partial(self._folder.mkdir, mode=0o700, exist_ok=True))
        pinned = await self._metadata.open_cut()
        try:
            async with self._cache.cut(name.epoch, partial(_moment, self._metadata, pinned)) as cut:
                header = new_header(
                    self._drive_id,
                    name,
                    time_ns=time.time_ns(),
                    predecessor=tip.object_hash if tip is not None else NO_PREDECESSOR,
                    encrypted=self._encrypted,
                )
                await self._metadata.make_durable()
                records = pinned.snapshot() if as_snapshot else pinned.journal()
                spool = self._folder / _SPOOL
                await trio.to_thread.run_sync(write_spool, spool, records)
                # Before the clouds are waited for: while a cut is open the write-ahead log only grows.
                await trio.to_thread.run_sync(pinned.close)
                await cut.send()
                extras = tuple(_extra_records(cut))
                summary = await trio.to_thread.run_sync(
                    write_epoch, epoch_path(self._folder, name), header, self._keys, chain(read_spool(spool), extras)
                )
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(pinned.close)
        entry = Entry(header, summary.object_hash, summary.size_bytes)
        with trio.CancelScope(shield=True):  # from here on it is the newest epoch
            await self._metadata.clear_outbox(pinned.mark, {f"{OBJECT_PREFIX}{name}": entry.as_setting()})
            # What was sent for the cut changed rows after it; as the epoch has them, too, they are no news.
            for start in range(0, len(extras), _SLICE):
                await self._metadata.clear_journal(extras[start : start + _SLICE])
                await trio.lowlevel.checkpoint()
            await self._metadata.make_durable()
        log.info("epoch %s: %d records, %d bytes", name, summary.records, summary.size_bytes)
        return entry


async def _moment(metadata: Metadata, pinned: Cut) -> None:
    await metadata.take_cut(pinned)


def _extra_records(cut: ContentCut) -> Iterator[JournalRecord]:
    """Yield the places of what was dirty at the cut."""
    for (ino, index), version in cut.duplicates.items():
        yield chunk_record(ino, index, version)
    for version, location in cut.locations.items():
        yield version_record(version, location)
    for pack in cut.packs:
        yield from pack_records(pack, cut.epoch)
    yield from lost_records(cut.missing)

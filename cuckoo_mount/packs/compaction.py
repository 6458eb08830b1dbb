"""Writes packs anew with only what lives in them: sparse ones, and several small ones as one.

Used by packs/collecting.py.  For one trio loop; one compaction at a time.  At every moment each living version is in a
pack that is stored: the new pack is on the clouds before one transaction moves the versions, and the old packs are
deleted only after that is durable, as any dead pack.  Cancelled or killed before that transaction, nothing has changed:
the intent tells what to clear away.  Needs about one pack of room on the local disk; memory stays at one run.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence

import trio

from cuckoo_mount.catalogue import CollectedCatalogue
from cuckoo_mount.errors import CuckooError, DataTimeout, DataUnavailable, MetadataError
from cuckoo_mount.multi.redundancy import shares_needed
from cuckoo_mount.packs.builder import BuiltPack, ChunkSource
from cuckoo_mount.packs.choosing import Batch
from cuckoo_mount.packs.compactjobs import save_runs
from cuckoo_mount.packs.reader import PackReader
from cuckoo_mount.packs.writer import PackWriter, StoredPack
from cuckoo_mount.types import Location, PackNo, VersionNo

log = logging.getLogger(__name__)

Moved = Callable[[Mapping[VersionNo, Location]], None]
"""Told where versions are now, in the same step as the transaction; must not checkpoint."""


class Compactor:
    """Compacts packs of one drive.

    `failed`: packs that are damaged, left alone from then on; `unreachable`: packs on clouds that do not answer now.
    """

    def __init__(self, metadata: CollectedCatalogue, writer: PackWriter, reader: PackReader, moved: Moved) -> None:
        self.failed: set[PackNo] = set()
        self.unreachable: set[PackNo] = set()
        self._metadata = metadata
        self._writer = writer
        self._reader = reader
        self._moved = moved

    async def compact_batches(self, batches: Iterable[Batch], is_enough: Callable[[], bool]) -> int:
        """Compact batch by batch until `is_enough`, asked before each, or one cannot be done now.

        Returns how many packs were replaced.  Checkpoint.  Raises: MetadataError.
        """
        replaced = 0
        for batch in batches:
            if is_enough():
                break
            try:
                replaced += len(batch) if await self.compact(batch) else 0
            except (CuckooError, OSError) as error:
                if isinstance(error, MetadataError):
                    raise
                log.warning("packs are not compacted now: %s", error)
                break
        return replaced

    async def compact(self, batch: Batch) -> bool:
        """Write what lives in these packs into one new pack; return whether that was done.  Checkpoint.

        False: a pack could not be read (it is in `failed` or `unreachable` now), or the clouds could not store the new
        pack as well as the old ones are stored; then everything is as it was.  If cancelled: as it was, too.
        Raises: CloudUnavailable (nobody takes packs now), NoSpace, OSError (local disk), MetadataError.
        """
        if not await self._is_reachable(batch):
            return False
        path = str(self._writer.staging_dir / f"{os.urandom(16).hex()}.plain")
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            sources, living = await self._bring(batch, path)
            built = await self._writer.build(sources, seal_repeats=True)
        except (DataUnavailable, DataTimeout) as error:
            log.warning("packs stay as they are: %s", error)
            return False
        finally:
            await _remove(path)
        return await self._replace(batch, built, living)

    async def _bring(self, batch: Batch, path: str) -> tuple[list[ChunkSource], dict[VersionNo, bytes]]:
        """Fetch all that lives into `path`; return it as sources for the new pack, and the digests by version."""
        sources: list[ChunkSource] = []
        living: dict[VersionNo, bytes] = {}
        start = 0
        for pack in batch:
            found = await self._metadata.versions_in(pack.number)
            try:
                await self._save([version.location for version in found], path, start)
            except DataUnavailable:
                self.failed.add(pack.number)
                raise
            except DataTimeout:
                self.unreachable.add(pack.number)
                raise
            for version in found:
                sources.append(ChunkSource(version.chunk, path, start))
                living[version.chunk.version] = version.location.digest
                start += version.location.plain_bytes
        return sources, living

    async def _is_reachable(self, batch: Batch) -> bool:
        """Return whether a cloud that is up has a share of each of these packs; no request is made."""
        up = self._writer.clouds_up
        rows = [await self._metadata.get_pack(pack.number) for pack in batch]
        away = {
            row.number for row in rows if sum(share.cloud in up for share in row.shares) < shares_needed(row.policy)
        }
        self.unreachable |= away
        return not away

    async def _save(self, locations: Sequence[Location], path: str, start: int) -> None:
        for run in save_runs(locations, path, start):
            await self._reader.save_run(run)

    async def _replace(self, batch: Batch, built: BuiltPack, living: Mapping[VersionNo, bytes]) -> bool:
        """Store the new pack, and let the versions that still live be in it."""
        try:
            if {item.chunk.version: item.digest for item in built.sealed} != living:
                log.error("pack file %s is not what was to be built; check the local disk", built.path)
                self._writer.leave(built)
                return False
            stored = await self._writer.store(built, rewriting=True)
        except BaseException:  # cancellation, too
            self._writer.leave(built)
            raise
        # A cancellation between here and the new rows would leave a pack that nobody knows before the next mount.
        with trio.CancelScope(shield=True):
            if not await self._is_as_safe(batch, stored):
                self._writer.renounce(stored)
                return False
            places = await self._metadata.move_versions(
                built.pack_id, stored.policy, built.size_bytes, stored.shares, built.sealed, stored.strays
            )
            self._moved(places)
        for pack in batch:
            self._reader.forget(pack.number)
        return True

    async def _is_as_safe(self, batch: Batch, stored: StoredPack) -> bool:
        """Return whether the new pack has as many shares as its policy wants, or as any of the old ones has."""
        if len(stored.shares) >= self._writer.shares:
            return True
        rows = [await self._metadata.get_pack(pack.number) for pack in batch]
        return len(stored.shares) >= max(len(row.shares) for row in rows)


async def _remove(path: str) -> None:
    with trio.CancelScope(shield=True):
        await trio.to_thread.run_sync(_unlink, path)


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return

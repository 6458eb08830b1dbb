"""Writes packs anew with only what lives in them: sparse ones, and several small ones as one.

Used by packs/collecting.py.  For one trio loop; one compaction at a time.  At every moment each living version is in a
pack that is stored: the new pack is on the clouds before one transaction moves the versions, and the old packs are
deleted only after that is durable, as any dead pack.  Cancelled or killed before that transaction, nothing has changed:
the intent tells what to clear away.  Needs about one pack of room on the local disk; memory stays at one run.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import trio

from cuckoo_mount.catalogue import CollectedCatalogue
from cuckoo_mount.errors import CuckooError, DataTimeout, DataUnavailable, MetadataError
from cuckoo_mount.multi.redundancy import parse_policy, shares_needed
from cuckoo_mount.packs.builder import BuiltPack, ChunkSource
from cuckoo_mount.packs.choosing import Batch
from cuckoo_mount.packs.compactjobs import one_by_one, save_runs
from cuckoo_mount.packs.reader import PackReader
from cuckoo_mount.packs.writer import PackWriter, StoredPack
from cuckoo_mount.types import Location, PackFill, PackNo, PackRow, StoredVersion, VersionNo

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
        """Write what lives in these packs into one new pack for each redundancy that their files have now.

        Returns whether that was done.  Checkpoint.
        False: a pack could not be read (it is in `failed` or `unreachable` now), or the clouds could not store a new
        pack as well as the old ones are stored; then what was not moved by then is as it was.  So also if cancelled.
        Raises: CloudUnavailable (nobody takes packs now), NoSpace, OSError (local disk), MetadataError.
        """
        if not await self._is_reachable(batch):
            return False
        path = str(self._writer.staging_dir / f"{os.urandom(16).hex()}.plain")
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            for policy, living in (await self._bring(batch, path)).items():
                built = await self._writer.build(list(living.values()), policy, seal_repeats=True)
                if not await self._replace(batch, built, living):
                    return False
        except (DataUnavailable, DataTimeout) as error:
            log.warning("packs stay as they are: %s", error)
            return False
        finally:
            await _remove(path)
        for pack in batch:
            self._reader.forget(pack.number)
        return True

    async def wanted(self, pack: PackRow | PackFill) -> dict[VersionNo, str]:
        """Return how redundant each version in a pack should be, by its files.  Checkpoint-free.

        Of a version that no file names any more, only an unfinished write: as it is.  Raises: MetadataError.
        """
        policies = self._writer.policies
        named: dict[VersionNo, list[str | None]] = {}
        for version, text in await self._metadata.redundancies_in(pack.number):
            named.setdefault(version, []).append(text)
        return {version: policies.strongest(texts) for version, texts in named.items()}

    async def _bring(self, batch: Batch, path: str) -> dict[str, dict[StoredVersion, ChunkSource]]:
        """Fetch all that lives into `path`; return, by the policy it is to have, the sources for the new packs."""
        groups: dict[str, dict[StoredVersion, ChunkSource]] = {}
        is_uniform, default = self._writer.policies.is_uniform, self._writer.policies.default
        start = 0
        for pack in batch:
            found = await self._metadata.versions_in(pack.number)
            wanted = {} if is_uniform else await self.wanted(pack)
            try:
                await self._save([version.location for version in found], path, start)
            except DataUnavailable:
                self.failed.add(pack.number)
                raise
            except DataTimeout:
                self.unreachable.add(pack.number)
                raise
            for version in found:
                policy = default if is_uniform else wanted.get(version.chunk.version, pack.policy)
                groups.setdefault(policy, {})[version] = ChunkSource(version.chunk, path, start)
                start += version.location.plain_bytes
        return groups

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
            try:
                await self._reader.save_run(run)
            except DataUnavailable:
                if len(run.locations) == 1:
                    raise
                # No share has all of it right, but each chunk may be right in one or another.
                for alone in one_by_one(run):
                    await self._reader.save_run(alone)

    async def _replace(self, batch: Batch, built: BuiltPack, living: Collection[StoredVersion]) -> bool:
        """Store a new pack, and let the versions that still live be in it."""
        try:
            if {item.chunk.version: item.digest for item in built.sealed} != {
                version.chunk.version: version.location.digest for version in living
            }:
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
        return True

    async def _is_as_safe(self, batch: Batch, stored: StoredPack) -> bool:
        """Return whether the new pack has all its shares, or survives as many losses as any of the old ones."""
        policy = parse_policy(stored.policy)
        if len(stored.shares) >= policy.shares:
            return True
        rows = [await self._metadata.get_pack(pack.number) for pack in batch]
        return len(stored.shares) - policy.data >= max(len(row.shares) - shares_needed(row.policy) for row in rows)


async def _remove(path: str) -> None:
    with trio.CancelScope(shield=True):
        await trio.to_thread.run_sync(_unlink, path)


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return

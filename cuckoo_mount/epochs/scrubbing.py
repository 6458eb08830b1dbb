"""Scrubbing epochs: has every cloud the objects of the ledger?  By listing, and, deep, by reading each cloud's copy.

Used by the drive for `cuckoo scrub`.  For one trio loop.  A bad object is put there again from this machine's copy, or
from another cloud's that was verified.  Objects are read while epochs go on; what follows is decided when none is made.
"""

from __future__ import annotations

import hmac
import logging
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final

import trio
from attrs import frozen

from cuckoo_mount.clouds import jobs
from cuckoo_mount.clouds.base import CloudSettings
from cuckoo_mount.epochformat import epoch_name
from cuckoo_mount.epochs.engine import EpochEngine
from cuckoo_mount.epochs.joining import Joining
from cuckoo_mount.epochs.ledger import Entry, Ledger
from cuckoo_mount.epochs.looking import Look, epoch_path, look
from cuckoo_mount.epochs.objects import read_epoch
from cuckoo_mount.epochs.publishing import Publisher
from cuckoo_mount.epochs.sealing import EpochKeys
from cuckoo_mount.errors import CloudCorrupt, CloudError, CloudMissing, DataUnavailable, FormatError, ReadOnly
from cuckoo_mount.format import DIGEST_BYTES
from cuckoo_mount.multi.multifs import MultiFS
from cuckoo_mount.multi.records import transfer_deadline_s
from cuckoo_mount.types import CloudName

log = logging.getLogger(__name__)
PIECE_BYTES: Final = 32 << 20
YOUNG_NS: Final = 150 * 10**9
"""An epoch that is younger may be on its way to the clouds that its durability does not wait for."""

Place = tuple[CloudName, Entry]
"""An object on one cloud."""


@frozen(slots=True, kw_only=True)
class ScrubbedObjects:
    """What was found; objects on clouds.  `left`: bad ones that are not put there again, because nobody has them whole,
    their cloud takes nothing, or nothing was to be changed.  `unchecked`: could not be read now."""

    checked: int = 0
    unchecked: int = 0
    missing: int = 0
    damaged: int = 0
    repaired: int = 0
    left: int = 0


class EpochScrubber:
    """Scrubs the epochs of one drive."""

    def __init__(self, engine: EpochEngine, joining: Joining, multifs: MultiFS) -> None:
        self._engine = engine
        self._joining = joining
        self._multifs = multifs
        self._keys = EpochKeys(joining.keys)

    async def scrub(self, *, deep: bool, dry_run: bool) -> ScrubbedObjects:
        """Scrub the clouds that are up, and put again what is bad there.  Checkpoint.

        Raises: ReadOnly (another machine has taken the drive over), OSError.
        """
        compared = await self._engine.inspect(partial(self._compare, dry_run))
        if compared is None:
            return ScrubbedObjects()
        missing, damaged, good = compared
        listed, unchecked = len(missing) + len(damaged) + len(good), 0
        if deep:
            read = [(place, await self._read(place)) for place in good]
            missing += [place for place, error in read if isinstance(error, CloudMissing)]
            damaged += [place for place, error in read if isinstance(error, CloudCorrupt)]
            others = (error for _, error in read if not isinstance(error, CloudMissing | CloudCorrupt))
            unchecked = sum(error is not None for error in others)
        bad, repaired = [*missing, *damaged], 0
        if bad:
            bad, repaired = await self._engine.inspect(partial(self._settle, bad, dry_run)) or (bad, 0)
        return ScrubbedObjects(
            checked=listed - unchecked,
            unchecked=unchecked,
            missing=sum(place in missing for place in bad),
            damaged=sum(place in damaged for place in bad),
            repaired=repaired,
            left=len(bad) - repaired,
        )

    async def _compare(
        self, dry_run: bool, publisher: Publisher, ledger: Ledger
    ) -> tuple[list[Place], list[Place], list[Place]]:
        """Return the objects that are missing, have another size, and seem to be good."""
        found: Look = await look(self._multifs, self._joining.drive_id)
        await self._multifs.probe(found.listings)  # an emptied place must not look like lost objects
        known = {cloud: dict(publisher.claimed(cloud)) for cloud in found.listings}
        if not dry_run and (refusal := publisher.meet(found)):
            raise ReadOnly(refusal)
        missing: list[Place] = []
        damaged: list[Place] = []
        good: list[Place] = []
        for cloud, listing in found.listings.items():
            takes = self._multifs.takes_objects(cloud)
            for entry in ledger.entries if self._multifs.is_up(cloud) else ():
                there = listing.epochs.get(entry.name)
                if there is not None:
                    fits = entry.size_bytes in (None, there)
                    (good if fits else damaged).append((cloud, entry))
                elif takes and (entry.name in known[cloud] or (entry in ledger.parts and _is_old(entry))):
                    missing.append((cloud, entry))
        return missing, damaged, good

    async def _read(self, place: Place) -> CloudError | None:
        cloud, entry = place
        size_bytes = entry.size_bytes
        if size_bytes is None:
            return None  # never here whole, so that nothing is known to compare it with but its name
        try:
            await self._multifs.read_object(
                cloud,
                read_object,
                epoch_name(self._joining.drive_id, entry.name),
                size_bytes,
                entry.object_hash,
                self._keys,
                deadline_s=transfer_deadline_s(size_bytes),
                bytes_down=size_bytes,
            )
        except CloudError as error:
            return error
        return None

    async def _settle(
        self, bad: Sequence[Place], dry_run: bool, publisher: Publisher, ledger: Ledger
    ) -> tuple[list[Place], int]:
        """Return which of these objects are still wanted, and how many of them were put again."""
        wanted = [place for place in bad if place[1] in ledger.entries]
        for cloud, entry in wanted:
            log.warning("cloud %s: epoch %s is missing or damaged", cloud, entry.name)
        return wanted, 0 if dry_run else await self._repair(wanted, publisher)

    async def _repair(self, bad: Sequence[Place], publisher: Publisher) -> int:
        """Put objects again, the oldest first: whatever is there is a chain.  Return how many."""
        repaired = 0
        await self._multifs.probe({cloud for cloud, _ in bad})
        for cloud, entry in sorted(bad, key=lambda place: place[1].name.epoch):
            is_writable = cloud in self._multifs.names and self._multifs.takes_objects(cloud)
            if not is_writable or not self._multifs.is_up(cloud):
                continue
            own = epoch_path(self._joining.folder, entry.name)
            fetched = own.with_name(f"{own.name}.again")
            try:
                path = own if await trio.to_thread.run_sync(self._is_whole, own, entry) else fetched
                if path == own or await self._fetch(entry, fetched, [place for place, at in bad if at == entry]):
                    await publisher.put_again(cloud, entry, path)
                    repaired += 1
            except CloudError as error:
                log.warning("epoch %s is not put again: %s", entry.name, error)
            finally:
                fetched.unlink(missing_ok=True)
        return repaired

    async def _fetch(self, entry: Entry, path: Path, besides: Sequence[CloudName]) -> bool:
        """Fetch an object from a cloud that has it whole; return whether one does."""
        for cloud in self._multifs.names:
            if cloud in besides or not self._multifs.is_up(cloud):
                continue
            try:
                await self._multifs.consult(
                    cloud,
                    jobs.get_file,
                    epoch_name(self._joining.drive_id, entry.name),
                    str(path),
                    deadline_s=transfer_deadline_s(entry.size_bytes or 0),
                )
            except CloudError:
                continue
            if await trio.to_thread.run_sync(self._is_whole, path, entry):
                return True
        return False

    def _is_whole(self, path: Path, entry: Entry) -> bool:
        if not path.exists():
            return False
        try:
            with read_epoch(path, self._keys, self._joining.drive_id, entry.name) as opened:
                return opened.summary.object_hash == entry.object_hash
        except (CloudCorrupt, FormatError, DataUnavailable) as error:
            log.warning("%s", error)
            return False


def read_object(settings: CloudSettings, name: str, size_bytes: int, object_hash: bytes, keys: EpochKeys) -> None:
    """Read an epoch's object in a worker process, a piece at a time, and compare it with its hash.

    Raises: CloudCorrupt when it is not what was stored; otherwise as `Cloud.get_range`.
    """
    hasher = keys.object_hasher()
    hashed_bytes = size_bytes - DIGEST_BYTES
    tail = b""
    for start in range(0, size_bytes, PIECE_BYTES):
        piece = jobs.get_range(settings, name, start, min(PIECE_BYTES, size_bytes - start))
        inside = max(0, min(len(piece), hashed_bytes - start))
        hasher.update(piece[:inside])
        tail += piece[inside:]
    if not (hmac.compare_digest(hasher.digest(), object_hash) and hmac.compare_digest(tail, object_hash)):
        raise CloudCorrupt("its bytes are not those that were stored", cloud=settings.name, name=name)


def _is_old(entry: Entry) -> bool:
    return time.time_ns() - entry.header.time_ns > YOUNG_NS

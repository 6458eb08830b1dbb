"""What the clouds show of a drive's epochs, and how the objects of a chain get here.

Used by joining.py, engine.py and recovery.  For one trio loop.  Owns: nothing that a cloud says is believed before it
was verified with the drive's keys; a cloud that is not up is not asked, and one that fails is left out.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final, Protocol, TypeVar

import trio
from attrs import evolve, field, frozen

from cuckoo_mount.clouds import jobs
from cuckoo_mount.epochformat import (
    EPOCH_FOOTER_BYTES,
    EPOCH_HEADER_BYTES,
    EpochName,
    LeaseName,
    epoch_name,
    lease_prefix,
    meta_prefix,
    parse_epoch_name,
    parse_lease_name,
)
from cuckoo_mount.epochs.chain import Chain, EpochObject, Sighting, choose_chain
from cuckoo_mount.epochs.ledger import Ledger
from cuckoo_mount.epochs.objects import OpenEpoch, read_epoch
from cuckoo_mount.epochs.sealing import EpochKeys, parse_ends
from cuckoo_mount.errors import CloudCorrupt, CloudError, CloudMissing, CuckooError, DataUnavailable, FormatError
from cuckoo_mount.multi.records import transfer_deadline_s
from cuckoo_mount.multi.requests import gather
from cuckoo_mount.types import CloudName

T = TypeVar("T")
log = logging.getLogger(__name__)
LIST_DEADLINE_S: Final = 60.0
ENDS_BATCH: Final = 16
HERE: Final = CloudName("")
"""Stands among the clouds of a sighting for the objects that this machine has itself."""


class Clouds(Protocol):
    """What is needed of the MultiFS."""

    @property
    def names(self) -> tuple[CloudName, ...]:
        """The clouds."""

    def is_up(self, name: CloudName) -> bool:
        """Return whether the cloud's own drive.json was read there and it answers."""

    async def consult(self, name: CloudName, job: Callable[..., T], *args: object, deadline_s: float) -> T:
        """Return `job(settings, *args)`, which only reads.  Raises: CloudError."""


@frozen(slots=True)
class Listing:
    """What lies below meta/ and lease/ of one cloud; names that follow no format are left out."""

    epochs: Mapping[EpochName, int]
    leases: tuple[LeaseName, ...]


@frozen(slots=True)
class Look:
    """The clouds that answered, with what they have, and the others with the reason."""

    listings: Mapping[CloudName, Listing] = field(factory=dict)
    silent: Mapping[CloudName, str] = field(factory=dict)

    @property
    def epoch_names(self) -> frozenset[EpochName]:
        """All epochs that are shown somewhere."""
        return frozenset(name for listing in self.listings.values() for name in listing.epochs)

    @property
    def terms(self) -> tuple[int, ...]:
        """All terms that occur."""
        leases = (name.term for listing in self.listings.values() for name in listing.leases)
        return (*leases, *(name.term for name in self.epoch_names))

    def size_bytes(self, name: EpochName) -> int:
        """Return the size of an object that is shown, where it is largest."""
        return max(listing.epochs.get(name, 0) for listing in self.listings.values())


async def look(
    clouds: Clouds, drive_id: bytes, among: Collection[CloudName] | None = None, *, claims_only: bool = False
) -> Look:
    """List meta/ and lease/ on the clouds (None: all) that are up, at the same time.  Checkpoint, raises nothing.

    Two requests each.  `claims_only`: only lease/, one request.
    """
    asked = [name for name in (clouds.names if among is None else among) if clouds.is_up(name)]
    answers = await gather([partial(_list, clouds, name, drive_id, claims_only=claims_only) for name in asked])
    silent = {name: f"cloud {name} does not answer" for name in clouds.names if name not in asked and among is None}
    listings: dict[CloudName, Listing] = {}
    for name, answer in zip(asked, answers, strict=True):
        if isinstance(answer, Listing):
            listings[name] = answer
        else:
            silent[name] = str(answer)
    return Look(listings, silent)


async def _list(clouds: Clouds, cloud: CloudName, drive_id: bytes, *, claims_only: bool) -> Listing:
    epochs: dict[EpochName, int] = {}
    if claims_only:
        return Listing(epochs, await list_leases(clouds, cloud, drive_id))
    for found in await clouds.consult(cloud, jobs.list_objects, meta_prefix(drive_id), deadline_s=LIST_DEADLINE_S):
        try:
            epochs[parse_epoch_name(drive_id, found.name)] = found.size_bytes
        except FormatError as error:
            log.debug("cloud %s: %s", cloud, error)
    return Listing(epochs, await list_leases(clouds, cloud, drive_id))


async def list_leases(clouds: Clouds, cloud: CloudName, drive_id: bytes) -> tuple[LeaseName, ...]:
    """Return the claims on one cloud.  One request.  Checkpoint.  Raises: CloudError."""
    leases: list[LeaseName] = []
    for found in await clouds.consult(cloud, jobs.list_objects, lease_prefix(drive_id), deadline_s=LIST_DEADLINE_S):
        try:
            leases.append(parse_lease_name(drive_id, found.name))
        except FormatError as error:
            log.debug("cloud %s: %s", cloud, error)
    return tuple(sorted(leases))


class EpochSearch:
    """Finds the newest unbroken chain in a look, and brings its objects into `folder`.

    `ledger`: what this machine's copy knows; its objects are believed by name and size, and those in `folder` count as
    shown here (`HERE`).  So a copy that is newer than its clouds is the tip itself.
    """

    def __init__(
        self, clouds: Clouds, keys: EpochKeys, drive_id: bytes, folder: Path, ledger: Ledger | None = None
    ) -> None:
        self._clouds = clouds
        self._keys = keys
        self._drive_id = drive_id
        self._folder = folder
        self._ledger = ledger or Ledger()
        self._read: dict[tuple[CloudName, EpochName], Sighting] = {}
        self._bad: set[tuple[CloudName, EpochName, bytes]] = set()

    async def choose(self, found: Look, *, whole: bool = False) -> Chain:
        """Return the chain; headers and footers of what is unknown are read for that.  Checkpoint, raises nothing.

        Those from the newest but one snapshot on, and all only if that leaves something unexplained, or if `whole`.
        """
        chain = await self._choose(found, _recent(found.epoch_names))
        if whole or chain.tip is None or chain.newer or chain.forks:
            chain = await self._choose(found, found.epoch_names)
        return chain

    async def _choose(self, found: Look, names: Collection[EpochName]) -> Chain:
        batches: list[Callable[[], Awaitable[None]]] = []
        for cloud, listing in found.listings.items():
            unknown = [
                (name, size_bytes)
                for name, size_bytes in sorted(listing.epochs.items())
                if name in names and (cloud, name) not in self._read and not self._knows(name, size_bytes)
            ]
            for start in range(0, len(unknown), ENDS_BATCH):
                batches.append(partial(self._read_ends, cloud, unknown[start : start + ENDS_BATCH]))
        await gather(batches)
        # One that is not what its ends say stays in sight, as damaged: else something older would pass for the newest.
        sightings = [evolve(seen, ends=None) if self._is_bad(seen) else seen for seen in self._sightings(found, names)]
        return choose_chain(sightings, found.listings.keys())

    def _knows(self, name: EpochName, size_bytes: int) -> bool:
        entry = self._ledger.find(name)
        return entry is not None and entry.size_bytes in (None, size_bytes)

    def _sightings(self, found: Look, names: Collection[EpochName]) -> Iterable[Sighting]:
        for cloud, listing in found.listings.items():
            for name, size_bytes in listing.epochs.items():
                if name not in names:
                    continue
                seen = self._read.get((cloud, name))
                entry = self._ledger.find(name)
                if seen is not None:
                    yield seen
                elif entry is not None and self._knows(name, size_bytes):
                    yield Sighting(cloud, name, (entry.header, entry.object_hash))
        for entry in self._ledger.entries:
            if epoch_path(self._folder, entry.name).exists():
                yield Sighting(HERE, entry.name, (entry.header, entry.object_hash))

    def _is_bad(self, seen: Sighting) -> bool:
        return seen.ends is not None and (seen.cloud, seen.name, seen.ends[1]) in self._bad

    async def _read_ends(self, cloud: CloudName, unknown: Sequence[tuple[EpochName, int]]) -> None:
        objects = [(epoch_name(self._drive_id, name), size_bytes) for name, size_bytes in unknown]
        try:
            ends = await self._clouds.consult(
                cloud,
                jobs.get_ends,
                objects,
                EPOCH_HEADER_BYTES,
                EPOCH_FOOTER_BYTES,
                deadline_s=LIST_DEADLINE_S,
            )
        except CuckooError as error:
            log.warning("the epochs on one cloud cannot be read: %s", error)
            ends = [None] * len(objects)
        for (name, _), pair in zip(unknown, ends, strict=True):
            self._read[cloud, name] = self._sighting(cloud, name, pair)

    def _sighting(self, cloud: CloudName, name: EpochName, pair: tuple[bytes, bytes] | None) -> Sighting:
        if pair is None:
            return Sighting(cloud, name, None)
        try:
            header, footer = parse_ends(*pair, self._keys, self._drive_id, name)
        except (CloudCorrupt, FormatError) as error:
            log.warning("cloud %s: %s: %s", cloud, name, error)
            return Sighting(cloud, name, None)
        return Sighting(cloud, name, (header, footer.object_hash))

    async def fetch(self, found: Look, chain: Chain, parts: Sequence[EpochObject]) -> bool:
        """Bring these parts of the chain into the folder, verified; return whether all are there.  Checkpoint.

        False: an object is nowhere what it should be; `choose` again, which leaves those out.  Raises: DataUnavailable,
        NoSpace (the local disk).
        """
        await trio.to_thread.run_sync(partial(self._folder.mkdir, mode=0o700, parents=True, exist_ok=True))
        answers = await gather([partial(self._fetch, found, part) for part in parts])
        for answer in answers:
            if isinstance(answer, CuckooError):
                raise answer
        return all(answer is True for answer in answers)

    async def _fetch(self, found: Look, part: EpochObject) -> bool:
        path = epoch_path(self._folder, part.name)
        if await trio.to_thread.run_sync(self._is_whole, path, part):
            return True
        for cloud in part.clouds:
            if cloud == HERE:
                self._bad.add((HERE, part.name, part.object_hash))
                continue
            try:
                await self._clouds.consult(
                    cloud,
                    jobs.get_file,
                    epoch_name(self._drive_id, part.name),
                    str(path),
                    deadline_s=transfer_deadline_s(found.size_bytes(part.name)),
                )
            except OSError as error:
                raise DataUnavailable(f"epoch {part.name}: {error.strerror}; check the local disk") from None
            except CloudError as error:
                log.warning("epoch %s cannot be fetched: %s", part.name, error)
                if isinstance(error, CloudMissing | CloudCorrupt):
                    self._bad.add((cloud, part.name, part.object_hash))
                continue
            if await trio.to_thread.run_sync(self._is_whole, path, part):
                return True
            log.warning("cloud %s: epoch %s is not what was stored", cloud, part.name)
            self._bad.add((cloud, part.name, part.object_hash))
        if all((cloud, part.name, part.object_hash) in self._bad for cloud in part.clouds):
            return False
        raise DataUnavailable(f"epoch {part.name} cannot be fetched: no cloud that has it answers; try again")

    def _is_whole(self, path: Path, part: EpochObject) -> bool:
        if not path.exists():
            return False
        try:
            with self.open(part) as opened:
                return opened.summary.object_hash == part.object_hash
        except (CloudCorrupt, FormatError):
            path.unlink(missing_ok=True)
            return False

    def open(self, part: EpochObject) -> OpenEpoch:
        """Open a part that was fetched.  Blocks.  Raises: as `read_epoch`."""
        return read_epoch(epoch_path(self._folder, part.name), self._keys, self._drive_id, part.name)


def epoch_path(folder: Path, name: EpochName) -> Path:
    """Return where the object is kept in `folder`."""
    return folder / str(name)


def presence(found: Look) -> dict[CloudName, dict[EpochName, int]]:
    """Return what lies where, to be kept up to date by whoever stores and deletes."""
    return {cloud: dict(listing.epochs) for cloud, listing in found.listings.items()}


def without(found: Look, names: Collection[EpochName]) -> Look:
    """Return the look as if no cloud had these epochs."""
    return evolve(
        found,
        listings={
            cloud: evolve(listing, epochs={name: size for name, size in listing.epochs.items() if name not in names})
            for cloud, listing in found.listings.items()
        },
    )


def _recent(names: Collection[EpochName]) -> frozenset[EpochName]:
    snapshots = sorted((name for name in names if name.kind == "snapshot"), reverse=True)
    if len(snapshots) < 2:
        return frozenset(names)
    return frozenset(name for name in names if name >= snapshots[1])

"""Taking, keeping and giving back the right to write (docs/format.md, "Lease").

Used by joining.py and engine.py.  For one trio loop; requests to clouds, and a small file in the state folder that
says which claim is this machine's own and since when somebody else's has not changed.
The claim only keeps two writers apart who behave; what the drive is, the chain of epochs says.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import time
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Final, Protocol, TypeVar

import trio
from attrs import asdict, evolve, frozen
from blake3 import blake3

from cuckoo_mount.clock import Moment
from cuckoo_mount.clouds import jobs
from cuckoo_mount.epochformat import WRITER_MAX, EpochName, LeaseName, lease_name
from cuckoo_mount.epochs.lease import HOST_BYTES_MAX, Lease, seal_lease, unseal_lease
from cuckoo_mount.epochs.looking import Clouds, Look, list_leases
from cuckoo_mount.errors import CloudCorrupt, CuckooError, FormatError, NoSpace
from cuckoo_mount.layers.keys import DriveKeys
from cuckoo_mount.multi.requests import gather
from cuckoo_mount.types import CloudName

T = TypeVar("T")
log = logging.getLogger(__name__)
STALE_S: Final = 300.0
"""A claim that did not change for so long before the observer's eyes is nobody's any more."""
RENEW_S: Final = 120.0
REQUEST_DEADLINE_S: Final = 30.0
EARLIER_MAX: Final = 16
_NOTES: Final = "lease.json"
_NEVER: Final = Moment("", 0)


class WritableClouds(Clouds, Protocol):
    """What is needed of the MultiFS to put and delete as well."""

    async def ask(self, name: CloudName, job: Callable[..., T], *args: object, deadline_s: float) -> T:
        """Return `job(settings, *args)`.  Raises: CloudError."""

    def takes_objects(self, name: CloudName) -> bool:
        """Return whether packs and epochs are stored there."""

    def loses_objects(self, name: CloudName) -> bool:
        """Return whether something may be deleted there."""


@frozen(slots=True)
class Claim:
    """The claim that counts: the highest one.  `lease`: its newest content anywhere; None: it cannot be read."""

    name: LeaseName
    lease: Lease | None

    @property
    def released(self) -> bool:
        """Whether its holder ended in good order."""
        return self.lease is not None and self.lease.released


@frozen(slots=True)
class Notes:
    """What the state folder remembers of claims.

    `own`, `counter`: the last claim that was made here, and its last renewal; `earlier`: those before it, which are
    still the highest where no cloud took a later one.  `seen`, `since`: what somebody else's claim and epochs looked
    like when it was met last, and since when they have not changed.  No time of day: a clock that is set must not make
    a writer look dead.  After a reboot, or in a copy of the folder, the watching begins anew.
    """

    own: str = ""
    counter: int = 0
    seen: str = ""
    since: Moment = _NEVER
    earlier: tuple[tuple[str, int], ...] = ()

    def is_own(self, claim: Claim) -> bool:
        """Return whether it was made here, and never renewed by a copy of this state folder."""
        renewed = claim.lease.counter if claim.lease is not None else 0
        known = dict((*self.earlier, (self.own, self.counter)))
        return renewed <= known.get(str(claim.name), -1)

    def with_own(self, name: str, counter: int) -> Notes:
        """Return the notes with a claim that is going to be made or renewed here."""
        earlier = self.earlier
        if self.own not in ("", name):
            earlier = (*earlier, (self.own, self.counter))[-EARLIER_MAX:]
        return evolve(self, own=name, counter=counter, earlier=earlier)


def read_notes(folder: Path) -> Notes:
    """Return the notes in a state folder; empty ones if there are none that can be read."""
    try:
        values = dict(json.loads((folder / _NOTES).read_text()))
        earlier = tuple((str(name), int(counter)) for name, counter in values.get("earlier", ()))
        since = dict(values.get("since", {"boot_id": "", "ns": 0}))  # it was a time of day once
        moment = Moment(str(since["boot_id"]), int(since["ns"]))
        return Notes(str(values["own"]), int(values["counter"]), str(values["seen"]), moment, earlier)
    except (OSError, ValueError, KeyError, TypeError):
        return Notes()


def write_notes(folder: Path, notes: Notes) -> None:
    """Keep the notes, durably.  Blocks.  Raises: OSError.

    On a full disk the old file is overwritten in place, which takes no room: a claim that cannot be renewed is taken
    over by others.  A power cut in the middle of that leaves no notes, that is a stranger's claim.
    """
    text = json.dumps(asdict(notes)).encode()
    part = folder / f"{_NOTES}.part"
    try:
        _write_durably(part, text, os.O_CREAT | os.O_TRUNC)
        os.rename(part, folder / _NOTES)
    except OSError as error:
        if error.errno != NoSpace.errno:
            raise
        part.unlink(missing_ok=True)
        _write_durably(folder / _NOTES, text.ljust(os.stat(folder / _NOTES).st_size), 0)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_durably(path: Path, data: bytes, flags: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC | flags, 0o600)
    try:
        if os.write(descriptor, data) < len(data):
            raise OSError(NoSpace.errno, "not all of it was written", str(path))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def watch_claim(notes: Notes, claim: Claim, epochs: Collection[EpochName], now: Moment) -> Notes:
    """Return the notes after a look at somebody else's claim; `is_stale` says what follows."""
    counter = claim.lease.counter if claim.lease is not None else 0
    newest = max(epochs, default=None)
    seen = blake3(f"{claim.name} {counter} {newest}".encode()).hexdigest()
    if seen == notes.seen and now.boot_id == notes.since.boot_id:
        return notes
    return evolve(notes, seen=seen, since=now)


def is_stale(notes: Notes, now: Moment) -> bool:
    """Return whether the claim watched last has not changed for `STALE_S`."""
    return now.since_ns(notes.since) >= STALE_S * 1e9


async def highest_claim(clouds: Clouds, found: Look, keys: DriveKeys, drive_id: bytes) -> Claim | None:
    """Return the claim that counts among those that the clouds show.  Checkpoint, raises nothing.

    It is read from every cloud that has it, as the renewal may not have reached all of them.
    """
    names = {name for listing in found.listings.values() for name in listing.leases}
    if not names:
        return None
    name = max(names)
    having = [cloud for cloud, listing in found.listings.items() if name in listing.leases]
    answers = await gather([partial(_read, clouds, cloud, name, keys, drive_id) for cloud in having])
    leases = [answer for answer in answers if isinstance(answer, Lease)]
    return Claim(name, max(leases, key=lambda lease: lease.counter, default=None))


async def _read(clouds: Clouds, cloud: CloudName, name: LeaseName, keys: DriveKeys, drive_id: bytes) -> Lease | None:
    data = await clouds.consult(cloud, jobs.get, lease_name(drive_id, name), deadline_s=REQUEST_DEADLINE_S)
    try:
        return unseal_lease(data, name, keys, drive_id)
    except (CloudCorrupt, FormatError) as error:
        log.warning("cloud %s: %s", cloud, error)
        return None


def host_name() -> str:
    """Return this machine's name, as claims have it."""
    return socket.gethostname().encode()[:HOST_BYTES_MAX].decode("utf-8", "ignore")


class LeaseHolder:
    """This process's claim.  A new one for every mount, with a writer number of its own, so that no two processes
    ever put different bytes under one name, not even from copies of one state folder."""

    def __init__(
        self, clouds: WritableClouds, keys: DriveKeys, drive_id: bytes, state_folder: Path, *, encrypted: bool
    ) -> None:
        self.writer: Final = secrets.randbelow(WRITER_MAX) + 1
        self.term = 0
        self._clouds = clouds
        self._keys = keys
        self._drive_id = drive_id
        self._state_folder = state_folder
        self._encrypted = encrypted
        self._counter = 0
        self._host = host_name()
        self._renewed_at_s = 0.0

    @property
    def name(self) -> LeaseName:
        """Of the claim."""
        return LeaseName(self.term, self.writer)

    async def claim(self, term: int, found: Look) -> set[CloudName]:
        """Claim this term on the clouds of a look; return those that have it.  Claims below it go.  Checkpoint.

        Raises: OSError (the notes cannot be written).
        """
        self.term, self._counter = term, 0
        stored = await self._put(found.listings.keys(), released=False)
        older = {
            cloud: [lease_name(self._drive_id, name) for name in found.listings[cloud].leases if name < self.name]
            for cloud in stored
        }
        await gather(
            [
                partial(self._clouds.ask, cloud, jobs.delete_many, names, deadline_s=REQUEST_DEADLINE_S)
                for cloud, names in older.items()
                if names
            ]
        )
        return stored

    async def renew_if_due(self, among: Collection[CloudName]) -> bool:
        """Show that this writer lives, every `RENEW_S`; return whether it was due.  One request per cloud then.

        Raises: OSError (the notes).
        """
        is_due = trio.current_time() >= self._renewed_at_s + RENEW_S
        if is_due:
            await self._put(among, released=False)
        return is_due

    async def release(self, among: Collection[CloudName]) -> None:
        """Say that this writer writes no more.  Checkpoint.  Raises: OSError (the notes)."""
        await self._put(among, released=True)

    async def superseded(self, among: Collection[CloudName]) -> Mapping[CloudName, LeaseName | None]:
        """Return for each of the clouds that answers whether a higher claim is there.  One request each."""
        names = list(among)
        answers = await gather([partial(list_leases, self._clouds, name, self._drive_id) for name in names])
        return {
            name: max((lease for lease in answer if lease > self.name), default=None)
            for name, answer in zip(names, answers, strict=True)
            if not isinstance(answer, CuckooError)
        }

    async def _put(self, among: Collection[CloudName], *, released: bool) -> set[CloudName]:
        self._counter += 1
        self._renewed_at_s = trio.current_time()
        notes = read_notes(self._state_folder).with_own(str(self.name), self._counter)
        # First, so that a claim of our own is never taken for somebody else's after a kill.
        await trio.to_thread.run_sync(write_notes, self._state_folder, notes)
        lease = Lease(time.time_ns(), self._host, self._counter, released)
        data = seal_lease(lease, self.name, self._keys, self._drive_id, encrypted=self._encrypted)
        names = list(among)
        object_name = lease_name(self._drive_id, self.name)
        answers = await gather(
            [
                partial(self._clouds.ask, name, jobs.put, object_name, data, deadline_s=REQUEST_DEADLINE_S)
                for name in names
            ]
        )
        for answer in answers:
            if isinstance(answer, CuckooError):
                log.info("the claim of the right to write is not on every cloud: %s", answer)
        return {name for name, answer in zip(names, answers, strict=True) if not isinstance(answer, CuckooError)}

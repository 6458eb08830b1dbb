"""Puts epoch objects on clouds, knows what lies where, and asks for higher claims afterwards.

Used by engine.py, which decides what is to be sent.  For one trio loop; one call at a time.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import trio
from attrs import frozen

from cuckoo_mount.clouds import jobs
from cuckoo_mount.epochformat import EpochName, LeaseName, epoch_name
from cuckoo_mount.epochs.claims import LeaseHolder
from cuckoo_mount.epochs.joining import Joining
from cuckoo_mount.epochs.ledger import Entry, Ledger
from cuckoo_mount.epochs.looking import Look, epoch_path, presence
from cuckoo_mount.errors import CloudError, CuckooError, DataUnavailable
from cuckoo_mount.multi.records import transfer_deadline_s
from cuckoo_mount.multi.requests import gather
from cuckoo_mount.types import CloudName

log = logging.getLogger(__name__)
DELETE_BATCH: Final = 100
DELETE_DEADLINE_S: Final = 120.0


@frozen(slots=True)
class Published:
    """Where the tip is.  `confirmed`: it is there, and no higher claim.  `failed`: up, and did not take it.

    `refusal`: why this machine may not write any more, or empty.
    """

    confirmed: frozenset[CloudName] = frozenset()
    failed: frozenset[CloudName] = frozenset()
    refusal: str = ""


class Publisher:
    """What the clouds have, and how they get the rest."""

    def __init__(self, joining: Joining, holder: LeaseHolder, found: Look) -> None:
        self.holder: Final = holder
        self._joining = joining
        self._clouds = joining.clouds
        self._presence = presence(found)
        self._turn = 0

    def unseen(self) -> list[CloudName]:
        """Return the clouds of which it is not known what they have: also those that were down in between."""
        for name in [name for name in self._presence if not self._clouds.is_up(name)]:
            del self._presence[name]
        return [name for name in self._clouds.names if name not in self._presence]

    def forget(self, name: CloudName) -> None:
        """Take note that it is not known what a cloud has."""
        self._presence.pop(name, None)

    def meet(self, found: Look) -> str:
        """Take note of clouds that were away; return why this machine may not write any more, or nothing."""
        self._presence |= presence(found)
        leases = [lease for listing in found.listings.values() for lease in listing.leases]
        epochs = [LeaseName(name.term, name.writer) for name in found.epoch_names]
        higher = max((name for name in (*leases, *epochs) if name > self.holder.name), default=None)
        return _superseded(higher) if higher is not None else ""

    def claimed(self, cloud: CloudName) -> Mapping[EpochName, int]:
        """Return what the cloud has, as far as this machine knows: names and sizes."""
        return self._presence.get(cloud, {})

    async def put_again(self, cloud: CloudName, entry: Entry, path: Path) -> None:
        """Put the verified object in file `path` in the place of one that is damaged or lost.  Checkpoint.

        Raises: CloudError, FormatError, OSError.
        """
        name = epoch_name(self._joining.drive_id, entry.name)
        self._presence.setdefault(cloud, {}).pop(entry.name, None)
        # Not every storage replaces one that is there.
        await self._clouds.ask(cloud, jobs.delete_many, [name], deadline_s=DELETE_DEADLINE_S)
        deadline_s = transfer_deadline_s(entry.size_bytes or 0)
        await self._clouds.ask(cloud, jobs.put_file, name, str(path), entry.size_bytes, deadline_s=deadline_s)
        self._presence[cloud][entry.name] = entry.size_bytes or 0

    def _met(self) -> list[CloudName]:
        """Return the clouds that are up, not read-only, and of which it is known what they have.

        Claims go to all of these: whoever takes over may see just one that gets no epochs any more.
        """
        return [
            name
            for name in self._clouds.names
            if name in self._presence and self._clouds.is_up(name) and self._clouds.loses_objects(name)
        ]

    def _targets(self) -> list[CloudName]:
        """Return those of them that get epochs."""
        return [name for name in self._met() if self._clouds.takes_objects(name)]

    async def publish(self, ledger: Ledger) -> Published:
        """Put what loading the tip takes on as many clouds as make it durable, those that lack least first.

        Checkpoint.  Raises: DataUnavailable (an object is not on the local disk any more), OSError.
        """
        wanted = self._joining.wanted()
        waiting = sorted(self._targets(), key=lambda name: len(self._lacking(name, ledger)))
        confirmed: set[CloudName] = set()
        failed: set[CloudName] = set()
        while waiting and len(confirmed) < wanted:
            batch, waiting = waiting[: wanted - len(confirmed)], waiting[wanted - len(confirmed) :]
            stored = await self._bring_all(batch, ledger)
            claims = await self.holder.superseded(stored)
            higher = max((claim for claim in claims.values() if claim is not None), default=None)
            if higher is not None:
                return Published(refusal=_superseded(higher))
            confirmed |= claims.keys()
            failed |= set(batch) - claims.keys()
        return Published(frozenset(confirmed), frozenset(failed))

    async def catch_up(self, ledger: Ledger, *, snapshots_only: bool = False) -> None:
        """Bring every cloud up to date that lacks something.  Checkpoint.  Raises: as `publish`.

        `snapshots_only`: only clouds that lack the snapshot, so that they would be no door to the drive, or to an old
        state of it.
        """
        lacking = [name for name in self._targets() if self._lacking(name, ledger)]
        if snapshots_only:
            lacking = [name for name in lacking if self._lacking(name, ledger)[0].name.kind == "snapshot"]
        if lacking:
            await self._bring_all(lacking, ledger)

    def _lacking(self, cloud: CloudName, ledger: Ledger) -> list[Entry]:
        here = self._presence[cloud]
        return [entry for entry in ledger.parts if here.get(entry.name) != entry.size_bytes]

    async def _bring_all(self, clouds: Sequence[CloudName], ledger: Ledger) -> list[CloudName]:
        """Return the clouds that have everything now."""
        answers = await gather([partial(self._bring, name, ledger) for name in clouds])
        for answer in answers:
            if isinstance(answer, CloudError):
                log.warning("epoch %d is not on every cloud yet: %s", ledger.epoch, answer)
            elif isinstance(answer, CuckooError):
                raise answer
        return [name for name, answer in zip(clouds, answers, strict=True) if answer is None]

    async def _bring(self, cloud: CloudName, ledger: Ledger) -> None:
        # In their order: whatever is there is a chain.
        for entry in self._lacking(cloud, ledger):
            path = epoch_path(self._joining.folder, entry.name)
            try:
                await self._clouds.ask(
                    cloud,
                    jobs.put_file,
                    epoch_name(self._joining.drive_id, entry.name),
                    str(path),
                    entry.size_bytes,
                    deadline_s=transfer_deadline_s(entry.size_bytes or 0),
                )
            except OSError as error:
                raise DataUnavailable(f"epoch {entry.name}: {error.strerror}; check {path.parent}") from None
            if cloud in self._presence:
                self._presence[cloud][entry.name] = entry.size_bytes or 0

    async def keep_claim(self) -> str:
        """Renew the claim if that is due, and look at one cloud in turn for a higher one.

        Returns why this machine may not write any more, or nothing.  Checkpoint.  Raises: OSError.
        """
        targets = self._met()
        if not targets or not await self.holder.renew_if_due(targets):
            return ""
        self._turn += 1
        claims = await self.holder.superseded([targets[self._turn % len(targets)]])
        higher = max((claim for claim in claims.values() if claim is not None), default=None)
        return _superseded(higher) if higher is not None else ""

    async def delete_old(self, ledger: Ledger) -> None:
        """Delete the objects that are older than all that `ledger` has.  Checkpoint, raises nothing of the clouds'."""
        known = {entry.name for entry in ledger.entries}
        oldest = min(known, key=lambda name: name.epoch)
        for cloud in self._met():
            old = sorted(
                name for name in self._presence.get(cloud, {}) if name not in known and _is_before(name, oldest)
            )
            for start in range(0, len(old), DELETE_BATCH):
                await self._delete(cloud, old[start : start + DELETE_BATCH])

    async def _delete(self, cloud: CloudName, names: Collection[EpochName]) -> None:
        objects = [epoch_name(self._joining.drive_id, name) for name in names]
        try:
            await self._clouds.ask(cloud, jobs.delete_many, objects, deadline_s=DELETE_DEADLINE_S)
        except CloudError as error:
            log.info("old epochs stay for now: %s", error)
            return
        for name in names:
            self._presence.get(cloud, {}).pop(name, None)

    async def release(self) -> None:
        """Say on the clouds that are up that this writer has ended.  Checkpoint.  Raises: OSError."""
        await trio.lowlevel.checkpoint()
        await self.holder.release(self._met())


def _is_before(name: EpochName, oldest: EpochName) -> bool:
    return name.epoch < oldest.epoch and name.term <= oldest.term


def _superseded(higher: LeaseName) -> str:
    return (
        f"another machine has taken the drive over (term {higher.term}); what was written here since then is on this "
        "machine only.  Unmount, and mount again to see how the two can go on"
    )

"""Compares this machine's copy of the drive with its clouds, and takes the right to write (design §3.7).

Used by the drive at every mount, with the store closed, and by engine.py when the clouds could not be asked then.
For one trio loop.  The order makes it safe against a writer that is still alive: claims are listed and, if that is
allowed, a higher one is put *before* the epochs are looked at.  The old writer looks for higher claims *after* each
epoch it puts: so it either learns that its epoch does not count, or the epoch is seen here.

    ahead, or the same     this copy goes on, with a new term
    behind                 what it lacks is fetched, to be replayed by the caller; if it has changes of its own: forked
    forked                 refused; `take_over` goes on from this copy, and what the others wrote is left behind
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import trio
from attrs import evolve, field, frozen

from cuckoo_mount.clock import Moment
from cuckoo_mount.epochs.chain import Chain, EpochObject
from cuckoo_mount.epochs.claims import (
    Claim,
    LeaseHolder,
    WritableClouds,
    highest_claim,
    host_name,
    is_stale,
    read_notes,
    watch_claim,
    write_notes,
)
from cuckoo_mount.epochs.ledger import Ledger, from_chain
from cuckoo_mount.epochs.looking import EpochSearch, Look, look, without
from cuckoo_mount.epochs.sealing import EpochKeys
from cuckoo_mount.errors import ConfigurationError, DataUnavailable, UsageError
from cuckoo_mount.layers.keys import DriveKeys

log = logging.getLogger(__name__)
FETCH_ROUNDS: Final = 10


class DriveInUse(ConfigurationError):
    """Another writer has the drive."""


class DriveForked(ConfigurationError):
    """This machine and the clouds went on differently."""


class DriveStale(ConfigurationError):
    """The clouds know of something newer than can be loaded."""


@frozen(slots=True, kw_only=True)
class OwnCopy:
    """This machine's copy.  `exists`: there is a store.  `changes`: rows and chunks that are in no epoch;
    `catalogue_changes`: those of the catalogue alone."""

    exists: bool = False
    ledger: Ledger = field(factory=Ledger)
    changes: int = 0
    catalogue_changes: int = 0


@frozen(slots=True, kw_only=True)
class Joined:
    """The outcome.  `found`: what the clouds showed last.  `chain`: what they and this machine have together.

    `holder`: with the claim; None: read-only, or no cloud answered.  `behind`: what the store has to be given
    before it is opened; empty if it is up to date.  `rebuild`: it begins with a snapshot, to be loaded into a new
    store.
    `left_behind`: with `take_over`, the newest epoch that is given up.
    `took_over`: somebody else had the right to write and did not give it back.
    """

    found: Look
    chain: Chain
    holder: LeaseHolder | None
    behind: tuple[EpochObject, ...] = ()
    rebuild: bool = False
    left_behind: EpochObject | None = None
    took_over: bool = False
    search: EpochSearch

    @property
    def has_joined(self) -> bool:
        """Whether this copy goes on as the writer."""
        return self.holder is not None

    def ledger(self, own: Ledger, durable_on: int) -> Ledger:
        """Return the ledger of the copy once it has what is `behind`."""
        if not self.behind:
            return own
        sizes = {entry.name: entry.size_bytes for entry in own.entries if entry.size_bytes is not None}
        sizes |= {name: self.found.size_bytes(name) for name in self.found.epoch_names}
        tip = self.behind[-1]
        durable = tip.name.epoch if len(tip.clouds) >= durable_on else 0
        return from_chain(self.chain.history, sizes, durable)


@frozen(slots=True, kw_only=True)
class Joining:
    """What joining takes.  `folder`: of epoch objects on the local disk, below the state folder.

    `wanted`: returns on how many clouds an epoch has to be to be durable.
    """

    clouds: WritableClouds
    keys: DriveKeys
    drive_id: bytes
    state_folder: Path
    folder: Path
    encrypted: bool
    wanted: Callable[[], int]
    drive_name: str

    async def join(self, own: OwnCopy, *, writing: bool, take_over: bool) -> Joined:
        """Compare, and claim the right to write if `writing`.  Checkpoint.

        Raises: DriveInUse, DriveForked, DriveStale (each says what can be done), DataUnavailable (what is newer could
        not be fetched), OSError.
        """
        search = self.search(own)
        found = await look(self.clouds, self.drive_id, claims_only=writing)
        if not found.listings:
            return Joined(found=found, chain=Chain(), holder=None, search=search)
        holder, took_over = None, False
        if writing:
            took_over = await self._check_claim(found, take_over=take_over)
            holder, found = await self._claim(own, found)
            if holder is None:
                return Joined(found=found, chain=Chain(), holder=None, search=search)
        try:
            joined = await self._compare(own, search, found, holder, take_over=take_over)
            return evolve(joined, took_over=took_over or joined.left_behind is not None)
        except BaseException:
            if holder is not None:
                with trio.move_on_after(5, shield=True):
                    await holder.release(found.listings)
            raise

    async def view(self, epoch: int) -> Joined:
        """Find the drive as it was at an epoch, to be loaded into a new store.  Checkpoint.

        Raises: UsageError (it is not kept), DataUnavailable, OSError.
        """
        search = self.search(OwnCopy())
        found = await look(self.clouds, self.drive_id)
        for _ in range(FETCH_ROUNDS):
            chain = await search.choose(found, whole=True)
            parts = chain.parts_of(epoch)
            if not parts:
                known = ", ".join(str(number) for number in chain.loadable) or "none"
                raise UsageError(f"epoch {epoch} is not on the clouds that answer; these are: {known}")
            if await search.fetch(found, chain, parts):
                return Joined(found=found, chain=chain, holder=None, behind=parts, rebuild=True, search=search)
        raise DataUnavailable("the clouds change while they are compared; try again")

    def search(self, own: OwnCopy) -> EpochSearch:
        """Return what finds chains in what the clouds show."""
        return EpochSearch(self.clouds, EpochKeys(self.keys), self.drive_id, self.folder, own.ledger)

    async def _check_claim(self, found: Look, *, take_over: bool) -> bool:
        """Return whether it is taken from somebody who did not give it back.  Raises: DriveInUse."""
        claim = await highest_claim(self.clouds, found, self.keys, self.drive_id)
        notes = read_notes(self.state_folder)
        if claim is None or claim.released or notes.is_own(claim):
            return False
        now, now_ns = Moment.now(), time.time_ns()
        notes = watch_claim(notes, claim, found.epoch_names, now)
        await trio.to_thread.run_sync(write_notes, self.state_folder, notes)
        if take_over or is_stale(notes, now):
            log.warning("taking over from %s", describe_claim(claim, now_ns))
            return True
        raise DriveInUse(
            f"drive {self.drive_name!r} is in use by {describe_claim(claim, now_ns)}; unmount it there, mount it "
            f"read-only here (-o ro), or, if that machine is gone, take it over: --take-over{_if_copied(claim)}"
        )

    async def _claim(self, own: OwnCopy, found: Look) -> tuple[LeaseHolder | None, Look]:
        """Claim a term above all others, and return what the clouds show after that."""
        holder = LeaseHolder(self.clouds, self.keys, self.drive_id, self.state_folder, encrypted=self.encrypted)
        own_term = own.ledger.tip.name.term if own.ledger.tip is not None else 0
        while True:
            term = max((own_term, *found.terms)) + 1
            stored = await holder.claim(term, found)
            if not stored:
                log.warning("no cloud took the claim of the right to write; trying again later")
                return None, found
            found = await look(self.clouds, self.drive_id, stored)
            others = [lease for listing in found.listings.values() for lease in listing.leases if lease > holder.name]
            if not others and all(name.term < term for name in found.epoch_names):
                return holder, found
            if others:
                raise DriveInUse(
                    f"drive {self.drive_name!r} is just being mounted by another machine; try again in a moment"
                )

    async def _compare(
        self, own: OwnCopy, search: EpochSearch, found: Look, holder: LeaseHolder | None, *, take_over: bool
    ) -> Joined:
        for _ in range(FETCH_ROUNDS):
            chain = await search.choose(found)
            tip, here = chain.tip, own.ledger.tip
            if chain.newer and not take_over:
                raise DriveStale(self._stale(chain, own))
            if tip is None or (here is not None and tip.object_hash == here.object_hash):
                return Joined(found=found, chain=chain, holder=holder, search=search)
            if not self._is_plainly_behind(own, chain):
                if not take_over:
                    raise DriveForked(self._forked(own, tip))
                names = {item.name for item in chain.history if own.ledger.find(item.name) is None}
                mine = await search.choose(without(found, names))
                return Joined(found=found, chain=mine, holder=holder, left_behind=tip, search=search)
            if not own.exists:
                self._check_answers(found)
            parts, rebuild = self._lacking(own, chain)
            if await search.fetch(found, chain, parts):
                return Joined(found=found, chain=chain, holder=holder, behind=parts, rebuild=rebuild, search=search)
        raise DataUnavailable("the clouds change while they are compared; try again")

    def _check_answers(self, found: Look) -> None:
        """A copy that is made anew must not be older than what some cloud that is silent has.  Raises: DriveStale."""
        names = self.clouds.names
        if len(found.listings) <= len(names) - self.wanted():
            missing = sorted(set(names) - found.listings.keys())
            silent = "; ".join(found.silent.get(name, f"cloud {name} does not answer") for name in missing)
            raise DriveStale(
                f"the drive's state is not on this machine, and only {len(found.listings)} of its {len(names)} clouds "
                f"answer, so that something newer may lie on the others ({silent}).  Mount again when they answer, or: "
                "cuckoo recover URL --accept-stale"
            )

    def _is_plainly_behind(self, own: OwnCopy, chain: Chain) -> bool:
        """Return whether nothing is lost when this copy becomes what the chain says."""
        here = own.ledger.tip
        if own.changes and here is not None:
            return False
        if here is None:
            # A store that never had an epoch has what was done since it was made; of a new drive that is nothing yet.
            return not own.exists or not own.changes
        standing = chain.standing(here.name.epoch, here.object_hash)
        return standing in ("behind", "unknown")

    def _lacking(self, own: OwnCopy, chain: Chain) -> tuple[tuple[EpochObject, ...], bool]:
        here = own.ledger.tip
        if here is None or not own.exists or own.catalogue_changes:
            return chain.parts, True
        parts = chain.parts_after(here.name.epoch)
        return parts, parts[0].name.kind == "snapshot"

    def _stale(self, chain: Chain, own: OwnCopy) -> str:
        newest = chain.newer[-1]
        option = "" if self.drive_name == "default" else f" --drive {self.drive_name}"
        mine = f"epoch {own.ledger.epoch}" if own.ledger.epoch else "nothing yet"
        return (
            f"the clouds know of epoch {newest.name.epoch}, which cannot be loaded ({newest.reason}); this machine "
            f"has {mine}.  Mount again when all clouds answer, or go on without it: cuckoo-mount --take-over{option}"
        )

    def _forked(self, own: OwnCopy, tip: EpochObject) -> str:
        option = "" if self.drive_name == "default" else f" --drive {self.drive_name}"
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(tip.header.time_ns / 1e9))
        return (
            f"drive {self.drive_name!r} was changed elsewhere (epoch {tip.name.epoch} of {when}) and also here after "
            f"epoch {own.ledger.epoch}, so the two do not fit together.  Keep what is on the clouds: move "
            f"{self.state_folder} away and mount again.  Or keep what is here, and give up what was written elsewhere: "
            f"cuckoo-mount --take-over{option}"
        )


def _if_copied(claim: Claim) -> str:
    """Return what to say besides where the other one has this machine's name."""
    if claim.lease is None or claim.lease.host != host_name():
        return ""
    return (
        ".  It has the name of this machine: if one is a copy of the other (a cloned virtual machine, a copied state "
        "folder), what the copy has not sent may be there twice; go on with one of them"
    )


def describe_claim(claim: Claim, now_ns: int) -> str:
    """Return who holds a claim, in words."""
    if claim.lease is None:
        return "another machine"
    age_s = max(0, (now_ns - claim.lease.time_ns) // 10**9)
    age = f"{age_s} s" if age_s < 120 else f"{age_s // 60} min" if age_s < 7200 else f"{age_s // 3600} h"
    return f"the machine {claim.lease.host!r}, which said so {age} ago"

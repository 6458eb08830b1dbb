"""Brings the drive's metadata to the clouds, epoch after epoch, for as long as the drive is open (design §3.4-3.7).

Used by drive.py.  For one trio loop; writing objects and reading cuts run in threads.  One epoch:

    due ─▶ object in state/epochs, ledger has it (making.py) ─▶ put on clouds ─▶ no higher claim there ─▶ durable

An epoch is durable when as many clouds as it takes have it and show no claim above ours after that (publishing.py);
then no machine that takes over can miss it.
The objects that loading the newest epoch takes stay in state/epochs: clouds that were away are brought up to date
from there.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Awaitable, Callable, Collection
from typing import Final, TypeVar

import trio
from attrs import evolve

from cuckoo_mount.cache.chunkcache import ChunkCache
from cuckoo_mount.epochs.joining import Joined, Joining, OwnCopy
from cuckoo_mount.epochs.keeping import kept_epochs, needed_entries, wants_snapshot
from cuckoo_mount.epochs.ledger import COUNT_MAX, EpochStatus, Ledger
from cuckoo_mount.epochs.looking import epoch_path, look
from cuckoo_mount.epochs.making import EpochMaker
from cuckoo_mount.epochs.publishing import Publisher
from cuckoo_mount.epochs.timing import LITTLE_ROWS, EpochTimer
from cuckoo_mount.errors import ConfigurationError, CuckooError, MetadataError, ReadOnly
from cuckoo_mount.metadata.base import Metadata
from cuckoo_mount.types import CloudName

T = TypeVar("T")
log = logging.getLogger(__name__)
POLL_S: Final = 1.0
GONE_POLL_S: Final = 0.1
RETRY_S: Final = 2.0
JOIN_S: Final = 10.0
"""While this machine has not the right to write yet, it is asked for this often."""
OLDEST: Final = "epoch.oldest"
"""Local setting: of older epochs packs may be deleted; they count as gone."""


class EpochEngine:
    """See the module.  `refuse`: told once, with the reason, when this machine has lost the right to write."""

    def __init__(
        self,
        metadata: Metadata,
        cache: ChunkCache,
        joining: Joining,
        ledger: Ledger,
        joined: Joined | None,
        *,
        oldest: int,
        refuse: Callable[[str], None],
    ) -> None:
        self._metadata = metadata
        self._cache = cache
        self._joining = joining
        self._maker = EpochMaker(metadata, cache, joining)
        self._ledger = ledger
        self._placed = ledger.durable
        self._oldest = oldest
        self._refuse = refuse
        self._refused = ""
        self._publisher: Publisher | None = None
        self._force_snapshot = False
        self._force_epoch = False
        self._lock = trio.Lock()
        self._timer = EpochTimer()
        self._join_at_s = -math.inf
        self._making = trio.CancelScope()
        if joined is not None and joined.holder is not None:
            self._go_on(joined)

    def _go_on(self, joined: Joined) -> None:
        assert joined.holder is not None
        # What the others wrote may have cost objects that our journals build on.
        self._force_snapshot = joined.left_behind is not None
        # Until an epoch has the new term, a branch of whoever had the drive before could still be taken for it.
        self._force_epoch = joined.took_over
        self._publisher = Publisher(self._joining, joined.holder, joined.found)

    # -- what others ask --

    @property
    def refused(self) -> str:
        """Why this machine may not write any more; empty: it may."""
        return self._refused

    def status(self) -> EpochStatus:
        """Return how far the metadata are on the clouds.  Never waits for a cloud."""
        changes, _ = self._metadata.outbox_changes(COUNT_MAX)
        durable = self._ledger.durable
        is_clean = not changes and durable == self._ledger.epoch and not self._metadata.statistics().dirty_chunks
        entry = next((entry for entry in self._ledger.entries if entry.name.epoch == durable), None)
        age_s = None
        if durable:
            cut_ns = entry.header.time_ns if entry is not None else time.time_ns()
            age_s = 0.0 if is_clean else max(0.0, (time.time_ns() - cut_ns) / 1e9)
        if not changes and self._placed < self._ledger.epoch:
            changes = 1
        return EpochStatus(self._ledger.epoch, durable or None, age_s, changes)

    def has_unsent(self) -> bool:
        """Return whether a change is in no durable epoch; what only the catalogue changed does not count."""
        changes, _ = self._metadata.outbox_changes(1)
        return bool(changes) or self._ledger.durable < self._ledger.epoch

    @property
    def oldest_kept(self) -> int:
        """The oldest epoch that can be gone back to: no pack that it refers to may be deleted.  0: none is durable."""
        if not self._ledger.durable:
            return 0
        return max(self._oldest, min(self._kept(None)))

    def forget_cloud(self, name: CloudName) -> None:
        """Have it looked at what lies on a cloud before that counts: everything there was deleted."""
        if self._publisher is not None:
            self._publisher.forget(name)

    # -- the tasks --

    async def run(self) -> None:
        """Make epochs when they are due, until cancelled.  Trouble of clouds and of the local disk is tried again."""
        while True:
            await trio.sleep(POLL_S)
            try:
                if self._publisher is None and trio.current_time() >= self._join_at_s:
                    self._join_at_s = trio.current_time() + JOIN_S
                    async with self._lock:
                        await self._join_if_needed()
                if self._publisher is not None and not self._refused and self._is_due():
                    await self.make(bounded=True)
            except (CuckooError, OSError) as error:
                if isinstance(error, MetadataError):
                    raise
                log.warning("an epoch could not be made, it will be tried again: %s", error)
                self._timer.failed()

    def _is_due(self) -> bool:
        changes, catalogue = self._metadata.outbox_changes(LITTLE_ROWS)
        dirty_bytes = self._metadata.statistics().dirty_bytes
        is_due = self._timer.is_due(changes, catalogue, dirty_bytes)
        return (is_due or self._force_epoch) and self._has_clouds()

    def _has_clouds(self) -> bool:
        return any(self._joining.clouds.is_up(name) for name in self._joining.clouds.names)

    async def keep_claim(self) -> None:
        """Once a minute, also while epochs or packs are on their way for hours: show that this writer lives.

        Whoever does not see that takes over.  Checkpoint, raises nothing.
        """
        try:
            if self._publisher is not None and not self._refused:
                self._note_refusal(await self._publisher.keep_claim())
        except OSError as error:
            log.warning("the right to write could not be renewed: %s", error)

    async def look_after(self) -> None:
        """Once a minute: join where that was not possible yet, bring clouds up to date that were away.

        At most about one request per minute and cloud while nothing happens.  Checkpoint.  Raises: MetadataError.
        """
        try:
            if not self._lock.locked():
                async with self._lock:
                    await self._tend()
        except (CuckooError, OSError) as error:
            if isinstance(error, MetadataError):
                raise
            log.warning("the epochs on the clouds could not be looked after: %s", error)

    async def _tend(self) -> None:
        await self._join_if_needed()
        publisher = self._publisher
        if publisher is None or self._refused:
            return
        await self._replace_lost(publisher)
        if self._ledger.durable < self._ledger.epoch:
            await self._publish(publisher)
        else:
            await self._meet_new(publisher)
        if not self.refused:
            await publisher.catch_up(self._ledger)
            await self._prune(publisher, None)

    async def _replace_lost(self, publisher: Publisher) -> None:
        """Make a snapshot if an object that other clouds may still need is not on the local disk any more."""
        paths = [epoch_path(self._joining.folder, entry.name) for entry in self._ledger.parts]
        are_known = bool(paths) or not self._ledger.epoch
        if not are_known or not await trio.to_thread.run_sync(lambda: all(path.exists() for path in paths)):
            self._force_snapshot = True
            await self._make_one(publisher)

    async def _join_if_needed(self) -> None:
        """Raises: what cannot be mended while the drive is open fences it instead."""
        if self._publisher is not None or self._refused or not self._has_clouds():
            return
        dirty = self._metadata.statistics().dirty_chunks
        changes, catalogue = self._metadata.outbox_changes(1)
        own = OwnCopy(exists=True, ledger=self._ledger, changes=changes + dirty, catalogue_changes=catalogue)
        try:
            joined = await self._joining.join(own, writing=True, take_over=False)
        except ConfigurationError as error:
            self._fence(str(error))
            return
        if joined.behind:
            if joined.holder is not None:
                await joined.holder.release(joined.found.listings)
            self._fence(
                "the drive was changed elsewhere while this machine had no connection; unmount and mount it again"
            )
        elif joined.holder is not None:
            self._go_on(joined)

    async def _meet_new(self, publisher: Publisher) -> None:
        """Look at clouds that were away: whether they know of a writer that we do not know."""
        new = [name for name in publisher.unseen() if self._joining.clouds.is_up(name)]
        if new:
            found = await look(self._joining.clouds, self._joining.drive_id, new)
            self._note_refusal(publisher.meet(found))

    async def inspect(self, work: Callable[[Publisher, Ledger], Awaitable[T]]) -> T | None:
        """Return what `work` does, while no epoch is made or sent; None if this machine may not write.  Checkpoint."""
        async with self._lock:
            if self._publisher is None or self._refused:
                return None
            return await work(self._publisher, self._ledger)

    # -- sending --

    async def send_all(self) -> None:
        """Return when all that was written and changed before this call is in an epoch that is durable, or is on every
        cloud that is up where these are fewer; waits as long as that takes.

        Checkpoint.  Raises: ReadOnly (this machine has lost the right to write), MetadataError, OSError.
        """
        if not self._joining.clouds.names:
            await self._cache.send_all()
            return
        while True:
            if self.refused:
                raise ReadOnly(self.refused)
            async with self._lock:
                await self._join_if_needed()
            if self._publisher is not None:
                await self.make(bounded=False)
                if not self.refused:
                    return
            await trio.sleep(RETRY_S)

    async def make(self, *, bounded: bool, whole: bool = False) -> None:
        """Make an epoch of what changed, if anything did, and put it on the clouds.

        `bounded`: put it once where that works, and leave the rest to `look_after`.  `whole`: also if only the
        catalogue changed.  Checkpoint.  Raises: MetadataError, OSError, DataUnavailable, NoSpace (the local disk).
        """
        async with self._lock:
            with trio.CancelScope() as self._making:
                await self._make_if_needed(bounded=bounded, whole=whole)

    async def _make_if_needed(self, *, bounded: bool, whole: bool) -> None:
        publisher = self._publisher
        assert publisher is not None, "an epoch before joining"
        await self._replace_lost(publisher)
        changes, catalogue = self._metadata.outbox_changes(1)
        cache = self._cache.statistics()
        is_changed = changes or cache.pending_bytes or cache.pending_files or cache.dirty_bytes
        if is_changed or self._force_epoch or (whole and catalogue):
            await self._make_one(publisher)
        while not self.refused and self._ledger.durable < self._ledger.epoch:
            if await self._publish(publisher) or bounded:
                break
            await trio.sleep(RETRY_S)

    async def _publish(self, publisher: Publisher) -> bool:
        """Put what is lacking; return whether the tip is durable, or on all clouds that are up."""
        await self._meet_new(publisher)
        if self.refused:
            return True
        outcome = await publisher.publish(self._ledger)
        if outcome.refusal:
            self._fence(outcome.refusal)
            return True
        if outcome.confirmed:
            self._placed = self._ledger.epoch
        if len(outcome.confirmed) >= self._joining.wanted():
            await self._note_durable()
            await publisher.catch_up(self._ledger, snapshots_only=True)
            return True
        return bool(outcome.confirmed) and not outcome.failed

    async def _note_durable(self) -> None:
        self._ledger = evolve(self._ledger, durable=self._ledger.epoch)
        await self._metadata.set_locals(evolve(self._ledger, entries=()).as_local())

    async def _make_one(self, publisher: Publisher) -> None:
        changes, _ = self._metadata.outbox_changes(LITTLE_ROWS)
        self._timer.begin(changes, self._metadata.statistics().dirty_bytes)
        entry = await self._maker.make(
            self._ledger,
            publisher.holder.name,
            as_snapshot=self._force_snapshot or wants_snapshot(self._ledger.parts, time.time_ns()),
        )
        self._ledger = evolve(self._ledger, entries=(*self._ledger.entries, entry))
        self._force_snapshot = self._force_epoch = False

    # -- losing the right to write --

    def _note_refusal(self, refusal: str) -> None:
        if refusal:
            self._fence(refusal)

    def _fence(self, reason: str) -> None:
        if not self._refused:
            self._refused = reason
            self._making.cancel()
            log.error("the drive is read-only from now on: %s", reason)
            self._refuse(reason)

    # -- old epochs --

    async def trim(self, keep: int | None) -> int:
        """Put what changed into an epoch and delete those that are not kept; return `oldest_kept`.

        `keep`: so many of the newest, nothing else; None: as always.  Checkpoint.  Raises: as `make`.
        """
        if self._publisher is not None and not self._refused and self._has_clouds():
            await self.make(bounded=True, whole=True)
            async with self._lock:
                await self._prune(self._publisher, keep)
        return self.oldest_kept

    def _kept(self, keep: int | None) -> frozenset[int]:
        durable = [entry for entry in self._ledger.entries if entry.name.epoch <= self._ledger.durable]
        newer = (entry.name.epoch for entry in self._ledger.entries[len(durable) :])
        return kept_epochs(durable, time.time_ns(), keep) | frozenset(newer)

    async def _prune(self, publisher: Publisher, keep: int | None) -> None:
        if not self._ledger.durable:
            return
        kept = self._kept(keep)
        needed = needed_entries(self._ledger.entries, kept)
        gone = [entry for entry in self._ledger.entries if entry not in needed]
        oldest = max(self._oldest, min(kept))
        if gone or oldest != self._oldest:
            # Before anything is deleted: what is not in the ledger is never counted on.
            settings: dict[str, str | None] = {f"epoch.object.{entry.name}": None for entry in gone}
            await self._metadata.set_locals(settings | {OLDEST: str(oldest)})
            await self._metadata.make_durable()
            self._ledger = evolve(self._ledger, entries=needed)
            self._oldest = oldest
        await publisher.delete_old(self._ledger)
        await trio.to_thread.run_sync(self._clear_folder, {str(entry.name) for entry in self._ledger.parts})

    def _clear_folder(self, names: Collection[str]) -> None:
        for path in self._joining.folder.glob("*"):
            if path.name not in names and path.is_file():
                path.unlink(missing_ok=True)

    # -- the end --

    async def release(self, *, deadline_s: float) -> None:
        """Bring what is only metadata to the clouds; then give the right to write back, if everything is there: else
        nobody else should go on without it.

        Checkpoint, raises nothing of the clouds'.
        """
        publisher = self._publisher
        if publisher is None or self._refused or self._cache.statistics().dirty_bytes:
            return
        with trio.move_on_after(deadline_s, shield=True) as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._cancel_without_clouds, scope)
                await self._say_farewell(publisher)
                nursery.cancel_scope.cancel()

    async def _cancel_without_clouds(self, scope: trio.CancelScope) -> None:
        while self._has_clouds():  # noqa: ASYNC110 (health tells nobody when it changes)
            await trio.sleep(GONE_POLL_S)
        scope.cancel()

    async def _say_farewell(self, publisher: Publisher) -> None:
        try:
            # With what compaction and collection did, too: whoever goes on elsewhere builds on that.
            await self.make(bounded=True, whole=True)
            if not self.refused and not self.has_unsent():
                await publisher.catch_up(self._ledger)
                await publisher.release()
        except (CuckooError, OSError) as error:
            log.warning("the right to write was not given back: %s", error)

"""Empties clouds: nothing of the drive is left there at the end, and a listing shows it (design §3.10).

Used by drive.py, which runs it while the drive is open, and through it by commands.  For one trio loop.  That a cloud
is to be emptied is kept with the drive's list, so it goes on after a kill, a restart, or on another machine:

    draining ─▶ living packs written anew elsewhere, round by round, old ones deleted ─▶ no share row left
      ─▶ an epoch from after that is durable without this cloud ─▶ nobody asks it any more, no request is under way
      ─▶ everything below the drive's prefix is deleted, drive.json last ─▶ the listing is empty ─▶ drained

Owns: what only this cloud has is never deleted there.  Older epochs are forgotten, as they need the old packs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final, TypeVar

import trio
from attrs import asdict, evolve, frozen

from cuckoo_mount.clouds import jobs
from cuckoo_mount.clouds.base import CloudSettings
from cuckoo_mount.clouds.leftovers import remove_leftovers
from cuckoo_mount.clouds.translate import hide_secrets
from cuckoo_mount.epochs.engine import EpochEngine
from cuckoo_mount.epochs.ledger import LOCAL_EPOCH
from cuckoo_mount.errors import (
    CloudError,
    CloudNotOurs,
    CloudUnavailable,
    CuckooError,
    MetadataError,
    ReadOnly,
    UsageError,
)
from cuckoo_mount.format import drive_prefix, identity_name
from cuckoo_mount.metadata.base import Metadata
from cuckoo_mount.metadata.catalogue import USE_PREFIX
from cuckoo_mount.multi.balancing import fits_without
from cuckoo_mount.multi.multifs import MultiFS
from cuckoo_mount.multi.records import CloudEntry
from cuckoo_mount.multi.redundancy import describe_policy, parse_policy
from cuckoo_mount.multi.requests import Pool
from cuckoo_mount.packs.choosing import needed_bytes
from cuckoo_mount.packs.collecting import Collector
from cuckoo_mount.packs.moving import Mover
from cuckoo_mount.packs.writer import PackWriter
from cuckoo_mount.roster import Roster
from cuckoo_mount.types import CloudName, CloudRow, CloudUse, PackNo

T = TypeVar("T")
log = logging.getLogger(__name__)
FIRST_S: Final = 5.0
"""A drive that is only opened for a command is closed by then."""
RETRY_S: Final = 30.0
"""A drain that could not go on tries again after this, or when somebody asks."""
LOOKED_AT: Final = 1024
WAIT_POLL_S: Final = 0.2
IDLE_S: Final = 120.0
IDLE_POLL_S: Final = 0.1
LIST_DEADLINE_S: Final = 600.0
ASK_DEADLINE_S: Final = 30.0
DELETE_BATCH: Final = 100
ROUNDS_WITHOUT_GAIN: Final = 3


@frozen(slots=True, kw_only=True)
class DrainPlan:
    """What there is to do.  `packs`: living ones with a share there, of `bytes` there; `dead`: others."""

    name: str
    use: str
    packs: int
    bytes: int
    dead: int


@frozen(slots=True, kw_only=True)
class DrainProgress:
    """How far a drain is.  `packs_left`, `bytes_left`: living packs there, and their bytes.  `step`: what is done now.

    `trouble`: why it does not go on now; empty if it does.
    """

    packs_left: int
    bytes_left: int
    step: str = "moving packs"
    trouble: str = ""


class Drainer:
    """Empties the clouds that are to be emptied, one after the other.  `wake` ends its pauses."""

    def __init__(
        self,
        roster: Roster,
        metadata: Metadata,
        multifs: MultiFS,
        pool: Pool,
        writer: PackWriter,
        collector: Collector,
        engine: EpochEngine,
        *,
        drive_id: bytes,
        may_write: Callable[[], bool],
    ) -> None:
        self._roster = roster
        self._metadata = metadata
        self._multifs = multifs
        self._pool = pool
        self._writer = writer
        self._collector = collector
        self._engine = engine
        self._drive_id = drive_id
        self._may_write = may_write
        self._mover = Mover(metadata, writer, collector)
        self._progress: dict[CloudName, DrainProgress] = {}
        self._wake = trio.Event()

    # -- what commands ask --

    async def plan(self, name: str) -> DrainPlan:
        """Return what emptying a cloud means.  Checkpoint; asks the cloud whether it is there.

        Raises: UsageError (not possible, with what to do instead), CloudUnavailable (it does not answer), ReadOnly.
        """
        if not self._may_write():
            raise ReadOnly(self._engine.refused or "the drive is open for reading only; nothing is moved")
        row = await self._roster.row(name)
        load = await self._metadata.load_of(row.name)
        if row.use is not CloudUse.DRAINED:
            await self._check(row)
        return DrainPlan(name=name, use=row.use.value, packs=load.living, bytes=load.living_bytes, dead=load.dead)

    async def _check(self, row: CloudRow) -> None:
        name = row.name
        if name not in self._multifs.names:
            return  # the rest is being deleted there just now
        if row.read_only:
            raise UsageError(
                f"cloud {name!r} is read-only, so nothing can be deleted there; first: "
                f"cuckoo cloud set {name} --no-read-only"
            )
        await self._multifs.probe([name])
        if not self._multifs.is_up(name):
            why = next(cloud.last_error for cloud in self._multifs.statistics() if cloud.name == name)
            raise CloudUnavailable(
                f"cloud {name!r} does not answer, so it cannot be emptied ({why.removeprefix(f'cloud {name}: ')}).  "
                f"Is it lost for good?  Then: cuckoo cloud remove {name} (with --lost, what only it has is given up)"
            )
        if row.use is CloudUse.DRAINING:
            return
        fills = await self._metadata.pack_fills(100, 0)
        sizes = [(parse_policy(pack.policy), min(needed_bytes(pack), pack.size_bytes)) for pack in fills]
        policies = [parse_policy(self._writer.policies.default), *(policy for policy, _ in sizes)]
        policy = max(policies, key=lambda policy: policy.shares)
        others = sum(self._multifs.takes_objects(other) for other in self._multifs.names if other != name)
        if others < policy.shares:
            there = "there is 1 cloud that takes" if others == 1 else f"there are {others} clouds that take"
            need = "needs" if policy.shares == 1 else "need"
            raise UsageError(
                f"without cloud {name!r} {there} packs, {describe_policy(policy)} {need} {policy.shares}; "
                "first: cuckoo cloud add NAME URL"
            )
        shares_bytes = sum(each.share_bytes(size_bytes) * each.shares for each, size_bytes in sizes)
        stored = shares_bytes * policy.data // policy.shares
        if not fits_without(self._multifs.rooms.states(), name, policy, stored):
            raise UsageError(
                f"what is stored does not fit on the other clouds with {describe_policy(policy)}; first: "
                "cuckoo cloud add NAME URL, or delete files and run: cuckoo gc --keep 1"
            )

    async def begin(self, name: str) -> None:
        """Have a cloud emptied from now on.  Raises: UsageError, CloudError, OSError."""
        row = await self._roster.row(name)
        if row.use not in (CloudUse.DRAINING, CloudUse.DRAINED):
            await self._roster.use_as(name, CloudUse.DRAINING)
            log.info("cloud %s is being drained", name)
        self._wake.set()

    async def wait(self, name: str) -> None:
        """Return when the cloud is drained.  Raises: UsageError when that is not wanted any more, ReadOnly."""
        while (row := await self._roster.row(name)).use is not CloudUse.DRAINED:
            if row.use is not CloudUse.DRAINING:
                raise UsageError(f"cloud {name!r} is used again; nobody empties it any more")
            if not self._may_write():
                raise ReadOnly(self._engine.refused)
            await trio.sleep(WAIT_POLL_S)

    def progress(self, name: CloudName) -> dict[str, object]:
        """Return how far it is, JSON-able; all zero where nothing is known yet."""
        return asdict(self._progress.get(name, DrainProgress(packs_left=0, bytes_left=0, step="")))

    # -- the task --

    async def run(self) -> None:
        """Empty clouds until cancelled.  Raises: MetadataError."""
        pause_s = FIRST_S
        while True:
            with trio.move_on_after(pause_s):
                await self._wake.wait()
            self._wake, pause_s = trio.Event(), RETRY_S
            for row in await self._metadata.clouds():
                if row.use is CloudUse.DRAINING and self._may_write():
                    await self._drain(row.name)

    async def _drain(self, name: CloudName) -> None:
        """Empty a cloud as far as that goes now."""
        try:
            trouble = await self._empty(name)
        except (CuckooError, OSError) as error:
            if isinstance(error, MetadataError):
                raise
            trouble = str(error)
        if trouble and await self._is_draining(name):
            known = self._progress.get(name) or DrainProgress(packs_left=0, bytes_left=0)
            if trouble != known.trouble:
                log.warning("cloud %s is not emptied yet: %s", name, trouble)
            self._progress[name] = evolve(known, trouble=trouble)
            if not self._multifs.is_up(name):
                await self._multifs.probe([name])  # after a try to delete the rest nothing is known of it

    async def _is_draining(self, name: CloudName) -> bool:
        """Return whether that is still wanted."""
        rows = await self._metadata.clouds()
        return self._may_write() and any(row.name == name and row.use is CloudUse.DRAINING for row in rows)

    async def _empty(self, name: CloudName) -> str:
        """Return why it does not go on; empty when it is done, or not wanted any more."""
        left, idle_rounds = None, 0
        out: set[PackNo] = set()
        trouble = ""
        while await self._is_draining(name):
            load = await self._metadata.load_of(name)
            self._show(name, load.living, load.living_bytes)
            if not load.living and not load.dead:
                if trouble := await self._finish(name):
                    return trouble
                continue
            # Whoever writes may add to a pack there, but not a pack: the number falls, if anything goes on.
            idle_rounds = 0 if left is None or load.living + load.dead < left else idle_rounds + 1
            left = load.living + load.dead
            found = await self._metadata.living_on(name, LOOKED_AT + len(out))
            living = [number for number in found if number not in out]
            moved = await self._mover.move(living, self._noting(name), merge=True)
            await self._collector.delete_dead(self._trim)
            out |= moved.left_out
            trouble = moved.trouble or trouble
            if (moved.stopped and not moved.replaced) or (out and not living):
                return trouble
            if idle_rounds >= ROUNDS_WITHOUT_GAIN:
                return "what was moved cannot be deleted yet; do all clouds answer?"
        return ""

    async def _trim(self) -> int:
        return await self._engine.trim(1)

    def _show(self, name: CloudName, packs: int, size_bytes: int, step: str = "moving packs") -> None:
        trouble = self._progress[name].trouble if name in self._progress and step == self._progress[name].step else ""
        self._progress[name] = DrainProgress(packs_left=packs, bytes_left=size_bytes, step=step, trouble=trouble)

    def _noting(self, name: CloudName) -> Callable[[int, int], None]:
        def note(packs: int, size_bytes: int) -> None:
            known = self._progress[name]
            self._progress[name] = evolve(
                known,
                packs_left=max(0, known.packs_left - packs),
                bytes_left=max(0, known.bytes_left - size_bytes),
                trouble="",
            )

        return note

    # -- the end --

    async def _finish(self, name: CloudName) -> str:
        """Delete the rest, when nothing of it is needed any more; return why not."""
        self._show(name, 0, 0, "deleting the rest")
        # What was begun before the cloud got nothing new may still come.
        await self._writer.wait_until_quiet()
        if not await self._is_elsewhere(name):
            return "names and attributes are not on enough other clouds yet"
        if not self._multifs.is_up(name):
            await self._multifs.probe([name])
        async with self._roster.lock:
            load = await self._metadata.load_of(name)
            if load.living or load.dead or not await self._is_draining(name):
                return ""  # something came late, or it is not wanted any more
            row = next(row for row in await self._metadata.clouds() if row.name == name)
            if not self._multifs.is_up(name) and not await self._roster.slots.is_swept(name):
                return f"cloud {name} does not answer"
            await self._sweep(row)
        log.info("cloud %s is drained: nothing of the drive is left there", name)
        return ""

    async def _is_elsewhere(self, name: CloudName) -> bool:
        """Make an epoch; return whether it is durable on clouds that get epochs, of which this one is none."""
        async with self._roster.lock:  # while nobody uses the cloud in another way
            if not await self._is_draining(name):
                return False
            number = int(await self._metadata.get_local(LOCAL_EPOCH) or "0")
            # A change, even though nothing changes: so there is something to make an epoch of.
            await self._metadata.set_setting(f"{USE_PREFIX}{name}", CloudUse.DRAINING.value)
        await self._engine.trim(1)
        return (self._engine.status().cloud or 0) >= number

    async def _sweep(self, row: CloudRow) -> None:
        """Delete everything of the drive there; on an error the cloud is used as before.  The roster's lock is held."""
        entry = self._roster.set_apart_locked(row)
        try:
            with trio.fail_after(IDLE_S):
                while not self._multifs.is_idle(row.name):  # noqa: ASYNC110 (nobody tells when a request ends)
                    await trio.sleep(IDLE_POLL_S)
            self._engine.forget_cloud(row.name)
            await self._delete_all(row, entry)
            with trio.CancelScope(shield=True):
                await self._roster.note_drained_locked(row)
        except BaseException as error:  # cancellation, too
            self._engine.forget_cloud(row.name)
            self._roster.use_again_locked(row, entry)
            if isinstance(error, trio.TooSlowError):
                raise CloudUnavailable("requests are still under way", cloud=row.name) from None
            if isinstance(error, CloudError):
                raise type(error)(hide_secrets(error.message, entry.settings), cloud=row.name) from None
            raise

    async def _delete_all(self, row: CloudRow, entry: CloudEntry) -> None:
        settings, prefix, identity = entry.settings, drive_prefix(self._drive_id), identity_name(self._drive_id)
        found = await self._ask(jobs.find_identity, settings, self._drive_id, deadline_s=ASK_DEADLINE_S)
        if found != row.cloud_id and not (found is None and await self._roster.slots.is_swept(row.name)):
            raise CloudNotOurs("its drive.json is not there; is the right disk mounted?", cloud=row.name)
        await self._roster.slots.note_swept(row.name)
        names = sorted(await self._list(settings, prefix) - {identity})
        for start in range(0, len(names), DELETE_BATCH):
            batch = names[start : start + DELETE_BATCH]
            await self._ask(jobs.delete_many, settings, batch, deadline_s=ASK_DEADLINE_S + len(batch))
        await self._ask(jobs.delete_many, settings, [identity], deadline_s=ASK_DEADLINE_S)
        if left := await self._list(settings, prefix):
            raise CloudUnavailable(f"{len(left)} objects are still there, such as {min(left)}", cloud=row.name)
        if trouble := await self._pool.run(remove_leftovers, settings, self._drive_id, deadline_s=ASK_DEADLINE_S):
            log.warning("cloud %s has no objects any more, but folders: %s", row.name, trouble)

    async def _ask(self, job: Callable[..., T], *args: object, deadline_s: float) -> T:
        return await self._pool.run(job, *args, deadline_s=deadline_s)

    async def _list(self, settings: CloudSettings, prefix: str) -> set[str]:
        found = await self._ask(jobs.list_objects, settings, prefix, deadline_s=LIST_DEADLINE_S)
        return {item.name for item in found}

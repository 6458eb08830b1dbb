"""A drive, built from the bottom up and taken down from the top.

Used by the daemon, by commands on a drive that is not mounted, and by tests.  `open_drive` is the only place that
knows all layers.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Final

import trio
from attrs import asdict, frozen

from cuckoo_mount.cache.chunkcache import ChunkCache, open_session
from cuckoo_mount.config import DriveConfig, DrivePaths
from cuckoo_mount.draining import Drainer
from cuckoo_mount.epochs.engine import EpochEngine
from cuckoo_mount.epochs.joining import Joining
from cuckoo_mount.errors import ReadOnly
from cuckoo_mount.fsck import DriveChecker
from cuckoo_mount.housekeeping import Housekeeper
from cuckoo_mount.insisting import send_all_insisting
from cuckoo_mount.layers.keys import DriveKeys
from cuckoo_mount.metadata.base import Metadata
from cuckoo_mount.multi.health import USABLE, Condition, Health
from cuckoo_mount.multi.multifs import MultiFS
from cuckoo_mount.multi.policies import Policies
from cuckoo_mount.multi.redundancy import parse_policy
from cuckoo_mount.packs.collecting import Collected, Collector
from cuckoo_mount.packs.reader import PackReader
from cuckoo_mount.packs.repacking import is_repacking, load_policies
from cuckoo_mount.packs.writer import PackWriter
from cuckoo_mount.parted.durability import Durability
from cuckoo_mount.parted.partedfs import PartedFS
from cuckoo_mount.parted.redundancy import Redundancy
from cuckoo_mount.preparing import (
    EPOCHS_FOLDER,
    MEETING_S,
    WRITING,
    Terms,
    cache_limits,
    join_clouds,
    known_clouds,
    open_metadata,
    read_ledger,
    settled_config,
)
from cuckoo_mount.rebalancing import Rebalancer
from cuckoo_mount.roster import Roster
from cuckoo_mount.rules import Rules, cloud_room, clouds_wanted, places_of, space_left
from cuckoo_mount.scrubbing import DriveScrubber, open_scrubber
from cuckoo_mount.slots import DriveSlots
from cuckoo_mount.workers import WorkerPool, open_worker_pool

log = logging.getLogger(__name__)
FAREWELL_S: Final = 10.0
"""How long giving the right to write back may take."""
METADATA_FILE: Final = "metadata.sqlite"


@frozen(slots=True)
class Pending:
    """What is not yet on the clouds.  `changes`: rows of metadata that are in no epoch on any cloud."""

    files: int
    chunks: int
    bytes: int
    changes: int


class Drive:
    """One open drive."""

    def __init__(
        self,
        roster: Roster,
        slots: DriveSlots,
        metadata: Metadata,
        multifs: MultiFS,
        cache: ChunkCache,
        filesystem: PartedFS,
        housekeeper: Housekeeper,
        collector: Collector,
        engine: EpochEngine,
        scrubber: DriveScrubber,
        checker: DriveChecker,
        rules: Rules,
        terms: Terms,
        pool: WorkerPool,
        writer: PackWriter,
    ) -> None:
        self.roster: Final = roster
        self.scrubber: Final = scrubber
        self.checker: Final = checker
        self.slots: Final = slots
        self.rules: Final = rules
        self.filesystem: Final = filesystem
        self._metadata = metadata
        self._multifs = multifs
        self._cache = cache
        self._housekeeper = housekeeper
        self._engine = engine
        self._terms = terms
        self.drainer: Final = Drainer(
            roster,
            metadata,
            multifs,
            pool,
            writer,
            collector,
            engine,
            drive_id=roster.config.drive_id,
            may_write=self._may_write,
        )
        self.rebalancer: Final = Rebalancer(metadata, multifs, writer, collector, engine, may_write=self._may_write)

    @property
    def config(self) -> DriveConfig:
        """The configuration as it is now: commands change its list of clouds."""
        return self.roster.config

    async def send_all(self) -> None:
        """Return when everything written before this call is on clouds and in an epoch; waits as long as that takes.

        Where fewer clouds are up than make an epoch durable, those are enough: `pending` says so.
        Raises: ReadOnly when another machine has taken the drive over.
        """
        if self._terms.writing:
            await self._engine.send_all()

    def pending(self) -> Pending:
        """Return what is not yet on the clouds; nothing of a view of an older epoch ever will be."""
        if self._terms.epoch is not None:
            return Pending(0, 0, 0, 0)
        held, cache = self._metadata.statistics(), self._cache.statistics()
        files = max(held.dirty_files, cache.pending_files)
        return Pending(files, held.dirty_chunks, held.dirty_bytes + cache.pending_bytes, self._engine.status().changes)

    def epoch(self) -> dict[str, object]:
        """Return `epoch` of `status --json`: `local` is the newest one made, `cloud` the newest durable one."""
        status = self._engine.status()
        if self._terms.epoch is not None:
            # What a view makes for itself is not meant for the clouds.
            return {"local": status.cloud, "cloud": status.cloud, "age_s": status.age_s}
        return {"local": status.local, "cloud": status.cloud, "age_s": status.age_s}

    @property
    def read_only_reason(self) -> str:
        """Why nothing can be written any more, though it was opened for writing; empty: it can."""
        return self._engine.refused

    def troubles(self) -> list[dict[str, str]]:
        """Return the clouds that are not well, as `name`, `state`, `error`; JSON-able, without secrets."""
        return [
            {"name": cloud.name, "state": cloud.state, "error": cloud.last_error}
            for cloud in self._multifs.statistics()
            if cloud.state != Condition.OK.value
        ]

    async def degraded_packs(self) -> int:
        """Return how many packs have fewer shares than their policy wants."""
        return await self._metadata.degraded_packs()

    async def retry_clouds(self) -> None:
        """Ask every cloud that is not up now, whatever its backoff says; if one is back, send to it at once.

        For when somebody waits.  One request per cloud.  Checkpoint, raises nothing.
        """
        doubtful = [name for name in self._multifs.names if not self._multifs.is_up(name)]
        await self._multifs.probe(doubtful)
        if any(self._multifs.is_up(name) for name in doubtful):
            self._cache.retry_sending()

    def _state(self) -> str:
        good = [Condition(cloud.state) in USABLE for cloud in self._multifs.statistics()]
        if not self._terms.writing or self._engine.refused:
            return "read-only"
        if not any(good):
            return "offline"
        return "ok" if all(good) else "degraded"

    async def status(self) -> dict[str, object]:
        """Return the drive's part of `status --json`; never waits for a cloud."""
        held, cache = self._metadata.statistics(), self._cache.statistics()
        await self._housekeeper.correct_usage()
        degraded = await self._metadata.degraded_packs()
        return {
            "drive": self.config.name,
            **self.rules.status(),
            "state": "degraded" if degraded and self._state() == "ok" else self._state(),
            "pending": asdict(self.pending()),
            "epoch": self.epoch(),
            "read_only_reason": self._engine.refused,
            "cache": {
                "bytes": cache.used_bytes,
                "limit_bytes": cache.limit_bytes,
                "dirty_bytes": cache.dirty_bytes + cache.pending_bytes,
                "hits": cache.hits,
                "misses": cache.misses,
                "prefetched": cache.prefetched,
                "prefetch_hits": cache.prefetch_hits,
                "evicted_bytes": cache.evicted_bytes,
                "checkpoints": cache.checkpoints,
                "packs_sent": cache.packs_sent,
                "last_error": cache.last_error,
            },
            "clouds": [asdict(cloud) for cloud in (*self._multifs.statistics(), *self.roster.apart())],
            "packs": {
                "count": held.packs,
                "live_bytes": held.pack_live_bytes,
                "stored_bytes": held.pack_stored_bytes,
                "degraded": degraded,
                "healing": asdict(self._housekeeper.healing(degraded)),
                "repacking": await is_repacking(self._metadata),
            },
            "space": await self._space(),
            "files": held.inodes,
            "scrub": await self.scrubber.last(),
            "recovery_key_shown": self._terms.epoch is not None or await self.slots.recovery_key_shown(),
        }

    async def _space(self) -> dict[str, int]:
        space = await self.filesystem.space()
        return {"total_bytes": space.total_bytes, "free_bytes": space.free_bytes}

    async def check_invariants(self) -> list[str]:
        """Return one line per violated invariant; empty when all hold."""
        return await self._cache.check_invariants()

    async def evict_all(self) -> int:
        """Give back all clean chunks; return how many bytes that were."""
        total = 0
        while freed := await self._cache.evict(1 << 40):
            total += freed
        return total

    def check_writable(self) -> None:
        """Raises: ReadOnly where nothing may be changed."""
        if not self._may_write():
            raise ReadOnly(self._engine.refused or "the drive is open for reading only; nothing was done")

    def _may_write(self) -> bool:
        return self._terms.writing and not self._engine.refused

    async def collect(self, *, keep: int | None = None, thorough: bool = True) -> Collected:
        """Delete what is dead and compact what is mostly dead; see `Housekeeper.collect`.

        Raises: ReadOnly, MetadataError.
        """
        return await self._housekeeper.collect(keep=keep, thorough=thorough)


@asynccontextmanager
async def open_drive(
    config: DriveConfig, paths: DrivePaths, drive_key: bytes, terms: Terms = WRITING
) -> AsyncIterator[Drive]:
    """Open a drive, made on first use, and run its background tasks; at the end all is safe on the local disk.

    First it is compared with its clouds, and brought up to date.  Clouds that do not answer are a state, not an error:
    the drive works from what is here.
    Raises: ConfigurationError (also: in use elsewhere, changed here and elsewhere), WrongKey, MetadataError, OSError.
    """
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(open_worker_pool())
        keys, policies = DriveKeys(drive_key), Policies(config.redundancy)
        multifs = MultiFS(
            await known_clouds(config, paths, pool),
            pool,
            Health(),
            config.drive_id,
            share_bytes=parse_policy(policies.default).share_bytes(config.pack_size_bytes),
        )
        joining = Joining(
            clouds=multifs,
            keys=keys,
            drive_id=config.drive_id,
            state_folder=paths.state,
            folder=paths.state / EPOCHS_FOLDER,
            encrypted=config.encrypted,
            wanted=partial(clouds_wanted, multifs, policies),
            drive_name=config.name,
        )
        joined = await join_clouds(joining, multifs, config, paths, terms)
        metadata = await open_metadata(config, paths)
        stack.push_async_callback(metadata.aclose)
        config = await settled_config(config, metadata)
        slots = DriveSlots(metadata, config.drive_id, drive_key)
        await slots.ensure_recovery()
        policies.set_default(config.redundancy)
        await load_policies(metadata, policies)
        ticks = await open_session(metadata, state_folder=paths.state, cache_folder=paths.cache)
        multifs.rooms.set_usage(await metadata.cloud_usage())
        writer = PackWriter(
            metadata,
            multifs,
            pool,
            keys,
            paths.state / "staging",
            drive_id=config.drive_id,
            encrypted=config.encrypted,
            policies=policies,
            pack_size_bytes=config.pack_size_bytes,
        )
        roster = Roster(config, paths, metadata, multifs, pool, writer, keys=keys, load_slots=slots.objects)
        reader = PackReader(
            metadata, multifs, keys, config.drive_id, encrypted=config.encrypted, deadline_s=config.deadline_s
        )
        await _meet_clouds(roster, multifs, terms)
        if terms.writing:
            await writer.recover()
        cache = ChunkCache(
            metadata,
            reader,
            writer,
            state_folder=paths.state,
            cache_folder=paths.cache,
            limits=cache_limits(config, paths, metadata),
            digest=keys.chunk_digest,
            ticks=ticks,
            cloud_room=partial(cloud_room, multifs, policies),
        )
        durability = Durability(metadata, lambda: send_all_insisting(drive), deadline_s=config.deadline_s)
        await durability.load()
        filesystem = PartedFS(
            metadata,
            cache,
            space=partial(space_left, cache),
            redundancy=Redundancy(metadata, policies, partial(places_of, multifs)),
            durability=durability,
            deadline_s=config.deadline_s,
        )
        collector = Collector(
            metadata,
            multifs,
            writer,
            reader,
            drive_id=config.drive_id,
            moved=cache.note_moved,
            is_idle=lambda: not metadata.statistics().dirty_chunks,
            heal_rate_bytes=config.heal_rate_bytes,
        )
        ledger, oldest = await read_ledger(metadata)
        engine = EpochEngine(
            metadata, cache, joining, ledger, joined, oldest=oldest, refuse=partial(_refuse, filesystem, cache)
        )
        if not terms.writing:
            # Not even an access time may move: a change of its own would keep this copy from following the clouds.
            _refuse(filesystem, cache, "it is mounted read-only")
        housekeeper = Housekeeper(roster, metadata, multifs, cache, collector, engine, writing=terms.writing)
        scrubber = open_scrubber(
            *(metadata, multifs, reader, collector, joining, engine, roster.slots), writing=terms.writing
        )
        checker = DriveChecker(metadata, multifs, cache, filesystem, scrubber, config.drive_id, paths.state)
        rules = Rules(metadata, multifs, roster, policies, durability)
        parts = (roster, slots, metadata, multifs, cache, filesystem, housekeeper, collector, engine, scrubber)
        drive = Drive(*parts, checker, rules, terms, pool, writer)
        async with cache.running(), trio.open_nursery() as nursery:
            nursery.start_soon(housekeeper.run)
            if terms.writing:
                nursery.start_soon(engine.run)
                nursery.start_soon(drive.drainer.run)
            try:
                yield drive
            finally:
                await engine.release(deadline_s=FAREWELL_S)
                nursery.cancel_scope.cancel()


def _refuse(filesystem: PartedFS, cache: ChunkCache, reason: str) -> None:
    filesystem.refuse_writes(reason)
    cache.stop_sending()


async def _meet_clouds(roster: Roster, multifs: MultiFS, terms: Terms) -> None:
    """Look which clouds are there, for a short while: whoever comes later is met by the housekeeping."""
    await roster.load(writing=terms.writing)
    with trio.move_on_after(MEETING_S) as scope:
        await multifs.probe([cloud.name for cloud in multifs.statistics() if cloud.state == Condition.UNKNOWN.value])
        if terms.writing:
            await roster.sign_new()
        await multifs.refresh_space()
    if scope.cancelled_caught:
        log.warning("not every cloud answered within %.0f s; the drive starts without them", MEETING_S)

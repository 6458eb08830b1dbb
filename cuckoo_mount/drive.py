"""A drive, built from the bottom up and taken down from the top.

Used by the daemon, by commands on a drive that is not mounted, and by tests.  `open_drive` is the only place that
knows all layers.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

import trio
from attrs import asdict, evolve, frozen

from cuckoo_mount.cache.chunkcache import ChunkCache, open_session
from cuckoo_mount.cache.pressure import CacheLimits
from cuckoo_mount.config import DriveConfig, DrivePaths
from cuckoo_mount.errors import ConfigurationError
from cuckoo_mount.layers.keys import DriveKeys
from cuckoo_mount.metadata.base import Metadata
from cuckoo_mount.metadata.store import create_store, open_store
from cuckoo_mount.multi.health import Condition, Health
from cuckoo_mount.multi.multifs import MultiFS
from cuckoo_mount.multi.redundancy import format_policy, parse_policy
from cuckoo_mount.packs.collecting import Collected, Collector
from cuckoo_mount.packs.reader import PackReader
from cuckoo_mount.packs.writer import PackWriter
from cuckoo_mount.parted.partedfs import PartedFS, SpaceLeft
from cuckoo_mount.roster import Roster
from cuckoo_mount.slots import DriveSlots
from cuckoo_mount.workers import open_worker_pool

log = logging.getLogger(__name__)
HOUSEKEEPING_S: Final = 60.0
MEETING_S: Final = 10.0
"""How long a mount waits for clouds before it starts from what is here."""
METADATA_FILE: Final = "metadata.sqlite"


@frozen(slots=True)
class Pending:
    """What is not yet on the clouds."""

    files: int
    chunks: int
    bytes: int


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
        collector: Collector,
    ) -> None:
        self.roster: Final = roster
        self.slots: Final = slots
        self.filesystem: Final = filesystem
        self._metadata = metadata
        self._multifs = multifs
        self._cache = cache
        self._collector = collector

    @property
    def config(self) -> DriveConfig:
        """The configuration as it is now: commands change its list of clouds."""
        return self.roster.config

    async def send_all(self) -> None:
        """Return when everything written before this call is on clouds; waits as long as that takes."""
        await self._cache.send_all()

    def pending(self) -> Pending:
        """Return what is not yet on the clouds."""
        held, cache = self._metadata.statistics(), self._cache.statistics()
        files = max(held.dirty_files, cache.pending_files)
        return Pending(files, held.dirty_chunks, held.dirty_bytes + cache.pending_bytes)

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
        conditions = [cloud.state for cloud in self._multifs.statistics()]
        good = [condition == Condition.OK.value for condition in conditions]
        if not any(good):
            return "offline"
        return "ok" if all(good) else "degraded"

    async def status(self) -> dict[str, object]:
        """Return the drive's part of `status --json`; never waits for a cloud."""
        held, cache = self._metadata.statistics(), self._cache.statistics()
        self._multifs.set_usage(await self._metadata.cloud_usage())
        degraded = await self._metadata.degraded_packs()
        return {
            "drive": self.config.name,
            "redundancy": self.config.redundancy,
            "state": "degraded" if degraded and self._state() == "ok" else self._state(),
            "pending": asdict(self.pending()),
            # Epochs come with the release that puts metadata on the clouds; until then nothing of it is there.
            "epoch": {"local": 0, "cloud": None, "age_s": None},
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
            "clouds": [asdict(cloud) for cloud in self._multifs.statistics()],
            "packs": {
                "count": held.packs,
                "live_bytes": held.pack_live_bytes,
                "stored_bytes": held.pack_stored_bytes,
                "degraded": degraded,
            },
            "files": held.inodes,
            "recovery_key_shown": await self.slots.recovery_key_shown(),
        }

    async def check_invariants(self) -> list[str]:
        """Return one line per violated invariant; empty when all hold."""
        return await self._cache.check_invariants()

    async def evict_all(self) -> int:
        """Give back all clean chunks; return how many bytes that were."""
        total = 0
        while freed := await self._cache.evict(1 << 40):
            total += freed
        return total

    async def run_housekeeping(self) -> None:
        """Look after the clouds and delete dead packs, until cancelled.

        An idle drive makes at most one request per minute and cloud, and mostly none (multi/multifs.py).
        """
        while True:
            await trio.sleep(HOUSEKEEPING_S)
            await self._multifs.look_after()
            await self.roster.sign_new()
            await self.collect(thorough=False)

    async def collect(self, *, keep: int | None = None, thorough: bool = True) -> Collected:
        """Delete what is dead and compact what is mostly dead; see `Collector.collect`.

        `keep`: how many epochs stay readable.  There are no epochs yet, so that nothing is kept for them.
        """
        collected = await self._collector.collect(oldest_kept_epoch=None, thorough=thorough)
        if collected.packs_deleted or collected.packs_compacted:
            log.info("collected: %s", collected)
        return collected


@asynccontextmanager
async def open_drive(config: DriveConfig, paths: DrivePaths, drive_key: bytes) -> AsyncIterator[Drive]:
    """Open a drive, made on first use, and run its background tasks; at the end all is safe on the local disk.

    Clouds that do not answer are a state, not an error: the drive works from what is here.
    Raises: ConfigurationError, WrongKey, MetadataError, OSError.
    """
    async with AsyncExitStack() as stack:
        metadata = await _open_metadata(config, paths)
        stack.push_async_callback(metadata.aclose)
        config = await _settled(config, metadata)
        slots = DriveSlots(metadata, config.drive_id, drive_key)
        await slots.ensure_recovery()
        policy = parse_policy(config.redundancy)
        ticks = await open_session(metadata, state_folder=paths.state, cache_folder=paths.cache)
        pool = await stack.enter_async_context(open_worker_pool())
        multifs = MultiFS({}, pool, Health(), config.drive_id, usage=await metadata.cloud_usage())
        keys = DriveKeys(drive_key)
        writer = PackWriter(
            metadata,
            multifs,
            pool,
            keys,
            paths.state / "staging",
            drive_id=config.drive_id,
            encrypted=config.encrypted,
            policy=format_policy(policy),
            pack_size_bytes=config.pack_size_bytes,
        )
        roster = Roster(config, paths, metadata, multifs, pool, writer, load_slots=slots.objects)
        reader = PackReader(
            metadata, multifs, keys, config.drive_id, encrypted=config.encrypted, deadline_s=config.deadline_s
        )
        await _meet_clouds(roster, multifs)
        await writer.recover()
        cache = ChunkCache(
            metadata,
            reader,
            writer,
            state_folder=paths.state,
            cache_folder=paths.cache,
            limits=_limits(config, paths, metadata),
            digest=keys.chunk_digest,
            ticks=ticks,
        )
        filesystem = PartedFS(metadata, cache, space=_space_of(multifs, policy.shares), deadline_s=config.deadline_s)
        collector = Collector(
            metadata,
            multifs,
            writer,
            reader,
            drive_id=config.drive_id,
            moved=cache.note_moved,
            is_idle=lambda: not metadata.statistics().dirty_chunks,
        )
        drive = Drive(roster, slots, metadata, multifs, cache, filesystem, collector)
        async with cache.running(), trio.open_nursery() as nursery:
            nursery.start_soon(drive.run_housekeeping)
            try:
                yield drive
            finally:
                nursery.cancel_scope.cancel()


async def _meet_clouds(roster: Roster, multifs: MultiFS) -> None:
    """Look which clouds are there, for a short while: whoever comes later is met by the housekeeping."""
    await roster.load()
    with trio.move_on_after(MEETING_S) as scope:
        await multifs.probe()
        await roster.sign_new()
        await multifs.refresh_space()
    if scope.cancelled_caught:
        log.warning("not every cloud answered within %.0f s; the drive starts without them", MEETING_S)


async def _open_metadata(config: DriveConfig, paths: DrivePaths) -> Metadata:
    path = paths.state / METADATA_FILE
    if path.exists():
        metadata = await open_store(path)
    else:
        paths.state.mkdir(parents=True, exist_ok=True, mode=0o700)
        metadata = await create_store(path, uid=os.getuid(), gid=os.getgid(), now_ns=time.time_ns())
    known = await metadata.get_setting("drive_id")
    if known is None:
        for key, value in _settings_of(config).items():
            await metadata.set_setting(key, value)
        await metadata.make_durable()
    elif known != config.drive_id.hex():
        await metadata.aclose()
        raise ConfigurationError(
            f"{paths.config_file} is about drive {config.drive_id.hex()}, {path} about {known}; "
            "put back the file that belongs to the other"
        )
    return metadata


def _settings_of(config: DriveConfig) -> dict[str, str]:
    return {
        "drive_id": config.drive_id.hex(),
        "redundancy": config.redundancy,
        "encryption": "aes-256-gcm" if config.encrypted else "none",
    }


async def _settled(config: DriveConfig, metadata: Metadata) -> DriveConfig:
    """Return the configuration with what belongs to the drive as the drive itself has it (design §4)."""
    redundancy = await metadata.get_setting("redundancy") or config.redundancy
    if parse_policy(redundancy) != parse_policy(config.redundancy):
        log.warning(
            "redundancy %s in the configuration file has no effect: the drive has %s", config.redundancy, redundancy
        )
    encrypted = await metadata.get_setting("encryption") != "none"
    if encrypted != config.encrypted:
        log.warning("`encrypted` in the configuration file has no effect: it was decided when the drive was made")
    return evolve(config, redundancy=redundancy, encrypted=encrypted)


def _limits(config: DriveConfig, paths: DrivePaths, metadata: Metadata) -> CacheLimits:
    """Return the cache's limits: as configured, and at most half of what is free besides what is held already."""
    status = os.statvfs(paths.state)
    held = metadata.statistics()
    free = status.f_bavail * status.f_frsize
    share = held.dirty_bytes + held.clean_bytes + free // 2
    limit = max(16 << 20, min(config.cache_limit_bytes, share))
    return CacheLimits(limit_bytes=limit, floor_bytes=min(256 << 20, free // 4))


def _space_of(multifs: MultiFS, copies: int) -> Callable[[], Awaitable[SpaceLeft]]:
    async def space() -> SpaceLeft:
        room = await multifs.free_space(copies)
        return SpaceLeft(room.total_bytes, room.free_bytes)

    return space

"""A drive, built from the bottom up and taken down from the top.

Used by the daemon, by commands on a drive that is not mounted, and by tests.  `open_drive` is the only place that
knows all layers.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

import trio
from attrs import asdict, frozen

from cuckoo_mount.cache.chunkcache import ChunkCache, open_session
from cuckoo_mount.cache.pressure import CacheLimits
from cuckoo_mount.clouds import jobs
from cuckoo_mount.clouds.base import CloudSettings
from cuckoo_mount.config import CloudConfig, DriveConfig, DrivePaths
from cuckoo_mount.errors import CloudError, ConfigurationError
from cuckoo_mount.layers.keys import DriveKeys
from cuckoo_mount.metadata.base import Metadata
from cuckoo_mount.metadata.store import create_store, open_store
from cuckoo_mount.multi.health import Condition, Health
from cuckoo_mount.multi.multifs import MultiFS
from cuckoo_mount.multi.records import entry_of
from cuckoo_mount.packs.garbage import collect_garbage
from cuckoo_mount.packs.reader import PackReader
from cuckoo_mount.packs.writer import PackWriter
from cuckoo_mount.parted.partedfs import PartedFS, SpaceLeft
from cuckoo_mount.types import CloudName, CloudRow
from cuckoo_mount.workers import WorkerPool, open_worker_pool

log = logging.getLogger(__name__)
HOUSEKEEPING_S: Final = 60.0
IDENTITY_DEADLINE_S: Final = 30.0
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
        self, config: DriveConfig, metadata: Metadata, multifs: MultiFS, cache: ChunkCache, filesystem: PartedFS
    ) -> None:
        self.config: Final = config
        self.filesystem: Final = filesystem
        self._metadata = metadata
        self._multifs = multifs
        self._cache = cache

    async def send_all(self) -> None:
        """Return when everything written before this call is on clouds; waits as long as that takes."""
        await self._cache.send_all()

    def pending(self) -> Pending:
        """Return what is not yet on the clouds."""
        held, cache = self._metadata.statistics(), self._cache.statistics()
        files = max(held.dirty_files, cache.pending_files)
        return Pending(files, held.dirty_chunks, held.dirty_bytes + cache.pending_bytes)

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
        return {
            "drive": self.config.name,
            "redundancy": self.config.redundancy,
            "state": self._state(),
            "pending": asdict(self.pending()),
            # Epochs come with the release that puts metadata on the clouds; until then nothing of it is there.
            "epoch": {"local": 0, "cloud": None, "age_s": None},
            "cache": {
                "bytes": cache.used_bytes,
                "limit_bytes": cache.limit_bytes,
                "dirty_bytes": cache.dirty_bytes + cache.pending_bytes,
                "hits": cache.hits,
                "misses": cache.misses,
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
                "degraded": 0,
            },
            "files": held.inodes,
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
        """Probe the clouds and delete dead packs, one request per minute and cloud at most, until cancelled."""
        while True:
            await trio.sleep(HOUSEKEEPING_S)
            if self._state() != "ok":
                await self._multifs.probe()
            await self._multifs.refresh_space()
            await self.collect()

    async def collect(self) -> None:
        """Delete dead packs."""
        collected = await collect_garbage(self._metadata, self._multifs)
        if collected.packs:
            log.info("%d packs without live chunks deleted, %d bytes", collected.packs, collected.freed_bytes)


@asynccontextmanager
async def open_drive(config: DriveConfig, paths: DrivePaths, drive_key: bytes) -> AsyncIterator[Drive]:
    """Open a drive, made on first use, and run its background tasks; at the end all is safe on the local disk.

    Clouds that do not answer are a state, not an error: the drive works from what is here.
    Raises: ConfigurationError, MetadataError, OSError.
    """
    async with AsyncExitStack() as stack:
        metadata = await _open_metadata(config, paths)
        stack.push_async_callback(metadata.aclose)
        ticks = await open_session(metadata, state_folder=paths.state, cache_folder=paths.cache)
        pool = await stack.enter_async_context(open_worker_pool())
        rows = [_cloud_row(cloud) for cloud in config.clouds]
        settings = {CloudName(cloud.name): _cloud_settings(cloud) for cloud in config.clouds}
        await _sign_clouds(metadata, pool, config, rows, settings)
        entries = {row.name: entry_of(row, settings[row.name]) for row in rows}
        health = Health()
        multifs = MultiFS(entries, pool, health, config.drive_id, usage=await metadata.cloud_usage())
        keys = DriveKeys(drive_key)
        writer = PackWriter(
            metadata, multifs, pool, keys, paths.state / "staging", drive_id=config.drive_id, encrypted=config.encrypted
        )
        reader = PackReader(
            metadata, multifs, keys, config.drive_id, encrypted=config.encrypted, deadline_s=config.deadline_s
        )
        await multifs.probe()
        await multifs.refresh_space()
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
        filesystem = PartedFS(metadata, cache, space=_space_of(multifs), deadline_s=config.deadline_s)
        drive = Drive(config, metadata, multifs, cache, filesystem)
        async with cache.running(), trio.open_nursery() as nursery:
            nursery.start_soon(drive.run_housekeeping)
            try:
                yield drive
            finally:
                nursery.cancel_scope.cancel()


async def _open_metadata(config: DriveConfig, paths: DrivePaths) -> Metadata:
    path = paths.state / METADATA_FILE
    if path.exists():
        metadata = await open_store(path)
    else:
        paths.state.mkdir(parents=True, exist_ok=True, mode=0o700)
        metadata = await create_store(path, uid=os.getuid(), gid=os.getgid(), now_ns=time.time_ns())
    known = await metadata.get_setting("drive_id")
    if known is None:
        await metadata.set_setting("drive_id", config.drive_id.hex())
        await metadata.set_setting("redundancy", config.redundancy)
        await metadata.set_setting("encryption", "aes-256-gcm" if config.encrypted else "none")
        await metadata.make_durable()
    elif known != config.drive_id.hex():
        await metadata.aclose()
        raise ConfigurationError(
            f"{paths.config_file} is about drive {config.drive_id.hex()}, {path} about {known}; "
            "put back the file that belongs to the other"
        )
    return metadata


def _cloud_settings(cloud: CloudConfig) -> CloudSettings:
    return CloudSettings(name=cloud.name, url=cloud.url, options=cloud.options, secrets=cloud.secrets)


def _cloud_row(cloud: CloudConfig) -> CloudRow:
    return CloudRow(
        name=CloudName(cloud.name),
        cloud_id=cloud.cloud_id,
        url=cloud.url,
        capacity_bytes=cloud.capacity_bytes,
        reserve_bytes=cloud.reserve_bytes,
        group=cloud.group,
        read_only=cloud.read_only,
    )


async def _sign_clouds(
    metadata: Metadata,
    pool: WorkerPool,
    config: DriveConfig,
    rows: Sequence[CloudRow],
    settings: Mapping[CloudName, CloudSettings],
) -> None:
    """Write drive.json to clouds that are new to the drive, and only to those: a lost one must stay missed."""
    known = {cloud.name for cloud in await metadata.clouds()}
    for row in rows:
        if row.name in known:
            continue
        try:
            await pool.run(
                jobs.write_identity,
                settings[row.name],
                config.drive_id,
                row.cloud_id,
                deadline_s=IDENTITY_DEADLINE_S,
            )
        except CloudError as error:
            log.warning("%s; it is left out until the next mount", error)
            continue
        await metadata.put_cloud(row)
        await metadata.make_durable()


def _limits(config: DriveConfig, paths: DrivePaths, metadata: Metadata) -> CacheLimits:
    """Return the cache's limits: as configured, and at most half of what is free besides what is held already."""
    status = os.statvfs(paths.state)
    held = metadata.statistics()
    free = status.f_bavail * status.f_frsize
    share = held.dirty_bytes + held.clean_bytes + free // 2
    limit = max(16 << 20, min(config.cache_limit_bytes, share))
    return CacheLimits(limit_bytes=limit, floor_bytes=min(256 << 20, free // 4))


def _space_of(multifs: MultiFS) -> Callable[[], Awaitable[SpaceLeft]]:
    async def space() -> SpaceLeft:
        room = await multifs.free_space()
        return SpaceLeft(room.total_bytes, room.free_bytes)

    return space

"""A drive's lower half in one process, without FUSE and without worker processes: for tests of cache and parted.

Everything is real (SQLite, local files, packs, a folder as cloud) but the pool, which runs jobs in threads of this
process and can be held, so that a test can act while a pack is being sealed or stored.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import trio
from attrs import define, field

from cuckoo_mount.cache.chunkcache import ChunkCache, open_session
from cuckoo_mount.cache.pressure import CacheLimits
from cuckoo_mount.clouds.base import CloudSettings
from cuckoo_mount.clouds.identity import write_identity
from cuckoo_mount.clouds.registry import open_cloud
from cuckoo_mount.layers.keys import DriveKeys
from cuckoo_mount.metadata.store import SqliteMetadata, create_store, open_store
from cuckoo_mount.multi.health import Health
from cuckoo_mount.multi.multifs import MultiFS
from cuckoo_mount.multi.records import CloudEntry
from cuckoo_mount.packs.collecting import Collector
from cuckoo_mount.packs.reader import PackReader
from cuckoo_mount.packs.writer import PackWriter
from cuckoo_mount.parted.durability import Durability
from cuckoo_mount.parted.partedfs import PartedFS, SpaceLeft
from cuckoo_mount.parted.redundancy import Redundancy
from cuckoo_mount.types import PACK_SIZE_BYTES, CloudName

T = TypeVar("T")


class _Crash(Exception):
    """Ends `opened` without saving."""


def _copy_sparse(source: str, target: str) -> None:
    subprocess.run(["cp", "--sparse=always", source, target], check=True)


@define(eq=False)
class HeldPool:
    """A pool whose jobs wait while `hold` was called; runs them in threads."""

    _open: trio.Event = field(factory=trio.Event)
    _held: tuple[str, ...] = ()
    waiting: int = 0

    def __attrs_post_init__(self) -> None:
        self._open.set()

    def hold(self, *jobs: str) -> None:
        """Let no more jobs start, or none of these functions."""
        self._held = jobs
        if self._open.is_set():
            self._open = trio.Event()

    def let_go(self) -> None:
        """Start what waits."""
        self._open.set()

    async def run(
        self,
        function: Callable[..., T],
        *args: object,
        deadline_s: float,
        started: Callable[[], object] = lambda: None,
    ) -> T:
        """Return function(*args), run in a thread.  Checkpoint."""
        if not self._held or function.__name__ in self._held:
            self.waiting += 1
            try:
                await self._open.wait()
            finally:
                self.waiting -= 1
        started()
        return await trio.to_thread.run_sync(function, *args)


@define(eq=False)
class Rig:
    """What the tests act on."""

    metadata: SqliteMetadata
    cache: ChunkCache
    filesystem: PartedFS
    reader: PackReader
    multifs: MultiFS
    pool: HeldPool
    writer: PackWriter
    collector: Collector


@define(eq=False)
class RigPlace:
    """Folders and keys of a drive that is opened several times.

    `fault_plan`: file with what its cloud does wrong (testing/faulty.py), for tests that set CUCKOO_TESTING=1.
    """

    root: Path
    drive_id: bytes = field(factory=lambda: secrets.token_bytes(16))
    cloud_id: bytes = field(factory=lambda: secrets.token_bytes(16))
    drive_key: bytes = field(factory=lambda: secrets.token_bytes(32))
    other_cache_folder: Path | None = None
    pack_size_bytes: int = PACK_SIZE_BYTES
    fault_plan: Path | None = None

    @property
    def cloud_folder(self) -> Path:
        """Where the packs go."""
        return self.root / "cloud"

    @property
    def state_folder(self) -> Path:
        """Metadata and everything unsent."""
        return self.root / "state"

    @property
    def cache_folder(self) -> Path:
        """Clean chunks."""
        return self.other_cache_folder or self.root / "cache"

    @asynccontextmanager
    async def opened(self, limits: CacheLimits, *, crash: bool = False) -> AsyncIterator[Rig]:
        """Open the drive.  `crash`: at the end nothing is saved, as after kill -9."""
        options = () if self.fault_plan is None else (("fault.plan", str(self.fault_plan)),)
        settings = CloudSettings(name="local", url=str(self.cloud_folder), options=options)
        metadata = await self._metadata(settings)
        ticks = await open_session(metadata, state_folder=self.state_folder, cache_folder=self.cache_folder)
        pool, keys = HeldPool(), DriveKeys(self.drive_key)
        entry = CloudEntry(settings=settings, cloud_id=self.cloud_id)
        multifs = MultiFS({CloudName("local"): entry}, pool, Health(), self.drive_id)
        multifs.rooms.set_usage(await metadata.cloud_usage())
        await multifs.probe()
        staging = self.root / "state" / "staging"
        writer = PackWriter(
            metadata,
            multifs,
            pool,
            keys,
            staging,
            drive_id=self.drive_id,
            encrypted=True,
            pack_size_bytes=self.pack_size_bytes,
        )
        await writer.recover()
        reader = PackReader(metadata, multifs, keys, self.drive_id, encrypted=True)
        cache = ChunkCache(
            metadata,
            reader,
            writer,
            state_folder=self.state_folder,
            cache_folder=self.cache_folder,
            limits=limits,
            digest=keys.chunk_digest,
            ticks=ticks,
        )

        async def space() -> SpaceLeft:
            await trio.lowlevel.checkpoint()
            return SpaceLeft(1 << 40, 1 << 39)

        collector = Collector(
            metadata,
            multifs,
            writer,
            reader,
            drive_id=self.drive_id,
            moved=cache.note_moved,
            is_idle=lambda: not metadata.statistics().dirty_chunks,
        )
        filesystem = PartedFS(
            metadata,
            cache,
            space=space,
            redundancy=Redundancy(metadata, writer.policies, lambda: 1),
            durability=Durability(metadata, cache.send_all, deadline_s=60),
        )
        rig = Rig(metadata, cache, filesystem, reader, multifs, pool, writer, collector)
        try:
            async with cache.running():
                try:
                    yield rig
                    if crash:
                        raise _Crash
                finally:
                    pool.let_go()
        except* _Crash:
            self._keep_as_killed()
        finally:
            await metadata.aclose()
        if crash:
            shutil.rmtree(self.state_folder)
            os.rename(self._killed_folder, self.state_folder)

    @property
    def _killed_folder(self) -> Path:
        return self.root / "killed"

    def _keep_as_killed(self) -> None:
        """Copy what a kill would leave: the files as they are, with the database's log, before anything is closed."""
        shutil.copytree(self.state_folder, self._killed_folder, copy_function=_copy_sparse)

    async def _metadata(self, settings: CloudSettings) -> SqliteMetadata:
        path = self.state_folder / "metadata.sqlite"
        if path.exists():
            return await open_store(path)
        for folder in (self.state_folder, self.cloud_folder):
            folder.mkdir(parents=True)
        cloud = open_cloud(settings)
        await trio.to_thread.run_sync(write_identity, cloud, self.drive_id, self.cloud_id)
        return await create_store(path, uid=0, gid=0, now_ns=1)

"""A drive over several clouds, mounted or opened in this process, and its clouds from outside.

Used by all of tests/pool.  `Place` is a cloud as whoever runs it sees it: every object by name and bytes, through the
drive's own driver but without the drive; tests count, damage and delete there.  `PoolMount` is tests/mount's `Mount`
with these clouds.  `opened` opens the same drive in this process, with its worker processes and without FUSE, where a
test wants no kernel cache between itself and the clouds.
"""

from __future__ import annotations

import os
import secrets
import shutil
import sqlite3
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Final

import trio
from attrs import evolve, frozen

from cuckoo_mount.clouds.base import CloudSettings
from cuckoo_mount.clouds.registry import FAULT_PLAN, open_cloud
from cuckoo_mount.config import CloudConfig, DriveConfig, parse_size, read_config, read_drive_key, write_config
from cuckoo_mount.config.keys import write_drive_key
from cuckoo_mount.drive import METADATA_FILE, Drive, open_drive
from cuckoo_mount.format import identity_name, pack_share_name
from cuckoo_mount.parted.tree import Caller
from cuckoo_mount.preparing import WRITING, Terms
from cuckoo_mount.types import ROOT_INODE, InodeNo
from tests.mount.mounting import DEADLINE_S, Mount

ME: Final = Caller(os.getuid(), os.getgid())
READ_BYTES: Final = 1 << 20


@frozen
class Place:
    """One cloud from outside.  `config`: as the drive knows it; `outside`: as the test opens it."""

    config: CloudConfig
    outside: CloudSettings

    @property
    def name(self) -> str:
        """The cloud's name."""
        return self.config.name

    @property
    def plan(self) -> str:
        """Path of its fault plan (see testing/faulty.py)."""
        return dict(self.config.options)[FAULT_PLAN]

    def sizes(self) -> dict[str, int]:
        """Return the size of every object of every drive."""
        return {found.name: found.size_bytes for found in open_cloud(self.outside).list("")}

    def packs(self) -> dict[str, int]:
        """Return the size of every object below packs/."""
        return {name: size_bytes for name, size_bytes in self.sizes().items() if "/packs/" in name}

    def used_bytes(self) -> int:
        """Return the bytes of all packs."""
        return sum(self.packs().values())

    def read(self, name: str) -> bytes:
        """Return an object's bytes."""
        return open_cloud(self.outside).get(name)

    def write(self, name: str, data: bytes) -> None:
        """Replace an object."""
        cloud = open_cloud(self.outside)
        cloud.delete(name)
        cloud.put(name, data)

    def delete(self, name: str) -> None:
        """Delete an object."""
        open_cloud(self.outside).delete(name)

    def wipe(self) -> int:
        """Delete every object, drive.json included; return how many there were."""
        names = list(self.sizes())
        for name in names:
            self.delete(name)
        return len(names)


def folder_place(root: Path, name: str, *, capacity: str | None = None, group: str = "") -> Place:
    """Make a folder below `root` that is to be a cloud; it has a fault plan, which does nothing until written."""
    folder = root / name
    folder.mkdir(parents=True)
    config = CloudConfig(
        name=name,
        url=str(folder),
        cloud_id=secrets.token_bytes(16),
        capacity_bytes=None if capacity is None else parse_size(capacity),
        group=group,
        options=((FAULT_PLAN, str(root / f"{name}.plan")),),
    )
    return Place(config, CloudSettings(name=f"{name} from outside", url=str(folder)))


def hide(places: Sequence[Place]) -> None:
    """Take the folders of these clouds away."""
    for place in places:
        Path(place.config.url).rename(f"{place.config.url}.away")


def bring_back(places: Sequence[Place]) -> None:
    """Put back what `hide` took away."""
    for place in places:
        Path(f"{place.config.url}.away").rename(place.config.url)


class PoolMount(Mount):
    """A drive over `places`, not yet mounted."""

    def __init__(
        self, folder: Path, places: Sequence[Place], *, redundancy: str = "none", deadline_s: float = DEADLINE_S
    ) -> None:
        super().__init__(folder, deadline_s=deadline_s)
        self.places: Final = tuple(places)
        self.redundancy: Final = redundancy

    def configure(self, *, cache_limit: str | None = None) -> DriveConfig:
        """As `Mount.configure`, with our clouds and redundancy."""
        config = read_config(self.paths)
        if config is None:
            self.paths.config_file.parent.mkdir(parents=True, exist_ok=True)
            write_drive_key(self.paths.key_file, secrets.token_bytes(32))
            config = DriveConfig(
                name=self.drive,
                drive_id=secrets.token_bytes(16),
                redundancy=self.redundancy,
                clouds=tuple(place.config for place in self.places),
            )
            write_config(config, self.paths)
        if cache_limit is not None:
            config = evolve(config, cache_limit_bytes=parse_size(cache_limit))
            write_config(config, self.paths)
        return config

    def place(self, name: str) -> Place:
        """Return the cloud of that name."""
        return next(place for place in self.places if place.name == name)

    def delete_cache(self) -> None:
        """Delete the cache folder; the drive is not mounted."""
        assert not self.is_running
        shutil.rmtree(self.paths.cache)

    def identity(self) -> str:
        """Return the name of drive.json."""
        return identity_name(self.configure().drive_id)

    @asynccontextmanager
    async def opened(self, terms: Terms = WRITING) -> AsyncIterator[OpenedDrive]:
        """Open the drive in this process."""
        config = self.configure()
        key = read_drive_key(self.paths.key_file)
        async with open_drive(config, self.paths, key, terms) as drive:
            yield OpenedDrive(drive)


class OpenedDrive:
    """A drive opened in this process; its files by their names in the root directory."""

    def __init__(self, drive: Drive) -> None:
        self.drive: Final = drive
        self._files = drive.filesystem

    async def write(self, name: str, data: bytes) -> None:
        """Make or replace a file."""
        if name in await self.names():
            handle = await self._files.open(await self._ino(name), os.O_WRONLY | os.O_TRUNC)
        else:
            handle, _ = await self._files.create(ROOT_INODE, name.encode(), 0o644, ME)
        try:
            for start in range(0, len(data), READ_BYTES):
                await self._files.write(handle, start, data[start : start + READ_BYTES])
        finally:
            await self._files.release(handle)

    async def read(self, name: str) -> bytes:
        """Return a file's bytes."""
        handle = await self._files.open(await self._ino(name), os.O_RDONLY)
        try:
            found = bytearray()
            while part := await self._files.read(handle, len(found), READ_BYTES):
                found += part
            return bytes(found)
        finally:
            await self._files.release(handle)

    async def unlink(self, name: str) -> None:
        """Remove a file."""
        await self._files.tree.unlink(ROOT_INODE, name.encode())

    async def names(self) -> list[str]:
        """Return the names in the root directory."""
        return [entry.name.decode() for entry in await self._files.tree.entries(ROOT_INODE, 2, 1 << 20)]

    async def sync(self) -> None:
        """Return when everything is on the clouds."""
        with trio.fail_after(60):
            await self.drive.send_all()

    async def last_error(self, cloud: str) -> str:
        """Return what `status` says went wrong last with a cloud."""
        clouds = (await self.drive.status())["clouds"]
        assert isinstance(clouds, list)
        return next(str(known["last_error"]) for known in clouds if known["name"] == cloud)

    async def evict(self) -> None:
        """Let nothing clean stay here."""
        await self.drive.evict_all()

    async def _ino(self, name: str) -> InodeNo:
        return (await self._files.tree.lookup(ROOT_INODE, name.encode())).ino


def walk(folder: Path) -> Iterator[Path]:
    """Yield every file below a folder, sorted."""
    for path, folders, files in os.walk(folder):
        folders.sort()
        yield from (Path(path, name) for name in sorted(files))


@frozen
class Inventory:
    """What lies on the clouds compared with what the drive's metadata says, as "cloud object".

    `orphans`: stored, and no pack row, intent or stray explains it.  `dangling`: a share of a pack that lives, and
    nothing stored (a dead pack's shares may be deleted before its row goes).  `intents`: packs begun and not finished.
    `strays`: clouds to be cleared of a failed upload's object.  `single`: living packs with fewer than 2 share rows.
    """

    orphans: list[str]
    dangling: list[str]
    intents: int
    strays: int
    single: int
    live_bytes: int
    stored_bytes: int


def take_inventory(mount: PoolMount) -> Inventory:
    """Compare every cloud with the metadata of a drive that is not mounted; the tables are those of docs/format.md."""
    assert not mount.is_running
    drive_id = mount.configure().drive_id
    stored = {(place.name, name) for place in mount.places for name in place.sizes() if "/packs/" in name}
    with closing(sqlite3.connect(mount.paths.state / METADATA_FILE)) as database:
        rows = database.execute(
            "SELECT s.cloud, p.pack_id, s.share, p.dead_epoch IS NULL FROM share s JOIN pack p ON p.number = s.pack"
        ).fetchall()
        known = {(cloud, pack_share_name(drive_id, pack_id, share)) for cloud, pack_id, share, _ in rows}
        alive = {(cloud, pack_share_name(drive_id, pack_id, share)) for cloud, pack_id, share, lives in rows if lives}
        intents = {pack_id.hex() for (pack_id,) in database.execute("SELECT pack_id FROM pack_intent")}
        strays = {(cloud, pack_id.hex()) for pack_id, cloud in database.execute("SELECT pack_id, cloud FROM stray")}
        (single,) = database.execute(
            "SELECT count(*) FROM pack p WHERE dead_epoch IS NULL AND"
            " (SELECT count(*) FROM share s WHERE s.pack = p.number) < 2"
        ).fetchone()
        (live_bytes,) = database.execute("SELECT coalesce(sum(live), 0) FROM pack").fetchone()
    return Inventory(
        orphans=sorted(
            f"{cloud} {name}"
            for cloud, name in stored - known
            if _pack_of(name) not in intents and (cloud, _pack_of(name)) not in strays
        ),
        dangling=sorted(f"{cloud} {name}" for cloud, name in alive - stored),
        intents=len(intents),
        strays=len(strays),
        single=single,
        live_bytes=live_bytes,
        stored_bytes=sum(place.used_bytes() for place in mount.places),
    )


def _pack_of(name: str) -> str:
    return name.rpartition("/")[2].partition(".")[0]

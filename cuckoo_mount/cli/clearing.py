"""What a drive has on its clouds and on this machine, and taking it away for good.

Used by destroy.py, which holds the drive's lock.  Needs neither the drive key nor the metadata, so that a destruction
that was killed can be repeated.  The order it keeps: on each cloud drive.json goes last, after a note on the local
disk; the configuration file, which names the clouds, goes after everything else.  Only what lies below
`cuckoo/<drive id>/` is ever listed or deleted.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import trio
from attrs import define, field

from cuckoo_mount.cli.common import innermost
from cuckoo_mount.clouds import jobs
from cuckoo_mount.clouds.base import CloudSettings, ObjectInfo
from cuckoo_mount.clouds.leftovers import remove_leftovers
from cuckoo_mount.clouds.translate import hide_secrets
from cuckoo_mount.config import CloudConfig, DriveConfig, DrivePaths, shown
from cuckoo_mount.config.atomic import write_private_file
from cuckoo_mount.config.making import DEFAULT_CLOUD
from cuckoo_mount.config.secrets import resolve_secrets
from cuckoo_mount.errors import CuckooError, MetadataError
from cuckoo_mount.format import drive_prefix, identity_name
from cuckoo_mount.metadata.peek import peek_clouds
from cuckoo_mount.metadata.store import open_store
from cuckoo_mount.types import CloudUse
from cuckoo_mount.workers import WorkerPool, open_worker_pool

T = TypeVar("T")

NOTES_FILE: Final = "destroying.json"
"""In the state folder: the clouds whose drive.json was about to be deleted, so that its absence is no riddle."""
ASK_DEADLINE_S: Final = 30.0
LIST_DEADLINE_S: Final = 600.0
DELETE_BATCH: Final = 100
BATCHES_AT_ONCE: Final = 4
_DELETE_ONE_S: Final = 5.0


@define(slots=True, eq=False, kw_only=True)
class CloudContent:
    """What one cloud has of the drive.  `trouble`: why that cannot be known or deleted; empty if it can.

    `deleted`: objects that are gone.
    """

    name: str
    url: str
    settings: CloudSettings | None = field(default=None, repr=False)
    objects: list[ObjectInfo] = field(factory=list, repr=False)
    trouble: str = ""
    deleted: int = 0

    @property
    def size_bytes(self) -> int:
        """Bytes of all objects."""
        return sum(found.size_bytes for found in self.objects)


def look_at_clouds(config: DriveConfig, paths: DrivePaths) -> list[CloudContent]:
    """Return what lies on each of the drive's clouds.  Blocks; a cloud that does not answer is no error."""
    return _run(partial(_look_at_all, config, paths))


def _run(main: Callable[[], Awaitable[T]]) -> T:
    """Run a loop.  Raises: what `main` does, not wrapped."""
    try:
        return trio.run(main)
    except BaseExceptionGroup as group:
        raise innermost(group) from group


async def _look_at_all(config: DriveConfig, paths: DrivePaths) -> list[CloudContent]:
    noted, drained = read_notes(paths), await trio.to_thread.run_sync(_drained, paths)
    clouds = [cloud for cloud in config.clouds if cloud.name not in drained]
    contents = [CloudContent(name=cloud.name, url=_shown_url(cloud)) for cloud in clouds]
    async with open_worker_pool() as pool, trio.open_nursery() as nursery:
        for cloud, content in zip(clouds, contents, strict=True):
            nursery.start_soon(_look, pool, config, cloud, content, cloud.name in noted)
    return contents + await _only_in_metadata(config, paths)


def _drained(paths: DrivePaths) -> set[str]:
    """Return the clouds on which nothing is left, as a drain has shown; none where the metadata cannot be read."""
    try:
        return {name for name, use in peek_clouds(paths.metadata).items() if use is CloudUse.DRAINED}
    except MetadataError:
        return set()


async def _only_in_metadata(config: DriveConfig, paths: DrivePaths) -> list[CloudContent]:
    """Return the clouds that the drive's own list has and the configuration file has lost."""
    known = {cloud.name for cloud in config.clouds}
    trouble = f"is not in {shown(paths.config_file)}; put its section back there"
    try:
        metadata = await open_store(paths.metadata)
    except MetadataError:
        return []  # lost, damaged, or deleted by an earlier destruction: what is in the file is all that is known
    try:
        rows = [row for row in await metadata.clouds() if row.name not in known]
    finally:
        await metadata.aclose()
    return [CloudContent(name=row.name, url=row.url, trouble=trouble) for row in rows]


async def _look(pool: WorkerPool, config: DriveConfig, cloud: CloudConfig, content: CloudContent, noted: bool) -> None:
    if cloud.read_only:
        content.trouble = f"is read-only; to have it emptied: cuckoo cloud set {cloud.name} --no-read-only"
        return
    try:
        secrets = await trio.to_thread.run_sync(resolve_secrets, config.name, cloud)
        settings = CloudSettings(name=cloud.name, url=cloud.url, options=cloud.options, secrets=secrets)
        found = await pool.run(jobs.find_identity, settings, config.drive_id, deadline_s=ASK_DEADLINE_S)
        prefix = drive_prefix(config.drive_id)
        objects = await pool.run(jobs.list_objects, settings, prefix, deadline_s=LIST_DEADLINE_S)
    except CuckooError as error:
        content.trouble = _bare(error, cloud)
        return
    content.settings = settings
    # drive.json last: while it is there, what else is there is known to be ours.
    identity = identity_name(config.drive_id)
    content.objects = sorted(objects, key=lambda info: (info.name == identity, info.name))
    if found is None and not objects and not noted:
        content.trouble = "nothing of this drive is there; is it the right disk or bucket?"


def _bare(error: CuckooError, cloud: CloudConfig) -> str:
    return str(error).removeprefix(f"cloud {cloud.name}: ")


def _shown_url(cloud: CloudConfig) -> str:
    return hide_secrets(cloud.url, CloudSettings(name=cloud.name, url=cloud.url))


def delete_from_clouds(
    contents: Sequence[CloudContent], config: DriveConfig, paths: DrivePaths, progress: Callable[[int], None]
) -> None:
    """Delete what `look_at_clouds` found on the clouds without trouble; what fails is their `trouble` afterwards.

    `progress` is called with numbers of objects.  Blocks.  Raises: OSError of the local disk.
    """
    _run(partial(_delete_all, contents, config, paths, progress))


async def _delete_all(
    contents: Sequence[CloudContent], config: DriveConfig, paths: DrivePaths, progress: Callable[[int], None]
) -> None:
    async with open_worker_pool() as pool, trio.open_nursery() as nursery:
        for content in contents:
            if not content.trouble:
                nursery.start_soon(_empty_cloud, pool, content, config, paths, progress)


async def _empty_cloud(
    pool: WorkerPool, content: CloudContent, config: DriveConfig, paths: DrivePaths, progress: Callable[[int], None]
) -> None:
    identity = identity_name(config.drive_id)
    names = [found.name for found in content.objects if found.name != identity]
    limiter = trio.CapacityLimiter(BATCHES_AT_ONCE)

    async def delete(batch: Sequence[str]) -> None:
        assert content.settings is not None, "a cloud without trouble was opened"
        deadline_s = ASK_DEADLINE_S + _DELETE_ONE_S * len(batch)
        async with limiter:
            if content.trouble:
                return  # another batch failed: so would this one
            try:
                await pool.run(jobs.delete_many, content.settings, list(batch), deadline_s=deadline_s)
            except CuckooError as error:
                content.trouble = str(error).removeprefix(f"cloud {content.name}: ")
                return
        content.deleted += len(batch)
        progress(len(batch))

    await _all_of([partial(delete, names[at : at + DELETE_BATCH]) for at in range(0, len(names), DELETE_BATCH)])
    if content.trouble:
        return
    note_cloud(paths, content.name)
    await delete([identity])  # also where no listing shows it: some storages list late
    if not content.trouble:
        assert content.settings is not None, "as above"
        content.deleted = len(content.objects)
        content.trouble = await trio.to_thread.run_sync(remove_leftovers, content.settings, config.drive_id)


async def _all_of(calls: Sequence[Callable[[], Awaitable[None]]]) -> None:
    async with trio.open_nursery() as nursery:
        for call in calls:
            nursery.start_soon(call)


def read_notes(paths: DrivePaths) -> frozenset[str]:
    """Return the clouds that an earlier destruction has emptied."""
    try:
        names = json.loads((paths.state / NOTES_FILE).read_bytes())
    except (OSError, ValueError):
        return frozenset()
    return frozenset(names) if isinstance(names, list) else frozenset()


def note_cloud(paths: DrivePaths, name: str) -> None:
    """Remember that a cloud has nothing but its drive.json any more.  Raises: OSError."""
    names = sorted(read_notes(paths) | {name})
    write_private_file(paths.state / NOTES_FILE, json.dumps(names).encode("ascii"), replace=True)


def local_places(paths: DrivePaths) -> list[tuple[Path, int]]:
    """Return the drive's files and folders on this machine that are there, with the bytes they take on the disk."""
    places = (paths.state, paths.cache, paths.key_file, paths.config_file)
    return [(place, _disk_bytes(place)) for place in places if os.path.lexists(place)]


def _disk_bytes(place: Path) -> int:
    total = 0
    for path in [place, *(place.rglob("*") if place.is_dir() else ())]:
        with suppress(FileNotFoundError):
            total += path.lstat().st_blocks * 512
    return total


def delete_local(paths: DrivePaths) -> list[str]:
    """Delete everything of the drive on this machine but clouds; return what could not be, one line each.

    The configuration file goes after all else but the lock that we hold, so that this can be repeated.
    """
    left: list[str] = []

    def attempt(action: Callable[[], object], place: Path) -> None:
        try:
            action()
        except FileNotFoundError:
            return
        except OSError as error:
            left.append(f"{shown(place)}: {error.strerror}")

    notes = paths.state / NOTES_FILE
    for entry in sorted(paths.state.iterdir()) if paths.state.is_dir() else []:
        if entry not in (paths.lock, notes):
            attempt(partial(shutil.rmtree, entry) if _is_folder(entry) else entry.unlink, entry)
    attempt(partial(shutil.rmtree, paths.cache), paths.cache)
    # The default cloud's folder, where nothing is left in it; with --keep-clouds there is.
    for folder in (paths.data / DEFAULT_CLOUD, paths.data):
        with suppress(OSError):
            folder.rmdir()
    attempt(paths.socket.unlink, paths.socket)
    attempt(paths.key_file.unlink, paths.key_file)
    if left:
        return left
    attempt(paths.config_file.unlink, paths.config_file)
    for file in (notes, paths.lock):
        attempt(file.unlink, file)
    attempt(paths.state.rmdir, paths.state)
    return left


def _is_folder(entry: Path) -> bool:
    return entry.is_dir() and not entry.is_symlink()

"""What happens before a drive's store is opened: it is compared with the clouds and brought up to date.

Used by drive.py.  The store is closed meanwhile; nobody else has it, as the caller holds the drive's lock.
"""

from __future__ import annotations

import logging
import os
import time
from contextlib import ExitStack
from functools import partial
from typing import Final

import trio
from attrs import evolve, frozen

from cuckoo_mount.cache.pressure import CacheLimits
from cuckoo_mount.clouds import jobs
from cuckoo_mount.cloudsettings import NOTED_PREFIX, row_of, settings_of
from cuckoo_mount.config import CloudConfig, DriveConfig, DrivePaths
from cuckoo_mount.config.secrets import resolve_secrets
from cuckoo_mount.epochs.engine import OLDEST
from cuckoo_mount.epochs.joining import Joined, Joining, OwnCopy
from cuckoo_mount.epochs.ledger import LOCAL_EPOCH, Ledger, from_local
from cuckoo_mount.errors import ConfigurationError
from cuckoo_mount.metadata.base import Metadata
from cuckoo_mount.metadata.peek import peek_clouds, peek_local, peek_own_changes
from cuckoo_mount.metadata.replay import build_store, catch_up, rebuild_store
from cuckoo_mount.metadata.store import create_store, open_store
from cuckoo_mount.multi.health import UP, Condition
from cuckoo_mount.multi.multifs import MultiFS
from cuckoo_mount.multi.records import CloudEntry, entry_of
from cuckoo_mount.multi.redundancy import parse_policy
from cuckoo_mount.multi.requests import Pool, gather
from cuckoo_mount.slotcopies import SIGNED_PREFIX, SWEPT_PREFIX
from cuckoo_mount.slots import RECOVERY_KEY_SHOWN
from cuckoo_mount.types import CloudName, CloudRow, CloudUse

log = logging.getLogger(__name__)
MEETING_S: Final = 10.0
"""How long a mount waits for clouds before it starts from what is here."""
EPOCHS_FOLDER: Final = "epochs"
_KEPT_LOCALS: Final = (SIGNED_PREFIX, SWEPT_PREFIX, NOTED_PREFIX, RECOVERY_KEY_SHOWN)


@frozen(slots=True, kw_only=True)
class Terms:
    """How a drive is to be opened.

    `writing`: else nothing of it is changed, neither here nor on the clouds.  `take_over`: also if another machine has
    the right to write, or went on differently.  `epoch`: show the drive as it was then; not for writing.
    """

    writing: bool = True
    take_over: bool = False
    epoch: int | None = None


WRITING: Final = Terms()


async def cloud_entry(drive: str, row: CloudRow, cloud: CloudConfig) -> CloudEntry:
    """Return the cloud for the MultiFS, with its secrets, or with why they cannot be had.  Checkpoint."""
    try:
        secrets = await trio.to_thread.run_sync(resolve_secrets, drive, cloud)
    except ConfigurationError as error:
        return entry_of(row, settings_of(cloud, {}), trouble=str(error).removeprefix(f"cloud {cloud.name}: "))
    return entry_of(row, settings_of(cloud, dict(secrets)))


async def known_clouds(config: DriveConfig, paths: DrivePaths, pool: Pool) -> dict[CloudName, CloudEntry]:
    """Return the clouds that can be asked before the drive is opened: those of the file that are on the drive's list.

    Where there is no list here, those that have this drive's drive.json, or do not answer.  Checkpoint.
    """
    entries = {CloudName(cloud.name): await cloud_entry(config.name, row_of(cloud), cloud) for cloud in config.clouds}
    if paths.metadata.exists():
        listed = await trio.to_thread.run_sync(peek_clouds, paths.metadata)
        listed = {name: use for name, use in listed.items() if use is not CloudUse.DRAINED}
        return {name: evolve(entry, use=listed[name]) for name, entry in entries.items() if name in listed}
    found = await gather([partial(_find_identity, pool, entry, config.drive_id) for entry in entries.values()])
    return {name: entry for (name, entry), known in zip(entries.items(), found, strict=True) if known is not None}


async def _find_identity(pool: Pool, entry: CloudEntry, drive_id: bytes) -> bytes | None:
    return await pool.run(jobs.find_identity, entry.settings, drive_id, deadline_s=MEETING_S)


async def join_clouds(
    joining: Joining, multifs: MultiFS, config: DriveConfig, paths: DrivePaths, terms: Terms
) -> Joined:
    """Meet the clouds, compare them with the closed store, and bring that up to date.  Checkpoint.

    Raises: ConfigurationError (in use, forked, nothing here and nobody answers; each says what to do), MetadataError,
    DataUnavailable, OSError.
    """
    with trio.move_on_after(MEETING_S) as scope:
        await multifs.probe()
    if scope.cancelled_caught:
        log.warning("not every cloud answered within %.0f s; the drive starts without them", MEETING_S)
    paths.state.mkdir(parents=True, exist_ok=True, mode=0o700)
    own = await trio.to_thread.run_sync(_own_copy, paths)
    if terms.epoch is not None:
        joined = await joining.view(terms.epoch)
    else:
        joined = await joining.join(own, writing=terms.writing, take_over=terms.take_over)
    if joined.behind:
        await _bring_up_to_date(joining, joined, own, paths)
    elif not own.exists and len(multifs.names) == len(config.clouds):
        _check_new(multifs, paths)  # no place said that it is new to the drive
    return joined


def _own_copy(paths: DrivePaths) -> OwnCopy:
    if not paths.metadata.exists():
        return OwnCopy()
    changes, catalogue_changes = peek_own_changes(paths.metadata)
    ledger = from_local(peek_local(paths.metadata, "epoch."))
    return OwnCopy(exists=True, ledger=ledger, changes=changes, catalogue_changes=catalogue_changes)


async def _bring_up_to_date(joining: Joining, joined: Joined, own: OwnCopy, paths: DrivePaths) -> None:
    tip = joined.behind[-1]
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(tip.header.time_ns / 1e9))
    log.info("this machine is at epoch %d; going on to epoch %d of %s", own.ledger.epoch, tip.name.epoch, when)
    ledger = joined.ledger(own.ledger, joining.wanted())
    try:
        await trio.to_thread.run_sync(partial(_replay, joined, ledger, own, paths))
    except BaseException:
        if joined.holder is not None:
            with trio.move_on_after(5, shield=True):
                await joined.holder.release(joined.found.listings)
        raise


def _replay(joined: Joined, ledger: Ledger, own: OwnCopy, paths: DrivePaths) -> None:
    epoch = joined.behind[-1].name.epoch
    local = {key: value for key, value in ledger.as_local().items() if value is not None}
    local[LOCAL_EPOCH] = str(epoch + 1)
    with ExitStack() as stack:
        parts = [stack.enter_context(joined.search.open(part)).records() for part in joined.behind]
        if not own.exists:
            build_store(paths.metadata, parts, epoch=epoch, local=local)
        elif joined.rebuild:
            for prefix in _KEPT_LOCALS:
                local |= peek_local(paths.metadata, prefix)
            rebuild_store(paths.metadata, parts, epoch=epoch, local=local)
        else:
            catch_up(paths.metadata, parts, epoch=epoch, local=local)


def _check_new(multifs: MultiFS, paths: DrivePaths) -> None:
    """Raises: ConfigurationError when the state is gone, and with it perhaps a drive, and no cloud says so."""
    states = {cloud.name: cloud for cloud in multifs.statistics()}
    if states and all(cloud.state not in _ANSWERS for cloud in states.values()):
        why = "; ".join(f"cloud {name}: {cloud.last_error or cloud.state}" for name, cloud in states.items())
        raise ConfigurationError(
            f"{paths.metadata} is not here and no cloud answers, so that nothing is known of the drive ({why}).  "
            "Mount when one of them answers, or put the state folder back from a backup"
        )


_ANSWERS: Final = frozenset(condition.value for condition in (*UP, Condition.NOT_OURS))


async def open_metadata(config: DriveConfig, paths: DrivePaths) -> Metadata:
    """Open the drive's store, made if there is none.  Raises: ConfigurationError (another drive's), MetadataError."""
    if paths.metadata.exists():
        metadata = await open_store(paths.metadata)
    else:
        metadata = await create_store(paths.metadata, uid=os.getuid(), gid=os.getgid(), now_ns=time.time_ns())
    known = await metadata.get_setting("drive_id")
    if known is None:
        for key, value in _settings_of(config).items():
            await metadata.set_setting(key, value)
        await metadata.make_durable()
    elif known != config.drive_id.hex():
        await metadata.aclose()
        raise ConfigurationError(
            f"{paths.config_file} is about drive {config.drive_id.hex()}, {paths.metadata} about {known}; "
            "put back the file that belongs to the other"
        )
    return metadata


async def read_ledger(metadata: Metadata) -> tuple[Ledger, int]:
    """Return what the store knows of its epochs, and the oldest that counts.  Raises: MetadataError."""
    settings = await metadata.local_settings("epoch.")
    return from_local(settings), int(settings.get(OLDEST, "0"))


async def settled_config(config: DriveConfig, metadata: Metadata) -> DriveConfig:
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


def _settings_of(config: DriveConfig) -> dict[str, str]:
    return {
        "drive_id": config.drive_id.hex(),
        "redundancy": config.redundancy,
        "encryption": "aes-256-gcm" if config.encrypted else "none",
        "pack_size": str(config.pack_size_bytes),
    }


def view_config(config: DriveConfig, name: str) -> DriveConfig:
    """Return the configuration of a view of the drive, which is a drive of its own to this machine."""
    return evolve(config, name=name, mountpoint=None)


def cache_limits(config: DriveConfig, paths: DrivePaths, metadata: Metadata) -> CacheLimits:
    """Return the cache's limits: as configured, and at most half of what is free besides what is held already."""
    status = os.statvfs(paths.state)
    held = metadata.statistics()
    free = status.f_bavail * status.f_frsize
    share = held.dirty_bytes + held.clean_bytes + free // 2
    limit = max(16 << 20, min(config.cache_limit_bytes, share))
    return CacheLimits(limit_bytes=limit, floor_bytes=min(256 << 20, free // 4))

"""What the cache does at mount, before the first request: bring the local files in line with the metadata.

Used by chunkcache.py.  Loop only; after a clean unmount it costs a directory listing of the state folder.
Repairs what docs/concurrency.md, "Crash table", leaves to the mount.  Invariants: I-4, I-13, I-19.
"""

from __future__ import annotations

import logging
import os
import secrets
from pathlib import Path
from typing import Final

import trio

from cuckoo_mount.cache.files import LocalFiles
from cuckoo_mount.clock import Moment
from cuckoo_mount.errors import StaleInode
from cuckoo_mount.metadata.base import Metadata
from cuckoo_mount.types import InodeNo

log = logging.getLogger(__name__)
_MARKER: Final = "cuckoo-cache-id"
_BOOT_SHIFT: Final = 40
_BATCH: Final = 200


async def begin_session(metadata: Metadata, cache_folder: Path) -> tuple[int, int]:
    """Return (boot_tick, unverified_tick) for this mount and record that it began; durable when this returns.

    Ticks of a mount are above those of every mount before.  Older ticks are unverified when the machine was booted
    since a
    mount that did not end cleanly, and when the cache folder is not the one that the metadata last saw (one
    of the two was restored from a backup).
    """
    session = int(await metadata.get_local("session") or 0) + 1
    boot_id = Moment.now().boot_id
    was_clean = await metadata.get_local("clean") != "0"
    rebooted = await metadata.get_local("boot_id") != boot_id
    unverified = int(await metadata.get_local("unverified_tick") or 0)
    marker = cache_folder / _MARKER
    left = _read_text(marker)
    strange = session > 1 and left != "" and left != await metadata.get_local("cache_id")
    if strange or (rebooted and not was_clean):
        unverified = session << _BOOT_SHIFT
        log.warning("the drive was not left in order: cached chunks are verified at their first use")
    cache_id = secrets.token_hex(8)
    for key, value in (
        ("session", str(session)),
        ("boot_id", boot_id),
        ("clean", "0"),
        ("unverified_tick", str(unverified)),
        ("cache_id", cache_id),
    ):
        await metadata.set_local(key, value)
    await metadata.make_durable()
    _write_text(marker, cache_id)
    return (session << _BOOT_SHIFT) + 1, unverified


async def end_session(metadata: Metadata, files: LocalFiles) -> None:
    """Record that everything is in order; the caller has made a checkpoint.  Durable when this returns.

    The next mount believes then what is cached, also if the machine loses its power in between; so that goes to the
    disk first, what came from clouds included, which nothing has synced (I-4).
    """
    await files.sync_all(with_cache=True)
    await metadata.set_local("clean", "1")
    await metadata.make_durable()


async def recover_files(metadata: Metadata, files: LocalFiles, aside_folder: Path) -> None:
    """Remove what nothing refers to, forget what is no longer here, purge nodes without names."""
    _empty_folder(aside_folder)
    files.remove_copies()
    for ino in await metadata.orphans():
        await metadata.purge_inode(ino)
    await metadata.make_durable()
    in_state = set(files.inodes(in_state=True))
    await _remove_unknown(metadata, files, in_state)
    await _remove_unknown(metadata, files, set(files.inodes(in_state=False)))
    await _forget_missing(metadata, files)
    await _bring_back_dirty(metadata, files)


async def _bring_back_dirty(metadata: Metadata, files: LocalFiles) -> None:
    """Move files with unsent bytes out of the cache folder (I-13): a backup of the metadata may have been put back."""
    for ino in list(files.inodes(in_state=False)):
        if await metadata.has_dirty(ino) and (file := files.get(ino)) is not None:
            log.warning("inode %d had unsent data in the cache folder", ino)
            await files.to_state(file)


async def _remove_unknown(metadata: Metadata, files: LocalFiles, inodes: set[InodeNo]) -> None:
    for number, ino in enumerate(inodes):
        try:
            await metadata.get_inode(ino)
        except StaleInode:
            files.remove(ino)
        if number % _BATCH == 0:
            await trio.lowlevel.checkpoint()
    await files.free_removed()


async def _forget_missing(metadata: Metadata, files: LocalFiles) -> None:
    """Drop the rows of clean chunks whose local file is not there (the cache folder may be deleted while unmounted)."""
    present = set(files.inodes(in_state=True)) | set(files.inodes(in_state=False))
    missing = [ino for ino in await metadata.files_with_clean_chunks() if ino not in present]
    if missing:
        log.info("%d cached files are gone; they are fetched again when read", len(missing))
    for start in range(0, len(missing), _BATCH):
        await metadata.drop_held_files(missing[start : start + _BATCH])
        await trio.lowlevel.checkpoint()
    await metadata.commit()


def prepare_folder(folder: Path) -> None:
    """Make a folder that only its owner can enter; one that others can enter is closed to them."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if folder.stat().st_mode & 0o077:
        os.chmod(folder, 0o700)


def _read_text(path: Path) -> str:
    """Return the content of a small local file, empty if there is none."""
    return path.read_text("ascii") if path.exists() else ""


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, "ascii")


def _empty_folder(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for leftover in folder.iterdir():
        leftover.unlink()

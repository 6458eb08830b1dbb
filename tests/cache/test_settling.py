"""When a local file may go to the cache folder (I-13): a kill in between must not leave unsent bytes there."""

from __future__ import annotations

from pathlib import Path

import pytest

from cuckoo_mount.cache.pressure import CacheLimits
from cuckoo_mount.parted.tree import Caller
from cuckoo_mount.testing.rig import Rig, RigPlace
from cuckoo_mount.types import ROOT_INODE, CloudName, InodeNo, SealedChunk, ShareRow

LIMITS = CacheLimits(limit_bytes=64 << 20, floor_bytes=0)
PACK_ID = b"p" * 16


async def make_dirty_file(rig: Rig) -> InodeNo:
    """Make a file whose rows say that it is dirty, and close it."""
    handle, inode = await rig.filesystem.create(ROOT_INODE, b"file", 0o644, Caller(0, 0))
    await rig.filesystem.write(handle, 0, b"unsent")
    await rig.filesystem.sync_file(handle)
    await rig.filesystem.release(handle)
    return inode.ino


async def finish_a_pack(rig: Rig) -> None:
    """Enter everything dirty as stored; not committed."""
    (chunk,) = await rig.metadata.dirty_chunks(9, ())
    await rig.metadata.begin_pack(PACK_ID)
    share = ShareRow(0, CloudName("local"), bytes(32))
    sealed = SealedChunk(chunk, 64, 30, bytes(32))
    await rig.metadata.finish_pack(PACK_ID, "1", 1000, [share], [sealed], ())


def local_file(place: RigPlace, ino: InodeNo) -> Path:
    (found,) = [path for path in (place.root).rglob(f"{ino:x}") if path.is_file() and "cloud" not in path.parts]
    return found


async def test_what_becomes_clean_while_the_disk_is_busy_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = RigPlace(tmp_path)
    async with place.opened(LIMITS, crash=True) as rig:
        rig.pool.hold()
        ino = await make_dirty_file(rig)
        make_durable = rig.metadata.make_durable

        async def slow_disk() -> None:
            monkeypatch.undo()
            await make_durable()
            await finish_a_pack(rig)

        monkeypatch.setattr(rig.metadata, "make_durable", slow_disk)
        await rig.cache.make_durable()
        assert not await rig.metadata.has_dirty(ino)
        assert local_file(place, ino).is_relative_to(place.state_folder)
    async with place.opened(LIMITS) as rig:
        assert await rig.metadata.has_dirty(ino), "the kill came before the commit"
        assert await rig.cache.check_invariants() == []


async def test_unsent_bytes_in_the_cache_folder_are_brought_back(tmp_path: Path) -> None:
    place = RigPlace(tmp_path)
    async with place.opened(LIMITS, crash=True) as rig:
        rig.pool.hold()
        ino = await make_dirty_file(rig)
    path = local_file(place, ino)
    path.rename(place.cache_folder / path.relative_to(place.state_folder))
    async with place.opened(LIMITS) as rig:
        assert await rig.cache.check_invariants() == []
        await rig.cache.send_all()

"""The cache in the situations that random operations seldom meet, one by one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import trio
import trio.testing

from cuckoo_mount.cache.pressure import CacheLimits
from cuckoo_mount.errors import DataUnavailable, NoSpace
from cuckoo_mount.parted.tree import AttributeRequest, Caller
from cuckoo_mount.testing.rig import Rig, RigPlace
from cuckoo_mount.types import CHUNK_SIZE_BYTES, ROOT_INODE, ChunkIndex, ChunkRow, InodeNo

LIMITS = CacheLimits(limit_bytes=64 << 20)
FIRST = ChunkIndex(0)
OLD = bytes(range(256)) * 400
NEW = b"new " * 100


async def make_file(rig: Rig, name: bytes, content: bytes) -> InodeNo:
    handle, inode = await rig.filesystem.create(ROOT_INODE, name, 0o644, Caller(0, 0))
    await rig.filesystem.write(handle, 0, content)
    await rig.filesystem.release(handle)
    return inode.ino


async def overwrite(rig: Rig, ino: InodeNo, offset: int, data: bytes) -> None:
    handle = await rig.filesystem.open(ino, os.O_RDWR)
    await rig.filesystem.write(handle, offset, data)
    await rig.filesystem.release(handle)


async def read_file(rig: Rig, ino: InodeNo, size: int = 1 << 23) -> bytes:
    handle = await rig.filesystem.open(ino, os.O_RDONLY)
    try:
        with trio.fail_after(30):
            return await rig.filesystem.read(handle, 0, size)
    finally:
        await rig.filesystem.release(handle)


async def first_row(rig: Rig, ino: InodeNo) -> ChunkRow:
    return (await rig.metadata.chunk_rows(ino, FIRST, FIRST))[0]


async def send_and_evict(rig: Rig) -> None:
    await rig.cache.send_all()
    while await rig.cache.evict(1 << 40):
        pass
    assert rig.metadata.statistics().clean_bytes == 0


@pytest.fixture
def place(tmp_path: Path) -> RigPlace:
    return RigPlace(tmp_path)


@pytest.fixture
def memory_folder() -> Iterator[Path]:
    """A folder on another file system than tmp_path's."""
    if not os.path.ismount("/dev/shm"):
        pytest.skip("no second file system here")
    with TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


async def test_a_version_being_sealed_keeps_its_bytes_when_the_chunk_is_written(place: RigPlace) -> None:
    async with place.opened(LIMITS) as rig:
        ino = await make_file(rig, b"a", OLD)
        await rig.cache.checkpoint()
        rig.pool.hold()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.cache.send_all)
            while not rig.pool.waiting:
                await trio.testing.wait_all_tasks_blocked(0.001)
            await overwrite(rig, ino, 7, NEW)
            await overwrite(rig, ino, 0, NEW)
            asides = list((place.state_folder / "aside").iterdir())
            assert [path.read_bytes() for path in asides] == [OLD]
            rig.pool.let_go()
        row = await first_row(rig, ino)
        if row.location is not None:  # else the newer version has entered the row already
            assert await rig.reader.read(row.location) == OLD
        assert list((place.state_folder / "aside").iterdir()) == []
        await send_and_evict(rig)
        newest = bytearray(OLD)
        newest[7 : 7 + len(NEW)] = NEW
        newest[: len(NEW)] = NEW
        assert await read_file(rig, ino) == bytes(newest)


async def test_an_overwritten_clean_chunk_is_old_after_a_kill(place: RigPlace) -> None:
    async with place.opened(LIMITS, crash=True) as rig:
        ino = await make_file(rig, b"a", OLD)
        await rig.cache.send_all()
        await overwrite(rig, ino, 0, NEW)
        assert (await first_row(rig, ino)).held is None
    async with place.opened(LIMITS) as rig:
        assert await read_file(rig, ino) == OLD


async def test_after_a_power_cut_a_changed_clean_chunk_is_fetched_again(place: RigPlace) -> None:
    """The row that said the chunk is clean came back with the power cut, while newer bytes had reached the disk."""
    async with place.opened(LIMITS, crash=True) as rig:
        ino = await make_file(rig, b"a", OLD)
        await rig.cache.send_all()
        await rig.metadata.set_local("boot_id", "another boot")
        await rig.cache.make_durable()
    [local] = [path for path in place.root.glob(f"*/files/*/{ino:x}") if path.is_file()]
    with local.open("r+b") as file:
        file.write(b"torn")
    async with place.opened(LIMITS) as rig:
        assert await read_file(rig, ino) == OLD
        assert await rig.cache.check_invariants() == []


async def test_a_clean_chunk_is_not_verified_twice(place: RigPlace) -> None:
    async with place.opened(LIMITS, crash=True) as rig:
        ino = await make_file(rig, b"a", OLD)
        await rig.cache.send_all()
        await rig.metadata.set_local("boot_id", "another boot")
        await rig.cache.make_durable()
    async with place.opened(LIMITS) as rig:
        before = (await first_row(rig, ino)).held
        assert await read_file(rig, ino) == OLD
        after = (await first_row(rig, ino)).held
        assert before is not None
        assert after is not None
        assert after.tick > before.tick
        assert rig.cache.statistics().misses == 0


async def test_the_cache_folder_may_be_deleted_while_mounted(place: RigPlace) -> None:
    async with place.opened(LIMITS) as rig:
        ino = await make_file(rig, b"a", OLD)
        await send_and_evict(rig)
        assert await read_file(rig, ino) == OLD
        inodes = [await make_file(rig, b"%d" % number, OLD) for number in range(3)]
        await rig.cache.send_all()
        await rig.cache.checkpoint()
    async with place.opened(LIMITS) as rig:
        shutil.rmtree(place.cache_folder / "files")
        for number in range(256):
            (place.cache_folder / "files" / f"{number:02x}").mkdir(parents=True)
        for each in [ino, *inodes]:
            assert await read_file(rig, each) == OLD
        assert await rig.cache.check_invariants() == []


async def test_state_and_cache_on_two_file_systems(place: RigPlace, memory_folder: Path) -> None:
    place.other_cache_folder = memory_folder
    async with place.opened(LIMITS) as rig:
        big = OLD * 50
        ino = await make_file(rig, b"a", big)
        await rig.cache.send_all()
        await rig.cache.checkpoint()
        assert (memory_folder / "files" / f"{ino % 256:02x}" / f"{ino:x}").exists()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(overwrite, rig, ino, 5, NEW)
            nursery.start_soon(overwrite, rig, ino, CHUNK_SIZE_BYTES, NEW)
            nursery.start_soon(read_file, rig, ino)
        expected = bytearray(big)
        expected[5 : 5 + len(NEW)] = NEW
        expected[CHUNK_SIZE_BYTES : CHUNK_SIZE_BYTES + len(NEW)] = NEW
        assert await read_file(rig, ino) == bytes(expected)
        assert await rig.cache.check_invariants() == []
        await send_and_evict(rig)
        assert await read_file(rig, ino) == bytes(expected)


async def test_lost_cloud_object_is_an_error_of_the_read_only(place: RigPlace) -> None:
    async with place.opened(LIMITS) as rig:
        ino = await make_file(rig, b"a", OLD)
        await send_and_evict(rig)
        for share in place.cloud_folder.glob("cuckoo/*/packs/*/*"):
            share.unlink()
        with pytest.raises(DataUnavailable):
            await read_file(rig, ino)
        await overwrite(rig, ino, 0, NEW)
        handle = await rig.filesystem.open(ino, os.O_RDONLY)
        assert await rig.filesystem.read(handle, 0, len(NEW)) == NEW
        await rig.filesystem.release(handle)
        assert await rig.cache.check_invariants() == []


async def test_growing_costs_nothing_and_shrinking_forgets(place: RigPlace) -> None:
    async with place.opened(LIMITS) as rig:
        ino = await make_file(rig, b"a", OLD)
        await rig.filesystem.set_attributes(ino, AttributeRequest(), 10**15)
        handle = await rig.filesystem.open(ino, os.O_RDONLY)
        assert await rig.filesystem.read(handle, 10**15 - 5, 100) == bytes(5)
        assert await rig.filesystem.read(handle, 5 * 10**14, 100) == bytes(100)
        await rig.filesystem.release(handle)
        await rig.filesystem.set_attributes(ino, AttributeRequest(), 100)
        await rig.filesystem.set_attributes(ino, AttributeRequest(), 200)
        assert await read_file(rig, ino) == OLD[:100] + bytes(100)
        assert await rig.cache.check_invariants() == []


async def test_a_full_cache_that_no_cloud_empties_says_no_space(
    place: RigPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cuckoo_mount.cache.pressure.STALL_S", 0.05)
    limits = CacheLimits(limit_bytes=16 << 20, overshoot_bytes=4 << 20)
    async with place.opened(limits) as rig:
        rig.pool.hold()
        handle, _ = await rig.filesystem.create(ROOT_INODE, b"a", 0o644, Caller(0, 0))
        accepted = 0

        async def fill() -> None:
            nonlocal accepted
            for number in range(40):
                await rig.filesystem.write(handle, number << 20, os.urandom(1 << 20))
                accepted += 1

        with pytest.raises(NoSpace):
            await fill()
        assert 16 <= accepted <= 20
        with pytest.raises(NoSpace):
            await rig.filesystem.create(ROOT_INODE, b"b", 0o644, Caller(0, 0))
        rig.pool.let_go()
        await send_and_evict(rig)
        await rig.filesystem.write(handle, accepted << 20, OLD)
        await rig.filesystem.release(handle)
        assert await rig.cache.check_invariants() == []


async def test_dead_packs_leave_the_cloud(place: RigPlace) -> None:
    from cuckoo_mount.packs.garbage import collect_garbage

    async with place.opened(LIMITS) as rig:
        await make_file(rig, b"a", OLD)
        await rig.cache.send_all()
        assert len(list(place.cloud_folder.glob("cuckoo/*/packs/*/*"))) == 1
        await rig.filesystem.tree.unlink(ROOT_INODE, b"a")
        collected = await collect_garbage(rig.metadata, rig.multifs)
        assert collected.packs == 1
        assert list(place.cloud_folder.glob("cuckoo/*/packs/*/*")) == []
        assert rig.metadata.statistics().packs == 0

"""Neighbours fetched along, read-ahead, and what must not suffer from them: on a drive whose cloud is a folder."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import trio
import trio.testing

from cuckoo_mount.cache.pressure import CacheLimits
from cuckoo_mount.errors import DataUnavailable
from cuckoo_mount.parted.tree import Caller
from cuckoo_mount.testing.rig import Rig, RigPlace
from cuckoo_mount.types import CHUNK_SIZE_BYTES, ROOT_INODE, ChunkIndex, InodeNo

LIMITS = CacheLimits(limit_bytes=256 << 20, floor_bytes=0)
TINY = CacheLimits(limit_bytes=16 << 20, floor_bytes=0)
SEED = 20_261_123
FETCHES = ("fetch_chunk", "fetch_ahead")


def content(number: int, size: int) -> bytes:
    return random.Random(SEED + number).randbytes(size)


def small(number: int) -> bytes:
    return content(number, random.Random(number).randrange(1, 6000))


async def make_file(rig: Rig, name: str, data: bytes) -> InodeNo:
    handle, inode = await rig.filesystem.create(ROOT_INODE, name.encode(), 0o644, Caller(0, 0))
    await rig.filesystem.write(handle, 0, data)
    await rig.filesystem.release(handle)
    return inode.ino


async def make_big_file(rig: Rig, chunks: int) -> InodeNo:
    handle, inode = await rig.filesystem.create(ROOT_INODE, b"big", 0o644, Caller(0, 0))
    for index in range(chunks):
        await rig.filesystem.write(handle, index * CHUNK_SIZE_BYTES, content(index, CHUNK_SIZE_BYTES))
    await rig.filesystem.release(handle)
    return inode.ino


async def read(rig: Rig, ino: InodeNo, offset: int = 0, size: int = 1 << 23) -> bytes:
    handle = await rig.filesystem.open(ino, os.O_RDONLY)
    try:
        with trio.fail_after(30):
            return await rig.filesystem.read(handle, offset, size)
    finally:
        await rig.filesystem.release(handle)


async def read_chunk(rig: Rig, ino: InodeNo, index: int) -> None:
    """Read a chunk of the big file as the kernel does, piece by piece, and compare it."""
    wanted = content(index, CHUNK_SIZE_BYTES)
    for offset in range(0, CHUNK_SIZE_BYTES, 128 << 10):
        found = await read(rig, ino, index * CHUNK_SIZE_BYTES + offset, 128 << 10)
        assert found == wanted[offset : offset + (128 << 10)]


async def send_and_evict(rig: Rig) -> None:
    with trio.fail_after(60):
        await rig.cache.send_all()
    while await rig.cache.evict(1 << 40):
        pass
    assert rig.metadata.statistics().clean_bytes == 0


async def read_chunks(rig: Rig, ino: InodeNo, indexes: Iterable[int]) -> None:
    for index in indexes:
        await read_chunk(rig, ino, index)


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(30):
        while True:
            if condition():
                return
            await trio.sleep(0.001)


def requests(rig: Rig) -> int:
    return rig.multifs.statistics()[0].requests


def packs(place: RigPlace) -> list[Path]:
    return [path for path in place.cloud_folder.rglob("*") if path.is_file() and "/packs/" in str(path)]


@pytest.fixture
def place(tmp_path: Path) -> RigPlace:
    return RigPlace(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("in_order", [True, False])
async def test_a_folder_costs_few_requests(place: RigPlace, in_order: bool) -> None:
    count = 400
    async with place.opened(LIMITS) as rig:
        files = {number: await make_file(rig, f"f{number}", small(number)) for number in range(count)}
        await send_and_evict(rig)
        before = requests(rig)
        numbers = list(files)
        if not in_order:
            random.Random(SEED).shuffle(numbers)
        for number in numbers:
            assert await read(rig, files[number]) == small(number)
        assert requests(rig) - before <= (5 if in_order else 15)
        statistics = rig.cache.statistics()
        assert statistics.misses + statistics.prefetched == count
        assert statistics.prefetch_hits == statistics.prefetched
        assert await rig.cache.check_invariants() == []


@pytest.mark.slow
async def test_a_stream_is_here_before_it_is_asked_for(place: RigPlace) -> None:
    chunks = 40
    async with place.opened(LIMITS) as rig:
        ino = await make_big_file(rig, chunks)
        await send_and_evict(rig)
        before = requests(rig)
        for index in range(12):
            await read_chunk(rig, ino, index)
        # More than was read is under way; once it is here, the next bytes are no wait, even without a cloud.
        await until(lambda: rig.cache.statistics().prefetched + rig.cache.statistics().misses >= 16)
        rig.pool.hold(*FETCHES)
        for index in range(12, 16):
            await read_chunk(rig, ino, index)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_chunks, rig, ino, range(16, chunks))
            await until(lambda: rig.pool.waiting >= 2)
            rig.pool.let_go()
        assert requests(rig) - before <= chunks // 2
        statistics = rig.cache.statistics()
        assert statistics.misses + statistics.prefetched == chunks
        assert statistics.misses <= 6
        assert await rig.cache.check_invariants() == []


@pytest.mark.slow
async def test_random_reads_fetch_what_is_asked(place: RigPlace) -> None:
    async with place.opened(LIMITS) as rig:
        ino = await make_big_file(rig, 24)
        await send_and_evict(rig)
        for index in (20, 3, 11, 7, 15, 0, 22):
            assert await read(rig, ino, index << 20, 4096) == content(index, CHUNK_SIZE_BYTES)[:4096]
        statistics = rig.cache.statistics()
        assert (statistics.misses, statistics.prefetched) == (7, 0)


@pytest.mark.slow
async def test_a_tiny_cache_is_read_through(place: RigPlace) -> None:
    chunks = 40
    async with place.opened(LIMITS) as rig:
        ino = await make_big_file(rig, chunks)
        files = [await make_file(rig, f"f{number}", small(number)) for number in range(200)]
        await send_and_evict(rig)
    async with place.opened(TINY) as rig:
        down = rig.multifs.statistics()[0].bytes_down
        for index in range(chunks):
            await read_chunk(rig, ino, index)
            assert rig.cache.statistics().used_bytes <= TINY.limit_bytes + CHUNK_SIZE_BYTES
        for number, file in enumerate(files):
            assert await read(rig, file) == small(number)
        plain = chunks * CHUNK_SIZE_BYTES + sum(len(small(number)) for number in range(len(files)))
        assert rig.multifs.statistics()[0].bytes_down - down <= 1.2 * plain, "what was fetched was fetched again"
        assert rig.cache.statistics().prefetched > 0
        assert await rig.cache.check_invariants() == []


async def test_nothing_comes_unasked_into_a_cache_full_of_unsent_data(place: RigPlace) -> None:
    async with place.opened(TINY) as rig:
        files = [await make_file(rig, f"f{number}", content(number, 200_000)) for number in range(8)]
        await send_and_evict(rig)
        rig.pool.hold("build_pack")
        await make_file(rig, "unsent", bytes(TINY.limit_bytes - 100_000))
        assert await read(rig, files[0]) == content(0, 200_000)
        assert rig.cache.statistics().prefetched == 0
        assert await read(rig, files[1]) == content(1, 200_000)
        assert rig.cache.statistics().misses == 2


async def test_eviction_spares_what_is_about_to_be_read(place: RigPlace) -> None:
    async with place.opened(LIMITS) as rig:
        old = await make_file(rig, "old", content(99, 50_000))
        files = [await make_file(rig, f"f{number}", content(number, 20_000)) for number in range(6)]
        later = await make_file(rig, "later", content(98, 400_000))
        await send_and_evict(rig)
        for ino in (later, files[0]):
            await read(rig, ino)
        await until(lambda: rig.cache.statistics().prefetched >= 5)
        # Least recently used, and first by its number, would be what was fetched ahead.
        await rig.cache.evict(10_000)
        rig.pool.hold(*FETCHES)
        for number, ino in enumerate(files[1:], start=1):
            assert await read(rig, ino) == content(number, 20_000)
        rig.pool.let_go()
        assert await read(rig, old) == content(99, 50_000)
        assert await rig.cache.check_invariants() == []


async def test_a_damaged_neighbour_is_no_trouble_until_it_is_read(place: RigPlace) -> None:
    async with place.opened(LIMITS) as rig:
        files = [await make_file(rig, f"f{number}", content(number, 3000)) for number in range(4)]
        await send_and_evict(rig)
        (row,) = await rig.metadata.chunk_rows(files[2], ChunkIndex(0), ChunkIndex(0))
        assert row.location is not None
        (path,) = packs(place)
        data = bytearray(path.read_bytes())
        data[row.location.offset + 100] ^= 1
        path.write_bytes(data)
        before = requests(rig)
        for number in (0, 1, 3):
            assert await read(rig, files[number]) == content(number, 3000)
        assert requests(rig) - before == 1
        with pytest.raises(DataUnavailable):
            await read(rig, files[2])
        assert rig.cache.statistics().last_error == ""
        assert await rig.cache.check_invariants() == []


async def test_a_pack_that_was_cut_gives_what_it_still_has(place: RigPlace) -> None:
    async with place.opened(LIMITS) as rig:
        files = [await make_file(rig, f"f{number}", content(number, 3000)) for number in range(4)]
        await send_and_evict(rig)
        (row,) = await rig.metadata.chunk_rows(files[2], ChunkIndex(0), ChunkIndex(0))
        assert row.location is not None
        (path,) = packs(place)
        os.truncate(path, row.location.offset + 100)
        assert await read(rig, files[0]) == content(0, 3000)
        assert await read(rig, files[1]) == content(1, 3000)
        for ino in files[2:]:
            with pytest.raises(DataUnavailable):
                await read(rig, ino)


async def test_readers_share_what_is_under_way_also_when_one_gives_up(place: RigPlace) -> None:
    async with place.opened(LIMITS) as rig:
        files = [await make_file(rig, f"f{number}", content(number, 3000)) for number in range(4)]
        await send_and_evict(rig)
        before = requests(rig)
        found: list[bytes] = []

        async def reader(ino: InodeNo) -> None:
            found.append(await read(rig, ino))

        rig.pool.hold(*FETCHES)
        async with trio.open_nursery() as impatient:
            impatient.start_soon(reader, files[0])
            await until(lambda: rig.pool.waiting == 1)
            impatient.cancel_scope.cancel()
        assert rig.pool.waiting == 1, "the fetch goes on without its first reader"
        async with trio.open_nursery() as nursery:
            for ino in files:
                nursery.start_soon(reader, ino)
            await trio.testing.wait_all_tasks_blocked()
            assert rig.pool.waiting == 1
            rig.pool.let_go()
        assert sorted(found) == sorted(content(number, 3000) for number in range(4))
        assert requests(rig) - before == 1


async def test_a_chunk_that_moves_while_it_is_fetched(place: RigPlace) -> None:
    """Compaction puts two small packs into one and deletes them."""
    async with place.opened(LIMITS) as rig:
        files = []
        for number in range(2):
            files.append(await make_file(rig, f"f{number}", content(number, 30_000)))
            await send_and_evict(rig)
        assert len(packs(place)) == 2
        rig.pool.hold(*FETCHES)
        async with trio.open_nursery() as nursery:
            found: list[bytes] = []

            async def reader() -> None:
                found.append(await read(rig, files[0]))

            nursery.start_soon(reader)
            await until(lambda: rig.pool.waiting == 1)
            old = packs(place)
            await rig.collector.collect(thorough=True)
            assert len(packs(place)) == 1
            assert packs(place)[0] not in old
            rig.pool.let_go()
        assert found == [content(0, 30_000)]
        assert await read(rig, files[1]) == content(1, 30_000)
        assert await rig.cache.check_invariants() == []


@pytest.mark.slow
async def test_a_drive_closes_while_reads_ahead_are_under_way(place: RigPlace) -> None:
    async with place.opened(LIMITS) as rig:
        ino = await make_big_file(rig, 20)
        await send_and_evict(rig)
    with trio.fail_after(60):
        async with place.opened(LIMITS) as rig:
            for index in range(4):
                await read_chunk(rig, ino, index)
            rig.pool.hold(*FETCHES)
            for index in range(4, 7):
                with trio.move_on_after(0.05):
                    await read_chunk(rig, ino, index)
            await until(lambda: rig.pool.waiting >= 1)
    async with place.opened(LIMITS) as rig:
        assert await rig.cache.check_invariants() == []
        for index in range(20):
            await read_chunk(rig, ino, index)


async def test_a_write_beats_the_fetch_of_a_neighbour(place: RigPlace) -> None:
    async with place.opened(LIMITS) as rig:
        files = [await make_file(rig, f"f{number}", content(number, 3000)) for number in range(4)]
        await send_and_evict(rig)
        rig.pool.hold(*FETCHES)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read, rig, files[0])
            await until(lambda: rig.pool.waiting == 1)
            handle = await rig.filesystem.open(files[1], os.O_RDWR)
            await rig.filesystem.write(handle, 10, b"newer")
            await rig.filesystem.release(handle)
            handle = await rig.filesystem.open(files[2], os.O_RDWR | os.O_TRUNC)
            await rig.filesystem.release(handle)
            await rig.filesystem.tree.unlink(ROOT_INODE, b"f3")
            rig.pool.let_go()
        old = content(1, 3000)
        assert await read(rig, files[1]) == old[:10] + b"newer" + old[15:]
        assert await read(rig, files[2]) == b""
        assert await rig.cache.check_invariants() == []


async def test_a_chunk_that_an_equal_file_holds_is_not_fetched(tmp_path: Path) -> None:
    """Equal files share a version: one of them here is enough for all."""
    async with RigPlace(tmp_path).opened(LIMITS) as rig:
        data = content(1, 50_000)
        first = await make_file(rig, "first", data)
        await send_and_evict(rig)
        second = await make_file(rig, "second", data)
        await send_and_evict(rig)
        assert await read(rig, first) == data
        misses = rig.cache.statistics().misses
        rig.pool.hold(*FETCHES)
        assert await read(rig, second) == data
        assert rig.cache.statistics().misses == misses
        rig.pool.let_go()
        assert await rig.cache.check_invariants() == []


async def test_a_damaged_local_copy_is_not_passed_on(tmp_path: Path) -> None:
    place = RigPlace(tmp_path)
    async with place.opened(LIMITS) as rig:
        data = content(1, 50_000)
        first = await make_file(rig, "first", data)
        await send_and_evict(rig)
        second = await make_file(rig, "second", data)
        await send_and_evict(rig)
        assert await read(rig, first) == data
        (local,) = [path for path in place.root.rglob(f"{first:x}") if path.is_file()]
        local.write_bytes(data[::-1])
        assert await read(rig, second) == data

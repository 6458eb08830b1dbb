"""Bytes that are stored already are not sent again, whatever happens meanwhile; and what compaction moves is found."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
import trio

from cuckoo_mount.cache.pressure import CacheLimits
from cuckoo_mount.parted.tree import AttributeRequest, Caller
from cuckoo_mount.testing.rig import Rig, RigPlace
from cuckoo_mount.types import CHUNK_SIZE_BYTES, ROOT_INODE, InodeNo
from tests.cache.test_cache_content import LIMITS, first_row, make_file, overwrite, read_file, send_and_evict

OLD = random.Random(1).randbytes(100_000)
NEW = random.Random(2).randbytes(100_000)


@pytest.fixture
def place(tmp_path: Path) -> RigPlace:
    return RigPlace(tmp_path)


def packs(place: RigPlace) -> set[str]:
    return {path.name for path in place.cloud_folder.glob("cuckoo/*/packs/*/*")}


async def check(rig: Rig, contents: dict[InodeNo, bytes]) -> None:
    """Everything reads right, from here and from the clouds, and nothing is violated."""
    for _ in range(2):
        assert await rig.cache.check_invariants() == []
        for ino, content in contents.items():
            assert await read_file(rig, ino) == content
        await send_and_evict(rig)


async def remove(rig: Rig, name: bytes) -> None:
    await rig.filesystem.tree.unlink(ROOT_INODE, name)


@pytest.mark.slow
async def test_a_copy_costs_no_pack(place: RigPlace) -> None:
    async with place.opened(LIMITS) as rig:
        first = await make_file(rig, b"a", OLD)
        await rig.cache.send_all()
        stored = packs(place)
        second = await make_file(rig, b"b", OLD)
        await rig.cache.send_all()
        assert packs(place) == stored
        assert os.listdir(place.state_folder / "staging") == []
        assert (await first_row(rig, first)).location == (await first_row(rig, second)).location
        await check(rig, {first: OLD, second: OLD})
        await overwrite(rig, first, 0, NEW)
        await check(rig, {first: NEW, second: OLD})
        await remove(rig, b"b")
        await rig.collector.collect(thorough=False)
        assert not packs(place) & stored, "nobody names it any more"
        await check(rig, {first: NEW})
    async with place.opened(LIMITS) as rig:
        await check(rig, {first: NEW})


@pytest.mark.slow
async def test_equal_chunks_of_one_pack_are_sealed_once(place: RigPlace) -> None:
    async with place.opened(LIMITS) as rig:
        files = {await make_file(rig, b"%d" % number, OLD): OLD for number in range(5)}
        zeros = bytes(8 * CHUNK_SIZE_BYTES)
        files[await make_file(rig, b"zeros", zeros)] = zeros
        await rig.cache.send_all()
        assert sum(path.stat().st_size for path in place.cloud_folder.glob("cuckoo/*/packs/*/*")) < 110_000
        assert rig.metadata.statistics().pack_live_bytes == len(OLD) + CHUNK_SIZE_BYTES
        await check(rig, files)
        for number in range(5):
            await remove(rig, b"%d" % number)
        assert rig.metadata.statistics().pack_live_bytes == CHUNK_SIZE_BYTES
        await remove(rig, b"zeros")
        assert rig.metadata.statistics().pack_live_bytes == 0
        assert await rig.cache.check_invariants() == []


@pytest.mark.slow
async def test_mostly_new_bytes_are_packed_with_the_few_old_ones_left_out(place: RigPlace) -> None:
    async with place.opened(LIMITS) as rig:
        first = await make_file(rig, b"a", OLD)
        await rig.cache.send_all()
        before = rig.metadata.statistics().pack_stored_bytes
        files = {first: OLD, await make_file(rig, b"b", OLD): OLD, await make_file(rig, b"c", NEW): NEW}
        await rig.cache.send_all()
        assert len(packs(place)) == 2
        assert rig.metadata.statistics().pack_stored_bytes - before < 101_000
        await check(rig, files)


@pytest.mark.slow
async def test_open_files_follow_links(place: RigPlace) -> None:
    """One that is open, and one that is written again while it is linked."""
    async with place.opened(LIMITS) as rig:
        contents = {await make_file(rig, b"a", OLD): OLD}
        await rig.cache.send_all()
        second, third = await make_file(rig, b"b", OLD), await make_file(rig, b"c", OLD)
        handles = [await rig.filesystem.open(ino, os.O_RDWR) for ino in (second, third)]
        for handle in handles:
            assert await rig.filesystem.read(handle, 0, len(OLD)) == OLD
        await rig.cache.checkpoint()
        rig.pool.hold()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.cache.send_all)
            while not rig.pool.waiting:
                await trio.testing.wait_all_tasks_blocked()
            await rig.filesystem.write(handles[1], 0, b"newer")
            rig.pool.let_go()
        assert await rig.cache.check_invariants() == []
        assert (await first_row(rig, second)).location == (await first_row(rig, next(iter(contents)))).location
        await rig.filesystem.write(handles[0], 5, b"other")
        await rig.cache.checkpoint()
        assert await rig.cache.check_invariants() == []
        for handle in handles:
            await rig.filesystem.release(handle)
        contents |= {second: OLD[:5] + b"other" + OLD[10:], third: b"newer" + OLD[5:]}
        await check(rig, contents)


async def _hold_at(rig: Rig, jobs: int) -> None:
    """Let `jobs` jobs through, then hold the pool before the next one."""
    for _ in range(jobs):
        while not rig.pool.waiting:
            await trio.testing.wait_all_tasks_blocked()
        rig.pool.let_go()
        rig.pool.hold()


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [0, 1])
@pytest.mark.parametrize("event", ["overwrite", "remove copy", "remove original", "truncate copy"])
async def test_changes_while_a_duplicate_is_on_its_way(place: RigPlace, event: str, jobs: int) -> None:
    """Held before the pack is built, and before what is left of it is built again."""
    async with place.opened(LIMITS) as rig:
        first = await make_file(rig, b"a", OLD)
        await rig.cache.send_all()
        second = await make_file(rig, b"b", OLD)
        third = await make_file(rig, b"c", NEW)
        contents = {first: OLD, second: OLD, third: NEW}
        await rig.cache.checkpoint()
        rig.pool.hold()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.cache.send_all)
            await _hold_at(rig, jobs)
            while not rig.pool.waiting:
                await trio.testing.wait_all_tasks_blocked()
            if event == "overwrite":
                await overwrite(rig, second, 10, b"changed")
                contents[second] = OLD[:10] + b"changed" + OLD[17:]
            elif event == "truncate copy":
                await rig.filesystem.set_attributes(second, AttributeRequest(), 50)
                contents[second] = OLD[:50]
            else:
                name, gone = (b"b", second) if event == "remove copy" else (b"a", first)
                await remove(rig, name)
                del contents[gone]
            assert await rig.cache.check_invariants() == []
            rig.pool.let_go()
        await check(rig, contents)
        await rig.collector.collect(thorough=True)
        await check(rig, contents)


@pytest.mark.slow
async def test_a_copy_of_what_a_cloud_lost_is_sent(place: RigPlace) -> None:
    """Restoring a lost file from elsewhere must restore it, not refer to the loss."""
    async with place.opened(LIMITS) as rig:
        first = await make_file(rig, b"a", OLD)
        await send_and_evict(rig)
        identity = next(place.cloud_folder.glob("cuckoo/*/drive.json"))
        identity.rename(place.root / "drive.json")
        await rig.multifs.probe()
        second = await make_file(rig, b"b", OLD)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.cache.send_all)
            with trio.fail_after(30):
                while not rig.cache.statistics().last_error:
                    await trio.testing.wait_all_tasks_blocked(0.01)
            assert (await first_row(rig, second)).location is None, "linked to what cannot be read"
            (place.root / "drive.json").rename(identity)
            await rig.multifs.probe()
        await check(rig, {first: OLD, second: OLD})


@pytest.mark.slow
async def test_open_files_follow_compaction(place: RigPlace) -> None:
    async with place.opened(CacheLimits(limit_bytes=64 << 20)) as rig:
        kept = {}
        for number in range(12):
            content = random.Random(number).randbytes(5000)
            kept[await make_file(rig, b"%d" % number, content)] = content
            await rig.cache.send_all()
        await send_and_evict(rig)
        handles = {ino: await rig.filesystem.open(ino, os.O_RDWR) for ino in kept}
        for ino, handle in handles.items():
            assert await rig.filesystem.read(handle, 0, 10) == kept[ino][:10]
        await send_and_evict(rig)
        first = min(kept)
        rig.pool.hold()  # the base of this one is still on the cloud when its pack is compacted
        await rig.filesystem.write(handles[first], 100, b"new")
        kept[first] = kept[first][:100] + b"new" + kept[first][103:]
        before = packs(place)
        rig.pool.let_go()
        collected = await rig.collector.collect(thorough=True)
        assert collected.packs_compacted == collected.packs_deleted >= 11
        assert await rig.cache.check_invariants() == [], "also what is in memory of open files"
        assert not before & packs(place)
        for ino, handle in handles.items():
            assert await rig.filesystem.read(handle, 0, 1 << 20) == kept[ino]
            await rig.filesystem.release(handle)
        await check(rig, kept)


@pytest.mark.slow
async def test_random_copies_and_removals(place: RigPlace) -> None:
    """Few different contents, many files: sent, removed, overwritten and compacted in any order."""
    choice = random.Random(3)
    blocks = [choice.randbytes(3000) for _ in range(4)] + [bytes(3000)]
    async with place.opened(LIMITS) as rig:
        files: dict[bytes, tuple[InodeNo, bytes]] = {}
        for step in range(120):
            name = b"%d" % choice.randrange(12)
            content = choice.choice(blocks) * choice.choice([1, 1, 3])
            if name in files and choice.random() < 0.4:
                await remove(rig, name)
                del files[name]
            elif name in files:
                ino, old = files[name]
                await overwrite(rig, ino, 0, content)
                files[name] = (ino, content + old[len(content) :])
            else:
                handle, inode = await rig.filesystem.create(ROOT_INODE, name, 0o644, Caller(0, 0))
                await rig.filesystem.write(handle, 0, content)
                await rig.filesystem.release(handle)
                files[name] = (inode.ino, content)
            if step % 5 == 0:
                await rig.cache.send_all()
            if step % 30 == 29:
                await rig.collector.collect(thorough=True)
                await check(rig, dict(files.values()))
        await rig.collector.collect(thorough=True)
        assert rig.metadata.statistics().packs <= 2
    async with place.opened(LIMITS) as rig:
        await check(rig, dict(files.values()))


@pytest.mark.slow
async def test_packs_are_as_big_as_the_drive_says(tmp_path: Path) -> None:
    place = RigPlace(tmp_path, pack_size_bytes=256 << 10)
    async with place.opened(LIMITS) as rig:
        files = {}
        for number in range(12):
            content = random.Random(number).randbytes(100_000)
            files[await make_file(rig, b"%d" % number, content)] = content
        await rig.cache.send_all()
        sizes = sorted(path.stat().st_size for path in place.cloud_folder.glob("cuckoo/*/packs/*/*"))
        assert len(sizes) == 4
        assert 256 << 10 < sizes[0] < sizes[-1] + 1000 < 302_000
        await check(rig, files)

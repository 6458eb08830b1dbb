"""Cuts in the situations that random operations seldom meet, one by one."""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from cuckoo_mount.cache.pressure import CacheLimits
from cuckoo_mount.packs.collecting import keeping
from cuckoo_mount.parted.tree import AttributeRequest, Caller
from cuckoo_mount.testing.rig import Rig, RigPlace
from cuckoo_mount.types import CHUNK_SIZE_BYTES, ROOT_INODE, InodeNo
from tests.cache.cuts import Epoch, cutting
from tests.cache.test_cache_content import LIMITS, make_file, overwrite, read_file, send_and_evict

MIB = CHUNK_SIZE_BYTES
OLD = random.Random(1).randbytes(2 * MIB + 5000)
NEW = random.Random(2).randbytes(3 * MIB)


@pytest.fixture
def place(tmp_path: Path) -> RigPlace:
    return RigPlace(tmp_path)


@asynccontextmanager
async def held_cut(rig: Rig, place: RigPlace, number: int = 1) -> AsyncIterator[Epoch]:
    """Cut, and hold what gets to and from the clouds for the body; afterwards the cut is sent."""
    async with cutting(rig, place.root, number) as epoch:
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                rig.pool.hold()
                nursery.start_soon(epoch.cut.send)
                await trio.testing.wait_all_tasks_blocked(0.01)
                yield epoch
                assert await rig.cache.check_invariants() == []
                rig.pool.let_go()
        epoch.note()
        assert await rig.cache.check_invariants() == []


def packs(place: RigPlace) -> set[str]:
    return {path.name for path in place.cloud_folder.glob("cuckoo/*/packs/*/*")}


def asides(place: RigPlace) -> list[str]:
    return os.listdir(place.state_folder / "aside")


async def resize(rig: Rig, ino: InodeNo, size: int) -> None:
    await rig.filesystem.set_attributes(ino, AttributeRequest(), size)


async def test_a_frozen_version_is_what_it_was(place: RigPlace) -> None:
    async with place.opened(LIMITS) as rig:
        inos = {name: await make_file(rig, name, OLD) for name in (b"written", b"grown", b"cut", b"emptied", b"gone")}
        last = await make_file(rig, b"short", OLD[:100])
        async with held_cut(rig, place) as epoch:
            await overwrite(rig, inos[b"written"], MIB - 10, NEW[:20])
            await overwrite(rig, inos[b"grown"], len(OLD), NEW)
            await overwrite(rig, last, 200, NEW[:100])
            await resize(rig, inos[b"cut"], MIB + 77)
            assert set(asides(place)) != set()
            await rig.cache.checkpoint()
            await overwrite(rig, inos[b"cut"], MIB + 100, b"x")
            before = len(asides(place))
            await resize(rig, inos[b"emptied"], 0)
            await rig.filesystem.tree.unlink(ROOT_INODE, b"gone")
            assert len(asides(place)) == before, "nothing is copied to be removed"
            await rig.cache.checkpoint()
        assert await epoch.contents(rig) == {**dict.fromkeys(inos, OLD), b"short": OLD[:100]}
        assert asides(place) == []
        await send_and_evict(rig)
        assert await read_file(rig, inos[b"cut"]) == OLD[: MIB + 77].ljust(MIB + 100, b"\0") + b"x"
        assert await read_file(rig, inos[b"grown"]) == OLD + NEW
        assert await read_file(rig, last) == OLD[:100].ljust(200, b"\0") + NEW[:100]
        local = {path.name for path in place.root.glob("*/files/*/*")}
        assert f"{inos[b'gone']:x}" not in local, "removed when it was stored"
        assert await epoch.contents(rig) == {**dict.fromkeys(inos, OLD), b"short": OLD[:100]}


async def test_a_file_cut_while_it_is_frozen_gives_its_room_back(place: RigPlace) -> None:
    async with place.opened(LIMITS) as rig:
        ino = await make_file(rig, b"a", OLD)
        [local] = place.state_folder.glob(f"files/*/{ino:x}")
        async with held_cut(rig, place):
            await resize(rig, ino, 10)
            assert local.stat().st_size == len(OLD)
            assert rig.cache.statistics().used_bytes >= len(OLD)
        await rig.cache.checkpoint()
        [local] = place.root.glob(f"*/files/*/{ino:x}")
        assert local.stat().st_size == 10
        assert rig.cache.statistics().used_bytes == 10


@pytest.mark.slow
async def test_incomplete_versions_are_made_whole_as_they_were(place: RigPlace) -> None:
    names = (b"left", b"written", b"grown", b"cut", b"emptied", b"gone", b"whole")
    async with place.opened(LIMITS) as rig:
        inos = {name: await make_file(rig, name, random.Random(name).randbytes(len(OLD))) for name in names}
        wanted = {name: await read_file(rig, ino) for name, ino in inos.items()}
        await send_and_evict(rig)
        rig.pool.hold()  # no base comes
        for name, ino in inos.items():
            for start in (100, MIB + 50_000):
                await overwrite(rig, ino, start, NEW[:1000])
                wanted[name] = wanted[name][:start] + NEW[:1000] + wanted[name][start + 1000 :]
        async with held_cut(rig, place) as epoch:
            await overwrite(rig, inos[b"written"], 600, NEW[:1000])
            await overwrite(rig, inos[b"written"], MIB, b"y")
            await overwrite(rig, inos[b"grown"], len(OLD), NEW)
            await resize(rig, inos[b"cut"], 300)
            await resize(rig, inos[b"emptied"], 0)
            await rig.filesystem.tree.unlink(ROOT_INODE, b"gone")
            await overwrite(rig, inos[b"whole"], 0, NEW)
            await rig.cache.checkpoint()
        assert epoch.cut.missing == []
        assert await epoch.contents(rig) == wanted
        await send_and_evict(rig)
        assert await read_file(rig, inos[b"written"]) == (
            wanted[b"written"][:600] + NEW[:1000] + wanted[b"written"][1600:MIB] + b"y" + wanted[b"written"][MIB + 1 :]
        )
        assert await read_file(rig, inos[b"cut"]) == wanted[b"cut"][:300]
        assert await read_file(rig, inos[b"left"]) == wanted[b"left"]


@pytest.mark.slow
async def test_a_lost_base_does_not_stop_the_rest(place: RigPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cuckoo_mount.cache.sending.MAX_PAUSE_S", 0.01)
    async with place.opened(LIMITS) as rig:
        ino = await make_file(rig, b"a", OLD[:9000])
        await send_and_evict(rig)
        for share in place.cloud_folder.glob("cuckoo/*/packs/*/*"):
            share.unlink()
        await overwrite(rig, ino, 10, b"new")
        other = await make_file(rig, b"b", NEW[:9000])
        async with cutting(rig, place.root, 1) as epoch:
            with trio.fail_after(20):
                await epoch.cut.send()
            assert [chunk.ino for chunk in epoch.cut.missing] == [ino]
            assert len(epoch.cut.locations) == 1
        assert await rig.cache.check_invariants() == []
        assert rig.metadata.statistics().dirty_chunks == 1, "still to be sent, if its base is found again"
        assert await read_file(rig, other) == NEW[:9000]


@pytest.mark.slow
async def test_a_cut_is_a_moment(place: RigPlace) -> None:
    """The writer numbers what it does, without a pause; a cut shows the state after one operation, times included."""
    async with place.opened(CacheLimits(limit_bytes=256 << 20)) as rig:
        choice = random.Random(5)
        history: list[tuple[int, bytes, int | None]] = []
        size = 6 * MIB
        ino = await make_file(rig, b"a", bytes(size))
        done = 0

        async def write_on() -> None:
            nonlocal done
            handle = await rig.filesystem.open(ino, os.O_RDWR)
            while True:
                offset, data = choice.randrange(size), b"%08d" % len(history) * choice.choice([1, 500, 20_000])
                cut = choice.randrange(1, size) if choice.random() < 0.05 else None
                history.append((offset, data, cut))
                if cut is not None:
                    await resize(rig, ino, cut)
                else:
                    await rig.filesystem.write(handle, offset, data)
                await rig.filesystem.set_attributes(ino, AttributeRequest(mtime_ns=10**18 + len(history)), None)
                done = len(history)
                await trio.lowlevel.checkpoint()

        def state_after(count: int) -> bytes:
            content = bytearray(size)
            for offset, data, cut in history[:count]:
                if cut is not None:
                    del content[cut:]
                    content.extend(bytes(cut - len(content)))
                else:
                    content.extend(bytes(max(0, offset - len(content))))
                    content[offset : offset + len(data)] = data
            return bytes(content)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write_on)
            at = 0

            def note() -> None:
                nonlocal at
                at = done

            for number in range(1, 7):
                await trio.sleep(0.05)
                async with cutting(rig, place.root, number, note) as epoch:
                    await epoch.cut.send()
                    epoch.note()
                    found = (await epoch.contents(rig))[b"a"]
                    assert at > 0
                    which = [count for count in (at, at + 1) if state_after(count) == found]
                    assert which, f"no state after {at} operations"
                    if which == [at]:
                        assert epoch.files[b"a"].mtime_ns == 10**18 + at
            nursery.cancel_scope.cancel()


@pytest.mark.slow
async def test_a_version_is_sent_once(place: RigPlace) -> None:
    async with place.opened(LIMITS) as rig:
        first = await make_file(rig, b"a", OLD)
        async with held_cut(rig, place) as epoch:
            second = await make_file(rig, b"b", NEW)
        assert await epoch.contents(rig) == {b"a": OLD}
        stored = packs(place)
        async with held_cut(rig, place, 2) as later:
            pass
        assert len(later.cut.locations) == 3
        assert {pack.number for pack in epoch.cut.packs}.isdisjoint(pack.number for pack in later.cut.packs)
        assert await later.contents(rig) == {b"a": OLD, b"b": NEW}
        async with held_cut(rig, place, 3) as last:
            pass
        assert len(last.cut.packs) == 0
        assert stored < packs(place)
        third = await make_file(rig, b"c", NEW)
        async with held_cut(rig, place, 4) as copied:
            pass
        assert len(copied.cut.packs) == 0
        assert {ino for ino, _ in copied.cut.duplicates} == {third}
        assert (await copied.contents(rig))[b"c"] == NEW
        assert await read_file(rig, first) + await read_file(rig, second) == OLD + NEW


@pytest.mark.slow
async def test_a_pack_that_only_an_epoch_names_stays_as_long_as_that(place: RigPlace) -> None:
    async with place.opened(LIMITS) as rig:
        await make_file(rig, b"a", OLD)
        async with held_cut(rig, place) as epoch:
            await rig.filesystem.tree.unlink(ROOT_INODE, b"a")
            await rig.cache.checkpoint()
        [pack] = epoch.cut.packs
        assert (await rig.metadata.get_pack(pack.number)).dead
        for kept in (0, 1):
            await rig.collector.collect(oldest_kept_epoch=keeping(kept), thorough=True)
            assert await epoch.contents(rig) == {b"a": OLD}
        await rig.collector.collect(oldest_kept_epoch=keeping(2), thorough=True)
        assert packs(place) == set()


@pytest.mark.slow
async def test_the_cache_is_full_of_a_cut(place: RigPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies aside count; whoever writes waits for the cut to be sent, which needs no room."""
    monkeypatch.setattr("cuckoo_mount.cache.pressure.STALL_S", 20)
    content = random.Random(7).randbytes(9 * MIB)
    async with place.opened(CacheLimits(limit_bytes=16 << 20, overshoot_bytes=0)) as rig:
        ino = await make_file(rig, b"a", content)
        async with trio.open_nursery() as nursery:
            async with held_cut(rig, place) as epoch:
                nursery.start_soon(overwrite, rig, ino, 0, NEW)
                await trio.testing.wait_all_tasks_blocked(0.01)
                assert rig.cache.statistics().used_bytes >= 12 * MIB
                nursery.start_soon(overwrite, rig, ino, 4 * MIB, NEW)
                await trio.testing.wait_all_tasks_blocked(0.01)
                assert len(asides(place)) == 3, "the second one waits"
                nursery.start_soon(rig.cache.send_all)
            assert await epoch.contents(rig) == {b"a": content}
        assert asides(place) == []
        await rig.cache.send_all()
        assert await read_file(rig, ino, 16 * MIB) == NEW + content[3 * MIB : 4 * MIB] + NEW + content[7 * MIB :]


@pytest.mark.slow
async def test_clouds_away_and_a_cut_given_up(place: RigPlace) -> None:
    async with place.opened(LIMITS) as rig:
        ino = await make_file(rig, b"a", OLD)
        identity = next(place.cloud_folder.glob("cuckoo/*/drive.json"))
        identity.rename(place.root / "drive.json")
        await rig.multifs.probe()
        async with cutting(rig, place.root, 1) as epoch:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(epoch.cut.send)
                with trio.fail_after(30):
                    while not rig.cache.statistics().last_error:
                        await trio.testing.wait_all_tasks_blocked(0.01)
                await overwrite(rig, ino, 0, NEW)
                nursery.cancel_scope.cancel()
            assert epoch.cut.unsent_bytes == len(OLD)
        assert asides(place) == []
        assert os.listdir(place.state_folder / "staging") == []
        assert await rig.cache.check_invariants() == []
        (place.root / "drive.json").rename(identity)
        await rig.multifs.probe()
        async with held_cut(rig, place) as again:
            pass
        assert await again.contents(rig) == {b"a": NEW}


@pytest.mark.slow
async def test_killed_in_the_middle_of_a_cut(place: RigPlace, tmp_path: Path) -> None:
    copy = RigPlace(tmp_path / "copy", drive_id=place.drive_id, cloud_id=place.cloud_id, drive_key=place.drive_key)
    copy.root.mkdir()
    async with place.opened(LIMITS) as rig:
        ino = await make_file(rig, b"a", OLD)
        gone = await make_file(rig, b"b", OLD)
        async with held_cut(rig, place):
            await overwrite(rig, ino, 0, NEW[:MIB])
            await resize(rig, gone, 5)
            await rig.cache.checkpoint()
            assert asides(place)
            names = [str(place.root / name) for name in ("state", "cloud", "cache")]
            await trio.run_process(["cp", "-r", "--sparse=always", *names, str(copy.root)])
    assert asides(copy)
    async with copy.opened(LIMITS) as rig:
        assert asides(copy) == []
        assert await rig.cache.check_invariants() == []
        async with held_cut(rig, copy) as epoch:
            pass
        assert await epoch.contents(rig) == {b"a": NEW[:MIB] + OLD[MIB:], b"b": OLD[:5]}
        await rig.collector.collect(oldest_kept_epoch=keeping(0), thorough=True)
        assert await read_file(rig, ino) == NEW[:MIB] + OLD[MIB:]


async def test_a_moment_that_waits_is_refused(place: RigPlace) -> None:
    async def waits() -> None:
        await trio.sleep(1)

    async with place.opened(LIMITS) as rig:
        ino = await make_file(rig, b"a", OLD)
        with pytest.raises(AssertionError, match="waited"):
            async with rig.cache.cut(1, waits):
                pass
        await overwrite(rig, ino, 0, NEW)
        await rig.cache.send_all()
        async with held_cut(rig, place) as epoch:
            pass
        assert await epoch.contents(rig) == {b"a": NEW}


async def test_writes_wait_for_packs_under_way_but_are_not_stopped_by_them(place: RigPlace) -> None:
    """A cut waits for the pack that is under way; meanwhile all goes on, and what is written then belongs to it."""
    async with place.opened(LIMITS) as rig:
        ino = await make_file(rig, b"a", OLD)
        await rig.cache.checkpoint()
        rig.pool.hold()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.cache.send_all)
            while not rig.pool.waiting:
                await trio.testing.wait_all_tasks_blocked(0.001)

            async def cut() -> None:
                async with cutting(rig, place.root, 1) as epoch:
                    await epoch.cut.send()
                    epoch.note()
                    assert await epoch.contents(rig) == {b"a": NEW}

            nursery.start_soon(cut)
            await trio.testing.wait_all_tasks_blocked(0.01)
            with trio.fail_after(5):
                await overwrite(rig, ino, 0, NEW)
                handle, _ = await rig.filesystem.create(ROOT_INODE, b"x", 0o644, Caller(0, 0))
                await rig.filesystem.release(handle)
                await rig.filesystem.tree.unlink(ROOT_INODE, b"x")
            rig.pool.let_go()

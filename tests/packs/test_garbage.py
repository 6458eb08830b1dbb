"""Collecting over a real store: silent clouds, epochs, uploads that were given up, objects that nobody knows."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cuckoo_mount.errors import CloudTimeout, CloudUnavailable
from cuckoo_mount.format import pack_share_name
from cuckoo_mount.packs.collecting import Collected, keeping
from cuckoo_mount.packs.garbage import UNKNOWN_AGE_NS, collect_garbage, delete_unknown, find_orphans, load_known
from cuckoo_mount.types import CloudName
from tests.packs.packtools import DRIVE, stored_objects
from tests.packs.test_compaction import Drive

A, B = CloudName("a"), CloudName("b")


@pytest.fixture
def drive(tmp_path: Path) -> Drive:
    return Drive(tmp_path, "a", "b")


async def _orphans(drive: Drive) -> int:
    return len((await find_orphans(drive.multifs, DRIVE, lambda: load_known(drive.metadata))).orphans)


async def test_a_silent_cloud_keeps_only_its_own_packs(drive: Drive) -> None:
    drive.policy = "1"
    async with drive.mounted():
        for number in range(12):
            await drive.add(b"%d" % number)
        await drive.remove(*list(drive.contents))
        dead = await drive.metadata.dead_packs(100)
        on_b = {pack.number for pack in dead if pack.shares[0].cloud == B}
        assert 0 < len(on_b) < 12
        drive.pool.always["b"] = CloudUnavailable("down")
        collected = await drive.collector.collect(thorough=False)
        assert (collected.packs_deleted, collected.packs_kept) == (12 - len(on_b), len(on_b))
        # By pages: a page full of what waits for `b` does not hide what comes behind it.
        for number in range(4):
            await drive.add(b"more-%d" % number)
        await drive.remove(*list(drive.contents))
        after, deleted = None, 0
        while (page := await collect_garbage(drive.metadata, drive.multifs, limit=2, after=after)).last is not None:
            after, deleted = page.last, deleted + page.packs
        assert deleted + page.packs == 4
        drive.pool.always.clear()
        await drive.multifs.probe()
        assert (await drive.collector.collect(thorough=False)).packs_deleted == len(on_b)
        assert drive.objects() == 0


async def test_a_dead_share_is_deleted_once(drive: Drive) -> None:
    """While the other copy waits for its cloud, nothing is asked of the one that is done."""
    async with drive.mounted():
        await drive.add(b"f")
        await drive.remove(b"f")
        drive.pool.always["b"] = CloudUnavailable("down")
        await drive.multifs.probe()
        collected = await drive.collector.collect(thorough=False)
        assert (collected.packs_deleted, collected.packs_kept) == (0, 1)
        assert (stored_objects(drive.clouds[A]), len(stored_objects(drive.clouds[B]))) == ([], 1)
        assert await drive.metadata.check_invariants() == []
        assert set(await drive.metadata.cloud_usage()) == {B}
        drive.pool.calls.clear()
        await drive.collector.collect(thorough=False)
        assert drive.pool.calls == []
        drive.pool.always.clear()
        await drive.multifs.probe()
        assert (await drive.collector.collect(thorough=False)).packs_deleted == 1
        assert drive.objects() == 0


async def test_shares_stay_as_long_as_a_kept_epoch_has_them(drive: Drive) -> None:
    async with drive.mounted():
        await drive.metadata.set_local("epoch", "3")
        await drive.add(b"old")
        await drive.add(b"never-cut")
        await drive.remove(b"never-cut")
        await drive.metadata.set_local("epoch", "5")
        await drive.remove(b"old")
        collected = await drive.collector.collect(oldest_kept_epoch=keeping(4), thorough=True)
        assert collected.packs_deleted == 1, "only what no epoch ever saw"
        assert drive.objects() == 2
        assert (await drive.collector.collect(oldest_kept_epoch=keeping(5), thorough=False)).packs_deleted == 1
        assert drive.objects() == 0


async def test_an_upload_that_only_seemed_to_fail_is_cleared_away(tmp_path: Path) -> None:
    drive = Drive(tmp_path, "a", "b")
    drive.policy = "1"
    async with drive.mounted():
        drive.pool.late["put_share"] = CloudTimeout("took too long")
        await drive.add(b"f")
        assert drive.objects() == 2
        assert await _orphans(drive) == 1
        (stray,) = await drive.metadata.strays()
        await drive.metadata.make_durable()
    async with drive.mounted():
        drive.pool.always[stray[1]] = CloudUnavailable("down")
        await drive.multifs.probe()
        drive.pool.calls.clear()
        await drive.collector.collect(thorough=False)
        assert drive.pool.calls == [], "a cloud that is down is not asked"
        drive.pool.always.clear()
        await drive.multifs.probe()
        await drive.collector.collect(thorough=False)
        assert await drive.metadata.strays() == []
        assert (drive.objects(), await _orphans(drive)) == (1, 0)
        await drive.verify_contents()


async def test_uploads_interrupted_by_a_crash_wait_for_their_cloud(drive: Drive) -> None:
    async with drive.mounted():
        await drive.add(b"f")
        built = await drive.writer.build([])
        await drive.writer.store(built)
        assert drive.objects() == 4
    folder, away = drive.clouds[B].settings.url, str(drive.root / "away")
    os.rename(folder, away)
    os.mkdir(folder)
    async with drive.mounted():
        assert await drive.metadata.pack_intents() == [built.pack_id]
        os.rmdir(folder)
        os.rename(away, folder)
        await drive.multifs.probe()
        await drive.collector.collect(thorough=False)
        assert await drive.metadata.pack_intents() == []
        assert drive.objects() == 2
        drive.pool.calls.clear()
        assert await drive.collector.collect(thorough=False) == Collected()
        assert drive.pool.calls == []


async def test_unknown_objects_go_after_a_day(drive: Drive) -> None:
    async with drive.mounted():
        await drive.add(b"f")
        path = Path(drive.clouds[A].settings.url) / pack_share_name(DRIVE, b"z" * 16, 0)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"12345")
        day = 10**18
        assert await delete_unknown(drive.metadata, drive.multifs, DRIVE, now_ns=day) == (0, 1)
        assert await delete_unknown(drive.metadata, drive.multifs, DRIVE, now_ns=day - 1) == (0, 1)
        assert await delete_unknown(drive.metadata, drive.multifs, DRIVE, now_ns=day + UNKNOWN_AGE_NS - 1) == (0, 1)
        drive.pool.always["b"] = CloudUnavailable("down")
        assert await delete_unknown(drive.metadata, drive.multifs, DRIVE, now_ns=day + UNKNOWN_AGE_NS) == (1, 0)
        assert not path.exists()
        assert len(stored_objects(drive.clouds[A])) == 1


async def test_an_object_that_becomes_known_is_forgotten(drive: Drive) -> None:
    async with drive.mounted():
        assert await drive.metadata.note_unknown(A, ["x", "y"], 5) == {"x": 5, "y": 5}
        assert await drive.metadata.note_unknown(B, ["x"], 6) == {"x": 6}
        assert await drive.metadata.note_unknown(A, ["y", "z"], 7) == {"y": 5, "z": 7}
        assert await drive.metadata.note_unknown(A, ["x"], 8) == {"x": 8}

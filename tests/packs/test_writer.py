"""PackWriter in this process: the order of steps, cancellation at every one of them, and what a mount undoes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio

from cuckoo_mount.errors import CloudUnavailable, DataUnavailable
from cuckoo_mount.format import identity_name, pack_share_name
from cuckoo_mount.multi.health import Health
from cuckoo_mount.multi.multifs import MultiFS
from cuckoo_mount.multi.policies import Policies
from cuckoo_mount.packs.builder import ChunkSource
from cuckoo_mount.packs.garbage import Known, Orphan, collect_garbage, find_orphans
from cuckoo_mount.packs.inspect import inspect_pack
from cuckoo_mount.packs.writer import PackWriter, Recovery
from cuckoo_mount.types import CloudName
from tests.packs.packtools import DRIVE, KEYS, InlinePool, SmallCatalogue, make_clouds, make_sources, stored_objects

CONTENTS = [b"one" * 100, b"", b"three" * 10]


class Drive:
    """What stays of a drive when its process is killed, and what a mount makes of it."""

    def __init__(self, root: Path, *names: str, policy: str = "1") -> None:
        self.clouds = make_clouds(root, *names)
        self.catalogue = SmallCatalogue()
        self.staging = root / "state" / "staging"
        self.policy = policy
        (files := root / "files").mkdir()
        self.sources = make_sources(files, CONTENTS)
        self.mount()
        self.staging.mkdir(parents=True)

    def mount(self) -> None:
        self.pool = InlinePool()
        self.multifs = MultiFS(self.clouds, self.pool, Health(jitter=lambda: 0.0), DRIVE)
        self.writer = PackWriter(
            self.catalogue,
            self.multifs,
            self.pool,
            KEYS,
            self.staging,
            drive_id=DRIVE,
            encrypted=True,
            policies=Policies(self.policy),
        )

    def objects(self) -> list[Path]:
        return [path for entry in self.clouds.values() for path in stored_objects(entry)]

    def staged(self) -> list[str]:
        return sorted(os.listdir(self.staging))

    async def known(self) -> Known:
        return Known(await self.catalogue.pack_intents(), self.catalogue.packs.values())


async def test_build_store_finish(tmp_path: Path) -> None:
    drive = Drive(tmp_path, "a")
    built = await drive.writer.build(drive.sources)
    assert drive.staged() == [f"{built.pack_id.hex()}.pack"]
    assert [sealed.chunk for sealed in built.sealed] == [source.chunk for source in drive.sources]
    stored = await drive.writer.store(built)
    assert (stored.pack_id, stored.policy, stored.size_bytes) == (built.pack_id, "1", built.size_bytes)
    assert drive.staged() == []
    (share,) = stored.shares
    assert share.digest == built.share_digest
    data = (tmp_path / "a" / pack_share_name(DRIVE, built.pack_id, 0)).read_bytes()
    assert list(inspect_pack(data, DRIVE, built.pack_id, KEYS, encrypted=True).chunks) == CONTENTS
    drive.catalogue.finish(stored)


async def test_the_intent_is_durable_before_the_first_byte_is_sent(tmp_path: Path) -> None:
    drive = Drive(tmp_path, "a")
    built = await drive.writer.build(drive.sources)
    assert drive.catalogue.intents == [], "a pack that is only built concerns nobody"
    seen: list[list[bytes]] = []
    drive.pool.on_step = lambda: seen.append(list(drive.catalogue.durable_intents))
    await drive.writer.store(built)
    assert seen
    assert all(intents == [built.pack_id] for intents in seen)


async def test_every_pack_has_an_id_and_bytes_of_its_own(tmp_path: Path) -> None:
    drive = Drive(tmp_path, "a")
    packs = [await drive.writer.build(drive.sources) for _ in range(5)]
    assert len({built.pack_id for built in packs}) == 5
    assert len({built.share_digest for built in packs}) == 5
    for built in packs:
        await drive.writer.discard(built)
    assert drive.staged() == []
    assert "abandon_pack" not in drive.catalogue.log


async def test_a_failed_store_can_be_repeated(tmp_path: Path) -> None:
    drive = Drive(tmp_path, "a")
    built = await drive.writer.build(drive.sources)
    drive.pool.always["a"] = CloudUnavailable("down")
    with pytest.raises(CloudUnavailable):
        await drive.writer.store(built)
    assert drive.staged()
    assert drive.catalogue.durable_intents == [built.pack_id]
    drive.pool.always.clear()
    await drive.multifs.probe()
    assert (await drive.writer.store(built)).shares
    assert drive.catalogue.log.count("begin_pack") == 1


async def test_a_failed_store_can_be_discarded(tmp_path: Path) -> None:
    drive = Drive(tmp_path, "a")
    built = await drive.writer.build(drive.sources)
    drive.pool.always["a"] = CloudUnavailable("down")
    with pytest.raises(CloudUnavailable):
        await drive.writer.store(built)
    await drive.writer.discard(built)
    assert drive.staged() == []
    assert drive.catalogue.intents == [built.pack_id], "kept: the cloud may have it"
    drive.mount()
    assert await drive.writer.recover() == Recovery(1, 0, 0)
    assert drive.catalogue.intents == []


async def test_a_pack_that_is_renounced_takes_no_room(tmp_path: Path) -> None:
    """It was stored and never entered; until its objects are deleted the intent tells of them."""
    drive = Drive(tmp_path, "a", "b", policy="2")
    drive.writer.renounce(await drive.writer.store(await drive.writer.build(drive.sources)))
    assert await drive.writer.check_invariants() == []
    assert [figures.used_bytes for figures in drive.multifs.statistics()] == [0, 0]
    assert await drive.writer.withdraw_left() == 0
    assert (drive.objects(), drive.catalogue.intents) == ([], [])
    assert await drive.writer.check_invariants() == []


async def test_what_nobody_is_about_is_found(tmp_path: Path) -> None:
    drive = Drive(tmp_path, "a")
    built = await drive.writer.build(drive.sources)
    drive.pool.always["a"] = CloudUnavailable("down")
    with pytest.raises(CloudUnavailable):
        await drive.writer.store(built)
    assert await drive.writer.check_invariants() == []
    (drive.staging / f"{bytes(16).hex()}.pack").touch()
    assert [line[:4] for line in await drive.writer.check_invariants()] == ["I-17"]
    drive.catalogue.intents.clear()
    assert {line[:4] for line in await drive.writer.check_invariants()} == {"I-9:", "I-17", "I-34"}


async def test_a_failed_build_leaves_no_file(tmp_path: Path) -> None:
    drive = Drive(tmp_path, "a")
    unreadable = ChunkSource(drive.sources[0].chunk, str(tmp_path), 0)
    with pytest.raises(DataUnavailable):
        await drive.writer.build([*drive.sources, unreadable])
    assert drive.staged() == []


async def test_recovery_undoes_what_a_crash_left(tmp_path: Path) -> None:
    drive = Drive(tmp_path, "a", "b", policy="2")
    kept = await drive.writer.store(await drive.writer.build(drive.sources))
    drive.catalogue.finish(kept)
    await drive.writer.build(drive.sources)
    await drive.writer.store(await drive.writer.build(drive.sources))
    assert len(drive.objects()) == 4
    drive.mount()
    assert await drive.writer.recover() == Recovery(withdrawn=1, kept=0, files=1)
    assert (len(drive.objects()), drive.staged(), drive.catalogue.intents) == (2, [], [])
    assert await drive.writer.recover() == Recovery(0, 0, 0)


async def test_recovery_waits_for_a_cloud_that_is_away(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    drive = Drive(tmp_path, "a", "b", policy="2")
    await drive.writer.store(await drive.writer.build(drive.sources))
    (tmp_path / "b").rename(tmp_path / "unmounted")
    (tmp_path / "b").mkdir()
    drive.mount()
    assert await drive.writer.recover() == Recovery(withdrawn=0, kept=1, files=0)
    assert "cleared away later" in caplog.text
    (tmp_path / "b").rmdir()
    (tmp_path / "unmounted").rename(tmp_path / "b")
    drive.mount()
    assert await drive.writer.recover() == Recovery(withdrawn=1, kept=0, files=0)
    assert drive.objects() == []


async def test_recovery_makes_the_staging_folder(tmp_path: Path) -> None:
    drive = Drive(tmp_path, "a")
    drive.staging.rmdir()
    await drive.writer.recover()
    assert drive.staging.stat().st_mode & 0o777 == 0o700


class CancelAt:
    """Cancels `scope` at the n-th step of pool and catalogue."""

    def __init__(self, drive: Drive, step: int) -> None:
        self.scope = trio.CancelScope()
        self.left = step
        drive.pool.on_step = self._count
        drive.catalogue.on_step = self._count

    def _count(self) -> None:
        self.left -= 1
        if self.left == 0:
            self.scope.cancel()


@pytest.mark.parametrize("ending", ["crash", "discard"])
async def test_cancelled_at_every_step(tmp_path: Path, ending: str) -> None:
    step = 0
    while True:
        step += 1
        (root := tmp_path / str(step)).mkdir()
        drive = Drive(root, "a", "b", policy="2")
        cancel = CancelAt(drive, step)
        stored = built = None
        with cancel.scope:
            built = await drive.writer.build(drive.sources)
            stored = await drive.writer.store(built)
        drive.pool.on_step = drive.catalogue.on_step = lambda: None
        assert await drive.writer.check_invariants() == []
        if ending == "discard" and built is not None and stored is None:
            await drive.writer.discard(built)
        if ending == "crash" or stored is not None or drive.catalogue.intents:
            # An upload that was cancelled may still go on in a worker, so that it is not withdrawn at once.
            drive.mount()
            await drive.writer.recover()
        assert (drive.objects(), drive.staged(), drive.catalogue.intents) == ([], [], []), f"step {step}"
        assert await drive.writer.check_invariants() == []
        if stored is not None:
            assert step > 8, "there are more steps than that"
            return


# -- garbage and orphans --


async def test_garbage_goes_after_its_death_is_durable(tmp_path: Path) -> None:
    drive = Drive(tmp_path, "a", "b", policy="2")
    for dead in (True, False, True):
        drive.catalogue.finish(await drive.writer.store(await drive.writer.build(drive.sources)), dead=dead)
    drive.catalogue.log.clear()
    sizes = [pack.size_bytes for pack in drive.catalogue.packs.values() if pack.dead]
    collected = await collect_garbage(drive.catalogue, drive.multifs)
    assert (collected.packs, collected.freed_bytes, collected.kept) == (2, 2 * sum(sizes), 0)
    assert drive.catalogue.log == ["dead_packs", "make_durable", "forget_pack", "forget_pack"]
    assert len(drive.objects()) == 2
    assert (await collect_garbage(drive.catalogue, drive.multifs)).packs == 0


async def test_garbage_waits_for_a_cloud_that_is_down(tmp_path: Path) -> None:
    drive = Drive(tmp_path, "a", "b", policy="2")
    drive.catalogue.finish(await drive.writer.store(await drive.writer.build(drive.sources)), dead=True)
    drive.pool.always["b"] = CloudUnavailable("down")
    assert (await collect_garbage(drive.catalogue, drive.multifs)).kept == 1
    assert drive.catalogue.packs
    drive.pool.always.clear()
    await drive.multifs.probe()
    assert (await collect_garbage(drive.catalogue, drive.multifs)).packs == 1
    assert (drive.objects(), drive.catalogue.packs) == ([], {})


async def test_garbage_cancelled_at_every_step(tmp_path: Path) -> None:
    step, finished = 0, False
    while not finished:
        step += 1
        (root := tmp_path / str(step)).mkdir()
        drive = Drive(root, "a")
        drive.catalogue.finish(await drive.writer.store(await drive.writer.build(drive.sources)), dead=True)
        cancel = CancelAt(drive, step)
        with cancel.scope:
            await collect_garbage(drive.catalogue, drive.multifs)
            finished = True
        drive.pool.on_step = drive.catalogue.on_step = lambda: None
        assert drive.catalogue.packs or not drive.objects(), "no object without a row"
        assert await drive.writer.check_invariants() == []
        await collect_garbage(drive.catalogue, drive.multifs)
        assert await drive.writer.check_invariants() == []
        assert (drive.objects(), drive.catalogue.packs) == ([], {})


async def test_orphans_are_found(tmp_path: Path) -> None:
    drive = Drive(tmp_path, "a", "b", policy="2")
    stored = await drive.writer.store(await drive.writer.build(drive.sources))
    drive.catalogue.finish(stored)
    await drive.writer.store(await drive.writer.build(drive.sources))  # its intent explains it
    assert (await find_orphans(drive.multifs, DRIVE, drive.known)).orphans == ()
    here, there = (next(share for share in stored.shares if share.cloud == name) for name in "ab")
    name = pack_share_name(DRIVE, stored.pack_id, here.share)
    elsewhere = pack_share_name(DRIVE, stored.pack_id, there.share)  # known, but on the other cloud
    strange = [elsewhere, name + ".txt", pack_share_name(DRIVE, b"z" * 16, 0)]
    for other in strange:
        (path := tmp_path / "a" / other).parent.mkdir(exist_ok=True)
        path.write_bytes(b"12345")
    found = await find_orphans(drive.multifs, DRIVE, drive.known)
    assert set(found.orphans) == {Orphan(CloudName("a"), other, 5) for other in strange}
    assert found.not_listed == ()


async def test_orphans_on_a_cloud_that_is_down_are_not_looked_for(tmp_path: Path) -> None:
    drive = Drive(tmp_path, "a", "b")
    (tmp_path / "b" / identity_name(DRIVE)).unlink()
    found = await find_orphans(drive.multifs, DRIVE, drive.known)
    assert [name for name, _ in found.not_listed] == ["b"]
    assert found.orphans == ()

"""Scrubbing over a real store: something else happens, or the process ends, between any two steps."""

from __future__ import annotations

import os
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from cuckoo_mount.errors import Busy
from cuckoo_mount.format import pack_share_name
from cuckoo_mount.packs.garbage import clear_strays
from cuckoo_mount.packs.scrubbing import Scrubbed, Scrubber, ScrubRequest
from cuckoo_mount.packs.scrubjobs import look_at_shares
from cuckoo_mount.types import CloudName, CloudRow
from tests.metadata.helpers import copy_as_after_kill
from tests.packs.packtools import DRIVE, KEYS, stored_objects
from tests.packs.test_compaction import Drive, Killed

A, B = CloudName("a"), CloudName("b")
CLOUDS = ("a", "b", "c")
LOOK = ScrubRequest(heal=False)
DEEP = ScrubRequest(deep=True)


def scrubber_of(drive: Drive) -> Scrubber:
    return Scrubber(drive.metadata, drive.multifs, drive.reader, drive.collector, KEYS, DRIVE)


async def fill(drive: Drive) -> None:
    for name, entry in drive.clouds.items():
        await drive.metadata.put_cloud(CloudRow(name, entry.cloud_id, entry.settings.url, None, 0, "", False))
    for number in range(6):
        await drive.add(b"%d-0" % number, b"%d-1" % number)
    await drive.metadata.make_durable()


def new_drive(root: Path) -> Drive:
    root.mkdir(exist_ok=True)
    drive = Drive(root, *CLOUDS)
    drive.policy = "2"
    return drive


def damage(drive: Drive) -> None:
    """Delete a share, and change a bit of one of another pack, or of the same one's other copy."""
    gone, *_ = stored_objects(drive.clouds[A])
    gone.unlink()
    spoilt = stored_objects(drive.clouds[B])[-1]
    if spoilt.name.partition(".")[0] == gone.name.partition(".")[0]:
        spoilt = stored_objects(drive.clouds[B])[0]
    data = bytearray(spoilt.read_bytes())
    data[-1] ^= 1
    spoilt.write_bytes(data)


def figures(found: Scrubbed) -> tuple[int, int, int, int, int]:
    return found.missing, found.damaged, found.left, found.lost, found.degraded


# -- what happens meanwhile --

Disturb = Callable[[Drive], Awaitable[None]]


async def collect_everything(drive: Drive) -> None:
    await drive.remove(*list(drive.contents))
    await drive.collector.collect(thorough=True)
    assert drive.objects() == 0


async def compact(drive: Drive) -> None:
    for number in range(6):
        await drive.remove(b"%d-1" % number)
    assert (await drive.collector.collect(thorough=True)).packs_compacted


async def store_more(drive: Drive) -> None:
    await drive.add(b"new-0")
    await drive.add(b"new-1")


async def delete_halfway(drive: Drive) -> None:
    """As a collection that was stopped before the rows of what it deleted were gone."""
    await drive.remove(*list(drive.contents))
    await drive.metadata.make_durable()
    assert await drive.multifs.delete_packs(await drive.metadata.dead_packs(100))


@pytest.mark.parametrize("disturb", [collect_everything, delete_halfway, compact, store_more])
@pytest.mark.parametrize("deep", [False, True])
async def test_nothing_is_missing_because_something_happened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, disturb: Disturb, deep: bool
) -> None:
    """Before each job of a scrub in turn."""
    turn, is_disturbed = 0, True
    while is_disturbed:
        drive = new_drive(tmp_path / str(turn))
        async with drive.mounted():
            await fill(drive)
            with monkeypatch.context() as patch:
                counted = _disturbed(drive, turn, disturb, patch)
                found = await scrubber_of(drive).scrub(ScrubRequest(deep=deep, heal=False))
            assert figures(found) == (0, 0, 0, 0, 0), turn
            await drive.verify_contents()
            is_disturbed = counted() > turn
        shutil.rmtree(drive.root)
        turn += 4 if deep and not request.config.getoption("--long") else 1
    assert turn > (20 if deep else 9), "a probe, a listing and a probe on each cloud, and the reads"


def _disturbed(drive: Drive, turn: int, disturb: Disturb, patch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Do it before job number `turn`; return what tells how many jobs there were."""
    run, count, is_disturbing = drive.pool.run, 0, False

    async def disturbed(function: Callable[..., object], *args: object, deadline_s: float) -> object:
        nonlocal count, is_disturbing
        if not is_disturbing:  # the jobs of what disturbs do not count
            count += 1
            if count == turn + 1:
                is_disturbing = True
                await disturb(drive)
                is_disturbing = False
        return await run(function, *args, deadline_s=deadline_s)

    patch.setattr(drive.pool, "run", disturbed)
    return lambda: count


async def test_a_place_that_is_emptied_while_it_is_asked_proves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drive = new_drive(tmp_path)
    async with drive.mounted():
        await fill(drive)
        stored_objects(drive.clouds[A])[0].unlink()
        run, top = drive.pool.run, f"{drive.clouds[A].settings.url}/cuckoo"

        async def emptied(function: Callable[..., object], *args: object, deadline_s: float) -> object:
            if function is look_at_shares:
                os.rename(top, f"{top}.away")
            return await run(function, *args, deadline_s=deadline_s)

        monkeypatch.setattr(drive.pool, "run", emptied)
        found = await scrubber_of(drive).scrub(LOOK)
        assert figures(found) == (0, 0, 0, 0, 0)
        assert found.unchecked == 1
        assert found.silent.keys() == {A}


# -- killed --


async def test_killed_at_every_step(tmp_path: Path) -> None:
    """Whatever was done by then: everything can be read, and the next scrub leaves nothing to do."""
    step, ended = 0, False
    while not ended:
        step += 5
        drive = new_drive(tmp_path / str(step))
        async with drive.mounted():
            await fill(drive)
            damage(drive)
            try:
                ended = await _until(drive, step)
            except* Killed:
                pass
            drive.pool.on_step = lambda: None
        if not ended:
            for suffix in ("", "-wal"):
                (drive.root / f"metadata{suffix}").unlink(missing_ok=True)
                os.rename(drive.root / f"killed{suffix}", drive.root / f"metadata{suffix}")
        async with drive.mounted():
            await drive.verify_contents()
            found = await scrubber_of(drive).scrub(DEEP)
            assert figures(found)[2:] == (0, 0, 0)
            await drive.collector.collect(thorough=True)
            assert drive.objects() == 2 * len(await drive.metadata.packs(100))
            await drive.verify_contents()
        shutil.rmtree(drive.root)
    assert step > 30


async def _until(drive: Drive, step: int) -> bool:
    """Scrub until that step, and keep the store as a kill would leave it; return whether it came to its end."""

    def count() -> None:
        nonlocal step
        step -= 1
        if step == 0:
            copy_as_after_kill(drive.root / "metadata", drive.root / "killed")
            raise Killed

    drive.pool.on_step = count
    await scrubber_of(drive).scrub(DEEP)
    return True


# -- one at a time --


async def test_one_at_a_time(tmp_path: Path) -> None:
    drive = new_drive(tmp_path)
    async with drive.mounted():
        await fill(drive)
        scrubber = scrubber_of(drive)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(scrubber.scrub, DEEP)
            with trio.fail_after(10):
                while not scrubber.progress.phase:
                    await trio.lowlevel.checkpoint()
            with pytest.raises(Busy, match="is running already"):
                await scrubber.scrub(LOOK)
        assert scrubber.progress.phase == ""
        assert figures(await scrubber.scrub(LOOK)) == (0, 0, 0, 0, 0)


async def test_what_is_left_of_a_damaged_share_stays_until_its_pack_is_healed(tmp_path: Path) -> None:
    drive = new_drive(tmp_path)
    async with drive.mounted():
        await fill(drive)
        damage(drive)
        found = await scrubber_of(drive).scrub(ScrubRequest(deep=True, heal=False))
        assert figures(found) == (1, 1, 2, 0, 2)
        ((pack_id, cloud),) = await drive.metadata.strays()
        pack = await drive.metadata.find_pack(pack_id)
        assert pack is not None
        (other,) = {0, 1} - {share.share for share in pack.shares}
        path = Path(drive.clouds[cloud].settings.url) / pack_share_name(DRIVE, pack_id, other)
        assert path.exists()
        assert await clear_strays(drive.metadata, drive.multifs, DRIVE, shares=2) == 1
        assert path.exists()
        await drive.collector.heal_all()
        assert path.exists()
        await drive.collector.collect(thorough=False)
        assert not path.exists()
        assert await drive.metadata.strays() == []
        await drive.verify_contents()

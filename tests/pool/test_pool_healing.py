"""Packs that have too few shares, or a damaged one, get all of them again by themselves."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any, Final

import pytest
import trio
from attrs import evolve

from cuckoo_mount.config import write_config
from cuckoo_mount.drive import Drive
from cuckoo_mount.testing.faulty import write_plan
from cuckoo_mount.types import ROOT_INODE
from tests.pool.conftest import MakePool
from tests.pool.packing import KIB, SEED
from tests.pool.pooling import ME, Place, PoolMount, bring_back, folder_place, hide, take_inventory
from tests.pool.test_pool_erasure import CLOUDS, five_folders

pytestmark = [pytest.mark.mount, pytest.mark.slow]

FILES: Final = 12
PACK_BYTES: Final = 1 << 20
RATE_BYTES: Final = 3 << 20


def content(number: int) -> bytes:
    return random.Random(number).randbytes(50 * KIB + number)


def write_files(mount: PoolMount, first: int = 0, count: int = FILES) -> None:
    """One pack for each file."""
    for number in range(first, first + count):
        (mount.path / f"f{number}").write_bytes(content(number))
        mount.sync()


def readable(mount: PoolMount, count: int = FILES) -> int:
    """Return how many files can be read from the clouds; those that can have the right bytes."""
    mount.evict()
    mount.drop_caches()
    found = 0
    for number in range(count):
        try:
            data = (mount.path / f"f{number}").read_bytes()
        except OSError:
            continue
        assert data == content(number)
        found += 1
    return found


@pytest.mark.long
async def test_a_drive_heals_by_itself_and_gives_way(tmp_path: Path, make_pool: MakePool) -> None:
    """As soon as a cloud is back, but what a program wrote meanwhile goes first."""
    places = [folder_place(tmp_path / "clouds", name) for name in ("a", "b")]
    mount = make_pool(places, redundancy="2")
    write_plan(places[1].plan, {"calls": ["put"], "match": "/packs/", "action": "fail"}, seed=SEED)
    async with mount.opened() as opened:
        drive = opened.drive
        for number in range(FILES):
            await opened.write(f"f{number}", content(number))
            await opened.sync()
        assert (await drive.degraded_packs()) == FILES
        assert len(places[0].packs()) == FILES, "packs were written that are no better"
        await write_and_sync(drive, b"urgent", content(FILES))
        write_plan(places[1].plan)
        await drive.retry_clouds()
        with trio.fail_after(60):
            while drive.pending().chunks:
                assert (await healed(drive)) == 0, "healing went before what a program wrote"
                await trio.sleep(0.05)
            while await drive.degraded_packs():  # noqa: ASYNC110 (asked from outside)
                await trio.sleep(0.05)
        assert (await healed(drive)) == FILES
    mount.start()
    hide(places[:1])
    assert readable(mount) == FILES
    assert (mount.path / "urgent").read_bytes() == content(FILES)
    bring_back(places[:1])


async def write_and_sync(drive: Drive, name: bytes, data: bytes) -> None:
    handle, _ = await drive.filesystem.create(ROOT_INODE, name, 0o644, ME)
    await drive.filesystem.write(handle, 0, data)
    await drive.filesystem.sync_file(handle)
    await drive.filesystem.release(handle)


async def healed(drive: Drive) -> int:
    packs: Any = (await drive.status())["packs"]
    return int(packs["healing"]["healed"])


def set_rate(mount: PoolMount, rate_bytes: int) -> None:
    config = evolve(mount.configure(), pack_size_bytes=PACK_BYTES, heal_rate_bytes=rate_bytes)
    write_config(config, mount.paths)


def degraded(mount: PoolMount) -> int:
    return int(mount.status()["packs"]["degraded"])


def test_killed_in_the_middle_of_healing(tmp_path: Path, make_pool: MakePool) -> None:
    """It goes on after the next mount; and it keeps to its rate, which is what makes a middle."""
    places = [folder_place(tmp_path / "clouds", name) for name in ("a", "b")]
    mount = make_pool(places, redundancy="2")
    set_rate(mount, RATE_BYTES)
    write_plan(places[1].plan, {"calls": ["put"], "match": "/packs/", "action": "fail"}, seed=SEED)
    mount.start()
    tree = {f"f{number}": random.Random(number).randbytes(PACK_BYTES) for number in range(8)}
    for name, data in tree.items():
        (mount.path / name).write_bytes(data)
    mount.sync()
    mount.umount()
    write_plan(places[1].plan)
    began_s = time.monotonic()
    mount.start()
    every = degraded(mount)
    while (left := degraded(mount)) > every // 2:
        time.sleep(0.05)
    took_s = time.monotonic() - began_s
    assert 0 < left < every
    assert "degraded, healing at" in mount.cuckoo("status").stdout.decode()
    # The bytes of the last pack are paid for by the pause after it.
    assert took_s >= (every - left - 1) * 2 * PACK_BYTES / RATE_BYTES
    mount.kill()
    set_rate(mount, 100 * RATE_BYTES)
    mount.start()
    while degraded(mount):
        time.sleep(0.05)
    mount.sync()
    hide(places[:1])
    mount.evict()
    mount.drop_caches()
    for name, data in tree.items():
        assert (mount.path / name).read_bytes() == data
    bring_back(places[:1])
    mount.check()
    mount.umount()
    inventory = take_inventory(mount)
    assert (inventory.orphans, inventory.dangling, inventory.single) == ([], [], 0)


def test_two_of_five_clouds_are_replaced_and_then_two_others_vanish(tmp_path: Path, make_pool: MakePool) -> None:
    mount = make_pool(five_folders(tmp_path), redundancy="3+2")
    mount.start()
    write_files(mount)
    for place in mount.places[:2]:
        place.wipe()
    write_files(mount, FILES, 3)
    for name in CLOUDS[:2]:
        mount.cuckoo("cloud", "remove", name)
    assert mount.status()["packs"]["degraded"] == mount.status()["packs"]["count"]
    for name in ("f", "g"):
        folder = tmp_path / name
        folder.mkdir()
        mount.cuckoo("cloud", "add", name, folder)
    mount.cuckoo("gc", "--keep", "1")
    assert mount.status()["packs"]["degraded"] == 0
    mount.sync()
    for lost in (mount.places[2:4], mount.places[3:5]):
        hide(list(lost))
        assert readable(mount, FILES + 3) == FILES + 3
        bring_back(list(lost))
    mount.umount()
    mount.delete_cache()
    mount.start()
    assert readable(mount, FILES + 3) == FILES + 3


def damage(place: Place) -> dict[str, bytes]:
    """Change every pack there; return what it is now."""
    found = {}
    for name in place.packs():
        data = bytearray(place.read(name))
        for at in range(100, len(data), 500):
            data[at] ^= 0x40
        found[name] = bytes(data)
        place.write(name, found[name])
    return found


def test_damage_that_a_read_finds_is_mended(tmp_path: Path, make_pool: MakePool) -> None:
    places = [folder_place(tmp_path / "clouds", name) for name in ("a", "b")]
    mount = make_pool(places, redundancy="2")
    mount.start()
    write_files(mount)
    damaged = damage(places[0])
    assert len(damaged) == FILES
    assert readable(mount) == FILES, "the other copy is whole"
    said = mount.cuckoo("gc", "--keep", "1").stdout.decode()
    left = [name for name in places[0].packs() if name in damaged]
    print(f"{said.strip()} {len(left)} damaged packs were not met by a read")
    assert len(left) < FILES
    hide(places[1:])
    assert readable(mount) == FILES - len(left)
    bring_back(places[1:])
    assert readable(mount) == FILES
    mount.umount()
    inventory = take_inventory(mount)
    assert (inventory.dangling, inventory.single) == ([], 0)

"""Packs that have too few shares, or a damaged one, get all of them again by themselves."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Final

import pytest

from cuckoo_mount.testing.faulty import write_plan
from tests.pool.conftest import MakePool
from tests.pool.packing import KIB, SEED
from tests.pool.pooling import Place, PoolMount, bring_back, folder_place, hide, take_inventory
from tests.pool.test_pool_erasure import CLOUDS, five_folders

pytestmark = [pytest.mark.mount, pytest.mark.slow]

FILES: Final = 12


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


async def test_a_drive_heals_by_itself_when_a_cloud_is_back(tmp_path: Path, make_pool: MakePool) -> None:
    """What housekeeping does every minute, a few packs at a time."""
    places = [folder_place(tmp_path / "clouds", name) for name in ("a", "b")]
    mount = make_pool(places, redundancy="2")
    write_plan(places[1].plan, {"calls": ["put"], "match": "/packs/", "action": "fail"}, seed=SEED)
    async with mount.opened() as opened:
        for number in range(FILES):
            await opened.write(f"f{number}", content(number))
            await opened.sync()
        assert (await opened.drive.degraded_packs()) == FILES
        before = len(places[0].packs())
        await opened.drive.collect(thorough=False)
        assert (await opened.drive.degraded_packs()) == FILES, "it was not possible yet"
        assert len(places[0].packs()) == before, "packs were written that are no better"
        write_plan(places[1].plan)
        await opened.drive.retry_clouds()
        healed = 0
        for _ in range(FILES):
            healed += (await opened.drive.collect(thorough=False)).packs_healed
        assert healed >= FILES
        assert (await opened.drive.degraded_packs()) == 0
    mount.start()
    hide(places[:1])
    assert readable(mount) == FILES
    bring_back(places[:1])


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
    said = mount.cuckoo("gc", "--keep", "1").stdout.decode()
    assert "healed" in said
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

"""Compaction among trouble: damaged packs, a cloud that vanished, kills in the middle, and the same bytes twice."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

import pytest

from cuckoo_mount.testing.faulty import read_counts, write_plan
from tests.mount.mounting import ControlError, MountError
from tests.pool.conftest import MakePool
from tests.pool.pooling import Place, PoolMount, folder_place, take_inventory

pytestmark = [pytest.mark.mount, pytest.mark.slow]

KIB: Final = 1 << 10
FILES: Final = 36
FILE_BYTES: Final = 100 * KIB
CLOUDS: Final = ("a", "b", "c")
SEED: Final = 20_261_122


def content(number: int) -> bytes:
    return random.Random(SEED + number).randbytes(FILE_BYTES)


def kept() -> list[int]:
    """Return the numbers of the files that `make_sparse` leaves."""
    return [number for number in range(FILES) if number % 3 == 0]


def make_sparse(mount: PoolMount) -> None:
    """Store packs of which two thirds are dead, and none is dead as a whole."""
    for number in range(FILES):
        (mount.path / f"f{number}").write_bytes(content(number))
        if number % 9 == 8:
            mount.sync()
    for number in set(range(FILES)) - set(kept()):
        (mount.path / f"f{number}").unlink()
    mount.sync()


def places(tmp_path: Path) -> list[Place]:
    return [folder_place(tmp_path / "clouds", name) for name in CLOUDS]


def read_back(mount: PoolMount, numbers: Iterable[int]) -> list[int]:
    """Return the numbers of the files that cannot be read.  Fails for a single wrong byte."""
    mount.evict()
    mount.drop_caches()
    refused = []
    for number in numbers:
        try:
            assert (mount.path / f"f{number}").read_bytes() == content(number)
        except OSError:
            refused.append(number)
    return refused


def damage(place: Place) -> int:
    """Flip a bit every 50 KiB of all packs on a cloud; return how many packs there are."""
    for name in place.packs():
        data = bytearray(place.read(name))
        for at in range(len(data) // 8, len(data), 50 * KIB):
            data[at] ^= 1
        place.write(name, bytes(data))
    return len(place.packs())


def test_compaction_passes_no_damage_on(tmp_path: Path, make_pool: MakePool) -> None:
    """Of two copies the right one is compacted; nobody notices."""
    mount = make_pool(places(tmp_path), redundancy="2")
    mount.start()
    make_sparse(mount)
    mount.evict()
    assert damage(mount.places[0])
    mount.cuckoo("gc", "--keep", "1")
    assert read_back(mount, kept()) == []
    mount.umount()
    inventory = take_inventory(mount)
    assert (inventory.orphans, inventory.dangling, inventory.single) == ([], [], 0)


def test_compaction_leaves_what_cannot_be_read(tmp_path: Path, make_pool: MakePool) -> None:
    """One copy, damaged: what is whole stays readable, what is not gives an error, before and after."""
    mount = make_pool(places(tmp_path), redundancy="none")
    mount.start()
    make_sparse(mount)
    mount.evict()
    assert damage(mount.places[0])
    refused = read_back(mount, kept())
    assert refused
    mount.evict()
    mount.drop_caches()
    mount.cuckoo("gc", "--keep", "1", check=False)
    assert read_back(mount, kept()) == refused
    mount.check()


@pytest.mark.parametrize("cached", [False, True])
def test_compaction_without_one_cloud(tmp_path: Path, make_pool: MakePool, cached: bool) -> None:
    mount = make_pool(places(tmp_path), redundancy="2")
    mount.start()
    make_sparse(mount)
    if not cached:
        mount.evict()
    gone = mount.places[1]
    away = Path(gone.config.url)
    away.rename(tmp_path / "away")
    mount.cuckoo("gc", "--keep", "1", check=False)
    assert read_back(mount, kept()) == []
    mount.umount()
    (tmp_path / "away").rename(away)
    mount.start()
    mount.cuckoo("gc", "--keep", "1")
    assert read_back(mount, kept()) == []
    mount.umount()
    inventory = take_inventory(mount)
    assert (inventory.orphans, inventory.dangling, inventory.strays, inventory.intents) == ([], [], 0, 0)


def test_the_same_bytes_twice_outlive_one_of_them(tmp_path: Path, make_pool: MakePool) -> None:
    mount = make_pool(places(tmp_path), redundancy="2")
    mount.start()
    for name in ("one", "two", "three"):
        (mount.path / name).write_bytes(content(0) * 12)
        mount.sync()
    stored = sum(place.used_bytes() for place in mount.places)
    print(f"three times {12 * FILE_BYTES} bytes: {stored} stored")
    (mount.path / "one").unlink()
    mount.sync()
    mount.cuckoo("gc", "--keep", "1")
    (mount.path / "four").write_bytes(content(0) * 12)
    (mount.path / "three").unlink()
    mount.sync()
    mount.cuckoo("gc", "--keep", "1")
    mount.evict()
    mount.drop_caches()
    assert (mount.path / "two").read_bytes() == content(0) * 12
    assert (mount.path / "four").read_bytes() == content(0) * 12
    mount.check()


@pytest.mark.parametrize("call", ["put", pytest.param("delete", marks=pytest.mark.long)])
def test_kills_while_compacting(tmp_path: Path, make_pool: MakePool, call: str) -> None:
    """At the n-th put or delete of a compaction, before and after it: nothing is lost, and nothing left over."""
    mount = make_pool(places(tmp_path), redundancy="2")
    mount.start()
    make_sparse(mount)
    mount.umount()
    at_risk = 0
    for nth in (1, 2, 3):
        for place in mount.places:
            write_plan(place.plan, {"calls": [call], "match": "/packs/", "nth": nth, "action": "hang"})
        mount.start()
        collector = threading.Thread(target=collect, args=(mount,))
        collector.start()
        hanging = wait_for_hang(mount, collector)
        at_risk += hanging
        mount.kill()
        collector.join()
        for place in mount.places:
            write_plan(place.plan)
        mount.start()
        assert read_back(mount, kept()) == []
        mount.check()
        mount.umount()
        inventory = take_inventory(mount)
        assert (inventory.orphans, inventory.dangling, inventory.intents) == ([], [], 0)
        if not hanging:
            break
    assert at_risk, "no kill met a compaction"
    mount.start()
    mount.cuckoo("gc", "--keep", "1")
    assert read_back(mount, kept()) == []
    stored = sum(place.used_bytes() for place in mount.places)
    assert stored <= 1.3 * len(kept()) * FILE_BYTES * 2


def collect(mount: PoolMount) -> None:
    with suppress(ControlError, MountError, OSError):
        mount.control("gc", keep=1, dry_run=False)


def wait_for_hang(mount: PoolMount, collector: threading.Thread) -> bool:
    """Return True when a call hangs, False when the collection ended without one."""
    while collector.is_alive():
        if any(read_counts(place.plan).get("acted 0", 0) for place in mount.places):
            return True
        collector.join(0.02)
    return False


@pytest.mark.parametrize(
    "action", ["corrupt", *(pytest.param(name, marks=pytest.mark.long) for name in ("cut", "fail"))]
)
def test_a_cloud_gives_rubbish_half_of_the_time(tmp_path: Path, make_pool: MakePool, action: str) -> None:
    mount = make_pool(places(tmp_path), redundancy="2")
    mount.start()
    make_sparse(mount)
    for place in mount.places[:1]:
        write_plan(
            place.plan, {"calls": ["get_range", "get"], "match": "/packs/", "probability": 0.5, "action": action}
        )
    for _ in range(3):
        assert read_back(mount, kept()) == []
    print(f"{action}: {read_counts(mount.places[0].plan)}")


@pytest.mark.parametrize("action", ["lie_success", "corrupt"])
def test_a_cloud_does_not_store_what_it_says(tmp_path: Path, make_pool: MakePool, action: str) -> None:
    mount = make_pool(places(tmp_path), redundancy="2")
    mount.start()
    write_plan(mount.places[0].plan, {"calls": ["put"], "match": "/packs/", "action": action})
    make_sparse(mount)
    assert read_counts(mount.places[0].plan)["acted 0"]
    assert read_back(mount, kept()) == []
    mount.cuckoo("gc", "--keep", "1")
    assert read_back(mount, kept()) == []

"""Bytes per cloud follow the weights, also when a cloud fills up half-way.

The promise: after any number of packs each cloud holds its part of what is stored to within the larger of 5 % of that
part and one pack.  A cloud's weight is its capacity.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import pytest
import trio

from cuckoo_mount.multi.health import Condition
from cuckoo_mount.multi.rooms import SPARE_MIN_BYTES, SPARE_PART
from cuckoo_mount.testing.faulty import write_plan
from cuckoo_mount.types import CloudName
from tests.mount.mounting import Mount
from tests.packs.packtools import make_sources
from tests.pool.conftest import MakePool
from tests.pool.packing import KIB, MIB, UNIT_BYTES, PackPool
from tests.pool.pooling import Place, folder_place

WEIGHTS: Final = {"one": 1, "two": 2, "five": 5}


def assert_follows(used: Mapping[str, int], weights: Mapping[str, float], pack_bytes: int) -> None:
    """Fail unless every cloud has its part of all bytes, to within 5 % or one pack."""
    total, parts = sum(used.values()), sum(weights.values())
    for name, weight in weights.items():
        wanted = total * weight / parts
        allowed = max(0.05 * wanted, pack_bytes)
        assert abs(used[name] - wanted) <= allowed, f"{name}: {used[name]} bytes, wanted {wanted:.0f} ± {allowed:.0f}"


async def test_bytes_follow_the_weights_at_every_step(tmp_path: Path) -> None:
    pool = PackPool(tmp_path, "1", weights=WEIGHTS)
    await pool.begin()
    for _ in range(12):
        await pool.store(512 * KIB)
        assert_follows(pool.used(), WEIGHTS, pool.largest_bytes)


async def test_of_two_copies_each_cloud_gets_what_its_weight_allows(tmp_path: Path) -> None:
    """A cloud bigger than the others together takes one copy of every pack, and no more: the others part the second."""
    pool = PackPool(tmp_path, "2", weights=WEIGHTS)
    await pool.begin()
    for _ in range(6):
        await pool.store(512 * KIB)
        assert_follows(pool.used(), {"one": 1, "two": 2, "five": 3}, pool.largest_bytes)


async def test_two_copies_over_clouds_that_allow_it(tmp_path: Path) -> None:
    weights = {"a": 2, "b": 3, "c": 4}
    pool = PackPool(tmp_path, "2", weights=weights)
    await pool.begin()
    for _ in range(6):
        await pool.store(512 * KIB)
        assert_follows(pool.used(), weights, pool.largest_bytes)


@pytest.mark.parametrize("full", WEIGHTS)
async def test_a_cloud_fills_up_half_way(tmp_path: Path, full: str) -> None:
    """It refuses when its plan says so, before its capacity is reached; the others share what comes after."""
    pool = PackPool(tmp_path, "1", weights=WEIGHTS)
    await pool.begin()
    await pool.store(3 * MIB)
    before = pool.used()
    assert_follows(before, WEIGHTS, pool.largest_bytes)
    write_plan(pool.plan(full), {"calls": ["put"], "action": "full"})
    await pool.store(2 * MIB)
    after = pool.used()
    assert pool.health.state(CloudName(full)).condition is Condition.FULL
    assert after[full] == before[full]
    rest = {name: weight for name, weight in WEIGHTS.items() if name != full}
    assert_follows({name: after[name] for name in rest}, rest, pool.largest_bytes)


async def test_a_cloud_reaches_its_capacity(tmp_path: Path) -> None:
    """All are full at the same time, but for their spare, to within a pack each; then the drive says so."""
    pool = PackPool(tmp_path, "1", weights=WEIGHTS)
    await pool.begin()
    await pool.store(pool.multifs.rooms.usable().free_bytes - 6 * 48 * KIB)
    used = pool.used()
    for name, weight in WEIGHTS.items():
        capacity = weight * UNIT_BYTES
        spare = max(min(SPARE_MIN_BYTES, capacity // 4), round(SPARE_PART * capacity))
        assert capacity - spare - 6 * 48 * KIB <= used[name] <= capacity - spare // 2
    assert pool.multifs.rooms.usable().free_bytes <= 7 * 48 * KIB


async def test_what_is_on_the_way_counts_too(tmp_path: Path) -> None:
    """Packs stored at the same time do not all run to the cloud that has most room."""
    pool = PackPool(tmp_path, "1", weights=WEIGHTS)
    await pool.begin()
    for _ in range(10):
        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(_store_one, pool, number)
    assert_follows(pool.used(), WEIGHTS, pool.largest_bytes)


async def _store_one(pool: PackPool, number: int) -> None:
    folder = pool.root / f"sources {number}"
    folder.mkdir(exist_ok=True)
    built = await pool.writer.build(make_sources(folder, [random.Random(number).randbytes(32 * KIB)]))
    pool.catalogue.finish(await pool.writer.store(built))
    pool.largest_bytes = max(pool.largest_bytes, built.size_bytes)


def weighted_places(root: Path, unit_mib: int) -> list[Place]:
    """Return one folder per weight, with a capacity that is the weight times `unit_mib`."""
    return [folder_place(root, name, capacity=f"{weight * unit_mib}MiB") for name, weight in WEIGHTS.items()]


def fill_mount(mount: Mount, numbers: Sequence[int], size_bytes: int) -> None:
    """Write files of random bytes, each sent as a pack of its own."""
    for number in numbers:
        (mount.path / f"file{number}").write_bytes(random.Random(number).randbytes(size_bytes))
        mount.sync()


@pytest.mark.mount
@pytest.mark.slow
def test_weights_on_a_mount_where_one_fills_up(tmp_path: Path, make_pool: MakePool) -> None:
    places = weighted_places(tmp_path / "clouds", 8)
    mount = make_pool(places)
    size_bytes = 256 * KIB
    pack_bytes = size_bytes + 4 * KIB
    numbers = itertools.count()
    mount.start()
    fill_mount(mount, [next(numbers) for _ in range(32)], size_bytes)
    before = {place.name: place.used_bytes() for place in places}
    assert_follows(before, WEIGHTS, pack_bytes)
    write_plan(places[2].plan, {"calls": ["put"], "action": "full"})
    fill_mount(mount, [next(numbers) for _ in range(12)], size_bytes)
    after = {place.name: place.used_bytes() for place in places}
    print(f"half-way {before}, at the end {after}")
    assert after["five"] == before["five"]
    assert_follows({name: after[name] for name in ("one", "two")}, {"one": 1, "two": 2}, pack_bytes)
    status = mount.status()
    assert {cloud["name"]: cloud["state"] for cloud in status["clouds"]} == {"one": "ok", "two": "ok", "five": "full"}
    assert {cloud["name"]: cloud["used_bytes"] for cloud in status["clouds"]} == after
    mount.evict()
    mount.drop_caches()
    for number in range(next(numbers)):
        assert (mount.path / f"file{number}").read_bytes() == random.Random(number).randbytes(size_bytes)

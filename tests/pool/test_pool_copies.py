"""Two copies over three clouds: any one cloud may vanish, and one that fails half of its writes is nobody's trouble."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from cuckoo_mount.format import parse_pack_share_name
from cuckoo_mount.testing.faulty import read_counts, write_plan
from cuckoo_mount.types import CloudName
from tests.pool.conftest import MakePool
from tests.pool.packing import KIB, MIB, SEED, PackPool
from tests.pool.pooling import Place, PoolMount, folder_place, take_inventory, walk

pytestmark = [pytest.mark.mount, pytest.mark.slow]

CLOUDS: Final = ("a", "b", "c")


def make_tree(mount: PoolMount) -> dict[str, bytes]:
    """Store a tree of small files and one big one in several packs; return every file's bytes by its path."""
    dice = random.Random(SEED)
    tree = {f"d{number % 7}/f{number}": dice.randbytes(dice.randrange(9000)) for number in range(120)}
    tree["text"] = b"the quick brown fox " * 9000
    tree["big"] = dice.randbytes(3 * MIB + 17)
    for number, (path, data) in enumerate(tree.items()):
        target = mount.path / path
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(data)
        if number % 24 == 23:
            mount.sync()
    mount.sync()
    return tree


def assert_reads(mount: PoolMount, tree: dict[str, bytes]) -> None:
    """Fail unless all of it comes from the clouds, byte for byte."""
    assert {str(path.relative_to(mount.path)) for path in walk(mount.path)} == tree.keys()
    for path, data in tree.items():
        assert (mount.path / path).read_bytes() == data, path


def make_places(root: Path) -> list[Place]:
    return [folder_place(root, name) for name in CLOUDS]


def copies_of_packs(mount: PoolMount) -> Counter[bytes]:
    """Return how many clouds have each pack."""
    drive_id = mount.configure().drive_id
    return Counter(parse_pack_share_name(drive_id, name)[0] for place in mount.places for name in place.packs())


def bytes_down(mount: PoolMount) -> int:
    """Return how many bytes came from the clouds since the mount."""
    return sum(cloud["bytes_down"] for cloud in mount.status()["clouds"])


def remove_folder(place: Place) -> None:
    shutil.rmtree(place.config.url)


def remove_everything(place: Place) -> None:
    place.wipe()


def remove_packs(place: Place) -> None:
    for name in place.packs():
        place.delete(name)


LOSSES: Final = (remove_folder, remove_everything, remove_packs)


@pytest.mark.parametrize("lose", LOSSES)
def test_any_one_cloud_is_lost_while_mounted(
    tmp_path: Path, make_pool: MakePool, lose: Callable[[Place], None]
) -> None:
    mount = make_pool(make_places(tmp_path / "clouds"), redundancy="2")
    mount.start()
    tree = make_tree(mount)
    copies = copies_of_packs(mount)
    assert copies
    assert set(copies.values()) == {2}
    saved = tmp_path / "saved"
    for place in mount.places:
        assert place.packs(), f"nothing lies on {place.name}: the test would prove nothing"
        shutil.copytree(place.config.url, saved)
        lose(place)
        mount.evict()
        assert mount.drop_caches() or pytest.skip("the page cache cannot be emptied here")
        before = bytes_down(mount)
        assert_reads(mount, tree)
        assert bytes_down(mount) - before >= len(tree["big"])
        mount.check()
        # Besides what is there: packs that were healed meanwhile lie there, too.
        shutil.copytree(saved, place.config.url, dirs_exist_ok=True)
        shutil.rmtree(saved)


@pytest.mark.long
def test_any_one_cloud_is_lost_before_the_mount(tmp_path: Path, make_pool: MakePool) -> None:
    mount = make_pool(make_places(tmp_path / "clouds"), redundancy="2")
    mount.start()
    tree = make_tree(mount)
    mount.umount()
    saved = tmp_path / "saved"
    for place in mount.places:
        shutil.copytree(place.config.url, saved)
        assert place.wipe() > 1
        mount.delete_cache()
        mount.start()
        assert_reads(mount, tree)
        status = mount.status()
        assert status["state"] == "degraded"
        assert {cloud["name"]: cloud["state"] for cloud in status["clouds"]} == {
            name: "not-ours" if name == place.name else "ok" for name in CLOUDS
        }
        mount.umount()
        assert place.sizes() == {}, "a cloud that lost its drive.json was written to"
        shutil.rmtree(place.config.url)
        saved.rename(place.config.url)


@pytest.mark.parametrize(
    "action",
    [
        "fail",
        "cut",
        *(pytest.param(name, marks=pytest.mark.long) for name in ("timeout", "full", "refuse", "lie_failure")),
    ],
)
def test_a_cloud_fails_half_of_its_writes(tmp_path: Path, make_pool: MakePool, action: str) -> None:
    """No error at the mount; every pack has its two copies or is counted; nothing lies on a cloud that nobody knows."""
    mount = make_pool(make_places(tmp_path / "clouds"), redundancy="2")
    sick = mount.places[1]
    mount.start()
    write_plan(sick.plan, {"calls": ["put"], "match": "/packs/", "probability": 0.5, "action": action}, seed=SEED)
    tree = {}
    dice = random.Random(SEED)
    for number in range(24):
        tree[f"f{number}"] = dice.randbytes(40 * KIB)
        (mount.path / f"f{number}").write_bytes(tree[f"f{number}"])
        mount.sync()
    failed = read_counts(sick.plan).get("acted 0", 0)
    assert failed, "no write failed: the test would prove nothing"
    write_plan(sick.plan)
    single = sum(copies < 2 for copies in copies_of_packs(mount).values())
    status = mount.status()
    print(f"{action}: {failed} writes failed, {single} packs have one copy, status {status['packs']}")
    assert status["packs"]["degraded"] == single
    mount.evict()
    mount.drop_caches()
    assert_reads(mount, tree)
    mount.umount()
    inventory = take_inventory(mount)
    assert (inventory.orphans, inventory.dangling, inventory.intents) == ([], [], 0)
    assert inventory.single == single
    # What a failed upload left all the same is cleared away as soon as that cloud answers again.
    mount.start()
    mount.cuckoo("gc")
    mount.umount()
    inventory = take_inventory(mount)
    assert (inventory.orphans, inventory.dangling, inventory.strays) == ([], [], 0)


@pytest.mark.parametrize("action", ["fail", "timeout", "lie_failure"])
async def test_many_packs_past_a_cloud_that_fails_half_of_its_writes(tmp_path: Path, action: str) -> None:
    """It is tried again for every pack: two clouds have the pack, the sick one only if it said so."""
    pool = PackPool(tmp_path, "2", weights={"a": 1, "b": 1, "c": 1})
    await pool.begin()
    write_plan(pool.plan("b"), {"calls": ["put"], "match": "/packs/", "probability": 0.5, "action": action}, seed=SEED)
    for _ in range(60):
        await pool.multifs.probe()
        await pool.store(1, largest_bytes=4 * KIB)
    counts = read_counts(pool.plan("b"))
    assert counts["acted 0"] > 10
    shares = [share.cloud for pack in pool.catalogue.packs.values() for share in pack.shares]
    assert all(len({share.cloud for share in pack.shares}) == 2 for pack in pool.catalogue.packs.values())
    print(f"{counts['acted 0']} of {counts['matched 0']} writes failed; shares {Counter(shares)}")
    assert shares.count(CloudName("b")) == counts["matched 0"] - counts["acted 0"]


async def test_a_cloud_that_is_back_is_asked_before_a_read_fails(tmp_path: Path) -> None:
    """One place was empty and is whole again; before anybody looked, the other is empty: the first is read."""
    pool = PackPool(tmp_path, "2", weights={"a": 1, "b": 1})
    await pool.begin()
    await pool.store(1)
    (pack,) = pool.catalogue.packs.values()
    folders = {name: tmp_path / name for name in ("a", "b")}

    async def read() -> bytes:
        return await pool.multifs.get_range(pack.pack_id, pack.shares, 0, pack.size_bytes, deadline_s=20)

    content = await read()
    for name, folder in folders.items():
        (folder / "cuckoo").rename(tmp_path / "away")
        assert await read() == content, f"{name} is empty"
        (tmp_path / "away").rename(folder / "cuckoo")

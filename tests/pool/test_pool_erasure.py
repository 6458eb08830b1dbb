"""3+2 over five clouds: any two may vanish or lie, and what is stored is 5/3 of what lives."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Final

import pytest

from cuckoo_mount.format import parse_pack_share_name
from cuckoo_mount.testing.faulty import write_plan
from tests.pool.conftest import MakeMachine, MakePool
from tests.pool.machines import fill
from tests.pool.packing import KIB, MIB, SEED
from tests.pool.pooling import Place, PoolMount, bring_back, folder_place, hide, walk
from tests.pool.surveys import assert_same_survey, survey

pytestmark = [pytest.mark.mount, pytest.mark.slow]

CLOUDS: Final = ("a", "b", "c", "d", "e")
NEEDED: Final = 3


def five_folders(root: Path) -> list[Place]:
    return [folder_place(root / "clouds", name) for name in CLOUDS]


def make_tree(mount: PoolMount) -> dict[str, bytes]:
    """Small files, and one whose chunks lie across the borders of shares; in packs of different sizes."""
    dice = random.Random(SEED)
    tree = {f"f{number}": dice.randbytes(dice.randrange(1, 9000)) for number in range(60)}
    tree["big"] = dice.randbytes(21 * MIB + 17)
    for number, (path, data) in enumerate(tree.items()):
        (mount.path / path).write_bytes(data)
        if number in (0, 3, 30):
            mount.sync()
    mount.sync()
    return tree


def assert_reads(mount: PoolMount, tree: dict[str, bytes]) -> None:
    """Fail unless all of it comes from the clouds, byte for byte."""
    mount.evict()
    mount.drop_caches()
    assert {str(path.relative_to(mount.path)) for path in walk(mount.path)} == tree.keys()
    for path, data in tree.items():
        assert (mount.path / path).read_bytes() == data, path


def test_any_two_clouds_may_vanish(tmp_path: Path, make_pool: MakePool, request: pytest.FixtureRequest) -> None:
    mount = make_pool(five_folders(tmp_path), redundancy="3+2")
    mount.start()
    tree = make_tree(mount)
    drive_id = mount.configure().drive_id
    shares: dict[bytes, set[int]] = {}
    for place in mount.places:
        for name in place.packs():
            pack_id, share = parse_pack_share_name(drive_id, name)
            shares.setdefault(pack_id, set()).add(share)
    assert set(map(frozenset, shares.values())) == {frozenset(range(5))}
    stored = sum(place.used_bytes() for place in mount.places)
    living = sum(len(data) for data in tree.values())
    assert living * 5 / 3 <= stored <= living * 5 / 3 * 1.02 + 64 * KIB
    assert mount.status()["packs"]["degraded"] == 0
    pairs = list(combinations(mount.places, 2))
    for lost in pairs[:: 1 if request.config.getoption("--long") else 3]:
        hide(list(lost))
        assert_reads(mount, tree)
        bring_back(list(lost))
    mount.check()


def test_any_two_clouds_may_lie(tmp_path: Path, make_pool: MakePool) -> None:
    """A bit of every share there is changed: whoever reads gets the right bytes from others."""
    mount = make_pool(five_folders(tmp_path), redundancy="3+2")
    mount.start()
    tree = make_tree(mount)
    change_bits(mount.places[:2], SEED)
    assert_reads(mount, tree)
    # Meanwhile packs were healed.  While the drive is not mounted nobody heals: now there is one lie too many.
    mount.umount()
    change_bits(mount.places[:2], SEED + 1)
    for place in mount.places[2:3]:
        place.wipe()
    mount.delete_cache()
    mount.start()
    with pytest.raises(OSError, match=r"Input/output error|timed out"):
        (mount.path / "big").read_bytes()


def change_bits(places: Sequence[Place], seed: int) -> None:
    """Change a bit of every 1,000 bytes of every pack there; the same seed twice would change it back."""
    dice = random.Random(seed)
    for place in places:
        for name in place.packs():
            data = bytearray(place.read(name))
            for at in range(dice.randrange(1000), len(data), 1000):
                data[at] ^= 1 << dice.randrange(8)
            place.write(name, bytes(data))


def test_a_drive_is_recovered_with_two_clouds_missing(
    tmp_path: Path, make_machine: MakeMachine, request: pytest.FixtureRequest
) -> None:
    machine = make_machine(five_folders(tmp_path), redundancy="3+2")
    machine.make()
    machine.start()
    wanted = fill(machine, tmp_path / "source")
    machine.umount()
    machine.wipe()
    pairs = list(combinations(machine.places, 2))
    for pair in pairs if request.config.getoption("--long") else (pairs[0], pairs[-1]):
        lost = list(pair)
        hide(lost)
        machine.recover(next(place for place in machine.places if place not in lost))
        machine.start()
        assert_same_survey(survey(machine.path), wanted)
        machine.check()
        machine.umount()
        machine.wipe()
        bring_back(lost)


def test_with_two_clouds_down_writing_goes_on(tmp_path: Path, make_pool: MakePool) -> None:
    """Packs are stored with the three shares that reading takes, and count as degraded."""
    mount = make_pool(five_folders(tmp_path), redundancy="3+2")
    mount.start()
    sick = mount.places[1:3]
    for place in sick:
        write_plan(place.plan, {"action": "fail"}, seed=SEED)
    tree = make_tree(mount)
    packs = mount.status()["packs"]
    assert packs["degraded"] == packs["count"] > 0
    assert_reads(mount, tree)
    for place in sick:
        write_plan(place.plan)
        assert not place.packs()
    assert_reads(mount, tree)


@pytest.mark.long
def test_with_too_few_clouds_bytes_stay_here(tmp_path: Path, make_pool: MakePool) -> None:
    mount = make_pool(five_folders(tmp_path), redundancy="3+2")
    mount.start()
    (mount.path / "before").write_bytes(b"1" * 5000)
    mount.sync()
    sick = mount.places[:3]
    for place in sick:
        write_plan(place.plan, {"calls": ["put"], "match": "/packs/", "action": "fail"}, seed=SEED)
    data = random.Random(5).randbytes(300 * KIB)
    (mount.path / "file").write_bytes(data)
    mount.umount(wait=False)
    mount.start()
    assert mount.pending()["bytes"] >= len(data)
    assert (mount.path / "file").read_bytes() == data
    for place in sick:
        write_plan(place.plan)
    mount.sync()
    assert_reads(mount, {"before": b"1" * 5000, "file": data})
    assert mount.status()["packs"]["degraded"] == 0
    shares = sum(len(place.packs()) for place in mount.places)
    assert shares == 5 * mount.status()["packs"]["count"], "something lies there that nobody knows"

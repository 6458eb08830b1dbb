"""What a drive leaves on its clouds: little more than is alive after any churn, and nothing unknown after any kill."""

from __future__ import annotations

import random
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Final

import pytest

from cuckoo_mount.drive import METADATA_FILE
from cuckoo_mount.testing.faulty import write_plan
from cuckoo_mount.testing.httpproxy import Fault
from tests.pool.conftest import MakePool
from tests.pool.pooling import Place, PoolMount, folder_place, take_inventory, walk
from tests.pool.threeservers import ThreeServers

pytestmark = [pytest.mark.mount, pytest.mark.slow]

KIB: Final = 1 << 10
MIB: Final = 1 << 20
SEED: Final = 20_261_122
OVERHEAD_MAX: Final = 1.3
COPIES: Final = 2


# -- churn --


def overwrite_and_delete(mount: PoolMount, *, live_bytes: int, times: int) -> dict[str, bytes]:
    """Write `times` as much as is alive at any moment, over and over the same files, in parts that are sent each.

    Returns what is there at the end.
    """
    dice = random.Random(SEED)
    names = [f"f{number}" for number in range(40)]
    mean_bytes = live_bytes // len(names)
    tree: dict[str, bytes] = {}
    left = live_bytes * times
    while left > 0 or len(tree) < len(names):
        for name in dice.sample(names, 8):
            path = mount.path / name
            if name in tree and dice.random() < 0.3:
                path.unlink()
            tree[name] = dice.randbytes(dice.randrange(mean_bytes // 2, mean_bytes * 3 // 2))
            path.write_bytes(tree[name])
            left -= len(tree[name])
        mount.sync()
    return tree


def churn(mount: PoolMount, *, live_bytes: int) -> None:
    """Fail unless `gc --keep 1` leaves little more than is alive, and everything alive is still there."""
    mount.start()
    tree = overwrite_and_delete(mount, live_bytes=live_bytes, times=10)
    before = sum(place.used_bytes() for place in mount.places)
    mount.cuckoo("gc", "--keep", "1")
    after = sum(place.used_bytes() for place in mount.places)
    live = sum(map(len, tree.values()))
    print(f"live {live / MIB:.1f} MiB, stored before {before / MIB:.1f}, after {after / MIB:.1f} MiB: ")
    print(f"{after / live / COPIES:.3f} × live × {COPIES}")
    assert after <= OVERHEAD_MAX * live * COPIES
    assert after >= live * COPIES
    used = {cloud["name"]: cloud["used_bytes"] for cloud in mount.status()["clouds"]}
    assert used == {place.name: place.used_bytes() for place in mount.places}
    mount.evict()
    mount.drop_caches()
    for name, data in tree.items():
        assert (mount.path / name).read_bytes() == data, name
    mount.umount()
    inventory = take_inventory(mount)
    assert (inventory.orphans, inventory.dangling, inventory.intents, inventory.single) == ([], [], 0, 0)


def test_churn_on_three_folders(tmp_path: Path, make_pool: MakePool) -> None:
    places = [folder_place(tmp_path / "clouds", name) for name in ("a", "b", "c")]
    churn(make_pool(places, redundancy=str(COPIES)), live_bytes=4 * MIB)


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_churn_on_three_servers(make_pool: MakePool, three_servers: ThreeServers) -> None:
    churn(make_pool(three_servers.places, redundancy=str(COPIES), deadline_s=1200), live_bytes=40 * MIB)


@pytest.mark.parametrize("every", [2, *(pytest.param(every, marks=pytest.mark.long) for every in (3, 4, 5))])
def test_packs_that_lost_a_part_each(tmp_path: Path, make_pool: MakePool, every: int) -> None:
    """No pack is empty, all are equally sparse: whether or not each is worth compacting, the sum keeps the bound."""
    mount = make_pool([folder_place(tmp_path / "clouds", name) for name in ("a", "b", "c")], redundancy=str(COPIES))
    mount.start()
    files = range(48)
    for number in files:
        (mount.path / f"f{number}").write_bytes(random.Random(number).randbytes(MIB // 2))
        if number % 12 == 11:
            mount.sync()
    for number in files[::every]:
        (mount.path / f"f{number}").unlink()
    mount.cuckoo("gc", "--keep", "1")
    after = sum(place.used_bytes() for place in mount.places)
    kept = sorted(set(files) - set(files[::every]))
    live = len(kept) * MIB // 2
    print(f"one of {every} deleted: {after / live / COPIES:.3f} × live × {COPIES}")
    assert after <= OVERHEAD_MAX * live * COPIES
    mount.evict()
    mount.drop_caches()
    for number in kept:
        assert (mount.path / f"f{number}").read_bytes() == random.Random(number).randbytes(MIB // 2)


# -- kills --


@contextmanager
def busy(mount: PoolMount, seed: int) -> Iterator[None]:
    """Create, overwrite and delete files until the mount dies or the block ends."""
    stop = threading.Event()
    dice = random.Random(seed)

    def work() -> None:
        number = 0
        while not stop.is_set():
            path = mount.path / f"f{dice.randrange(12)}"
            number += 1
            try:
                if number % 5 == 0:
                    path.unlink(missing_ok=True)
                else:
                    path.write_bytes(dice.randbytes(dice.randrange(64 * KIB, MIB)))
                if number % 3 == 0:
                    ask_for_sync(mount)
            except OSError:  # it was killed
                return

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def ask_for_sync(mount: PoolMount) -> None:
    """Have everything sent; the daemon may die meanwhile."""
    try:
        mount.sync()
    except (AssertionError, ConnectionError) as error:
        raise OSError from error


def packs_under_way(mount: PoolMount) -> int:
    """Return how many packs were begun and not finished when the daemon was killed."""
    with closing(sqlite3.connect(mount.paths.state / METADATA_FILE)) as database:
        (count,) = database.execute("SELECT count(*) FROM pack_intent").fetchone()
        return int(count)


def kill_again_and_again(mount: PoolMount, *, kills: int) -> None:
    """kill -9 while packs are on their way; after the next mount nothing is stored that nobody knows."""
    dice = random.Random(SEED)
    at_risk = 0
    for number in range(kills):
        mount.start()
        with busy(mount, number):
            threading.Event().wait(dice.uniform(0.2, 1.5))
            mount.kill()
        at_risk += packs_under_way(mount)
    mount.start()
    mount.sync()
    contents = {path.name: path.read_bytes() for path in walk(mount.path)}
    mount.evict()
    mount.drop_caches()
    assert {path.name: path.read_bytes() for path in walk(mount.path)} == contents
    mount.check()
    mount.umount()
    inventory = take_inventory(mount)
    print(f"{kills} kills, {at_risk} packs were under way; {inventory}")
    assert at_risk, "no pack was under way at any kill: the test proved nothing"
    assert (inventory.orphans, inventory.dangling, inventory.intents) == ([], [], 0)


def slow(place: Place) -> None:
    """Let every upload of a folder take a while before or after it is stored, so that kills meet both."""
    write_plan(
        place.plan,
        {"calls": ["put"], "match": "/packs/", "probability": 0.5, "action": "delay", "seconds": 0.1},
        seed=SEED,
    )


@pytest.mark.long
def test_kills_on_three_folders(tmp_path: Path, make_pool: MakePool) -> None:
    places = [folder_place(tmp_path / "clouds", name) for name in ("a", "b", "c")]
    for place in places:
        slow(place)
    kill_again_and_again(make_pool(places, redundancy=str(COPIES)), kills=6)


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_kills_on_three_servers(make_pool: MakePool, three_servers: ThreeServers) -> None:
    slow(three_servers.folder)
    for proxy in three_servers.proxies.values():
        proxy.break_requests(Fault("delay", methods=("PUT",), seconds=0.05))
    kill_again_and_again(make_pool(three_servers.places, redundancy=str(COPIES), deadline_s=1200), kills=25)


@pytest.mark.long
def test_an_upload_that_arrives_after_its_pack_was_withdrawn(make_pool: MakePool, three_servers: ThreeServers) -> None:
    """The network still carries it when the next mount has cleared up: `gc` takes note of it, for deletion later."""
    mount = make_pool((three_servers.weed,))
    proxy = three_servers.proxies["weed"]
    mount.start()
    (mount.path / "file").write_bytes(b"content" * 1000)
    proxy.break_requests(Fault("delay", methods=("PUT",), seconds=8.0))
    proxy.reset()
    asking = threading.Thread(target=ask_quietly, args=(mount,))
    asking.start()
    end = time.monotonic() + 30
    while "PUT" not in proxy.counts().requests:
        assert time.monotonic() < end
        time.sleep(0.02)
    mount.kill()
    asking.join()
    assert packs_under_way(mount) == 1
    proxy.break_requests()
    late = next(target for method, target in proxy.requests() if method == "PUT")
    mount.start()
    assert not has_arrived(three_servers.weed, late)
    while not has_arrived(three_servers.weed, late):
        assert time.monotonic() < end, "it never arrived: the test proved nothing"
        time.sleep(0.1)
    mount.sync()
    mount.cuckoo("gc")
    mount.umount()
    inventory = take_inventory(mount)
    print(inventory)
    assert len(inventory.orphans) == 1
    with closing(sqlite3.connect(mount.paths.state / METADATA_FILE)) as database:
        noted = {f"{cloud} {name}" for cloud, name in database.execute("SELECT cloud, name FROM unknown_object")}
    assert set(inventory.orphans) == noted


def has_arrived(place: Place, target: str) -> bool:
    """Return whether the object that a request was about is stored."""
    return any(target.endswith(name) for name in place.packs())


def ask_quietly(mount: PoolMount) -> None:
    """Ask for a sync whose answer never comes."""
    with suppress(OSError):
        ask_for_sync(mount)

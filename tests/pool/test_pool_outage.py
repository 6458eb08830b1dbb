"""One of three servers fails in the middle of work: programs notice nothing, and afterwards it is used again."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Final

import pytest

from cuckoo_mount.testing.httpproxy import Fault
from cuckoo_mount.testing.servers import S3Server
from tests.pool.conftest import MakePool
from tests.pool.pooling import PoolMount, take_inventory
from tests.pool.threeservers import ThreeServers

pytestmark = [pytest.mark.mount, pytest.mark.slow]

KIB: Final = 1 << 10
PATIENCE_S: Final = 150.0
"""Two rounds of housekeeping."""
OUTAGES: Final = {
    "connections dropped": Fault("drop"),
    "always 503": Fault("status", status=503, code="SlowDown"),
    "access denied": Fault("status", status=403, code="AccessDenied"),
    "replies cut": Fault("cut_reply", methods=("GET",)),
    "uploads cut": Fault("cut_request", methods=("PUT",)),
}

IN_SHORT: Final = ("connections dropped", "uploads cut")


def content(number: int) -> bytes:
    return random.Random(number).randbytes(60 * KIB)


def write(mount: PoolMount, first: int, count: int) -> None:
    """Write files, a few to a pack."""
    for number in range(first, first + count):
        (mount.path / f"f{number}").write_bytes(content(number))
        if number % 3 == 2:
            mount.sync()
    mount.sync()


def read(mount: PoolMount, count: int) -> None:
    mount.evict()
    mount.drop_caches()
    for number in range(count):
        assert (mount.path / f"f{number}").read_bytes() == content(number)


def state(mount: PoolMount, name: str) -> str:
    """Return a cloud's state as `status` shows it."""
    return next(str(cloud["state"]) for cloud in mount.status()["clouds"] if cloud["name"] == name)


def go_through(mount: PoolMount, servers: ThreeServers, fault: Fault) -> None:
    """Write and read before, during and after the outage of weed."""
    mount.start()
    write(mount, 0, 9)
    servers.proxies["weed"].break_requests(fault)
    total = 9
    broken = 0
    # Which of two copies is read depends on the pack's random id: a few packs may all be read elsewhere.
    while not broken and total < 63:
        write(mount, total, 9)
        total += 9
        read(mount, total)
        broken = servers.proxies["weed"].counts().broken
    print(f"{broken} requests broken; weed is {state(mount, 'weed')}")
    assert broken
    servers.proxies["weed"].break_requests()
    read(mount, total)
    mount.umount()
    mount.start()
    assert state(mount, "weed") == "ok"
    mount.cuckoo("gc")
    write(mount, total, 9)
    read(mount, total + 9)
    mount.umount()
    inventory = take_inventory(mount)
    assert (inventory.orphans, inventory.dangling, inventory.intents, inventory.strays) == ([], [], 0, 0)


@pytest.mark.parametrize(
    "outage", [name if name in IN_SHORT else pytest.param(name, marks=pytest.mark.long) for name in OUTAGES]
)
def test_one_server_is_in_trouble(make_pool: MakePool, three_servers: ThreeServers, outage: str) -> None:
    go_through(make_pool(three_servers.places, redundancy="2"), three_servers, OUTAGES[outage])


@pytest.mark.long
@pytest.mark.timeout(900)
def test_one_server_hangs(make_pool: MakePool, three_servers: ThreeServers) -> None:
    """It is given up after its time limits, not waited for for ever."""
    mount = make_pool(three_servers.places, redundancy="2", deadline_s=900)
    go_through(mount, three_servers, Fault("hang"))


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_server_is_restarted_and_used_again(
    tmp_path: Path, make_pool: MakePool, three_servers: ThreeServers, weed: S3Server
) -> None:
    """Nobody remounts: the minute's look finds it."""
    mount = make_pool(three_servers.places, redundancy="2", deadline_s=600)
    mount.start()
    write(mount, 0, 9)
    weed.stop()
    try:
        write(mount, 9, 6)
        read(mount, 15)
    finally:
        weed.start()
    end = time.monotonic() + PATIENCE_S
    while state(mount, "weed") != "ok":
        assert time.monotonic() < end, mount.status()["clouds"]
        time.sleep(1)
    before = len(three_servers.weed.packs())
    write(mount, 15, 12)
    assert len(three_servers.weed.packs()) > before
    read(mount, 27)

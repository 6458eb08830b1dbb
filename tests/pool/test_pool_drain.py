"""Scratch."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.pool.conftest import MakePool
from tests.pool.pooling import folder_place, take_inventory

pytestmark = [pytest.mark.mount, pytest.mark.slow]


def test_smoke(tmp_path: Path, make_pool: MakePool) -> None:
    places = [folder_place(tmp_path / "clouds", name, capacity="40MiB") for name in ("a", "b", "c")]
    mount = make_pool(places, redundancy="2")
    mount.start()
    for number in range(12):
        (mount.path / f"f{number}").write_bytes(random.Random(number).randbytes(500_000))
        mount.sync()
    print(mount.cuckoo("cloud", "drain", "a", "--dry-run").stdout.decode())
    print(mount.cuckoo("cloud", "drain", "a", "--yes").stdout.decode())
    print(places[0].sizes())
    assert not places[0].sizes()
    print(mount.cuckoo("cloud", "list").stdout.decode())
    print(mount.cuckoo("status").stdout.decode())
    mount.evict()
    mount.drop_caches()
    for number in range(12):
        assert (mount.path / f"f{number}").read_bytes() == random.Random(number).randbytes(500_000)
    mount.check()
    mount.umount()
    inventory = take_inventory(mount)
    assert (inventory.orphans, inventory.dangling, inventory.intents, inventory.single) == ([], [], 0, 0)
    mount.start()
    print(mount.cuckoo("cloud", "list").stdout.decode())
    mount.cuckoo("cloud", "set", "a", "--new")
    print(places[0].sizes())
    print(mount.cuckoo("cloud", "list").stdout.decode())
    print(mount.cuckoo("rebalance", "--dry-run").stdout.decode())
    print(mount.cuckoo("rebalance", "--yes").stdout.decode())
    print(mount.log_text()[-3000:])
    print(mount.cuckoo("cloud", "list").stdout.decode())

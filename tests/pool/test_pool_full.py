"""All clouds are full: what was written stays here and readable, and goes out as soon as there is room."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Final

import pytest

from tests.mount.mounting import Mount
from tests.pool.conftest import MakePool
from tests.pool.pooling import folder_place, take_inventory

pytestmark = [pytest.mark.mount, pytest.mark.slow]

MIB: Final = 1 << 20
PATIENCE_S: Final = 100.0


def content(number: int) -> bytes:
    return random.Random(number).randbytes(2 * MIB)


def wait_for_trouble(mount: Mount) -> str:
    """Return what `status` says about sending once it says something."""
    end = time.monotonic() + PATIENCE_S
    while not (error := str(mount.status()["cache"]["last_error"])):
        assert time.monotonic() < end
        time.sleep(0.05)
    return error


def test_no_room_left_and_room_again(tmp_path: Path, make_pool: MakePool) -> None:
    places = [folder_place(tmp_path / "clouds", name, capacity="5MiB") for name in ("a", "b")]
    mount = make_pool(places, redundancy="2")
    mount.start()
    for number in range(2):
        (mount.path / f"f{number}").write_bytes(content(number))
        mount.sync()
    (mount.path / "f2").write_bytes(content(2))
    assert "no room" in wait_for_trouble(mount)
    assert mount.pending()["bytes"] == 2 * MIB
    mount.evict()
    mount.drop_caches()
    for number in range(3):
        assert (mount.path / f"f{number}").read_bytes() == content(number)
    (mount.path / "f0").unlink()
    mount.cuckoo("gc", "--keep", "1")
    mount.sync()
    mount.evict()
    mount.drop_caches()
    for number in (1, 2):
        assert (mount.path / f"f{number}").read_bytes() == content(number)
    mount.umount()
    inventory = take_inventory(mount)
    assert (inventory.orphans, inventory.dangling, inventory.single) == ([], [], 0)
    assert all(place.used_bytes() <= 5 * MIB for place in places)


def test_one_of_two_is_full(tmp_path: Path, make_pool: MakePool) -> None:
    """Nobody waits for a second copy that has no place: packs with one are counted."""
    places = [folder_place(tmp_path / "clouds", "a", capacity="3MiB"), folder_place(tmp_path / "clouds", "b")]
    mount = make_pool(places, redundancy="2")
    mount.start()
    for number in range(3):
        (mount.path / f"f{number}").write_bytes(content(number))
        mount.sync()
    status = mount.status()
    assert status["packs"]["degraded"] == 2
    assert status["state"] == "degraded"
    assert mount.cuckoo("status", "--check", check=False).returncode == 3
    mount.umount()
    assert take_inventory(mount).single == 2


def test_sync_tells_of_copies_that_are_missing(tmp_path: Path, make_pool: MakePool) -> None:
    """Done but degraded is status 3, and a line says so (design §4)."""
    places = [folder_place(tmp_path / "clouds", "a", capacity="1MiB"), folder_place(tmp_path / "clouds", "b")]
    mount = make_pool(places, redundancy="2")
    mount.start()
    (mount.path / "f").write_bytes(content(0))
    assert mount.cuckoo("sync", check=False).returncode == 3

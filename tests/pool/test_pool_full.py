"""All clouds are full: what was written stays here and readable, and goes out as soon as there is room."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Final

import pytest

from cuckoo_mount.testing.faulty import write_plan
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


FULL: Final[dict[str, object]] = {"calls": ["put"], "match": "/packs/", "action": "full"}


@pytest.mark.long
def test_clouds_that_are_full_all_of_a_sudden(tmp_path: Path, make_pool: MakePool) -> None:
    """Somebody else took the room: what was accepted stays here, nothing more is, and deleting ends it."""
    places = [folder_place(tmp_path / "clouds", name) for name in ("a", "b")]
    mount = make_pool(places, redundancy="2")
    mount.start()
    for number in range(2):
        (mount.path / f"f{number}").write_bytes(content(number))
        mount.sync()
    for place in places:
        write_plan(place.plan, FULL)
    (mount.path / "f2").write_bytes(content(2))
    assert "full" in wait_for_trouble(mount)
    assert mount.pending()["bytes"] == 2 * MIB
    assert mount.status()["space"]["free_bytes"] == 0
    with pytest.raises(OSError, match="No space left"):
        (mount.path / "f3").write_bytes(content(3))
    mount.evict()
    mount.drop_caches()
    for number in range(3):
        assert (mount.path / f"f{number}").read_bytes() == content(number)
    for place in places:
        write_plan(place.plan)
    (mount.path / "f0").unlink()
    mount.cuckoo("gc", "--keep", "1")
    (mount.path / "f3").write_bytes(content(3))
    mount.sync()
    mount.evict()
    mount.drop_caches()
    for number in (1, 2, 3):
        assert (mount.path / f"f{number}").read_bytes() == content(number)
    mount.umount()
    inventory = take_inventory(mount)
    assert (inventory.orphans, inventory.dangling, inventory.single) == ([], [], 0)


def test_one_of_two_is_full(tmp_path: Path, make_pool: MakePool) -> None:
    """Two copies were asked for, so nothing is accepted that could only have one."""
    places = [folder_place(tmp_path / "clouds", "a", capacity="6MiB"), folder_place(tmp_path / "clouds", "b")]
    mount = make_pool(places, redundancy="2")
    mount.start()
    for number in range(2):
        (mount.path / f"f{number}").write_bytes(content(number))
        mount.sync()
    with pytest.raises(OSError, match="No space left"):
        (mount.path / "f2").write_bytes(content(2))
    mount.sync()
    assert mount.status()["packs"]["degraded"] == 0
    assert "The clouds are full" in mount.cuckoo("status").stdout.decode()
    mount.umount()
    inventory = take_inventory(mount)
    assert (inventory.orphans, inventory.single) == ([], 0)


def test_sync_tells_of_copies_that_are_missing(tmp_path: Path, make_pool: MakePool) -> None:
    """Done but degraded is status 3, and a line says so (design §4)."""
    places = [folder_place(tmp_path / "clouds", name) for name in ("a", "b")]
    mount = make_pool(places, redundancy="2")
    mount.start()
    write_plan(places[0].plan, FULL)
    (mount.path / "f").write_bytes(content(0))
    assert mount.cuckoo("sync", check=False).returncode == 3
    status = mount.status()
    assert status["packs"]["degraded"] == 1
    assert status["state"] == "degraded"
    assert mount.cuckoo("status", "--check", check=False).returncode == 3

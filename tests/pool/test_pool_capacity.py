"""Many files onto small clouds: everything fits until the sum is full, then ENOSPC; after deleting it fits again.

Clouds with a limit of their own (`--capacity`), and clouds that really are full (a tmpfs each).  The short form has the
proportions of the long one: files bigger than half a cloud, and one that is bigger than any.
"""

from __future__ import annotations

import errno
import os
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from attrs import evolve, frozen

from cuckoo_mount.config import write_config
from tests.pool.conftest import MakePool
from tests.pool.pooling import Place, PoolMount, folder_place, hide, take_inventory

pytestmark = [pytest.mark.mount, pytest.mark.slow]

MB: Final = 10**6
STEP_BYTES: Final = 4 * MB
FULL_PART: Final = 0.85
"""So much of what the clouds have is files when they are full: they keep up to a tenth in spare, small ones more."""


@frozen
class Sizes:
    """Sizes in MB, of one cloud, of each file and of the one that is bigger than a cloud; of packs in bytes."""

    cloud: int
    file: int
    big: int
    pack_bytes: int


SHORT: Final = Sizes(cloud=24, file=10, big=30, pack_bytes=2 << 20)
LONG: Final = Sizes(cloud=500, file=300, big=1000, pack_bytes=16 << 20)


def write_file(path: Path, size_bytes: int) -> bool:
    """Write a file of bytes that its name decides, and return whether a program would have been told that it failed."""
    dice = random.Random(path.name)
    try:
        with path.open("wb", buffering=0) as file:
            for start in range(0, size_bytes, STEP_BYTES):
                file.write(dice.randbytes(min(STEP_BYTES, size_bytes - start)))
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return False
    return True


def has_right_bytes(path: Path, size_bytes: int) -> bool:
    dice = random.Random(path.name)
    with path.open("rb", buffering=0) as file:
        for start in range(0, size_bytes, STEP_BYTES):
            step = min(STEP_BYTES, size_bytes - start)
            found = b""
            while len(found) < step and (part := file.read(step - len(found))):
                found += part
            if found != dice.randbytes(step):
                return False
        return not file.read(1)


def free_bytes(mount: PoolMount) -> int:
    """Return what df shows as available."""
    found = os.statvfs(mount.path)
    return found.f_bavail * found.f_frsize


def fill(mount: PoolMount, sizes: Sizes, files: int) -> dict[str, int]:
    """Write the big file, then others until one does not fit; return the sizes of those that do."""
    written: dict[str, int] = {}
    total = free_bytes(mount)
    for name in ("big", *(f"f{number}" for number in range(files))):
        size_bytes = (sizes.big if name == "big" else sizes.file) * MB
        fits = size_bytes < free_bytes(mount)
        if not write_file(mount.path / name, size_bytes):
            assert not fits, f"{name} did not fit although df said so"
            (mount.path / name).unlink()
            return written
        written[name] = size_bytes
        # Also while all of it is still on its way to the clouds.
        assert abs(free_bytes(mount) - (total - sum(written.values()))) < total / 50
    raise AssertionError("everything fitted: the test proves nothing")


def replace_first(mount: PoolMount, new: Path) -> None:
    """Lose a cloud of a full drive: there is little room to write anew what has too few shares now."""
    lost = mount.places[0]
    hide([lost])
    mount.cuckoo("cloud", "remove", lost.name, "--lost", "--yes")
    new.mkdir()
    mount.cuckoo("cloud", "add", "new", new, "--capacity", f"{SHORT.cloud}MB")
    assert mount.status()["space"]["free_bytes"] <= 2 * MB
    while mount.status()["packs"]["degraded"]:
        time.sleep(0.1)
    assert mount.status()["space"]["free_bytes"] <= 5 * MB
    Path(lost.config.url).mkdir()  # empty, for the inventory


def run(mount: PoolMount, sizes: Sizes, *, clouds: int, parts: float, files: int, new: Path | None = None) -> None:
    """`parts`: of what the clouds have, how much is files; the rest is redundancy.  `new`: for another cloud."""
    write_config(evolve(mount.configure(cache_limit="1GiB"), pack_size_bytes=sizes.pack_bytes), mount.paths)
    mount.start()
    room = sizes.cloud * MB * clouds * parts
    assert FULL_PART * room <= free_bytes(mount) <= room
    written = fill(mount, sizes, files)
    print(f"{len(written)} files, {sum(written.values()) / MB:.0f} MB of {room / MB:.0f} MB: ", end="")
    assert sum(written.values()) + sizes.file * MB >= FULL_PART * room
    mount.sync()
    assert mount.pending()["bytes"] == 0, "something was accepted that no cloud takes"
    assert mount.status()["packs"]["degraded"] == 0
    for again in ("again", "again and again"):
        # To the last byte, to begin with.
        while free_bytes(mount) and write_file(mount.path / f"rest {len(written)}", size := min(free_bytes(mount), MB)):
            written[f"rest {len(written)}"] = size
        assert not write_file(mount.path / "none", sizes.file * MB)
        (mount.path / "none").unlink()
        gone = next(iter(written))
        del written[gone]
        (mount.path / gone).unlink()
        if again == "again":
            print(mount.cuckoo("gc").stdout.decode())
            assert free_bytes(mount) >= 0.9 * sizes.file * MB
        size_bytes = int(0.85 * sizes.file * MB)
        assert write_file(mount.path / again, size_bytes)
        written[again] = size_bytes
    mount.sync()
    assert mount.pending()["bytes"] == 0
    assert mount.status()["packs"]["degraded"] == 0
    if new is not None:
        replace_first(mount, new)
    mount.evict()
    mount.drop_caches()
    for name, size_bytes in written.items():
        assert has_right_bytes(mount.path / name, size_bytes), name
    for name in written:
        (mount.path / name).unlink()
    mount.cuckoo("gc")
    assert free_bytes(mount) >= 0.98 * FULL_PART * room
    mount.umount()
    inventory = take_inventory(mount)
    assert (inventory.orphans, inventory.dangling, inventory.intents) == ([], [], 0)


@pytest.mark.parametrize(
    ("redundancy", "parts"),
    [("none", 1.0), pytest.param("3+2", 0.6, marks=[pytest.mark.long, pytest.mark.timeout(600)])],
)
def test_clouds_with_a_limit(tmp_path: Path, make_pool: MakePool, redundancy: str, parts: float) -> None:
    places = [folder_place(tmp_path / "clouds", name, capacity=f"{SHORT.cloud}MB") for name in "abcde"]
    mount = make_pool(places, redundancy=redundancy)
    run(mount, SHORT, clouds=5, parts=parts, files=10, new=None if redundancy == "none" else tmp_path / "new")
    assert all(place.used_bytes() <= SHORT.cloud * MB for place in places)


@pytest.fixture
def small_disks(tmp_path: Path) -> Iterator[list[Place]]:
    """Four clouds, each a file system of its own that is full when it is full."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a tmpfs")
    places = [folder_place(tmp_path / "clouds", name) for name in "abcd"]
    for place in places:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SHORT.cloud * MB}", "none", place.config.url], check=True)
    yield places
    for place in places:
        subprocess.run(["umount", "--lazy", place.config.url], check=True)


def test_clouds_that_are_full(make_pool: MakePool, small_disks: list[Place]) -> None:
    run(make_pool(small_disks, redundancy="2"), SHORT, clouds=4, parts=0.5, files=10)


@pytest.mark.long
@pytest.mark.timeout(2400)
def test_thirty_files_and_a_big_one(tmp_path: Path, make_pool: MakePool) -> None:
    places = [folder_place(tmp_path / "clouds", f"c{number}", capacity="500MB") for number in range(21)]
    mount = make_pool(places, deadline_s=2400)
    run(mount, LONG, clouds=len(places), parts=1.0, files=40)

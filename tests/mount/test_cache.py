"""A cache that is smaller than what is on the drive: everything comes back from the cloud, and the limits hold.

The bounds are the documented ones: the configured limit, `CacheLimits.overshoot_bytes` for what is unsent, and the
packs on their way.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from cuckoo_mount.cache.pressure import CacheLimits
from cuckoo_mount.cache.writeback import MAX_PACKS_AT_ONCE
from cuckoo_mount.config import read_config, read_drive_key
from cuckoo_mount.drive import open_drive
from cuckoo_mount.types import PACK_SIZE_BYTES
from tests.mount.mounting import Mount

pytestmark = [pytest.mark.mount, pytest.mark.slow, pytest.mark.timeout(240)]

MIB: Final = 1 << 20
LIMIT: Final = "64MiB"
LIMIT_BYTES: Final = 64 * MIB
OVERSHOOT_BYTES: Final = CacheLimits().overshoot_bytes
STAGING_BYTES: Final = (MAX_PACKS_AT_ONCE + 1) * 2 * PACK_SIZE_BYTES
"""Packs being built and stored; one chunk more than full, and sealing makes them no bigger."""
RSS_LIMIT_KIB: Final = 200 * 1024
PATIENCE_S: Final = 120.0
HOUSEKEEPING_PATIENCE_S: Final = 200.0
SEED: Final = 20_261_122


def content(number: int) -> bytes:
    """Small file `number`: up to 12 KB, each another one."""
    dice = random.Random(SEED + number)
    return dice.randbytes(dice.randrange(12_000))


def blocks(count: int) -> Iterator[bytes]:
    base = random.Random(SEED).randbytes(MIB)
    for number in range(count):
        yield number.to_bytes(8, "big") + base[8:]


def bytes_on_disk(*folders: Path) -> int:
    """As du counts."""
    total = 0
    for folder in folders:
        for path in folder.rglob("*"):
            try:
                total += path.lstat().st_blocks * 512
            except FileNotFoundError:
                continue
    return total


def assert_within_limits(mount: Mount) -> int:
    held = bytes_on_disk(mount.paths.state / "files", mount.paths.cache)
    staged = bytes_on_disk(mount.paths.state / "staging", mount.paths.state / "aside")
    assert held <= LIMIT_BYTES + OVERSHOOT_BYTES, f"{held / MIB:.0f} MiB are held"
    assert staged <= STAGING_BYTES, f"{staged / MIB:.0f} MiB are staged"
    return held


def wait_until(what: str, true: Callable[[], bool], patience_s: float = PATIENCE_S) -> None:
    end = time.monotonic() + patience_s
    while not true():
        assert time.monotonic() < end, f"not within {patience_s:.0f} s: {what}"
        time.sleep(0.05)


def fill_and_read_back(mount: Mount, *, file_mib: int, files: int) -> None:
    mount.start(cache_limit=LIMIT)
    most = write_all(mount, file_mib, files)
    mount.sync(timeout_s=600)
    wait_until("the cache is below its limit", lambda: mount.status()["cache"]["bytes"] <= LIMIT_BYTES)
    assert_within_limits(mount)
    before = mount.status()["cache"]
    assert before["evicted_bytes"] >= file_mib * MIB - LIMIT_BYTES
    if not mount.drop_caches():
        mount.umount()
        mount.start()
    down = mount.status()["clouds"][0]["bytes_down"]
    most = max(most, read_all(mount, file_mib, files))
    after = mount.status()["cache"]
    assert mount.status()["clouds"][0]["bytes_down"] - down >= file_mib * MIB - LIMIT_BYTES
    rss, peak = mount.rss_kib(), mount.peak_rss_kib()
    print(
        f"RSS {rss / 1024:.0f} MiB, peak {peak / 1024:.0f} MiB; cache folders at most {most / MIB:.0f} MiB; "
        f"{after['evicted_bytes'] / MIB:.0f} MiB evicted, {after['misses']} misses, {after['hits']} hits"
    )
    assert max(rss, peak) < RSS_LIMIT_KIB
    wait_until("the cache is below its limit again", lambda: mount.status()["cache"]["bytes"] <= LIMIT_BYTES)


def write_all(mount: Mount, file_mib: int, files: int) -> int:
    most = 0
    with (mount.path / "big").open("wb") as big:
        for number, block in enumerate(blocks(file_mib)):
            big.write(block)
            if number % 16 == 0:
                most = max(most, assert_within_limits(mount))
    for number in range(files):
        folder = mount.path / f"d{number // 100}"
        if number % 100 == 0:
            folder.mkdir()
        (folder / f"f{number}").write_bytes(content(number))
        if number % 500 == 0:
            most = max(most, assert_within_limits(mount))
    return most


def read_all(mount: Mount, file_mib: int, files: int) -> int:
    most = 0
    with (mount.path / "big").open("rb") as big:
        for number, block in enumerate(blocks(file_mib)):
            assert big.read(MIB) == block, f"block {number}"
            if number % 16 == 0:
                most = max(most, assert_within_limits(mount))
        assert big.read() == b""
    order = list(range(files))
    random.Random(SEED).shuffle(order)
    for number in order:
        found = (mount.path / f"d{number // 100}" / f"f{number}").read_bytes()
        assert found == content(number), f"file {number}"
    return max(most, assert_within_limits(mount))


@pytest.mark.long
def test_a_small_cache_under_a_big_file_and_a_tree(mount: Mount) -> None:
    fill_and_read_back(mount, file_mib=192, files=1500)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_a_small_cache_under_1_gib_and_10000_files(mount: Mount) -> None:
    mount.deadline_s = 3600
    fill_and_read_back(mount, file_mib=1024, files=10_000)


@pytest.mark.long
def test_edits_of_evicted_chunks_survive_evictions(mount: Mount) -> None:
    """Random small writes all over a file that does not fit: each works on a chunk that is mostly not here."""
    mount.start(cache_limit="16MiB")
    expected = bytearray(b"".join(blocks(24)))
    file = mount.path / "file"
    file.write_bytes(expected)
    mount.sync()
    dice = random.Random(SEED)
    with file.open("r+b", buffering=0) as opened:
        for number in range(60):
            offset, data = dice.randrange(len(expected) - 9000), dice.randbytes(dice.randrange(1, 9000))
            opened.seek(offset)
            opened.write(data)
            expected[offset : offset + len(data)] = data
            if number % 20 == 10:
                mount.evict()
                mount.drop_caches()
    mount.check()
    mount.umount()
    mount.start()
    mount.evict()
    assert file.read_bytes() == expected


def packs(mount: Mount) -> list[Path]:
    return [path for path in mount.cloud.glob("cuckoo/*/packs/*/*") if path.is_file()]


def fill_and_delete(mount: Mount) -> None:
    mount.start()
    for number in range(30):
        (mount.path / f"f{number}").write_bytes(content(number) + bytes([number]) * MIB)
    mount.sync()
    assert packs(mount)
    for number in range(30):
        (mount.path / f"f{number}").unlink()


async def test_deleted_files_free_the_cloud(mount: Mount) -> None:
    fill_and_delete(mount)
    mount.umount()
    config = read_config(mount.paths)
    assert config is not None
    async with open_drive(config, mount.paths, read_drive_key(mount.paths.key_file)) as drive:
        await drive.collect()
        assert packs(mount), "older epochs have them"
        await drive.collect(keep=1)
    assert packs(mount) == []


@pytest.mark.long
@pytest.mark.timeout(400)
def test_housekeeping_frees_the_cloud_by_itself(mount: Mount) -> None:
    mount.deadline_s = 400
    fill_and_delete(mount)
    wait_until("the packs are deleted", lambda: not packs(mount), HOUSEKEEPING_PATIENCE_S)
    assert mount.status()["packs"]["count"] == 0


def test_writes_do_not_need_a_cloud(mount: Mount) -> None:
    mount.start(cache_limit=LIMIT)
    away = mount.cloud.with_name("away")
    mount.cloud.rename(away)
    fill = list(blocks(24))
    for number, block in enumerate(fill):
        fd = os.open(mount.path / f"f{number}", os.O_CREAT | os.O_WRONLY, 0o644)
        try:
            os.write(fd, block)
            os.fsync(fd)
        finally:
            os.close(fd)
    (mount.path / "f0").rename(mount.path / "f1")
    (mount.path / "f2").unlink()
    assert mount.pending()["bytes"] >= 22 * MIB
    wait_until("it is noticed", lambda: mount.status()["state"] == "offline")
    mount.drop_caches()
    for number in range(3, 24):
        assert (mount.path / f"f{number}").read_bytes() == fill[number]
    away.rename(mount.cloud)
    mount.sync()
    mount.evict()
    mount.drop_caches()
    assert (mount.path / "f1").read_bytes() == fill[0]
    assert (mount.path / "f23").read_bytes() == fill[23]


def write_until_full(mount: Mount, block: bytes, written: list[int]) -> None:
    for number in range(200):
        fd = os.open(mount.path / f"f{number}", os.O_CREAT | os.O_WRONLY, 0o644)
        try:
            os.write(fd, block)
            os.fsync(fd)
        finally:
            os.close(fd)
        written.append(number)


@pytest.mark.long  # waits for the throttle, twice 5 s, and for the cloud's next try
def test_a_full_cache_refuses_new_files_and_heals(mount: Mount) -> None:
    mount.start(cache_limit="16MiB")
    away = mount.cloud.with_name("away")
    mount.cloud.rename(away)
    written, block = list[int](), next(blocks(1))
    with pytest.raises(OSError, match="No space left"):
        write_until_full(mount, block, written)
    assert len(written) >= 14
    assert (mount.path / "f0").read_bytes() == block
    (mount.path / "f1").unlink()
    away.rename(mount.cloud)
    mount.sync()
    (mount.path / "new").write_bytes(block)
    for number in written[2:]:
        assert (mount.path / f"f{number}").read_bytes() == block

"""Reading a drive back without a cache: how many requests that costs, and that it is right."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import tarfile
from pathlib import Path
from typing import Final

import pytest

from tests.mount.mounting import Mount

pytestmark = [pytest.mark.mount, pytest.mark.slow]

MIB: Final = 1 << 20
SEED: Final = 20_261_124
FILES: Final = 2000
STREAM_MIB: Final = 96


def content(number: int) -> bytes:
    dice = random.Random(SEED + number)
    return dice.randbytes(dice.randrange(1, 8000))


def requests(mount: Mount) -> int:
    return sum(cloud["requests"] for cloud in mount.status()["clouds"])


def remount_cold(mount: Mount, *, cache_limit: str | None = None) -> None:
    mount.sync()
    mount.umount()
    shutil.rmtree(mount.paths.cache)
    mount.start(cache_limit=cache_limit)


def write_tree(root: Path, files: int) -> None:
    for number in range(files):
        folder = root / f"d{number // 100:03d}"
        if number % 100 == 0:
            folder.mkdir(parents=True)
        (folder / f"f{number:05d}").write_bytes(content(number))


def check_tar(path: Path, files: int) -> None:
    found = 0
    with tarfile.open(path) as archive:
        for member in archive:
            if member.isfile():
                stream = archive.extractfile(member)
                assert stream is not None
                assert stream.read() == content(int(Path(member.name).name[1:]))
                found += 1
    assert found == files


def test_a_cold_tar_of_small_files_costs_few_requests(mount: Mount, tmp_path: Path) -> None:
    mount.start()
    write_tree(mount.path / "tree", FILES)
    remount_cold(mount)
    before = requests(mount)
    mount.run("tar", "cf", tmp_path / "tree.tar", "tree", cwd=mount.path)
    # 8 MiB in one or a few packs; one request per file would be 2,000.
    assert requests(mount) - before <= 20
    check_tar(tmp_path / "tree.tar", FILES)


@pytest.mark.long
def test_a_cold_tree_is_right_with_a_tiny_cache(mount: Mount, tmp_path: Path) -> None:
    mount.start()
    write_tree(mount.path / "tree", FILES)
    (mount.path / "tree" / "d000" / "f99999").write_bytes(content(99_999))
    big = random.Random(SEED).randbytes(32 * MIB)
    (mount.path / "big").write_bytes(big)
    remount_cold(mount, cache_limit="16MiB")
    before = requests(mount)
    with (mount.path / "big").open("rb") as stream:
        assert stream.read() == big
    mount.run("tar", "cf", tmp_path / "tree.tar", "tree", cwd=mount.path)
    assert requests(mount) - before <= 100
    check_tar(tmp_path / "tree.tar", FILES + 1)


def test_a_cold_stream_comes_in_few_requests(mount: Mount) -> None:
    mount.start()
    written = hashlib.sha256()
    dice = random.Random(SEED)
    with (mount.path / "big").open("wb") as stream:
        for _ in range(STREAM_MIB):
            block = dice.randbytes(MIB)
            written.update(block)
            stream.write(block)
    remount_cold(mount)
    before, misses = requests(mount), mount.status()["cache"]["misses"]
    found = hashlib.sha256()
    with (mount.path / "big").open("rb", buffering=0) as stream:
        while block := stream.read(MIB):
            found.update(block)
    assert found.digest() == written.digest()
    assert requests(mount) - before <= STREAM_MIB // 2
    assert mount.status()["cache"]["misses"] - misses <= STREAM_MIB // 3


def test_cold_random_reads_bring_little_more_than_asked(mount: Mount) -> None:
    mount.start()
    size_mib = 64
    base = random.Random(SEED).randbytes(MIB)
    with (mount.path / "big").open("wb") as stream:
        for number in range(size_mib):
            stream.write(number.to_bytes(8, "big") + base[8:])
    remount_cold(mount)
    down = mount.status()["clouds"][0]["bytes_down"]
    wanted = [41, 3, 57, 19, 30, 9, 50]
    descriptor = os.open(mount.path / "big", os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        for number in wanted:
            assert os.pread(descriptor, 8, number * MIB) == number.to_bytes(8, "big")
    finally:
        os.close(descriptor)
    assert mount.status()["clouds"][0]["bytes_down"] - down <= (len(wanted) + 1) * (MIB + 4096)

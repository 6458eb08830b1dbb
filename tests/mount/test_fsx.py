"""Random reads, writes, mappings and truncations of a file, while it goes to the cloud and comes back.

Two ways: our own exerciser (exerciser.py), and fsx, the File System eXerciser of Apple, where somebody has built it.
The cache is as small as it may be, smaller than the files, so that their bytes are evicted and fetched all the time.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

from cuckoo_mount.config.records import CACHE_LIMIT_MIN_BYTES
from tests.mount.disturbing import Disturber
from tests.mount.exerciser import Exerciser
from tests.mount.mounting import Mount

pytestmark = [pytest.mark.mount, pytest.mark.slow, pytest.mark.timeout(240)]

MIB: Final = 1 << 20
LIMIT: Final = str(CACHE_LIMIT_MIN_BYTES)
LARGER_THAN_THE_CACHE: Final = CACHE_LIMIT_MIN_BYTES + 8 * MIB
FSX: Final = "CUCKOO_FSX"
HOW_TO_GET_FSX: Final = f"""{FSX} does not name a built fsx. It is ltp/fsx.c of xfstests
(https://git.kernel.org/pub/scm/fs/xfs/xfstests-dev.git): ./configure && make there, then {FSX}=…/ltp/fsx"""
FSX_TIMEOUT_S: Final = 1500.0


def start(mount: Mount) -> None:
    mount.start(cache_limit=LIMIT)


def remount_with_an_empty_cache(mount: Mount) -> None:
    """Unmount, delete what the documentation says may be deleted, mount: every byte comes from the cloud."""
    mount.umount()
    shutil.rmtree(mount.paths.cache)
    start(mount)


def exercise(mount: Mount, seed: int, count: int) -> None:
    print(f"seed {seed}, {count} operations")
    exerciser = Exerciser(mount, mount.path / f"exercised{seed}", seed, size_max=LARGER_THAN_THE_CACHE)
    try:
        exerciser.steps(count)
    finally:
        exerciser.close()
    exerciser.compare("at the end")
    remount_with_an_empty_cache(mount)
    exerciser.compare("with an empty cache")
    print(f"{exerciser.counts}, {len(exerciser.expected)} bytes, cache: {mount.status()['cache']}")


def test_a_file_is_what_was_written_to_it(mount: Mount) -> None:
    start(mount)
    for seed in (1,):
        exercise(mount, seed, 2000)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("number", range(3))
def test_a_file_is_what_was_written_to_it_very_often(mount: Mount, number: int) -> None:
    mount.deadline_s = 1700
    start(mount)
    exercise(mount, random.randrange(1 << 32), 100_000)


# -- fsx --


def fsx_binary() -> Path:
    name = os.environ.get(FSX, "")
    if not os.access(name, os.X_OK):
        pytest.skip(HOW_TO_GET_FSX)
    return Path(name)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("size_max", "most", "options"),
    [
        (str(LARGER_THAN_THE_CACHE), "300000", ["-c", "100"]),  # closed and opened now and then
        ("3000000", "60000", ["-c", "20"]),
        (str(LARGER_THAN_THE_CACHE), "1500000", ["-f"]),  # the kernel's pages are dropped after each operation
    ],
)
def test_fsx(mount: Mount, tmp_path: Path, size_max: str, most: str, options: list[str]) -> None:
    """Two at once, with all that fsx tries and finds possible here: mappings, copy_file_range, preadv2, …."""
    binary = fsx_binary()
    mount.deadline_s = 1700
    start(mount)
    seeds = [random.randrange(1 << 31) for _ in range(2)]
    print(f"seeds {seeds}")
    with Disturber(mount, seeds[0], pause_s=0.2) as disturber:
        limits = ["-N", "25000", "-l", size_max, "-o", most]
        running = [
            subprocess.Popen(
                [binary, "-q", *limits, *options, "-S", str(seed), "-P", tmp_path, mount.path / f"fsx{seed}"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                cwd="/",
            )
            for seed in seeds
        ]
        try:
            said = [process.communicate(timeout=FSX_TIMEOUT_S)[0].decode("utf-8", "replace") for process in running]
        finally:
            for process in running:
                process.kill()
                process.wait()
    print(f"{disturber.counts}, cache: {mount.status()['cache']}")
    for process, text in zip(running, said, strict=True):
        assert process.returncode == 0, text[-5000:]
    if int(size_max) >= LARGER_THAN_THE_CACHE:  # of a small file all may be dirty whenever somebody looks
        assert disturber.evicted_bytes > 0

"""fio writes blocks that carry their own checksum, and reads them back: at once, and from an empty cache."""

from __future__ import annotations

import configparser
from pathlib import Path
from typing import Final

import pytest

from tests.mount.mounting import Mount
from tests.programs.running import PROGRAM_S, need, without_cache

pytestmark = [pytest.mark.mount, pytest.mark.slow, pytest.mark.timeout(240)]

JOBS: Final = {
    "sequential": {"rw": "write", "bs": "128k", "end_fsync": "1"},
    "random": {"rw": "randwrite", "bs": "4k"},
    "unaligned": {"rw": "randwrite", "bs": "3k", "fdatasync": "200"},
    "mapped": {"rw": "randwrite", "bs": "4k", "ioengine": "mmap"},
    "direct": {"rw": "randwrite", "bs": "4k", "ioengine": "libaio", "iodepth": "16", "direct": "1"},
}
"""What each job does; the size comes from the test."""


def write_jobs(path: Path, folder: Path, sizes: dict[str, str]) -> None:
    jobs = configparser.ConfigParser(allow_no_value=True)
    # Each block once: then the last run of a job says what every block has to be.
    common = {"directory": str(folder), "verify": "crc32c", "verify_fatal": "1", "do_verify": "1", "randseed": "7"}
    jobs["global"] = common | {"stonewall": "1"}
    for name, size in sizes.items():
        jobs[name] = JOBS[name] | {"size": size}
    with path.open("w", encoding="ascii") as file:
        jobs.write(file, space_around_delimiters=False)


def run_fio(mount: Mount, folder: Path, sizes: dict[str, str], timeout_s: float) -> None:
    need("fio")
    mount.start()
    target = mount.path / "fio"
    target.mkdir()
    write_jobs(folder / "jobs", target, sizes)
    mount.run("fio", folder / "jobs", timeout_s=timeout_s)
    without_cache(mount)
    mount.run("fio", "--verify_only", folder / "jobs", timeout_s=timeout_s)
    # The check can fail: one byte of a block is another.
    wrong = target / "sequential.0.0"
    with wrong.open("r+b") as file:
        file.seek(wrong.stat().st_size // 2 + 5000)
        (before,) = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([before ^ 1]))
    said = mount.run("fio", "--verify_only", folder / "jobs", timeout_s=timeout_s, check=False)
    assert b"verify" in said.stderr + said.stdout
    assert said.returncode != 0


def test_fio_verifies_what_it_wrote(mount: Mount, tmp_path: Path) -> None:
    sizes = {"sequential": "16m", "random": "3m", "unaligned": "3m", "mapped": "3m", "direct": "2m"}
    run_fio(mount, tmp_path, sizes, PROGRAM_S)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_fio_verifies_more_than_the_cache_holds(mount: Mount, tmp_path: Path) -> None:
    mount.deadline_s = 1800
    mount.configure(cache_limit="32MiB")
    sizes = {"sequential": "128m", "random": "40m", "unaligned": "24m", "mapped": "40m", "direct": "16m"}
    run_fio(mount, tmp_path, sizes, 900)

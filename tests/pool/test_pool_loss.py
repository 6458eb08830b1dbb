"""Two of five clouds are lost for good while programs write; two new ones take their place; then two others are lost.

rsync and fio are the programs.  They must not notice; what was there before is read from any three shares, what is
written meanwhile has three, and healing brings back the other two by itself.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest
from attrs import evolve, frozen

from cuckoo_mount.config import write_config
from tests.mount.mounting import Mount
from tests.pool.conftest import MakePool
from tests.pool.pooling import Place, PoolMount, bring_back, hide
from tests.pool.test_pool_erasure import five_folders
from tests.programs.running import PROGRAM_S, need

pytestmark = [pytest.mark.mount, pytest.mark.slow]

LIBRARY: Final = Path(subprocess.__file__).parent
OLD_PACKS: Final = 8
PATIENCE_S: Final = 300.0
JOBS: Final = """
[global]
directory={folder}
verify=crc32c
verify_fatal=1
do_verify=1
randseed=7
size={size}
fdatasync=64
[sequential]
rw=write
bs=128k
[random]
rw=randwrite
bs=4k
"""


@frozen
class Work:
    """What the programs do: folders of Python's library for rsync, the size of each of fio's files."""

    folders: tuple[str, ...]
    fio_size: str
    pack_bytes: int


SHORT: Final = Work(("json", "email", "http", "xml", "asyncio"), "8m", 1 << 20)
LONG: Final = Work((".",), "200m", 16 << 20)


class Program(threading.Thread):
    """A program that runs meanwhile; `finished` fails unless it ended well."""

    def __init__(self, mount: Mount, *command: str | Path) -> None:
        super().__init__()
        self._mount = mount
        self._command = command
        self._failure: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._mount.run(*self._command, timeout_s=PROGRAM_S)
        except BaseException as error:
            self._failure = error

    def finished(self) -> None:
        self.join()
        if self._failure is not None:
            raise self._failure


def copy_command(work: Work, target: Path) -> list[str | Path]:
    sources = [f"{LIBRARY}/./{name}" for name in work.folders]
    return ["rsync", "-aHAX", "--relative", "--exclude=__pycache__", "--exclude=site-packages", *sources, f"{target}/"]


def assert_copied(mount: Mount, work: Work, target: Path) -> None:
    """Fail if rsync, comparing every byte, finds anything to do."""
    command, *arguments = copy_command(work, target)
    done = mount.run(command, "-nic", "--omit-dir-times", *arguments, timeout_s=PROGRAM_S)
    assert done.stdout == b""


def wait_until(what: str, is_true: object, mount: PoolMount) -> None:
    assert callable(is_true)
    end = time.monotonic() + PATIENCE_S
    while not is_true():
        assert time.monotonic() < end, f"not after {PATIENCE_S:.0f} s: {what}; {mount.status()['packs']}"
        time.sleep(0.1)


def lose(places: Sequence[Place]) -> None:
    """Delete clouds, all objects of one at the same moment."""
    hide(places)
    for place in places:
        shutil.rmtree(f"{place.config.url}.away")


def old_bytes(work: Work, number: int) -> bytes:
    """Return what fills a pack."""
    return random.Random(number).randbytes(work.pack_bytes)


def degraded(mount: PoolMount) -> int:
    return int(mount.status()["packs"]["degraded"])


def run(mount: PoolMount, folder: Path, work: Work, new: Sequence[Path]) -> None:
    need("rsync", "fio")
    write_config(evolve(mount.configure(cache_limit="1GiB"), pack_size_bytes=work.pack_bytes), mount.paths)
    mount.start()
    before, during, fio = (mount.path / name for name in ("before", "during", "fio"))
    for path in (before, during, fio):
        path.mkdir()
    mount.run(*copy_command(work, before), timeout_s=PROGRAM_S)
    for number in range(OLD_PACKS):
        (mount.path / f"old {number}").write_bytes(old_bytes(work, number))
    mount.sync()
    assert degraded(mount) == 0
    packs_before = mount.status()["packs"]["count"]
    assert packs_before > OLD_PACKS
    jobs = folder / "jobs"
    jobs.write_text(JOBS.format(folder=fio, size=work.fio_size))

    programs = [Program(mount, *copy_command(work, during)), Program(mount, "fio", jobs)]
    wait_until("something is written", lambda: mount.pending()["bytes"] > 0, mount)
    lose(mount.places[:1])
    wait_until("a pack is sent without it", lambda: mount.status()["packs"]["count"] > packs_before, mount)
    lose(mount.places[1:2])
    for program in programs:
        program.finished()
    mount.cuckoo("sync", check=False)
    assert mount.pending()["bytes"] == 0
    status = mount.status()
    assert status["state"] == "degraded"
    assert status["packs"]["degraded"] > 0
    assert mount.cuckoo("status", "--check", check=False).returncode == 3
    verify(mount, work, jobs)

    for place in mount.places[:2]:
        mount.cuckoo("cloud", "remove", place.name, "--lost", "--yes")
    assert degraded(mount) > status["packs"]["degraded"], "those from before, too, have three shares now"
    for path in new:
        path.mkdir()
        mount.cuckoo("cloud", "add", path.name, path)
    began_s = time.monotonic()
    wait_until("all is healed", lambda: degraded(mount) == 0, mount)
    print(f"{packs_before} packs before, {mount.status()['packs']} after {time.monotonic() - began_s:.1f} s")
    mount.sync()
    hide(mount.places[2:4])
    verify(mount, work, jobs)
    bring_back(mount.places[2:4])
    mount.check()
    mount.umount()


def verify(mount: PoolMount, work: Work, jobs: Path) -> None:
    """Fail unless everything can be read from the clouds, byte for byte."""
    mount.evict()
    mount.drop_caches()
    assert_copied(mount, work, mount.path / "before")
    assert_copied(mount, work, mount.path / "during")
    for number in range(OLD_PACKS):
        assert (mount.path / f"old {number}").read_bytes() == old_bytes(work, number)
    mount.run("fio", "--verify_only", jobs, timeout_s=PROGRAM_S)


def test_two_clouds_are_lost_while_programs_write(tmp_path: Path, make_pool: MakePool) -> None:
    mount = make_pool(five_folders(tmp_path), redundancy="3+2")
    run(mount, tmp_path, SHORT, [tmp_path / "f", tmp_path / "g"])


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_two_clouds_are_lost_while_programs_write_much(tmp_path: Path, make_pool: MakePool) -> None:
    mount = make_pool(five_folders(tmp_path), redundancy="3+2", deadline_s=1800)
    run(mount, tmp_path, LONG, [tmp_path / "f", tmp_path / "g"])

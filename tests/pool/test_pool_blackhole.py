"""Every cloud takes connections and never answers: what is here goes on, what is not ends at the deadline."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import pytest
from attrs import evolve

from cuckoo_mount.config import write_config
from cuckoo_mount.testing.httpproxy import Fault
from tests.pool.conftest import MakePool
from tests.pool.pooling import PoolMount
from tests.pool.threeservers import ThreeServers

pytestmark = [pytest.mark.mount, pytest.mark.slow]

DEADLINE_S: Final = 8.0
READERS: Final = 150
PATIENCE_S: Final = 120.0
READER: Final = """
import os, sys
path = sys.argv[1]
try:
    with open(path, "rb", buffering=0) as file:
        file.read(65536)
except OSError as error:
    sys.exit(error.errno)
"""


def content(number: int) -> bytes:
    return random.Random(number).randbytes(40_000)


def path_of(mount: PoolMount, number: int) -> Path:
    return mount.path / f"f{number}"


def swallow(servers: ThreeServers) -> None:
    for proxy in servers.proxies.values():
        proxy.break_requests(Fault("hang"))


def wait_for_reads(mount: PoolMount, count: int) -> None:
    """Return when the kernel has asked for so many reads."""
    end = time.monotonic() + PATIENCE_S
    while mount.upcalls()["read"] < count:
        assert time.monotonic() < end
        time.sleep(0.05)


def work_on_what_is_here(mount: PoolMount, round_number: int) -> float:
    """Do what has to go on; return the longest time that one of its steps took, in seconds."""
    slowest, last = 0.0, time.monotonic()

    def step() -> None:
        nonlocal slowest, last
        now = time.monotonic()
        slowest, last = max(slowest, now - last), now

    for number in range(0, READERS, 10):
        assert path_of(mount, number).stat().st_size == len(content(number))
        step()
    assert len(os.listdir(mount.path)) >= READERS
    step()
    os.statvfs(mount.path)
    step()
    (mount.path / f"folder{round_number}").mkdir()
    new = mount.path / f"folder{round_number}" / "new"
    step()
    with new.open("wb", buffering=0) as file:
        file.write(bytes(300_000))
        os.fsync(file.fileno())
    step()
    assert new.read_bytes() == bytes(300_000)
    step()
    os.rename(new, path_of(mount, round_number).with_suffix(".moved"))
    step()
    os.unlink(path_of(mount, round_number).with_suffix(".moved"))
    step()
    return slowest


@pytest.mark.long
@pytest.mark.timeout(400)
def test_clouds_that_swallow_everything(make_pool: MakePool, three_servers: ThreeServers) -> None:
    mount = make_pool((three_servers.weed, three_servers.rclone), redundancy="2", deadline_s=400)
    write_config(evolve(mount.configure(), deadline_s=DEADLINE_S), mount.paths)
    mount.start()
    for number in range(READERS + 1):
        path_of(mount, number).write_bytes(content(number))
    mount.sync()
    mount.evict()
    mount.drop_caches()
    reads = mount.upcalls()["read"]
    swallow(three_servers)
    readers = [
        subprocess.Popen([sys.executable, "-I", "-S", "-c", READER, path_of(mount, number)])
        for number in range(READERS)
    ]
    try:
        wait_for_reads(mount, reads + READERS)
        slowest = [work_on_what_is_here(mount, number) for number in range(5)]
        still = [reader for reader in readers if reader.poll() is None]
        print(f"the slowest step beside {len(still)} waiting reads: {max(slowest) * 1000:.1f} ms")
        assert still, "all reads gave up before the others were done: nothing was shown"
        still[-1].send_signal(signal.SIGKILL)
        assert still[-1].wait(DEADLINE_S) == -signal.SIGKILL
        found = [reader.wait(PATIENCE_S) for reader in readers if reader is not still[-1]]
        assert set(found) <= {errno.EIO, errno.ETIMEDOUT}, sorted(set(found))
    finally:
        for reader in readers:
            reader.kill()
            reader.wait()
    work_on_what_is_here(mount, 9)
    for proxy in three_servers.proxies.values():
        proxy.break_requests()
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            assert path_of(mount, READERS).read_bytes() == content(READERS)
            break
        except OSError:
            assert time.monotonic() < end, "the clouds are back and are not used"
    for number in range(READERS):
        assert path_of(mount, number).read_bytes() == content(number)
    mount.sync()

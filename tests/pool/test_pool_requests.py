"""What a drive costs in requests, counted at the servers: a proxy in front of each S3 server, the driver's calls for
the folder.

The promises for two copies over three clouds: a tree of 10,000 files written by rsync with default timers ≤ 100 write
requests in all, metadata included; reading it cold with tar ≤ 150 of any kind; one more small file ≤ 3 requests and
≤ 64 KiB besides its epoch, which is two puts and two looks at the claims; an idle mount ≤ 1 per minute and cloud; one
request per stored pack on S3, and one per ranged read.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import pytest
import trio
import trio.testing

from cuckoo_mount import drive
from cuckoo_mount.testing.httpproxy import Fault
from cuckoo_mount.workers import WorkerPool, open_worker_pool
from tests.pool import trees
from tests.pool.conftest import MakePool
from tests.pool.pooling import PoolMount
from tests.pool.threeservers import ThreeServers

pytestmark = [pytest.mark.slow]

KIB: Final = 1 << 10
SEED: Final = 20_261_122
OPENING_MAX: Final = 4
"""Requests of one worker that opens one cloud: its bucket, its drive.json."""
WORKERS_MAX: Final = 8
EPOCH_WRITES: Final = 3
"""Its copies on two clouds; a snapshot goes to the third one, too."""
EPOCH_REQUESTS: Final = 4
TIMERS_S: Final = 60.0
"""Longer than every timer of the write-back and one round of housekeeping."""
PATIENCE_S: Final = 300.0
JUMP_S: Final = 1.0
"""So much nearer is the deadline of a job that began just before the clock jumped."""
SETTLING_S: Final = 0.005


# -- one by one --


async def test_one_request_per_stored_pack_and_per_ranged_read(
    make_pool: MakePool, three_servers: ThreeServers
) -> None:
    """On S3: nothing is asked before, after or about a pack but its one PUT, and one GET per chunk that is read."""
    dice = random.Random(SEED)
    files = {f"f{number}": dice.randbytes(30 * KIB) for number in range(8)}
    mount = make_pool((three_servers.weed, three_servers.rclone), redundancy="2")
    async with mount.opened() as opened:
        three_servers.reset()
        for name, data in files.items():
            await opened.write(name, data)
            await opened.sync()
        packs = set(three_servers.weed.packs())
        assert len(packs) == len(files)
        assert requests_about_packs(three_servers) == Counter({"weed PUT": len(packs), "rclone PUT": len(packs)})
        three_servers.reset()
        await opened.evict()
        for name, data in files.items():
            await opened.evict()
            assert await opened.read(name) == data
        about_packs = requests_about_packs(three_servers)
        print(f"reading {len(files)} chunks: {about_packs}, in all {three_servers.requests()}")
        assert about_packs.total() == len(files)
        assert all(key.endswith(" GET") for key in about_packs)
        assert three_servers.total() - len(files) <= OPENING_MAX * WORKERS_MAX


FIRST_FILES = 8
"""So many files at most until two workers have opened three clouds."""


def requests_about_packs(servers: ThreeServers) -> Counter[str]:
    """Return how many requests of each method named an object below packs/, and fail if one was asked for twice."""
    found = Counter[str]()
    for name, proxy in servers.proxies.items():
        asked = [(method, target) for method, target in proxy.requests() if "/packs/" in target]
        twice = [target for target, count in Counter(asked).items() if count > 1 and target[0] != "GET"]
        assert not twice
        found.update(f"{name} {method}" for method, _ in asked)
    return found


# -- a tree --


def write_read_and_add(
    tmp_path: Path, make_pool: MakePool, servers: ThreeServers, *, files: int, least_s: float, writes: int, reads: int
) -> None:
    """Store a tree with rsync, read it cold with tar, add one file; each within its budget."""
    source = tmp_path / "source"
    total_bytes = trees.make_source_tree(source, files)
    mount = make_pool(servers.places, redundancy="2", deadline_s=1800)
    mount.start()
    servers.reset()
    began = time.monotonic()
    trees.copy(source, mount.path)
    copied = time.monotonic()
    wait_until_sent(mount)
    time.sleep(max(0.0, began + least_s - time.monotonic()))
    print(f"{files} files, {total_bytes / trees.MIB:.0f} MiB: rsync {copied - began:.1f} s; {servers.requests()}")
    written = servers.writes()
    mount.sync()
    assert servers.writes() <= written + EPOCH_WRITES
    assert written + EPOCH_WRITES <= writes
    mount.umount()
    mount.delete_cache()
    mount.start()
    servers.reset()
    trees.run("tar", "-C", mount.path, "-cf", tmp_path / "cold.tar", ".")
    print(f"cold tar: {servers.total()} requests, {servers.requests()}")
    assert servers.total() <= reads
    trees.assert_same(source, mount.path)
    add_one_file(mount, servers)


def add_one_file(mount: PoolMount, servers: ThreeServers) -> None:
    """One more small file costs two shares, at most one request besides, and its epoch.

    After a mount each worker reads drive.json once on each cloud that it is the first time asked for, so the first
    files may cost two reads more.
    """
    for number in range(FIRST_FILES):
        mount.sync()
        servers.reset()
        before = servers.folder.used_bytes()
        (mount.path / f"one more {number}").write_bytes(b"a small file, number %d" % number)
        mount.sync()
        requests = servers.requests()
        moved = sum(request.transferred_bytes for request in requests.values()) + servers.folder.used_bytes() - before
        print(f"one more file: {servers.total()} requests, {moved} bytes, {requests}")
        assert servers.total() <= 4 + EPOCH_REQUESTS
        assert moved <= 64 * KIB
        if servers.total() <= 3 + EPOCH_REQUESTS:
            return
    raise AssertionError("every file costs more than its two shares, one request and its epoch")


def wait_until_sent(mount: PoolMount) -> None:
    """Return when the timers have sent everything: nobody asks for it."""
    end = time.monotonic() + PATIENCE_S
    while mount.pending()["bytes"]:
        assert time.monotonic() < end, f"not sent within {PATIENCE_S:.0f} s"
        time.sleep(0.2)


@pytest.mark.mount
def test_a_tree_costs_few_requests(tmp_path: Path, make_pool: MakePool, three_servers: ThreeServers) -> None:
    write_read_and_add(tmp_path, make_pool, three_servers, files=1000, least_s=0.0, writes=20, reads=30)


@pytest.mark.long
@pytest.mark.mount
@pytest.mark.timeout(1800)
def test_10000_files_cost_few_requests(tmp_path: Path, make_pool: MakePool, three_servers: ThreeServers) -> None:
    write_read_and_add(tmp_path, make_pool, three_servers, files=10_000, least_s=TIMERS_S, writes=100, reads=150)


# -- idle --


@pytest.mark.parametrize(
    ("fault", "state"),
    [
        pytest.param(None, "ok", id="all well", marks=pytest.mark.long),
        pytest.param(Fault("status", status=403, code="InvalidAccessKeyId"), "needs-login", id="login expired"),
        pytest.param(Fault("drop"), "down", id="down", marks=pytest.mark.long),
        pytest.param(Fault("status", status=429, retry_after="900"), "down", id="banned", marks=pytest.mark.long),
    ],
)
def test_an_idle_drive_asks_almost_nothing(
    make_pool: MakePool,
    three_servers: ThreeServers,
    monkeypatch: pytest.MonkeyPatch,
    fault: Fault | None,
    state: str,
) -> None:
    """20 minutes of the drive's clock, which jumps while no worker has a job: the deadline of a job stays real time.

    One cloud in trouble is no reason to ask more, and its worker processes are not started again and again.
    """
    minutes = 20
    mount = make_pool(three_servers.places, redundancy="2")
    clock = trio.testing.MockClock(rate=1.0)
    pools: list[WorkerPool] = []
    states: dict[str, str] = {}

    @asynccontextmanager
    async def opened_pool() -> AsyncIterator[WorkerPool]:
        async with open_worker_pool() as pool:
            pools.append(pool)
            yield pool

    async def be_idle() -> None:
        async with mount.opened() as opened:
            await opened.write("file", b"content")
            await opened.sync()
            three_servers.reset()
            three_servers.proxies["weed"].break_requests(*([] if fault is None else [fault]))
            (pool,) = pools
            started = pool.statistics().started
            end = trio.current_time() + minutes * 60
            while trio.current_time() < end:
                if not pool.statistics().running:
                    clock.jump(JUMP_S)
                await trio.sleep(SETTLING_S)
            clouds = (await opened.drive.status())["clouds"]
            assert isinstance(clouds, list)
            states.update({cloud["name"]: cloud["state"] for cloud in clouds})
            # Each minute's worker ends when it was idle for three: one lives all the time.
            assert pool.statistics().started - started <= minutes // 3 + 1

    monkeypatch.setattr(drive, "open_worker_pool", opened_pool)
    trio.run(be_idle, clock=clock)
    found = {name: requests.total for name, requests in three_servers.requests().items()}
    print(f"{minutes} minutes idle: {three_servers.requests()}")
    assert sum(found.values())
    assert all(count <= minutes for count in found.values())
    assert states == {"folder": "ok", "weed": state, "rclone": "ok"}
    # The claim of the right to write, every two minutes.
    assert all(requests.writes <= minutes // 2 for requests in three_servers.requests().values())


@pytest.mark.long
@pytest.mark.mount
@pytest.mark.timeout(400)
def test_an_idle_mount_asks_almost_nothing(make_pool: MakePool, three_servers: ThreeServers) -> None:
    minutes = 3
    mount = make_pool(three_servers.places, redundancy="2", deadline_s=400)
    mount.start()
    (mount.path / "file").write_bytes(b"content")
    mount.sync()
    three_servers.reset()
    time.sleep(minutes * 60)
    print(f"{minutes} minutes idle: {three_servers.requests()}")
    assert all(requests.total <= minutes for requests in three_servers.requests().values())

"""Storages that take a connection and never answer, or stop in the middle: calls end, and nothing is left behind.

Each driver's calls run in worker processes as in a drive.  Where a driver has a time limit of its own, that ends the
call; where it has none, the process is killed at the deadline.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

import pytest
import trio
from attrs import frozen

from cuckoo_mount.clouds import jobs
from cuckoo_mount.clouds.base import CloudSettings
from cuckoo_mount.clouds.registry import FAULT_PLAN, TESTING_VARIABLE
from cuckoo_mount.errors import CloudUnavailable
from cuckoo_mount.testing.faulty import write_plan
from cuckoo_mount.testing.fileservers import FileServer, file_server
from cuckoo_mount.testing.httpproxy import Fault, HttpProxy, http_proxy
from cuckoo_mount.testing.servers import s3_server
from cuckoo_mount.workers import WorkerPool, open_worker_pool

pytestmark = pytest.mark.slow

SHORT: Final = 24
LONG: Final = 1000
TIMEOUT_S: Final = 0.3
KILL_AFTER_S: Final = 0.5
WORKERS: Final = 2
THREADS: Final = 4
NAME: Final = "cuckoo/object"
DATA: Final = bytes(range(256)) * 400
SPARE_DESCRIPTORS: Final = THREADS
"""Of one worker: a connection may be kept for each thread."""
SPARE_HERE: Final = 2 * WORKERS * THREADS
"""Of this process, threads and files: where the proxy is, too, with two connections for each of a worker."""


@frozen
class Storage:
    """`settings`: how it is opened.  `hanging`: while it is entered, nothing answers.  `killed`: only killing helps."""

    settings: CloudSettings
    hanging: Callable[[], AbstractContextManager[None]]
    killed: bool = False


def broken(proxy: HttpProxy) -> Callable[[], AbstractContextManager[None]]:
    """Return what makes some requests get no answer, and the others half of one."""

    @contextlib.contextmanager
    def hanging() -> Iterator[None]:
        proxy.break_requests(Fault("hang", times=SHORT // 2), Fault("stall_reply"))
        yield
        proxy.break_requests()

    return hanging


@contextlib.contextmanager
def s3_storage(folder: Path) -> Iterator[Storage]:
    with s3_server("rclone", folder) as server, http_proxy(server.endpoint_url) as proxy:
        settings = server.settings("s3", server.fresh_prefix(), endpoint_url=proxy.endpoint_url, timeout_s=TIMEOUT_S)
        yield Storage(settings, broken(proxy))


@contextlib.contextmanager
def webdav_storage(folder: Path) -> Iterator[Storage]:
    with running("rclone-webdav", folder) as server, http_proxy(server.endpoint_url) as proxy:
        settings = server.settings("webdav", server.fresh_folder(), port=proxy.port, timeout_s=TIMEOUT_S)
        yield Storage(settings, broken(proxy))


@contextlib.contextmanager
def frozen_storage(folder: Path, kind: str) -> Iterator[Storage]:
    """Give a server that is stopped: the kernel takes connections, nobody answers."""
    with running(kind, folder) as server:
        yield Storage(server.settings(kind, server.fresh_folder(), timeout_s=TIMEOUT_S), server.frozen)


@contextlib.contextmanager
def faulty_storage(folder: Path, url: str) -> Iterator[Storage]:
    """Give a folder whose driver hangs in a call that nothing ends."""
    plan = folder / "plan"

    @contextlib.contextmanager
    def hanging() -> Iterator[None]:
        write_plan(str(plan), {"action": "hang"})
        yield
        write_plan(str(plan))

    settings = CloudSettings(name="faulty", url=url, options=((FAULT_PLAN, str(plan)),))
    yield Storage(settings, hanging, killed=True)


@contextlib.contextmanager
def running(kind: str, folder: Path) -> Iterator[FileServer]:
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(file_server(kind, folder))
        except FileNotFoundError as error:
            pytest.skip(str(error))
        yield server


STORAGES: Final[dict[str, Callable[[Path], AbstractContextManager[Storage]]]] = {
    "s3": s3_storage,
    "webdav": webdav_storage,
    "sftp": lambda folder: frozen_storage(folder, "openssh"),
    "ftp": lambda folder: frozen_storage(folder, "pyftpdlib"),
    "folder": lambda folder: faulty_storage(folder, str(folder)),
    "pyfilesystem": lambda folder: faulty_storage(folder, "userdata://cuckoo:test"),
}


IN_SHORT: Final = ("s3", "webdav", "sftp", "folder")
"""Those that differ most."""


@frozen
class Left:
    """What there is: threads and open files of this process and of each worker, and processes that it started."""

    threads: int
    descriptors: int
    workers: int
    worker_threads: int
    worker_descriptors: int


def count(pool: WorkerPool) -> Left:
    pids = pool.worker_pids()
    return Left(
        threads=len(os.listdir("/proc/self/task")),
        descriptors=len(os.listdir("/proc/self/fd")),
        workers=len(children()),
        worker_threads=max(len(os.listdir(f"/proc/{pid}/task")) for pid in pids),
        worker_descriptors=max(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids),
    )


def children() -> set[int]:
    """Return the worker processes of this one, zombies, too."""
    found = set()
    for task in os.listdir("/proc/self/task"):
        with contextlib.suppress(FileNotFoundError):
            text = Path(f"/proc/self/task/{task}/children").read_text("ascii")
            found |= {int(pid) for pid in text.split() if is_worker(int(pid))}
    return found


def is_worker(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/comm").read_text("ascii").strip() == "cuckoo-worker"
    return False


async def ask_all(pool: WorkerPool, settings: CloudSettings, times: int, deadline_s: float) -> list[Exception | None]:
    outcomes: list[Exception | None] = []

    async def ask() -> None:
        try:
            assert await pool.run(jobs.get, settings, NAME, deadline_s=deadline_s) == DATA
            outcomes.append(None)
        except CloudUnavailable as error:
            outcomes.append(error)

    async with trio.open_nursery() as nursery:
        for _ in range(times):
            nursery.start_soon(ask)
    return outcomes


async def wait_until_it_answers(pool: WorkerPool, settings: CloudSettings) -> None:
    """Return when a call works: a server that was stopped has to get through what came meanwhile first."""
    with trio.fail_after(60):
        while True:
            if await ask_all(pool, settings, 1, 30.0) == [None]:
                return
            await trio.sleep(0.1)


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "kind", [kind if kind in IN_SHORT else pytest.param(kind, marks=pytest.mark.long) for kind in STORAGES]
)
async def test_nothing_is_left_of_calls_that_hang(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setenv(TESTING_VARIABLE, "1")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "userdata"))
    (tmp_path / "userdata" / "cuckoo").mkdir(parents=True)
    times = LONG if request.config.getoption("--long") else SHORT
    with STORAGES[kind](tmp_path) as storage:
        settings = storage.settings
        deadline_s = KILL_AFTER_S if storage.killed else 30.0
        async with open_worker_pool(max_workers=WORKERS, threads_per_worker=THREADS) as pool:
            await pool.run(jobs.put, settings, NAME, DATA, deadline_s=30.0)
            assert await ask_all(pool, settings, 4 * WORKERS * THREADS, 30.0) == [None] * 4 * WORKERS * THREADS
            before = count(pool)
            with storage.hanging():
                begun_s = trio.current_time()
                outcomes = await ask_all(pool, settings, times, deadline_s)
                took_s = trio.current_time() - begun_s
            assert len(outcomes) == times
            assert None not in outcomes
            await wait_until_it_answers(pool, settings)
            assert await ask_all(pool, settings, 4 * WORKERS * THREADS, 30.0) == [None] * 4 * WORKERS * THREADS
            after = count(pool)
            statistics = pool.statistics()
        print(f"{times} hangs in {took_s:.1f} s; {before} before, {after} after; {statistics}")
        assert after.threads <= before.threads + SPARE_HERE
        assert after.descriptors <= before.descriptors + SPARE_HERE
        assert after.workers <= WORKERS
        assert after.worker_threads <= before.worker_threads
        assert after.worker_descriptors <= before.worker_descriptors + SPARE_DESCRIPTORS
        assert (statistics.running, statistics.waiting) == (0, 0)
        assert bool(statistics.timeouts) == storage.killed
    assert not children()

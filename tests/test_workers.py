"""The worker pool with real processes: results, errors, deadlines, kills, cancellation, and the end of the parent."""

from __future__ import annotations

import errno
import logging
import os
import select
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from cuckoo_mount.clouds import jobs
from cuckoo_mount.clouds.base import CloudSettings, ObjectInfo
from cuckoo_mount.errors import CloudFull, CloudMissing, CloudTimeout, CloudUnavailable
from cuckoo_mount.testing import workerjobs
from cuckoo_mount.testing.faulty import read_counts, write_plan
from cuckoo_mount.workers import open_worker_pool

LONG_S = 60.0
"""A deadline that must not pass."""
SHORT_S = 0.3
"""A deadline that is meant to pass."""


def read_pids(path: Path) -> list[int]:
    """Return the process ids that jobs have written to `path` in whole lines."""
    text = path.read_text() if path.exists() else ""
    return [int(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


async def wait_for_pids(path: Path, count: int) -> list[int]:
    """Return the process ids that jobs have written to `path`, once there are `count`."""
    with trio.fail_after(LONG_S):
        while len(pids := read_pids(path)) < count:  # noqa: ASYNC110 — other processes write it
            await trio.sleep(0.005)
    return pids


async def wait_for_end(pid: int) -> None:
    """Return when process `pid`, not necessarily a child, has ended."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        with trio.fail_after(LONG_S):
            await trio.lowlevel.wait_readable(descriptor)
    finally:
        os.close(descriptor)


async def test_results_come_back() -> None:
    async with open_worker_pool() as pool:
        assert await pool.run(workerjobs.double, b"ab", deadline_s=LONG_S) == b"abab"
        assert await pool.run(workerjobs.describe, "n", 7, deadline_s=LONG_S) == {"n": 7}
        large = bytes(range(256)) * (20 << 12)
        assert await pool.run(workerjobs.double, large, deadline_s=LONG_S) == large + large
        statistics = pool.statistics()
    assert (statistics.done, statistics.failed, statistics.started, statistics.lost) == (3, 0, 1, 0)


def check_behaviour(pid: int) -> None:
    assert b"cuckoo_mount.workerprocess" in Path(f"/proc/{pid}/cmdline").read_bytes()
    assert Path(f"/proc/{pid}/comm").read_text() == "cuckoo-worker\n"
    assert os.getpriority(os.PRIO_PROCESS, pid) > os.getpriority(os.PRIO_PROCESS, 0)
    assert os.getpgid(pid) != os.getpgid(0)
    for number in (0, 1):
        assert Path(f"/proc/{pid}/fd/{number}").readlink() == Path("/dev/null")


async def test_a_worker_is_another_small_process_that_steps_back() -> None:
    async with open_worker_pool() as pool:
        assert pool.worker_pids() == []
        loaded = await pool.run(workerjobs.loaded_modules, deadline_s=LONG_S)
        (pid,) = pool.worker_pids()
        assert not {"trio", "apsw", "pyfuse3", "fs", "attr", "attrs", "boto3"} & set(loaded)
        check_behaviour(pid)


async def test_signals_are_left_to_the_daemon() -> None:
    async with open_worker_pool() as pool:
        await pool.run(workerjobs.double, b"", deadline_s=LONG_S)
        (pid,) = pool.worker_pids()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(pid, number)
        await pool.run(workerjobs.double, b"", deadline_s=LONG_S)
        assert pool.worker_pids() == [pid]


async def test_jobs_spread_over_the_least_loaded_workers(tmp_path: Path) -> None:
    said, until = tmp_path / "said", tmp_path / "until"
    pids: list[int] = []

    async def work() -> None:
        pids.append(await pool.run(workerjobs.say_and_wait, str(said), str(until), deadline_s=LONG_S))

    async with open_worker_pool(max_workers=2, threads_per_worker=2) as pool, trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(work)
        running = await wait_for_pids(said, 4)
        assert sorted(running.count(pid) for pid in set(running)) == [2, 2]
        await trio.testing.wait_all_tasks_blocked()
        assert (pool.statistics().running, pool.statistics().waiting) == (4, 1)
        until.touch()
    assert len(pids) == 5


@pytest.mark.parametrize(
    "error", [ValueError("wrong", 5), CloudFull("no room", cloud="c", name="n"), OSError(errno.EIO, "disk", "/x")]
)
async def test_exceptions_come_back_as_they_are(error: Exception) -> None:
    async with open_worker_pool() as pool:
        with pytest.raises(type(error)) as caught:
            await pool.run(workerjobs.fail, error, deadline_s=LONG_S)
        assert (str(caught.value), caught.value.args) == (str(error), error.args)
        assert "in fail\n" in caught.value.__notes__[0]
        if isinstance(error, CloudFull):
            assert isinstance(caught.value, CloudFull)
            assert (caught.value.cloud, caught.value.name) == ("c", "n")


@pytest.mark.parametrize(
    ("job", "arguments", "text"),
    [
        (workerjobs.fail_unpicklably, ("so",), "because so"),
        (workerjobs.fail, (SystemExit(3),), "SystemExit"),
        (workerjobs.fail, (KeyboardInterrupt(),), "KeyboardInterrupt"),
    ],
)
async def test_what_cannot_come_back_is_a_runtime_error(
    job: Callable[..., object], arguments: tuple[object, ...], text: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_worker_pool() as pool:
        with pytest.raises(RuntimeError, match=text):
            await pool.run(job, *arguments, deadline_s=LONG_S)
        assert "Traceback" in caplog.text
        with pytest.raises(TypeError, match="pickle"):
            await pool.run(workerjobs.return_unpicklable, deadline_s=LONG_S)
        assert await pool.run(workerjobs.double, b"a", deadline_s=LONG_S) == b"aa"
        assert pool.statistics().started == 1


async def test_arguments_that_cannot_be_sent_are_an_error_at_once() -> None:
    async with open_worker_pool() as pool:
        with pytest.raises((TypeError, AttributeError), match=r"pickle|get local object"):
            await pool.run(workerjobs.double, lambda: None, deadline_s=LONG_S)
        assert pool.statistics().running == 0


async def test_a_job_past_its_deadline_is_killed_and_its_neighbour_starts_again(tmp_path: Path) -> None:
    said = tmp_path / "said"
    neighbour: list[int] = []

    async def work() -> None:
        neighbour.append(await pool.run(workerjobs.wait_the_first_time, str(said), deadline_s=LONG_S))

    async with open_worker_pool(max_workers=1) as pool, trio.open_nursery() as nursery:
        nursery.start_soon(work)
        (pid,) = await wait_for_pids(said, 1)
        with pytest.raises(CloudTimeout, match=r"hang did not end within 0\.3 s"):
            await pool.run(workerjobs.hang, deadline_s=SHORT_S)
        await wait_for_end(pid)
        await wait_for_pids(said, 2)
    assert neighbour
    assert neighbour != [pid]
    statistics = pool.statistics()
    assert (statistics.timeouts, statistics.lost, statistics.repeated, statistics.done) == (1, 1, 1, 1)


async def test_neighbours_that_hang_do_not_make_a_job_fail(tmp_path: Path) -> None:
    said, until, results = tmp_path / "said", tmp_path / "until", list[int]()

    async def work() -> None:
        results.append(await pool.run(workerjobs.say_and_wait, str(said), str(until), deadline_s=LONG_S))

    async with open_worker_pool(max_workers=1) as pool, trio.open_nursery() as nursery:
        nursery.start_soon(work)
        for start in range(1, 5):
            await wait_for_pids(said, start)
            with pytest.raises(CloudTimeout):
                await pool.run(workerjobs.hang, deadline_s=SHORT_S)
        await wait_for_pids(said, 5)
        await trio.to_thread.run_sync(until.touch)
    assert len(results) == 1
    assert pool.statistics().repeated == 4


async def test_a_worker_killed_from_outside_is_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    said = tmp_path / "said"
    result: list[int] = []

    async def work() -> None:
        result.append(await pool.run(workerjobs.wait_the_first_time, str(said), deadline_s=LONG_S))

    async with open_worker_pool() as pool, trio.open_nursery() as nursery:
        nursery.start_soon(work)
        (pid,) = await wait_for_pids(said, 1)
        os.kill(pid, signal.SIGKILL)
        await wait_for_pids(said, 2)
    assert result
    assert result != [pid]
    assert f"worker process {pid} ended with status -9" in caplog.text


async def test_an_idle_worker_killed_from_outside_is_no_ones_trouble() -> None:
    async with open_worker_pool() as pool:
        for _ in range(3):
            assert await pool.run(workerjobs.double, b"a", deadline_s=LONG_S) == b"aa"
            (pid,) = pool.worker_pids()
            os.kill(pid, signal.SIGKILL)
        assert await pool.run(workerjobs.double, b"a", deadline_s=LONG_S) == b"aa"


async def test_a_job_that_loses_two_workers_is_unavailable() -> None:
    async with open_worker_pool() as pool:
        with pytest.raises(CloudUnavailable, match="lost its worker process again and again"):
            await pool.run(workerjobs.die, deadline_s=LONG_S)
        assert await pool.run(workerjobs.double, b"a", deadline_s=LONG_S) == b"aa"
        assert pool.statistics().started == 3


async def test_cancelling_returns_at_once_and_keeps_the_slot_until_the_deadline() -> None:
    async with open_worker_pool(max_workers=1, threads_per_worker=1) as pool:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(run_hang, pool.run)
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
        assert scope.cancelled_caught
        assert pool.statistics().running == 1
        assert await pool.run(workerjobs.double, b"a", deadline_s=LONG_S) == b"aa"
        statistics = pool.statistics()
        assert (statistics.started, statistics.timeouts, statistics.repeated) == (2, 1, 0)


async def run_hang(run: Callable[..., Awaitable[object]]) -> None:
    await run(workerjobs.hang, deadline_s=SHORT_S)


async def test_cancelling_one_that_waits_for_a_slot_loses_no_slot(tmp_path: Path) -> None:
    said, until = tmp_path / "said", tmp_path / "until"

    async def work() -> None:
        await pool.run(workerjobs.say_and_wait, str(said), str(until), deadline_s=LONG_S)

    async with open_worker_pool(max_workers=1, threads_per_worker=1) as pool, trio.open_nursery() as nursery:
        nursery.start_soon(work)
        await wait_for_pids(said, 1)
        with trio.move_on_after(0) as scope:
            await pool.run(workerjobs.double, b"a", deadline_s=LONG_S)
        assert scope.cancelled_caught
        until.touch()
        assert await pool.run(workerjobs.double, b"a", deadline_s=LONG_S) == b"aa"


async def test_a_shielded_caller_keeps_its_workers_when_everything_is_cancelled(tmp_path: Path) -> None:
    said, until = tmp_path / "said", tmp_path / "until"
    result: list[int] = []
    with trio.CancelScope() as everything:
        async with open_worker_pool() as pool:
            try:
                everything.cancel()
                await trio.lowlevel.checkpoint()
            finally:
                with trio.CancelScope(shield=True):
                    until.touch()
                    result.append(await pool.run(workerjobs.say_and_wait, str(said), str(until), deadline_s=LONG_S))
    assert everything.cancelled_caught
    assert len(result) == 1


async def test_an_idle_worker_ends(caplog: pytest.LogCaptureFixture) -> None:
    async with open_worker_pool(idle_s=0.05) as pool:
        await pool.run(workerjobs.double, b"a", deadline_s=LONG_S)
        for pid in pool.worker_pids():
            await wait_for_end(pid)
        assert pool.worker_pids() == []
        assert await pool.run(workerjobs.double, b"a", deadline_s=LONG_S) == b"aa"
        assert pool.statistics().lost == 0
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_closing_ends_workers_and_jobs_and_may_be_repeated(tmp_path: Path) -> None:
    said, until = tmp_path / "said", tmp_path / "until"
    failed: list[str] = []

    async def work() -> None:
        try:
            await pool.run(workerjobs.say_and_wait, str(said), str(until), deadline_s=LONG_S)
        except CloudUnavailable as error:
            failed.append(str(error))

    async with open_worker_pool() as pool, trio.open_nursery() as nursery:
        nursery.start_soon(work)
        (pid,) = await wait_for_pids(said, 1)
        for _ in range(2):
            await pool.aclose()
        await wait_for_end(pid)
        with pytest.raises(CloudUnavailable, match="stopped"):
            await pool.run(workerjobs.double, b"a", deadline_s=LONG_S)
    assert failed == ["worker processes are being stopped; the drive is closing"]


async def test_a_stopped_worker_is_killed_when_the_pool_closes() -> None:
    """SIGSTOP stands for a process that cannot notice that its socket has closed."""
    async with open_worker_pool() as pool:
        await pool.run(workerjobs.double, b"a", deadline_s=LONG_S)
        (pid,) = pool.worker_pids()
        os.kill(pid, signal.SIGSTOP)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_an_exception_of_the_block_is_not_wrapped() -> None:
    with pytest.raises(ValueError, match="mine"):
        async with open_worker_pool():
            raise ValueError("mine")


_PARENT = """
import sys, trio
from cuckoo_mount.testing import workerjobs
from cuckoo_mount.workers import open_worker_pool

async def main():
    async with open_worker_pool() as pool:
        await pool.run(workerjobs.say_and_wait, sys.argv[1], "/nonexistent", deadline_s=600)

trio.run(main)
"""


def start_parent(said: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", _PARENT, str(said)])


@pytest.mark.parametrize("stopped", [False, True])
async def test_workers_die_with_the_daemon(tmp_path: Path, stopped: bool) -> None:
    """Also one that cannot run: then it is the kernel that kills it, and not the end of its socket."""
    said = tmp_path / "said"
    parent = start_parent(said)
    try:
        (pid,) = await wait_for_pids(said, 1)
        if stopped:
            os.kill(pid, signal.SIGSTOP)
        descriptor = os.pidfd_open(pid)
    finally:
        parent.kill()
        parent.wait()
    assert await trio.to_thread.run_sync(select.select, [descriptor], [], [], LONG_S) == ([descriptor], [], [])
    os.close(descriptor)


async def test_cloud_jobs_in_workers(tmp_path: Path) -> None:
    root, pack = tmp_path / "root", tmp_path / "pack"
    root.mkdir()
    pack.write_bytes(b"0123456789")
    settings = CloudSettings(name="folder", url=str(root))
    drive, cloud = b"D" * 16, b"C" * 16
    async with open_worker_pool() as pool:
        await pool.run(jobs.write_identity, settings, drive, cloud, deadline_s=LONG_S)
        await pool.run(jobs.check_identity, settings, drive, cloud, deadline_s=LONG_S)
        await pool.run(jobs.put_file, settings, "cuckoo/p/1.0", str(pack), 10, deadline_s=LONG_S)
        assert await pool.run(jobs.get, settings, "cuckoo/p/1.0", deadline_s=LONG_S) == b"0123456789"
        assert await pool.run(jobs.get_range, settings, "cuckoo/p/1.0", 3, 4, deadline_s=LONG_S) == b"3456"
        found = await pool.run(jobs.list_objects, settings, "cuckoo/p/", deadline_s=LONG_S)
        assert found == [ObjectInfo("cuckoo/p/1.0", 10)]
        room = await pool.run(jobs.space, settings, deadline_s=LONG_S)
        assert room is not None
        assert room.total_bytes > 0
        await pool.run(jobs.delete_many, settings, ["cuckoo/p/1.0", "cuckoo/p/2.0"], deadline_s=LONG_S)
        with pytest.raises(CloudMissing) as caught:
            await pool.run(jobs.get, settings, "cuckoo/p/1.0", deadline_s=LONG_S)
        assert (caught.value.cloud, caught.value.name) == ("folder", "cuckoo/p/1.0")


async def test_workers_are_made_faulty_from_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUCKOO_TESTING", "1")
    root, plan = tmp_path / "root", str(tmp_path / "plan")
    root.mkdir()
    settings = CloudSettings(name="f", url=f"faulty+{root}", options=(("fault.plan", plan),))
    async with open_worker_pool() as pool:
        write_plan(plan, {"calls": ["put"], "nth": 1, "action": "kill"}, {"calls": ["get"], "action": "hang"})
        await pool.run(jobs.put, settings, "a/x", b"1", deadline_s=LONG_S)  # the second attempt does it
        assert read_counts(plan)["put"] == 2
        with pytest.raises(CloudTimeout):
            await pool.run(jobs.get, settings, "a/x", deadline_s=1.0)
        write_plan(plan)
        assert await pool.run(jobs.get, settings, "a/x", deadline_s=LONG_S) == b"1"

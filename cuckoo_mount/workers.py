"""Worker processes for what blocks, hangs, leaks or computes: cloud drivers and sealing.

Used by everything that talks to clouds.  `async with open_worker_pool(…) as pool: await pool.run(function, *args,
deadline_s=…)`.  A process can be killed at a deadline, which a thread cannot, and does not fight the FUSE loop for
the GIL.  Jobs are importable functions of picklable arguments and **idempotent**: one that ran in a worker which
died, or was killed for another's sake, is started again once, and nobody is told.

Task rule: everything here runs in the trio thread; other threads must not call in.  Cancellation: `run` returns at
once; its job goes on, its outcome is dropped, and it holds its slot until it ends or its deadline kills it.
Do not use with trio's autojump clock: to it, waiting for a process looks like having nothing to do.

Invariants: slots taken = jobs waiting for an outcome ≤ max_workers × threads_per_worker; a job is in exactly one
worker or settled; a worker in `_workers` accepts jobs, and one that was killed or retired is not in there.
Measured (2 cores, Python 3.11): start-up of a process 50-85 ms, of which 1 ms blocks the loop; round trip of an empty
job 0.4 ms; an idle worker 13 MiB RSS (10 MiB PSS), 24 MiB after jobs on a folder with 16 MiB packs.
"""

from __future__ import annotations

import logging
import math
import pickle
import socket
import subprocess
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final, TypeVar, cast

import outcome
import trio
from attrs import frozen

from cuckoo_mount.errors import CloudTimeout, CloudUnavailable, CuckooError
from cuckoo_mount.processes import CLOSE_S, end, read_outcome, receive, send_all, spawn
from cuckoo_mount.workerprocess import HEADER, KIND_JOB

T = TypeVar("T")

IDLE_S: Final = 180.0
"""Longer than the pause between two renewals of the right to write: one worker stays, with its clouds open, else each
renewal would start a process (0.3 s of CPU for an S3 client) and read drive.json again."""
_LOSSES_MAX: Final = 1
_MOVES_MAX: Final = 8
"""So often a job starts again because another one in its process hung: that says nothing about its own cloud."""
_UNKILLABLE_MAX: Final = 16
"""Killed processes that do not end (they hang in the kernel, say on a dead NFS server) before no more are started."""

_log = logging.getLogger(__name__)


@frozen(slots=True, kw_only=True)
class WorkerStatistics:
    """What a pool is doing, and has done since it was opened."""

    workers: int
    running: int
    waiting: int
    done: int
    failed: int
    timeouts: int
    started: int
    lost: int
    repeated: int


def _nothing() -> None:
    """Do nothing."""


class _Job:
    """One call of `run` on its way: settled exactly once, by whoever learns what became of it."""

    def __init__(self, number: int, payload: bytes, description: str, deadline_s: float) -> None:
        self.number = number
        self.payload = payload
        self.description = description
        self.deadline_s = deadline_s
        self.ends_at = math.inf
        self.losses = 0
        self.moves = 0
        self.abandoned = False
        self.settled = trio.Event()
        self.outcome: outcome.Outcome[object] | None = None


class _Worker:
    """A process, our end of its socket, and the jobs it has."""

    def __init__(self, process: subprocess.Popen[bytes], connection: trio.socket.SocketType) -> None:
        self.process = process
        self.connection = connection
        self.jobs: dict[int, _Job] = {}
        self.unsent: deque[_Job] = deque()
        self.has_unsent = trio.Event()
        self.idle_since = trio.current_time()
        self.alarm = trio.CancelScope()
        # Shielded: when the program is cancelled, a last sync, itself shielded, still needs its workers.
        self.running = trio.CancelScope(shield=True)


class WorkerPool:
    """Up to `max_workers` processes with `threads_per_worker` jobs each; made by `open_worker_pool`."""

    def __init__(self, nursery: trio.Nursery, max_workers: int, threads_per_worker: int, idle_s: float) -> None:
        self._nursery = nursery
        self._max_workers = max_workers
        self._threads = threads_per_worker
        self._idle_s = idle_s
        self._slots = trio.Semaphore(max_workers * threads_per_worker)
        self._workers: list[_Worker] = []
        self._processes = 0  # also those that are ending
        self._process_ended = trio.Event()
        self._closing = False
        self._last_number = 0
        self._counts = dict.fromkeys(("done", "failed", "timeouts", "started", "lost", "repeated"), 0)

    async def run(
        self,
        function: Callable[..., T],
        *args: object,
        deadline_s: float,
        started: Callable[[], object] = _nothing,
    ) -> T:
        """Return function(*args), run in a worker process.  Checkpoint.

        `deadline_s` (> 0): how long one attempt may run, counted from when a worker gets it; for a limit that includes
        waiting for a slot use a cancel scope around the call.  `started` is called when a worker gets it.
        Raises: what the function raised (its remote traceback as a note; RuntimeError if it cannot be pickled);
        CloudTimeout after the deadline, when its process has been killed; CloudUnavailable if its worker was lost
        twice (or nine times because other jobs in it hung), cannot be started, or the pool closes;
        pickle.PicklingError and the like for arguments.
        """
        if self._closing:
            raise CloudUnavailable("worker processes have been stopped; the drive is closing")
        payload = pickle.dumps((function, args), protocol=pickle.HIGHEST_PROTOCOL)
        await self._slots.acquire()
        self._last_number += 1
        job = _Job(self._last_number, payload, getattr(function, "__qualname__", repr(function)), deadline_s)
        self._place(job)
        started()
        try:
            await job.settled.wait()
        finally:
            job.abandoned = True
        assert job.outcome is not None
        return cast(T, job.outcome.unwrap())

    def statistics(self) -> WorkerStatistics:
        """Return what the pool is doing and has done."""
        return WorkerStatistics(
            workers=len(self._workers),
            running=sum(len(worker.jobs) for worker in self._workers),
            waiting=self._slots.statistics().tasks_waiting,
            **self._counts,
        )

    def worker_pids(self) -> list[int]:
        """Return the process ids of the workers that accept jobs: for `status`, and for tests that kill them."""
        return [worker.process.pid for worker in self._workers]

    async def aclose(self) -> None:
        """End all workers, at once those that hang; jobs under way raise CloudUnavailable.  May be called twice."""
        self._closing = True
        for worker in [*self._workers]:
            self._retire(worker, reason="worker processes are being stopped; the drive is closing")
        with trio.CancelScope(shield=True), trio.move_on_after(2 * CLOSE_S):
            while self._processes:
                self._process_ended = trio.Event()
                await self._process_ended.wait()
        await trio.lowlevel.checkpoint()

    # --- jobs: no checkpoint in here, so that no job is ever between two states ------------------------------------

    def _place(self, job: _Job) -> None:
        """Give `job` to the least loaded worker, or to a new one rather than to one that is busy."""
        if self._closing:
            self._settle(job, outcome.Error(CloudUnavailable("worker processes have been stopped")))
            return
        worker = min(self._workers, key=lambda worker: len(worker.jobs), default=None)
        if worker is None or (worker.jobs and len(self._workers) < self._max_workers):
            try:
                worker = self._start_worker()
            except (OSError, CuckooError) as error:
                if worker is None or len(worker.jobs) >= self._threads:
                    self._settle(job, outcome.Error(_cannot_start(error)))
                    return
        assert len(worker.jobs) < self._threads, "more jobs than slots"
        job.ends_at = trio.current_time() + job.deadline_s
        worker.jobs[job.number] = job
        worker.unsent.append(job)
        worker.has_unsent.set()
        worker.alarm.deadline = min(worker.alarm.deadline, job.ends_at)

    def _settle(self, job: _Job, result: outcome.Outcome[object]) -> None:
        self._counts["done" if isinstance(result, outcome.Value) else "failed"] += 1
        job.outcome = result
        job.settled.set()
        self._slots.release()

    def _finished(self, worker: _Worker, number: int, result: outcome.Outcome[object]) -> None:
        job = worker.jobs.pop(number, None)
        if job is None:  # the worker was retired while its answer was on the way, and the job started again
            return
        self._settle(job, result)
        if not worker.jobs:
            worker.idle_since = trio.current_time()
            worker.alarm.deadline = min(worker.alarm.deadline, worker.idle_since + self._idle_s)

    def _retire(self, worker: _Worker, *, reason: str = "") -> None:
        """Take `worker` out of service and end it.  Its jobs fail with `reason`, or without one start again elsewhere.

        Jobs past their deadline always fail with CloudTimeout.
        """
        if worker not in self._workers:
            return
        self._workers.remove(worker)
        worker.running.cancel()
        jobs, worker.jobs = [*worker.jobs.values()], {}
        now = trio.current_time()
        has_hung = any(job.ends_at <= now for job in jobs)
        for job in jobs:
            job.moves += has_hung
            job.losses += not has_hung
            if job.ends_at <= now:
                self._counts["timeouts"] += 1
                text = f"{job.description} did not end within {job.deadline_s:g} s; its process was killed"
                self._settle(job, outcome.Error(CloudTimeout(text)))
            elif reason or job.abandoned:
                self._settle(job, outcome.Error(CloudUnavailable(reason or "nobody waits for it")))
            elif job.losses > _LOSSES_MAX or job.moves > _MOVES_MAX:
                text = f"{job.description} lost its worker process again and again; try again later"
                self._settle(job, outcome.Error(CloudUnavailable(text)))
            else:
                self._counts["repeated"] += 1
                self._place(job)

    # --- processes -------------------------------------------------------------------------------------------------

    def _start_worker(self) -> _Worker:
        """Start a process.  Blocks for about 1 ms.

        Not in a thread: PR_SET_PDEATHSIG means the death of the *thread* that started the child, and trio's threads
        end when they have nothing to do.  Raises: OSError, CloudUnavailable.
        """
        if self._processes - len(self._workers) >= _UNKILLABLE_MAX:
            raise CloudUnavailable("killed worker processes do not end; is a disk or network file system hanging?")
        ours, theirs = socket.socketpair()
        try:
            process = spawn(theirs, self._threads)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        ours.setblocking(False)
        worker = _Worker(process, trio.socket.from_stdlib_socket(ours))
        self._workers.append(worker)
        self._counts["started"] += 1
        self._processes += 1
        self._nursery.start_soon(self._serve, worker, name=f"worker {process.pid}")
        return worker

    async def _serve(self, worker: _Worker) -> None:
        """Look after one process from start to end.  Never raises for what the process does."""
        try:
            with worker.running:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._send_jobs, worker)
                    nursery.start_soon(self._watch, worker)
                    await self._receive_outcomes(worker)
                    nursery.cancel_scope.cancel()
        finally:
            expected = worker not in self._workers
            self._retire(worker)
            worker.connection.close()
            try:
                await end(worker.process)
            finally:
                self._processes -= 1
                self._process_ended.set()
        if not expected:
            self._counts["lost"] += 1
            _log.warning("worker process %d ended with status %s", worker.process.pid, worker.process.returncode)

    async def _send_jobs(self, worker: _Worker) -> None:
        """A task of its own: a cancelled `run` must not leave half a message in the socket."""
        with suppress(OSError):  # the receiving side learns of it and ends everything
            while True:
                while worker.unsent:
                    job = worker.unsent.popleft()
                    header = HEADER.pack(job.number, KIND_JOB, len(job.payload))
                    await send_all(worker.connection, header + job.payload)
                worker.has_unsent = trio.Event()
                await worker.has_unsent.wait()

    async def _receive_outcomes(self, worker: _Worker) -> None:
        """Settle jobs as their outcomes come.  Returns when the process has closed its end."""
        with suppress(OSError):
            while (header := await receive(worker.connection, HEADER.size)) is not None:
                number, kind, length = HEADER.unpack(header)
                payload = await receive(worker.connection, length)
                if payload is None:
                    return
                self._finished(worker, number, read_outcome(kind, payload, worker.process.pid))

    async def _watch(self, worker: _Worker) -> None:
        """Kill the worker at the first deadline of a job that passes; retire it when it was idle for long."""
        while True:
            now = trio.current_time()
            ends_at = min((job.ends_at for job in worker.jobs.values()), default=math.inf)
            if ends_at <= now:
                _log.warning("worker process %d is killed: a job passed its deadline", worker.process.pid)
                worker.process.kill()
                self._counts["lost"] += 1
                self._retire(worker)
            elif not worker.jobs and worker.idle_since + self._idle_s <= now:
                self._retire(worker)
            alarm_at = ends_at if worker.jobs else worker.idle_since + self._idle_s
            with trio.CancelScope(deadline=alarm_at) as worker.alarm:
                await trio.sleep_forever()


@asynccontextmanager
async def open_worker_pool(
    *, max_workers: int = 2, threads_per_worker: int = 4, idle_s: float = IDLE_S
) -> AsyncIterator[WorkerPool]:
    """Open a pool for the length of the block; at its end all workers are ended.

    Starts no process until there is a job; a worker ends after `idle_s` seconds without one.
    An Exception of the block comes out as it is, not wrapped in a group.
    """
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        pool = WorkerPool(nursery, max_workers, threads_per_worker, idle_s)
        try:
            yield pool
        except Exception as error:
            failure = error
        finally:
            await pool.aclose()
            nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


def _cannot_start(error: Exception) -> CloudUnavailable:
    if isinstance(error, CloudUnavailable):
        return error
    return CloudUnavailable(f"no worker process can be started: {error}; too many processes, or too little memory?")

"""A trio loop in a thread of its own, and the way into it for programs that know nothing of trio.

Used by filesystem.py.  `LoopThread(opening)` starts the thread, enters the async context manager that `opening` makes,
and returns when it is entered; `call` runs an async function in the loop and waits for it, from any thread, any number
at once; `close` leaves the context manager and waits for the thread's end.

Whoever is inside must not wait for the loop: its own thread, and the threads that work for it.  Python may run
finalizers of somebody else's forgotten file in any of them, so `is_inside` is asked there, and `post` does not wait.
The thread is a daemon, for it must not keep a program from ending; at exit, whatever is still open is closed and
waited for.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, suppress
from contextvars import ContextVar
from typing import Final, Generic, TypeVar, cast

import trio
from attrs import define, field

from cuckoo_mount.errors import CuckooError

S = TypeVar("S")
T = TypeVar("T")

LOOP_THREAD: Final = "cuckoo-drive-"
OUR_THREADS: Final = (LOOP_THREAD, "cuckoo-metadata-log")
"""How the names of our threads begin that are not trio's (the other one is of metadata/log.py)."""
# Tasks of the loop have it, and with them the threads that trio.to_thread lends them.
_inside: Final[ContextVar[bool]] = ContextVar("cuckoo_inside", default=False)
_log: Final = logging.getLogger(__name__)


class LoopEnded(CuckooError):
    """The loop was closed, or ended with an error; nothing can be called any more."""


@define(eq=False)
class _Job:
    """One call on its way; `future` is settled exactly once."""

    function: Callable[[], Awaitable[object]]
    future: Future[object] = field(factory=Future)
    scope: trio.CancelScope = field(factory=trio.CancelScope)


def is_inside() -> bool:
    """Return whether the running thread belongs to a loop, or works for one, so that it must not wait for it."""
    return _inside.get() or threading.current_thread().name.startswith(OUR_THREADS)


class LoopThread(Generic[S]):
    """The thread, its loop, and `service`, which the context manager gave.  `name` is for messages."""

    def __init__(self, name: str, opening: Callable[[], AbstractAsyncContextManager[S]]) -> None:
        """Start, and return when `opening` was entered.  Raises: what it raised."""
        self._name = name
        self._pid = os.getpid()
        self._opening = opening
        self._calls: trio.Nursery | None = None
        self._ending: Final = trio.Event()
        self._error: BaseException | None = None
        self._wanted = True
        self._token: trio.lowlevel.TrioToken | None = None
        self._jobs: Final[set[_Job]] = set()
        started: Future[S] = Future()
        self._thread: Final = threading.Thread(
            target=self._run, args=(started,), name=f"{LOOP_THREAD}{name}", daemon=True
        )
        self._thread.start()
        try:
            self.service: Final = started.result()
        except BaseException:
            self._request_end()  # where somebody was too impatient to wait
            raise

    def _run(self, started: Future[S]) -> None:
        _inside.set(True)
        _running.add(cast(LoopThread[object], self))
        try:
            trio.run(self._main, started)
        except BaseException as error:
            self._error = _innermost(error)
        finally:
            if not started.done():
                started.set_exception(self._error or LoopEnded(f"drive {self._name!r} was closed"))
            elif self._error is not None:
                _log.error("drive %r was closed by an error", self._name, exc_info=self._error)
            for job in [job for job in list(self._jobs) if not job.future.done()]:
                job.future.set_exception(self._ended())  # nobody may wait for ever, whatever trio ended with
            _running.discard(cast(LoopThread[object], self))

    async def _main(self, started: Future[S]) -> None:
        async with self._opening() as service, trio.open_nursery() as self._calls:
            try:
                self._token = trio.lowlevel.current_trio_token()
                started.set_result(service)
                if self._wanted:  # looked at after the token is there: `_request_end` does it the other way round
                    await self._ending.wait()
            finally:
                # Whoever still waits, for a cloud most likely, is told that the drive is closed; no more begin.
                self._calls.cancel_scope.cancel()
                self._calls = None

    def call(self, function: Callable[..., Awaitable[T]], *args: object) -> T:
        """Return `await function(*args)`, run in the loop.  Blocks; from any thread that is not inside.

        Interrupted (Ctrl-C), it cancels what it waits for.  Raises: what the function raised; LoopEnded.
        """
        if is_inside():
            raise RuntimeError(
                f"a thread of drive {self._name!r} would wait for itself; does a log handler write to it?"
            )
        job = _Job(lambda: function(*args))
        self._submit(job)
        try:
            return cast(T, job.future.result())
        except BaseException:
            if not job.future.done() and self._token is not None:
                with suppress(trio.RunFinishedError):
                    self._token.run_sync_soon(job.scope.cancel)
            raise
        finally:
            self._jobs.discard(job)

    def post(self, function: Callable[..., Awaitable[object]], *args: object) -> None:
        """Run `await function(*args)` in the loop, at some time; an error is logged.  Never blocks; any thread."""
        job = _Job(lambda: function(*args))
        job.future.add_done_callback(_log_failure)
        job.future.add_done_callback(lambda _: self._jobs.discard(job))
        self._submit(job)

    def _submit(self, job: _Job) -> None:
        if self._is_copy or self._token is None:
            job.future.set_exception(self._ended())
            return
        self._jobs.add(job)
        try:
            self._token.run_sync_soon(self._start, job)
        except trio.RunFinishedError:
            job.future.set_exception(self._ended())

    def _start(self, job: _Job) -> None:
        if self._calls is None or self._ending.is_set():
            job.future.set_exception(self._ended())
        else:
            self._calls.start_soon(self._do, job)

    async def _do(self, job: _Job) -> None:
        with job.scope:
            try:
                result = await job.function()
            except Exception as error:
                job.future.set_exception(error)
            except BaseException:  # a cancellation, perhaps as a group of them
                job.future.set_exception(self._ended())
                raise
            else:
                job.future.set_result(result)

    @property
    def _is_copy(self) -> bool:
        """Whether this is what a fork made of us: it has no thread, and must not touch the other's."""
        return os.getpid() != self._pid

    def _ended(self) -> LoopEnded:
        if self._is_copy:
            return LoopEnded(f"drive {self._name!r} is open in the process that forked this one, and closed here")
        error = LoopEnded(f"drive {self._name!r} is closed" + (f": {self._error}" if self._error else ""))
        error.__cause__ = self._error
        return error

    @property
    def has_ended(self) -> bool:
        """Whether nothing can be called any more."""
        return self._calls is None or self._is_copy

    def close(self) -> None:
        """End the loop and wait for it; from inside, only have it end.  May be called again.

        Raises: what ended the loop before or while it was closed.
        """
        if self._is_copy:
            return
        self._request_end()
        if not is_inside():
            self._thread.join()
            if self._error is not None:
                raise self._error

    def _request_end(self) -> None:
        self._wanted = False
        if self._token is not None:
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._ending.set)


_running: Final[set[LoopThread[object]]] = set()


def wait_for_ending() -> None:
    """Return when no loop that has been told to end is still at it.  Blocks; not from inside."""
    for loop in list(_running):
        if not loop._wanted:
            loop._thread.join()


@atexit.register
def _close_all() -> None:
    for loop in list(_running):
        with suppress(Exception):  # it was logged
            loop.close()


def _log_failure(future: Future[object]) -> None:
    error = future.exception()
    if error is not None:
        _log.error("a file that nobody had closed: %s", error, exc_info=error)


def _innermost(error: BaseException) -> BaseException:
    """Return what nurseries have wrapped, if it is one error."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error

"""The other end of workers.py: the main program of one worker process.

Started as `python -m cuckoo_mount.workerprocess FD PARENT_PID THREADS`; reads jobs from socket FD, runs each in one of
its threads, writes back the outcomes as they come.  Imports the standard library only: what a job needs, the job
brings.  (Idle, right after start: 13 MiB RSS, 9 MiB of it the bare interpreter; the first job on a cloud adds 10 MiB,
most of it PyFilesystem.)

Messages, both ways: header (job number u64, kind u8, length u64), then `length` bytes.  To the worker: a pickled pair
(function, arguments).  Back: raw bytes if the result is `bytes`, else a pickled value or exception.
It ends when the socket closes, and when its parent dies, without waiting for jobs: they are made to be cut off.
"""

from __future__ import annotations

import os
import pickle
import queue
import signal
import socket
import struct
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Final

HEADER: Final = struct.Struct("<QBQ")
KIND_JOB: Final = 0
KIND_BYTES: Final = 1
KIND_VALUE: Final = 2
KIND_ERROR: Final = 3

_NICENESS: Final = 5
_OOM_SCORE: Final = "300"  # the kernel, short of memory, should take a worker and not the daemon
_JOINED_MAX_BYTES: Final = 65536
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NAME: Final = 15
_STATUS_ORPHAN: Final = 3

Job = tuple[int, bytes]


def main(arguments: list[str]) -> None:
    """Run jobs until the socket closes.  Never returns: threads that hang must not keep the process."""
    descriptor, parent, threads = (int(argument) for argument in arguments)
    _settle_in(parent)
    connection = socket.socket(fileno=descriptor)
    worker = Worker(connection, threads)
    status = 0
    try:
        worker.serve()
    except OSError:
        pass  # the daemon is gone
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stderr.flush()
    os._exit(status)


def _settle_in(parent: int) -> None:
    """Become a good child: die with the parent, leave its signals to it, step back behind it."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    import ctypes  # 1 MiB, but it has no other way

    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    prctl(_PR_SET_NAME, b"cuckoo-worker", 0, 0, 0)
    if os.getppid() != parent:  # it died before we asked to be told
        os._exit(_STATUS_ORPHAN)
    os.nice(_NICENESS)
    try:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write(_OOM_SCORE)
    except OSError:
        pass  # a sandbox without /proc, or an even higher score


class Worker:
    """Jobs from `connection`, up to `threads` at a time.  The daemon never sends more than that."""

    def __init__(self, connection: socket.socket, threads: int) -> None:
        self._connection = connection
        self._threads_max = threads
        self._threads = 0
        self._jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._sending = threading.Lock()

    def serve(self) -> None:
        """Receive jobs until the other end closes.  Raises: OSError."""
        while (job := self._receive()) is not None:
            if not self._idle.acquire(blocking=False) and self._threads < self._threads_max:
                self._threads += 1
                threading.Thread(target=self._work, name=f"job {self._threads}", daemon=True).start()
            self._jobs.put(job)

    def _receive(self) -> Job | None:
        header = self._receive_exactly(HEADER.size)
        if header is None:
            return None
        number, _, length = HEADER.unpack(header)
        payload = self._receive_exactly(length)
        return None if payload is None else (number, payload)

    def _receive_exactly(self, length: int) -> bytes | None:
        buffer = bytearray(length)
        view = memoryview(buffer)
        while view:
            count = self._connection.recv_into(view)
            if not count:
                return None
            view = view[count:]
        return bytes(buffer)

    def _work(self) -> None:
        while True:
            number, payload = self._jobs.get()
            kind, answer = run_job(payload)
            del payload
            try:
                with self._sending:
                    self._send(HEADER.pack(number, kind, len(answer)), answer)
            except OSError:
                os._exit(0)  # nobody wants it any more
            del answer  # 16 MiB should not be kept while waiting
            self._idle.release()

    def _send(self, header: bytes, answer: bytes) -> None:
        if len(answer) <= _JOINED_MAX_BYTES:
            self._connection.sendall(header + answer)
            return
        self._connection.sendall(header)
        self._connection.sendall(answer)


def run_job(payload: bytes) -> tuple[int, bytes]:
    """Run one pickled (function, arguments); return (kind, bytes) of what came of it.  Raises nothing."""
    try:
        function: Callable[..., object]
        function, arguments = pickle.loads(payload)
        result = function(*arguments)
        if type(result) is bytes:
            return KIND_BYTES, result
        return KIND_VALUE, pickle.dumps(result, protocol=pickle.HIGHEST_PROTOCOL)
    except BaseException as error:  # SystemExit too: a job ends itself, not its neighbours
        return KIND_ERROR, pickle_error(error)


def pickle_error(error: BaseException) -> bytes:
    """Return pickled (exception, remote traceback); one that does not survive pickling becomes a RuntimeError."""
    text = "".join(traceback.format_exception(error))
    if isinstance(error, Exception):
        try:
            payload = pickle.dumps((error, text), protocol=pickle.HIGHEST_PROTOCOL)
            pickle.loads(payload)
            return payload
        except Exception:  # whatever its __reduce__ or __init__ does
            pass
    short = "".join(traceback.format_exception_only(error)).strip()
    return pickle.dumps((RuntimeError(short), text), protocol=pickle.HIGHEST_PROTOCOL)


if __name__ == "__main__":
    # Not the module that runs as __main__, but the importable one: pickles name it.
    from cuckoo_mount import workerprocess

    workerprocess.main(sys.argv[1:])

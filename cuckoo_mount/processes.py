"""One worker process as the daemon sees it: starting it, talking to it, ending it.

Used by workers.py only.  `spawn` blocks for about 1 ms and must run in the trio thread; the others are checkpoints and
may be cancelled, except where they say otherwise.
"""

from __future__ import annotations

import logging
import os
import pickle
import socket
import subprocess
import sys
from typing import Final, cast

import outcome
import trio

from cuckoo_mount.errors import CuckooError
from cuckoo_mount.workerprocess import KIND_BYTES, KIND_ERROR

CLOSE_S: Final = 1.0
"""How long a process may take to end by itself after its socket was closed."""
# glibc's arenas and its growing mmap threshold would keep tens of MiB after a few 16 MiB packs.
_MALLOC: Final = {"MALLOC_ARENA_MAX": "2", "MALLOC_MMAP_THRESHOLD_": "4194304"}

_log = logging.getLogger(__name__)


def spawn(connection: socket.socket, threads: int) -> subprocess.Popen[bytes]:
    """Start `python -m cuckoo_mount.workerprocess` with our import path.  Raises: OSError."""
    descriptor = connection.fileno()
    path = os.pathsep.join(os.path.abspath(folder) for folder in sys.path)
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "cuckoo_mount.workerprocess", str(descriptor), str(os.getpid()), str(threads)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        pass_fds=(descriptor,),
        cwd="/",  # never in the way of unmounting anything
        env={**os.environ, **_MALLOC, "PYTHONPATH": path},
        process_group=0,  # Ctrl-C and `kill -- -PGID` reach the daemon alone, even before the child can ignore them
    )


async def end(process: subprocess.Popen[bytes]) -> None:
    """Wait until the process has ended; kill it if closing its socket does not do it in a short time.

    Shielded: a process must not be left behind.  One that even SIGKILL does not end at once is not waited for when
    the pool closes.
    """
    with trio.CancelScope(shield=True):
        with trio.move_on_after(CLOSE_S):
            await _wait_for(process)
            return
        process.kill()
        with trio.move_on_after(CLOSE_S):
            await _wait_for(process)
            return
    await _wait_for(process)


async def _wait_for(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        return
    try:
        descriptor = os.pidfd_open(process.pid)
    except OSError:  # some sandboxes do not have it
        await trio.to_thread.run_sync(process.wait, abandon_on_cancel=True)
        return
    try:
        await trio.lowlevel.wait_readable(descriptor)
    finally:
        trio.lowlevel.notify_closing(descriptor)
        os.close(descriptor)
    process.poll()


def read_outcome(kind: int, payload: bytes, pid: int) -> outcome.Outcome[object]:
    """Return what a job's answer means.  Never raises."""
    if kind == KIND_BYTES:
        return outcome.Value(payload)
    try:
        value: object = pickle.loads(payload)
        if kind != KIND_ERROR:
            return outcome.Value(value)
        error, text = cast(tuple[Exception, str], value)
        # A local file that is gone is nothing to be alarmed at: whoever gives a pack up removes it under the upload.
        if not isinstance(error, CuckooError | OSError):
            _log.error("worker process %d: %s", pid, text)
        error.add_note(f"In worker process {pid}:\n{text}")
        return outcome.Error(error)
    except Exception as trouble:  # a class that this process cannot import, say
        return outcome.Error(RuntimeError(f"the answer of worker process {pid} cannot be read: {trouble!r}"))


async def send_all(connection: trio.socket.SocketType, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[await connection.send(view) :]


async def receive(connection: trio.socket.SocketType, length: int) -> bytes | None:
    """Return `length` bytes, or None if the other end closes before."""
    buffer = bytearray(length)
    view = memoryview(buffer)
    while view:
        count = await connection.recv_into(view)
        if not count:
            return None
        view = view[count:]
    return bytes(buffer)

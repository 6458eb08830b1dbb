"""Programs that wait for our own mount, run as processes of their own.

Used by session.py and serving.py.  A thread of the daemon that waits for the mount waits for the daemon.  Killed then,
the daemon could not end: the thread sleeps in the kernel until the request is answered, and keeps the connection open
that would have to break to wake it.  A process without our descriptors is freed when the daemon is gone.
"""

from __future__ import annotations

import subprocess

import trio


async def run_outside(*command: str) -> bool:
    """Run a program to its end; return whether it succeeded.  Checkpoint; if cancelled, the program goes on alone."""
    return await trio.to_thread.run_sync(_run, command, abandon_on_cancel=True)


def _run(command: tuple[str, ...]) -> bool:
    """Wait for a child, which unlike waiting for the mount ends at once when this process is killed."""
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False
    )
    return done.returncode == 0

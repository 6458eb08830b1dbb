"""One disk flush for all who wait: the durable-commit gate (docs/concurrency.md, lock 3).

Used by database.py.  State changes only in the loop; the flush itself runs in a thread.
Invariant: `_durable` ≤ `_committed`, and a commit counts as durable only after a flush that *began* after it has ended.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import trio

from cuckoo_mount.errors import MetadataError


class SharedFlush:
    """Counts commits and says which of them are on the disk.

    `log` is an open descriptor of the write-ahead log, closed by `close`; `flush` is called with it in a thread.
    (SQLite locks the database and its index by fcntl, never the log, so that closing ours takes no lock away.)
    """

    def __init__(self, log: int, flush: Callable[[int], None]) -> None:
        self.flushes = 0
        self.trouble: str | None = None
        self._log = log
        self._flush = flush
        self._committed = 0
        self._durable = 0
        self._running: trio.Event | None = None
        self._limiter = trio.CapacityLimiter(1)

    def committed(self) -> None:
        """Note that there is one more commit to make durable."""
        self._committed += 1

    async def wait_durable(self) -> None:
        """Return when all commits noted before this call are on the disk.  Checkpoint; a cancelled wait loses nothing.

        A flush that began before the last of them does not count for it: the next one does, again for all who wait.
        Raises: MetadataError when a flush failed, now and at every later call: the kernel has dropped the pages it
        could not write, so a second fdatasync would say "done" for data that is gone.
        """
        wanted = self._committed
        await trio.lowlevel.checkpoint()
        while self._durable < wanted:
            if self.trouble is not None:
                raise MetadataError(self.trouble)
            if self._running is None:
                await self._lead()
            else:
                await self._running.wait()
        if self.trouble is not None:
            raise MetadataError(self.trouble)

    def close(self) -> None:
        """Give the descriptor back; nobody waits any more."""
        os.close(self._log)

    async def _lead(self) -> None:
        covers = self._committed
        done = self._running = trio.Event()
        try:
            await trio.to_thread.run_sync(self._flush, self._log, limiter=self._limiter)
            self._durable = covers
            self.flushes += 1
        except OSError as error:
            self.trouble = f"the disk refused to store the metadata: {error}; unmount, check the disk, mount again"
        finally:
            self._running = None
            done.set()

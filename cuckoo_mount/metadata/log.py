"""Keeps the write-ahead log short: copies it into the database and lets it start again, in a thread of its own.

Used by database.py.  The loop's connection holds a write transaction nearly always, and SQLite starts a log from its
beginning only when a transaction begins while *everything* in it has been copied.  Under load that moment never comes
by itself: each commit adds pages, and the next transaction begins at once.  So:

1. *Copy*: when the log is over `soft_pages`, the thread copies (PASSIVE, with the syncs before and after that
   synchronous=NORMAL asks for) while transactions go on.  It ends with nearly all copied.
2. *Restart*: the next commit is not followed by a BEGIN.  In that pause the thread copies the rest and commits one
   small change of its own, which starts the log and syncs its new header: the loop never waits for that sync.
3. A change that comes during the pause begins its transaction and the restart is missed, tried again after
   `soft_pages` / 2 more.  Only when the log is over `hard_pages` does the change wait for the pause to end: a few syncs
   with little to write.  At four times `hard_pages` (the disk is slower than the changes) every commit waits as well,
   so that the log is bounded whatever happens.

The thread and the loop share only attributes written by one of them; `_idle` orders them.
"""

from __future__ import annotations

import threading
from queue import SimpleQueue

import apsw

from cuckoo_mount.metadata.reserve import Reserve


class LogKeeper:
    """Decides when to copy and to restart the log, and does it on `connection`, which belongs to its thread.

    Invariant: at most one job at a time.  `trouble` is set when the disk refused; the store must fail then.
    """

    def __init__(self, connection: apsw.Connection, reserve: Reserve, *, soft_pages: int, hard_pages: int) -> None:
        self.pages = 0
        self.trouble: str | None = None
        self.restarts = 0
        self._connection = connection
        self._reserve = reserve
        self._soft_pages = soft_pages
        self._hard_pages = hard_pages
        self._next_pages = soft_pages
        self._copied_pages = 0
        self._restarting = False
        self._idle = threading.Event()
        self._idle.set()
        self._jobs: SimpleQueue[bool] = SimpleQueue()
        connection.set_wal_hook(self.committed)
        self._thread = threading.Thread(target=self._work, name="cuckoo-metadata-log", daemon=True)
        self._thread.start()

    def committed(self, connection: apsw.Connection, database: str, pages: int) -> int:
        """Note the length of the log after a commit; SQLite calls it on both connections."""
        self.pages = pages
        return apsw.SQLITE_OK

    @property
    def idle(self) -> bool:
        """Whether no job is running."""
        return self._idle.is_set()

    def wants_pause(self) -> bool:
        """Start what is due, and return whether the caller should commit and not begin again before `restart`."""
        if self.pages < min(self._next_pages, self._reserve.log_pages // 2):
            return False
        if self.pages >= 4 * self._hard_pages:
            self._idle.wait()
        if not self._idle.is_set():
            return False
        rest = self.pages - self._copied_pages
        if self._copied_pages and (rest <= self._soft_pages // 4 or self.pages > 2 * self._hard_pages):
            return True
        self._start(restart=False)
        return False

    def restart(self) -> None:
        """Start the second step; the caller has no transaction open."""
        self._start(restart=True)

    def before_begin(self) -> None:
        """Wait, blocking the loop, for the pause to end, but only if the log is too long to miss it."""
        if self._restarting and self.pages >= min(self._hard_pages, self._reserve.log_pages * 3 // 4):
            self._idle.wait()

    def close(self) -> None:
        """End the thread and close its connection.  Blocks for as long as a job takes."""
        self._idle.wait()
        self._idle.clear()
        self._jobs.put(False)
        self._thread.join()

    def _start(self, *, restart: bool) -> None:
        self._idle.clear()
        self._restarting = restart
        self._jobs.put(True)

    def _work(self) -> None:
        try:
            while self._jobs.get():
                try:
                    self._make_way()
                    if self._restarting:
                        self._restart()
                    else:
                        self._copy()
                    self._make_way()
                except (apsw.BusyError, apsw.FullError):
                    # Nothing is lost: the log still has everything.  Try again when it has grown.
                    self._missed()
                except apsw.Error as error:
                    self.trouble = f"cannot copy the write-ahead log: {error}"
                finally:
                    self._restarting = False
                    self._idle.set()
        finally:
            self._connection.close(True)
            self._idle.set()

    def _make_way(self) -> None:
        """See that the database can grow by what is copied, also on a full disk."""
        pages = self._connection.pragma("page_count")
        assert isinstance(pages, int)
        self._reserve.make_way(pages)

    def _copy(self) -> None:
        _, copied = self._connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
        self._copied_pages = max(copied, 0)

    def _restart(self) -> None:
        self._copied_pages = 0
        total, copied = self._connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
        if copied < total:
            self._missed()
            return
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            self._connection.execute("UPDATE sequence SET next = next + 1 WHERE name = 'log'")
            self._connection.execute("COMMIT")
        finally:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        if self.pages < self._soft_pages:
            self.restarts += 1
            self._next_pages = self._soft_pages
        else:
            self._missed()

    def _missed(self) -> None:
        self._copied_pages = 0
        self._next_pages = self.pages + self._soft_pages // 2

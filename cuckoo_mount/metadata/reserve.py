"""Room on the local disk that is the metadata's own, so that a commit never fails because others filled the disk.

Used by store.py, database.py (loop) and log.py (its thread).  Three reserves, all of them real blocks:

* of the write-ahead log, allocated behind its end: every commit goes there;
* of the database, behind its end: what is copied from the log makes it grow, and a log that cannot be copied cannot
  begin anew.  SQLite cuts the file when a copy is complete; it is allocated again right after that;
* the ballast, a file beside the database, given up when one of the two cannot be made larger, and made again when there
  is room.

Nobody can take the first two.  When little is left of them, or the ballast was given up, programs are refused what
makes the drive grow (`has_room`), while removing and the drive's own work go on.
Blocks are allocated beyond the end of a file, so that no file looks any longer.  Where the file system cannot do that
there is no reserve, and `has_room` says yes.
Descriptors of the database and its index are kept until SQLite has closed them: closing one drops SQLite's locks.
What both threads change are single numbers, which are only too small for a moment.
Source: fallocate(2); SQLite's os_unix.c and wal.c.
"""

from __future__ import annotations

import ctypes
import errno
import math
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_LIBC.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_KEEP_SIZE: Final = 1
_NOT_NOW: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EINTR, errno.EIO})
PAGE_BYTES: Final = 4096
FRAME_BYTES: Final = PAGE_BYTES + 24
"""One page in the log."""
PART_OF_FREE: Final = 8
"""Each reserve takes no more than such a part of what is free when it is made."""
LEAST_BYTES: Final = 8 << 20
"""With less than half of that for the log a store is not opened: nobody would know how long its commits go well."""
MARGIN_PART: Final = 4
"""With less than this part of the log's reserve left, nothing grows any more."""
SPARE_PART: Final = 8
"""The database's reserve is made so large a part of what the log's is; with less than half of it nothing grows."""
LOOK_S: Final = 10.0
RETRY_S: Final = 0.5
INDEX_BYTES: Final = 32 << 10
"""The index of the log grows by so much for each 4,096 pages of it; it cannot be made longer on a full disk either."""
INDEX_PAGES: Final = 4096


class Reserve:
    """The reserves of one open store.  `log`: an open descriptor of the write-ahead log, not owned.

    `size_bytes`: of each of the two, where the disk has that much.  `log_limit_bytes`: SQLite cuts the log to that.
    """

    def __init__(self, path: Path, log: int, size_bytes: int, *, log_limit_bytes: int) -> None:
        self._ballast: Final = ballast_path(path)
        self._log = log
        self._database = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._index = os.open(f"{path}-shm", os.O_RDWR | os.O_CLOEXEC)
        self._size_bytes = size_bytes
        self._wanted_bytes = min(size_bytes, LEAST_BYTES)
        self._limit_bytes = log_limit_bytes
        self._log_bytes = 0
        self._pages = 0
        self._database_bytes = 0
        self._database_pages = os.fstat(self._database).st_size // PAGE_BYTES
        self._is_supported = True
        self._is_given_up = False
        self._look_at_s = self._hurry_at_s = -math.inf
        self.tend(0, self._database_pages)

    @property
    def is_enough(self) -> bool:
        """Whether it is safe to work with what the disk gave when the store was opened."""
        return not self._is_supported or self._log_bytes >= min(self._size_bytes, LEAST_BYTES) // 2

    def close(self) -> None:
        """Give the descriptors back, after SQLite has closed its own.  The ballast stays for the next mount."""
        os.close(self._database)
        os.close(self._index)

    # -- the loop --

    def has_room(self) -> bool:
        """Return whether the store may grow, as of the last `tend`."""
        spare_bytes = self._database_bytes - self._database_pages * PAGE_BYTES
        return not self._is_supported or (
            not self._is_given_up
            and self._left_bytes() >= self._margin_bytes
            and spare_bytes >= self._wanted_bytes // SPARE_PART // 2
        )

    @property
    def log_pages(self) -> int:
        """How long the log may become, in pages, before it takes what is not its own; very many without a reserve."""
        return self._log_bytes // FRAME_BYTES if self._is_supported else 1 << 40

    def tend(self, pages: int, database_pages: int) -> None:
        """Account for the length of the log and of the database, in pages; what runs short is made larger if possible.

        Cheap enough for every commit; some milliseconds now and then.
        """
        if pages < self._pages:
            # It began anew, and SQLite has cut its file to the limit it was given.
            self._log_bytes = min(self._log_bytes, self._limit_bytes)
        self._pages = pages
        if not self._is_supported:
            return
        now_s = time.monotonic()
        if database_pages != self._database_pages:
            self._database_pages = database_pages
            if self._database_bytes < database_pages * PAGE_BYTES + self._wanted_bytes // SPARE_PART // 4 * 3:
                self.make_way(database_pages)
        is_short = self._left_bytes() < self._wanted_bytes // 2 or not self.has_room()
        if now_s >= (self._hurry_at_s if is_short else self._look_at_s):
            self._look()
            self._look_at_s, self._hurry_at_s = now_s + LOOK_S, now_s + RETRY_S

    def _look(self) -> None:
        free_bytes = self._free_bytes()
        self._wanted_bytes = max(self._wanted_bytes, min(self._size_bytes, free_bytes // PART_OF_FREE))
        if self._left_bytes() < self._wanted_bytes * 3 // 4:
            end_bytes = self._pages * FRAME_BYTES
            if not self._extend_log(end_bytes + self._wanted_bytes) and self._left_bytes() < self._margin_bytes:
                self._give_up()
                self._extend_log(end_bytes + self._wanted_bytes // 2)
                return
        self.make_way(self._database_pages)
        if free_bytes >= 2 * self._wanted_bytes:
            self._restore()

    @property
    def _margin_bytes(self) -> int:
        return self._wanted_bytes // MARGIN_PART

    def _left_bytes(self) -> int:
        return self._log_bytes - self._pages * FRAME_BYTES

    def _extend_log(self, size_bytes: int) -> bool:
        index_bytes = (size_bytes // FRAME_BYTES // INDEX_PAGES + 2) * INDEX_BYTES
        done = self._allocate(self._log, 0, size_bytes) and self._allocate(self._index, 0, index_bytes, keep_size=False)
        if done:
            self._log_bytes = max(self._log_bytes, size_bytes)
        return done

    def _restore(self) -> None:
        if not self._ballast.exists():
            fd = os.open(self._ballast, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                made = self._allocate(fd, 0, self._wanted_bytes)
            finally:
                os.close(fd)
            if not made:
                release_ballast(self._ballast)
                return
        self._is_given_up = False

    # -- both --

    def make_way(self, pages: int) -> None:
        """Allocate what the database lacks to have so many pages and its reserve; gives the ballast up if need be."""
        needed_bytes = pages * PAGE_BYTES
        wanted_bytes = needed_bytes + self._wanted_bytes // SPARE_PART
        if self._allocate_database(wanted_bytes) or self._allocate_database(needed_bytes + PAGE_BYTES):
            return
        self._give_up()
        if not self._allocate_database(wanted_bytes):
            self._allocate_database(needed_bytes)

    def _allocate_database(self, size_bytes: int) -> bool:
        # From its end on: what lies before it, it has.
        here_bytes = min(os.fstat(self._database).st_size, size_bytes)
        if not self._allocate(self._database, here_bytes, size_bytes - here_bytes):
            return False
        self._database_bytes = size_bytes
        return True

    def _give_up(self) -> None:
        self._is_given_up = True
        release_ballast(self._ballast)

    def _free_bytes(self) -> int:
        found = os.fstatvfs(self._log)
        return found.f_bavail * found.f_frsize

    def _allocate(self, fd: int, offset: int, length: int, *, keep_size: bool = True) -> bool:
        if length <= 0:
            return True
        if _LIBC.fallocate(fd, _KEEP_SIZE if keep_size else 0, offset, length) == 0:
            return True
        if ctypes.get_errno() not in _NOT_NOW:
            self._is_supported = False
        return False


def ballast_path(path: Path) -> Path:
    """Return where the ballast of the database `path` lies."""
    return path.with_name(f"{path.name}-ballast")


def release_ballast(ballast: Path) -> None:
    """Delete a ballast; none, or one that cannot be deleted, is fine."""
    with suppress(OSError):
        ballast.unlink()

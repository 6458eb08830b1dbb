"""Room on the local disk that is the metadata's own, so that a commit never fails because others filled the disk.

Used by store.py, database.py (loop) and log.py (its thread).  Two reserves, both real blocks:

* of the write-ahead log, allocated behind its end: every commit goes there, and nobody can take it.  When little of it
  is left, programs are refused what makes the drive grow (`has_room`), while removing and the drive's own work go on;
* the ballast, a file beside the database.  It is given up when the log cannot be copied, as the database grows by that,
  and in the same moment that room is allocated to the database; or when the log cannot be made longer.  It is made
  again when there is room.

Blocks are allocated beyond the end of a file, so that no file looks any longer.  Where the file system cannot do that
there is no reserve, and `has_room` says yes.
Descriptors of the database and its index are kept until SQLite has closed them: closing one drops SQLite's locks.
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
LEAST_BYTES: Final = 256 << 10
"""A reserve smaller than this is none."""
MARGIN_PART: Final = 4
"""With less than this part of the log's reserve left, nothing grows any more."""
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
        self._wanted_bytes = LEAST_BYTES
        self._limit_bytes = log_limit_bytes
        self._log_bytes = 0
        self._pages = 0
        self._is_supported = True
        self._look_at_s = -math.inf
        self.tend(0)

    def close(self) -> None:
        """Give the descriptors back, after SQLite has closed its own.  The ballast stays for the next mount."""
        os.close(self._database)
        os.close(self._index)

    # -- the loop --

    def has_room(self) -> bool:
        """Return whether the store may grow, as of the last `tend`."""
        return not self._is_supported or self._left_bytes() >= self._wanted_bytes // MARGIN_PART

    def tend(self, pages: int) -> None:
        """Account for the length of the log, in pages; where a reserve runs short, make it larger if that is possible.

        Cheap enough for every commit; some milliseconds now and then.
        """
        if pages < self._pages:
            # It began anew, and SQLite has cut its file to the limit it was given.
            self._log_bytes = min(self._log_bytes, self._limit_bytes)
        self._pages = pages
        if self._is_supported and time.monotonic() >= self._look_at_s:
            self._look()

    def _look(self) -> None:
        wait_s = LOOK_S
        free_bytes = self._free_bytes()
        self._wanted_bytes = max(self._wanted_bytes, min(self._size_bytes, free_bytes // PART_OF_FREE))
        end_bytes = self._pages * FRAME_BYTES
        if self._left_bytes() < self._wanted_bytes * 3 // 4 and not self._extend_log(end_bytes + self._wanted_bytes):
            wait_s = RETRY_S
            if not self.has_room():
                self.release()
                self._extend_log(end_bytes + self._wanted_bytes // 2)
        elif free_bytes >= 2 * self._wanted_bytes:
            self._restore()
        self._look_at_s = time.monotonic() + wait_s

    def _left_bytes(self) -> int:
        return self._log_bytes - self._pages * FRAME_BYTES

    def _extend_log(self, size_bytes: int) -> bool:
        index_bytes = (size_bytes // FRAME_BYTES // INDEX_PAGES + 2) * INDEX_BYTES
        done = self._allocate(self._log, 0, size_bytes) and self._allocate(self._index, 0, index_bytes, keep_size=False)
        if done:
            self._log_bytes = max(self._log_bytes, size_bytes)
        return done

    def _restore(self) -> None:
        if self._ballast.exists():
            return
        fd = os.open(self._ballast, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            made = self._allocate(fd, 0, self._wanted_bytes)
        finally:
            os.close(fd)
        if not made:
            self.release()

    # -- the thread of the log --

    def make_way(self, pages: int) -> None:
        """Allocate what the database lacks to have so many pages; gives the ballast up if need be."""
        here_bytes = os.fstat(self._database).st_size
        more_bytes = pages * PAGE_BYTES - here_bytes
        if more_bytes > 0 and not self._allocate(self._database, here_bytes, more_bytes):
            self.release()
            self._allocate(self._database, here_bytes, more_bytes)

    # -- both --

    def release(self) -> None:
        """Give the ballast up; none is fine."""
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

"""System calls on sparse files that Python has no name for: punching holes and syncing one file system.

Used by cache/files.py.  Every call releases the GIL (ctypes) and may block on the disk; `punch_hole` is short enough
for the loop.
Source: fallocate(2), syncfs(2).
"""

from __future__ import annotations

import ctypes
import errno
import os

_LIBC = ctypes.CDLL(None, use_errno=True)
_FALLOC_FL_KEEP_SIZE = 1
_FALLOC_FL_PUNCH_HOLE = 2
_LIBC.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_LIBC.syncfs.argtypes = (ctypes.c_int,)


def punch_hole(fd: int, offset: int, length: int) -> None:
    """Make `length` bytes from `offset` read as zeros and give their whole blocks back.  Size unchanged.

    A no-op for length ≤ 0.  Raises: OSError (EOPNOTSUPP where the file system has no holes: see `can_punch`).
    """
    if length <= 0:
        return
    if _LIBC.fallocate(fd, _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE, offset, length) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def reserve(fd: int, offset: int, length: int) -> None:
    """Take room on the disk for `length` bytes from `offset`, before they are written.  Size unchanged.

    A write into the page cache promises nothing where the disk is nearly full: file systems find out later that there
    is no room, drop the bytes, and tell it once, to whoever syncs next.  What has its room cannot end like that.
    Where the file system cannot do it nothing is done.  Raises: OSError (ENOSPC).
    """
    if length > 0 and _LIBC.fallocate(fd, _FALLOC_FL_KEEP_SIZE, offset, length) != 0:
        code = ctypes.get_errno()
        if code != errno.EOPNOTSUPP:
            raise OSError(code, os.strerror(code))


def sync_file_system(fd: int) -> None:
    """Return when everything written to the file system that `fd` lies on is on the disk.  Blocks: call in a thread."""
    if _LIBC.syncfs(fd) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def pwrite_all(fd: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of `data` at `offset`.  Raises: OSError; some of it may then be written."""
    written = os.pwrite(fd, data, offset)
    while written < len(data):
        view = memoryview(data)[written:]
        written += os.pwrite(fd, view, offset + written)


def can_punch(folder: str) -> bool:
    """Return whether files in `folder` can have holes punched."""
    path = os.path.join(folder, f".punch-test.{os.getpid()}")
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.pwrite(fd, b"x" * 8192, 0)
        punch_hole(fd, 0, 4096)
    except OSError:
        return False
    else:
        return True
    finally:
        os.close(fd)
        os.unlink(path)

"""An open file of the drive, as Python's io wants it.

Used by filesystem.py, mostly with one of io's buffers around it.  Thread-safe: one operation at a time, like a
file descriptor.
`flush` of a buffer hands the bytes to the drive: everybody sees them, and a crash of this program may lose the last
second or two, a power cut the last few (see `CuckooFS.make_durable`).  Errors are OSErrors with errno, as of any file.
A file that was forgotten is closed by Python's finalizer, with its buffer's last bytes, in whatever thread that runs;
in one of ours it must not wait, and the drive does it later.  In a cycle Python finalizes a file, its buffer and its
text wrapper in any order: only the outermost one may act, or what the others still hold would be lost.
"""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Final, TypeVar

from cuckoo_mount.errors import CuckooError
from cuckoo_mount.pyfs.actions import Actions
from cuckoo_mount.pyfs.failures import as_os_error
from cuckoo_mount.pyfs.loopthread import LoopEnded, LoopThread, is_inside
from cuckoo_mount.pyfs.openfiles import PIECE_BYTES, OpenFiles

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

T = TypeVar("T")


class Wrapped:
    """A file object that leaves it to what is `wrapped` around it to close it in the end."""

    wrapped = False

    def __del__(self) -> None:
        if not self.wrapped:
            super().__del__()  # type: ignore[misc]  # io.IOBase has it


class RawFile(Wrapped, io.RawIOBase):
    """File `number` of `loop`.  `owner` is kept alive as long as the file is, for it closes the drive when it goes."""

    def __init__(
        self,
        loop: LoopThread[Actions],
        number: int,
        path: str,
        *,
        mode: str,
        reading: bool,
        writing: bool,
        appending: bool,
        owner: object,
    ) -> None:
        super().__init__()
        self.mode: Final = mode
        self.name: Final = path
        self._loop = loop
        self._number = number
        self._reading = reading
        self._writing = writing
        self._appending = appending
        self._owner = owner
        self._position = 0
        self._late: list[tuple[int | None, bytes]] = []
        self._lock: Final = threading.RLock()  # readall reads
        if appending:
            self.seek(0, os.SEEK_END)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} mode={self.mode!r}{' closed' if self.closed else ''}>"

    def readable(self) -> bool:
        return self._reading

    def writable(self) -> bool:
        return self._writing

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        self._check_open()
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Move the position.  Raises: ValueError."""
        with self._lock:
            self._check_open()
            if whence == os.SEEK_CUR:
                offset += self._position
            elif whence == os.SEEK_END:
                offset += self._call(self._open_files.ask_size, self._number)
            elif whence != os.SEEK_SET:
                raise ValueError(f"whence has to be 0, 1 or 2, not {whence}")
            if offset < 0:
                raise ValueError(f"the position would be {offset}")
            self._position = offset
            return offset

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Read up to what the buffer holds, or `PIECE_BYTES`; 0 at the end."""
        view = memoryview(buffer).cast("B")
        data = self._read(len(view))
        view[: len(data)] = data
        return len(data)

    def readall(self) -> bytes:
        """Return everything behind the position."""
        with self._lock:
            return b"".join(iter(lambda: self._read(PIECE_BYTES), b""))

    def _read(self, size_bytes: int) -> bytes:
        with self._lock:
            self._check_open()
            if not self._reading:
                raise io.UnsupportedOperation("the file is open for writing only")
            wanted = min(size_bytes, PIECE_BYTES)
            data = self._call(self._open_files.read, self._number, self._position, wanted) if wanted else b""
            self._position += len(data)
            return data

    def write(self, data: ReadableBuffer, /) -> int:
        """Write everything; return its length, or what was written before an error."""
        with self._lock, memoryview(data).cast("B") as view:
            self._check_open()
            if not self._writing:
                raise io.UnsupportedOperation("the file is open for reading only")
            done = 0
            while done < len(view):
                try:
                    self._write(bytes(view[done : done + PIECE_BYTES]))
                except OSError:
                    if not done:
                        raise
                    break
                done = min(len(view), done + PIECE_BYTES)
            return done

    def _write(self, data: bytes) -> None:
        offset = None if self._appending else self._position
        if is_inside():
            self._late.append((offset, data))
            self._position += len(data)
        else:
            self._position = self._call(self._open_files.write, self._number, offset, data)

    def truncate(self, size_bytes: int | None = None, /) -> int:
        """Cut or lengthen to `size_bytes` (None: to the position), which stays where it is; return the new size."""
        with self._lock:
            self._check_open()
            if not self._writing:
                raise io.UnsupportedOperation("the file is open for reading only")
            wanted = self._position if size_bytes is None else size_bytes
            if wanted < 0:
                raise ValueError(f"a file cannot have {wanted} bytes")
            self._call(self._open_files.resize, self._number, wanted)
            return wanted

    def close(self) -> None:
        """Close.  May be called again."""
        with self._lock:
            if self.closed:
                return
            try:
                super().close()
            finally:
                if not is_inside():
                    self._release()
                elif self._late or not self._loop.has_ended:
                    self._loop.post(self._open_files.write_and_release, self._number, self._late)

    def _release(self) -> None:
        with suppress(LoopEnded):  # then the drive has closed it
            self._loop.call(self._open_files.release, self._number)

    @property
    def _open_files(self) -> OpenFiles:
        return self._loop.service.files

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file")

    def _call(self, function: Callable[..., Awaitable[T]], *args: object) -> T:
        try:
            return self._loop.call(function, *args)
        except (CuckooError, OSError) as error:
            raise as_os_error(error, self.name) from error


class _Reader(Wrapped, io.BufferedReader):
    pass


class _Writer(Wrapped, io.BufferedWriter):
    pass


class _Random(Wrapped, io.BufferedRandom):
    pass


Buffer = _Reader | _Writer | _Random


def with_buffer(raw: RawFile, size_bytes: int) -> Buffer:
    """Return `raw` with a buffer of `size_bytes` > 0 around it."""
    raw.wrapped = True
    if raw.readable() and raw.writable():
        return _Random(raw, size_bytes)
    return _Reader(raw, size_bytes) if raw.readable() else _Writer(raw, size_bytes)


def as_text(
    file: Buffer, encoding: str, errors: str | None, newline: str | None, line_buffering: bool
) -> io.TextIOWrapper:
    """Return `file` with Python's text around it."""
    file.wrapped = True
    return io.TextIOWrapper(file, encoding, errors, newline, line_buffering)

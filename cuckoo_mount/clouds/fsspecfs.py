"""Any fsspec file system as a PyFilesystem: `fsspec+PROTOCOL://…`.

Used by fsspeccloud.py, which takes the file system out of it, and through fsimport.py by whoever opens such a URL.
Any number of threads as far as the file system below takes them.  Files are kept in memory while they are open: read
as a whole when that is needed, written as a whole when they are closed.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any, BinaryIO, Final, cast

from cuckoo_mount.clouds import fsimport
from cuckoo_mount.clouds.base import CloudSettings
from cuckoo_mount.clouds.fsimport import FS, errors
from cuckoo_mount.clouds.fsspecerrors import is_missing
from cuckoo_mount.clouds.fsspecplace import Maker, parse_fsspec_place
from cuckoo_mount.clouds.fsspectypes import Entry, FileSystem

with fsimport.stand_in():
    from fs.enums import ResourceType
    from fs.info import Info
    from fs.mode import Mode
    from fs.path import basename, dirname
    from fs.permissions import Permissions
    from fs.subfs import SubFS

_DIRECTORY: Final = "directory"
_CLOSED: Final = "file is closed"
_META: Final[dict[str, str | int | bool | None]] = {
    "case_insensitive": False,
    "invalid_path_chars": "\0",
    "network": True,
    "read_only": False,
    "supports_rename": False,
    "thread_safe": True,
    "unicode_paths": True,
    "virtual": False,
}


class _Opened(io.RawIOBase):
    """A file in memory that is stored when it is closed, if it may have been changed."""

    def __init__(self, owner: FsspecFS, path: str, mode: Mode, content: bytes) -> None:
        super().__init__()
        self._owner = owner
        self._path = path
        self._mode = mode
        self._buffer = io.BytesIO(content)
        if mode.appending:
            self._buffer.seek(0, io.SEEK_END)
        self.mode = mode.to_platform_bin()

    def readable(self) -> bool:
        return bool(self._mode.reading)

    def writable(self) -> bool:
        return bool(self._mode.writing)

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401 - as io.RawIOBase has it
        if not self._mode.reading:
            raise io.UnsupportedOperation("not open for reading")
        return self._buffer.readinto(buffer)

    def write(self, data: Any) -> int:  # noqa: ANN401 - as io.RawIOBase has it
        if not self._mode.writing:
            raise io.UnsupportedOperation("not open for writing")
        if self._mode.appending:
            self._buffer.seek(0, io.SEEK_END)
        return self._buffer.write(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if self.closed:
            raise ValueError(_CLOSED)
        return self._buffer.seek(offset, whence)

    def tell(self) -> int:
        return self._buffer.tell()

    def truncate(self, size: int | None = None) -> int:
        if not self._mode.writing:
            raise io.UnsupportedOperation("not open for writing")
        size = self._buffer.tell() if size is None else size
        had = len(self._buffer.getbuffer())
        if size > had:
            at = self._buffer.tell()
            self._buffer.seek(0, io.SEEK_END)
            self._buffer.write(bytes(size - had))
            self._buffer.seek(at)
        else:
            self._buffer.truncate(size)
        return size

    def flush(self) -> None:
        if not self.closed and self._mode.writing:
            self._owner.writebytes(self._path, self._buffer.getvalue())

    def close(self) -> None:
        if not self.closed:
            super().close()  # flushes


class FsspecFS(FS):
    """Everything below `root` of an fsspec file system, which is `filesystem`.  See fs.base.FS for the methods."""

    def __init__(self, filesystem: FileSystem, root: str) -> None:
        super().__init__()
        self._meta = _META
        self.filesystem: Final = filesystem
        self.root: Final = root.rstrip("/")

    def getinfo(self, path: str, namespaces: Collection[str] | None = None) -> Info:
        checked = self.validatepath(path)
        if checked in ("", "/"):
            return Info(_raw({"name": "", "type": _DIRECTORY, "size": 0}, "", namespaces or ()))
        with _as_fs_errors(path):
            return Info(_raw(self._entry(checked), basename(checked), namespaces or ()))

    def listdir(self, path: str) -> list[str]:
        return [str(info.name) for info in self.scandir(path)]

    def scandir(
        self, path: str, namespaces: Collection[str] | None = None, page: tuple[int, int] | None = None
    ) -> Iterator[Info]:
        checked = self.validatepath(path)
        if not self.getinfo(path).is_dir:
            raise errors.DirectoryExpected(path)
        with _as_fs_errors(path):
            below = self._below(checked).strip("/")
            entries = [(str(entry["name"]).strip("/"), entry) for entry in self.filesystem.ls(self._below(checked))]
        # Some list the folder itself along.
        found = [(name, entry) for name, entry in entries if name.rpartition("/")[0] == below and name != below]
        first, last = page or (0, len(found))
        for name, entry in found[first:last]:
            yield Info(_raw(entry, basename(name), namespaces or ()))

    def makedir(self, path: str, permissions: Permissions | None = None, recreate: bool = False) -> SubFS[FS]:
        checked = self.validatepath(path)
        if checked not in ("", "/"):
            self._check_parent(path, checked)
            if self.exists(checked):
                if not recreate:
                    raise errors.DirectoryExists(path)
                if not self.isdir(checked):
                    raise errors.DirectoryExpected(path)
            else:
                with _as_fs_errors(path):
                    self.filesystem.mkdir(self._below(checked), create_parents=False)
        elif not recreate:
            raise errors.DirectoryExists(path)
        return self.opendir(path)

    def openbin(self, path: str, mode: str = "r", buffering: int = -1, **options: object) -> BinaryIO:
        parsed = Mode(mode)
        parsed.validate_bin()
        checked = self.validatepath(path)
        if checked in ("", "/") or self.isdir(checked):
            raise errors.FileExpected(path)
        self._check_parent(path, checked)
        there = self.exists(checked)
        if there and parsed.exclusive:
            raise errors.FileExists(path)
        if not there and not parsed.create:
            raise errors.ResourceNotFound(path)
        keeps = there and not parsed.truncate
        opened = _Opened(self, checked, parsed, self.readbytes(checked) if keeps else b"")
        if parsed.writing and not keeps:
            opened.flush()
        return cast(BinaryIO, opened)

    def readbytes(self, path: str) -> bytes:
        checked = self.validatepath(path)
        if self.isdir(checked):
            raise errors.FileExpected(path)
        with _as_fs_errors(path):
            return self.filesystem.cat_file(self._below(checked))

    def writebytes(self, path: str, contents: bytes) -> None:
        checked = self.validatepath(path)
        if not isinstance(contents, bytes):
            raise TypeError("contents must be bytes")
        if checked in ("", "/") or self.isdir(checked):
            raise errors.FileExpected(path)
        self._check_parent(path, checked)
        with _as_fs_errors(path):
            self.filesystem.pipe_file(self._below(checked), contents)

    def remove(self, path: str) -> None:
        checked = self.validatepath(path)
        if self.getinfo(path).is_dir:
            raise errors.FileExpected(path)
        with _as_fs_errors(path):
            self.filesystem.rm_file(self._below(checked))

    def removedir(self, path: str) -> None:
        checked = self.validatepath(path)
        if checked in ("", "/"):
            raise errors.RemoveRootError
        if not self.getinfo(path).is_dir:
            raise errors.DirectoryExpected(path)
        if self.listdir(path):
            raise errors.DirectoryNotEmpty(path)
        with _as_fs_errors(path):
            self.filesystem.rmdir(self._below(checked))

    def setinfo(self, path: str, info: Mapping[str, Mapping[str, object]]) -> None:
        self.getinfo(path)  # nothing can be set, which PyFilesystem allows; but it has to be there

    def _below(self, checked: str) -> str:
        name = checked.strip("/")
        return f"{self.root}/{name}" if self.root and name else self.root or name

    def _entry(self, checked: str) -> Entry:
        return self.filesystem.info(self._below(checked))

    def _check_parent(self, path: str, checked: str) -> None:
        parent = dirname(checked)
        if parent not in ("", "/") and not self.isdir(parent):
            raise errors.ResourceNotFound(path)

    def __repr__(self) -> str:
        return f"FsspecFS({type(self.filesystem).__name__}, {self.root!r})"


def open_fsspec_fs(url: str) -> FsspecFS:
    """Return the PyFilesystem at `fsspec+PROTOCOL://…`, with a file system of its own.

    May contact the server.  Raises: UsageError; what the library raises.
    """
    settings = CloudSettings(name="fsspec", url=url)
    maker = Maker(settings, parse_fsspec_place(settings, url))
    return FsspecFS(maker.make(), maker.root)


def _raw(entry: Entry, name: str, namespaces: Collection[str]) -> dict[str, dict[str, object]]:
    folder = entry["type"] == _DIRECTORY
    found: dict[str, dict[str, object]] = {"basic": {"name": name, "is_dir": folder}}
    if "details" in namespaces:
        kind = ResourceType.directory if folder else ResourceType.file
        size = entry.get("size")
        changed = entry.get("mtime", entry.get("created"))
        found["details"] = {
            "_write": [],
            "type": int(kind),
            "size": size if isinstance(size, int) and not folder else 0,
            "modified": changed.timestamp() if isinstance(changed, datetime) else None,
        }
    return found


@contextmanager
def _as_fs_errors(path: str) -> Iterator[None]:
    """Raises: fs.errors in place of what the file system below raises."""
    try:
        yield
    except errors.FSError:
        raise
    except Exception as error:
        if is_missing(error):
            raise errors.ResourceNotFound(path, exc=error) from error
        if isinstance(error, FileExistsError):
            raise errors.FileExists(path, exc=error) from error
        if isinstance(error, IsADirectoryError):
            raise errors.FileExpected(path, exc=error) from error
        if isinstance(error, NotADirectoryError):
            raise errors.DirectoryExpected(path, exc=error) from error
        if isinstance(error, PermissionError):
            raise errors.PermissionDenied(path, exc=error) from error
        if isinstance(error, TimeoutError):
            raise errors.OperationTimeout(path, exc=error) from error
        raise errors.OperationFailed(path, exc=error) from error

"""Any fsspec file system as a cloud: `fsspec+gs://`, `fsspec+abfs://`, `fsspec+gdrive://`, `fsspec+smb://` and others.

Used by registry.py.  Opened as a PyFilesystem (fsspecfs.py); data go through the file system's own calls for whole
objects and ranges.  What differs between protocols is data, in fsspeckinds.py.  Libraries are imported when a cloud is
opened.  Any number of threads; an asynchronous library has one thread more per process, for all of its clouds.

Rules it keeps:
* A root has to exist and is never made; "not found", and an empty listing, are believed after a look at it.
* Listings are never kept: they are switched off in the library.
* Each call on an asynchronous library ends by a limit of ours, and what it did is cancelled; others have their own.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial
from typing import Final, Protocol, TypeVar, cast

from cuckoo_mount.clouds import walking
from cuckoo_mount.clouds.base import Capabilities, CloudSettings, ObjectInfo, Space
from cuckoo_mount.clouds.fsspecerrors import explain, is_broken, is_missing
from cuckoo_mount.clouds.fsspecfs import FsspecFS
from cuckoo_mount.clouds.fsspecplace import Maker, parse_fsspec_place
from cuckoo_mount.clouds.fsspectypes import Entry, FileSystem
from cuckoo_mount.clouds.names import check_object_name, check_prefix, check_range, is_object_name
from cuckoo_mount.errors import CloudCorrupt, CloudError, CloudMissing, CloudUnavailable

STOCK_MAX: Final = 8
SLOWEST_BYTES_PER_S: Final = 16 << 10
"""What a transfer may be as slow as before it is given up, where the library sets no limit on each step of it."""
_DIRECTORY: Final = "directory"
_FILE: Final = "file"
_LARGEST_BYTES: Final = 64 << 20

T = TypeVar("T")
_Entries = list[walking.Entry]


class _Asynchronous(Protocol):
    """What fsspec's AsyncFileSystem has besides; `async_impl` says that it is one."""

    async_impl: bool
    loop: object


class FsspecCloud:
    """A Cloud in a file system of fsspec.  See clouds/base.py for what each method promises."""

    def __init__(self, settings: CloudSettings, maker: Maker) -> None:
        """Remember how file systems are made; the first call makes one, so that it opens while the server is down."""
        self._settings = settings
        self._maker = maker
        self._kind = maker.kind
        self._lock = threading.Lock()
        self._names = walking.NameLocks()
        self._stock: list[FsspecFS] = []
        self._shared: FsspecFS | None = None
        self._root_seen = False
        self._ready_folders: set[str] = set()

    @property
    def settings(self) -> CloudSettings:
        return self._settings

    @property
    def capabilities(self) -> Capabilities:
        kind = self._kind
        return Capabilities(
            max_object_bytes=kind.max_object_bytes,
            atomic_put=kind.atomic_put,
            native_range=kind.native_range,
            reports_space=kind.reports_space,
            durable_put=kind.durable_put,
        )

    def put(self, name: str, data: bytes | memoryview) -> None:
        check_object_name(name)
        content = bytes(data)
        try:
            with self._names.of(name):
                self._call(name, lambda opened: self._put(opened, name, content))
        except CloudMissing as error:
            self._ready_folders.clear()
            message = "its folder vanished while it was written; try again"
            raise CloudUnavailable(message, cloud=self._settings.name, name=name) from error

    def get(self, name: str) -> bytes:
        check_object_name(name)

        def read(opened: FileSystem) -> bytes:
            data = self._read(opened, name, None, None, _LARGEST_BYTES)
            if self._kind.careful:
                self._check_size(opened, name, len(data), "came")
            return data

        return self._call(name, read)

    def get_range(self, name: str, offset: int, length_bytes: int) -> bytes:
        check_object_name(name)
        check_range(offset, length_bytes)
        end = offset + length_bytes

        def read(opened: FileSystem) -> bytes:
            if not length_bytes:  # HTTP has no words for an empty range
                size = self._size(opened, name)
                if size < offset:
                    raise self._too_short(name, offset, length_bytes, size)
                return b""
            return self._read(opened, name, offset, end, length_bytes)

        data = self._call(name, read)
        if len(data) > length_bytes:  # a server that does not know ranges gave the whole object
            data = data[offset:end]
        if len(data) != length_bytes:
            raise self._too_short(name, offset, length_bytes, len(data))
        return data

    def delete(self, name: str) -> None:
        check_object_name(name)

        def remove(opened: FileSystem) -> None:
            if self._kind.careful or self._kind.makes_folders:  # it may not say that there was nothing to remove
                self._see_root(opened)
            self._run(opened, "rm_file", self._path(name))

        with suppress(CloudMissing):
            self._call(name, remove)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        check_prefix(prefix)
        if not self._kind.flat:
            return walking.walk(prefix, self._list_folder, self._remove_quietly)
        return self._find(prefix)

    def space(self) -> Space | None:
        if not self._kind.reports_space:
            return None
        return self._call("", lambda opened: self._kind.space(opened, self._path("")))

    def close(self) -> None:
        with self._lock:
            opened, self._stock, self._shared = [*self._stock, *filter(None, [self._shared])], [], None
        for each in opened:
            self._close(each)

    # --- data -----------------------------------------------------------------------------------------------------

    def _path(self, name: str) -> str:
        root = self._maker.root
        return f"{root}/{name}" if root and name else root or name

    def _put(self, opened: FileSystem, name: str, content: bytes) -> None:
        kind = self._kind
        if kind.careful or kind.makes_folders or (kind.flat and not self._root_seen):
            self._see_root(opened)
        if not self._kind.flat:
            self._make_folders(opened, name)
        try:
            self._write(opened, name, content)
        except Exception as error:
            if self._kind.flat or not is_missing(error):
                raise
            self._ready_folders.clear()
            self._make_folders(opened, name)
            self._write(opened, name, content)

    def _write(self, opened: FileSystem, name: str, content: bytes) -> None:
        if _is_asynchronous(opened):
            self._run(opened, "pipe_file", self._path(name), content, size_bytes=len(content))
        else:
            self._kind.write(opened, self._path(name), content)
        if self._kind.careful:
            self._check_size(opened, name, len(content), "were sent")

    def _read(self, opened: FileSystem, name: str, start: int | None, end: int | None, size_bytes: int) -> bytes:
        path = self._path(name)
        if not _is_asynchronous(opened):
            return self._kind.read(opened, path, start, end)
        return cast(bytes, self._run(opened, "cat_file", path, start=start, end=end, size_bytes=size_bytes))

    def _size(self, opened: FileSystem, name: str) -> int:
        entry = cast(Entry, self._run(opened, "info", self._path(name)))
        if entry["type"] == _DIRECTORY:
            raise FileNotFoundError(name)
        return int(cast(int, entry["size"]))

    def _check_size(self, opened: FileSystem, name: str, had: int, what: str) -> None:
        size = self._size(opened, name)
        if size != had:
            message = f"{had} bytes {what}, it has {size}; try again"
            raise CloudUnavailable(message, cloud=self._settings.name, name=name)

    def _make_folders(self, opened: FileSystem, name: str) -> None:
        """Make the folders of object `name`, but never the root.  Raises: CloudUnavailable; what is raised below."""
        folder = name.rpartition("/")[0]
        if not folder or folder in self._ready_folders:
            return
        self._see_root(opened)
        made = ""
        for part in folder.split("/"):
            made = f"{made}/{part}".lstrip("/")
            if made in self._ready_folders:
                continue
            try:
                self._run(opened, "mkdir", self._path(made), create_parents=False)
            except Exception:
                # Each has its own way to say that it is there already.
                if cast(Entry, self._run(opened, "info", self._path(made)))["type"] != _DIRECTORY:
                    raise
            self._ready_folders.add(made)

    def _list_folder(self, prefix: str) -> _Entries:
        path = self._path(prefix.rstrip("/"))

        def listed(opened: FileSystem) -> Sequence[Entry]:
            return cast(Sequence[Entry], self._run(opened, "ls", path, detail=True))

        try:
            found = self._call(prefix, listed)
            if not found:
                self._call("", self._see_root)
        except CloudMissing:
            return []
        below = path.strip("/")
        entries = []
        for item in found:
            parent, _, last = str(item["name"]).strip("/").rpartition("/")
            if parent != below:  # some list the folder itself along
                continue
            size = None if item["type"] == _DIRECTORY else int(cast(int, item["size"] or 0))
            changed = item.get("mtime", item.get("modified"))
            entries.append(walking.Entry(last, size, changed.timestamp() if isinstance(changed, datetime) else 0.0))
        return entries

    def _find(self, prefix: str) -> Iterator[ObjectInfo]:
        path = self._path(prefix.rstrip("/"))
        root = f"{self._path('').strip('/')}/"

        def listed(opened: FileSystem) -> dict[str, Entry]:
            if self._kind.find is not None:
                return dict(cast(Mapping[str, Entry], self._wait(opened, partial(self._kind.find, opened, path))))
            found = self._run(opened, "find", path, detail=True)
            return cast(dict[str, Entry], found) if isinstance(found, dict) else {}

        try:
            entries = self._call(prefix, listed)
            if not entries:  # of a container that is gone, some say that it is empty
                self._call("", self._see_root)
        except CloudMissing:
            return
        for entry in entries.values():
            name = str(entry["name"]).strip("/")
            if entry["type"] == _FILE and name.startswith(root):
                name = name.removeprefix(root)
                if name.startswith(prefix) and is_object_name(name):
                    yield ObjectInfo(name, int(cast(int, entry["size"])))

    def _remove_quietly(self, name: str) -> None:
        with suppress(CloudError):
            self._call(name, lambda opened: self._run(opened, "rm_file", self._path(name)))

    def _too_short(self, name: str, offset: int, wanted: int, had: int) -> CloudCorrupt:
        return CloudCorrupt(f"{wanted} bytes wanted at {offset}, got {had}", cloud=self._settings.name, name=name)

    # --- calls, limits and errors -----------------------------------------------------------------------------------

    def _run(
        self, opened: FileSystem, method: str, path: str, *arguments: object, size_bytes: int = 0, **options: object
    ) -> object:
        """Return what `method` returns; an asynchronous one is cancelled at its deadline."""
        if not _is_asynchronous(opened):
            call = getattr(opened, method)
            return call(path, *arguments, **options)
        function = partial(getattr(opened, f"_{method}"), path, *arguments, **options)
        return self._wait(opened, function, size_bytes)

    def _wait(self, opened: FileSystem, function: Callable[[], object], size_bytes: int = _LARGEST_BYTES) -> object:
        """Return what the asynchronous `function` returns.  Raises: TimeoutError after it was cancelled."""
        limit_s = self._settings.timeout_s + size_bytes / SLOWEST_BYTES_PER_S
        sync = importlib.import_module("fsspec.asyn").sync
        found: object = sync(cast(_Asynchronous, opened).loop, function, timeout=limit_s)
        return found

    def _call(self, name: str, action: Callable[[FileSystem], T]) -> T:
        """Return what `action` returns, with the errors of the Cloud protocol."""
        try:
            return self._try(action, repeat=self._kind.reconnects)
        except Exception as error:
            found = explain(error, self._settings, name)
            if isinstance(found, CloudMissing) and name:
                raise CloudMissing("no such object", cloud=self._settings.name, name=name) from error
            raise found from error

    def _try(self, action: Callable[[FileSystem], T], *, repeat: bool) -> T:
        opened, is_fresh = self._take()
        try:
            result = action(opened.filesystem)
        except Exception as error:
            found = explain(error, self._settings, "")
            if isinstance(found, CloudMissing):
                self._give_back(opened)
                self._see_root(opened.filesystem)
                raise
            broken = is_broken(error)
            if not broken and not isinstance(found, CloudUnavailable):
                self._give_back(opened)
                raise
            self._drop(opened)
            if is_fresh or not repeat or not broken:
                raise
        else:
            self._give_back(opened)
            return result
        return self._try(action, repeat=False)

    def _see_root(self, opened: FileSystem) -> None:
        """Return if the root is there (the bucket, of an object store).  Raises: CloudUnavailable; what comes up."""
        path = self._path("")
        if self._kind.in_process:
            return
        if self._kind.flat:
            path = path.strip("/").partition("/")[0]
        try:
            if cast(Entry, self._run(opened, "info", path))["type"] == _DIRECTORY:
                self._root_seen = True
                return
        except Exception as error:
            if not is_missing(error):
                raise
        what = "bucket" if self._kind.flat else "folder"
        raise CloudUnavailable(
            f"there is no {what} {path!r} there; make it, or check the URL", cloud=self._settings.name
        )

    def _take(self) -> tuple[FsspecFS, bool]:
        """Return a file system for one call, and whether it was made just now."""
        with self._lock:
            if self._kind.shared:
                made = self._shared is None
                if self._shared is None:
                    self._shared = FsspecFS(self._maker.make(), self._maker.root)
                return self._shared, made
            if self._stock:
                return self._stock.pop(), False
        return FsspecFS(self._maker.make(), self._maker.root), True

    def _give_back(self, opened: FsspecFS) -> None:
        if self._kind.shared:
            return
        with self._lock:
            if len(self._stock) < STOCK_MAX:
                self._stock.append(opened)
                return
        self._close(opened)

    def _close(self, opened: FsspecFS) -> None:
        opened.close()
        with suppress(Exception):  # why it does not close changes nothing
            self._kind.close(opened.filesystem)

    def _drop(self, opened: FsspecFS) -> None:
        """Give up a file system whose connection may be in any state."""
        if self._kind.shared and not self._kind.reconnects:
            return
        with self._lock:
            if self._shared is opened:
                self._shared = None
        with suppress(Exception):  # as in _close
            self._kind.drop(opened.filesystem)

    def __repr__(self) -> str:
        return f"FsspecCloud({self._settings.name!r}, {self._kind.names[0]!r})"


def open_fsspec_cloud(settings: CloudSettings, place: str) -> FsspecCloud:
    """Return the cloud at the URL `place` (`fsspec+…://…`); sends nothing.

    Raises: UsageError for a URL, options or secrets that cannot be, or a library that is not installed.
    """
    return FsspecCloud(settings, Maker(settings, parse_fsspec_place(settings, place)))


def _is_asynchronous(opened: FileSystem) -> bool:
    return bool(getattr(opened, "async_impl", False))

"""Any PyFilesystem as a cloud, by the PyFilesystem API alone: slow but careful; fast drivers have files of their own.

Used by registry.py for every scheme without an entry of its own.  Any number of threads: a call takes an opened file
system out of a small stock (or opens one) and puts it back, so that drivers with one connection or one lock still work
in parallel, and one that failed is not used again.  `mem://` and `temp://` keep their data inside the object: there
all threads of a process share one.

What drivers were seen to do, and the answer here (measured, see docs):
* overwriting may leave a stale tail → names are write-once; an object of another content is removed first;
* a put may be cut short without an error → the size is asked for afterwards;
* reading an object that has just been deleted may give b"" → an empty answer is confirmed;
* "not found" may mean that the server lost the whole folder → the root is listed before CloudMissing is said;
* "permission denied" may mean not found → asked once more;
* any exception of any library may come out → all of them are mapped (translate.py).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Final, TypeVar
from urllib.parse import quote

from cuckoo_mount.clouds import fsimport
from cuckoo_mount.clouds.base import Capabilities, Cloud, CloudSettings, ObjectInfo, Space
from cuckoo_mount.clouds.fsimport import FS, OpenerError
from cuckoo_mount.clouds.names import check_object_name, check_prefix, check_range, is_object_name
from cuckoo_mount.clouds.osfs import FolderCloud
from cuckoo_mount.clouds.translate import describe, translate
from cuckoo_mount.errors import CloudCorrupt, CloudError, CloudMissing, CloudRefused, CloudUnavailable, UsageError

_KEPT_IN_PROCESS: Final = frozenset({"mem", "temp"})
_STOCK_MAX: Final = 8
_PUT_LOCKS: Final = 64
_CREDENTIAL_KEYS: Final = ("user", "password")
_shared: Final[dict[str, FS]] = {}
_shared_lock: Final = threading.Lock()

T = TypeVar("T")
_Entries = list[tuple[str, int | None]]
"""What lies directly in a folder: full name, and size in bytes or None for a folder."""


class PyFilesystemCloud:
    """A Cloud on top of PyFilesystem objects opened from `url`.  See clouds/base.py for what each method promises."""

    def __init__(self, settings: CloudSettings, url: str, *, shared: bool) -> None:
        """Open the file system once, to know that it can be.  `shared`: its data lives in the object itself."""
        self._settings = settings
        self._url = url
        self._shared = shared
        self._lock = threading.Lock()
        self._stock: list[FS] = []
        self._ready_folders: set[str] = set()
        self._put_locks = [threading.Lock() for _ in range(_PUT_LOCKS)]
        self._call("", lambda opened: opened.getmeta())

    @property
    def settings(self) -> CloudSettings:
        return self._settings

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(atomic_put=False, native_range=False, reports_space=False, durable_put=False)

    def put(self, name: str, data: bytes | memoryview) -> None:
        check_object_name(name)
        content = bytes(data)
        try:
            # Two puts of one name at a time would take each other's half-written object for a damaged one.
            with self._put_locks[hash(name) % _PUT_LOCKS]:
                self._call(name, lambda opened: self._put(opened, name, content))
        except CloudMissing as error:  # the folder vanished, or the driver says so of the root
            self._ready_folders.clear()
            raise CloudUnavailable("its folder vanished; try again", cloud=self._settings.name, name=name) from error

    def get(self, name: str) -> bytes:
        check_object_name(name)
        return self._call(name, lambda opened: _read(opened, name))

    def get_range(self, name: str, offset: int, length_bytes: int) -> bytes:
        check_object_name(name)
        check_range(offset, length_bytes)
        data = self._call(name, lambda opened: _read_range(opened, name, offset, length_bytes))
        if len(data) != length_bytes:
            raise CloudCorrupt(
                f"{length_bytes} bytes wanted at {offset}, got {len(data)}", cloud=self._settings.name, name=name
            )
        return data

    def delete(self, name: str) -> None:
        check_object_name(name)
        with suppress(CloudMissing):
            self._call(name, lambda opened: opened.remove(name))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        check_prefix(prefix)
        pending = [prefix]
        while pending:
            found = self._list_folder(pending.pop())
            for name, size_bytes in found:
                if size_bytes is None:
                    pending.append(f"{name}/")
                else:
                    yield ObjectInfo(name, size_bytes)

    def space(self) -> Space | None:
        return None

    def close(self) -> None:
        with self._lock:
            stock, self._stock = self._stock, []
        for opened in stock:
            _close_quietly(opened)

    def local_folder(self) -> str | None:
        """Return the folder of this machine it all lies in, or None."""
        return self._call("", lambda opened: opened.getsyspath("/") if opened.hassyspath("/") else None)

    # --- opened file systems and their errors ---------------------------------------------------------------------

    def _call(self, name: str, action: Callable[[FS], T]) -> T:
        """Return action(file system), with the errors of the Cloud protocol."""
        try:
            opened = self._take()
        except Exception as error:
            found = translate(error, self._settings, "")
            if isinstance(found, CloudMissing):  # of the root
                raise self._root_gone(error) from error
            raise found from error
        try:
            result = action(opened)
        except Exception as error:
            raise self._judge(opened, error, name) from error
        self._give_back(opened)
        return result

    def _judge(self, opened: FS, error: Exception, name: str) -> CloudError:
        """Return what `error` means, and keep or drop `opened`."""
        found = translate(error, self._settings, name)
        if isinstance(found, CloudRefused) and name and _is_absent(opened, name):
            found = CloudMissing("no such object", cloud=self._settings.name, name=name)
        if not isinstance(found, CloudMissing):
            if not self._shared:
                _close_quietly(opened)  # its connection may be in any state
            return found
        try:
            # Not exists("/"): several drivers answer that without asking anyone.
            next(iter(opened.scandir("/")), None)
        except Exception as trouble:
            if not self._shared:
                _close_quietly(opened)
            return self._root_gone(trouble)
        self._give_back(opened)
        return found

    def _root_gone(self, error: Exception) -> CloudUnavailable:
        return CloudUnavailable(
            f"its root cannot be opened: {describe(error, self._settings)}; check the URL and that it is there",
            cloud=self._settings.name,
        )

    def _take(self) -> FS:
        if self._shared:
            with _shared_lock:
                if self._url not in _shared:
                    _shared[self._url] = fsimport.open_fs(self._url)
                return _shared[self._url]
        with self._lock:
            if self._stock:
                return self._stock.pop()
        return fsimport.open_fs(self._url)

    def _give_back(self, opened: FS) -> None:
        if self._shared:
            return
        with self._lock:
            if len(self._stock) < _STOCK_MAX:
                self._stock.append(opened)
                return
        _close_quietly(opened)

    # --- data -----------------------------------------------------------------------------------------------------

    def _put(self, opened: FS, name: str, content: bytes) -> None:
        self._make_folders(opened, name)
        if opened.exists(name):
            if opened.readbytes(name) == content:
                return
            opened.remove(name)  # a put that was cut, or damage: overwriting would show a mixture, or keep its tail
        try:
            opened.writebytes(name, content)
            self._check_size(opened, name, len(content))
        except Exception:
            with suppress(Exception):
                opened.remove(name)
            raise

    def _check_size(self, opened: FS, name: str, size_bytes: int) -> None:
        had = opened.getsize(name)
        if had != size_bytes:
            raise CloudUnavailable(
                f"{size_bytes} bytes sent, {had} arrived; try again", cloud=self._settings.name, name=name
            )

    def _make_folders(self, opened: FS, name: str) -> None:
        folder = name.rpartition("/")[0]
        if not folder or folder in self._ready_folders:
            return
        opened.makedirs(folder, recreate=True)
        self._ready_folders.add(folder)

    def _list_folder(self, prefix: str) -> _Entries:
        def scan(opened: FS) -> _Entries:
            # The whole folder at once: a driver may not be asked other things while it gives out pages.
            infos = opened.scandir(f"/{prefix}", namespaces=["details"])
            return [(f"{prefix}{info.name}", None if info.is_dir else info.size) for info in infos]

        try:
            found = self._call(prefix.rstrip("/"), scan)
        except CloudMissing:
            return []
        return [(name, size_bytes) for name, size_bytes in found if is_object_name(name)]

    def __repr__(self) -> str:
        return f"PyFilesystemCloud({self._settings.name!r})"


def open_pyfilesystem_cloud(settings: CloudSettings, place: str) -> Cloud:
    """Return the cloud at the PyFilesystem URL `place`; options and secrets of `settings` are added to the URL.

    What turns out to be a folder of this machine (`userdata://…`) gets the driver for folders.
    Raises: UsageError for a URL that cannot be read or opened by its scheme; CloudUnavailable, CloudRefused.
    """
    scheme = place.partition("://")[0]
    shared = scheme in _KEPT_IN_PROCESS
    try:
        cloud = PyFilesystemCloud(settings, url_with_settings(settings, place), shared=shared)
    except CloudUnavailable as error:
        if isinstance(error.__cause__, OpenerError):
            # The URL, or a driver that is not installed whole: trying again does not help.
            raise UsageError(f"cloud {settings.name}: cannot open {scheme}://: {error.message}") from error
        raise
    folder = None if shared else cloud.local_folder()
    return cloud if folder is None else FolderCloud(settings, folder)


def url_with_settings(settings: CloudSettings, url: str) -> str:
    """Return `url` with the options and secrets of `settings` put where PyFilesystem looks for them.

    `user` and `password` go before the `@`, everything else into the query.  The result is secret.
    """
    # Option names with a dot are ours (registry.py), not the driver's.
    values = {key: value for key, value in (*settings.options, *settings.secrets) if "." not in key}
    scheme, _, rest = url.partition("://")
    if any(key in values for key in _CREDENTIAL_KEYS):
        old, at, place = rest.partition("@")
        old_user, _, old_password = old.partition(":") if at else ("", "", "")
        rest = place if at else rest
        user = quote(values.pop("user", ""), safe="") or old_user
        password = quote(values.pop("password", ""), safe="") or old_password
        rest = f"{user}:{password}@{rest}"
    # Quoted twice because PyFilesystem unquotes query values twice.
    query = "&".join(f"{key}={quote(quote(value, safe=''), safe='')}" for key, value in sorted(values.items()))
    if query:
        rest, mark, path = rest.partition("!")
        rest = f"{rest}{'&' if '?' in rest else '?'}{query}{mark}{path}"
    return f"{scheme}://{rest}"


def _read(opened: FS, name: str) -> bytes:
    data: bytes = opened.readbytes(name)
    if not data and opened.getsize(name):
        raise CloudUnavailable("an object that has bytes was read as empty; try again")
    return data


def _read_range(opened: FS, name: str, offset: int, length_bytes: int) -> bytes:
    parts = []
    with opened.openbin(name, "r") as file:
        if opened.getsize(name) < offset + length_bytes:
            return b""
        file.seek(offset)
        while length_bytes and (data := file.read(length_bytes)):
            parts.append(data)
            length_bytes -= len(data)
    return b"".join(parts)


def _is_absent(opened: FS, name: str) -> bool:
    try:
        return not opened.exists(name)
    except Exception:
        return False


def _close_quietly(opened: FS) -> None:
    with suppress(Exception):  # it is given up; why it does not close changes nothing
        opened.close()

"""A folder on an FTP server as a cloud: `ftp://`, or `ftps://` for FTP over TLS (AUTH TLS, data encrypted, too).

Used by registry.py.  By ftplib, of which PyFilesystem's driver is a layer: that one has a single connection, overwrites
in place, and reads "not there" as "not allowed" on some servers (measured).  Any number of threads: up to
`CONNECTIONS_MAX` connections, each used by one call at a time.

    ftp[s]://[user[:password]@]host[:port]/folder[?ca_file=/path]        ca_file: for ftps

Rules it keeps:
* A put goes to a temporary name, its size is asked for, then it is renamed: whole or absent.
* FTP has one code for many troubles: "not there" is said when the listing of the folder lacks the name, or the folder
  is not there, and the root is; a refusal of what is there is asked for again.
* The root has to exist and is never made.
* A connection that broke while it was idle is made anew; nothing else is repeated.
"""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Final, TypeVar

from cuckoo_mount.clouds.base import Capabilities, CloudSettings, ObjectInfo, Space
from cuckoo_mount.clouds.ftpsession import CA_FILE, FtpSession, kind_of_reply, make_context, reply_code
from cuckoo_mount.clouds.names import check_object_name, check_prefix, check_range
from cuckoo_mount.clouds.remoteplace import RemotePlace, parse_remote_place
from cuckoo_mount.clouds.translate import describe
from cuckoo_mount.clouds.walking import Entry, NameLocks, temporary_name, walk
from cuckoo_mount.errors import (
    CloudCorrupt,
    CloudError,
    CloudMissing,
    CloudRefused,
    CloudTimeout,
    CloudUnavailable,
)

CONNECTIONS_MAX: Final = 4
"""Servers allow few from one address."""
_ATTEMPTS: Final = CONNECTIONS_MAX + 1  # all in the stock may turn out to be broken
_REFUSALS: Final = 3
_SECURE: Final = "ftps"
_LOGIN: Final = frozenset({430, 530, 532})

T = TypeVar("T")
_Entries = list[Entry]


class FtpCloud:
    """A Cloud in a folder of an FTP server.  See clouds/base.py for what each method promises."""

    def __init__(self, settings: CloudSettings, place: RemotePlace) -> None:
        """Remember where it is; connections are made by calls.  Raises: UsageError."""
        self._settings = settings
        self._place = place
        self._context: ssl.SSLContext | None = make_context(settings, place) if place.scheme == _SECURE else None
        self._lock = threading.Lock()
        self._connections = threading.BoundedSemaphore(CONNECTIONS_MAX)
        self._names = NameLocks()
        self._stock: list[FtpSession] = []
        self._ready_folders: set[str] = set()

    @property
    def settings(self) -> CloudSettings:
        return self._settings

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(durable_put=False)

    def put(self, name: str, data: bytes | memoryview) -> None:
        check_object_name(name)
        content = bytes(data)
        try:
            # Renaming over a file is two steps on some servers.
            with self._names.of(name):
                self._call(name, lambda session: self._put(session, name, content))
        except CloudMissing as error:
            self._ready_folders.clear()
            message = "its folder vanished while it was written; try again"
            raise CloudUnavailable(message, cloud=self._settings.name, name=name) from error

    def get(self, name: str) -> bytes:
        check_object_name(name)

        def read(session: FtpSession) -> bytes:
            data, path = session.read(self._path(name)), self._path(name)
            size_bytes = session.size(path)  # a connection that broke looks like the end of a file
            if size_bytes not in (None, len(data)):
                message = f"{size_bytes} bytes announced, {len(data)} came; try again"
                raise CloudUnavailable(message, cloud=self._settings.name, name=name)
            return data

        return self._call(name, read)

    def get_range(self, name: str, offset: int, length_bytes: int) -> bytes:
        check_object_name(name)
        check_range(offset, length_bytes)
        return self._range(name, offset, length_bytes)

    def _range(self, name: str, offset: int, length_bytes: int) -> bytes:
        def read(session: FtpSession) -> bytes:
            path = self._path(name)
            trouble: Exception | None = None
            data = b""
            try:
                if length_bytes:
                    data = session.read_part(path, offset, length_bytes)
            except Exception as error:
                if not reply_code(error):
                    raise
                trouble = error  # it may be that the server refuses to begin behind the end
            if len(data) == length_bytes > 0:
                return data
            size_bytes = session.size(path)
            if size_bytes is not None and size_bytes < offset + length_bytes:
                message = f"{length_bytes} bytes wanted at {offset}, the object has {size_bytes}"
                raise CloudCorrupt(message, cloud=self._settings.name, name=name)
            if trouble is not None:
                raise trouble
            if len(data) != length_bytes:
                message = f"{length_bytes} bytes wanted, {len(data)} came; try again"
                raise CloudUnavailable(message, cloud=self._settings.name, name=name)
            return data

        return self._call(name, read)

    def delete(self, name: str) -> None:
        check_object_name(name)
        with suppress(CloudMissing):
            self._call(name, lambda session: session.remove(self._path(name)))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        check_prefix(prefix)
        return walk(prefix, self._list_folder, self._remove_quietly)

    def space(self) -> Space | None:
        return None

    def close(self) -> None:
        with self._lock:
            stock, self._stock = self._stock, []
        for session in stock:
            session.close()

    # --- data -----------------------------------------------------------------------------------------------------

    def _path(self, name: str) -> str:
        return self._place.below(name)

    def _put(self, session: FtpSession, name: str, content: bytes) -> None:
        folder = name.rpartition("/")[0]
        path, temporary = self._path(name), self._path(temporary_name(name))
        self._make_folder(session, folder)
        try:
            session.store(temporary, content)
            size_bytes = session.size(temporary)
            if size_bytes not in (None, len(content)):
                message = f"{len(content)} bytes sent, {size_bytes} arrived; try again"
                raise CloudUnavailable(message, cloud=self._settings.name, name=name)
            session.rename(temporary, path)
        except Exception as error:
            self._ready_folders.discard(folder)
            if reply_code(error) or isinstance(error, CloudError):
                with suppress(Exception):  # a leftover harms nobody, and a listing finds it again
                    session.remove(temporary)
            raise

    def _make_folder(self, session: FtpSession, folder: str) -> None:
        """Make `folder` and those above it, but never the root."""
        if folder in self._ready_folders:
            return
        if not session.is_folder(self._path(folder)):
            self._see_root(session)
            if folder:
                self._make_folder(session, folder.rpartition("/")[0])
                try:
                    session.make_folder(self._path(folder))
                except Exception as error:
                    # Another one may have been faster.
                    if not reply_code(error) or not session.is_folder(self._path(folder)):
                        raise
        self._ready_folders.add(folder)

    def _list_folder(self, prefix: str) -> _Entries:
        try:
            return self._call(prefix, lambda session: session.entries(self._path(prefix.rstrip("/"))))
        except CloudMissing:
            return []

    def _remove_quietly(self, name: str) -> None:
        with suppress(CloudError):
            self._call(name, lambda session: session.remove(self._path(name)))

    # --- connections and errors -----------------------------------------------------------------------------------

    def _call(self, name: str, action: Callable[[FtpSession], T]) -> T:
        """Return what `action` returns, with the errors of the Cloud protocol."""
        with self._connections:
            try:
                return self._try(name, action, _ATTEMPTS)
            except CloudError:
                raise
            except Exception as error:
                raise self._translated(error, name) from error

    def _try(self, name: str, action: Callable[[FtpSession], T], attempts: int) -> T:
        with self._lock:
            session = self._stock.pop() if self._stock else None
        is_fresh = session is None
        session = session or FtpSession(self._settings, self._place, self._context)
        try:
            result = self._act(session, name, action)
        except Exception as error:
            if reply_code(error) or isinstance(error, CloudError):
                self._give_back(session)
                raise
            session.close()
            if is_fresh or attempts == 1 or isinstance(error, TimeoutError):
                raise
            return self._try(name, action, attempts - 1)
        self._give_back(session)
        return result

    def _act(self, session: FtpSession, name: str, action: Callable[[FtpSession], T]) -> T:
        """Return what `action` returns.  Raises: CloudMissing, if its refusal means that."""
        for attempt in range(_REFUSALS):
            try:
                return action(session)
            except Exception as error:
                if not reply_code(error):
                    raise
                self._check_missing(session, error, name)
                # It is there now, but may not have been when it was asked for.
                if attempt == _REFUSALS - 1 or not issubclass(kind_of_reply(reply_code(error)), CloudRefused):
                    raise
        raise AssertionError("the last attempt returns or raises")

    def _give_back(self, session: FtpSession) -> None:
        with self._lock:
            self._stock.append(session)

    def _check_missing(self, session: FtpSession, error: Exception, name: str) -> None:
        """Return if a refusal is not about something that is not there.  Raises: CloudMissing, CloudUnavailable."""
        folder, _, last = name.rstrip("/").rpartition("/")
        if name.endswith("/") or not name:
            is_there = session.is_folder(self._path(name.rstrip("/")))
        else:
            is_there = session.is_folder(self._path(folder)) and last in {
                entry.name for entry in session.entries(self._path(folder))
            }
        if not is_there:
            self._see_root(session)
            raise CloudMissing("no such object", cloud=self._settings.name, name=name) from error

    def _see_root(self, session: FtpSession) -> None:
        """Return if the root is there.  Raises: CloudUnavailable."""
        if session.is_folder(self._place.path):
            return
        self._ready_folders.clear()
        raise CloudUnavailable(
            f"there is no folder {self._place.path} at {self._place.endpoint}; make it, or check the URL",
            cloud=self._settings.name,
        )

    def _translated(self, error: Exception, name: str) -> CloudError:
        where, code = self._place.endpoint, reply_code(error)
        kind, text = CloudUnavailable, f"the connection to {where} broke: {describe(error, self._settings)}"
        if code:
            found = kind_of_reply(code)
            said = describe(error, self._settings)
            hint = "; check the secrets user and password" if code in _LOGIN else ""
            return found(f"the server says: {said}{hint}", cloud=self._settings.name, name=name)
        if isinstance(error, ssl.SSLCertVerificationError):
            trouble = "whether this machine trusts the server's certificate (option ca_file)"
            text = f"no secure connection to {where}: {describe(error, self._settings)}; check the URL, and {trouble}"
        elif isinstance(error, TimeoutError):
            kind, text = CloudTimeout, f"no answer in time from {where}"
        elif isinstance(error, ConnectionRefusedError) or "gaierror" in type(error).__name__:
            text = f"nothing answers at {where}; check the URL, and that the server runs"
        return kind(text, cloud=self._settings.name, name=name)

    def __repr__(self) -> str:
        return f"FtpCloud({self._settings.name!r}, {self._place.endpoint!r})"


def open_ftp_cloud(settings: CloudSettings, place: str) -> FtpCloud:
    """Return the cloud at the URL `place`; sends nothing to it, so that it opens while the server is down.

    Raises: UsageError for a URL, options or secrets that cannot be.
    """
    return FtpCloud(settings, parse_ftp_place(settings, place))


def parse_ftp_place(settings: CloudSettings, url: str) -> RemotePlace:
    """Return what `url` and `settings` say.  Raises: UsageError for what cannot be."""
    scheme = url.partition("://")[0]
    return parse_remote_place(settings, url, options=(CA_FILE,) if scheme == _SECURE else ())

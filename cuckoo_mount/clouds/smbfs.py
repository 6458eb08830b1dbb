"""A share of an SMB server as a file system of fsspec's shape, by the package smbprotocol (extra `smb`).

Used by fsspeckinds.py.  Imported when one is made.  Any thread.  Why not fsspec's own: it has one login per server and
process, whoever asks, asks for every entry of a listing again, writes in place, and does not find its way back after a
server was restarted.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from typing import Final, Protocol, cast
from urllib.parse import unquote

from cuckoo_mount.clouds.base import Space
from cuckoo_mount.clouds.fsspectypes import Arguments, Entry, FileSystem, FsspecPlace
from cuckoo_mount.clouds.walking import temporary_name

PORT: Final = 445
_SHARE_ACCESS: Final = "rwd"  # others may read, replace and remove what we have open
_FILE, _DIRECTORY = "file", "directory"
_FOLDER_BIT: Final = 0o040000
_IN_USE: Final = frozenset({0xC0000056, 0xC0000043})  # delete pending, sharing violation
_REPLACE_ATTEMPTS: Final = 30
_REPLACE_PAUSE_S: Final = 0.1


class _File(AbstractContextManager["_File"], Protocol):
    def seek(self, offset: int) -> int: ...
    def read(self, size: int = -1) -> bytes: ...
    def write(self, data: bytes | memoryview) -> int: ...


class _Stat(Protocol):
    st_size: int
    st_mode: int


class _Known(Protocol):
    end_of_file: int
    last_write_time: object


class _Found(Protocol):
    name: str

    @property
    def smb_info(self) -> _Known: ...
    def is_dir(self) -> bool: ...


class _Volume(Protocol):
    total_size: int
    caller_available_size: int


class _Client(Protocol):
    """The part of the package smbclient that is used; `login` is the same for all."""

    def stat(self, path: str, **login: object) -> _Stat: ...
    def scandir(self, path: str, **login: object) -> Sequence[_Found]: ...
    def mkdir(self, path: str, **login: object) -> None: ...
    def remove(self, path: str, **login: object) -> None: ...
    def rmdir(self, path: str, **login: object) -> None: ...
    def replace(self, old: str, new: str, **login: object) -> None: ...
    def open_file(
        self, path: str, mode: str, *, buffering: int = 0, share_access: str = "", **login: object
    ) -> _File: ...
    def stat_volume(self, path: str, **login: object) -> _Volume: ...
    def reset_connection_cache(self, *, fail_on_error: bool, connection_cache: object) -> None: ...


class SmbFileSystem:
    """What a user sees at `host`; paths are `/share/folder/file`.  Raises: OSError; what smbprotocol raises."""

    def __init__(
        self,
        host: str,
        timeout_s: float,
        port: str = str(PORT),
        username: str | None = None,
        password: str | None = None,
        encrypt: str = "",
        auth_protocol: str = "negotiate",
    ) -> None:
        """Nothing is sent.  `encrypt`: "yes" demands it.  Raises: ImportError; ValueError for a port."""
        self._client = cast(_Client, importlib.import_module("smbclient"))
        self._host = host
        self._connections: dict[str, object] = {}
        self._login: dict[str, object] = {
            "port": int(port),
            "username": username,
            "password": password,
            "encrypt": encrypt.lower() in ("yes", "true") or None,
            "auth_protocol": auth_protocol,
            "connection_timeout": timeout_s,
            "connection_cache": self._connections,
        }

    def info(self, path: str) -> Entry:
        found = self._client.stat(self._unc(path), **self._login)
        folder = bool(found.st_mode & _FOLDER_BIT)
        return {"name": path, "size": found.st_size, "type": _DIRECTORY if folder else _FILE}

    def ls(self, path: str, detail: bool = True) -> Sequence[Entry]:
        found: list[Entry] = []
        for item in self._client.scandir(self._unc(path), **self._login):
            folder, known = item.is_dir(), item.smb_info
            entry = {"name": f"{path}/{item.name}", "size": 0 if folder else known.end_of_file}
            found.append({**entry, "type": _DIRECTORY if folder else _FILE, "mtime": known.last_write_time})
        return found

    def find(self, path: str, detail: bool = True) -> Mapping[str, Entry]:
        found: dict[str, Entry] = {}
        for entry in self.ls(path):
            below = self.find(str(entry["name"])) if entry["type"] == _DIRECTORY else {str(entry["name"]): entry}
            found.update(below)
        return found

    def mkdir(self, path: str, create_parents: bool = True) -> None:
        self._client.mkdir(self._unc(path), **self._login)

    def pipe_file(self, path: str, value: bytes) -> None:
        """Write under a temporary name and rename: whole or absent."""
        temporary, view = temporary_name(path), memoryview(value)
        try:
            with self._open(temporary, "wb") as file:
                sent = 0
                while sent < len(view):
                    sent += file.write(view[sent:])
            self._replace(temporary, path)
        except Exception:
            with suppress(Exception):  # the first error says what is wrong; leftovers go with a later listing
                self._client.remove(self._unc(temporary), **self._login)
            raise

    def cat_file(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        with self._open(path, "rb") as file:
            if start is None or end is None:
                return file.read()
            file.seek(start)
            parts = []
            missing = end - start
            while missing and (part := file.read(missing)):
                parts.append(part)
                missing -= len(part)
            return b"".join(parts)

    def rm_file(self, path: str) -> None:
        self._client.remove(self._unc(path), **self._login)

    def rmdir(self, path: str) -> None:
        self._client.rmdir(self._unc(path), **self._login)

    def space(self, path: str) -> Space:
        """Return the room of the volume `path` is on, as far as this user may use it."""
        volume = self._client.stat_volume(self._unc(path), **self._login)
        return Space(volume.total_size, volume.caller_available_size)

    def close(self) -> None:
        """Give back the connection, whatever its state; the next call makes another."""
        self._client.reset_connection_cache(fail_on_error=False, connection_cache=self._connections)

    def _replace(self, old: str, new: str) -> None:
        """Rename over what is there.  While somebody reads what was deleted, its name is not free: wait for that."""
        for _ in range(_REPLACE_ATTEMPTS - 1):
            try:
                return self._client.replace(self._unc(old), self._unc(new), **self._login)
            except OSError as error:
                if getattr(error, "ntstatus", 0) not in _IN_USE:
                    raise
            time.sleep(_REPLACE_PAUSE_S)
        self._client.replace(self._unc(old), self._unc(new), **self._login)

    def _open(self, path: str, mode: str) -> _File:
        return self._client.open_file(self._unc(path), mode, buffering=0, share_access=_SHARE_ACCESS, **self._login)

    def _unc(self, path: str) -> str:
        return f"\\\\{self._host}" + path.replace("/", "\\")


def smb_place(place: FsspecPlace) -> tuple[Arguments, str]:
    """Return the arguments for `host[:port]/share/folder`, and the root `/share/folder`."""
    address, _, path = place.target.partition("/")
    user, at, address = address.rpartition("@")
    host, _, port = address.partition(":")
    arguments: Arguments = {"host": host, "timeout_s": place.timeout_s}
    if port:
        arguments["port"] = port
    if at:
        arguments["username"] = unquote(user)
    return arguments, f"/{unquote(path).strip('/')}"


def smb_space(filesystem: FileSystem, root: str) -> Space | None:
    """Return the room at `root`."""
    return cast(SmbFileSystem, filesystem).space(root)


def smb_close(filesystem: FileSystem) -> None:
    """Give back the connection."""
    cast(SmbFileSystem, filesystem).close()

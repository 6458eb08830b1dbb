"""A source in anything that PyFilesystem opens: archives (`zip://`, `tar://`), storages without a driver of ours.

Used by opening.py.  Any number of threads; each opens a file system of its own, as most are made for one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TypeVar

from cuckoo_mount.clouds import fsimport
from cuckoo_mount.clouds.base import CloudSettings
from cuckoo_mount.clouds.fsimport import FS, OpenerError
from cuckoo_mount.clouds.pyfilesystem import url_with_settings
from cuckoo_mount.clouds.translate import describe, translate
from cuckoo_mount.clouds.walking import Entry
from cuckoo_mount.errors import UsageError
from cuckoo_mount.sources.base import PART_BYTES

T = TypeVar("T")


class PyFilesystemSource:
    """Files of a PyFilesystem."""

    def __init__(self, settings: CloudSettings) -> None:
        """Open it once, to know that it can be.  Raises: UsageError, CloudError."""
        self._settings = settings
        self._url = url_with_settings(settings, settings.url)
        self._lock = threading.Lock()
        self._opened: list[FS] = []
        self._local = threading.local()
        try:
            self._file_system()
        except OpenerError as error:
            raise UsageError(f"{settings.name} cannot be opened: {describe(error, settings)}; check the URL") from error
        except Exception as error:
            raise translate(error, settings, "") from error

    def entries(self, folder: str) -> list[Entry]:
        """See base.py."""
        return self._call(folder, lambda opened: _entries(opened, folder))

    def blocks(self, name: str, size_bytes: int) -> Iterator[bytes]:
        """See base.py.  Some drivers load the whole file before the first block."""
        file = self._call(name, lambda opened: opened.openbin(name, "r"))
        try:
            while data := self._call(name, lambda opened: file.read(PART_BYTES)):
                yield data
        finally:
            with suppress(Exception):  # it was only read
                file.close()

    def close(self) -> None:
        """See base.py."""
        with self._lock:
            opened, self._opened = self._opened, []
        for one in opened:
            with suppress(Exception):  # it was only read
                one.close()

    def _file_system(self) -> FS:
        found: FS | None = getattr(self._local, "opened", None)
        if found is None:
            found = self._local.opened = fsimport.open_fs(self._url, writeable=False)
            with self._lock:
                self._opened.append(found)
        return found

    def _call(self, name: str, action: Callable[[FS], T]) -> T:
        try:
            return action(self._file_system())
        except Exception as error:
            raise translate(error, self._settings, name) from error


def _entries(opened: FS, folder: str) -> list[Entry]:
    found = []
    for info in opened.scandir(f"/{folder}", namespaces=["details"]):
        if info.is_dir:
            found.append(Entry(info.name, None))
        else:
            changed = info.modified
            found.append(Entry(info.name, info.size, 0.0 if changed is None else changed.timestamp()))
    return found

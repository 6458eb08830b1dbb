"""Listings of storages with real folders, and what puts need: temporary names, a lock per name.

Used by the drivers for WebDAV, SFTP and FTP.  Any thread.
"""

from __future__ import annotations

import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from attrs import frozen

from cuckoo_mount.clouds.base import ObjectInfo
from cuckoo_mount.clouds.names import is_object_name

LISTING_THREADS: Final = 4
"""Folders that are asked for at a time: a drive has 256 with packs in them."""
LEFTOVER_AGE_S: Final = 3 * 24 * 3600.0
"""Temporary files older than this belong to no put that is still running, also where a clock is a day off."""
_NAME_LOCKS: Final = 256
_TEMPORARY: Final = re.compile(r"~put-[0-9a-f]{16}")


@frozen(slots=True)
class Entry:
    """What lies directly in a folder: name there, size in bytes (None: a folder), time of change (0: unknown).

    The time is the server's, in s since 1970.
    """

    name: str
    size_bytes: int | None
    changed_s: float = 0.0


class NameLocks:
    """A lock per name, for puts: some servers stumble over two of the same object at a time."""

    def __init__(self) -> None:
        self._locks = [threading.Lock() for _ in range(_NAME_LOCKS)]

    def of(self, name: str) -> threading.Lock:
        """Return the lock of object `name`, which it may share with others."""
        return self._locks[hash(name) % _NAME_LOCKS]


def temporary_name(name: str) -> str:
    """Return a name beside object `name` that no object can have and nobody else uses."""
    folder, slash, _ = name.rpartition("/")
    return f"{folder}{slash}~put-{secrets.token_hex(8)}"


def is_leftover(entry: Entry) -> bool:
    """Return whether an entry is what a put left behind that was interrupted long ago."""
    aged = 0 < entry.changed_s < time.time() - LEFTOVER_AGE_S
    return aged and entry.size_bytes is not None and _TEMPORARY.fullmatch(entry.name) is not None


def walk(prefix: str, list_folder: Callable[[str], list[Entry]], remove: Callable[[str], None]) -> Iterator[ObjectInfo]:
    """Yield every object below `prefix`, and remove what interrupted puts left there.

    `list_folder` is given a prefix and returns what lies directly in it; nothing if it is not there.  It is called by
    several threads.  `remove` is given a full name and may not raise.  Raises: what `list_folder` raises.
    """
    folders = [prefix]
    with ThreadPoolExecutor(LISTING_THREADS) as threads:
        while folders:
            # For one, the usual case, no thread is started.
            listings = threads.map(list_folder, folders) if folders[1:] else map(list_folder, folders)
            below = []
            for folder, entries in zip(folders, listings, strict=True):
                for entry in entries:
                    name = f"{folder}{entry.name}"
                    if not is_object_name(name):
                        if is_leftover(entry):
                            remove(name)
                    elif entry.size_bytes is None:
                        below.append(f"{name}/")
                    else:
                        yield ObjectInfo(name, entry.size_bytes)
            folders = below

"""What to tell when SQLite or the disk refuses: with the reason that SQLite does not name, a full disk."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import apsw

from cuckoo_mount.errors import MetadataError

FULL_BELOW_BYTES: Final = 8 << 20
"""SQLite makes its shared memory and its log larger when it opens a database; with less room it may fail."""


def is_full(folder: Path) -> bool:
    """Return whether the disk with a folder has hardly any room left; one that does not tell is not full."""
    try:
        found = os.statvfs(folder)
    except OSError:
        return False
    return found.f_bavail * found.f_frsize < FULL_BELOW_BYTES


def metadata_trouble(doing: str, path: Path, error: apsw.Error | OSError) -> MetadataError:
    """Return the error for "cannot `doing` the metadata `path`", which names a full disk as the cause if it is full."""
    what = f"cannot {doing} the metadata {path}: {error}"
    return MetadataError(f"{what}; the disk there is full, make room and try again" if is_full(path.parent) else what)

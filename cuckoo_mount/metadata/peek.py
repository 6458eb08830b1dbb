"""A look at a store's settings from outside: before any loop runs, and while another process may have the store open.

Used by slots.py.  Blocks for the local disk; changes nothing, starts no thread.  What is not committed yet is not seen.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Final

import apsw

from cuckoo_mount.errors import MetadataError
from cuckoo_mount.metadata.catalogue import SETTINGS_SQL
from cuckoo_mount.metadata.migrations import check_identity

_PATIENCE_MS: Final = 10_000


def peek_settings(path: Path, prefix: str) -> dict[str, str]:
    """Return the drive's settings whose key begins with `prefix`.

    Raises: MetadataError when there is no store, or it is damaged, not ours, or made by a newer program.
    """
    try:
        with closing(apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)) as connection:
            connection.set_busy_timeout(_PATIENCE_MS)
            check_identity(connection)
            return dict(connection.execute(SETTINGS_SQL, (prefix, prefix)))
    except apsw.Error as error:
        raise MetadataError(f"cannot read the metadata {path}: {error}") from error

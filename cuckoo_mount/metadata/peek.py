"""A look at a store's settings from outside: before any loop runs, and while another process may have the store open.

Used by slots.py, replay.py and whoever compares a store with its clouds.
Blocks for the local disk; changes nothing, starts no thread.  What is not committed yet is not seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

import apsw

from cuckoo_mount.metadata.catalogue import CLOUD_USES_SQL, LOCAL_SETTINGS_SQL, SETTINGS_SQL, use_of
from cuckoo_mount.metadata.migrations import check_identity
from cuckoo_mount.metadata.schema import CATALOGUE_FROM
from cuckoo_mount.metadata.trouble import metadata_trouble
from cuckoo_mount.types import CloudUse

_PATIENCE_MS: Final = 10_000


def peek_settings(path: Path, prefix: str) -> dict[str, str]:
    """Return the drive's settings whose key begins with `prefix`.

    Raises: MetadataError when there is no store, or it is damaged, not ours, or made by a newer program.
    """
    with _open(path) as connection:
        return dict(connection.execute(SETTINGS_SQL, (prefix, prefix)))


def peek_local(path: Path, prefix: str) -> dict[str, str]:
    """Return the settings of this machine's copy whose key begins with `prefix`.  Raises: as `peek_settings`."""
    with _open(path) as connection:
        return dict(connection.execute(LOCAL_SETTINGS_SQL, (prefix, prefix)))


def peek_clouds(path: Path) -> dict[str, CloudUse]:
    """Return what the drive does with each of the clouds on its list, by name.  Raises: as `peek_settings`."""
    with _open(path) as connection:
        rows = connection.execute(CLOUD_USES_SQL).fetchall()
        return {str(name): use_of(None if value is None else str(value)) for name, value in rows}


def peek_changes(path: Path) -> int:
    """Return how many rows have changes that never were in an epoch that reached the clouds: `count_changes`.

    Raises: as `peek_settings`.
    """
    with _open(path) as connection:
        return count_changes(connection)


def peek_own_changes(path: Path) -> tuple[int, int]:
    """Return how much of the store in file `path` is in no epoch: rows that somebody changed and dirty chunks; rows of
    the catalogue, which changes by itself.  Raises: as `peek_settings`."""
    with _open(path) as connection:
        ((catalogue,),) = connection.execute("SELECT count(*) FROM outbox WHERE tbl >= ?", (CATALOGUE_FROM,)).fetchall()
        assert isinstance(catalogue, int), "a count is a number"
        return count_changes(connection) - catalogue, catalogue


def count_changes(connection: apsw.Connection) -> int:
    """Return how many rows are in the outbox, and chunks dirty: 0 means that the clouds have all of it."""
    ((changes,),) = connection.execute(
        """SELECT (SELECT count(*) FROM outbox WHERE tbl > 0) + (SELECT count(*) FROM held WHERE dirty = 1)
        + (SELECT count(*) FROM partial)"""
    ).fetchall()
    assert isinstance(changes, int), "a count is a number"
    return changes


@contextmanager
def _open(path: Path) -> Iterator[apsw.Connection]:
    try:
        with closing(apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)) as connection:
            connection.set_busy_timeout(_PATIENCE_MS)
            check_identity(connection)
            yield connection
    except apsw.Error as error:
        raise metadata_trouble("read", path, error) from error

"""Reads all of a live store in threads, through connections of their own, while the loop goes on.

Used by checks.py.  What is seen is what was committed last; every commit of a store that is whole is whole.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import apsw
import trio

from cuckoo_mount.metadata.counters import Row
from cuckoo_mount.metadata.problems import CHECKS, Check, Problem
from cuckoo_mount.metadata.records import DamagedName
from cuckoo_mount.metadata.trouble import metadata_trouble
from cuckoo_mount.types import LOST_PACK, ROOT_INODE, InodeNo, VersionNo

ROWS_MAX: Final = 10_000
"""So many rows of one check are kept at a time; repairs go on until there are no more."""
_PATIENCE_MS: Final = 10_000
_PAGE_CACHE_KIB: Final = 16 << 10
_DAMAGED: Final = """
    INSERT INTO temp.damaged SELECT DISTINCT c.ino FROM chunk c LEFT JOIN version v ON v.version = c.version
    LEFT JOIN held h ON h.ino = c.ino AND h.idx = c.idx AND h.version = c.version AND h.dirty = 1
    WHERE v.pack = ? OR (v.version IS NULL AND h.ino IS NULL)
    UNION SELECT ino FROM chunk WHERE version IN (SELECT version FROM temp.lost)"""
_NAMES: Final = """
    SELECT d.parent, d.name, d.ino FROM dentry d WHERE d.ino IN (SELECT ino FROM temp.damaged)
    AND NOT EXISTS (SELECT 1 FROM inode i WHERE i.ino = d.ino AND i.mode & 61440 = 16384) ORDER BY d.ino"""
_FOLDERS: Final = """
    SELECT d.parent, d.name FROM inode i JOIN dentry d ON d.parent = i.parent AND d.ino = i.ino WHERE i.ino = ?"""


async def find_problems(path: Path) -> list[Problem]:
    """Return what is wrong in the store in file `path`, one check after the other.

    Checkpoint; a cancellation takes effect after the check that runs.  Raises: MetadataError.
    """
    found = []
    for check in CHECKS:
        problem = await trio.to_thread.run_sync(_run, path, check)
        if problem is not None:
            found.append(problem)
    return found


def _run(path: Path, check: Check) -> Problem | None:
    with _connected(path) as connection:
        rows = []
        count = 0
        for row in connection.execute(check.sql):
            count += 1
            if count <= ROWS_MAX:
                rows.append(row)
    return Problem(check.kind, check.text, tuple(rows), count) if rows else None


def damaged_names(path: Path, versions: Collection[VersionNo]) -> list[DamagedName]:
    """Return every name of every file with a chunk that cannot be read, by inode.  Blocks.  Raises: MetadataError.

    `versions`: those that are known to be lost on the clouds; the metadata knows of others: pack 0, and chunks whose
    version is nowhere.
    """
    with _connected(path) as connection:
        connection.execute("BEGIN")  # one moment for all of it
        connection.execute("CREATE TEMP TABLE lost (version INTEGER PRIMARY KEY)")
        connection.execute("CREATE TEMP TABLE damaged (ino INTEGER PRIMARY KEY)")
        connection.executemany("INSERT INTO temp.lost VALUES (?)", ((version,) for version in versions))
        connection.execute(_DAMAGED, (LOST_PACK,))
        rows: list[Row] = connection.execute(_NAMES).fetchall()
        folders: dict[int, bytes] = {ROOT_INODE: b""}
        return [
            DamagedName(InodeNo(parent), name, InodeNo(ino), _folder(connection, parent, folders) + b"/" + name)
            for parent, name, ino in rows
        ]


def _folder(connection: apsw.Connection, ino: int, known: dict[int, bytes]) -> bytes:
    """Return the path of a directory, b"" for the root; of one that cannot be reached, what there is of it."""
    above: list[tuple[int, bytes]] = []
    seen = set()
    at = ino
    while at not in known:
        row: Row | None = connection.execute(_FOLDERS, (at,)).fetchone()
        if row is None or at in seen:
            known[at] = b"?"
            break
        seen.add(at)
        above.append((at, row[1]))
        at = row[0]
    path = known[at]
    for number, name in reversed(above):
        path = known.setdefault(number, path + b"/" + name)
    return path


@contextmanager
def _connected(path: Path) -> Iterator[apsw.Connection]:
    """Open the store for reading.  Raises: MetadataError, also in the place of what SQLite raises inside."""
    try:
        connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
        try:
            connection.set_busy_timeout(_PATIENCE_MS)
            connection.pragma("cache_size", -_PAGE_CACHE_KIB)
            connection.pragma("temp_store", "memory")
            yield connection
        finally:
            connection.close(True)
    except apsw.Error as error:
        raise metadata_trouble("check", path, error) from error

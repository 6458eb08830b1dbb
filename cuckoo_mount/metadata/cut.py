"""A cut: the state of a live store at one moment, read beside the work that goes on.

Used by whatever writes epochs.  `open_cut`, the reading methods and `close` block and run in a thread, one at a time;
the moment itself is `Journal.take_cut`, one step in the loop, which marks the outbox, commits, and has this second
connection begin its read transaction.  Whatever is changed afterwards is in the next cut.

While a cut is open SQLite cannot start the write-ahead log from its beginning, so the log grows by all that is
committed meanwhile; log.py restarts it soon after the cut is closed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import apsw

from cuckoo_mount.errors import MetadataError
from cuckoo_mount.metadata.counters import Row
from cuckoo_mount.metadata.records import JournalRecord
from cuckoo_mount.metadata.schema import FLOOR_PREFIX, JOURNALED, JournaledTable
from cuckoo_mount.metadata.trouble import metadata_trouble
from cuckoo_mount.types import ChunkIndex, DirtyChunk, InodeNo, VersionNo

_PATIENCE_MS: Final = 10_000
_PAGE_CACHE_KIB: Final = 8 << 10
_DIRTY: Final = """
    SELECT h.ino, h.idx, h.version, h.length,
        EXISTS (SELECT 1 FROM partial p WHERE p.ino = h.ino AND p.idx = h.idx)
    FROM held h WHERE h.dirty = 1 ORDER BY h.version"""


class Cut:
    """One read transaction, from `Journal.take_cut` to `close`."""

    def __init__(self, path: Path, connection: apsw.Connection) -> None:
        self._path = path
        self._connection = connection
        self._mark = 0

    @property
    def mark(self) -> int:
        """The outbox's rows up to this one are in the cut: what `clear_outbox` is told once they reached the clouds."""
        assert self._mark, "the cut was not taken yet"
        return self._mark

    def begin(self, mark: int) -> None:
        """Begin to read the state that was just committed; for `Journal.take_cut` only.  Does not wait for the disk."""
        assert not self._mark, "a cut is taken once"
        try:
            self._connection.execute("BEGIN")
            seen = self._connection.execute("SELECT max(seq) FROM outbox").fetchall()
        except apsw.Error as error:
            raise self._trouble(error) from error
        assert seen == [(mark,)], f"the cut sees {seen} where the commit ended with {mark}"
        self._mark = mark

    def journal(self) -> Iterator[JournalRecord]:
        """Yield what changed since the outbox was last cleared, and the floors of the sequences.

        Every row once, by table and key.  Raises: MetadataError.
        """
        yield from self._floors()
        for table in JOURNALED:
            width = len(table.keys)
            for row in self._rows(_changes_sql(table)):
                yield JournalRecord(table.name, row[:width], row[width + 1 :] if row[width] else None)

    def snapshot(self) -> Iterator[JournalRecord]:
        """Yield all rows of all journaled tables, by table and key, and the floors.  Raises: MetadataError."""
        yield from self._floors()
        for table in JOURNALED:
            width = len(table.keys)
            columns = ", ".join((*table.keys, *table.values))
            for row in self._rows(f"SELECT {columns} FROM {table.name} ORDER BY {', '.join(table.keys)}"):
                yield JournalRecord(table.name, row[:width], row[width:])

    def dirty(self) -> Iterator[tuple[DirtyChunk, bool]]:
        """Yield the versions that chunk rows of this cut name and that are stored nowhere; whether each is partial.

        An epoch is complete when each of them has a version row among its records, or its chunk row names another.
        """
        for ino, index, version, length, partial in self._rows(_DIRTY):
            yield DirtyChunk(InodeNo(ino), ChunkIndex(index), VersionNo(version), length), partial == 1

    def close(self) -> None:
        """End the transaction.  May be called twice; an iterator that is not at its end cannot go on."""
        self._connection.close(True)

    def _floors(self) -> Iterator[JournalRecord]:
        """Yield the numbers not given yet, as settings that replay takes out again."""
        for name, number in self._rows("SELECT name, next FROM sequence WHERE name <> 'log' ORDER BY name"):
            yield JournalRecord("setting", (f"{FLOOR_PREFIX}{name}",), (str(number),))

    def _rows(self, sql: str) -> Iterator[Row]:
        assert self._mark, "the cut was not taken yet"
        try:
            yield from self._connection.execute(sql)
        except apsw.Error as error:
            raise self._trouble(error) from error

    def _trouble(self, error: apsw.Error) -> MetadataError:
        return metadata_trouble("read", self._path, error)


def open_cut(path: Path) -> Cut:
    """Open a second connection to the live store in file `path`, for one cut.  Blocks.  Raises: MetadataError."""
    try:
        connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
        try:
            connection.set_busy_timeout(_PATIENCE_MS)
            connection.pragma("cache_size", -_PAGE_CACHE_KIB)
            connection.pragma("temp_store", "memory")
            # Here, not in the loop: the first statement reads the schema.
            connection.execute("SELECT max(seq) FROM outbox").fetchall()
        except BaseException:
            connection.close(True)
            raise
    except apsw.Error as error:
        raise metadata_trouble("read", path, error) from error
    return Cut(path, connection)


def _changes_sql(table: JournaledTable) -> str:
    """Return the statement for (key, is it there, values) of every row of a table that the outbox names."""
    keys = ", ".join(("o.k1", "o.k2")[: len(table.keys)])
    values = ", ".join(f"t.{column}" for column in table.values)
    on = " AND ".join(f"t.{key} = o.k{place}" for place, key in enumerate(table.keys, start=1))
    return (
        f"SELECT {keys}, t.{table.keys[0]} IS NOT NULL, {values} FROM outbox o LEFT JOIN {table.name} t ON {on}"
        f" WHERE o.tbl = {table.number} ORDER BY o.k1, o.k2"
    )

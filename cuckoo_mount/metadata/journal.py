"""The outbox: which journaled rows changed, what they are now, and how they are put into another store.

Used by store.py.  Runs in the loop, never waits but to prepare a cut.  The triggers of schema.py fill the outbox
(I-14); here it is read and emptied.  What goes to the clouds is read by cut.py and put into other stores by replay.py;
`journal`, `clear_journal` and `replay` do the same for a few rows of an open store, without counting anything anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import trio

from cuckoo_mount.errors import MetadataError
from cuckoo_mount.metadata.cut import Cut, open_cut
from cuckoo_mount.metadata.database import Part, Value
from cuckoo_mount.metadata.records import JournalRecord
from cuckoo_mount.metadata.schema import CATALOGUE_FROM, JOURNALED, JournaledTable

_BY_NUMBER: Final[Mapping[int, JournaledTable]] = {table.number: table for table in JOURNALED}
_BY_NAME: Final[Mapping[str, JournaledTable]] = {table.name: table for table in JOURNALED}
NUMBERED: Final = (
    ("inode", "SELECT max(ino) FROM inode"),
    ("cookie", "SELECT max(cookie) FROM dentry"),
    ("version", "SELECT max(version) FROM (SELECT version FROM chunk UNION ALL SELECT version FROM version)"),
    ("pack", "SELECT max(number) FROM pack"),
)
_MARK_SQL: Final = """
    INSERT INTO outbox (tbl, k1, k2) SELECT 0, coalesce(max(seq), 0) + 1, 0 FROM outbox RETURNING seq"""
_COUNT_SQL: Final = "SELECT count(*) FROM (SELECT 1 FROM outbox WHERE tbl BETWEEN ? AND ? LIMIT ?)"
PUT_LOCAL_SQL: Final = """
    INSERT INTO local_setting (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value"""


class Journal(Part):
    """See `Metadata` for the public methods of the protocol."""

    async def journal(self, limit: int) -> list[JournalRecord]:
        records = []
        for number, first, second in self._db.rows(
            "SELECT tbl, k1, k2 FROM outbox WHERE tbl > 0 ORDER BY seq LIMIT ?", (limit,)
        ):
            table = _BY_NUMBER[number]
            key: tuple[int | bytes | str, ...] = (first, second)[: len(table.keys)]
            records.append(JournalRecord(table.name, key, self._db.row(table.select_sql, key)))
        return records

    async def clear_journal(self, records: Sequence[JournalRecord]) -> None:
        """As the protocol says; a row counts as unchanged if its values are those of the record.

        To be called in the order of the `journal` calls, else a row that changed there and back could be left with the
        value between in the clouds.
        """
        with self._db.change:
            for record in records:
                table = _BY_NAME[record.table]
                if self._db.row(table.select_sql, record.key) == record.values:
                    self._leave_outbox(table, record.key)

    async def open_cut(self) -> Cut:
        return await trio.to_thread.run_sync(open_cut, self._db.path)

    async def take_cut(self, cut: Cut) -> int:
        """As the protocol says.

        The mark keeps its place at the end of the outbox: without it a row that changes again while it is the last one
        would get the same `seq` once more, and `clear_outbox` would take the newer change for the one in the cut.
        """
        self._db.ready()
        ((mark,),) = self._db.rows(_MARK_SQL)
        self._db.commit()
        cut.begin(mark)
        return int(mark)

    async def clear_outbox(self, mark: int, local: Mapping[str, str | None]) -> None:
        with self._db.change:
            self._db.run("DELETE FROM outbox WHERE seq <= ?", (mark,))
            self._put_locals(local)

    async def set_locals(self, local: Mapping[str, str | None]) -> None:
        with self._db.change:
            self._put_locals(local)

    def _put_locals(self, local: Mapping[str, str | None]) -> None:
        for key, value in local.items():
            if value is None:
                self._db.run("DELETE FROM local_setting WHERE key = ?", (key,))
            else:
                self._db.run(PUT_LOCAL_SQL, (key, value))

    def outbox_changes(self, limit: int) -> tuple[int, int]:
        ((content,),) = self._db.rows(_COUNT_SQL, (1, CATALOGUE_FROM - 1, limit))
        ((catalogue,),) = self._db.rows(_COUNT_SQL, (CATALOGUE_FROM, len(JOURNALED), limit))
        return content, catalogue

    async def replay(self, records: Sequence[JournalRecord]) -> None:
        """Make the rows what `records`, in their order, say; they do not enter the outbox, and sequences go past them.

        Raises: MetadataError for a table or a number of columns that this program does not know.
        """
        with self._db.change:
            for record in records:
                table = _BY_NAME.get(record.table)
                values = record.values if record.values is not None else ()
                if table is None or len(record.key) != len(table.keys):
                    raise MetadataError(f"the journal has a record for {record.table}{record.key}, unknown here")
                if record.values is None:
                    self._db.run(table.delete_sql, record.key)
                elif len(values) == len(table.values):
                    self._db.run(table.put_sql, (*record.key, *values))
                else:
                    raise MetadataError(f"the journal has {len(values)} values for a row of {table.name}")
                self._leave_outbox(table, record.key)
            for name, sql in NUMBERED:
                self._db.run(f"UPDATE sequence SET next = max(next, coalesce(({sql}), 0) + 1) WHERE name = ?", (name,))
        self._db.forget_reserves()
        self._db.forget_counters()

    def _leave_outbox(self, table: JournaledTable, key: tuple[Value, ...]) -> None:
        second = key[1] if len(key) > 1 else 0
        self._db.run("DELETE FROM outbox WHERE tbl = ? AND k1 = ? AND k2 = ?", (table.number, key[0], second))

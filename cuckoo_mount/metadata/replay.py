"""Makes a store from the records of epochs, or brings a closed one up to date.

Used by recovery and at mount.  Blocks; runs in a thread, while nobody has the store open.  All or nothing: the records
come from iterators that may find out at their end that they are damaged, and whatever they raise leaves no trace.

Afterwards everything derived is right, whatever the records said (docs/format.md, "Replay"): `version.refs`,
`pack.live`, `pack.used` and `inode.chunks` are counted anew; versions that nothing names are removed, for an epoch
carries the place of versions that were overwritten while they were sent; a pack is dead exactly if it has no version;
the sequences are past all that was ever given.

Local settings are the caller's: what it gives as `local` is set in the same transaction.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Final

import apsw
from attrs import frozen

from cuckoo_mount.errors import MetadataError
from cuckoo_mount.metadata.journal import NUMBERED, PUT_LOCAL_SQL
from cuckoo_mount.metadata.migrations import check_identity, drop_triggers, make_schema, make_triggers, migrate
from cuckoo_mount.metadata.peek import count_changes
from cuckoo_mount.metadata.records import JournalRecord
from cuckoo_mount.metadata.schema import FLOOR_PREFIX, JOURNALED
from cuckoo_mount.metadata.trouble import metadata_trouble

_BY_NAME: Final = {table.name: table for table in JOURNALED}
_PAGE_CACHE_KIB: Final = 64 << 10
_PATIENCE_MS: Final = 10_000
_SHOWN: Final = 3

_UNPLACED: Final = """
    SELECT c.ino, c.idx, c.version FROM chunk c
    WHERE NOT EXISTS (SELECT 1 FROM version v WHERE v.version = c.version)"""
_UNNAMED: Final = """
    DELETE FROM version WHERE NOT EXISTS (SELECT 1 FROM chunk c WHERE c.version = version.version)"""
_HOMELESS: Final = "SELECT v.version, v.pack FROM version v WHERE v.pack NOT IN (SELECT number FROM pack)"
_COUNT: Final = (
    """UPDATE version SET refs = counted FROM (SELECT version AS named, count(*) AS counted FROM chunk GROUP BY version)
    WHERE version = named AND refs <> counted""",
    """UPDATE pack SET live = sums.live, used = sums.used, dead_epoch = NULL FROM (
        SELECT pack, sum(plain) AS live, sum(length) AS used FROM version GROUP BY pack) sums
    WHERE sums.pack = number AND (pack.live, pack.used, pack.dead_epoch) IS NOT (sums.live, sums.used, NULL)""",
    """UPDATE inode SET chunks = (SELECT count(*) FROM chunk c WHERE c.ino = inode.ino)
    WHERE chunks <> (SELECT count(*) FROM chunk c WHERE c.ino = inode.ino)""",
)
_BURY: Final = """
    UPDATE pack SET live = 0, used = 0, dead_epoch = coalesce(dead_epoch, ?)
    WHERE NOT EXISTS (SELECT 1 FROM version v WHERE v.pack = number)
    AND (live <> 0 OR used <> 0 OR dead_epoch IS NULL)"""
_RAISE_FLOORS: Final = """
    UPDATE sequence SET next = max(next, coalesce((
        SELECT CAST(value AS INTEGER) FROM setting WHERE key = ? || name), 0))"""
_STALE_HELD: Final = """
    DELETE FROM held WHERE NOT EXISTS (
        SELECT 1 FROM chunk c WHERE c.ino = held.ino AND c.idx = held.idx AND c.version = held.version)"""

_FINISHED: Final = "DELETE FROM pack_intent WHERE pack_id IN (SELECT pack_id FROM pack)"
"""A copy of this store, or this one before it was put back from a copy, went on and finished what is begun here: what
an epoch names must not be withdrawn as an upload that was interrupted."""


@frozen(slots=True)
class Replayed:
    """What was done: records read; versions nothing named, removed; packs found to have no version left."""

    records: int
    versions_removed: int
    packs_buried: int


def build_store(
    path: Path, parts: Iterable[Iterable[JournalRecord]], *, epoch: int, local: Mapping[str, str]
) -> Replayed:
    """Make a store in file `path` from a snapshot's records and those of the journals after it, oldest first.

    `epoch`: number of the last of them.  The file is complete and durable, or is not there; a file `<path>.building`
    may be left by a crash, and the next try removes it.
    Raises: MetadataError (there is a file already, or the records make no store), and whatever `parts` raise.
    """
    if path.exists():
        raise MetadataError(f"{path} is there already; move it away first")
    building = path.with_name(f"{path.name}.building")
    try:
        building.unlink(missing_ok=True)
        with closing(apsw.Connection(str(building))) as connection:
            done = _fill(connection, parts, epoch, local)
        _sync(building)
        os.rename(building, path)
        _sync(path.parent)
    except (apsw.Error, OSError) as error:
        building.unlink(missing_ok=True)
        raise metadata_trouble("make", path, error) from error
    except BaseException:
        building.unlink(missing_ok=True)
        raise
    return done


def rebuild_store(
    path: Path, parts: Iterable[Iterable[JournalRecord]], *, epoch: int, local: Mapping[str, str]
) -> Replayed:
    """As `build_store`, in place of the closed store that is in file `path`; what that holds of chunks is forgotten.

    Whatever is raised, the old store is as it was.
    """
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    done = build_store(new, parts, epoch=epoch, local=local)
    try:
        # A write-ahead log that stays behind would be taken for that of the new file.
        with closing(apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)) as connection:
            connection.set_busy_timeout(_PATIENCE_MS)
            check_identity(connection)
            connection.pragma("journal_mode", "delete")
        os.rename(new, path)
        _sync(path.parent)
    except (apsw.Error, OSError) as error:
        raise metadata_trouble("replace", path, error) from error
    return done


def catch_up(path: Path, parts: Iterable[Iterable[JournalRecord]], *, epoch: int, local: Mapping[str, str]) -> Replayed:
    """Apply journals, oldest first, to the closed store in file `path`, whose state is that of the epoch before them.

    What is held of chunks that did not change stays held.  Durable when it returns.
    Raises: MetadataError (the store has changes of its own, or the records do not fit), and whatever `parts` raise;
    the store is then as it was.
    """
    try:
        with closing(apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)) as connection:
            connection.set_busy_timeout(_PATIENCE_MS)
            check_identity(connection)
            # Before the migration, whose changes need not travel: who wrote the epochs has made them, too.
            if count_changes(connection):
                raise MetadataError(f"the metadata {path} have changes that are on no cloud: nothing was replayed")
            migrate(connection)
            _use_memory(connection)
            connection.pragma("synchronous", "full")
            connection.execute("BEGIN IMMEDIATE")
            try:
                drop_triggers(connection)
                done = _apply(connection, parts, epoch, local)
                connection.execute(_STALE_HELD)
                connection.execute(_FINISHED)
                connection.execute("DELETE FROM outbox")
                make_triggers(connection)
                connection.execute("COMMIT")
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
            connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
    except apsw.Error as error:
        raise metadata_trouble("replay into", path, error) from error
    return done


def _fill(
    connection: apsw.Connection, parts: Iterable[Iterable[JournalRecord]], epoch: int, local: Mapping[str, str]
) -> Replayed:
    """Make tables, rows and indexes in an empty file that nobody knows yet: no journal, no syncs."""
    connection.pragma("journal_mode", "off")
    connection.pragma("synchronous", "off")
    connection.pragma("locking_mode", "exclusive")
    _use_memory(connection)
    make_schema(connection, lambda _: None)
    connection.execute("BEGIN IMMEDIATE")
    drop_triggers(connection)
    # One sort at the end instead of a place to find for each row.
    indexes = connection.execute(
        "SELECT name, sql FROM sqlite_schema WHERE type = 'index' AND sql IS NOT NULL"
    ).fetchall()
    for name, _ in indexes:
        connection.execute(f'DROP INDEX "{name}"')
    done = _apply(connection, parts, epoch, local, indexes=[str(sql) for _, sql in indexes])
    make_triggers(connection)
    connection.execute("COMMIT")
    return done


def _apply(
    connection: apsw.Connection,
    parts: Iterable[Iterable[JournalRecord]],
    epoch: int,
    local: Mapping[str, str],
    indexes: Iterable[str] = (),
) -> Replayed:
    """Put all rows in, then mend; part of the caller's transaction, without triggers."""
    records = sum(_put(connection, part) for part in parts)
    for statement in indexes:
        connection.execute(statement)
    removed, buried = _mend(connection, epoch)
    connection.executemany(PUT_LOCAL_SQL, local.items())
    return Replayed(records, removed, buried)


def _put(connection: apsw.Connection, records: Iterable[JournalRecord]) -> int:
    """Make the rows what the records, in their order, say; return how many there were."""
    counted = _Counting(records)
    for name, same_table in groupby(counted, attrgetter("table")):
        table = _BY_NAME.get(name)
        if table is None:
            raise MetadataError(f"the epoch has rows of {name}, unknown here; update cuckoo-mount")
        for gone, run in groupby(same_table, _is_gone):
            sql = table.delete_sql if gone else table.put_sql
            connection.executemany(sql, (record.key + (record.values or ()) for record in run))
    return counted.count


def _is_gone(record: JournalRecord) -> bool:
    return record.values is None


class _Counting:
    """An iterator that counts."""

    def __init__(self, records: Iterable[JournalRecord]) -> None:
        self.count = 0
        self._records = records

    def __iter__(self) -> Iterator[JournalRecord]:
        for record in self._records:
            self.count += 1
            yield record


def _mend(connection: apsw.Connection, epoch: int) -> tuple[int, int]:
    """Make everything derived right; return how many versions were removed and packs buried."""
    connection.execute(_RAISE_FLOORS, (FLOOR_PREFIX,))
    connection.execute("DELETE FROM setting WHERE substr(key, 1, length(?)) = ?", (FLOOR_PREFIX, FLOOR_PREFIX))
    for name, sql in NUMBERED:
        connection.execute(f"UPDATE sequence SET next = max(next, coalesce(({sql}), 0) + 1) WHERE name = ?", (name,))
    _refuse(connection, _UNPLACED, "chunks (inode, index, version) whose bytes are stored nowhere")
    connection.execute(_UNNAMED)
    removed = connection.changes()
    _refuse(connection, _HOMELESS, "versions (version, pack) in packs that are not in the catalogue")
    for statement in _COUNT:
        connection.execute(statement)
    connection.execute(_BURY, (epoch,))
    buried = connection.changes()
    if not connection.execute("SELECT 1 FROM inode WHERE ino = 1").fetchall():
        raise MetadataError("the epochs make no file system: they have no root directory")
    return removed, buried


def _refuse(connection: apsw.Connection, sql: str, what: str) -> None:
    found = connection.execute(f"{sql} LIMIT {_SHOWN}").fetchall()
    if found:
        raise MetadataError(f"the epoch is not complete, it has {what}, e.g. {found}; an older epoch may be")


def _use_memory(connection: apsw.Connection) -> None:
    connection.pragma("temp_store", "memory")
    connection.pragma("cache_size", -_PAGE_CACHE_KIB)


def _sync(path: Path) -> None:
    """Make a file, or the names in a folder, durable.  No connection to the file is open: closing would drop locks."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

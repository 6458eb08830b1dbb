"""The one write transaction: statements, atomic changes, commit, durability, failure.

Used by the other modules of this folder.  Everything here runs in the loop and, but for `make_durable` and `aclose`,
never waits; the connection is used in no other thread while the store is open.

A write transaction is open nearly always: a lookup in it costs a quarter of one outside.  `commit` ends it and begins
the next.  Every public change is whole or not at all: a single statement by itself, several inside `change`.  They are
run through one cursor and read to their end at once, so nothing is left running when a transaction ends.

Failure: when the disk refuses, SQLite may roll back everything since the last commit.  Then, and when a flush fails,
the store has failed for good: changes raise MetadataError until it is opened again; reads as well if changes that were
already answered are lost, since they would show the past.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import apsw
import trio
from attrs import define

from cuckoo_mount.errors import MetadataError
from cuckoo_mount.metadata.counters import Counters, Row
from cuckoo_mount.metadata.flush import SharedFlush
from cuckoo_mount.metadata.log import LogKeeper
from cuckoo_mount.metadata.reserve import Reserve

_BLOCKS = {"inode": 256, "cookie": 1024, "version": 4096, "pack": 16}
"""How many numbers a sequence reserves at a time: one UPDATE for so many nodes or versions."""

Value = int | str | bytes | None


@define(slots=True)
class _Reserve:
    """Numbers from `next` up to, not including, `limit` are ours to give."""

    next: int
    limit: int


class Change:
    """`with database.change:` makes several statements atomic.  One at a time: they do not nest."""

    __slots__ = ("_before", "_database")

    def __init__(self, database: Database) -> None:
        self._database = database
        self._before = 0

    def __enter__(self) -> None:
        self._database.ready()
        self._before = self._database.enter_savepoint()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._database.leave_savepoint(self._before, undo=kind is not None)


class Database:
    """One open store.  `counters` are valid after `ready`; see counters.py."""

    def __init__(
        self, path: Path, connection: apsw.Connection, keeper: LogKeeper, flush: SharedFlush, reserve: Reserve
    ) -> None:
        self.path = path
        self.change = Change(self)
        self.commits = 0
        self._connection = connection
        self._cursor = connection.cursor()
        self._keeper = keeper
        self._flush = flush
        self._reserve = reserve
        self._open = False
        self._closed = False
        self._in_change = False
        self._failure: str | None = None
        self._changes_seen = connection.total_changes()
        self._counters: Counters | None = None
        self._reserves = {name: _Reserve(0, 0) for name in _BLOCKS}
        self._outbox_rows = 0
        self._outbox_seen = -1
        connection.set_wal_hook(keeper.committed)

    # -- statements --

    def rows(self, sql: str, values: tuple[Value, ...] = ()) -> list[Row]:
        """Run one statement and return all its rows.  Raises: apsw.ConstraintError as it is, else MetadataError."""
        try:
            return self._cursor.execute(sql, values).fetchall()
        except apsw.ConstraintError:
            raise
        except apsw.Error as error:
            raise self._trouble(error) from error

    def row(self, sql: str, values: tuple[Value, ...] = ()) -> Row | None:
        """Run one statement that has at most one row and return it.  Raises: as `rows`."""
        found = self.rows(sql, values)
        return found[0] if found else None

    def run(self, sql: str, values: tuple[Value, ...] = ()) -> int:
        """Run one changing statement within `change`, or alone after `ready`; return how many rows it changed."""
        try:
            self._cursor.execute(sql, values)
        except apsw.ConstraintError:
            raise
        except apsw.Error as error:
            raise self._trouble(error) from error
        return self._connection.changes()

    def some(self, sql: str, values: tuple[Value, ...], limit: int, exclude: frozenset[int], column: int) -> list[Row]:
        """Return the first `limit` rows whose `column` is not in `exclude`, reading no further than needed."""
        if self._failure is not None:
            raise self._refusal()
        found: list[Row] = []
        cursor = self._connection.cursor()
        try:
            for row in cursor.execute(sql, values):
                if len(found) >= limit:
                    break
                if row[column] not in exclude:
                    found.append(row)
        except apsw.Error as error:
            raise self._trouble(error) from error
        finally:
            cursor.close(True)
        return found

    # -- changes --

    @property
    def counters(self) -> Counters:
        """The counters, loaded if a rollback made them invalid."""
        if self._counters is None:
            self._counters = Counters.load(self.rows)
        return self._counters

    def ready(self) -> None:
        """Make sure that a transaction is open and a change can be made.  Raises: MetadataError after a failure."""
        self._check()
        if not self._open:
            self._begin()
        if self._counters is None:
            self._counters = Counters.load(self.rows)

    def enter_savepoint(self) -> int:
        """Begin an atomic change; return what `leave_savepoint` wants."""
        assert not self._in_change, "changes do not nest"
        self.run("SAVEPOINT change")
        self._in_change = True
        return self._connection.total_changes()

    def leave_savepoint(self, before: int, *, undo: bool) -> None:
        """Keep or undo what happened since `enter_savepoint`."""
        self._in_change = False
        if not undo:
            self.run("RELEASE change")
            return
        if self._connection.total_changes() != before:
            # Counting anew reads whole tables: not for a change that was refused before it changed anything.
            self._counters = None
            for reserve in self._reserves.values():
                # The row in `sequence` may have gone back; what was given out must not be given again.
                reserve.limit = reserve.next
        if self._failure is None:
            self.run("ROLLBACK TO change")
            self.run("RELEASE change")
            self._changes_seen += self._connection.total_changes() - before

    def take(self, sequence: str, count: int = 1) -> int:
        """Return the first of `count` numbers in a row, never given before (I-6); within `change` or after `ready`."""
        reserve = self._reserves[sequence]
        first = reserve.next
        if first + count > reserve.limit:
            block = max(count, _BLOCKS[sequence])
            row = self.row(
                "UPDATE sequence SET next = max(next, ?) + ? WHERE name = ? RETURNING next", (first, block, sequence)
            )
            assert row is not None
            reserve.limit = row[0]
            first = row[0] - block
        reserve.next = first + count
        return first

    def forget_reserves(self) -> None:
        """Start the sequences from their rows, which the caller has raised."""
        self._reserves = {name: _Reserve(0, 0) for name in _BLOCKS}

    def forget_counters(self) -> None:
        """Count anew before the next change, after rows were changed behind the counters' back."""
        self._counters = None

    # -- commit --

    def commit(self) -> bool:
        """Commit what was changed, begin anew, and return whether there was any.  Raises: MetadataError."""
        self._check()
        assert not self._in_change, "commit within a change"
        self._reserve.tend(self._keeper.pages, self._page_count())
        if not self._open:
            # Nothing can have changed.  A transaction begun now would spoil the pause of log.py.
            if self._keeper.idle:
                self._begin()
            return False
        changes = self._connection.total_changes()
        changed = changes != self._changes_seen
        if not changed and not self._keeper.wants_pause():
            return False
        self.run("COMMIT")
        self._open = False
        self._changes_seen = changes
        if changed:
            self.commits += 1
            self._flush.committed()
        if self._keeper.wants_pause():
            self._keeper.restart()
        else:
            self._begin()
        return changed

    async def make_durable(self) -> None:
        """Commit, and wait until everything changed before is on the disk.  Checkpoint.  Raises: MetadataError."""
        self.commit()
        await self._flush.wait_durable()

    def has_room(self) -> bool:
        """Return whether programs may make the store grow: else the local disk is so full that what is left is for
        commits and for removing."""
        return self._reserve.has_room()

    @property
    def flushes(self) -> int:
        """Disk flushes done for `make_durable`."""
        return self._flush.flushes

    @property
    def log_pages(self) -> int:
        """Length of the write-ahead log after the last commit."""
        return self._keeper.pages

    @property
    def log_restarts(self) -> int:
        """How often the log was started from its beginning since the store was opened."""
        return self._keeper.restarts

    def outbox_rows(self) -> int:
        """Return the length of the outbox: exact below 4096 rows, above to within a sixteenth.

        Counting costs about 3 ms per million rows, too much for every call; it is done again when so much has changed.
        """
        changes = self._connection.total_changes()
        passed = changes - self._outbox_seen
        if self._outbox_seen < 0 or (passed and (self._outbox_rows < 4096 or passed > self._outbox_rows // 16)):
            ((self._outbox_rows,),) = self.rows("SELECT count(*) FROM outbox WHERE tbl > 0")
            self._outbox_seen = changes
        return self._outbox_rows

    async def aclose(self) -> None:
        """Make durable and close, even if that fails; a second call does nothing.  Raises: MetadataError."""
        if self._closed:
            return
        self._closed = True
        with trio.CancelScope(shield=True):
            try:
                await self.make_durable()
            except MetadataError:
                self._failure = self._failure or "it failed before it was closed"
                raise
            finally:
                await trio.to_thread.run_sync(self._close)

    # -- inside --

    def _page_count(self) -> int:
        ((pages,),) = self.rows("PRAGMA page_count")
        assert isinstance(pages, int)
        return pages

    def _check(self) -> None:
        if self._failure is not None or self._keeper.trouble is not None or self._flush.trouble is not None:
            raise self._refusal()

    def _begin(self) -> None:
        self._keeper.before_begin()
        self.run("BEGIN IMMEDIATE")
        self._open = True

    def _close(self) -> None:
        self._keeper.close()
        self._cursor.close(True)
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")
        if self._failure is None:
            try:
                self._connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
            except apsw.Error as error:
                # Everything is durable in the log already; the next mount copies it.
                self._failure = str(error)
        if self._failure is not None:
            self._connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        self._connection.close(True)
        self._flush.close()
        self._reserve.close()
        self._failure = self._failure or "it is closed"

    def _trouble(self, error: apsw.Error) -> MetadataError:
        """Return what to raise for `error`, after finding out whether the transaction survived it."""
        if isinstance(error, (apsw.ConnectionClosedError, apsw.CursorClosedError)):
            return self._refusal()
        if self._open and not self._connection.in_transaction:
            self._open = False
            self._failure = f"changes since the last commit are lost, as SQLite says: {error}"
            # Closing makes every later read fail too, at no cost to those before.
            self._cursor.close(True)
            return self._refusal()
        return MetadataError(f"the metadata {self.path}: {error}")

    def _refusal(self) -> MetadataError:
        reason = self._failure or self._keeper.trouble or self._flush.trouble
        return MetadataError(f"the metadata {self.path} cannot be used: {reason}; mount again")


class Part:
    """What every module of methods builds on."""

    def __init__(self, database: Database) -> None:
        self._db = database

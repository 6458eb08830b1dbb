"""Opens and makes a store: the SQLite engine of the `Metadata` protocol.

Used by drive.py, cli and tests.  Opening and closing block and run in a thread; every other method runs in the loop.
One process at a time may have a store open; the drive's lock sees to that.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Final

import apsw
import trio
from attrs import frozen

from cuckoo_mount.errors import MetadataError, NoSpace
from cuckoo_mount.metadata.checks import Checks
from cuckoo_mount.metadata.cloudrows import CloudRows
from cuckoo_mount.metadata.content import Content
from cuckoo_mount.metadata.database import Database
from cuckoo_mount.metadata.flush import SharedFlush
from cuckoo_mount.metadata.journal import Journal
from cuckoo_mount.metadata.log import LogKeeper
from cuckoo_mount.metadata.losses import Losses
from cuckoo_mount.metadata.migrations import check_identity, make_schema, migrate
from cuckoo_mount.metadata.records import MetadataStatistics
from cuckoo_mount.metadata.renames import Renames
from cuckoo_mount.metadata.repairs import Repairs
from cuckoo_mount.metadata.reserve import PAGE_BYTES, Reserve, ballast_path, release_ballast
from cuckoo_mount.metadata.trouble import is_full, metadata_trouble
from cuckoo_mount.types import ROOT_INODE

_PATIENCE_MS: Final = 60_000
"""The loop's BEGIN waits at most so long for the log thread's transaction, which is one sync long."""


@frozen(slots=True, kw_only=True)
class StoreOptions:
    """Limits of one open store.

    `log_soft_bytes`: from there on the write-ahead log is copied into the database beside the work; `log_hard_bytes`:
    from there on a change waits, some milliseconds, for the log to start from its beginning.  `page_cache_bytes`: of
    the loop's connection.  `flush`: how an open file gets to the disk, for tests.
    """

    log_soft_bytes: int = 16 << 20
    log_hard_bytes: int = 64 << 20
    page_cache_bytes: int = 64 << 20
    flush: Callable[[int], None] = os.fdatasync


DEFAULT_OPTIONS: Final = StoreOptions()


class SqliteMetadata(Renames, Content, Losses, Repairs, CloudRows, Journal, Checks):
    """One open store; see `Metadata` for every method.  Also an async context manager that ends with `aclose`.

    Nothing but `make_durable`, `aclose`, and what reads in threads (checks.py) checkpoints.  All raise MetadataError
    after a failure (database.py).
    """

    async def commit(self) -> bool:
        return self._db.commit()

    async def make_durable(self) -> None:
        await self._db.make_durable()

    async def aclose(self) -> None:
        await self._db.aclose()

    async def __aenter__(self) -> SqliteMetadata:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def held_bytes(self) -> int:
        return self._db.counters.dirty_bytes + self._db.counters.clean_bytes

    def dirty_bytes(self) -> int:
        return self._db.counters.dirty_bytes

    def has_room(self) -> bool:
        return self._db.has_room()

    def statistics(self) -> MetadataStatistics:
        """Return the counters; from memory, but for `outbox_rows` (`Database.outbox_rows`)."""
        counters = self._db.counters
        return MetadataStatistics(
            inodes=counters.inodes,
            dirty_files=len(counters.dirty_files),
            dirty_chunks=counters.dirty_chunks,
            dirty_bytes=counters.dirty_bytes,
            clean_bytes=counters.clean_bytes,
            packs=counters.packs,
            pack_live_bytes=counters.pack_live_bytes,
            pack_stored_bytes=counters.pack_stored_bytes,
            pack_died_bytes=counters.pack_died_bytes,
            outbox_rows=self._db.outbox_rows(),
            commits=self._db.commits,
            syncs=self._db.flushes,
        )

    @property
    def log_pages(self) -> int:
        """Pages in the write-ahead log after the last commit; for tests and benchmarks."""
        return self._db.log_pages

    @property
    def log_restarts(self) -> int:
        """How often the log was started from its beginning since the store was opened."""
        return self._db.log_restarts


async def open_store(path: Path, options: StoreOptions = DEFAULT_OPTIONS) -> SqliteMetadata:
    """Open the store in file `path`, bring it to this program's version, and make durable what a crash left in its log.

    Raises: MetadataError when there is none, or it is damaged, not ours, or made by a newer program.
    """
    return await trio.to_thread.run_sync(_open, path, options, None)


async def create_store(
    path: Path, *, uid: int, gid: int, now_ns: int, options: StoreOptions = DEFAULT_OPTIONS
) -> SqliteMetadata:
    """Make an empty store in file `path` with a root directory (mode 0755) of `uid` and `gid`, durably, and open it.

    What a crash left of an earlier try is used.  Raises: MetadataError when there is a database already, or no room.
    """

    def fill(connection: apsw.Connection) -> None:
        connection.execute(
            "INSERT INTO inode VALUES (?, ?, ?, ?, 0, 2, 0, ?, ?, ?, ?, 0, ?)",
            (ROOT_INODE, stat.S_IFDIR | 0o755, uid, gid, now_ns, now_ns, now_ns, now_ns, ROOT_INODE),
        )

    return await trio.to_thread.run_sync(_open, path, options, fill)


def _open(path: Path, options: StoreOptions, fill: Callable[[apsw.Connection], None] | None) -> SqliteMetadata:
    with ExitStack() as undo:
        try:
            if is_full(path.parent):
                release_ballast(ballast_path(path))
            connection = _connect(path, create=fill is not None, timeout_ms=_PATIENCE_MS)
            undo.callback(connection.close, True)
            if fill is not None:
                make_schema(connection, fill)
            else:
                check_identity(connection)
            _use_log(connection, options)
            # What a killed process left in the log was perhaps never on the disk: from here on everything is.
            # The log's file keeps its room on the disk (reserve.py).
            connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_RESTART)
            migrate(connection)
            # The first commit to an empty log syncs its header: here, not later in the loop.
            connection.execute("UPDATE sequence SET next = next + 1 WHERE name = 'log'")
            log = os.open(f"{path}-wal", os.O_RDWR | os.O_CLOEXEC)
            undo.callback(os.close, log)
            _sync_directory(path.parent)
            second = _connect(path, create=False, timeout_ms=0)
            undo.callback(second.close, True)
            _use_log(second, options)
            reserve = Reserve(path, log, 2 * options.log_soft_bytes, log_limit_bytes=options.log_hard_bytes)
            undo.callback(reserve.close)
            if not reserve.is_enough:
                raise OSError(NoSpace.errno, "there is hardly any room for its log")
        except (apsw.Error, OSError) as error:
            raise metadata_trouble("open", path, error) from error
        undo.pop_all()
    keeper = LogKeeper(
        second,
        reserve,
        soft_pages=options.log_soft_bytes // PAGE_BYTES,
        hard_pages=options.log_hard_bytes // PAGE_BYTES,
    )
    return SqliteMetadata(Database(path, connection, keeper, SharedFlush(log, options.flush), reserve))


def _connect(path: Path, *, create: bool, timeout_ms: int) -> apsw.Connection:
    flags = apsw.SQLITE_OPEN_READWRITE | (apsw.SQLITE_OPEN_CREATE if create else 0)
    connection = apsw.Connection(str(path), flags=flags, statementcachesize=256)
    # Without it SQLite plans a join anew at every call, for the values bound: 17 µs instead of 2.5 µs per lookup.
    connection.config(apsw.SQLITE_DBCONFIG_ENABLE_QPSG, 1)
    connection.set_busy_timeout(timeout_ms)
    connection.pragma("temp_store", "memory")
    return connection


def _use_log(connection: apsw.Connection, options: StoreOptions) -> None:
    """Set the connection up for write-ahead logging as log.py wants it."""
    if connection.pragma("journal_mode", "wal") != "wal":
        raise MetadataError("SQLite cannot use a write-ahead log here; is the state folder on a network file system?")
    connection.pragma("synchronous", "normal")
    connection.pragma("wal_autocheckpoint", 0)
    connection.pragma("journal_size_limit", options.log_hard_bytes)
    connection.pragma("cache_size", -(options.page_cache_bytes >> 10))


def _sync_directory(path: Path) -> None:
    """Make the names of files in `path` durable.  (Nothing of SQLite's is opened here: closing it would drop locks.)"""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)

"""Makes the tables of a new file, and brings an older file to the tables of this program.

Used by store.py while a file is opened, before anybody else sees the connection.  Synchronous.
Each step is one transaction that also sets `PRAGMA user_version`: a crash leaves the file at a version, never between.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import apsw

from cuckoo_mount.errors import MetadataError
from cuckoo_mount.metadata.schema import APPLICATION_ID, JOURNALED, JOURNALED_TABLES, LOCAL_TABLES, SCHEMA_VERSION

Migration = Callable[[apsw.Connection], None]


def _to_2(connection: apsw.Connection) -> None:
    """Add what dedup, compaction and collection look up: by digest, by version, by place in a pack; sealed bytes."""
    connection.execute(
        """CREATE INDEX chunk_version ON chunk (version);
        DROP INDEX version_pack;
        CREATE INDEX version_pack ON version (pack, offset);
        CREATE INDEX version_digest ON version (digest);
        ALTER TABLE pack ADD COLUMN used INTEGER NOT NULL DEFAULT 0;
        UPDATE pack SET used = (SELECT coalesce(sum(length), 0) FROM version v WHERE v.pack = pack.number);
        CREATE TABLE stray (pack_id BLOB NOT NULL, cloud TEXT NOT NULL, PRIMARY KEY (pack_id, cloud))
            STRICT, WITHOUT ROWID;
        CREATE TABLE unknown_object (
            cloud TEXT NOT NULL, name TEXT NOT NULL, seen INTEGER NOT NULL, PRIMARY KEY (cloud, name)
        ) STRICT, WITHOUT ROWID;"""
    )


MIGRATIONS: Final[tuple[Migration, ...]] = (_to_2,)
"""The n-th leads from version n + 1 to n + 2.  Never changed once released; SCHEMA_VERSION = len(MIGRATIONS) + 1."""


def make_schema(connection: apsw.Connection, fill: Callable[[apsw.Connection], None]) -> None:
    """Make all tables in an empty file, let `fill` add the first rows, commit.  Raises: MetadataError if not empty."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        if connection.execute("SELECT 1 FROM sqlite_schema").fetchall():
            raise MetadataError(f"{connection.filename} is a database already")
        connection.execute(JOURNALED_TABLES)
        connection.execute(LOCAL_TABLES)
        make_triggers(connection)
        fill(connection)
        connection.pragma("application_id", APPLICATION_ID)
        connection.pragma("user_version", SCHEMA_VERSION)
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def make_triggers(connection: apsw.Connection) -> None:
    """Make the triggers of all journaled tables anew; part of the caller's transaction."""
    drop_triggers(connection)
    for table in JOURNALED:
        for _, statement in table.triggers():
            connection.execute(statement)


def drop_triggers(connection: apsw.Connection) -> None:
    """Drop all triggers; part of the caller's transaction, which makes them anew before it ends."""
    for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'trigger'").fetchall():
        connection.execute(f'DROP TRIGGER "{name}"')


def check_identity(connection: apsw.Connection, *, newest: int = SCHEMA_VERSION) -> int:
    """Return the file's version.  Raises: MetadataError if it is not a store of ours, or made by a newer program."""
    application = connection.pragma("application_id")
    version = connection.pragma("user_version")
    if application != APPLICATION_ID or not isinstance(version, int) or version < 1:
        raise MetadataError(f"{connection.filename} is not a metadata database of cuckoo-mount")
    if version > newest:
        raise MetadataError(
            f"{connection.filename} has version {version}, this program knows up to {newest}; update cuckoo-mount"
        )
    return version


def migrate(connection: apsw.Connection, migrations: Sequence[Migration] = MIGRATIONS) -> None:
    """Bring the file to the newest version, one transaction per step; the triggers are made anew with each.

    Raises: MetadataError as `check_identity`; whatever a step raises, with the file as the step before left it.
    """
    version = check_identity(connection, newest=len(migrations) + 1)
    for number, migration in enumerate(migrations[version - 1 :], start=version + 1):
        connection.execute("BEGIN IMMEDIATE")
        try:
            migration(connection)
            make_triggers(connection)
            connection.pragma("user_version", number)
            connection.execute("COMMIT")
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")

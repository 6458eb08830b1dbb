"""All tables: each column, unit, sentinel and counter is explained here and nowhere else.

Used by every module of this folder; nothing else of the project knows a table.  Pure text, no connection.

Journaled tables (docs/format.md, "Tables") describe the drive and travel to the clouds row by row.  Local tables
describe this machine's copy and never leave it.  A row of a journaled table that changes, by whatever statement, is
entered in `outbox` by triggers made from `JOURNALED`.  One rule follows for who writes SQL: no `INSERT OR REPLACE`
on a journaled table that has a second unique column, because rows removed by it fire no trigger (I-14).

Cost of the triggers, in CPU time of the loop with them and without (2-core machine under load, best of 15 times 2000
operations): `make_node` 36 and 24 µs, `apply_written` of one new chunk 44 and 23 µs, `change_inode` 16 and 9 µs.
Cost of the indexes of version 2 (`chunk_version`, `version_digest`), measured in the same way with them, digests being
random, and without: `apply_written` of one new chunk 36 to 40 and 34 to 36 µs, `finish_pack` per chunk 15 to 22 and 13
to 17 µs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from attrs import frozen

APPLICATION_ID: Final = 0x43754B6F
"""In the header of the file: `CuKo`.  A file without it is not ours and is not touched."""
SCHEMA_VERSION: Final = 2
"""`PRAGMA user_version` of a file with the tables below."""
JOURNAL_SCHEMA: Final = 2
"""The `SCHEMA_VERSION` in which a journaled table last changed: what an epoch's header says of its rows.  Whoever
raises it teaches replay to read the older rows, and the first epoch after it is a snapshot."""

FLOOR_PREFIX: Final = "sequence."
"""In an epoch the settings with this prefix say from where on a sequence was not given yet; no store has them."""

JOURNALED_TABLES: Final = """
-- Settings of the drive: `drive_id`, `redundancy`, `encryption`, …  Their meaning is their users'.
CREATE TABLE setting (
    key TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- The clouds, without secrets.
CREATE TABLE cloud (
    name TEXT NOT NULL PRIMARY KEY,
    cloud_id BLOB NOT NULL,         -- 16 bytes, as in the cloud's drive.json
    url TEXT NOT NULL,
    capacity INTEGER,               -- bytes the user allows; NULL: as much as the cloud says
    reserve INTEGER NOT NULL,       -- bytes to leave free
    grp TEXT NOT NULL,              -- clouds that fail together share one; '' = none
    read_only INTEGER NOT NULL,     -- 1: no new shares
    position INTEGER NOT NULL       -- order in which they were added, from 1
) STRICT, WITHOUT ROWID;

-- Nodes.  Times are nanoseconds since the epoch.
CREATE TABLE inode (
    ino INTEGER PRIMARY KEY,        -- 1 = root; from sequence `inode`
    mode INTEGER NOT NULL,          -- with file type
    uid INTEGER NOT NULL,
    gid INTEGER NOT NULL,
    rdev INTEGER NOT NULL,          -- device nodes, else 0
    nlink INTEGER NOT NULL,         -- names (directory: 2 + subdirectories); 0 = orphan: waits for purge_inode
    size INTEGER NOT NULL,          -- bytes; of a symbolic link its target's length; of a directory 0
    atime INTEGER NOT NULL,
    mtime INTEGER NOT NULL,
    ctime INTEGER NOT NULL,
    btime INTEGER NOT NULL,         -- when it was made
    chunks INTEGER NOT NULL,        -- counter: its rows in `chunk` (I-16)
    parent INTEGER NOT NULL         -- the directory a directory lies in (root: itself); 0 = no directory, or removed
) STRICT;
CREATE INDEX inode_orphan ON inode (ino) WHERE nlink = 0;

-- Names.
CREATE TABLE dentry (
    parent INTEGER NOT NULL,
    name BLOB NOT NULL,             -- 1 … 255 bytes, never '.', '..', nor with '/' or NUL
    ino INTEGER NOT NULL,
    cookie INTEGER NOT NULL,        -- ≥ 3, from sequence `cookie`: orders a directory, a renamed entry gets a new one
    PRIMARY KEY (parent, name)
) STRICT, WITHOUT ROWID;
CREATE INDEX dentry_cookie ON dentry (parent, cookie);

CREATE TABLE symlink (
    ino INTEGER PRIMARY KEY,
    target BLOB NOT NULL
) STRICT;

-- Extended attributes, ACLs included, as the kernel gives them.
CREATE TABLE xattr (
    ino INTEGER NOT NULL,
    name BLOB NOT NULL,
    value BLOB NOT NULL,
    PRIMARY KEY (ino, name)
) STRICT, WITHOUT ROWID;

-- What a file consists of.  A missing row is a hole.
CREATE TABLE chunk (
    ino INTEGER NOT NULL,
    idx INTEGER NOT NULL,           -- byte offset // CHUNK_SIZE_BYTES
    version INTEGER NOT NULL,       -- from sequence `version`; stored if `version` has it, else held dirty here
    PRIMARY KEY (ino, idx)
) STRICT, WITHOUT ROWID;
CREATE INDEX chunk_version ON chunk (version);

-- Where a version is stored.  No row: it is dirty.  Goes when `refs` would be 0, and never comes back (I-10).
CREATE TABLE version (
    version INTEGER PRIMARY KEY,
    pack INTEGER NOT NULL,
    offset INTEGER NOT NULL,        -- byte in the pack
    length INTEGER NOT NULL,        -- sealed bytes
    plain INTEGER NOT NULL,         -- bytes of the chunk
    digest BLOB NOT NULL,           -- keyed hash of the plain bytes, 32 bytes
    refs INTEGER NOT NULL           -- counter, ≥ 1: rows of `chunk` and `partial` that name it (I-16)
) STRICT;
CREATE INDEX version_pack ON version (pack, offset);
CREATE INDEX version_digest ON version (digest);

-- The catalogue.
CREATE TABLE pack (
    number INTEGER PRIMARY KEY,     -- from sequence `pack`
    pack_id BLOB NOT NULL UNIQUE,   -- 16 bytes, in the names of its shares
    policy TEXT NOT NULL,           -- '1', 'N' copies, 'K+M'
    size INTEGER NOT NULL,          -- bytes of the whole pack
    live INTEGER NOT NULL,          -- counter: sum of `plain` of its versions (I-16)
    used INTEGER NOT NULL,          -- counter: sum of `length` of its versions (I-16): what compaction would keep
    born_epoch INTEGER NOT NULL,    -- local setting `epoch` when it was entered (0 before there are epochs)
    dead_epoch INTEGER              -- the same when its last version went; NULL = alive.  Final
) STRICT;
CREATE INDEX pack_dead ON pack (number) WHERE dead_epoch IS NOT NULL;

-- Which cloud holds which share of a pack.
CREATE TABLE share (
    pack INTEGER NOT NULL,
    share INTEGER NOT NULL,         -- 0 … 255
    cloud TEXT NOT NULL,            -- its name
    digest BLOB NOT NULL,           -- keyed hash of the whole share, 32 bytes
    length INTEGER NOT NULL,        -- bytes
    PRIMARY KEY (pack, share)
) STRICT, WITHOUT ROWID;
"""

LOCAL_TABLES: Final = """
-- What the local files hold.  No row: the chunk is absent, pending, or a hole.
CREATE TABLE held (
    ino INTEGER NOT NULL,
    idx INTEGER NOT NULL,
    version INTEGER NOT NULL,       -- always that of the chunk row
    dirty INTEGER NOT NULL,         -- 1: stored nowhere else; 0: clean, a copy of what is stored
    length INTEGER NOT NULL,        -- valid bytes; the rest of the chunk reads as zeros
    tick INTEGER NOT NULL,          -- when it was last used: a number of the cache's that never falls; a row
                                    -- made by a write gets the highest one given so far
    PRIMARY KEY (ino, idx)
) STRICT, WITHOUT ROWID;
CREATE INDEX held_dirty ON held (version) WHERE dirty = 1;
CREATE INDEX held_clean ON held (tick) WHERE dirty = 0;

-- Dirty versions of which some bytes are still only in an older version.
CREATE TABLE partial (
    ino INTEGER NOT NULL,
    idx INTEGER NOT NULL,
    base INTEGER NOT NULL,          -- the older version, stored; the row counts in its `refs`
    base_bytes INTEGER NOT NULL,    -- so many of its first bytes still show
    ranges BLOB NOT NULL,           -- what is here: sorted disjoint (start, end) in the chunk, each u32 little-endian
    PRIMARY KEY (ino, idx)
) STRICT, WITHOUT ROWID;

-- Packs begun and neither finished nor abandoned (I-9).
CREATE TABLE pack_intent (
    pack_id BLOB NOT NULL PRIMARY KEY
) STRICT, WITHOUT ROWID;

-- Clouds on which an object of a finished pack may lie that no row of `share` explains: one that did not answer in
-- time, so that another was given the share.  Goes when the cloud confirmed that nothing is there (packs/garbage.py).
CREATE TABLE stray (
    pack_id BLOB NOT NULL,
    cloud TEXT NOT NULL,            -- its name
    PRIMARY KEY (pack_id, cloud)
) STRICT, WITHOUT ROWID;

-- Objects on the clouds that nothing explains, since when they are known; deleted when that is long ago.
CREATE TABLE unknown_object (
    cloud TEXT NOT NULL,            -- its name
    name TEXT NOT NULL,             -- of the object
    seen INTEGER NOT NULL,          -- when it was first listed: ns since the epoch, of this machine's clock
    PRIMARY KEY (cloud, name)
) STRICT, WITHOUT ROWID;

-- Which journaled rows changed since they last reached the clouds.  Rows of table 0 are the marks of cuts: while one
-- is there, whatever changes after the cut gets a higher `seq` than it.
CREATE TABLE outbox (
    seq INTEGER PRIMARY KEY,        -- order of the last change: a row that changes again moves to the end
    tbl INTEGER NOT NULL,           -- JournaledTable.number
    k1 ANY NOT NULL,                -- first key column
    k2 ANY NOT NULL,                -- second key column; 0 where there is none
    UNIQUE (tbl, k1, k2)
) STRICT;

-- Settings of this machine's copy.
CREATE TABLE local_setting (
    key TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- Numbers that are never given twice (I-6): `inode`, `cookie`, `version`, `pack`.  The store takes them in blocks, so
-- `next` may be ahead of what was given.  `log` counts how often the write-ahead log was started from its beginning.
CREATE TABLE sequence (
    name TEXT NOT NULL PRIMARY KEY,
    next INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO sequence VALUES ('inode', 2), ('cookie', 3), ('version', 1), ('pack', 1), ('log', 0);
"""


@frozen(slots=True)
class JournaledTable:
    """A table whose changes are recorded.  `number` stands for it in the outbox and is never given to another."""

    number: int
    name: str
    keys: tuple[str, ...]
    values: tuple[str, ...]

    @property
    def select_sql(self) -> str:
        """Return the statement that reads the values of one row; parameters: the key."""
        return f"SELECT {', '.join(self.values)} FROM {self.name} WHERE {self._where}"

    @property
    def put_sql(self) -> str:
        """Return the statement that makes or replaces one row; parameters: key, values."""
        columns = (*self.keys, *self.values)
        marks = ", ".join("?" * len(columns))
        sets = ", ".join(f"{column} = excluded.{column}" for column in self.values)
        return (
            f"INSERT INTO {self.name} ({', '.join(columns)}) VALUES ({marks})"
            f" ON CONFLICT ({', '.join(self.keys)}) DO UPDATE SET {sets}"
        )

    @property
    def delete_sql(self) -> str:
        """Return the statement that removes one row; parameters: the key."""
        return f"DELETE FROM {self.name} WHERE {self._where}"

    @property
    def _where(self) -> str:
        return " AND ".join(f"{key} = ?" for key in self.keys)

    def triggers(self) -> Iterator[tuple[str, str]]:
        """Yield (name, statement) of the triggers that put this table's changes into the outbox."""
        changed = " OR ".join(f"old.{key} IS NOT new.{key}" for key in self.keys)
        for event, row, when in (
            ("INSERT", "new", ""),
            ("UPDATE", "new", ""),
            ("DELETE", "old", ""),
            (f"UPDATE OF {', '.join(self.keys)}", "old", f" WHEN {changed}"),
        ):
            name = f"{self.name}_{event.split()[0].lower()}{'_key' if when else ''}"
            second = f"{row}.{self.keys[1]}" if len(self.keys) > 1 else "0"
            # Not INSERT OR REPLACE: SQLite puts the conflict policy of the statement that fires a trigger, also of an
            # ON CONFLICT … DO UPDATE, in the place of the trigger's own.  The `+` takes the column's affinity away, as
            # with it the index on the ANY columns is not used (1 ms per change at 70,000 rows).
            yield (
                name,
                f"CREATE TRIGGER {name} AFTER {event} ON {self.name}{when} BEGIN"
                f" DELETE FROM outbox WHERE tbl = {self.number} AND k1 = +{row}.{self.keys[0]} AND k2 = +{second};"
                f" INSERT INTO outbox (tbl, k1, k2) VALUES ({self.number}, {row}.{self.keys[0]}, {second}); END",
            )


JOURNALED: Final = (
    JournaledTable(1, "setting", ("key",), ("value",)),
    JournaledTable(2, "cloud", ("name",), ("cloud_id", "url", "capacity", "reserve", "grp", "read_only", "position")),
    JournaledTable(
        3,
        "inode",
        ("ino",),
        (
            *("mode", "uid", "gid", "rdev", "nlink", "size"),
            *("atime", "mtime", "ctime", "btime", "chunks", "parent"),
        ),
    ),
    JournaledTable(4, "dentry", ("parent", "name"), ("ino", "cookie")),
    JournaledTable(5, "symlink", ("ino",), ("target",)),
    JournaledTable(6, "xattr", ("ino", "name"), ("value",)),
    JournaledTable(7, "chunk", ("ino", "idx"), ("version",)),
    JournaledTable(8, "version", ("version",), ("pack", "offset", "length", "plain", "digest", "refs")),
    JournaledTable(9, "pack", ("number",), ("pack_id", "policy", "size", "live", "used", "born_epoch", "dead_epoch")),
    JournaledTable(10, "share", ("pack", "share"), ("cloud", "digest", "length")),
)
CATALOGUE_FROM: Final = 8
"""From this number on the journaled tables are the catalogue: `version`, `pack`, `share`.  Its rows also change by
themselves, when packs are sent, moved or deleted."""

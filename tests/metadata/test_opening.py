"""Making, opening, refusing and migrating a store's file."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

import apsw
import pytest

from cuckoo_mount.errors import AlreadyExists, MetadataError
from cuckoo_mount.metadata.migrations import MIGRATIONS, migrate
from cuckoo_mount.metadata.schema import SCHEMA_VERSION
from cuckoo_mount.metadata.store import open_store
from tests.metadata.helpers import ROOT, make_file, new_store, pack_all, write


async def test_reopened_store_has_everything(tmp_path: Path) -> None:
    path = tmp_path / "metadata"
    async with await new_store(path) as store:
        ino = await make_file(store, b"f")
        before = (await store.lookup(ROOT, b"f"), await store.new_versions(1))
    assert sorted(os.listdir(tmp_path)) == ["metadata", "metadata-ballast"], "a clean close leaves no log behind"
    async with await open_store(path) as store:
        assert await store.lookup(ROOT, b"f") == before[0]
        assert await store.new_versions(1) > before[1]
        assert await make_file(store, b"g") > ino
        assert await store.check_invariants() == []


async def test_numbers_taken_in_a_refused_change(tmp_path: Path) -> None:
    path = tmp_path / "metadata"
    async with await new_store(path) as store:
        await make_file(store, b"f")
    async with await open_store(path) as store:
        with pytest.raises(AlreadyExists):
            await make_file(store, b"f")
        ino = await make_file(store, b"g")
        assert await store.check_invariants() == []
    async with await open_store(path) as store:
        assert await make_file(store, b"h") > ino


async def test_closing_twice_and_using_after(tmp_path: Path) -> None:
    store = await new_store(tmp_path / "metadata")
    await store.aclose()
    await store.aclose()
    with pytest.raises(MetadataError, match="closed"):
        await make_file(store, b"f")
    with pytest.raises(MetadataError, match="closed"):
        await store.get_inode(ROOT)
    with pytest.raises(MetadataError, match="closed"):
        await store.dirty_chunks(1, ())
    with pytest.raises(MetadataError, match="closed"):
        await store.make_durable()


async def test_what_is_not_a_store(tmp_path: Path) -> None:
    path = tmp_path / "metadata"
    with pytest.raises(MetadataError):
        await open_store(path)
    assert not path.exists()
    path.write_bytes(b"not a database at all" * 100)
    with pytest.raises(MetadataError):
        await open_store(path)
    path.unlink()
    with closing(apsw.Connection(str(path))) as connection:
        connection.execute("CREATE TABLE other (x)")
    with pytest.raises(MetadataError, match="not a metadata database"):
        await open_store(path)
    with pytest.raises(MetadataError, match="already"):
        await new_store(path)


async def test_making_over_a_store(tmp_path: Path) -> None:
    async with await new_store(tmp_path / "metadata"):
        pass
    with pytest.raises(MetadataError, match="already"):
        await new_store(tmp_path / "metadata")
    (tmp_path / "empty").touch()
    async with await new_store(tmp_path / "empty") as store:
        assert await store.check_invariants() == []


async def test_made_by_a_newer_program(tmp_path: Path) -> None:
    path = tmp_path / "metadata"
    await (await new_store(path)).aclose()
    with closing(apsw.Connection(str(path))) as connection:
        connection.pragma("user_version", SCHEMA_VERSION + 1)
    with pytest.raises(MetadataError, match="update cuckoo-mount"):
        await open_store(path)


def _add_column(connection: apsw.Connection) -> None:
    connection.execute("ALTER TABLE setting ADD COLUMN note TEXT NOT NULL DEFAULT ''")


def _fill_column(connection: apsw.Connection) -> None:
    connection.execute("UPDATE setting SET note = value || '!'")


def _fail(connection: apsw.Connection) -> None:
    _fill_column(connection)
    raise RuntimeError("a made-up failure")


async def test_migrations(tmp_path: Path) -> None:
    path = tmp_path / "metadata"
    async with await new_store(path) as store:
        await store.set_setting("k", "v")
    assert len(MIGRATIONS) + 1 == SCHEMA_VERSION
    with closing(apsw.Connection(str(path))) as connection:
        connection.execute("DROP TRIGGER setting_insert")
        with pytest.raises(RuntimeError):
            migrate(connection, (*MIGRATIONS, _add_column, _fail))
        assert connection.pragma("user_version") == SCHEMA_VERSION + 1
        assert connection.execute("SELECT * FROM setting").fetchall() == [("k", "v", "")]
        assert connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'setting_insert'").fetchall()
        chain = (*MIGRATIONS, _add_column, _fill_column)
        migrate(connection, chain)
        migrate(connection, chain)
        assert connection.execute("SELECT * FROM setting").fetchall() == [("k", "v", "v!")]
        with pytest.raises(MetadataError, match="update cuckoo-mount"):
            migrate(connection, MIGRATIONS)


_BACK_TO_1 = """
    DROP INDEX chunk_version; DROP INDEX version_digest; DROP INDEX version_pack;
    CREATE INDEX version_pack ON version (pack);
    ALTER TABLE pack DROP COLUMN used; DROP TABLE stray; DROP TABLE unknown_object;
    DELETE FROM outbox; PRAGMA user_version = 1"""


def _shape(path: Path) -> dict[str, set[object]]:
    """Return the columns of every table and the key columns of every index, without the order of a table's columns."""
    with closing(apsw.Connection(str(path))) as connection:
        shape: dict[str, set[object]] = {}
        for kind, name in connection.execute("SELECT type, name FROM sqlite_schema WHERE type <> 'trigger'").fetchall():
            pragma = "table_info" if kind == "table" else "index_info"
            columns = connection.execute(f"SELECT * FROM pragma_{pragma}(?)", (name,)).fetchall()
            # Of a table: name, type, NOT NULL, place in the key; of an index: place, name.
            wanted = (1, 2, 3, 5) if kind == "table" else (0, 2)
            shape[str(name)] = {tuple(row[place] for place in wanted) for row in columns}
        return shape


async def test_from_version_1(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    async with await new_store(old) as store:
        ino = await make_file(store, b"f")
        for index in range(3):
            await write(store, ino, index)
        number = await pack_all(store)
        used = (await store.get_pack(number)).used_bytes
        await store.make_durable()
    await (await new_store(new)).aclose()
    with closing(apsw.Connection(str(old))) as connection:
        connection.execute(_BACK_TO_1)
    async with await open_store(old) as store:
        assert used == (await store.get_pack(number)).used_bytes == 3 * 116
        assert await store.check_invariants() == []
        assert ("pack", (number,)) in [(record.table, record.key) for record in await store.journal(10)]
        await write(store, ino, 0)
        assert (await store.get_pack(number)).used_bytes == 2 * 116
    assert _shape(old) == _shape(new)

"""The outbox: order, coalescing, clearing, and that replaying it rebuilds the journaled tables."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import apsw
import pytest

from cuckoo_mount.errors import AlreadyExists, MetadataError
from cuckoo_mount.metadata.records import JournalRecord
from cuckoo_mount.metadata.schema import JOURNALED
from cuckoo_mount.metadata.store import SqliteMetadata, open_store
from cuckoo_mount.types import ChunkIndex, InodeChanges
from tests.metadata.helpers import ROOT, journaled_rows, make_directory, make_file, new_store, node, pack_all, write


async def clear_all(store: SqliteMetadata) -> None:
    await store.clear_journal(await store.journal(10_000))
    assert store.statistics().outbox_rows == 0


async def test_record_has_key_and_values(store: SqliteMetadata) -> None:
    await clear_all(store)
    await store.set_setting("k", "v")
    assert await store.journal(5) == [JournalRecord("setting", ("k",), ("v",))]


async def test_rows_changed_again_move_to_the_end(store: SqliteMetadata) -> None:
    await clear_all(store)
    for key in ("a", "b", "a", "c"):
        await store.set_setting(key, "1")
    assert [record.key for record in await store.journal(10)] == [("b",), ("a",), ("c",)]
    assert [record.key for record in await store.journal(2)] == [("b",), ("a",)]
    assert store.statistics().outbox_rows == 3


async def test_gone_rows(store: SqliteMetadata) -> None:
    ino = await make_file(store, b"f")
    await store.remove_link(ROOT, b"f", 2)
    await store.purge_inode(ino)
    records = {(record.table, record.key): record.values for record in await store.journal(100)}
    assert records["inode", (ino,)] is None
    assert records["dentry", (ROOT, b"f")] is None
    assert records["inode", (ROOT,)] is not None


async def test_clearing_keeps_what_changed_meanwhile(store: SqliteMetadata) -> None:
    await clear_all(store)
    await store.set_setting("a", "1")
    await store.set_setting("b", "1")
    read = await store.journal(10)
    await store.set_setting("a", "2")
    await store.set_setting("c", "1")
    await store.clear_journal(read)
    assert [(record.key, record.values) for record in await store.journal(10)] == [(("a",), ("2",)), (("c",), ("1",))]


async def test_a_failed_change_leaves_no_record(store: SqliteMetadata) -> None:
    await make_file(store, b"f")
    await clear_all(store)
    with pytest.raises(AlreadyExists):
        await make_file(store, b"f")
    assert await store.journal(10) == []


async def test_replay_rebuilds_every_journaled_table(tmp_path: Path) -> None:
    source = await new_store(tmp_path / "source")
    directory = await make_directory(source, b"d")
    await source.make_node(directory, b"l", node(0o120000, target=b"x"))
    files = [await make_file(source, b"f%d" % number, directory) for number in range(5)]
    await source.set_xattrs(files[0], {b"user.a": b"1"}, InodeChanges())
    for number, ino in enumerate(files):
        await write(source, ino, 0)
        await pack_all(source, number + 1)
    await write(source, files[1], 0)
    await source.truncate_rows(files[2], InodeChanges(size_bytes=0), ChunkIndex(0), None)
    await source.rename(directory, b"f3", ROOT, b"g", now_ns=9)
    await source.set_setting("k", "v")
    await source.forget_pack((await source.dead_packs(1))[0].number)
    records = await source.journal(10_000)
    assert {record.table for record in records} == {table.name for table in JOURNALED} - {"cloud"}
    await source.aclose()
    target = await new_store(tmp_path / "target")
    await target.replay(records)
    await clear_all(target)
    await target.replay(records)
    assert target.statistics().outbox_rows == 0
    new = await target.make_node(ROOT, b"new", node())
    assert new.ino > max(files)
    await target.remove_link(ROOT, b"new", 0)
    await target.purge_inode(new.ino)
    await target.replay(records)
    await target.aclose()
    assert journaled_rows(tmp_path / "target") == journaled_rows(tmp_path / "source")


async def test_replay_refuses_what_it_does_not_know(store: SqliteMetadata) -> None:
    good = JournalRecord("setting", ("k",), ("v",))
    for bad in (
        JournalRecord("tags", (1,), (2,)),
        JournalRecord("setting", ("a", "b"), ("v",)),
        JournalRecord("setting", ("a",), ("v", "w")),
    ):
        with pytest.raises(MetadataError, match="journal"):
            await store.replay([good, bad])
        assert await store.get_setting("k") is None


async def test_outbox_survives_reopening(tmp_path: Path) -> None:
    async with await new_store(tmp_path / "metadata") as store:
        await clear_all(store)
        await store.set_setting("a", "1")
    async with await open_store(tmp_path / "metadata") as store:
        assert [record.key for record in await store.journal(10)] == [("a",)]


async def test_triggers_see_every_kind_of_statement(tmp_path: Path) -> None:
    path = tmp_path / "metadata"
    async with await new_store(path) as store:
        await clear_all(store)
    with closing(apsw.Connection(str(path))) as connection:
        connection.execute("INSERT OR IGNORE INTO setting VALUES ('a', '1'), ('b', '1')")
        assert sorted(connection.execute("SELECT k1 FROM outbox").fetchall()) == [("a",), ("b",)]
        connection.execute("DELETE FROM outbox")
        connection.execute("UPDATE OR IGNORE setting SET key = 'c' WHERE key = 'a'")
        connection.execute("INSERT INTO setting VALUES ('b', '2') ON CONFLICT (key) DO UPDATE SET value = 'x'")
        connection.execute("DELETE FROM setting WHERE key = 'c'")
        keys = connection.execute("SELECT k1 FROM outbox ORDER BY seq").fetchall()
    assert sorted(keys) == [("a",), ("b",), ("c",)]
    async with await open_store(path) as store:
        values = {record.key: record.values for record in await store.journal(10)}
    assert values == {("a",): None, ("b",): ("x",), ("c",): None}

"""The cut of a live store: what it sees, what clearing the outbox leaves, and a log that grows and shrinks again."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from cuckoo_mount.errors import MetadataError
from cuckoo_mount.metadata.cut import Cut, open_cut
from cuckoo_mount.metadata.peek import peek_changes, peek_local
from cuckoo_mount.metadata.records import JournalRecord
from cuckoo_mount.metadata.store import SqliteMetadata, StoreOptions, open_store
from cuckoo_mount.types import ChunkIndex, Partial
from tests.metadata.helpers import ROOT, journaled_rows, make_file, new_store, only_row, pack_all, write


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteMetadata]:
    async with await new_store(tmp_path / "metadata") as opened:
        yield opened
        assert await opened.check_invariants() == []


@contextmanager
def closing_cut(path: Path) -> Iterator[Cut]:
    cut = open_cut(path)
    try:
        yield cut
    finally:
        cut.close()


async def cut_and_clear(store: SqliteMetadata, path: Path) -> list[JournalRecord]:
    with closing_cut(path) as cut:
        await store.take_cut(cut)
        found = list(cut.journal())
        await store.clear_outbox(cut.mark, {})
    return found


def settings_in(found: list[JournalRecord]) -> dict[object, object]:
    """Return the settings among records, without the floors of sequences."""
    return {
        record.key[0]: record.values and record.values[0]
        for record in found
        if record.table == "setting" and not str(record.key[0]).startswith("sequence.")
    }


async def test_sees_its_moment_and_the_next_one_sees_the_rest(store: SqliteMetadata, tmp_path: Path) -> None:
    path = tmp_path / "metadata"
    await store.set_setting("a", "1")
    await store.set_setting("b", "1")
    with closing_cut(path) as cut:
        await store.take_cut(cut)
        await store.set_setting("a", "2")
        await store.delete_setting("b")
        await store.set_setting("c", "1")
        await store.commit()
        assert settings_in(list(cut.journal())) == {"a": "1", "b": "1"}
        await store.clear_outbox(cut.mark, {"epoch.hash": "x"})
        assert settings_in(list(cut.snapshot())) == {"a": "1", "b": "1"}
    assert await store.get_local("epoch.hash") == "x"
    assert settings_in(await cut_and_clear(store, path)) == {"a": "2", "b": None, "c": "1"}
    assert settings_in(await cut_and_clear(store, path)) == {}


async def test_last_row_of_the_outbox_changed_again_is_not_cleared(store: SqliteMetadata, tmp_path: Path) -> None:
    """SQLite gives the number of a removed last row again: without the mark, the second change would be lost."""
    path = tmp_path / "metadata"
    await cut_and_clear(store, path)
    for value in ("1", "2", "3"):
        await store.set_setting("only", value)
        with closing_cut(path) as cut:
            await store.take_cut(cut)
            await store.set_setting("only", f"{value}!")
            await store.clear_outbox(cut.mark, {})
        assert [(record.key, record.values) for record in await store.journal(10)] == [(("only",), (f"{value}!",))]


async def test_two_cuts_under_way(store: SqliteMetadata, tmp_path: Path) -> None:
    path = tmp_path / "metadata"
    await cut_and_clear(store, path)
    await store.set_setting("a", "1")
    with closing_cut(path) as first, closing_cut(path) as second:
        await store.take_cut(first)
        await store.set_setting("b", "1")
        await store.take_cut(second)
        await store.set_setting("a", "2")
        assert settings_in(list(first.journal())) == {"a": "1"}
        assert settings_in(list(second.journal())) == {"a": "1", "b": "1"}
        await store.clear_outbox(first.mark, {})
        assert {record.key for record in await store.journal(10)} == {("a",), ("b",)}
        await store.clear_outbox(second.mark, {})
        assert [record.key for record in await store.journal(10)] == [("a",)]


async def test_marks_are_no_changes(tmp_path: Path) -> None:
    path = tmp_path / "metadata"
    async with await new_store(path) as store:
        await cut_and_clear(store, path)
        with closing_cut(path) as cut:  # and given up
            await store.take_cut(cut)
        assert store.statistics().outbox_rows == 0
        assert await store.journal(10) == []
    assert peek_changes(path) == 0
    async with await open_store(path) as store:
        assert store.statistics().outbox_rows == 0
        await store.set_setting("a", "1")
        assert store.statistics().outbox_rows == 1
        assert settings_in(await cut_and_clear(store, path)) == {"a": "1"}
    assert peek_changes(path) == 0


async def test_clearing_and_settings_are_one_change(tmp_path: Path) -> None:
    path = tmp_path / "metadata"
    async with await new_store(path) as store:
        await cut_and_clear(store, path)
        await store.set_setting("a", "1")
        with closing_cut(path) as cut:
            await store.take_cut(cut)
            assert peek_changes(path) == 1
            await store.clear_outbox(cut.mark, {"epoch": "2", "epoch.hash": "abc"})
            assert peek_changes(path) == 1
            assert peek_local(path, "epoch") == {}
            await store.commit()
        assert peek_changes(path) == 0
        assert peek_local(path, "epoch") == {"epoch": "2", "epoch.hash": "abc"}
        assert peek_local(path, "epoch.") == {"epoch.hash": "abc"}


async def test_snapshot_is_all_rows_and_the_floors(store: SqliteMetadata, tmp_path: Path) -> None:
    path = tmp_path / "metadata"
    ino = await make_file(store, b"f")
    await write(store, ino, 0)
    await pack_all(store)
    with closing_cut(path) as cut:
        await store.take_cut(cut)
        found = await trio.to_thread.run_sync(lambda: list(cut.snapshot()))
    floors = {record.key[0] for record in found if str(record.key[0]).startswith("sequence.")}
    assert floors == {f"sequence.{name}" for name in ("inode", "cookie", "version", "pack")}
    rows: dict[str, list[tuple[object, ...]]] = {}
    for record in found:
        if record.key[0] not in floors:
            assert record.values is not None
            rows.setdefault(record.table, []).append(record.key + record.values)
    assert rows == {table: found for table, found in journaled_rows(path).items() if found}


async def test_dirty_versions_of_the_cut(store: SqliteMetadata, tmp_path: Path) -> None:
    ino = await make_file(store, b"f")
    await write(store, ino, 0)
    await pack_all(store)
    base = (await only_row(store, ino)).version
    whole = await write(store, ino, 1, 50)
    partial = await write(store, ino, 0, 60, Partial(base, 40, ((0, 5),)))
    with closing_cut(tmp_path / "metadata") as cut:
        await store.take_cut(cut)
        await write(store, ino, 2)
        found = [
            (chunk.ino, chunk.index, chunk.version, chunk.length_bytes, is_partial) for chunk, is_partial in cut.dirty()
        ]
    assert found == [(ino, ChunkIndex(1), whole, 50, False), (ino, ChunkIndex(0), partial, 60, True)]


async def test_cut_is_read_by_index(store: SqliteMetadata, tmp_path: Path) -> None:
    """A journal costs what changed, not what there is."""
    path = tmp_path / "metadata"
    for number in range(200):
        await make_file(store, b"f%d" % number)
    await cut_and_clear(store, path)
    await store.remove_link(ROOT, b"f7", 5)
    found = await cut_and_clear(store, path)
    assert {record.table for record in found} == {"setting", "inode", "dentry"}
    assert [record for record in found if record.values is None] == [JournalRecord("dentry", (ROOT, b"f7"), None)]


@pytest.mark.slow
async def test_a_long_cut_only_makes_the_log_longer(tmp_path: Path) -> None:
    path = tmp_path / "metadata"
    options = StoreOptions(log_soft_bytes=1 << 16, log_hard_bytes=1 << 18)
    async with await new_store(path, options) as store:

        async def work(count: int) -> None:
            for number in range(count):
                await store.set_setting(f"key {number % 50}", "x" * 3000)
                await store.commit()
                await trio.lowlevel.checkpoint()

        await work(300)
        with closing_cut(path) as cut:
            await store.take_cut(cut)
            restarts = store.log_restarts
            await work(1500)
            # One restart may have been under way when the cut was taken.
            assert store.log_restarts <= restarts + 1
            assert store.log_pages * 4096 > 4 * options.log_hard_bytes, "all that was committed is in the log"
            assert len(settings_in(list(cut.journal()))) == 50
        with trio.fail_after(60):
            while store.log_pages * 4096 > options.log_hard_bytes:
                await work(10)
        assert store.log_restarts > restarts
        assert await store.check_invariants() == []


def test_without_a_store(tmp_path: Path) -> None:
    with pytest.raises(MetadataError):
        open_cut(tmp_path / "missing")
    assert not (tmp_path / "missing").exists()


async def test_closed_cut(store: SqliteMetadata, tmp_path: Path) -> None:
    cut = await store.open_cut()
    await store.take_cut(cut)
    cut.close()
    cut.close()
    with pytest.raises(MetadataError):
        list(cut.journal())

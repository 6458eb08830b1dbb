"""Stores made and brought up to date from records: what is mended, what is refused, nothing left behind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import apsw
import pytest

from cuckoo_mount.epochs.objects import read_epoch
from cuckoo_mount.epochs.placing import chunk_record, pack_records, version_record
from cuckoo_mount.errors import CloudCorrupt, MetadataError
from cuckoo_mount.metadata.cut import open_cut
from cuckoo_mount.metadata.records import JournalRecord
from cuckoo_mount.metadata.replay import build_store, catch_up
from cuckoo_mount.metadata.store import SqliteMetadata, open_store
from cuckoo_mount.types import (
    ChunkIndex,
    CloudName,
    CloudRow,
    InodeChanges,
    InodeNo,
    Location,
    PackNo,
    VersionNo,
)
from tests.epochs.epochtools import DRIVE, KEYS
from tests.epochs.epochtools import write as write_object
from tests.metadata.helpers import DIGEST, ROOT, journaled_rows, make_file, new_store, node, pack_all, write


async def cut_records(store: SqliteMetadata, path: Path, *, snapshot: bool = True) -> list[JournalRecord]:
    cut = open_cut(path)
    try:
        await store.take_cut(cut)
        found = list(cut.snapshot() if snapshot else cut.journal())
        await store.clear_outbox(cut.mark, {})
    finally:
        cut.close()
    return found


async def source(tmp_path: Path) -> tuple[SqliteMetadata, InodeNo, list[JournalRecord]]:
    """A store with file `f` of two stored chunks, and its snapshot."""
    store = await new_store(tmp_path / "source")
    ino = await make_file(store, b"f")
    for index in range(2):
        await write(store, ino, index)
    await pack_all(store)
    return store, ino, await cut_records(store, tmp_path / "source")


def stores_in(folder: Path) -> list[str]:
    """Return the files of a folder, but for the ballast of stores that are closed."""
    return sorted(name for name in os.listdir(folder) if not name.endswith("-ballast"))


def damaged(found: list[JournalRecord]) -> Iterator[JournalRecord]:
    yield from found
    raise CloudCorrupt("found out at the end")


async def test_built_store_is_the_source(tmp_path: Path) -> None:
    store, ino, snapshot = await source(tmp_path)
    highest = await store.new_versions(1)
    await store.aclose()
    target = tmp_path / "target"
    done = build_store(target, [snapshot], epoch=1, local={"epoch": "2"})
    assert (done.records, done.versions_removed, done.packs_buried) == (len(snapshot), 0, 0)
    assert stores_in(tmp_path) == ["source", "target"]
    assert journaled_rows(target) == journaled_rows(tmp_path / "source")
    async with await open_store(target) as built:
        assert await built.check_invariants() == []
        assert await built.get_local("epoch") == "2"
        assert built.statistics().outbox_rows == 0
        assert await built.settings("sequence.") == {}
        assert await built.new_versions(1) > highest
        assert (await built.make_node(ROOT, b"new", node())).ino > ino
        assert built.statistics().outbox_rows == 3, "the triggers are back"


async def test_odd_values(tmp_path: Path) -> None:
    store, ino, _ = await source(tmp_path)
    times = InodeChanges(atime_ns=-1, mtime_ns=-(1 << 62), ctime_ns=(1 << 63) - 1, size_bytes=(1 << 63) - 1)
    await store.change_inode(ino, times)
    for name in (b"\xff" * 255, b"\xc3\x28", b"\n", "ä".encode("latin-1")):
        await store.add_link(ino, ROOT, name, -5)
    await store.set_xattrs(ino, {b"user.empty": b"", b"user.\xff": bytes(range(256)) * 256}, InodeChanges())
    await store.make_node(ROOT, b"l", node(0o120000, target=b"\xfe" * 4095))
    await store.put_cloud(
        CloudRow(CloudName("ünlimited"), bytes(16), "osfs:///\U0001f426", None, 0, "", read_only=True)
    )
    await store.set_setting("", "")
    snapshot = await cut_records(store, tmp_path / "source")
    await store.aclose()
    path, epoch_name, _ = write_object(tmp_path, snapshot)
    with read_epoch(path, KEYS, DRIVE, epoch_name) as epoch:
        build_store(tmp_path / "target", [epoch.records()], epoch=1, local={})
    assert journaled_rows(tmp_path / "target") == journaled_rows(tmp_path / "source")
    async with await open_store(tmp_path / "target") as built:
        assert await built.check_invariants() == []


async def test_numbers_given_and_not_seen_in_any_row_are_not_given_again(tmp_path: Path) -> None:
    store, _, _ = await source(tmp_path)
    gone = await make_file(store, b"g")
    await store.remove_link(ROOT, b"g", 1)
    await store.purge_inode(gone)
    given = await store.new_versions(1)
    snapshot = await cut_records(store, tmp_path / "source")
    await store.aclose()
    build_store(tmp_path / "target", [snapshot], epoch=1, local={})
    async with await open_store(tmp_path / "target") as built:
        assert (await built.make_node(ROOT, b"new", node())).ino > gone
        assert await built.new_versions(1) > given


async def test_damage_found_at_the_end_leaves_nothing(tmp_path: Path) -> None:
    store, _, snapshot = await source(tmp_path)
    await store.set_setting("k", "v")
    journal = await cut_records(store, tmp_path / "source", snapshot=False)
    await store.aclose()
    with pytest.raises(CloudCorrupt):
        build_store(tmp_path / "target", [damaged(snapshot)], epoch=1, local={})
    with pytest.raises(CloudCorrupt):
        build_store(tmp_path / "target", [snapshot, damaged(journal)], epoch=1, local={})
    assert stores_in(tmp_path) == ["source"]
    build_store(tmp_path / "target", [snapshot], epoch=1, local={})
    before = journaled_rows(tmp_path / "target")
    with pytest.raises(CloudCorrupt):
        catch_up(tmp_path / "target", [damaged(journal)], epoch=2, local={"epoch": "3"})
    assert journaled_rows(tmp_path / "target") == before
    catch_up(tmp_path / "target", [journal], epoch=2, local={"epoch": "3"})
    assert journaled_rows(tmp_path / "target") == journaled_rows(tmp_path / "source")
    async with await open_store(tmp_path / "target") as built:
        assert await built.check_invariants() == []


async def test_left_by_a_crash_and_in_the_way(tmp_path: Path) -> None:
    store, _, snapshot = await source(tmp_path)
    await store.aclose()
    (tmp_path / "target.building").write_bytes(b"half a store")
    build_store(tmp_path / "target", [snapshot], epoch=1, local={})
    with pytest.raises(MetadataError, match="already"):
        build_store(tmp_path / "target", [snapshot], epoch=1, local={})
    assert stores_in(tmp_path) == ["source", "target"]


async def test_place_of_an_overwritten_version_stays_in_its_epoch(tmp_path: Path) -> None:
    """Version 3 is frozen by the cut, and sent after it was overwritten."""
    store, ino, _ = await source(tmp_path)
    frozen = await write(store, ino, 0)
    snapshot = await cut_records(store, tmp_path / "source")
    await write(store, ino, 0)
    number = await pack_all(store, 2)
    pack = await store.get_pack(number)
    later = await cut_records(store, tmp_path / "source", snapshot=False)
    await store.aclose()
    place = Location(number, 64, 116, 100, DIGEST)
    first = [*snapshot, *pack_records(pack, 1), version_record(frozen, place)]
    build_store(tmp_path / "one", [first], epoch=1, local={})
    async with await open_store(tmp_path / "one") as built:
        assert await built.check_invariants() == []
        (row,) = await built.chunk_rows(ino, ChunkIndex(0), ChunkIndex(0))
        assert (row.version, row.location, row.held) == (frozen, place, None)
    for name, build in (("both", True), ("one", False)):
        if build:
            build_store(tmp_path / name, [first, later], epoch=2, local={})
        else:
            assert catch_up(tmp_path / name, [later], epoch=2, local={}).versions_removed == 1
        assert journaled_rows(tmp_path / name) == journaled_rows(tmp_path / "source")
        async with await open_store(tmp_path / name) as built:
            assert await built.check_invariants() == []


async def test_duplicate_names_the_living_version(tmp_path: Path) -> None:
    store, ino, _ = await source(tmp_path)
    await write(store, ino, 5)
    snapshot = await cut_records(store, tmp_path / "source")
    await store.aclose()
    twin = VersionNo(1)
    build_store(tmp_path / "t", [[*snapshot, chunk_record(ino, ChunkIndex(5), twin)]], epoch=1, local={})
    async with await open_store(tmp_path / "t") as built:
        assert await built.check_invariants() == []
        (row,) = await built.chunk_rows(ino, ChunkIndex(5), ChunkIndex(5))
        assert row.version == twin
        assert row.location is not None


async def test_derived_columns_are_counted_whatever_the_records_say(tmp_path: Path) -> None:
    store, _, snapshot = await source(tmp_path)
    await store.aclose()
    wrong = []
    for record in snapshot:
        values = list(record.values or ())
        if record.table == "version":
            values[5] = 99
        if record.table == "inode":
            values[10] = 99
        if record.table == "pack":
            values[3:5] = (0, 0)
            values[6] = 1
        wrong.append(JournalRecord(record.table, record.key, tuple(values)))
    empty = JournalRecord("pack", (77,), (b"p" * 16, "1", 500, 5, 5, 1, None))
    wrong += [empty, version_record(VersionNo(50), Location(PackNo(77), 64, 5, 5, DIGEST))]
    done = build_store(tmp_path / "target", [wrong], epoch=6, local={})
    assert (done.versions_removed, done.packs_buried) == (1, 1)
    rows, before = journaled_rows(tmp_path / "target"), journaled_rows(tmp_path / "source")
    assert rows.pop("pack") == [*before.pop("pack"), (77, b"p" * 16, "1", 500, 0, 0, 1, 6)]
    assert rows == before


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (JournalRecord("chunk", (1, 9), (55,)), "stored nowhere"),
        (JournalRecord("pack", (1,), None), "catalogue"),
        (JournalRecord("inode", (1,), None), "root"),
        (JournalRecord("tags", (1,), (2,)), "unknown"),
        (JournalRecord("setting", ("a",), ("v", "w")), "replay|make"),
        (JournalRecord("setting", ("a",), (b"v",)), "TEXT"),
        (JournalRecord("chunk", (b"x", 1), (5,)), "replay|make"),
        (JournalRecord("setting", ("a",), (None,)), "NOT NULL"),
    ],
)
async def test_records_that_make_no_store(tmp_path: Path, bad: JournalRecord, why: str) -> None:
    store, _, snapshot = await source(tmp_path)
    await store.aclose()
    with pytest.raises(MetadataError, match=why):
        build_store(tmp_path / "target", [[*snapshot, bad]], epoch=1, local={})
    assert stores_in(tmp_path) == ["source"]
    before = journaled_rows(tmp_path / "source")
    with pytest.raises(MetadataError, match=why):
        catch_up(tmp_path / "source", [[bad]], epoch=2, local={})
    assert journaled_rows(tmp_path / "source") == before
    async with await open_store(tmp_path / "source") as again:
        assert await again.check_invariants() == []


async def test_changes_of_its_own_are_not_run_over(tmp_path: Path) -> None:
    store, ino, snapshot = await source(tmp_path)
    await store.set_setting("mine", "1")
    await store.aclose()
    with pytest.raises(MetadataError, match="on no cloud"):
        catch_up(tmp_path / "source", [snapshot], epoch=1, local={})
    async with await open_store(tmp_path / "source") as again:
        await write(again, ino, 0)
        await cut_records(again, tmp_path / "source")
    with pytest.raises(MetadataError, match="on no cloud"):
        catch_up(tmp_path / "source", [snapshot], epoch=1, local={})


async def test_what_is_held_stays_if_it_is_the_same(tmp_path: Path) -> None:
    store, ino, snapshot = await source(tmp_path)
    build_store(tmp_path / "other", [snapshot], epoch=1, local={})
    async with await open_store(tmp_path / "other") as other:
        await other.add_held(ino, [(ChunkIndex(0), VersionNo(1), 100), (ChunkIndex(1), VersionNo(2), 100)], 1)
    await write(store, ino, 1)
    await pack_all(store, 2)
    journal = await cut_records(store, tmp_path / "source", snapshot=False)
    await store.aclose()
    catch_up(tmp_path / "other", [journal], epoch=2, local={})
    async with await open_store(tmp_path / "other") as other:
        assert await other.check_invariants() == []
        rows = await other.chunk_rows(ino, ChunkIndex(0), ChunkIndex(9))
        assert [(row.index, row.held is not None) for row in rows] == [(0, True), (1, False)]
        assert other.statistics().outbox_rows == 0


async def test_an_upload_that_a_copy_of_this_store_finished_is_not_withdrawn(tmp_path: Path) -> None:
    """The state folder was copied while a pack was on its way; without it the new epoch could not be read."""
    store, ino, snapshot = await source(tmp_path)
    build_store(tmp_path / "copy", [snapshot], epoch=1, local={})
    async with await open_store(tmp_path / "copy") as copy:
        for pack_id in (2, 3):
            await copy.begin_pack(pack_id.to_bytes(16, "big"))
    await write(store, ino, 1)
    finished = await store.get_pack(await pack_all(store, 2))
    journal = await cut_records(store, tmp_path / "source", snapshot=False)
    await store.aclose()
    catch_up(tmp_path / "copy", [journal], epoch=2, local={})
    async with await open_store(tmp_path / "copy") as copy:
        assert finished.pack_id == (2).to_bytes(16, "big")
        assert await copy.pack_intents() == [(3).to_bytes(16, "big")]


async def test_store_of_an_older_schema_is_brought_up_first(tmp_path: Path) -> None:
    store, _, snapshot = await source(tmp_path)
    build_store(tmp_path / "old", [snapshot], epoch=1, local={})
    await store.set_setting("k", "v")
    journal = await cut_records(store, tmp_path / "source", snapshot=False)
    await store.aclose()
    with closing(apsw.Connection(str(tmp_path / "old"))) as connection:
        connection.execute(
            """DROP INDEX chunk_version; DROP INDEX version_digest; DROP INDEX version_pack;
            CREATE INDEX version_pack ON version (pack);
            ALTER TABLE pack DROP COLUMN used; DROP TABLE stray; DROP TABLE unknown_object; PRAGMA user_version = 1"""
        )
    catch_up(tmp_path / "old", [journal], epoch=2, local={})
    rows, wanted = journaled_rows(tmp_path / "old"), journaled_rows(tmp_path / "source")
    assert sorted(map(str, rows["pack"][0])) == sorted(map(str, wanted["pack"][0])), "a migrated column stands last"
    assert rows | {"pack": []} == wanted | {"pack": []}
    async with await open_store(tmp_path / "old") as again:
        assert again.statistics().outbox_rows == 0
        assert await again.check_invariants() == []


async def test_store_of_a_newer_schema_is_refused(tmp_path: Path) -> None:
    store, _, _ = await source(tmp_path)
    await store.set_setting("k", "v")
    journal = await cut_records(store, tmp_path / "source", snapshot=False)
    await store.aclose()
    with closing(apsw.Connection(str(tmp_path / "source"))) as connection:
        connection.pragma("user_version", 99)
    with pytest.raises(MetadataError, match="update"):
        catch_up(tmp_path / "source", [journal], epoch=2, local={})

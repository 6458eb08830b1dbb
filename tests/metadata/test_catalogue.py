"""Packs, intents, clouds, settings and the counters about them."""

from __future__ import annotations

import pytest

from cuckoo_mount.errors import MetadataError
from cuckoo_mount.metadata.catalogue import share_length_bytes
from cuckoo_mount.metadata.store import SqliteMetadata
from cuckoo_mount.types import CloudName, CloudRow, PackNo, ShareRow
from tests.metadata.helpers import DIGEST, ROOT, make_file, pack_all, sealed, write

A, B = CloudName("a"), CloudName("b")


async def test_intents(store: SqliteMetadata) -> None:
    await store.begin_pack(b"2" * 16)
    await store.begin_pack(b"1" * 16)
    assert await store.pack_intents() == [b"1" * 16, b"2" * 16]
    await store.abandon_pack(b"1" * 16)
    await store.finish_pack(b"2" * 16, "1", 10, [], [], ())
    assert await store.pack_intents() == []
    with pytest.raises(AssertionError, match="not begun"):
        await store.finish_pack(b"3" * 16, "1", 10, [], [], ())


async def test_pack_rows(store: SqliteMetadata) -> None:
    ino = await make_file(store, b"f")
    await write(store, ino, 0)
    chunks = await store.dirty_chunks(9, ())
    await store.begin_pack(b"p" * 16)
    shares = (ShareRow(0, B, DIGEST), ShareRow(1, A, DIGEST[::-1]))
    number = await store.finish_pack(b"p" * 16, "2", 1000, shares, [sealed(c) for c in chunks], ())
    pack = await store.get_pack(number)
    assert (pack.number, pack.pack_id, pack.policy, pack.size_bytes) == (number, b"p" * 16, "2", 1000)
    assert (pack.live_bytes, pack.dead, pack.shares) == (100, False, shares)
    statistics = store.statistics()
    assert (statistics.packs, statistics.pack_live_bytes, statistics.pack_stored_bytes) == (1, 100, 1000)
    assert await store.cloud_usage() == {A: (1, 1000), B: (1, 1000)}
    with pytest.raises(MetadataError):
        await store.get_pack(PackNo(99))
    with pytest.raises(AssertionError, match="not dead"):
        await store.forget_pack(number)
    await store.remove_link(ROOT, b"f", 1)
    await store.purge_inode(ino)
    assert await store.dead_packs(0) == []
    assert [dead.shares for dead in await store.dead_packs(5)] == [shares]
    await store.forget_pack(number)
    assert await store.cloud_usage() == {}
    assert await pack_all(store, 2) > number


@pytest.mark.parametrize(("policy", "length"), [("1", 1000), ("3", 1000), ("3+2", 334), ("10+1", 100)])
def test_share_length(policy: str, length: int) -> None:
    assert share_length_bytes(policy, 1000) == length


async def test_clouds_keep_their_order(store: SqliteMetadata) -> None:
    second = CloudRow(B, b"B" * 16, "mem://b", None, 5, "g", True)
    first = CloudRow(A, b"A" * 16, "mem://a", 1 << 40, 0, "", False)
    await store.put_cloud(second)
    await store.put_cloud(first)
    assert await store.clouds() == [second, first]
    changed = CloudRow(B, b"B" * 16, "mem://c", 7, 0, "", False)
    await store.put_cloud(changed)
    assert await store.clouds() == [changed, first]
    assert await store.cloud_usage() == {A: (0, 0), B: (0, 0)}


async def test_settings(store: SqliteMetadata) -> None:
    assert await store.get_setting("k") is None
    await store.set_setting("k", "1")
    await store.set_local("k", "local")
    await store.set_setting("k", "2")
    assert (await store.get_setting("k"), await store.get_local("k")) == ("2", "local")
    assert not any(record.table == "local_setting" for record in await store.journal(100))


async def test_deleted_settings(store: SqliteMetadata) -> None:
    for key in ("a.2", "a.1", "a_1", "b", "a.é"):
        await store.set_setting(key, key.upper())
    assert await store.settings("a.") == {"a.1": "A.1", "a.2": "A.2", "a.é": "A.É"}
    assert await store.settings("a.é") == {"a.é": "A.É"}
    await store.clear_journal(await store.journal(100))
    await store.delete_setting("a.1")
    await store.delete_setting("never there")
    assert await store.get_setting("a.1") is None
    assert list(await store.settings("")) == ["a.2", "a.é", "a_1", "b"]
    assert [(record.table, record.key, record.values) for record in await store.journal(100)] == [
        ("setting", ("a.1",), None)
    ]


async def test_a_pack_of_a_cut_outlives_what_it_was_made_for(store: SqliteMetadata) -> None:
    """Born in the cut's epoch although entered later, so that `dead_packs` waits for the next one."""
    ino = await make_file(store, b"f")
    await write(store, ino, 0)
    chunks = await store.dirty_chunks(9, ())
    assert [row[2] for row in await store.dirty_versions()] == [chunk.version for chunk in chunks]
    await store.enter_epoch(7)
    await write(store, ino, 0)
    await store.begin_pack(b"p" * 16)
    shares = (ShareRow(0, A, DIGEST),)
    number = await store.finish_pack(b"p" * 16, "1", 1000, shares, [sealed(c) for c in chunks], (), (), 7)
    assert (await store.get_pack(number)).dead
    assert await store.dead_packs(9, oldest_kept_epoch=7) == []
    assert [pack.number for pack in await store.dead_packs(9, oldest_kept_epoch=8)] == [number]
    assert await store.check_invariants() == []


async def test_the_number_of_a_cut_that_was_given_up_serves_again(store: SqliteMetadata) -> None:
    ino = await make_file(store, b"f")
    await store.enter_epoch(7)
    await write(store, ino, 0)
    number = await pack_all(store, 1)
    await store.enter_epoch(7)
    assert await store.get_local("epoch") == "8"
    await store.remove_link(ROOT, b"f", 1)
    await store.purge_inode(ino)
    assert await store.dead_packs(9, oldest_kept_epoch=7) == [], "the second cut refers to it"
    await store.enter_epoch(7)
    assert [pack.number for pack in await store.dead_packs(9, oldest_kept_epoch=6)] == [number], "the third does not"

"""Chunk rows, held rows and the life of versions, by operation."""

from __future__ import annotations

import pytest

from cuckoo_mount.errors import StaleInode
from cuckoo_mount.metadata.store import SqliteMetadata
from cuckoo_mount.types import (
    AbsentChunk,
    ChunkIndex,
    ChunkRow,
    ChunkWritten,
    CloudName,
    DirtyChunk,
    Held,
    InodeChanges,
    InodeNo,
    Location,
    PackNo,
    Partial,
    SealedChunk,
    ShareRow,
    VersionNo,
)
from tests.metadata.helpers import DIGEST, NO_CHANGES, ROOT, make_file, only_row, pack, pack_all, write

ZERO = ChunkIndex(0)


async def test_versions_are_never_given_twice(store: SqliteMetadata) -> None:
    first = await store.new_versions(3)
    assert first == 1
    second = await store.new_versions(10_000)
    assert second >= first + 3
    assert await store.new_versions(1) >= second + 10_000


async def test_written_chunk_is_dirty(store: SqliteMetadata) -> None:
    ino = await make_file(store, b"f")
    version = await store.new_versions(1)
    changes = InodeChanges(size_bytes=2_000_000, mtime_ns=50, ctime_ns=51)
    await store.apply_written(ino, changes, [ChunkWritten(ChunkIndex(1), version, 951_424, None)])
    inode = await store.get_inode(ino)
    assert (inode.size_bytes, inode.mtime_ns, inode.ctime_ns, inode.chunk_count) == (2_000_000, 50, 51, 1)
    assert await store.chunk_rows(ino, ZERO, ChunkIndex(5)) == [
        ChunkRow(ChunkIndex(1), version, None, Held(version, True, 951_424, 0), None, None)
    ]
    assert await store.has_dirty(ino)
    assert await store.dirty_chunks(10, ()) == [DirtyChunk(ino, ChunkIndex(1), version, 951_424)]
    statistics = store.statistics()
    assert (statistics.dirty_files, statistics.dirty_chunks, statistics.dirty_bytes) == (1, 1, 951_424)


async def test_rewritten_dirty_version_disappears(store: SqliteMetadata) -> None:
    ino = await make_file(store, b"f")
    await write(store, ino, 0)
    second = await write(store, ino, 0, 300)
    assert (await only_row(store, ino)).version == second
    assert (await store.get_inode(ino)).chunk_count == 1
    assert store.statistics().dirty_bytes == 300
    # The same version again: the chunk grew in place.
    await store.apply_written(ino, NO_CHANGES, [ChunkWritten(ZERO, second, 400, None)])
    assert store.statistics().dirty_bytes == 400


async def test_apply_written_to_nothing(store: SqliteMetadata) -> None:
    with pytest.raises(StaleInode):
        await write(store, InodeNo(99), 0)
    assert store.statistics().dirty_chunks == 0


async def test_packed_chunk_is_clean(store: SqliteMetadata) -> None:
    ino = await make_file(store, b"f")
    version = await write(store, ino, 0)
    number = await pack_all(store)
    location = Location(number, 64, 116, 100, DIGEST)
    assert await only_row(store, ino) == ChunkRow(ZERO, version, location, Held(version, False, 100, 0), None, None)
    assert not await store.has_dirty(ino)
    assert await store.dirty_chunks(10, ()) == []
    assert await store.files_with_clean_chunks() == [ino]
    with pytest.raises(AssertionError):
        await store.apply_written(ino, NO_CHANGES, [ChunkWritten(ZERO, version, 50, None)])
    assert (await only_row(store, ino)).location == location


async def test_overwritten_while_it_was_packed(store: SqliteMetadata) -> None:
    ino = await make_file(store, b"f")
    version = await write(store, ino, 0)
    number = await pack(store, await store.dirty_chunks(1, ()), overwritten=frozenset({version}))
    row = await only_row(store, ino)
    assert (row.held, row.location is not None) == (None, True)
    await write(store, ino, 0)
    assert (await store.get_pack(number)).dead


async def test_replaced_while_it_was_packed(store: SqliteMetadata) -> None:
    ino, other = await make_file(store, b"f"), await make_file(store, b"g")
    await write(store, ino, 0)
    await write(store, other, 0)
    frozen = await store.dirty_chunks(2, ())
    newer = await write(store, ino, 0)
    await store.remove_link(ROOT, b"g", 1)
    await store.purge_inode(other)
    number = await pack(store, frozen)
    row = await only_row(store, ino)
    assert (row.version, row.location) == (newer, None)
    entered = await store.get_pack(number)
    assert (entered.dead, entered.live_bytes) == (True, 0)


async def test_pack_dies_with_its_last_version(store: SqliteMetadata) -> None:
    ino = await make_file(store, b"f")
    await write(store, ino, 0, 100)
    await write(store, ino, 1, 50)
    await write(store, ino, 2, 0)
    await store.set_local("epoch", "4")
    number = await pack_all(store)
    assert (await store.get_pack(number)).live_bytes == 150
    await write(store, ino, 0)
    await write(store, ino, 1)
    alive = await store.get_pack(number)
    assert (alive.live_bytes, alive.dead) == (0, False)
    assert await store.dead_packs(10) == []
    await store.truncate_rows(ino, InodeChanges(size_bytes=0), ZERO, None)
    assert [dead.number for dead in await store.dead_packs(10)] == [number]
    await store.forget_pack(number)
    assert await store.dead_packs(10) == []
    assert store.statistics().packs == 0


async def test_partial_keeps_its_base(store: SqliteMetadata) -> None:
    ino = await make_file(store, b"f")
    base = await write(store, ino, 0)
    number = await pack_all(store)
    await store.drop_held([(ino, ZERO)])
    partial = Partial(base, 90, ((10, 20), (40, 41)))
    version = await write(store, ino, 0, 100, partial)
    row = await only_row(store, ino)
    assert (row.version, row.location, row.partial) == (version, None, partial)
    assert row.base_location is not None
    assert row.base_location.pack == number
    assert await store.dirty_chunks(10, ()) == []
    assert await store.partial_chunks(10) == [(ino, ZERO)]
    # Written once more, still partial; then the base arrived.
    again = await write(store, ino, 0, 100, Partial(base, 80, ()))
    assert await store.check_invariants() == []
    assert not (await store.get_pack(number)).dead
    await store.apply_written(ino, NO_CHANGES, [ChunkWritten(ZERO, again, 100, None)])
    assert await store.partial_chunks(10) == []
    assert (await store.get_pack(number)).dead
    assert [chunk.version for chunk in await store.dirty_chunks(10, ())] == [again]


async def test_failed_apply_changes_nothing(store: SqliteMetadata) -> None:
    ino = await make_file(store, b"f")
    await write(store, ino, 0)
    version = await store.new_versions(2)
    await store.commit()
    before = (await store.get_inode(ino), await only_row(store, ino), store.statistics())
    with pytest.raises(AssertionError, match="not stored"):
        await store.apply_written(ino, NO_CHANGES, [ChunkWritten(ZERO, version, 5, Partial(VersionNo(77), 5, ()))])
    assert store.statistics() == before[2]
    chunks = [
        ChunkWritten(ZERO, version, 5, None),
        ChunkWritten(ChunkIndex(1), VersionNo(version + 1), 5, Partial(VersionNo(77), 5, ())),
    ]
    with pytest.raises(AssertionError, match="not stored"):
        await store.apply_written(ino, InodeChanges(size_bytes=9), chunks)
    assert (await store.get_inode(ino), await only_row(store, ino), store.statistics()) == before
    assert await store.commit() is False


async def test_truncate(store: SqliteMetadata) -> None:
    ino = await make_file(store, b"f")
    for index in range(4):
        await write(store, ino, index)
    number = await pack_all(store)
    kept = await only_row(store, ino, 0)
    old = await only_row(store, ino, 1)
    version = await store.new_versions(1)
    boundary = ChunkWritten(ChunkIndex(1), version, 7, Partial(old.version, 7, ()))
    changes = InodeChanges(size_bytes=1_048_583, mtime_ns=9, ctime_ns=9)
    inode = await store.truncate_rows(ino, changes, ChunkIndex(2), boundary)
    assert (inode.size_bytes, inode.chunk_count, inode.mtime_ns) == (1_048_583, 2, 9)
    rows = await store.chunk_rows(ino, ZERO, ChunkIndex(9))
    assert [row.version for row in rows] == [kept.version, version]
    assert (await store.get_pack(number)).live_bytes == 200


async def test_purge_releases_everything(store: SqliteMetadata) -> None:
    ino = await make_file(store, b"f")
    base = await write(store, ino, 0)
    await write(store, ino, 1)
    first = await pack_all(store)
    await write(store, ino, 0, 10, Partial(base, 5, ((0, 3),)))
    await write(store, ino, 2)
    await store.set_xattrs(ino, {b"user.a": b"1"}, NO_CHANGES)
    with pytest.raises(AssertionError, match="still has a name"):
        await store.purge_inode(ino)
    await store.remove_link(ROOT, b"f", 1)
    await store.purge_inode(ino)
    assert (await store.get_pack(first)).dead
    assert await store.chunk_rows(ino, ZERO, ChunkIndex(9)) == []
    statistics = store.statistics()
    assert (statistics.inodes, statistics.dirty_chunks, statistics.clean_bytes) == (1, 0, 0)


async def test_drop_held_refuses_dirty(store: SqliteMetadata) -> None:
    ino = await make_file(store, b"f")
    await write(store, ino, 0)
    await pack_all(store)
    await write(store, ino, 1)
    with pytest.raises(AssertionError, match="dirty"):
        await store.drop_held([(ino, ZERO), (ino, ChunkIndex(1))])
    assert (await only_row(store, ino)).held is not None
    await store.drop_held([(ino, ZERO), (ino, ChunkIndex(8))])
    assert (await only_row(store, ino)).held is None


async def test_drop_held_files(store: SqliteMetadata) -> None:
    ino = await make_file(store, b"f")
    await write(store, ino, 0)
    await pack_all(store)
    await write(store, ino, 1)
    await store.drop_held_files([ino])
    assert (await only_row(store, ino)).held is None
    assert (await only_row(store, ino, 1)).held is not None
    assert await store.files_with_clean_chunks() == []


async def test_add_held_only_where_it_is_still_true(store: SqliteMetadata) -> None:
    ino = await make_file(store, b"f")
    version = await write(store, ino, 0)
    dirty = await write(store, ino, 1)
    await pack(store, await store.dirty_chunks(1, ()))
    fetched = [(ZERO, version, 100), (ChunkIndex(1), dirty, 100), (ChunkIndex(2), VersionNo(50), 100)]
    await store.add_held(ino, fetched, 3)
    row = await only_row(store, ino)
    assert row.held == Held(version, False, 100, 0), "was held already"
    await store.drop_held([(ino, ZERO)])
    await store.add_held(ino, [(ZERO, VersionNo(version + 9), 100)], 4)
    assert (await only_row(store, ino)).held is None
    await store.add_held(ino, fetched, 5)
    assert (await only_row(store, ino)).held == Held(version, False, 100, 5)
    held = (await only_row(store, ino, 1)).held
    assert held is not None
    assert held.dirty


async def test_evictable_least_recently_used_first(store: SqliteMetadata) -> None:
    ino = await make_file(store, b"f")
    for index in range(100):
        await write(store, ino, index)
    await pack_all(store)
    await write(store, ino, 0)
    await store.touch_held([(ino, ChunkIndex(1))], 9)
    await store.touch_held([(ino, ChunkIndex(2))], 8)
    found = await store.evictable(101)
    assert [index for _, index, _, _ in found] == [3, 4]
    everything = await store.evictable(1 << 40)
    assert [index for _, index, _, _ in everything] == [*range(3, 100), 2, 1]
    assert await store.evictable(0) == []
    # What is written counts as used at the latest tick.
    await write(store, ino, 3)
    held = (await only_row(store, ino, 3)).held
    assert held is not None
    assert held.tick == 9


async def test_dirty_chunks_oldest_first_without_excluded(store: SqliteMetadata) -> None:
    ino = await make_file(store, b"f")
    versions = [await write(store, ino, index) for index in (5, 3, 4)]
    assert [chunk.version for chunk in await store.dirty_chunks(2, ())] == versions[:2]
    assert [chunk.version for chunk in await store.dirty_chunks(2, {versions[1]})] == [versions[0], versions[2]]
    assert await store.dirty_chunks(0, ()) == []


async def test_absent_neighbours(store: SqliteMetadata) -> None:
    files = [await make_file(store, b"f%d" % number) for number in range(5)]
    for ino in files:
        await write(store, ino, 0)
    chunks = await store.dirty_chunks(10, ())
    await store.begin_pack(bytes(16))
    shares = [ShareRow(0, CloudName("a"), DIGEST)]
    places = [SealedChunk(chunk, 64 + 200 * number, 116, DIGEST) for number, chunk in enumerate(chunks)]
    number = await store.finish_pack(bytes(16), "1", 2000, shares, places, ())
    assert await store.absent_neighbours(number, 0, 2000, 10) == [], "all are held"

    await store.drop_held_files(files)
    found = await store.absent_neighbours(number, 0, 2000, 10)
    assert [chunk.ino for chunk in found] == files
    row = await only_row(store, files[1])
    assert found[1] == AbsentChunk(files[1], ZERO, row.version, Location(number, 264, 116, 100, DIGEST))
    assert [chunk.ino for chunk in await store.absent_neighbours(number, 264, 664, 10)] == files[1:3]
    assert [chunk.ino for chunk in await store.absent_neighbours(number, 0, 2000, 2)] == files[:2]
    assert await store.absent_neighbours(PackNo(number + 1), 0, 2000, 10) == []

    await store.add_held(files[0], [(ZERO, chunks[0].version, 100)], 1)
    await write(store, files[1], 0)
    await store.remove_link(ROOT, b"f2", 20)
    left = await store.absent_neighbours(number, 0, 2000, 10)
    assert [chunk.ino for chunk in left] == files[3:], "held, written anew, and without a name"

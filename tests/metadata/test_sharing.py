"""Chunks that share versions, and versions that move: what single cases must do; the model does the rest."""

from __future__ import annotations

from cuckoo_mount.metadata.store import SqliteMetadata
from cuckoo_mount.types import ChunkIndex, CloudName, Duplicate, InodeChanges, SealedChunk, ShareRow, VersionNo
from tests.metadata.helpers import DIGEST, make_file, only_row, pack, pack_all, write

A, B = CloudName("a"), CloudName("b")
KEY = (DIGEST, 100)


async def test_only_what_can_be_read_counts_as_stored(store: SqliteMetadata) -> None:
    ino = await make_file(store, b"f")
    version = await write(store, ino, 0)
    assert await store.find_duplicates("1", {A}, [KEY]) == {}
    await pack_all(store)
    assert await store.find_duplicates("1", {A}, [KEY, (DIGEST, 99), (bytes(32), 100)]) == {KEY: version}
    assert await store.find_duplicates("1", {B}, [KEY]) == {}, "its cloud is away"
    assert await store.find_duplicates("1", set(), [KEY]) == {}
    assert await store.find_duplicates("2", {A}, [KEY]) == {}, "another policy"
    await store.truncate_rows(ino, InodeChanges(size_bytes=0), ChunkIndex(0), None)
    assert await store.find_duplicates("1", {A}, [KEY]) == {}, "dead"


async def test_a_pack_with_too_few_shares_is_not_referred_to(store: SqliteMetadata) -> None:
    version = VersionNo(0)
    for number, clouds in enumerate(([A], [A, B]), start=1):
        ino = await make_file(store, b"%d" % number)
        version = await write(store, ino, 0)
        name = bytes([number] * 16)
        await store.begin_pack(name)
        sealed = [SealedChunk(chunk, 64, 50, DIGEST) for chunk in await store.dirty_chunks(9, ())]
        shares = [ShareRow(share, cloud, DIGEST) for share, cloud in enumerate(clouds)]
        await store.finish_pack(name, "2", 1000, shares, sealed, set())
    assert await store.find_duplicates("2", {A, B}, [KEY]) == {KEY: version}
    assert len(await store.find_duplicates("2", {A}, [KEY])) == 1, "nor would a new pack have more"
    assert await store.find_duplicates("2", {A, B, CloudName("c")}, [KEY]) == {KEY: version}


async def test_one_file_names_a_version_many_times(store: SqliteMetadata) -> None:
    """Cutting the file takes back each reference, not one."""
    ino, other = await make_file(store, b"f"), await make_file(store, b"g")
    first = await write(store, ino, 0)
    number = await pack_all(store)
    for index in range(1, 5):
        await write(store, ino, index)
    await write(store, other, 0)
    chunks = await store.dirty_chunks(9, ())
    linked = await store.link_duplicates([Duplicate(chunk, first) for chunk in chunks], set())
    assert [link.chunk for link in linked] == chunks
    assert await store.check_invariants() == []
    assert not store.statistics().dirty_chunks
    await store.truncate_rows(ino, InodeChanges(size_bytes=0), ChunkIndex(2), None)
    assert await store.check_invariants() == []
    await store.truncate_rows(ino, InodeChanges(size_bytes=0), ChunkIndex(0), None)
    assert await store.check_invariants() == []
    assert (await only_row(store, other)).version == first
    await store.truncate_rows(other, InodeChanges(size_bytes=0), ChunkIndex(0), None)
    assert (await store.get_pack(number)).dead


async def test_a_link_needs_both_ends(store: SqliteMetadata) -> None:
    ino, other = await make_file(store, b"f"), await make_file(store, b"g")
    first = await write(store, ino, 0)
    await pack_all(store)
    await write(store, other, 0)
    (chunk,) = await store.dirty_chunks(9, ())
    assert await store.link_duplicates([Duplicate(chunk, VersionNo(10**6))], set()) == []
    newer = await write(store, other, 0)
    assert await store.link_duplicates([Duplicate(chunk, first)], set()) == [], "written again"
    assert (await only_row(store, other)).version == newer
    (chunk,) = await store.dirty_chunks(9, ())
    assert len(await store.link_duplicates([Duplicate(chunk, first)], {newer})) == 1
    row = await only_row(store, other)
    assert (row.version, row.held) == (first, None), "the local bytes are newer already"


async def test_moving_the_last_version_kills_the_old_pack(store: SqliteMetadata) -> None:
    files = [await make_file(store, b"%d" % number) for number in range(3)]
    for ino in files:
        await write(store, ino, 0)
    chunks = await store.dirty_chunks(9, ())
    old = await pack(store, chunks)
    await store.truncate_rows(files[0], InodeChanges(size_bytes=0), ChunkIndex(0), None)
    fills = await store.pack_fills(50, 0)
    assert [(fill.number, fill.live_bytes, fill.used_bytes, fill.versions) for fill in fills] == [(old, 200, 232, 2)]
    assert await store.pack_fills(1, 100) == []
    assert await store.pack_fills(1, 1000) == fills
    await store.begin_pack(b"n" * 16)
    moved = [SealedChunk(chunk, 64 + 10 * number, 9, DIGEST) for number, chunk in enumerate(chunks)]
    shares = [ShareRow(0, A, DIGEST)]
    places = await store.move_versions(b"n" * 16, "1", 500, shares, moved, {B})
    assert list(places) == [chunk.version for chunk in chunks[1:]]
    assert (await only_row(store, files[2])).location == places[chunks[2].version]
    row = await store.find_pack(b"n" * 16)
    assert row is not None
    assert (row.live_bytes, row.used_bytes, row.dead) == (200, 18, False)
    assert [pack.number for pack in await store.dead_packs(9)] == [old]
    assert await store.strays() == [(b"n" * 16, B)]
    await store.forget_stray(b"n" * 16, B)
    assert await store.strays() == []
    assert await store.check_invariants() == []

"""Clouds that leave, and packs with too few shares."""

from __future__ import annotations

import pytest
from attrs import evolve

from cuckoo_mount.errors import MetadataError
from cuckoo_mount.metadata.store import SqliteMetadata
from cuckoo_mount.types import CloudLoad, CloudName, CloudRow, CloudUse, PackNo, ShareRow
from tests.metadata.helpers import DIGEST, ROOT, make_file, sealed, write

A, B = CloudName("a"), CloudName("b")


async def add_clouds(store: SqliteMetadata) -> None:
    for name in (A, B):
        await store.put_cloud(CloudRow(name, name.encode() * 16, f"mem://{name}", None, 0, "", False))


async def stored(store: SqliteMetadata, name: bytes, policy: str, *clouds: CloudName) -> PackNo:
    """Make a file of one chunk in a pack of 1000 bytes on these clouds."""
    await write(store, await make_file(store, name), 0)
    chunks = [sealed(chunk) for chunk in await store.dirty_chunks(9, ())]
    pack_id = name.ljust(16, b"-")
    await store.begin_pack(pack_id)
    shares = [ShareRow(number, cloud, DIGEST) for number, cloud in enumerate(clouds)]
    return await store.finish_pack(pack_id, policy, 1000, shares, chunks, ())


async def test_only_there(store: SqliteMetadata) -> None:
    await stored(store, b"both", "2", A, B)
    await stored(store, b"a", "1", A)
    assert await store.only_on(A) == (1, 1000)
    assert await store.only_on(B) == (0, 0)
    ino = (await store.lookup(ROOT, b"a")).ino
    await store.remove_link(ROOT, b"a", 1)
    await store.purge_inode(ino)
    assert await store.only_on(A) == (0, 0)


@pytest.mark.parametrize(
    ("policy", "clouds", "degraded"),
    [("1", (A,), 0), ("2", (A,), 1), ("2", (A, B), 0), ("3", (A, B), 1), ("1+1", (A, B), 0), ("2+1", (A, B), 1)],
)
async def test_degraded(store: SqliteMetadata, policy: str, clouds: tuple[CloudName, ...], degraded: int) -> None:
    await add_clouds(store)
    await stored(store, b"f", policy, *clouds)
    assert await store.degraded_packs() == degraded


async def test_removing_a_cloud(store: SqliteMetadata) -> None:
    await add_clouds(store)
    both = await stored(store, b"both", "2", A, B)
    lost = await stored(store, b"a", "1", A)
    await store.remove_cloud(A)
    assert [cloud.name for cloud in await store.clouds()] == [B]
    assert await store.cloud_usage() == {A: (1, 1000), B: (1, 1000)}
    assert [share.cloud for share in (await store.get_pack(both)).shares] == [B]
    assert [share.cloud for share in (await store.get_pack(lost)).shares] == [A]
    assert await store.degraded_packs() == 2
    assert await store.check_invariants() == []
    with pytest.raises(MetadataError):
        await store.remove_cloud(A)


async def test_what_lies_on_a_cloud(store: SqliteMetadata) -> None:
    await add_clouds(store)
    both = await stored(store, b"both", "2", A, B)
    other = await stored(store, b"a", "1", A)
    assert await store.load_of(A) == CloudLoad(2, 2000, 0)
    assert await store.load_of(B) == CloudLoad(1, 1000, 0)
    assert await store.living_on(A, 9) == [both, other]
    assert await store.living_on(A, 1) == [both]
    ino = (await store.lookup(ROOT, b"a")).ino
    await store.remove_link(ROOT, b"a", 1)
    await store.purge_inode(ino)
    assert await store.load_of(A) == CloudLoad(1, 1000, 1)
    assert await store.living_on(A, 9) == [both]
    assert await store.load_of(CloudName("nobody")) == CloudLoad(0, 0, 0)


async def test_what_a_cloud_is_used_for(store: SqliteMetadata) -> None:
    await add_clouds(store)
    (row, other) = await store.clouds()
    assert (row.use, other.use) == (CloudUse.NORMAL, CloudUse.NORMAL)
    assert await store.settings("use.") == {}
    for use in CloudUse:
        await store.put_cloud(evolve(row, use=use))
        assert [cloud.use for cloud in await store.clouds()] == [use, CloudUse.NORMAL]
    await store.set_setting("use.b", "what a later version has")
    assert [cloud.use for cloud in await store.clouds()] == [CloudUse.DRAINED, CloudUse.NO_NEW]
    await store.remove_cloud(A)
    assert await store.settings("use.") == {"use.b": "what a later version has"}
    await store.put_cloud(row)
    assert (await store.clouds())[-1].use is CloudUse.NORMAL, "a new cloud of that name is not drained"

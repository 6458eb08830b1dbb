"""Rows of shares that are lost, and the names of what cannot be read."""

from __future__ import annotations

import pytest

from cuckoo_mount.metadata.store import SqliteMetadata
from cuckoo_mount.types import CloudName, PackNo, ShareRow
from tests.metadata.helpers import DIGEST, ROOT, make_directory, make_file, only_row
from tests.metadata.test_cloudrows import A, B, add_clouds, stored

C = CloudName("c")


async def test_a_lost_share_makes_a_degraded_pack(store: SqliteMetadata) -> None:
    await add_clouds(store)
    number = await stored(store, b"f", "2", A, B)
    lost, kept = (await store.get_pack(number)).shares
    assert await store.drop_shares(number, [lost], left_over=[A]) == 1
    assert (await store.get_pack(number)).shares == (kept,)
    assert await store.degraded_packs() == 1
    assert await store.cloud_usage() == {A: (0, 0), B: (1, 1000)}
    assert await store.strays() == [(b"f".ljust(16, b"-"), A)]
    assert await store.check_invariants() == []
    assert await store.drop_shares(number, [lost], left_over=[A]) == 0, "it is gone already"


@pytest.mark.parametrize(("policy", "clouds"), [("2", (A,)), ("2+1", (A, B))])
async def test_what_reading_takes_stays(store: SqliteMetadata, policy: str, clouds: tuple[CloudName, ...]) -> None:
    await add_clouds(store)
    number = await stored(store, b"f", policy, *clouds)
    shares = (await store.get_pack(number)).shares
    assert await store.drop_shares(number, shares[:1]) == 0
    assert (await store.get_pack(number)).shares == shares
    assert await store.strays() == []


async def test_rows_that_changed_meanwhile_stay(store: SqliteMetadata) -> None:
    number = await stored(store, b"f", "3", A, B, C)
    others = [ShareRow(0, B, DIGEST), ShareRow(0, A, b"x" * 32), ShareRow(7, A, DIGEST)]
    assert await store.drop_shares(number, others) == 0
    assert len((await store.get_pack(number)).shares) == 3
    await store.purge_inode((await store.remove_link(ROOT, b"f", 1)).ino)
    pack = await store.get_pack(number)
    assert pack.dead
    assert await store.drop_shares(number, pack.shares[:1]) == 0
    assert len((await store.get_pack(number)).shares) == 3
    assert await store.drop_shares(PackNo(99), pack.shares[:1]) == 0


async def test_counting(store: SqliteMetadata) -> None:
    assert await store.newest_pack() == 0
    first, second = await stored(store, b"f", "2", A, B), await stored(store, b"g", "1", A)
    assert await store.newest_pack() == second
    assert await store.count_shares(PackNo(0), second) == (3, 3000)
    assert await store.count_shares(first, second) == (1, 1000)
    assert await store.count_shares(PackNo(0), first) == (2, 2000)
    await store.purge_inode((await store.remove_link(ROOT, b"f", 1)).ino)
    assert await store.count_shares(PackNo(0), second) == (1, 1000)


async def test_paths(store: SqliteMetadata) -> None:
    await stored(store, b"f", "1", A)
    deep = await make_directory(store, b"deep", await make_directory(store, b"er"))
    ino = (await store.lookup(ROOT, b"f")).ino
    await store.add_link(ino, deep, b"g\xff", 1)
    await make_file(store, b"other")
    version = (await only_row(store, ino)).version
    assert await store.paths_of([version], 10) == [b"/f", b"/er/deep/g\xff"]
    assert await store.paths_of([version], 1) == [b"/f"]
    assert await store.paths_of([], 10) == []

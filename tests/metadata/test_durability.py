"""Commit, the shared flush, failures of the disk, and the length of the write-ahead log."""

from __future__ import annotations

import errno
import os
import resource
import threading
from pathlib import Path

import pytest
import trio
import trio.testing

from cuckoo_mount.errors import MetadataError
from cuckoo_mount.metadata.store import SqliteMetadata, StoreOptions, open_store
from tests.metadata.helpers import ROOT, copy_as_after_kill, make_file, names_in, new_store


class Gate:
    """A flush that ends when it is told to; `outcomes`: what each ends with, in order."""

    def __init__(self) -> None:
        self.begun = 0
        self.closed = False
        self.fail = False
        self._open = threading.Semaphore(0)

    def __call__(self, log: int) -> None:
        self.begun += 1
        if self.closed:
            assert self._open.acquire(timeout=60), "nobody let this flush through"
        if self.fail:
            raise OSError(errno.EIO, "made-up failure")
        os.fdatasync(log)

    async def until_begun(self, count: int) -> None:
        """Wait until `count` flushes have begun in their threads."""
        with trio.fail_after(60):
            while self.begun < count:
                await trio.lowlevel.checkpoint()

    def let_one_through(self) -> None:
        self._open.release()


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
async def gated(tmp_path: Path, gate: Gate) -> SqliteMetadata:
    return await new_store(tmp_path / "metadata", StoreOptions(flush=gate))


async def test_commit_tells_whether_there_was_anything(store: SqliteMetadata) -> None:
    assert await store.commit() is False
    await make_file(store, b"f")
    assert await store.commit() is True
    assert await store.commit() is False
    assert store.statistics().commits == 1


async def test_only_what_was_committed_survives_a_kill(store: SqliteMetadata, tmp_path: Path) -> None:
    await make_file(store, b"committed")
    await store.commit()
    await make_file(store, b"not committed")
    copy_as_after_kill(tmp_path / "metadata", tmp_path / "copy")
    async with await open_store(tmp_path / "copy") as copy:
        assert set(await names_in(copy)) == {b"committed"}


async def test_make_durable_is_a_checkpoint_and_flushes_only_if_needed(store: SqliteMetadata) -> None:
    for wanted in (0, 1, 1):
        with trio.testing.assert_checkpoints():
            await store.make_durable()
        assert store.statistics().syncs == wanted
        if wanted == 0:
            await make_file(store, b"f")


async def test_late_callers_wait_for_the_next_flush(gated: SqliteMetadata, gate: Gate) -> None:
    gate.closed = True
    finished: list[str] = []

    async def durable(name: str) -> None:
        await make_file(gated, name.encode())
        await gated.make_durable()
        finished.append(name)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(durable, "a")
        await gate.until_begun(1)
        nursery.start_soon(durable, "b")
        nursery.start_soon(durable, "c")
        await trio.testing.wait_all_tasks_blocked()
        assert (gate.begun, finished) == (1, [])
        gate.let_one_through()
        await gate.until_begun(2)
        await trio.testing.wait_all_tasks_blocked()
        assert finished == ["a"]
        gate.let_one_through()
    assert sorted(finished) == ["a", "b", "c"]
    assert gated.statistics().syncs == 2
    gate.closed = False
    await gated.aclose()


async def test_cancelled_callers_disturb_nobody(gated: SqliteMetadata, gate: Gate) -> None:
    gate.closed = True
    leader, follower = trio.CancelScope(), trio.CancelScope()
    finished: list[str] = []

    async def durable(name: str, scope: trio.CancelScope) -> None:
        with scope:
            await make_file(gated, name.encode())
            await gated.make_durable()
            finished.append(name)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(durable, "leader", leader)
        await gate.until_begun(1)
        nursery.start_soon(durable, "follower", follower)
        nursery.start_soon(durable, "other", trio.CancelScope())
        await trio.testing.wait_all_tasks_blocked()
        leader.cancel()
        follower.cancel()
        await trio.testing.wait_all_tasks_blocked()
        gate.let_one_through()
        gate.let_one_through()
    assert "other" in finished
    assert "follower" not in finished
    assert set(await names_in(gated)) == {b"leader", b"follower", b"other"}
    gate.closed = False
    await gated.aclose()


async def test_cancelled_before_it_began(gated: SqliteMetadata, gate: Gate) -> None:
    await make_file(gated, b"f")
    with trio.CancelScope() as scope:
        scope.cancel()
        await gated.make_durable()
    assert gate.begun == 0
    await gated.make_durable()
    assert gate.begun == 1
    await gated.aclose()


async def test_a_refusing_disk_makes_it_read_only_for_good(gated: SqliteMetadata, gate: Gate, tmp_path: Path) -> None:
    await make_file(gated, b"safe")
    await gated.make_durable()
    gate.closed, gate.fail = True, True
    failures: list[MetadataError] = []

    async def durable(name: bytes) -> None:
        await make_file(gated, name)
        with pytest.raises(MetadataError, match="made-up failure") as caught:
            await gated.make_durable()
        failures.append(caught.value)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(durable, b"a")
        nursery.start_soon(durable, b"b")
        await trio.testing.wait_all_tasks_blocked()
        gate.let_one_through()
    assert len(failures) == 2
    gate.fail, gate.closed = False, False
    for attempt in (make_file(gated, b"c"), gated.commit(), gated.make_durable(), gated.new_versions(1)):
        with pytest.raises(MetadataError, match="made-up failure"):
            await attempt
    assert set(await names_in(gated)) == {b"safe", b"a", b"b"}, "reading goes on"
    with pytest.raises(MetadataError):
        await gated.aclose()
    await gated.aclose()
    async with await open_store(tmp_path / "metadata") as store:
        assert b"safe" in await names_in(store)
        assert await store.check_invariants() == []


async def test_a_full_disk_fails_loudly(tmp_path: Path) -> None:
    path = tmp_path / "metadata"
    store = await new_store(path)
    await make_file(store, b"safe")
    await store.make_durable()
    for number in range(300):
        await make_file(store, b"lost%d" % number)
    # No file may grow past this: as far as SQLite can tell the disk is full in the middle of the commit.
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (os.stat(f"{path}-wal").st_size + 8192, limits[1]))
    try:
        with pytest.raises(MetadataError, match="lost"):
            await store.commit()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    for attempt in (make_file(store, b"x"), store.get_inode(ROOT), store.commit(), store.make_durable()):
        with pytest.raises(MetadataError, match="lost"):
            await attempt
    with pytest.raises(MetadataError, match="lost"):
        await store.aclose()
    async with await open_store(path) as again:
        assert set(await names_in(again)) == {b"safe"}
        assert await again.check_invariants() == []


@pytest.mark.slow
async def test_log_stays_short_under_load(tmp_path: Path) -> None:
    page = 4096
    options = StoreOptions(log_soft_bytes=16 * page, log_hard_bytes=64 * page, page_cache_bytes=64 * page)
    store = await new_store(tmp_path / "metadata", options)
    longest = 0
    for number in range(2000):
        await make_file(store, b"%d" % number)
        await store.commit()
        longest = max(longest, store.log_pages)
        await trio.lowlevel.checkpoint()
    assert longest <= 4 * 64 + 32
    assert store.log_restarts > 0
    copy_as_after_kill(tmp_path / "metadata", tmp_path / "copy")
    for opened in (store, await open_store(tmp_path / "copy")):
        assert len(await names_in(opened)) == 2000
        assert await opened.check_invariants() == []
        await opened.aclose()


async def test_idle_store_restarts_its_log(tmp_path: Path) -> None:
    store = await new_store(tmp_path / "metadata", StoreOptions(log_soft_bytes=4 * 4096))
    for number in range(5000):
        await make_file(store, b"%d" % number)
    await store.commit()
    while not store.log_restarts:
        await store.commit()
        await trio.lowlevel.checkpoint()
    assert store.log_pages < 4
    await make_file(store, b"f")
    await store.commit()
    assert store.log_pages < 32
    await store.aclose()

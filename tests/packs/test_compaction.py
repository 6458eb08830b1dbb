"""Compaction and collection over a real store, with a kill between every two steps."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from cuckoo_mount.errors import CloudUnavailable
from cuckoo_mount.metadata.store import SqliteMetadata, open_store
from cuckoo_mount.multi.health import Health
from cuckoo_mount.multi.multifs import MultiFS
from cuckoo_mount.multi.policies import Policies
from cuckoo_mount.packs.builder import ChunkSource
from cuckoo_mount.packs.collecting import Collected, Collector
from cuckoo_mount.packs.garbage import find_orphans, load_known
from cuckoo_mount.packs.reader import PackReader
from cuckoo_mount.packs.writer import PackWriter
from cuckoo_mount.types import ChunkIndex, DirtyChunk, Location, PackFill, PackNo, VersionNo
from tests.metadata.helpers import ROOT, copy_as_after_kill, make_file, new_store, only_row, write
from tests.packs.packtools import DRIVE, KEYS, InlinePool, make_clouds, stored_objects

FIRST = ChunkIndex(0)
PACK_SIZE = 64 << 10
CHUNK = 4 << 10


class Killed(BaseException):
    """The process ends here."""


class Drive:
    """A drive of files of one chunk each.  `contents`: what must be readable, by name."""

    def __init__(self, root: Path, *clouds: str) -> None:
        self.root = root
        self.clouds = make_clouds(root, *clouds)
        self.policy = str(len(clouds))
        (root / "files").mkdir()
        self.contents: dict[bytes, bytes] = {}
        self.random = random.Random(1)

    @asynccontextmanager
    async def mounted(self) -> AsyncIterator[Drive]:
        path = self.root / "metadata"
        self.metadata: SqliteMetadata = await (open_store(path) if path.exists() else new_store(path))
        async with self.metadata:
            self.pool = InlinePool()
            self.multifs = MultiFS(self.clouds, self.pool, Health(jitter=lambda: 0.0), DRIVE)
            self.multifs.rooms.set_usage(await self.metadata.cloud_usage())
            await self.multifs.probe()
            self.writer = PackWriter(
                self.metadata, self.multifs, self.pool, KEYS, self.root / "staging",
                drive_id=DRIVE, encrypted=True, policies=Policies(self.policy), pack_size_bytes=PACK_SIZE,
            )  # fmt: skip
            self.reader = PackReader(self.metadata, self.multifs, KEYS, DRIVE, encrypted=True, deadline_s=5.0)
            self.moves: dict[VersionNo, Location] = {}
            self.collector = Collector(
                self.metadata, self.multifs, self.writer, self.reader,
                drive_id=DRIVE, moved=self._moved, is_idle=lambda: True,
            )  # fmt: skip
            await self.writer.recover()
            yield self
            assert await self.writer.check_invariants() == []

    def _moved(self, places: Mapping[VersionNo, Location]) -> None:
        self.moves.update(places)

    async def add(self, *names: bytes) -> PackNo:
        """Make files of random bytes and store them as one pack."""
        sources = []
        for name in names:
            content = self.random.randbytes(CHUNK)
            ino = await make_file(self.metadata, name)
            version = await write(self.metadata, ino, 0, CHUNK)
            path = self.root / "files" / str(version)
            path.write_bytes(content)
            sources.append(ChunkSource(DirtyChunk(ino, FIRST, version, CHUNK), str(path), 0))
            self.contents[name] = content
        built = await self.writer.build(sources)
        stored = await self.writer.store(built)
        return await self.metadata.finish_pack(
            built.pack_id, stored.policy, stored.size_bytes, stored.shares, built.sealed, set(), stored.strays
        )

    async def remove(self, *names: bytes) -> None:
        for name in names:
            inode = await self.metadata.remove_link(ROOT, name, 1)
            await self.metadata.purge_inode(inode.ino)
            self.contents.pop(name, None)

    async def fill(self) -> None:
        """Three packs of which a third lives, and a full one."""
        for pack in range(4):
            names = [b"%d-%d" % (pack, number) for number in range(15)]
            await self.add(*names)
            if pack < 3:
                await self.remove(*names[5:])
        await self.metadata.make_durable()

    async def location(self, name: bytes) -> Location:
        inode = await self.metadata.lookup(ROOT, name)
        location = (await only_row(self.metadata, inode.ino)).location
        assert location is not None
        return location

    async def verify(self) -> None:
        """Everything can be read, from every cloud, the rows are right, and nothing else is on the clouds."""
        await self.verify_contents()
        for pack in await self.metadata.packs(1000):
            assert len(pack.shares) == len(self.clouds)
        found = await find_orphans(self.multifs, DRIVE, lambda: load_known(self.metadata))
        assert (found.orphans, found.not_listed) == ((), ())
        assert os.listdir(self.root / "staging") == []

    async def verify_contents(self) -> None:
        assert await self.metadata.check_invariants() == []
        for name, content in self.contents.items():
            assert await self.reader.read(await self.location(name)) == content

    def objects(self) -> int:
        return sum(len(stored_objects(entry)) for entry in self.clouds.values())

    def stored_bytes(self) -> int:
        return sum(path.stat().st_size for entry in self.clouds.values() for path in stored_objects(entry))


@pytest.fixture
def drive(tmp_path: Path) -> Drive:
    return Drive(tmp_path, "a", "b")


async def test_sparse_packs_become_one(drive: Drive) -> None:
    async with drive.mounted():
        await drive.fill()
        before = {name: await drive.location(name) for name in drive.contents}
        collected = await drive.collector.collect(thorough=False)
        assert (collected.packs_compacted, collected.packs_deleted, collected.packs_kept) == (3, 3, 0)
        assert drive.objects() == 2 * 2
        await drive.verify()
        after = {name: await drive.location(name) for name in drive.contents}
        moved = {name for name in before if before[name] != after[name]}
        assert moved == {name for name in before if not name.startswith(b"3-")}
        assert set(drive.moves.values()) == {after[name] for name in moved}
        drive.pool.calls.clear()
        assert await drive.collector.collect(thorough=True) == Collected()
        assert {job for job, _ in drive.pool.calls} == {"list_objects"}, "nothing is left to do"
    async with drive.mounted():
        await drive.verify()


async def test_one_request_reads_a_sparse_pack(drive: Drive) -> None:
    async with drive.mounted():
        await drive.fill()
        drive.pool.calls.clear()
        await drive.collector.collect(thorough=False)
        jobs = [job for job, _ in drive.pool.calls]
        assert (jobs.count("save_run"), jobs.count("put_share")) == (3, 2)


async def test_small_packs_become_one(drive: Drive) -> None:
    async with drive.mounted():
        for number in range(9):
            await drive.add(b"%d" % number)
        assert (await drive.collector.collect(thorough=False)).packs_compacted == 9
        await drive.verify()
        assert drive.objects() == 2


@pytest.mark.slow
async def test_the_background_rests_between_two_runs(drive: Drive, autojump_clock: trio.testing.MockClock) -> None:
    async with drive.mounted():
        for number in range(8):
            await drive.add(b"%d" % number)
        assert (await drive.collector.collect(thorough=False)).packs_compacted == 8
        for number in range(10, 18):
            await drive.add(b"%d" % number)
        assert (await drive.collector.collect(thorough=False)).packs_compacted == 0
        await trio.sleep(600)
        drive.pool.calls.clear()
        assert (await drive.collector.collect(thorough=False)).packs_compacted == 8
        await trio.sleep(600)
        drive.pool.calls.clear()
        await drive.collector.collect(thorough=False)
        assert drive.pool.calls == [], "an idle drive asks for nothing"


async def test_a_pack_that_cannot_be_read_stays_as_it_is(drive: Drive) -> None:
    async with drive.mounted():
        await drive.fill()
        damaged = await drive.metadata.get_pack((await drive.location(b"1-2")).pack)
        for entry in drive.clouds.values():
            for path in stored_objects(entry):
                if path.name.startswith(damaged.pack_id.hex()):
                    path.write_bytes(bytes(path.stat().st_size))
        first = await drive.collector.collect(thorough=False)
        assert first.packs_compacted == 0, "they were to become one"
        assert (await drive.collector.collect(thorough=True)).packs_compacted >= 2
        assert (await drive.location(b"1-2")).pack == damaged.number
        drive.contents = {name: content for name, content in drive.contents.items() if not name.startswith(b"1-")}
        await drive.verify()


async def test_gc_ends_on_a_drive_in_use(drive: Drive, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every look there are two more small packs: those are for the next time."""
    async with drive.mounted():
        await drive.fill()
        look, looks = drive.metadata.pack_fills, 0

        async def look_again(percent: int, small_bytes: int) -> list[PackFill]:
            nonlocal looks
            looks += 1
            assert looks < 10, "it goes on for ever"
            await drive.add(b"one %d" % looks)
            await drive.add(b"other %d" % looks)
            return await look(percent, small_bytes)

        monkeypatch.setattr(drive.metadata, "pack_fills", look_again)
        collected = await drive.collector.collect(thorough=True)
        assert collected.packs_compacted >= 3
        assert collected.packs_deleted >= 3
        await drive.verify()


async def test_gc_heals_what_there_is_when_it_begins(drive: Drive, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every share that is stored is found damaged at once."""
    async with drive.mounted():
        await drive.fill()

        def all_of_them() -> frozenset[bytes]:
            found = [path.name for entry in drive.clouds.values() for path in stored_objects(entry)]
            assert len(found) < 50, "it goes on for ever"
            return frozenset(bytes.fromhex(name.partition(".")[0]) for name in found)

        monkeypatch.setattr(drive.multifs, "take_damaged", all_of_them)
        assert (await drive.collector.collect(thorough=True)).packs_healed == 4
        await drive.verify()


@pytest.mark.slow
async def test_what_dies_or_changes_meanwhile_is_not_moved(drive: Drive) -> None:
    async with drive.mounted():
        await drive.fill()

        def die() -> None:
            if drive.pool.calls and drive.pool.calls[-1][0] == "put_share":
                drive.pool.on_step = lambda: None
                nursery.start_soon(drive.remove, b"0-0", b"1-1", b"1-2", b"1-3", b"1-4", b"1-0")

        drive.pool.on_step = die
        async with trio.open_nursery() as nursery:
            assert (await drive.collector.collect(thorough=False)).packs_compacted == 3
        await drive.verify()
        new = await drive.metadata.get_pack((await drive.location(b"0-1")).pack)
        assert new.live_bytes == 9 * CHUNK


@pytest.mark.slow
async def test_fewer_copies_than_before_are_not_taken(drive: Drive) -> None:
    async with drive.mounted():
        await drive.fill()
        before = {name: await drive.location(name) for name in drive.contents}

        def fail() -> None:
            if drive.pool.calls and drive.pool.calls[-1][0] == "build_pack":
                drive.pool.failures["b"] = [CloudUnavailable("down")] * 50

        drive.pool.on_step = fail
        assert (await drive.collector.collect(thorough=False)).packs_compacted == 0
        drive.pool.on_step, drive.pool.failures = (lambda: None), {}
        assert before == {name: await drive.location(name) for name in drive.contents}
        await drive.multifs.probe()
        await drive.collector.collect(thorough=False)
        await drive.verify()
        assert await drive.metadata.pack_intents() == []


async def _until(drive: Drive, step: int, *, kill: bool) -> bool:
    """Collect until `step`; return whether it ended before."""
    left, scope = step, trio.CancelScope()

    def count() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            if kill:
                copy_as_after_kill(drive.root / "metadata", drive.root / "killed")
                raise Killed
            scope.cancel()

    drive.pool.on_step = count
    with scope:
        await drive.collector.collect(thorough=True)
        return True
    return False


@pytest.mark.slow
@pytest.mark.parametrize("kill", [True, False])
async def test_stopped_at_every_step(tmp_path: Path, kill: bool) -> None:
    """Whatever was done by then: after the next mount everything is readable and nothing else is stored."""
    step, ended, stops = 0, False, 0
    while not ended:
        step += 1
        (root := tmp_path / str(step)).mkdir()
        drive = Drive(root, "a", "b")
        async with drive.mounted():
            await drive.fill()
            try:
                ended = await _until(drive, step, kill=kill)
            except* Killed:
                stops += 1
            drive.pool.on_step = lambda: None
            if not kill:
                await drive.collector.collect(thorough=True)
                await drive.verify()
        if (root / "killed").exists():
            for suffix in ("", "-wal"):
                (root / f"metadata{suffix}").unlink(missing_ok=True)
                os.rename(root / f"killed{suffix}", root / f"metadata{suffix}")
        async with drive.mounted():
            await drive.verify()
            await drive.collector.collect(thorough=True)
            await drive.verify()
            assert drive.objects() == 2 * 2
        shutil.rmtree(root)
    assert step > 12
    assert stops == (step - 1 if kill else 0)


@pytest.mark.slow
async def test_churn_then_gc(drive: Drive) -> None:
    async with drive.mounted():
        names = [b"%d" % number for number in range(60)]
        for turn in range(10):
            for _ in range(4):
                part = drive.random.sample(names, 12)
                await drive.remove(*(name for name in part if name in drive.contents))
                await drive.add(*part)
            if turn % 3 == 0:
                await drive.collector.collect(thorough=False)
        await drive.collector.collect(thorough=True)
        await drive.verify()
        live = sum(len(content) for content in drive.contents.values())
        assert drive.stored_bytes() <= 1.3 * live * 2

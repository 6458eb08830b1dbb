"""Every public async method of the drive's parts, cancelled at every step: nothing is lost, mixed or left behind.

The list of methods comes from the code: one without an operation here, or a reason in `NOT_CANCELLED`, fails.
After each cancellation the invariants hold, and at the end all files have the bytes that were written last, also in a
new process, and the clouds have what the metadata says and nothing else.
"""

from __future__ import annotations

import inspect
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

import pytest
import trio
from attrs import define, field

from cuckoo_mount.cache.chunkcache import ChunkCache
from cuckoo_mount.clouds import jobs
from cuckoo_mount.config.records import CloudConfig
from cuckoo_mount.draining import Drainer
from cuckoo_mount.drive import Drive
from cuckoo_mount.epochs.engine import EpochEngine
from cuckoo_mount.format import identity_name
from cuckoo_mount.fsck import DriveChecker
from cuckoo_mount.housekeeping import Housekeeper
from cuckoo_mount.layers.keyslots import Passphrase
from cuckoo_mount.multi.multifs import MultiFS
from cuckoo_mount.packs.builder import BuiltPack, ChunkSource
from cuckoo_mount.packs.collecting import Collector, keeping
from cuckoo_mount.packs.compactjobs import SaveRun
from cuckoo_mount.packs.reader import PackReader
from cuckoo_mount.packs.scrubbing import ScrubRequest
from cuckoo_mount.packs.writer import PackWriter
from cuckoo_mount.parted.partedfs import PartedFS
from cuckoo_mount.parted.tree import AttributeRequest, Tree
from cuckoo_mount.rebalancing import Rebalancer
from cuckoo_mount.roster import Roster
from cuckoo_mount.rules import Rules
from cuckoo_mount.scrubbing import DriveScrubber
from cuckoo_mount.slots import DriveSlots, proof_of
from cuckoo_mount.types import ROOT_INODE, ChunkIndex, CloudName, CloudUse, DirtyChunk, InodeNo, Location, VersionNo
from tests.cancel.cancelling import cancel_at_each_step
from tests.pool.packing import KIB, MIB
from tests.pool.pooling import ME, OpenedDrive, PoolMount, folder_place, take_inventory

pytestmark = [pytest.mark.slow]

PARTS: Final = (
    *(PartedFS, Tree, ChunkCache, PackWriter, PackReader, Collector, MultiFS, EpochEngine, Drive, Roster, Rules),
    *(DriveSlots, Drainer, Rebalancer, DriveScrubber, DriveChecker, Housekeeper),
)
NOT_CANCELLED: Final = {
    "ChunkCache.running": "a context manager; its end is cancelled whenever a drive closes",
    "EpochEngine.run": "a loop that only a cancellation ends",
    "Housekeeper.run": "a loop that only a cancellation ends",
    "Collector.run_healing": "a loop that only a cancellation ends",
    "EpochEngine.release": "the drive cannot be written afterwards; the hand-over tests kill in it",
    "Drainer.run": "a loop that only a cancellation ends; the tests of draining kill it",
    "Collector.alone": "a lock around others' work, which is cancelled in Rebalancer.run",
    "Collector.heal_all": "the end of DriveScrubber.scrub",
    "EpochEngine.inspect": "a lock around others' work, which is cancelled in DriveScrubber.scrub",
    "Roster.note_drained_locked": "a part of Drainer.run",
    "MultiFS.read_stripe": "covered by PackReader on a drive with K+M (test_cancelled_reading_of_stripes)",
}
Operation = Callable[["Scene"], Awaitable[object]]


@define(eq=False)
class Scene:
    """A drive open in this process, and what the operations act on."""

    opened: OpenedDrive
    mount: PoolMount
    contents: dict[str, bytes] = field(factory=dict)
    counter: int = 0

    @property
    def drive(self) -> Drive:
        return self.opened.drive

    @property
    def fs(self) -> PartedFS:
        return self.drive.filesystem

    @property
    def tree(self) -> Tree:
        return self.drive.filesystem.tree

    @property
    def cache(self) -> ChunkCache:
        return self.drive._cache

    @property
    def multifs(self) -> MultiFS:
        return self.drive._multifs

    @property
    def engine(self) -> EpochEngine:
        return self.drive._engine

    @property
    def collector(self) -> Collector:
        return self.drive._housekeeper._collector

    @property
    def writer(self) -> PackWriter:
        return self.collector._writer

    @property
    def reader(self) -> PackReader:
        return self.collector._compactor._reader

    @property
    def roster(self) -> Roster:
        return self.drive.roster

    def fresh(self) -> str:
        """Return a name that was never used."""
        self.counter += 1
        return f"n{self.counter}"

    async def ino(self, name: str) -> InodeNo:
        return (await self.tree.lookup(ROOT_INODE, name.encode())).ino

    async def write_some(self, name: str, size_bytes: int = 3000) -> None:
        """Let a file have new bytes; may be cancelled before or after, never in between."""
        self.counter += 1
        data = random.Random(self.counter).randbytes(size_bytes)
        with trio.CancelScope(shield=True):
            await self.opened.write(name, data)
        self.contents[name] = data

    @asynccontextmanager
    async def handle(self, name: str, flags: int) -> AsyncIterator[int]:
        with trio.CancelScope(shield=True):
            number = await self.fs.open(await self.ino(name), flags)
        try:
            yield number
        finally:
            with trio.CancelScope(shield=True):
                await self.fs.release(number)

    async def build(self) -> BuiltPack:
        """Build a pack of bytes that no file names."""
        path = self.mount.folder / self.fresh()
        path.write_bytes(random.Random(self.counter).randbytes(5000))
        chunk = DirtyChunk(InodeNo(1 << 40), ChunkIndex(0), VersionNo((1 << 40) + self.counter), 5000)
        return await self.writer.build([ChunkSource(chunk, str(path), 0)])

    async def location(self, name: str) -> Location:
        """Return where the first chunk of a file that is stored lies."""
        rows = await self.drive._metadata.chunk_rows(await self.ino(name), ChunkIndex(0), ChunkIndex(0))
        found = rows[0].location
        assert found is not None
        return found

    async def check(self) -> None:
        with trio.CancelScope(shield=True):
            assert await self.drive.check_invariants() == []


# -- the operations; each can be called again and again --


async def _create(scene: Scene) -> None:
    number, _ = await scene.fs.create(ROOT_INODE, scene.fresh().encode(), 0o644, ME)
    await scene.fs.release(number)


async def _open_truncating(scene: Scene) -> None:
    scene.contents.pop("o", None)  # cut or not
    await scene.fs.release(await scene.fs.open(await scene.ino("o"), os.O_RDWR | os.O_TRUNC))


async def _read(scene: Scene) -> None:
    with trio.CancelScope(shield=True):
        await scene.opened.evict()
    async with scene.handle("big", os.O_RDONLY) as number:
        assert await scene.fs.read(number, MIB - 5, 10) == scene.contents["big"][MIB - 5 : MIB + 5]


async def _write(scene: Scene) -> None:
    scene.contents.pop("w", None)  # a write that is cancelled was made or not
    async with scene.handle("w", os.O_RDWR) as number:
        await scene.fs.write(number, 10, b"some bytes")


async def _sync_file(scene: Scene) -> None:
    await scene.write_some("s")
    async with scene.handle("s", os.O_RDWR) as number:
        await scene.fs.sync_file(number)


async def _directory(scene: Scene) -> None:
    number = await scene.fs.open_directory(ROOT_INODE)
    await scene.fs.read_directory(number, 0, 100)
    await scene.fs.sync_directory(number)
    await scene.fs.release_directory(number)


async def _resize(scene: Scene) -> None:
    scene.contents.pop("t", None)
    await scene.fs.set_attributes(await scene.ino("t"), AttributeRequest(mode=0o600), 1000 + scene.counter)


async def _names(scene: Scene) -> None:
    """Make, link, list, rename, remove; each of them is atomic, so that what is there at the end can be anything."""
    tree, name, other = scene.tree, scene.fresh().encode(), scene.fresh().encode()
    inode = await tree.make(ROOT_INODE, name, 0o100644, ME)
    await tree.link(inode.ino, ROOT_INODE, other)
    await tree.entries(ROOT_INODE, 2, 10)
    await tree.set_xattr(inode.ino, b"user.a", b"b")
    await tree.set_xattr(inode.ino, b"user.cuckoo.redundancy", b"1")
    assert await tree.get_xattr(inode.ino, b"user.a") == b"b"
    await tree.list_xattrs(inode.ino)
    await tree.remove_xattr(inode.ino, b"user.a")
    await tree.set_attributes(inode.ino, AttributeRequest(mode=0o640))
    await tree.inode(inode.ino)
    await tree.rename(ROOT_INODE, name, ROOT_INODE, other)
    await tree.unlink(ROOT_INODE, other)
    folder = await tree.make(ROOT_INODE, scene.fresh().encode(), 0o040755, ME)
    await tree.lookup(folder.ino, b".")
    await tree.rmdir(ROOT_INODE, f"n{scene.counter}".encode())
    link = await tree.make(ROOT_INODE, scene.fresh().encode(), 0o120777, ME, target=b"x")
    await tree.readlink(link.ino)
    await tree.unlink(ROOT_INODE, f"n{scene.counter}".encode())
    tree.references.add(inode.ino)
    await tree.forget(inode.ino, 1)


async def _rename_over(scene: Scene) -> None:
    """The new content comes with its name or not at all."""
    name = scene.fresh()
    await scene.write_some(name)
    data = scene.contents.pop(name)
    scene.contents.pop("r", None)
    await scene.tree.rename(ROOT_INODE, name.encode(), ROOT_INODE, b"r")
    scene.contents["r"] = data


async def _cache_reading(scene: Scene) -> None:
    with trio.CancelScope(shield=True):
        await scene.opened.evict()
    state = await scene.cache.open(await scene.ino("big"), writing=False)
    try:
        assert await scene.cache.read(state, 0, 100) == scene.contents["big"][:100]
    finally:
        scene.cache.release(state, writing=False)


async def _cache_writing(scene: Scene) -> None:
    scene.contents.pop("c", None)
    state = await scene.cache.open(await scene.ino("c"), writing=True)
    try:
        await scene.cache.admit_file()
        await scene.cache.write(state, 5, b"bytes")
        await scene.cache.set_size(state, 2000 + scene.counter % 7, 1)
        await scene.cache.sync_file(state)
    finally:
        scene.cache.release(state, writing=True)


async def _cache_saving(scene: Scene) -> None:
    await scene.write_some("a")
    await scene.cache.checkpoint()
    await scene.cache.make_durable()
    await scene.cache.send_all()
    await scene.cache.evict(1 << 30)
    await scene.cache.check_invariants()


async def _purge(scene: Scene) -> None:
    name = scene.fresh()
    await scene.write_some(name)
    scene.contents.pop(name)
    ino = await scene.ino(name)
    await scene.tree.unlink(ROOT_INODE, name.encode())
    with trio.CancelScope(shield=True):
        is_left = ino in await scene.drive._metadata.orphans()
    if is_left:
        await scene.cache.purge(ino)


async def _pack(scene: Scene) -> None:
    built = await scene.build()
    try:
        stored = await scene.writer.store(built)
    except BaseException:
        scene.writer.leave(built)
        raise
    scene.writer.renounce(stored)
    await scene.writer.withdraw_left()


async def _discard(scene: Scene) -> None:
    built = await scene.build()
    try:
        await scene.writer.discard(built)
    finally:
        scene.writer.leave(built)


async def _recover(scene: Scene) -> None:
    with trio.CancelScope(shield=True):
        await scene.opened.sync()  # nothing is under way then, as at a mount
    await scene.writer.recover()


async def _pack_reading(scene: Scene) -> None:
    with trio.CancelScope(shield=True):
        places = [await scene.location(name) for name in ("kept", "big")]
    assert await scene.reader.read(places[0]) == scene.contents["kept"]
    run = [place for place in places if place.pack == places[0].pack]
    await scene.reader.read_run(run)
    await scene.reader.read_ahead(run)
    path = scene.mount.folder / "saved"
    path.touch()
    await scene.reader.save_run(SaveRun((places[0],), str(path), 0))


async def _collect(scene: Scene) -> None:
    """With something to compact and something to delete each time."""
    with trio.CancelScope(shield=True):
        await scene.write_some("g", 40 * KIB)
        await scene.write_some("h", 40 * KIB)
        await scene.opened.sync()
        await scene.write_some("g", 40 * KIB)
        await scene.opened.sync()
    await scene.drive.collect()


async def _collect_a_little(scene: Scene) -> None:
    await scene.collector.collect(thorough=False)


async def _clouds(scene: Scene) -> None:
    multifs, name = scene.multifs, CloudName("a")
    await multifs.look_after()
    await multifs.probe()
    await multifs.list_packs(name)
    await multifs.refresh_space()
    await multifs.ask(name, jobs.capabilities, deadline_s=10)
    await multifs.consult(name, jobs.get, identity_name(scene.drive.config.drive_id), deadline_s=10)
    await multifs.delete_objects(name, [])


async def _shares(scene: Scene) -> None:
    """A pack past the writer: put, read, deleted, withdrawn."""
    with trio.CancelScope(shield=True):
        built = await scene.build()
        pack = await scene.drive._metadata.get_pack((await scene.location("kept")).pack)
    await scene.drive._metadata.begin_pack(built.pack_id)
    try:
        shares = await scene.multifs.put_pack(built.pack_id, built.path, built.size_bytes, "2", built.share_digest)
        await scene.multifs.get_range(built.pack_id, shares, 0, 10, deadline_s=10)
        await scene.multifs.first_whole(pack.pack_id, pack.shares, jobs.get, length_bytes=10, deadline_s=10)
    finally:
        scene.multifs.forget_upload(built.pack_id)
        scene.writer.leave_intent(built.pack_id, uploading_bytes=built.size_bytes)
    await scene.multifs.withdraw(built.pack_id, shares=2)
    await scene.multifs.delete_packs([])


async def _epoch(scene: Scene) -> None:
    await scene.write_some("e")
    await scene.engine.make(bounded=True)
    await scene.engine.send_all()
    await scene.engine.look_after()
    await scene.engine.keep_claim()
    await scene.engine.trim(2)


async def _drive(scene: Scene) -> None:
    await scene.write_some("d")
    await scene.drive.send_all()
    await scene.drive.status()
    await scene.drive.degraded_packs()
    await scene.drive.retry_clouds()
    await scene.drive.evict_all()
    await scene.drive.check_invariants()


async def _roster(scene: Scene) -> None:
    """A cloud comes, is used in another way, tested, and goes."""
    if not any(cloud["name"] == "extra" for cloud in scene.roster.listing()):
        folder = scene.mount.folder / scene.fresh()
        folder.mkdir()
        await scene.roster.add(CloudConfig(name="extra", url=str(folder), cloud_id=os.urandom(16)), {})
    cloud = next(cloud for cloud in scene.drive.config.clouds if cloud.name == "extra")
    await scene.roster.change(cloud, {})
    await scene.roster.load()
    await scene.roster.sign_new()
    await scene.roster.put_slots()
    await scene.roster.note_redundancy("2")
    assert not (await scene.roster.test("extra")).error
    await scene.roster.plan_removal("extra")
    await scene.roster.remove("extra", lost=True)


async def _use(scene: Scene) -> None:
    """A cloud for nothing new, and back; one that is emptied."""
    with trio.CancelScope(shield=True):
        if not any(cloud["name"] == "other" for cloud in scene.roster.listing()):
            folder = scene.mount.folder / "other"
            folder.mkdir()
            await scene.roster.add(CloudConfig(name="other", url=str(folder), cloud_id=os.urandom(16)), {})
        await scene.roster.use_as("other", CloudUse.NORMAL)
    assert (await scene.roster.row("other")).use is CloudUse.NORMAL
    await scene.roster.use_as("other", CloudUse.NO_NEW)
    await scene.roster.use_as("other", CloudUse.NORMAL)
    await scene.drive.drainer.plan("other")
    await scene.drive.drainer.begin("other")
    await scene.drive.drainer.wait("other")
    await scene.roster.use_as("other", CloudUse.NORMAL)


async def _rebalance(scene: Scene) -> None:
    await scene.drive.rebalancer.plan()
    await scene.drive.rebalancer.run()
    await scene.writer.wait_until_quiet()
    await scene.collector.delete_dead(keeping(0))
    await scene.collector.make_room(oldest_kept_epoch=keeping(0))
    await scene.drive._housekeeper.correct_usage()


async def _scrub(scene: Scene) -> None:
    """With a share gone and another one damaged each time."""
    with trio.CancelScope(shield=True):
        await scene.opened.sync()
    place = scene.mount.places[scene.counter % 3]
    names = sorted(place.packs())
    if len(names) > 1:
        place.delete(names[0])
        place.write(names[1], place.read(names[1])[:-1] + b"?")
    await scene.drive.scrubber.scrub(ScrubRequest(deep=True))
    await scene.drive.scrubber.last()


async def _fsck(scene: Scene) -> None:
    """With a share gone each time."""
    with trio.CancelScope(shield=True):
        await scene.opened.sync()
    place = scene.mount.places[scene.counter % 3]
    if names := sorted(place.packs()):
        place.delete(names[0])
    await scene.drive.checker.as_document(await scene.drive.checker.check(repair=True))


async def _examine(scene: Scene) -> None:
    name = identity_name(scene.drive.config.drive_id)
    await scene.multifs.examine(CloudName("a"), jobs.get, name, deadline_s=10)
    await scene.multifs.read_object(CloudName("a"), jobs.get, name, deadline_s=10, bytes_down=10)


async def _rules(scene: Scene) -> None:
    await scene.drive.rules.set_durability("local")
    await scene.drive.rules.set_redundancy("2")


async def _slots(scene: Scene) -> None:
    slots = scene.drive.slots
    await slots.ensure_recovery()
    await slots.objects()
    await slots.note_recovery_key_shown()
    await slots.recovery_key_shown()
    await slots.change_passphrase(Passphrase("correct horse"), proof_of(slots.drive_key))


OPERATIONS: Final[dict[Operation, str]] = {
    _create: "PartedFS.create PartedFS.release",
    _open_truncating: "PartedFS.open",
    _read: "PartedFS.read",
    _write: "PartedFS.write",
    _sync_file: "PartedFS.sync_file",
    _directory: "PartedFS.open_directory PartedFS.read_directory PartedFS.sync_directory PartedFS.release_directory",
    _resize: "PartedFS.set_attributes PartedFS.space",
    _names: "Tree.make Tree.link Tree.entries Tree.set_xattr Tree.get_xattr Tree.list_xattrs Tree.remove_xattr"
    " Tree.set_attributes Tree.inode Tree.unlink Tree.lookup Tree.rmdir Tree.readlink Tree.forget",
    _rename_over: "Tree.rename",
    _cache_reading: "ChunkCache.open ChunkCache.read",
    _cache_writing: "ChunkCache.admit_file ChunkCache.write ChunkCache.set_size ChunkCache.sync_file",
    _cache_saving: "ChunkCache.checkpoint ChunkCache.make_durable ChunkCache.send_all ChunkCache.evict"
    " ChunkCache.check_invariants PackWriter.check_invariants",
    _purge: "ChunkCache.purge",
    _pack: "PackWriter.build PackWriter.store PackWriter.withdraw_left",
    _discard: "PackWriter.discard",
    _recover: "PackWriter.recover",
    _pack_reading: "PackReader.read PackReader.read_run PackReader.read_ahead PackReader.save_run",
    _collect: "Drive.collect Housekeeper.collect",
    _collect_a_little: "Collector.collect",
    _clouds: "MultiFS.look_after MultiFS.probe MultiFS.list_packs MultiFS.refresh_space MultiFS.ask"
    " MultiFS.consult MultiFS.delete_objects",
    _shares: "MultiFS.put_pack MultiFS.get_range MultiFS.first_whole MultiFS.withdraw MultiFS.delete_packs",
    _epoch: "EpochEngine.make EpochEngine.send_all EpochEngine.look_after EpochEngine.keep_claim EpochEngine.trim",
    _drive: "Drive.send_all Drive.status Drive.degraded_packs Drive.retry_clouds Drive.evict_all"
    " Drive.check_invariants",
    _roster: "Roster.add Roster.change Roster.load Roster.sign_new Roster.put_slots Roster.note_redundancy Roster.test"
    " Roster.plan_removal Roster.remove",
    _use: "Roster.use_as Roster.row Drainer.plan Drainer.begin Drainer.wait",
    _rebalance: "Rebalancer.plan Rebalancer.run PackWriter.wait_until_quiet Collector.delete_dead"
    " Collector.make_room Housekeeper.correct_usage",
    _scrub: "DriveScrubber.scrub DriveScrubber.last",
    _fsck: "DriveChecker.check DriveChecker.as_document",
    _examine: "MultiFS.examine MultiFS.read_object",
    _rules: "Rules.set_durability Rules.set_redundancy",
    _slots: "DriveSlots.ensure_recovery DriveSlots.objects DriveSlots.note_recovery_key_shown"
    " DriveSlots.recovery_key_shown DriveSlots.change_passphrase",
}


STRIDES: Final[dict[Operation, int]] = {
    **{_collect: 40, _epoch: 9, _drive: 9, _roster: 9, _use: 9},
    **{_rebalance: 15, _scrub: 25, _fsck: 40},
}
"""In the short form only every so-manieth step is tried."""


def public_methods() -> Iterator[str]:
    """Yield what can be awaited of the drive's parts."""
    for part in PARTS:
        for name, function in inspect.getmembers(part, inspect.isfunction):
            is_async = inspect.iscoroutinefunction(inspect.unwrap(function)) or inspect.isasyncgenfunction(
                inspect.unwrap(function)
            )
            if is_async and not name.startswith("_"):
                yield f"{part.__name__}.{name}"


def test_every_public_async_method_is_cancelled() -> None:
    covered = {name for names in OPERATIONS.values() for name in names.split()}
    found = set(public_methods())
    assert not found - covered - NOT_CANCELLED.keys(), "without an operation"
    assert not (covered | NOT_CANCELLED.keys()) - found, "no longer there"


async def test_cancelled_anywhere_nothing_is_lost(
    tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUCKOO_TESTING", "1")
    is_long = request.config.getoption("--long")
    places = [folder_place(tmp_path / "clouds", name) for name in ("a", "b", "c")]
    mount = PoolMount(tmp_path / "drive", places, redundancy="2")
    counts: dict[str, int] = {}
    async with mount.opened() as opened:
        scene = Scene(opened, mount)
        for name in ("o", "w", "t", "r", "c", "kept"):
            await scene.write_some(name)
        await scene.write_some("big", 2 * MIB + 100)
        await opened.sync()
        for operation in OPERATIONS:
            counts[operation.__name__] = await cancel_at_each_step(
                partial(operation, scene), scene.check, stride=1 if is_long else STRIDES.get(operation, 4)
            )
            for name, data in scene.contents.items():
                assert await opened.read(name) == data, f"{name} after {operation.__name__}"
        with trio.fail_after(120):
            await opened.sync()
            await opened.drive.drainer.begin("other")
            await opened.drive.drainer.wait("other")
            await scene.roster.remove("other", lost=False)
            await opened.drive.collect(keep=1)
        await scene.check()
    print(f"cancelled {sum(counts.values())} times: {counts}")
    assert sum(counts.values()) > 100
    assert {name for name, count in counts.items() if not count} <= {"_create", "_names"}, "they never wait"
    inventory = take_inventory(mount)
    assert (inventory.orphans, inventory.dangling, inventory.strays) == ([], [], 0)
    async with mount.opened() as opened:
        assert not await opened.drive._metadata.pack_intents(), "the next mount clears them away"
        assert not await opened.drive.check_invariants()
        for name, data in scene.contents.items():
            assert await opened.read(name) == data

"""The cache against a model: random operations, invariants after every step, kills and remounts in between."""

from __future__ import annotations

import random
from pathlib import Path
from tempfile import TemporaryDirectory

import trio
import trio.testing
from attrs import define, field
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cuckoo_mount.cache.pressure import CacheLimits
from cuckoo_mount.parted.tree import AttributeRequest, Caller
from cuckoo_mount.testing.rig import Rig, RigPlace
from cuckoo_mount.types import CHUNK_SIZE_BYTES, ROOT_INODE, InodeNo

ROOT = Caller(0, 0)
NAMES = (b"a", b"b", b"c")
LIMITS = CacheLimits(limit_bytes=16 << 20)
EDGES = (0, 1, 4095, 4096, CHUNK_SIZE_BYTES - 1, CHUNK_SIZE_BYTES, CHUNK_SIZE_BYTES + 7, 3 * CHUNK_SIZE_BYTES - 5)


@define
class Model:
    """What the files must contain; `saved` is what a crash may not take away."""

    now: dict[bytes, bytes] = field(factory=dict)
    saved: dict[bytes, bytes] = field(factory=dict)


Step = tuple[str, int, int, int]
ACTIONS = (
    *("write", "write", "write", "truncate", "read", "fsync", "checkpoint", "send"),
    *("evict", "hold", "unlink", "replace", "partial", "ahead", "meanwhile", "reopen", "kill"),
)
steps = st.lists(
    st.tuples(
        st.sampled_from(ACTIONS),
        st.integers(0, len(NAMES) - 1),
        st.integers(0, 1 << 30),
        st.integers(0, 1 << 30),
    ),
    min_size=5,
    max_size=40,
)


class Player:
    """Plays steps on a rig and on the model."""

    def __init__(self, model: Model) -> None:
        self.model = model

    async def inode(self, rig: Rig, name: bytes) -> InodeNo:
        if name not in self.model.now:
            handle, inode = await rig.filesystem.create(ROOT_INODE, name, 0o644, ROOT)
            await rig.filesystem.release(handle)
            self.model.now[name] = b""
            return inode.ino
        return (await rig.filesystem.tree.lookup(ROOT_INODE, name)).ino

    async def write(self, rig: Rig, name: bytes, a: int, b: int) -> None:
        offset = random.Random(a).choice(EDGES)
        data = random.Random(b).randbytes(random.Random(b).choice((1, 100, 4096, 70_000, CHUNK_SIZE_BYTES + 3)))
        handle = await rig.filesystem.open(await self.inode(rig, name), 2)
        assert await rig.filesystem.write(handle, offset, data) == len(data)
        await rig.filesystem.release(handle)
        old = self.model.now[name].ljust(offset, b"\0")
        self.model.now[name] = old[:offset] + data + old[offset + len(data) :]

    async def truncate(self, rig: Rig, name: bytes, a: int, b: int) -> None:
        size = random.Random(a).choice(EDGES)
        await rig.filesystem.set_attributes(await self.inode(rig, name), AttributeRequest(), size)
        self.model.now[name] = self.model.now[name][:size].ljust(size, b"\0")

    async def read(self, rig: Rig, name: bytes, a: int, b: int) -> None:
        await self.compare(rig, name, random.Random(a).choice(EDGES), 1 + b % (2 * CHUNK_SIZE_BYTES))

    async def compare(self, rig: Rig, name: bytes, offset: int, size: int) -> None:
        rig.pool.let_go()
        handle = await rig.filesystem.open(await self.inode(rig, name), 0)
        with trio.fail_after(20):
            found = await rig.filesystem.read(handle, offset, size)
        await rig.filesystem.release(handle)
        assert found == self.model.now[name][offset : offset + size]

    async def fsync(self, rig: Rig, name: bytes, a: int, b: int) -> None:
        handle = await rig.filesystem.open(await self.inode(rig, name), 2)
        await rig.filesystem.sync_file(handle)
        await rig.filesystem.release(handle)
        self.model.saved[name] = self.model.now[name]

    async def checkpoint(self, rig: Rig, name: bytes, a: int, b: int) -> None:
        await rig.cache.checkpoint()
        self.model.saved = dict(self.model.now)

    async def send(self, rig: Rig, name: bytes, a: int, b: int) -> None:
        rig.pool.let_go()
        with trio.fail_after(20):
            await rig.cache.send_all()
        self.model.saved = dict(self.model.now)
        assert rig.metadata.statistics().dirty_chunks == 0

    async def evict(self, rig: Rig, name: bytes, a: int, b: int) -> None:
        while await rig.cache.evict(1 << 40):
            pass

    async def hold(self, rig: Rig, name: bytes, a: int, b: int) -> None:
        """Writes come while what was written before is frozen and being sealed."""
        await self.checkpoint(rig, name, a, b)
        rig.pool.hold()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.cache.send_all)
            await trio.testing.wait_all_tasks_blocked()
            await self.write(rig, name, a, b)
            await self.truncate(rig, NAMES[b % len(NAMES)], b, a)
            await self.write(rig, name, b, a)
            rig.pool.let_go()

    async def unlink(self, rig: Rig, name: bytes, a: int, b: int) -> None:
        if name in self.model.now:
            await rig.filesystem.tree.unlink(ROOT_INODE, name)
            del self.model.now[name]
            self.model.saved.pop(name, None)

    async def replace(self, rig: Rig, name: bytes, a: int, b: int) -> None:
        target = NAMES[b % len(NAMES)]
        if name in self.model.now and target != name:
            await rig.filesystem.tree.rename(ROOT_INODE, name, ROOT_INODE, target)
            self.model.now[target] = self.model.now.pop(name)
            for changed in (name, target):
                self.model.saved.pop(changed, None)

    async def partial(self, rig: Rig, name: bytes, a: int, b: int) -> None:
        """Writes go to chunks of which nothing is here."""
        await self.send(rig, name, a, b)
        await self.evict(rig, name, a, b)
        await self.write(rig, name, a, b)
        await self.write(rig, name, b, a)

    async def ahead(self, rig: Rig, name: bytes, a: int, b: int) -> None:
        """A read is given up; what it began to fetch, neighbours and all, is under way for the steps that follow."""
        await self.cool(rig, name, a, b)
        rig.pool.hold("fetch_chunk", "fetch_ahead")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.skim, rig, name)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()

    async def meanwhile(self, rig: Rig, name: bytes, a: int, b: int) -> None:
        """Everything is read from the cloud while some of it is written, cut and evicted."""
        await self.cool(rig, name, a, b)
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                for known in list(self.model.now):
                    nursery.start_soon(self.skim, rig, known)
                await self.write(rig, name, a, b)
                await self.evict(rig, name, a, b)
                await self.truncate(rig, NAMES[b % len(NAMES)], b, a)
                await self.evict(rig, name, a, b)

    async def cool(self, rig: Rig, name: bytes, a: int, b: int) -> None:
        await self.inode(rig, name)
        await self.send(rig, name, a, b)
        await self.evict(rig, name, a, b)

    async def skim(self, rig: Rig, name: bytes) -> None:
        """Read a file from start to end, as far as it is there."""
        handle = await rig.filesystem.open((await rig.filesystem.tree.lookup(ROOT_INODE, name)).ino, 0)
        try:
            offset = 0
            while found := await rig.filesystem.read(handle, offset, CHUNK_SIZE_BYTES // 2):
                offset += len(found)
        finally:
            await rig.filesystem.release(handle)


async def play(root: Path, plan: list[Step]) -> None:
    place, model = RigPlace(root), Model()
    while plan:
        stop = next((i for i, step in enumerate(plan) if step[0] in ("reopen", "kill")), len(plan))
        part, plan = plan[:stop], plan[stop:]
        crash = bool(plan) and plan.pop(0)[0] == "kill"
        async with place.opened(LIMITS, crash=crash) as rig:
            player = Player(model)
            for name in list(model.now):
                await player.compare(rig, name, 0, 8 << 20)
            for action, number, a, b in part:
                await getattr(player, action)(rig, NAMES[number], a, b)
                assert "\n".join(await rig.cache.check_invariants()) == ""
            for name in list(model.now):
                await player.compare(rig, name, 0, 8 << 20)
        if crash:
            await take_over(place, model)
        else:
            model.saved = dict(model.now)


async def take_over(place: RigPlace, model: Model) -> None:
    """After a crash: what was saved and not changed since is as it was, the rest is taken as found."""
    async with place.opened(LIMITS) as rig:
        assert "\n".join(await rig.cache.check_invariants()) == ""
        found: dict[bytes, bytes] = {}
        for entry in await rig.filesystem.tree.entries(ROOT_INODE, 2, 100):
            handle = await rig.filesystem.open(entry.inode.ino, 0)
            found[entry.name] = await rig.filesystem.read(handle, 0, 8 << 20)
            assert len(found[entry.name]) == entry.inode.size_bytes
            await rig.filesystem.release(handle)
        for name, content in model.saved.items():
            if model.now.get(name) == content:
                assert found[name] == content
        model.now = found
        model.saved = dict(found)


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)
@given(steps)
def test_random_operations(plan: list[Step]) -> None:
    with TemporaryDirectory() as folder:
        trio.run(play, Path(folder), list(plan))

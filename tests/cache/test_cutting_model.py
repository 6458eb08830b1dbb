"""Cuts against a model: random operations before, during and after them; the clouds have what was at the cut."""

from __future__ import annotations

import random
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import trio
import trio.testing
from attrs import define, field
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cuckoo_mount.packs.collecting import keeping
from cuckoo_mount.parted.tree import AttributeRequest
from cuckoo_mount.testing.rig import Rig, RigPlace
from cuckoo_mount.types import CHUNK_SIZE_BYTES
from tests.cache.cuts import Epoch, cutting
from tests.cache.test_cache_model import LIMITS, NAMES, Model, Player, Step, take_over

BEFORE = (
    *("write", "write", "write", "copy", "truncate", "truncate", "times", "fsync", "checkpoint", "send"),
    *("evict", "partial", "unlink", "replace", "collect", "reopen", "kill"),
)
MEANWHILE = (
    "write",
    "write",
    "copy",
    "truncate",
    "truncate",
    "times",
    "fsync",
    "checkpoint",
    "evict",
    "unlink",
    "replace",
)
STEPS = (*BEFORE, "cut", "cut_held", "cut_held", "cut_held", "cut_stopped", "cut_racing", "cut_cold")
steps = st.lists(
    st.tuples(st.sampled_from(STEPS), st.integers(0, len(NAMES) - 1), st.integers(0, 1 << 30), st.integers(0, 1 << 30)),
    min_size=4,
    max_size=30,
)


@define
class CutModel(Model):
    """`number`: of the next cut.  `kept`: the newest whole epoch, and what the files were then."""

    number: int = 1
    kept: Epoch | None = None
    kept_files: dict[bytes, bytes] = field(factory=dict)


class CutPlayer(Player):
    """Plays steps with cuts."""

    def __init__(self, model: CutModel, place: RigPlace) -> None:
        super().__init__(model)
        self.cuts = model
        self.place = place

    async def copy(self, rig: Rig, name: bytes, a: int, b: int) -> None:
        """Write one of a few contents, so that chunks repeat each other."""
        data = random.Random(b % 2).randbytes(CHUNK_SIZE_BYTES if a % 2 else 5000)
        handle = await rig.filesystem.open(await self.inode(rig, name), 2)
        await rig.filesystem.write(handle, 0, data)
        await rig.filesystem.release(handle)
        self.model.now[name] = data + self.model.now[name][len(data) :]

    async def truncate(self, rig: Rig, name: bytes, a: int, b: int) -> None:
        """What is cut off and grown again as zeros looks as if nothing had happened, but for a crash in between."""
        await super().truncate(rig, name, a, b)
        self.model.saved.pop(name, None)

    async def times(self, rig: Rig, name: bytes, a: int, b: int) -> None:
        await rig.filesystem.set_attributes(await self.inode(rig, name), AttributeRequest(mtime_ns=10**18 + a), None)

    async def collect(self, rig: Rig, name: bytes, a: int, b: int) -> None:
        rig.pool.let_go()
        await rig.collector.collect(oldest_kept_epoch=keeping(self.cuts.number - 1), thorough=True)
        await self.check_kept(rig)

    async def check_kept(self, rig: Rig) -> None:
        if self.cuts.kept is not None:
            assert await self.cuts.kept.contents(rig) == self.cuts.kept_files

    async def some(self, rig: Rig, seed: int) -> None:
        choice = random.Random(seed)
        for _ in range(choice.randrange(1, 7)):
            action, name = choice.choice(MEANWHILE), choice.choice(NAMES)
            await getattr(self, action)(rig, name, choice.getrandbits(30), choice.getrandbits(30))
            assert "\n".join(await rig.cache.check_invariants()) == ""

    async def finish(self, rig: Rig, epoch: Epoch, files: dict[bytes, bytes]) -> None:
        """The cut is sent: it must be what the files were, also after a collection."""
        assert "\n".join(await rig.cache.check_invariants()) == ""
        assert epoch.cut.missing == []
        epoch.note()
        assert await epoch.contents(rig) == files
        await self.check_kept(rig)
        await rig.collector.collect(oldest_kept_epoch=keeping(self.cuts.number - 1), thorough=True)
        assert await epoch.contents(rig) == files
        self.cuts.kept, self.cuts.kept_files = epoch, files
        self.cuts.number += 1

    async def cut(self, rig: Rig, name: bytes, a: int, b: int) -> None:
        rig.pool.let_go()
        files = dict(self.model.now)
        async with cutting(rig, self.place.root, self.cuts.number) as epoch:
            await epoch.cut.send()
            await self.finish(rig, epoch, files)

    async def cut_held(self, rig: Rig, name: bytes, a: int, b: int) -> None:
        """Nothing gets to the clouds, nor from there, while the files change."""
        rig.pool.let_go()
        files = dict(self.model.now)
        async with cutting(rig, self.place.root, self.cuts.number) as epoch:
            with trio.fail_after(30):
                async with trio.open_nursery() as nursery:
                    rig.pool.hold(*[("build_pack",), ("put_share",), (), ("fetch_chunk", "build_pack")][a % 4])
                    nursery.start_soon(epoch.cut.send)
                    await trio.testing.wait_all_tasks_blocked(0.002)
                    await self.some(rig, b)
                    rig.pool.let_go()
            await self.finish(rig, epoch, files)

    async def cut_cold(self, rig: Rig, name: bytes, a: int, b: int) -> None:
        """Chunks are cut of which a part is here only."""
        await self.partial(rig, name, a, b)
        await self.cut_held(rig, name, 2, b)

    async def cut_stopped(self, rig: Rig, name: bytes, a: int, b: int) -> None:
        """A cut is given up; its number serves again."""
        rig.pool.let_go()
        async with cutting(rig, self.place.root, self.cuts.number) as epoch:
            with trio.fail_after(30):
                async with trio.open_nursery() as nursery:
                    rig.pool.hold(*[("build_pack",), ("put_share",), ()][a % 3])
                    nursery.start_soon(epoch.cut.send)
                    await trio.testing.wait_all_tasks_blocked(0.002)
                    await self.some(rig, b)
                    nursery.cancel_scope.cancel()
        rig.pool.let_go()
        await self.check_kept(rig)

    async def cut_racing(self, rig: Rig, name: bytes, a: int, b: int) -> None:
        """Files change while the cut is being made and sent; nothing is held."""
        rig.pool.let_go()
        files: dict[bytes, bytes] = {}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.drop, rig, b)
            async with cutting(rig, self.place.root, self.cuts.number, lambda: files.update(self.model.now)) as epoch:
                await epoch.cut.send()
                epoch.note()
                assert await epoch.contents(rig) == files
        self.cuts.kept, self.cuts.kept_files = epoch, files
        self.cuts.number += 1

    async def drop(self, rig: Rig, seed: int) -> None:
        """Write here and there, each write and its entry in the model in one step with its end."""
        choice = random.Random(seed)
        for _ in range(12):
            await self.write(rig, choice.choice(NAMES), choice.getrandbits(30), choice.getrandbits(30))
            await trio.sleep(choice.choice([0, 0, 0.001]))


async def play(root: Path, plan: list[Step]) -> None:
    place, model = RigPlace(root), CutModel()
    while plan:
        stop = next((i for i, step in enumerate(plan) if step[0] in ("reopen", "kill")), len(plan))
        part, plan = plan[:stop], plan[stop:]
        crash = bool(plan) and plan.pop(0)[0] == "kill"
        async with place.opened(LIMITS, crash=crash) as rig:
            player = CutPlayer(model, place)
            for action, number, a, b in part:
                await getattr(player, action)(rig, NAMES[number], a, b)
                assert "\n".join(await rig.cache.check_invariants()) == ""
            for name in list(model.now):
                await player.compare(rig, name, 0, 8 << 20)
        if crash:
            await take_over(place, model)
        else:
            model.saved = dict(model.now)
        async with place.opened(LIMITS) as rig:
            await CutPlayer(model, place).check_kept(rig)


@pytest.mark.slow
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)
@given(steps)
def test_random_operations_and_cuts(plan: list[Step]) -> None:
    with TemporaryDirectory() as folder:
        trio.run(play, Path(folder), list(plan))

"""What a drive does with a cloud: nothing new, emptying it, and the way back.  Real folders and workers, no mount."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from cuckoo_mount import draining
from cuckoo_mount.drive import Drive
from cuckoo_mount.errors import CloudUnavailable, UsageError
from cuckoo_mount.multi.records import CloudEntry
from cuckoo_mount.types import ROOT_INODE, CloudName, CloudRow, CloudUse
from tests.drive.test_roster import Place, place, read, write

__all__ = ["place"]  # a fixture
pytestmark = pytest.mark.slow
A = CloudName("a")
REQUESTS = 5
"""Of the last step: drive.json, a listing, two deletions, a listing."""


def epochs(place: Place, name: str) -> set[str]:
    return {path.name for path in place.objects(name, "meta")}


def anything(place: Place, name: str) -> list[Path]:
    return place.objects(name, "")


async def add(drive: Drive, place: Place, names: str) -> None:
    for name in names:
        await drive.roster.add(place.cloud(name), {})


async def drain(drive: Drive, name: str, *, ask_first: bool = True) -> None:
    if ask_first:
        await drive.drainer.plan(name)
    await drive.drainer.begin(name)
    with trio.fail_after(60):
        await drive.drainer.wait(name)


def content(name: bytes) -> bytes:
    """Return bytes that neither compress nor are those of another file."""
    return random.Random(name).randbytes(20_000)


async def put(drive: Drive, name: bytes) -> None:
    await write(drive, name, content(name))


def uses(drive: Drive) -> dict[object, tuple[object, object]]:
    return {cloud["name"]: (cloud["state"], cloud["use"]) for cloud in drive.roster.listing()}


async def test_a_cloud_that_gets_nothing_new(place: Place) -> None:
    async with place.opened() as drive:
        await add(drive, place, "a")
        await put(drive, b"first")
        await add(drive, place, "b")
        await drive.roster.use_as("a", CloudUse.NO_NEW)
        await put(drive, b"second")
        before = epochs(place, "a")
        await put(drive, b"third")
        assert len(place.objects("a")) == 1
        assert len(place.objects("b")) == 2
    async with place.opened() as drive:
        assert uses(drive) == {"a": ("ok", "no-new"), "b": ("ok", "normal")}
        await put(drive, b"fourth")
        assert epochs(place, "a") == before
        assert epochs(place, "b") > before
        await drive.evict_all()
        assert await read(drive, b"first") == content(b"first"), "what is there is read"
        await drive.filesystem.tree.unlink(ROOT_INODE, b"first")
        await drive.collect(keep=1)
        assert place.objects("a") == [], "and deleted"
        await drive.roster.use_as("a", CloudUse.NORMAL)
        await put(drive, b"fifth")
        assert len(place.objects("a")) == 1
        await drive.collect(keep=1)
        assert epochs(place, "a") == epochs(place, "b")


async def test_a_cloud_is_emptied_taken_back_and_removed(place: Place) -> None:
    async with place.opened() as drive:
        await add(drive, place, "abc")
        for number in range(6):
            await put(drive, b"f%d" % number)
        await drain(drive, "a")
        assert anything(place, "a") == []
        assert uses(drive)["a"] == ("drained", "drained")
        assert (await drive.status())["state"] == "ok"
        await drive.evict_all()
        for number in range(6):
            assert await read(drive, b"f%d" % number) == content(b"f%d" % number)
        with pytest.raises(UsageError, match="use it again first"):
            await drive.roster.change(place.cloud("a", group="x"), {})
    async with place.opened() as drive:
        assert anything(place, "a") == [], "a mount leaves it alone"
        assert uses(drive)["a"] == ("drained", "drained")
        await drive.roster.use_as("a", CloudUse.NORMAL)
        assert uses(drive)["a"] == ("ok", "normal")
        assert {path.name for path in place.objects("a", "keys")} == {"1.recovery"}
        await put(drive, b"more")
        assert epochs(place, "a") <= epochs(place, "b") | epochs(place, "c")
        await drain(drive, "a")
        figures = await drive.roster.remove("a", lost=False)
        assert figures["drained"] is True
        assert list(uses(drive)) == ["b", "c"]
    assert anything(place, "a") == []
    assert [cloud.name for cloud in place.config().clouds] == ["b", "c"]


async def test_epochs_put_before_the_sweep_do_not_count_after_it(place: Place) -> None:
    """A cloud that was emptied and is used again at once gets every epoch anew."""
    async with place.opened() as drive:
        await add(drive, place, "ab")
        await put(drive, b"f")
        await drain(drive, "a")
        await drive.roster.use_as("a", CloudUse.NORMAL)
        await put(drive, b"g")
        await put(drive, b"h")
        # With two clouds an epoch counts when both have it.
        assert epochs(place, "a") == epochs(place, "b") != set()


async def test_another_machine_goes_on(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the list says that a cloud is to be emptied; whoever opens the drive does it."""
    async with place.opened() as drive:
        await add(drive, place, "ab")
        for number in range(3):
            await put(drive, b"f%d" % number)
        await drive.roster.use_as("a", CloudUse.DRAINING)
    monkeypatch.setattr(draining, "FIRST_S", 0.0)
    async with place.opened() as drive:
        with trio.fail_after(60):
            await drive.drainer.wait("a")
    assert anything(place, "a") == []


async def test_what_is_refused(place: Place) -> None:
    async with place.opened() as drive:
        await drive.roster.add(place.cloud("a"), {})
        await put(drive, b"f")
        with pytest.raises(UsageError, match="there are 0 clouds that take packs, one copy needs 1"):
            await drive.drainer.plan("a")
        await drive.roster.add(place.cloud("b", capacity_bytes=1000), {})
        with pytest.raises(UsageError, match="does not fit on the other clouds with one copy"):
            await drive.drainer.plan("a")
        await drive.roster.change(place.cloud("b"), {})
        await drive.roster.change(place.cloud("a", read_only=True), {})
        with pytest.raises(UsageError, match="--no-read-only"):
            await drive.drainer.plan("a")
        await drive.roster.change(place.cloud("a"), {})
        (place.root / "a").rename(place.root / "away")
        with pytest.raises(CloudUnavailable, match="cuckoo cloud remove a"):
            await drive.drainer.plan("a")
        (place.root / "away").rename(place.root / "a")
        with pytest.raises(UsageError, match="there is no cloud 'c'"):
            await drive.drainer.plan("c")
        plan = await drive.drainer.plan("a")
        assert (plan.packs, plan.dead, plan.use) == (1, 0, "normal")
        assert uses(drive) == {"a": ("ok", "normal"), "b": ("ok", "normal")}, "asking changes nothing"


async def test_a_drain_is_ended_halfway(place: Place) -> None:
    async with place.opened() as drive:
        await add(drive, place, "ab")
        await put(drive, b"f")
        await drive.roster.use_as("a", CloudUse.DRAINING)
        await drive.roster.use_as("a", CloudUse.NORMAL)
        with pytest.raises(UsageError, match="is used again"):
            await drive.drainer.wait("a")
        assert uses(drive)["a"] == ("ok", "normal")


async def test_a_sweep_that_fails_goes_on_later(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The n-th try fails at its n-th request: until the last one has worked the cloud is used as before."""
    tries: list[int] = []
    async with place.opened() as drive:
        await add(drive, place, "ab")
        await put(drive, b"f")
        delete_all, ask = drive.drainer._delete_all, drive.drainer._ask

        async def begin(row: CloudRow, entry: CloudEntry) -> None:
            tries.append(0)
            await delete_all(row, entry)

        async def fail(job: Callable[..., object], *args: object, deadline_s: float) -> object:
            tries[-1] += 1
            if tries[-1] == len(tries):
                raise CloudUnavailable(f"made up {len(tries)}", cloud="a")
            return await ask(job, *args, deadline_s=deadline_s)

        monkeypatch.setattr(drive.drainer, "_delete_all", begin)
        monkeypatch.setattr(drive.drainer, "_ask", fail)
        for number in range(1, REQUESTS):
            await drive.drainer.begin("a")
            with trio.fail_after(60):
                while f"made up {number}" not in str(drive.drainer.progress(A)["trouble"]):  # noqa: ASYNC110
                    await trio.sleep(0.01)
            assert uses(drive)["a"][1] == "draining"
            assert await read(drive, b"f") == content(b"f")
            await put(drive, b"meanwhile %d" % number)
        await drain(drive, "a", ask_first=False)
        # The last but one has deleted all but drive.json.
        assert tries == [*range(1, REQUESTS), REQUESTS - 1]
        assert anything(place, "a") == []
        await drive.evict_all()
        assert await read(drive, b"meanwhile 3") == content(b"meanwhile 3")


async def test_a_drain_is_ended_after_a_sweep_that_failed(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys and drive.json may be gone by then: the cloud is signed anew."""
    async with place.opened() as drive:
        await add(drive, place, "ab")
        await put(drive, b"f")
        ask, asked = drive.drainer._ask, 0

        async def fail(job: Callable[..., object], *args: object, deadline_s: float) -> object:
            nonlocal asked
            asked += 1
            if asked == REQUESTS:
                raise CloudUnavailable("made up", cloud="a")
            return await ask(job, *args, deadline_s=deadline_s)

        monkeypatch.setattr(drive.drainer, "_ask", fail)
        await drive.drainer.begin("a")
        with trio.fail_after(60):
            while not drive.drainer.progress(A)["trouble"]:  # noqa: ASYNC110 (nobody tells)
                await trio.sleep(0.01)
        assert anything(place, "a") == []
        await drive.roster.use_as("a", CloudUse.NORMAL)
        assert {path.name for path in anything(place, "a")} >= {"drive.json", "1.recovery"}
        await put(drive, b"g")
        assert epochs(place, "a") == epochs(place, "b") != set()


async def test_whoever_takes_a_cloud_back_at_the_last_moment_has_it(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with place.opened() as drive:
        await add(drive, place, "ab")
        await put(drive, b"f")
        writer = drive.drainer._writer
        quiet = writer.wait_until_quiet

        async def take_back() -> None:
            await quiet()
            await drive.roster.use_as("a", CloudUse.NORMAL)

        monkeypatch.setattr(writer, "wait_until_quiet", take_back)
        await drive.drainer.begin("a")
        with trio.fail_after(60), pytest.raises(UsageError, match="is used again"):
            await drive.drainer.wait("a")
        await put(drive, b"g")
        assert uses(drive)["a"] == ("ok", "normal")
        assert {path.name for path in anything(place, "a")} >= {"drive.json", "1.recovery"}
        assert epochs(place, "a") == epochs(place, "b")
    async with place.opened() as drive:
        assert uses(drive)["a"] == ("ok", "normal")

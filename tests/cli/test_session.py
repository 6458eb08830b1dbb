"""A session on a fake drive: what status, sync and umount answer, and every way to the end."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing
from attrs import frozen

from cuckoo_mount.cli import client
from cuckoo_mount.cli.mounts import MountBusy
from cuckoo_mount.cli.session import GRACE_S, Session
from cuckoo_mount.config import DrivePaths
from cuckoo_mount.errors import MetadataError
from cuckoo_mount.fuse.control import ControlServer
from cuckoo_mount.fuse.controlsocket import connect, encode_line
from cuckoo_mount.insisting import RETRY_S

NOTHING = {"files": 0, "chunks": 0, "bytes": 0, "changes": 0}
EPOCH = {"local": 4, "cloud": 4, "age_s": 0.0}
DOWN = {"name": "usb", "state": "down", "error": "cloud usb: no such folder"}


@frozen
class Counts:
    files: int
    chunks: int
    bytes: int
    changes: int


class FakeDrive:
    """A drive whose clouds take what `may_send` allows."""

    def __init__(self, *, pending_bytes: int = 0) -> None:
        self.pending_bytes = pending_bytes
        self.pending_changes = 0
        self.asked_to_send = trio.Event()
        self.may_send = trio.Event()
        self.sends = 0
        self.degraded = 0
        self.ill: list[dict[str, str]] = []
        self.retries = 0
        self.retried = trio.Event()

    async def send_all(self) -> None:
        self.sends += 1
        self.asked_to_send.set()
        await self.may_send.wait()
        self.pending_bytes = 0

    def pending(self) -> Counts:
        return Counts(
            int(self.pending_bytes > 0), int(self.pending_bytes > 0), self.pending_bytes, self.pending_changes
        )

    def troubles(self) -> list[dict[str, str]]:
        return self.ill

    async def retry_clouds(self) -> None:
        self.retries += 1
        self.retried.set()
        self.retried = trio.Event()

    @property
    def read_only_reason(self) -> str:
        return ""

    def epoch(self) -> dict[str, object]:
        return dict(EPOCH)

    async def degraded_packs(self) -> int:
        return self.degraded

    async def status(self) -> dict[str, object]:
        return {"drive": "default", "state": "ok", "pending": {"files": 0, "chunks": 0, "bytes": self.pending_bytes}}

    async def check_invariants(self) -> list[str]:
        return ["I-1 is broken"]

    async def evict_all(self) -> int:
        return 4096


class World:
    """A session, its control socket, and a stand-in for the mount that it ends."""

    def __init__(self, paths: DrivePaths, *, pending_bytes: int = 0, read_only: bool = False) -> None:
        self.drive = FakeDrive(pending_bytes=pending_bytes)
        self.unmounted = trio.Event()
        self.busy = False
        self.forced = False
        self.said = ""
        self.token = trio.lowlevel.current_trio_token()
        paths.data.mkdir(parents=True)
        self.session = Session(
            drive=self.drive,
            mountpoint=paths.data,
            read_only=read_only,
            stop_serving=self.force,
            detach=self.detach,
        )
        self.control = ControlServer(paths.socket, self.session.commands())

    def detach(self, mountpoint: Path) -> None:
        if self.busy:
            raise MountBusy(f"{mountpoint} is in use")
        self.token.run_sync_soon(self.unmounted.set)

    def force(self) -> None:
        self.forced = True
        self.unmounted.set()

    async def serve(self, nursery: trio.Nursery) -> None:
        """As cli/serving.py does it."""
        await self.unmounted.wait()
        self.said = await self.session.finish()
        await self.control.wait_until_idle()
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def running(world: World) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        await nursery.start(world.control.run)
        nursery.start_soon(world.serve, nursery)
        yield
        world.unmounted.set()


async def ask(command: str, progress: client.Progress | None = None, **arguments: object) -> client.Result:
    return await trio.to_thread.run_sync(lambda: client.ask("default", command, progress, **arguments))


async def test_status(paths: DrivePaths) -> None:
    world = World(paths)
    world.session.upcalls.counts.update(write=2, getattr=1)
    async with running(world):
        status = await ask("status")
    assert status["schema"] == 1
    assert status["pid"] == os.getpid()
    assert status["mountpoint"] == str(paths.data)
    assert status["state"] == "ok"
    assert status["fuse"] == {"upcalls": {"getattr": 1, "write": 2}, "pushes": 0, "pushed_bytes": 0}
    assert status["version"]


async def test_a_read_only_mount_says_so(paths: DrivePaths) -> None:
    async with running(World(paths, read_only=True)):
        assert (await ask("status"))["state"] == "read-only"


async def test_sync_tells_how_much_is_left(paths: DrivePaths) -> None:
    world, told = World(paths, pending_bytes=7), []

    def progress(values: object) -> None:
        told.append(values)
        trio.from_thread.run_sync(world.drive.may_send.set)

    async with running(world):
        result = await ask("sync", progress)
    assert told[0] == {"files": 1, "chunks": 1, "bytes": 7, "changes": 0, "troubles": []}
    assert result == {"pending": NOTHING, "degraded": 0, "epoch": EPOCH, "troubles": [], "sent": True}


async def test_sync_ends_when_the_drive_is_unmounted_meanwhile(paths: DrivePaths) -> None:
    world, results = World(paths, pending_bytes=7), []

    async def sync() -> None:
        results.append(await ask("sync"))

    world.session.grace_s = 0.0
    async with running(world), trio.open_nursery() as nursery:
        nursery.start_soon(sync)
        await world.drive.asked_to_send.wait()
        world.unmounted.set()
    pending = {"files": 1, "chunks": 1, "bytes": 7, "changes": 0}
    assert results == [{"pending": pending, "degraded": 0, "epoch": EPOCH, "troubles": [], "sent": False}]


async def test_who_waits_has_clouds_in_trouble_asked_again(
    paths: DrivePaths, autojump_clock: trio.testing.MockClock
) -> None:
    world = World(paths, pending_bytes=7)
    world.drive.ill = [DOWN]
    start = trio.current_time()
    async with running(world):
        world.unmounted.set()
        await world.drive.retried.wait()
        assert trio.current_time() == start  # at once, whatever pause the cloud was given
        await world.drive.retried.wait()
        assert trio.current_time() == start + RETRY_S
        world.drive.ill = []
        world.drive.may_send.set()
        await world.session.ended.wait()
    assert world.drive.retries == 2
    assert world.said == "unmounted; everything is on the clouds"


async def test_what_waits_for_clouds_is_told_with_the_clouds(paths: DrivePaths) -> None:
    world, told = World(paths, pending_bytes=7), []
    world.drive.ill = [DOWN]
    world.drive.degraded = 3

    def progress(values: object) -> None:
        told.append(values)
        trio.from_thread.run_sync(world.drive.may_send.set)

    async with running(world):
        result = await ask("sync", progress)
    assert told[0] == {"files": 1, "chunks": 1, "bytes": 7, "changes": 0, "troubles": [DOWN]}
    assert result == {"pending": NOTHING, "degraded": 3, "epoch": EPOCH, "troubles": [DOWN], "sent": True}
    world.drive.may_send = trio.Event()
    world.drive.pending_bytes = 7
    world.session.grace_s = 0.0
    assert (await world.session.finish()).endswith("after the next mount; cloud usb is down: no such folder")


async def test_what_sending_fails_of_is_no_bug(paths: DrivePaths) -> None:
    world = World(paths, pending_bytes=7)

    async def fail() -> None:
        raise MetadataError("the local metadata is damaged")

    world.drive.send_all = fail  # type: ignore[method-assign]
    world.session.grace_s = 0.0
    async with running(world):
        with pytest.raises(client.DaemonRefused, match=r"^the local metadata is damaged$"):
            await ask("sync")


async def test_umount_sends_first(paths: DrivePaths) -> None:
    world = World(paths, pending_bytes=7)
    world.drive.may_send.set()
    async with running(world):
        result = await ask("umount", wait=True)
    assert result == {"pending": NOTHING, "degraded": 0, "epoch": EPOCH, "troubles": [], "mountpoint": str(paths.data)}
    assert world.said == "unmounted; everything is on the clouds"


async def test_umount_without_waiting_says_what_is_left(paths: DrivePaths) -> None:
    world = World(paths, pending_bytes=7)
    async with running(world):
        result = await ask("umount", wait=False)
    assert result["pending"] == {"files": 1, "chunks": 1, "bytes": 7, "changes": 0}
    assert world.drive.sends == 0
    assert "7 B of 1 file is not yet on the clouds but safely on the local disk" in world.said


async def test_umount_of_a_busy_mount_changes_nothing(paths: DrivePaths) -> None:
    world = World(paths, pending_bytes=7)
    world.busy = True
    async with running(world):
        with pytest.raises(client.DaemonRefused, match="is in use") as refused:
            await ask("umount", wait=False)
        assert refused.value.status == 1
        assert not world.unmounted.is_set()
        assert (await ask("status"))["state"] == "ok"
        world.drive.may_send.set()
        world.busy = False
        await ask("umount", wait=True)


async def test_a_client_that_stops_waiting_leaves_the_drive_mounted(paths: DrivePaths) -> None:
    world = World(paths, pending_bytes=7)
    async with running(world):
        async with trio.SocketStream(trio.socket.from_stdlib_socket(connect(paths.socket, 5.0))) as stream:
            await stream.send_all(encode_line({"command": "umount"}))
            await world.drive.asked_to_send.wait()
        await world.control.wait_until_idle()
        assert not world.unmounted.is_set()
        world.drive.may_send.set()


async def test_a_signal_sends_then_unmounts(paths: DrivePaths) -> None:
    world = World(paths, pending_bytes=7)
    world.drive.may_send.set()
    async with running(world):
        await world.session.stop()
        await world.unmounted.wait()
    assert world.said == "unmounted; everything is on the clouds"
    assert not world.forced


async def test_a_signal_ends_a_mount_that_is_in_use(paths: DrivePaths, caplog: pytest.LogCaptureFixture) -> None:
    world = World(paths)
    world.busy = True
    world.drive.may_send.set()
    async with running(world):
        await world.session.stop()
    assert world.forced
    assert "is in use" in caplog.text


async def test_after_a_signal_sending_has_an_end(paths: DrivePaths, autojump_clock: trio.testing.MockClock) -> None:
    world = World(paths, pending_bytes=7)
    async with running(world):
        start = trio.current_time()
        await world.session.stop()
        await world.unmounted.wait()
        await world.session.ended.wait()
        assert GRACE_S <= trio.current_time() - start < GRACE_S + 1
    assert "to be sent after the next mount" in world.said


async def test_a_second_signal_ends_the_sending(paths: DrivePaths) -> None:
    world = World(paths, pending_bytes=7)
    async with running(world), trio.open_nursery() as nursery:
        nursery.start_soon(world.session.stop)
        await world.drive.asked_to_send.wait()
        await world.session.stop()
        with trio.fail_after(5):
            await world.session.ended.wait()


async def test_after_somebody_elses_umount_the_rest_is_sent(paths: DrivePaths) -> None:
    world = World(paths, pending_bytes=7)
    world.drive.may_send.set()
    async with running(world):
        world.unmounted.set()
        await world.session.ended.wait()
    assert world.said == "unmounted; everything is on the clouds"


async def test_a_signal_ends_that_sending_too(paths: DrivePaths) -> None:
    world = World(paths, pending_bytes=7)
    async with running(world):
        world.unmounted.set()
        await world.drive.asked_to_send.wait()
        await world.session.stop()
        with trio.fail_after(5):
            await world.session.ended.wait()


async def test_umount_during_that_sending_waits_for_it_or_ends_it(paths: DrivePaths) -> None:
    world = World(paths, pending_bytes=7)
    async with running(world):
        world.unmounted.set()
        await world.drive.asked_to_send.wait()
        result = await ask("umount", wait=False)
    assert result["pending"] == {"files": 1, "chunks": 1, "bytes": 7, "changes": 0}


async def test_commands_for_tests_need_the_variable(paths: DrivePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(World(paths).session.commands()) == {"status", "sync", "umount"}
    monkeypatch.setenv("CUCKOO_TESTING", "1")
    paths.data.rmdir()
    world = World(paths)
    async with running(world):
        assert await ask("evict") == {"bytes": 4096}
        assert await ask("check") == {"violated": ["I-1 is broken"]}
        assert await ask("fault", operation="read", kind="MemoryError") == {}
        assert world.session.upcalls.faults == {"read": "MemoryError"}
        with pytest.raises(client.DaemonRefused, match="kind is one of ValueError"):
            await ask("fault", operation="read", kind="SystemExit")

"""Many threads on one PyFilesystem, closing it under them, and files that nobody closed."""

from __future__ import annotations

import gc
import io
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from cuckoo_mount.clouds.fsimport import errors
from cuckoo_mount.errors import MetadataError, WrongKey
from cuckoo_mount.parted.partedfs import PartedFS
from cuckoo_mount.pyfs.filesystem import CuckooFS
from cuckoo_mount.pyfs.serving import OpenedDrive
from cuckoo_mount.testing.rig import Rig
from cuckoo_mount.types import ROOT_INODE
from tests.pyfs.serving import DriveFolder

THREADS = 8
DEADLINE_S = 60.0


@pytest.fixture
def drive(tmp_path: Path) -> DriveFolder:
    return DriveFolder(tmp_path / "drive")


@pytest.fixture
def without_collector() -> Iterator[None]:
    """What is in a cycle stays until it is collected on purpose."""
    gc.disable()
    yield
    gc.enable()


async def collect_inside(_: Rig) -> None:
    """Collect in the loop's thread, and let what that started get its turn."""
    gc.collect()
    await trio.testing.wait_all_tasks_blocked()


@pytest.mark.slow
def test_threads_append_whole_records(drive: DriveFolder) -> None:
    records, length = 50, 1000

    def append(number: int) -> None:
        with fs.openbin("shared", "a", buffering=0) as file:
            for _ in range(records):
                file.write(bytes([number]) * length)

    with drive.open() as fs:
        fs.create("shared")
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(append, range(THREADS)))
        content = fs.readbytes("shared")
    pieces = [content[start : start + length] for start in range(0, len(content), length)]
    assert sorted(pieces) == sorted(bytes([n]) * length for n in range(THREADS) for _ in range(records))


@pytest.mark.slow
def test_threads_share_a_file_object_and_a_tree(drive: DriveFolder) -> None:
    def work(number: int) -> None:
        fs.makedirs(f"{number % 2}/{number}", recreate=True)
        for step in range(10):
            fs.writetext(f"{number % 2}/{number}/{step}", f"{number} {step}")
            shared.write(b"%d" % number)
        made.append(fs.create("once"))
        fs.movedir(f"{number % 2}/{number}", f"done-{number}", create=True)

    made: list[bool] = []
    with drive.open() as fs:
        with fs.openbin("shared", "w") as shared, ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(work, range(THREADS)))
        assert sorted(fs.readtext("shared")) == sorted("".join(map(str, range(THREADS))) * 10)
        assert made.count(True) == 1
        for number in range(THREADS):
            assert [fs.readtext(f"done-{number}/{step}") for step in range(10)] == [f"{number} {s}" for s in range(10)]


def test_a_file_that_is_open_when_the_drive_closes(drive: DriveFolder) -> None:
    with drive.open() as fs:
        text = fs.open("text", "w")
        text.write("in a buffer")
        binary = fs.openbin("binary", "w")
        binary.write(b"in a buffer, too")
        reading = fs.openbin("text")
    assert text.closed
    assert binary.closed
    assert reading.closed
    with pytest.raises(ValueError, match="closed file"):
        text.write("more")
    text.close()
    with pytest.raises(errors.FilesystemClosed):
        fs.listdir("/")
    with drive.open() as fs:
        assert fs.readtext("text") == "in a buffer"
        assert fs.readtext("binary") == "in a buffer, too"


def read_as_file(fs: CuckooFS) -> None:
    with fs.openbin("file") as file:
        file.read()


def download(fs: CuckooFS) -> None:
    fs.download("file", io.BytesIO())


@pytest.mark.slow
@pytest.mark.parametrize(("reading", "error"), [(read_as_file, ValueError), (download, errors.FilesystemClosed)])
def test_who_waits_for_a_cloud_when_the_drive_closes(
    drive: DriveFolder, reading: Callable[[CuckooFS], object], error: type[Exception]
) -> None:
    rigs: list[Rig] = []

    async def send_evict_hold(rig: Rig) -> None:
        await rig.cache.send_all()
        assert await rig.cache.evict(1 << 30) > 0
        rig.pool.hold()
        rigs.append(rig)

    drive.at_sync = send_evict_hold
    with ThreadPoolExecutor(1) as pool, drive.open() as fs:
        fs.writebytes("file", b"x" * 1000)
        fs.sync()
        waiting = pool.submit(reading, fs)
        end = time.monotonic() + DEADLINE_S
        while not rigs[0].pool.waiting and time.monotonic() < end:
            time.sleep(0.01)
        fs.close()
        with pytest.raises(error, match="is closed"):
            waiting.result(DEADLINE_S)
    drive.at_sync = None
    with drive.open() as fs:
        assert fs.readbytes("file") == b"x" * 1000


@pytest.mark.parametrize("mode", ["w", "wb"])
@pytest.mark.usefixtures("without_collector")
def test_a_forgotten_file_is_closed_by_the_loop_itself(drive: DriveFolder, mode: str) -> None:
    # Finalizers run wherever the collector does.  In the loop's thread they must not wait for the loop.
    def forget() -> None:
        file = fs.open("file", mode)
        file.write("kept" if mode == "w" else b"kept")
        cycle: list[object] = [file]
        cycle.append(cycle)

    drive.at_sync = collect_inside
    with drive.open() as fs:
        forget()
        fs.sync()
        assert fs.readtext("file") == "kept"


@pytest.mark.usefixtures("without_collector")
def test_a_forgotten_file_system_is_closed(drive: DriveFolder) -> None:
    drive.open().writetext("file", "kept")
    with drive.open() as fs:  # the lower half would refuse to be open twice
        assert fs.readtext("file") == "kept"
    file = drive.open().openbin("file")
    assert file.read() == b"kept"
    file.close()


class Failing:
    """A drive whose background work ends with an error as soon as somebody waits for it."""

    def __init__(self, rig: Rig) -> None:
        self.filesystem: PartedFS = rig.filesystem
        self.asked = trio.Event()

    async def send_all(self) -> None:
        self.asked.set()
        await trio.sleep_forever()

    async def work(self) -> None:
        await self.asked.wait()
        raise MetadataError("the database is damaged")


def test_a_drive_that_fails_says_so_to_everybody(drive: DriveFolder) -> None:
    @asynccontextmanager
    async def opening() -> AsyncIterator[OpenedDrive]:
        async with drive.place.opened(drive.limits) as rig, trio.open_nursery() as nursery:
            failing = Failing(rig)
            nursery.start_soon(failing.work)
            yield failing
            nursery.cancel_scope.cancel()

    fs = CuckooFS("test", opening)
    file = fs.openbin("file", "w", buffering=0)
    with pytest.raises(errors.FilesystemClosed):
        fs.sync()
    with pytest.raises(errors.OperationFailed, match="database is damaged"):
        fs.close()
    fs.close()
    assert file.closed


def test_an_error_while_opening_comes_out(drive: DriveFolder) -> None:
    @asynccontextmanager
    async def opening() -> AsyncIterator[OpenedDrive]:
        async with trio.open_nursery(), drive.place.opened(drive.limits) as rig:
            if await rig.filesystem.tree.entries(ROOT_INODE, 2, 1) == []:
                raise WrongKey("not this one")
            yield Failing(rig)

    with pytest.raises(WrongKey, match="not this one"):
        CuckooFS("test", opening)

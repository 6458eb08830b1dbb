"""What says that it is durable when it returns survives a power cut at that moment, on a real file system.

Each case runs on a disk of its own making (disks.py), which commits nothing by itself; then the power is cut.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from cuckoo_mount.cache.files import LocalFiles
from cuckoo_mount.cache.sparse import sync_file_system
from cuckoo_mount.config.atomic import write_private_file
from cuckoo_mount.epochs.claims import Notes, read_notes, write_notes
from cuckoo_mount.types import InodeNo
from tests.mount.disks import Disk, can_cut_power

pytestmark = [
    pytest.mark.mount,
    pytest.mark.slow,
    pytest.mark.skipif(not can_cut_power(), reason="it takes root, a loop device and mkfs.ext4"),
]
INO = InodeNo(7)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with disk_in(tmp_path / "disk") as disk:
        yield disk


@pytest.fixture
def other_disk(tmp_path: Path) -> Iterator[Disk]:
    with disk_in(tmp_path / "other disk") as disk:
        yield disk


@contextmanager
def disk_in(folder: Path) -> Iterator[Disk]:
    """Give a disk that has power, and writes nothing that nobody asks for."""
    disk = Disk(folder, "ext4", random.Random(0), ("commit=600,noauto_da_alloc",))
    try:
        disk.power_on()
        yield disk
    finally:
        disk.clear_away()


def settle(*disks: Disk) -> None:
    """Make all durable that was done so far."""
    for disk in disks:
        folder = os.open(disk.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            sync_file_system(folder)
        finally:
            os.close(folder)


def test_the_disk_loses_what_nobody_synced(disk: Disk) -> None:
    """Else nothing below would show anything."""
    (disk.path / "old").write_bytes(b"old")
    settle(disk)
    (disk.path / "old").write_bytes(b"new")
    (disk.path / "new").write_bytes(b"new")
    disk.cut_and_boot()
    assert (disk.path / "old").read_bytes() in (b"", b"old")
    assert not (disk.path / "new").exists()


def test_notes_of_a_claim(disk: Disk) -> None:
    write_notes(disk.path, Notes(own="a", counter=1))
    settle(disk)
    write_notes(disk.path, Notes(own="b", counter=2))
    disk.cut_and_boot()
    assert read_notes(disk.path) == Notes(own="b", counter=2)


@pytest.mark.parametrize("replace", [False, True])
def test_private_files(disk: Disk, *, replace: bool) -> None:
    path = disk.path / "folder" / "file"
    if replace:
        write_private_file(path, b"before", replace=False)
        settle(disk)
    write_private_file(path, b"bytes", replace=replace)
    disk.cut_and_boot()
    assert path.read_bytes() == b"bytes"


async def test_a_local_file_that_became_dirty_is_in_the_state_folder(disk: Disk) -> None:
    """Without a byte changing its place, so that nothing else brings the new name to the disk."""
    with closing(clean_file(disk.path / "state", disk.path / "cache", disk)) as files:
        await write_and_sync(files)
        disk.hold()
    disk.cut()
    disk.unplug()
    disk.power_on()
    assert_dirty_in(disk.path / "state")


async def test_a_local_file_that_became_dirty_is_on_the_disk_of_the_state_folder(disk: Disk, other_disk: Disk) -> None:
    with closing(clean_file(disk.path / "state", other_disk.path / "cache", disk, other_disk)) as files:
        assert not files.same_file_system
        await write_and_sync(files)
        disk.hold()
        other_disk.hold()
    for one in (disk, other_disk):
        one.cut()
        one.unplug()
        one.power_on()
    assert_dirty_in(disk.path / "state")


def clean_file(state: Path, cache: Path, *disks: Disk) -> LocalFiles:
    files = LocalFiles(state, cache)
    os.pwrite(files.create(INO, in_state=False).fd, b"a" * 20_000, 0)
    settle(*disks)
    return files


async def write_and_sync(files: LocalFiles) -> None:
    file = files.get(INO)
    assert file is not None
    await files.to_state(file)
    os.pwrite(file.fd, b"b" * 4096, 4096)
    await files.sync([file])


def assert_dirty_in(state: Path) -> None:
    found = {path.relative_to(state): path.read_bytes() for path in state.rglob("*") if path.is_file()}
    assert found == {Path("07/7"): b"a" * 4096 + b"b" * 4096 + b"a" * 11_808}

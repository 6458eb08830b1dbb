"""What keeps the metadata working on a full disk, in single functions.  A small ext4 is the disk."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
import trio

from cuckoo_mount.epochs.claims import Notes, read_notes, write_notes
from cuckoo_mount.errors import MetadataError
from cuckoo_mount.metadata.store import open_store
from tests.metadata.helpers import ROOT, make_file, names_in, new_store
from tests.mount.disks import can_cut_power
from tests.mount.fulldisk import PATIENCE_S, SmallDisk

pytestmark = [
    pytest.mark.mount,
    pytest.mark.skipif(not can_cut_power(), reason="it takes root, a loop device and mkfs.ext4"),
]
SIZE_BYTES: Final = 96 << 20
NAME_BYTES: Final = 200


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """A disk of 96 MiB."""
    disk = SmallDisk(tmp_path, SIZE_BYTES)
    yield disk
    disk.unmount()


def name_of(number: int) -> bytes:
    return b"%d" % number + b"x" * NAME_BYTES


async def test_commits_go_on_when_the_disk_is_full(disk: SmallDisk) -> None:
    """What makes the store grow is refused in time; removing and committing go on; with room again, everything does."""
    store = await new_store(disk.path / "metadata")
    disk.fill()
    made = 0
    while store.has_room():
        for _ in range(50):
            await make_file(store, name_of(made))
            made += 1
        await store.make_durable()
        disk.fill()
    assert made >= 50
    with pytest.raises(OSError, match="No space") as caught:
        (disk.path / "file").write_bytes(bytes(1 << 20))
    assert caught.value.errno == errno.ENOSPC
    for number in range(0, made, 2):
        await store.remove_link(ROOT, name_of(number), 1)
        if number % 20 == 0:
            await store.make_durable()
            disk.fill()
    assert not store.has_room()
    disk.make_room()
    end = time.monotonic() + PATIENCE_S
    while not store.has_room():
        assert time.monotonic() < end, "it does not notice that there is room"
        await store.commit()
        await trio.sleep(0.01)
    await make_file(store, b"after that")
    await store.aclose()
    async with await open_store(disk.path / "metadata") as again:
        wanted = {name_of(number) for number in range(1, made, 2)} | {b"after that"}
        assert set(await names_in(again)) == wanted
        assert await again.check_invariants() == []


async def test_a_store_on_a_full_disk_is_not_opened(disk: SmallDisk) -> None:
    """It would fail at some later commit.  Its ballast, if it left one, is room enough."""
    store = await new_store(disk.path / "metadata")
    await make_file(store, b"file")
    await store.aclose()
    disk.fill()
    async with await open_store(disk.path / "metadata") as again:
        await make_file(again, b"by the ballast")
    (disk.path / "metadata-ballast").unlink(missing_ok=True)
    disk.fill()
    with pytest.raises(MetadataError, match="is full, make room and try again"):
        await open_store(disk.path / "metadata")
    disk.make_room()
    async with await open_store(disk.path / "metadata") as again:
        assert set(await names_in(again)) == {b"file", b"by the ballast"}


def test_a_claim_is_renewed_on_a_full_disk(disk: SmallDisk) -> None:
    """Else somebody else would take the drive over."""
    write_notes(disk.path, Notes(own="1-a", counter=9))
    disk.fill()
    for number in range(10, 12):
        write_notes(disk.path, Notes(own="1-a", counter=number))
        assert read_notes(disk.path) == Notes(own="1-a", counter=number)
    assert sorted(path.name for path in disk.path.glob("lease*")) == ["lease.json"]
    disk.make_room()
    write_notes(disk.path, Notes(own="1-a", counter=12))
    assert read_notes(disk.path) == Notes(own="1-a", counter=12)
    assert os.stat(disk.path / "lease.json").st_size < 4096

"""`cuckoo gc` on a drive that is not mounted."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio

from cuckoo_mount.config import DrivePaths, read_config, read_drive_key
from cuckoo_mount.drive import open_drive
from cuckoo_mount.parted.tree import Caller
from cuckoo_mount.types import ROOT_INODE
from tests.cli.commanding import Shell, empty_drive

ME = Caller(os.getuid(), os.getgid())


def write_and_delete(paths: DrivePaths) -> None:
    """Store a file on the cloud, then delete it."""

    async def work() -> None:
        config = read_config(paths)
        assert config is not None
        async with open_drive(config, paths, read_drive_key(paths.key_file)) as drive:
            handle, inode = await drive.filesystem.create(ROOT_INODE, b"file", 0o644, ME)
            await drive.filesystem.write(handle, 0, os.urandom(200_000))
            await drive.filesystem.release(handle)
            await drive.send_all()
            await drive.filesystem.tree.unlink(ROOT_INODE, b"file")
            await drive.filesystem.tree.forget(inode.ino, 1)

    trio.run(work)


@pytest.mark.slow
def test_what_nobody_needs_is_deleted(shell: Shell, base: Path, paths: DrivePaths) -> None:
    empty_drive(paths)
    (base / "usb").mkdir()
    shell.done("cloud", "add", "usb", base / "usb")
    write_and_delete(paths)
    assert len(list((base / "usb").glob("cuckoo/*/packs/*/*"))) == 1
    said = shell.done("gc", "--dry-run")
    assert said.startswith("1 pack with ")
    assert len(list((base / "usb").glob("cuckoo/*/packs/*/*"))) == 1
    result = shell.record("gc", "--keep", "1", "--yes")
    assert result["packs_deleted"] == 1
    assert result["freed_bytes"] > 200_000
    assert list((base / "usb").glob("cuckoo/*/packs/*/*")) == []
    assert shell.done("gc") == "0 packs deleted, 0 packs compacted, 0 B given back.\n"


def test_a_wrong_number_is_refused(shell: Shell, paths: DrivePaths) -> None:
    empty_drive(paths)
    assert shell("gc", "--keep", "0") == 2
    assert "--keep" in shell.err

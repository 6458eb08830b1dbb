"""A full local disk is named as such, and what was there is there when it has room again.  A tmpfs is the disk."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cuckoo_mount.config import DrivePaths
from tests.cli.commanding import Shell, empty_drive

pytestmark = [pytest.mark.mount]


@pytest.fixture
def small_disk(paths: DrivePaths) -> Iterator[Path]:
    """The state folder on a file system of 24 MiB."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a tmpfs")
    paths.state.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "none", paths.state], check=True)
    yield paths.state
    subprocess.run(["umount", "--lazy", paths.state], check=True)


def fill(folder: Path) -> Path:
    file = folder / "filler"
    with file.open("wb", buffering=0) as out, pytest.raises(OSError, match="No space"):
        out.writelines(bytes(4096) for _ in range(1 << 13))
    return file


def test_a_drive_on_a_full_disk_says_so(shell: Shell, paths: DrivePaths, small_disk: Path, tmp_path: Path) -> None:
    empty_drive(paths)
    (tmp_path / "a").mkdir()
    shell.done("cloud", "add", "a", tmp_path / "a")
    filler = fill(small_disk)
    message = shell.refused(1, "cloud", "list")
    assert "the disk there is full, make room and try again" in message
    filler.unlink()
    assert [cloud["name"] for cloud in shell.records("cloud", "list")] == ["a"]

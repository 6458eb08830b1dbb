"""Fixtures for all programs: `mount` of tests/mount, `open_mount` that others may enter, and a `tree` to copy."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.mount.conftest import mount, pytest_runtest_makereport
from tests.mount.finishing import finished_mount
from tests.mount.mounting import Mount
from tests.programs.running import need
from tests.programs.trees import copy_and_decorate

__all__ = ["mount", "pytest_runtest_makereport"]


@pytest.fixture
def open_mount(request: pytest.FixtureRequest) -> Iterator[Mount]:
    """As `mount`, where other users get to the mountpoint (pytest's own folders are closed to them).

    Start it with OPEN of running.py.
    """
    folder = Path(tempfile.mkdtemp(prefix="cuckoo-programs-"))
    folder.chmod(0o755)
    with finished_mount(Mount(folder / "drive"), request) as drive:
        yield drive
    with suppress(OSError):  # kept with the drive of a test that failed
        folder.rmdir()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """About 300 files of the standard library, with everything that a tree can have."""
    need("rsync", "setfacl")
    source = tmp_path / "tree"
    copy_and_decorate(Path(os.__file__).parent, source)
    return source

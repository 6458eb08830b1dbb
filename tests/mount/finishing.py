"""The end of a test with a drive, for fixtures in any file.  conftest.py notes which tests failed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

import pytest

from tests.mount.mounting import Mount

FAILED: Final = pytest.StashKey[bool]()
M = TypeVar("M", bound=Mount)


@contextmanager
def finished_mount(drive: M, request: pytest.FixtureRequest) -> Iterator[M]:
    """Give a drive to a test; afterwards check, unmount, and delete it if the test passed."""
    try:
        yield drive
        failed = request.node.stash.get(FAILED, False)
        if not failed:
            drive.finish()
    finally:
        drive.clear_away()
    if not failed:
        drive.delete()

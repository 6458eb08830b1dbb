"""The fixture `mount` for all tests on a real mount."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.mount.mounting import Mount

_FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Remember whether a test failed: then its drive is kept, to be looked at."""
    report = yield
    item.stash[_FAILED] = item.stash.get(_FAILED, False) or report.failed
    return report


@contextmanager
def finished_mount(drive: Mount, request: pytest.FixtureRequest) -> Iterator[Mount]:
    """Give a drive to a test; afterwards check, unmount, and delete it if the test passed."""
    try:
        yield drive
        failed = request.node.stash.get(_FAILED, False)
        if not failed:
            drive.finish()
    finally:
        drive.clear_away()
    if not failed:
        drive.delete()


@pytest.fixture
def mount(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Mount]:
    """A drive of its own, not yet mounted; afterwards checked, unmounted, and deleted if the test passed."""
    with finished_mount(Mount(tmp_path / "drive"), request) as drive:
        yield drive

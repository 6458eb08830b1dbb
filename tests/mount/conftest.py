"""The fixture `mount` for all tests on a real mount."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.mount.finishing import FAILED, finished_mount
from tests.mount.mounting import Mount


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Remember whether a test failed: then its drive is kept, to be looked at."""
    report = yield
    item.stash[FAILED] = item.stash.get(FAILED, False) or report.failed
    return report


@pytest.fixture
def mount(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Mount]:
    """A drive of its own, not yet mounted; afterwards checked, unmounted, and deleted if the test passed."""
    with finished_mount(Mount(tmp_path / "drive"), request) as drive:
        yield drive

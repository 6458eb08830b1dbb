"""What all tests of a drive over several clouds share: the fixture `make_pool`, and leave to inject faults."""

from __future__ import annotations

import shutil
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import pytest

from cuckoo_mount.clouds.registry import TESTING_VARIABLE
from cuckoo_mount.testing.httpproxy import http_proxy
from cuckoo_mount.testing.servers import S3Server, s3_server
from tests.mount.mounting import DEADLINE_S
from tests.pool.machines import Machine
from tests.pool.pooling import Place, PoolMount, folder_place
from tests.pool.threeservers import ThreeServers, s3_place

_FAILED = pytest.StashKey[bool]()


class MakePool(Protocol):
    """What the fixture `make_pool` is."""

    def __call__(
        self, places: Sequence[Place], *, redundancy: str = "none", deadline_s: float = DEADLINE_S
    ) -> PoolMount:
        """Return a drive over `places`, not yet mounted."""


class MakeMachine(Protocol):
    """What the fixture `make_machine` is."""

    def __call__(self, places: Sequence[Place], *, redundancy: str = "2", deadline_s: float = DEADLINE_S) -> Machine:
        """Return a machine that has nothing of the drive yet."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Remember whether a test failed: then its drive is kept, to be looked at."""
    report = yield
    item.stash[_FAILED] = item.stash.get(_FAILED, False) or report.failed
    return report


@pytest.fixture(autouse=True)
def faults_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process and its workers open clouds with a fault plan."""
    monkeypatch.setenv(TESTING_VARIABLE, "1")


@pytest.fixture
def make_pool(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[MakePool]:
    """Makes drives; afterwards each is checked, unmounted, and deleted if the test passed."""
    made: list[PoolMount] = []

    def make(places: Sequence[Place], *, redundancy: str = "none", deadline_s: float = DEADLINE_S) -> PoolMount:
        pool = PoolMount(tmp_path / f"drive{len(made)}", places, redundancy=redundancy, deadline_s=deadline_s)
        made.append(pool)
        return pool

    with _finished(made, tmp_path, request):
        yield make


@pytest.fixture
def make_machine(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[MakeMachine]:
    """Makes machines; afterwards the drive is checked and unmounted on each, and all is deleted if the test passed."""
    made: list[PoolMount] = []

    def make(places: Sequence[Place], *, redundancy: str = "2", deadline_s: float = DEADLINE_S) -> Machine:
        machine = Machine(tmp_path / f"machine{len(made)}", places, redundancy=redundancy, deadline_s=deadline_s)
        made.append(machine)
        return machine

    with _finished(made, tmp_path, request):
        yield make


@contextmanager
def _finished(made: Sequence[PoolMount], tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[None]:
    try:
        yield
        failed = request.node.stash.get(_FAILED, False)
        if not failed:
            for pool in made:
                pool.finish()
    finally:
        for pool in made:
            pool.clear_away()
    if not failed:
        # pytest keeps folders of the last runs: some of these tests store a GiB.
        _empty(tmp_path)


@pytest.fixture(scope="session")
def weed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """`weed server -s3`, for all tests; each takes a prefix of its own."""
    yield from _server("weed", tmp_path_factory)


@pytest.fixture(scope="session")
def rclone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """`rclone serve s3`, for all tests; each takes a prefix of its own."""
    yield from _server("rclone", tmp_path_factory)


def _server(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    folder = tmp_path_factory.mktemp(kind)
    with s3_server(kind, folder) as server:
        yield server
    _empty(folder)


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


@pytest.fixture
def three_servers(tmp_path: Path, weed: S3Server, rclone: S3Server) -> Iterator[ThreeServers]:
    """A folder and two S3 servers, with a counting proxy in front of each server."""
    with http_proxy(weed.endpoint_url) as weed_proxy, http_proxy(rclone.endpoint_url) as rclone_proxy:
        yield ThreeServers(
            folder=folder_place(tmp_path / "clouds", "folder"),
            weed=s3_place("weed", weed, weed_proxy),
            rclone=s3_place("rclone", rclone, rclone_proxy),
            proxies={"weed": weed_proxy, "rclone": rclone_proxy},
        )

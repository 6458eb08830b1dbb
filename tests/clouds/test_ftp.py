"""The FTP driver against real servers: TLS, what it says when something is wrong, broken connections."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from attrs import evolve

from cuckoo_mount.clouds.base import Cloud, CloudSettings
from cuckoo_mount.clouds.ftp import CONNECTIONS_MAX, FtpCloud, open_ftp_cloud
from cuckoo_mount.clouds.registry import open_cloud
from cuckoo_mount.errors import CloudMissing, CloudRefused, CloudTimeout, CloudUnavailable, UsageError
from cuckoo_mount.testing.cloud_conformance import in_threads
from cuckoo_mount.testing.cloud_trouble import CALLS, DATA, HANG_TIMEOUT_S, NAME, check, expect
from cuckoo_mount.testing.fileservers import FileServer
from cuckoo_mount.testing.serverprocess import free_ports
from cuckoo_mount.testing.tcpproxy import TcpProxy, tcp_proxy
from tests.clouds.conftest import started

pytestmark = pytest.mark.slow  # for the servers' sake


@pytest.fixture
def proxy(ftp: FileServer) -> Iterator[TcpProxy]:
    """Give a proxy for control connections; data go beside it."""
    with tcp_proxy(ftp.port) as running:
        yield running


@pytest.fixture
def settings(ftp: FileServer, proxy: TcpProxy) -> CloudSettings:
    return ftp.settings(folder=ftp.fresh_folder(), port=proxy.port)


@pytest.fixture
def cloud(settings: CloudSettings) -> Iterator[Cloud]:
    with contextlib.closing(open_ftp_cloud(settings, settings.url)) as opened:
        opened.put(NAME, DATA)
        yield opened


def test_few_connections_are_made_and_kept(cloud: Cloud, proxy: TcpProxy) -> None:
    assert in_threads(lambda _: cloud.get(NAME) == DATA, 40) == [True] * 40
    assert proxy.connections <= CONNECTIONS_MAX


def test_bytes_are_bytes_after_a_listing(cloud: Cloud) -> None:
    """Listings are text, which FTP may translate."""
    lines = b"a\r\nb\nc\r\n"
    cloud.put("cuckoo/lines", lines)
    calls: list[Callable[[], bytes]] = [
        lambda: cloud.get("cuckoo/lines"),
        lambda: cloud.get_range("cuckoo/lines", 0, len(lines)),
    ]
    for call in calls:
        assert {info.size_bytes for info in cloud.list("cuckoo/")} == {len(lines), len(DATA)}
        assert call() == lines


def test_a_range_ended_early_leaves_the_connection_usable(cloud: Cloud, proxy: TcpProxy) -> None:
    large = DATA * 30
    cloud.put("cuckoo/large", large)
    for offset in (0, 1 << 20, 3 << 20):
        assert cloud.get_range("cuckoo/large", offset, 1000) == large[offset : offset + 1000]
        assert cloud.get(NAME) == DATA
    assert proxy.connections == 1


def test_connections_that_broke_while_idle_are_not_noticed(cloud: Cloud, proxy: TcpProxy) -> None:
    in_threads(lambda _: cloud.get(NAME), 8)
    for name in CALLS:
        proxy.drop()
        check(cloud, name)


def test_a_server_that_never_answers_does_not_hold_a_call_for_ever(ftp: FileServer, settings: CloudSettings) -> None:
    impatient = evolve(settings, timeout_s=HANG_TIMEOUT_S)
    patient = open_ftp_cloud(settings, settings.url)
    patient.put(NAME, DATA)
    with contextlib.closing(open_ftp_cloud(impatient, impatient.url)) as cloud, contextlib.closing(patient):
        with ftp.frozen():
            for name, call in CALLS.items():
                expect(cloud, call, CloudTimeout, name)
        for name in CALLS:
            check(patient, name)


def test_the_root_is_never_made(ftp: FileServer, settings: CloudSettings) -> None:
    url = f"{settings.url}-never"
    with contextlib.closing(open_ftp_cloud(evolve(settings, url=url), url)) as cloud:
        for call in (lambda: cloud.put("a/b", b"x"), lambda: list(cloud.list("")), lambda: cloud.get("a/b")):
            with pytest.raises(CloudUnavailable, match=r"there is no folder /.*-never at ftp://.*; make it"):
                call()
    assert not list(ftp.data.glob("*-never"))


def test_names_of_others_are_not_listed(cloud: Cloud, ftp: FileServer, settings: CloudSettings) -> None:
    folder = ftp.data / settings.url.rpartition("/")[2]
    for name in ("Not Ours", "a~b"):
        (folder / name).write_bytes(b"x")
    ftp.notice()
    assert [info.name for info in cloud.list("")] == [NAME]


def test_nothing_listening() -> None:
    url = f"ftp://127.0.0.1:{free_ports(1)[0]}/x"
    cloud = open_ftp_cloud(CloudSettings(name="x", url=url), url)
    with contextlib.closing(cloud), pytest.raises(CloudUnavailable, match=r"nothing answers at ftp://127.0.0.1:\d+"):
        cloud.get("a")


def test_the_registry_opens_it(settings: CloudSettings) -> None:
    assert isinstance(open_cloud(settings), FtpCloud)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://", "names no host; write ftp://host/folder"),
        ("ftp://h/y?timeout=1", "has no option 'timeout'; leave it out"),
        ("ftps://h/y?ca_file=/nowhere.pem", "ca_file '/nowhere.pem' cannot be read"),
    ],
)
def test_mistakes_get_one_helpful_line(url: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        open_cloud(CloudSettings(name="x", url=url))


@pytest.fixture(scope="module")
def ftps(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FileServer]:
    yield from started("pyftpdlib-tls", tmp_path_factory)


def test_encrypted(ftps: FileServer) -> None:
    """The server takes nothing else, neither for control nor for data."""
    settings = ftps.settings(folder=ftps.fresh_folder())
    with contextlib.closing(open_ftp_cloud(settings, settings.url)) as cloud:
        cloud.put(NAME, DATA)
        for name in CALLS:
            check(cloud, name)
        assert cloud.get_range(NAME, 1000, 10) == DATA[1000:1010]
        with pytest.raises(CloudMissing):
            cloud.get("cuckoo/absent")


def test_a_server_whose_certificate_nobody_vouches_for_is_not_talked_to(ftps: FileServer) -> None:
    url = ftps.url().partition("?")[0]
    cloud = open_ftp_cloud(CloudSettings(name="x", url=url, secrets=ftps.secrets()), url)
    with contextlib.closing(cloud), pytest.raises(CloudUnavailable, match=r"no secure connection to ftps://.*ca_file"):
        cloud.get("a")


def test_plain_ftp_where_it_is_not_taken(ftps: FileServer) -> None:
    url = ftps.url().partition("?")[0].replace("ftps://", "ftp://")
    cloud = open_ftp_cloud(CloudSettings(name="x", url=url, secrets=ftps.secrets()), url)
    with contextlib.closing(cloud), pytest.raises((CloudRefused, CloudUnavailable), match="550"):
        cloud.get("a")


class Cutting:
    """A server whose data connections break after `limit_bytes`, if that is not None."""

    limit_bytes: int | None = None


@pytest.fixture
def cutting(tmp_path: Path) -> Iterator[tuple[Cutting, Cloud]]:
    pyftpdlib = pytest.importorskip("pyftpdlib.handlers")
    from pyftpdlib.authorizers import DummyAuthorizer
    from pyftpdlib.servers import FTPServer

    state = Cutting()

    class Data(pyftpdlib.DTPHandler):  # type: ignore[misc, name-defined]  # it has no types
        def _cut(self) -> None:
            moved = max(self.tot_bytes_sent, self.tot_bytes_received)
            if state.limit_bytes is not None and moved >= state.limit_bytes:
                self._resp = ("426 Cut on purpose.", str)
                self.close()

        def handle_read(self) -> None:
            super().handle_read()
            self._cut()

        handle_read_event = handle_read

        def handle_write(self) -> None:
            super().handle_write()
            self._cut()

    class Handler(pyftpdlib.FTPHandler):  # type: ignore[misc, name-defined]
        authorizer = DummyAuthorizer()
        dtp_handler = Data
        use_sendfile = False

    (tmp_path / "root").mkdir()
    Handler.authorizer.add_user("me", "password", str(tmp_path), perm="elradfmwMT")
    server = FTPServer(("127.0.0.1", 0), Handler)
    stopping = threading.Event()

    def serve() -> None:
        while not stopping.is_set():
            server.serve_forever(timeout=0.01, blocking=False, handle_exit=False)

    thread = threading.Thread(target=serve)
    thread.start()
    url = f"ftp://127.0.0.1:{server.address[1]}/root"
    settings = CloudSettings(name="cut", url=url, secrets=(("password", "password"), ("user", "me")))
    try:
        with contextlib.closing(open_ftp_cloud(settings, url)) as cloud:
            yield state, cloud
    finally:
        stopping.set()
        thread.join()
        server.close_all()


def test_a_cut_transfer_is_never_short_data(cutting: tuple[Cutting, Cloud]) -> None:
    server, cloud = cutting
    large = DATA * 10  # more than what is on its way when the connection breaks
    cloud.put(NAME, large)
    server.limit_bytes = len(large) // 2
    expect(cloud, lambda opened: opened.get(NAME), CloudUnavailable)
    expect(cloud, lambda opened: opened.get_range(NAME, 10, len(large) - 20), CloudUnavailable)
    server.limit_bytes = None
    assert cloud.get(NAME) == large


def test_a_cut_put_leaves_nothing(cutting: tuple[Cutting, Cloud]) -> None:
    server, cloud = cutting
    large = DATA * 10
    server.limit_bytes = len(large) // 2
    expect(cloud, lambda opened: opened.put(NAME, large), CloudUnavailable)
    server.limit_bytes = None
    assert list(cloud.list("")) == []
    cloud.put(NAME, large)
    assert cloud.get(NAME) == large

"""The conformance suite over WebDAV, on every kind of server there is; one server per kind, a folder per test."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import pytest
from attrs import evolve

from cuckoo_mount.clouds.base import Cloud, CloudSettings
from cuckoo_mount.clouds.webdav import open_webdav_cloud
from cuckoo_mount.testing.cloud_conformance import CloudConformance, FillWith
from cuckoo_mount.testing.cloud_trouble import (
    PATIENT_TIMEOUT_S,
    WRONG_SECRET,
    Filling,
    MakeCloud,
    RemoveRoot,
    Restart,
    Wire,
)
from cuckoo_mount.testing.fileservers import FileServer
from cuckoo_mount.testing.httpproxy import Fault, HttpProxy

pytestmark = pytest.mark.slow  # for the servers' sake


def opener(settings: CloudSettings) -> Callable[[], Cloud]:
    return lambda: open_webdav_cloud(settings, settings.url)


class TestWebDav(CloudConformance):
    @pytest.fixture
    def upload(self) -> str:
        """How objects are put: see the option `upload`."""
        return "direct"

    @pytest.fixture
    def folder(self, webdav: FileServer) -> str:
        return webdav.fresh_folder()

    @pytest.fixture
    def remove_root(self, webdav: FileServer, folder: str) -> RemoveRoot:
        return lambda: webdav.remove_folder(folder)

    @pytest.fixture
    def make_cloud(self, webdav: FileServer, folder: str, upload: str) -> MakeCloud:
        return opener(webdav.settings(folder=folder, upload=upload))

    @pytest.fixture
    def fill_with(self, webdav: FileServer, folder: str) -> FillWith:
        """Store on the disk, which is faster than 1,200 requests."""

        def fill(names: Sequence[str]) -> None:
            for name in names:
                path = webdav.data / folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(b"x")
            webdav.notice()

        return fill

    @pytest.fixture
    def wire(self, webdav: FileServer, webdav_proxy: HttpProxy, folder: str, upload: str) -> Wire:
        def make_cloud(timeout_s: float) -> Cloud:
            return opener(webdav.settings(folder=folder, port=webdav_proxy.port, timeout_s=timeout_s, upload=upload))()

        return Wire(proxy=webdav_proxy, make_cloud=make_cloud)

    @pytest.fixture
    def filling(self, network: Wire) -> Iterator[Filling]:
        """None of the servers can be given a small limit: what a full one would say is said for it."""

        @contextlib.contextmanager
        def full() -> Iterator[None]:
            network.proxy.break_requests(Fault("status", methods=("PUT",), status=507, code="InsufficientStorage"))
            yield
            network.proxy.break_requests()

        with contextlib.closing(network.make_cloud(PATIENT_TIMEOUT_S)) as cloud:
            yield Filling(cloud=cloud, full=full)

    @pytest.fixture
    def strangers(self, webdav: FileServer, folder: str) -> Sequence[MakeCloud]:
        settings = webdav.settings(folder=folder)
        wrong = ({"password": WRONG_SECRET, "user": webdav.user}, {"password": webdav.password, "user": WRONG_SECRET})
        return [opener(evolve(settings, secrets=tuple(secrets.items()))) for secrets in wrong]

    @pytest.fixture
    def restart(self, webdav: FileServer) -> Restart:
        return Restart(restart=webdav.restart)


@pytest.mark.long  # not for its own sake: the ordinary run has the other way, and one test of this one
class TestWebDavByMoving(TestWebDav):
    """Objects are put under a temporary name and moved; for servers that write in place."""

    @pytest.fixture
    def upload(self) -> str:
        return "move"

"""The conformance suite over Dropbox, by the real SDK on the emulation; one server for all tests, a folder each."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import pytest
from attrs import evolve

from cuckoo_mount.clouds.base import Cloud, CloudSettings
from cuckoo_mount.clouds.dropbox import open_dropbox_cloud
from cuckoo_mount.testing.cloud_conformance import CloudConformance, FillWith
from cuckoo_mount.testing.cloud_trouble import WRONG_SECRET, Filling, MakeCloud, RemoveRoot, Restart, Wire
from tests.clouds.dropboxserver import DropboxServer

pytestmark = pytest.mark.slow  # for the sake of the SDK, which takes half a second to import


def opener(settings: CloudSettings) -> Callable[[], Cloud]:
    return lambda: open_dropbox_cloud(settings, settings.url)


class TestDropbox(CloudConformance):
    # Only waits for what every request has in common: the limits of one session of HTTP.
    @pytest.mark.long
    def test_a_server_that_never_answers_does_not_hold_a_call_for_ever(self, network: Wire, far_cloud: Cloud) -> None:
        super().test_a_server_that_never_answers_does_not_hold_a_call_for_ever(network, far_cloud)

    @pytest.fixture
    def folder(self, dropbox: DropboxServer) -> str:
        return dropbox.fresh_folder()

    @pytest.fixture
    def remove_root(self, dropbox: DropboxServer, folder: str) -> RemoveRoot:
        return lambda: dropbox.account.remove(folder)

    @pytest.fixture
    def make_cloud(self, dropbox: DropboxServer, folder: str) -> MakeCloud:
        return opener(dropbox.settings(folder))

    @pytest.fixture
    def fill_with(self, dropbox: DropboxServer, folder: str) -> FillWith:
        """Store in the account, which is faster than 1,200 requests."""

        def fill(names: Sequence[str]) -> None:
            for name in names:
                dropbox.account.write(f"{folder}/{name}", b"x")

        return fill

    @pytest.fixture
    def wire(self, dropbox: DropboxServer, folder: str) -> Wire:
        def make_cloud(timeout_s: float) -> Cloud:
            return opener(dropbox.settings(folder, timeout_s=timeout_s))()

        return Wire(proxy=dropbox.proxy, make_cloud=make_cloud)

    @pytest.fixture
    def filling(self, dropbox: DropboxServer, make_cloud: MakeCloud) -> Iterator[Filling]:
        account = dropbox.account
        quota_bytes = account.quota_bytes

        @contextlib.contextmanager
        def full() -> Iterator[None]:
            account.quota_bytes = account.used_bytes
            yield
            account.quota_bytes = quota_bytes

        with contextlib.closing(make_cloud()) as cloud:
            yield Filling(cloud=cloud, full=full)

    @pytest.fixture
    def strangers(self, dropbox: DropboxServer, folder: str) -> Sequence[MakeCloud]:
        settings = dropbox.settings(folder)
        other_app = settings.url.replace(dropbox.logins.app_key, WRONG_SECRET)
        return [
            opener(evolve(settings, secrets=(("refresh_token", WRONG_SECRET),))),
            opener(evolve(settings, secrets=(("access_token", WRONG_SECRET),))),
            opener(evolve(settings, url=other_app)),
        ]

    @pytest.fixture
    def restart(self, dropbox: DropboxServer) -> Restart:
        return Restart(restart=dropbox.restart)

"""The conformance suite over FTP, on every kind of server there is; one server per kind, a folder per test."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from attrs import evolve

from cuckoo_mount.clouds.base import Cloud, CloudSettings
from cuckoo_mount.clouds.ftp import open_ftp_cloud
from cuckoo_mount.testing.cloud_conformance import CloudConformance, FillWith
from cuckoo_mount.testing.cloud_trouble import WRONG_SECRET, MakeCloud, RemoveRoot, Restart
from cuckoo_mount.testing.fileservers import FileServer

pytestmark = pytest.mark.slow  # for the servers' sake


def opener(settings: CloudSettings) -> Callable[[], Cloud]:
    return lambda: open_ftp_cloud(settings, settings.url)


class TestFtp(CloudConformance):
    @pytest.fixture
    def folder(self, ftp: FileServer) -> str:
        return ftp.fresh_folder()

    @pytest.fixture
    def remove_root(self, ftp: FileServer, folder: str) -> RemoveRoot:
        return lambda: ftp.remove_folder(folder)

    @pytest.fixture
    def make_cloud(self, ftp: FileServer, folder: str) -> MakeCloud:
        return opener(ftp.settings(folder=folder))

    @pytest.fixture
    def fill_with(self, ftp: FileServer, folder: str) -> FillWith:
        """Store on the disk, which is faster."""

        def fill(names: Sequence[str]) -> None:
            for name in names:
                path = ftp.data / folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(b"x")
            ftp.notice()

        return fill

    @pytest.fixture
    def strangers(self, ftp: FileServer, folder: str) -> Sequence[MakeCloud]:
        settings = ftp.settings(folder=folder)
        given = dict(settings.secrets)
        wrong = [{**given, key: WRONG_SECRET} for key in given]
        return [opener(evolve(settings, secrets=tuple(secrets.items()))) for secrets in wrong]

    @pytest.fixture
    def restart(self, ftp: FileServer) -> Restart:
        return Restart(restart=ftp.restart)

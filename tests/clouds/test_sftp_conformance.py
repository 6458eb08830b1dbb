"""The conformance suite over SFTP, on every kind of server there is; one server per kind, a folder per test."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from attrs import evolve

from cuckoo_mount.clouds.base import Cloud, CloudSettings
from cuckoo_mount.clouds.sftp import open_sftp_cloud
from cuckoo_mount.testing.cloud_conformance import CloudConformance, FillWith
from cuckoo_mount.testing.cloud_trouble import WRONG_SECRET, MakeCloud, RemoveRoot, Restart
from cuckoo_mount.testing.fileservers import FileServer

pytestmark = pytest.mark.slow  # for the servers' sake


def opener(settings: CloudSettings) -> Callable[[], Cloud]:
    return lambda: open_sftp_cloud(settings, settings.url)


class TestSftp(CloudConformance):
    @pytest.fixture
    def folder(self, sftp: FileServer) -> str:
        return sftp.fresh_folder()

    @pytest.fixture
    def remove_root(self, sftp: FileServer, folder: str) -> RemoveRoot:
        return lambda: sftp.remove_folder(folder)

    @pytest.fixture
    def make_cloud(self, sftp: FileServer, folder: str) -> MakeCloud:
        return opener(sftp.settings(folder=folder))

    @pytest.fixture
    def fill_with(self, sftp: FileServer, folder: str) -> FillWith:
        """Store on the disk, which is faster."""

        def fill(names: Sequence[str]) -> None:
            for name in names:
                path = sftp.data / folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(b"x")
            sftp.notice()

        return fill

    @pytest.fixture
    def strangers(self, sftp: FileServer, folder: str) -> Sequence[MakeCloud]:
        """Wrong password, or wrong user with the right key."""
        settings = sftp.settings(folder=folder)
        given = dict(settings.secrets)
        wrong = [{**given, key: WRONG_SECRET} for key in given]
        return [opener(evolve(settings, secrets=tuple(secrets.items()))) for secrets in wrong]

    @pytest.fixture
    def restart(self, sftp: FileServer) -> Restart:
        return Restart(restart=sftp.restart)

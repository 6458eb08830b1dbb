"""Servers for the tests of clouds: one of each kind per session, in turn, each with a proxy in front."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from cuckoo_mount.testing.fileservers import FileServer, file_server
from cuckoo_mount.testing.httpproxy import HttpProxy, http_proxy
from cuckoo_mount.testing.servers import S3_KINDS, S3Server, s3_server
from tests.clouds.dropboxserver import DropboxServer, dropbox_server


@pytest.fixture(scope="session", params=S3_KINDS)
def s3(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """Give a running S3 server, of each kind in turn."""
    with s3_server(request.param, tmp_path_factory.mktemp(request.param)) as server:
        yield server


@pytest.fixture(scope="session")
def s3_proxy(s3: S3Server) -> Iterator[HttpProxy]:
    """Give a proxy in front of `s3`."""
    with http_proxy(s3.endpoint_url) as proxy:
        yield proxy


def started(kind: str, factory: pytest.TempPathFactory) -> Iterator[FileServer]:
    """Give a running file server, or skip with the name of what is missing."""
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(file_server(kind, factory.mktemp(kind)))
        except FileNotFoundError as error:
            pytest.skip(str(error))
        yield server


@pytest.fixture(scope="session", params=["rclone-webdav", "wsgidav"])
def webdav(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FileServer]:
    """Give a running WebDAV server, of each kind in turn."""
    yield from started(request.param, tmp_path_factory)


@pytest.fixture(scope="session")
def webdav_proxy(webdav: FileServer) -> Iterator[HttpProxy]:
    """Give a proxy in front of `webdav`."""
    with http_proxy(webdav.endpoint_url) as proxy:
        yield proxy


@pytest.fixture(scope="session", params=["openssh", "rclone-sftp"])
def sftp(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FileServer]:
    """Give a running SFTP server, of each kind in turn."""
    yield from started(request.param, tmp_path_factory)


@pytest.fixture(scope="session", params=["pyftpdlib", pytest.param("rclone-ftp", marks=pytest.mark.long)])
def ftp(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FileServer]:
    """Give a running FTP server, of each kind in turn."""
    yield from started(request.param, tmp_path_factory)


@pytest.fixture(scope="session")
def dropbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DropboxServer]:
    """Give a running emulation of Dropbox, with a proxy in front."""
    with dropbox_server(tmp_path_factory.mktemp("dropbox")) as server:
        yield server

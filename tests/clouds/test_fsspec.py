"""fsspec file systems as PyFilesystems and clouds: URLs, arguments, errors, requests, threads; no server but one.

The conformance suite on real servers is in test_fsspec_conformance.py.
"""

from __future__ import annotations

import contextlib
import importlib
import subprocess
import sys
import threading
import unittest
from collections.abc import Iterator
from pathlib import Path

import pytest

from cuckoo_mount.clouds import fsimport
from cuckoo_mount.clouds.base import CloudSettings
from cuckoo_mount.clouds.fsspeccloud import FsspecCloud, open_fsspec_cloud
from cuckoo_mount.clouds.fsspecerrors import explain, is_broken
from cuckoo_mount.clouds.fsspecfs import FsspecFS
from cuckoo_mount.clouds.fsspechooks import Busy
from cuckoo_mount.clouds.fsspeckinds import KINDS, REFUSED, kind_of
from cuckoo_mount.clouds.fsspecplace import Maker, parse_fsspec_place
from cuckoo_mount.clouds.opendalfs import OpenDalError
from cuckoo_mount.clouds.registry import open_cloud, parse_place
from cuckoo_mount.config.secrets import part_url
from cuckoo_mount.errors import (
    CloudBusy,
    CloudCorrupt,
    CloudError,
    CloudFull,
    CloudMissing,
    CloudNeedsLogin,
    CloudRefused,
    CloudTimeout,
    CloudUnavailable,
    UsageError,
)
from cuckoo_mount.testing.fileservers import FileServer, file_server
from cuckoo_mount.testing.httpproxy import HttpProxy, http_proxy

with fsimport.stand_in():
    from fs.test import FSTestCases

SETTINGS = CloudSettings(name="far", url="fsspec+memory://x", secrets=(("password", "hidden-secret"),))


class TestAsPyFilesystem(FSTestCases, unittest.TestCase):
    """PyFilesystem's own 79 tests of what a file system has to do."""

    number = 0

    def make_fs(self) -> fsimport.FS:
        pytest.importorskip("fsspec")
        TestAsPyFilesystem.number += 1
        opened = fsimport.open_fs(f"fsspec+memory://suite-{TestAsPyFilesystem.number}")
        assert isinstance(opened, FsspecFS)
        opened.filesystem.mkdir(opened.root)
        return opened

    # A flat test run: unittest's name for it went away with Python 3.12.
    assertRaisesRegexp = unittest.TestCase.assertRaisesRegex  # noqa: N815


# --- URLs and settings ------------------------------------------------------------------------------------------------


def test_the_scheme_has_a_plus_and_faulty_still_goes_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUCKOO_TESTING", "1")
    for url, faulty in (("fsspec+gs://bucket/x", False), ("faulty+fsspec+webdav+http://host/x", True)):
        place = parse_place(url)
        assert place.driver.opener.endswith("open_fsspec_cloud")
        assert place.faulty is faulty
        assert place.place == url.removeprefix("faulty+")
    for wrong in ("fsspec://x", "fsspec+://x", "fsspec+a b://x", "fsspec+A://x", "gs+fsspec://x"):
        with pytest.raises(UsageError):
            parse_place(wrong)


@pytest.mark.parametrize("protocol", sorted(REFUSED))
def test_what_cannot_be_a_cloud_says_why(protocol: str) -> None:
    url = f"fsspec+{protocol}://x"
    with pytest.raises(UsageError, match="cannot be a cloud") as caught:
        open_fsspec_cloud(CloudSettings(name="x", url=url), url)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("protocol", ["gs", "abfs", "gdrive", "onedrive", "smb", "webdav+https", "opendal+b2"])
def test_a_missing_package_is_one_line_with_the_command(protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("gcsfs", "gcsfs.core", "adlfs", "opendal", "smbclient", "webdav4", "webdav4.fsspec"):
        monkeypatch.setitem(sys.modules, module, None)
    pytest.importorskip("fsspec")
    url = f"fsspec+{protocol}://place/folder"
    with pytest.raises(UsageError, match="pip install '") as caught:
        open_fsspec_cloud(CloudSettings(name="x", url=url), url)
    assert "\n" not in str(caught.value)


def test_every_extra_that_is_named_exists() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    for kind in (*KINDS, kind_of("opendal+b2")):
        if kind.extra:
            assert f"\n{kind.extra} = [" in text


def maker(url: str, *, secrets: dict[str, str] | None = None, **options: str) -> Maker:
    settings = CloudSettings(name="x", url=url, options=tuple(options.items()), secrets=tuple((secrets or {}).items()))
    return Maker(settings, parse_fsspec_place(settings, url))


def test_options_and_secrets_become_arguments() -> None:
    pytest.importorskip("webdav4")
    made = maker("fsspec+webdav+http://host:81/a/b?http2=no", secrets={"user": "me", "password": "12345"})
    assert made.root == "a/b"
    given = made._arguments
    assert given["base_url"] == "http://host:81/"
    assert given["auth"] == ("me", "12345")


def test_an_option_nobody_reads_and_an_empty_one_are_errors() -> None:
    pytest.importorskip("webdav4")
    with pytest.raises(UsageError, match="has no option 'nosuch'"):
        maker("fsspec+webdav+http://host/x", nosuch="1")
    with pytest.raises(UsageError, match="option timeout is empty"):
        maker("fsspec+webdav+http://host/x?timeout=")
    with pytest.raises(UsageError, match="names no place"):
        maker("fsspec+memory://")


def test_without_a_login_nobody_is_asked_for_one() -> None:
    pytest.importorskip("opendal")
    with pytest.raises(UsageError, match="--secret refresh_token="):
        maker("fsspec+gdrive://folder")
    with pytest.raises(UsageError, match="client_id must be set"):
        maker("fsspec+gdrive://folder", secrets={"refresh_token": "r"})
    made = maker("fsspec+gdrive://a/b", secrets={"refresh_token": "r", "client_id": "i", "client_secret": "s"})
    assert made.root == "a/b"


@pytest.mark.parametrize("target", ["box@acc/a/b", "box@acc.dfs.core.windows.net/a/b", "box/a/b?account_name=acc"])
def test_where_azure_is_can_be_written_in_three_ways(target: str) -> None:
    pytest.importorskip("adlfs")
    made = maker(f"fsspec+abfs://{target}", secrets={"account_key": "a2V5"})
    assert (made.root, made._arguments["account_name"]) == ("box/a/b", "acc")


def test_secrets_are_taken_out_of_urls() -> None:
    url, found = part_url("fsspec+abfs://box@account/x?account_key=abc&connection_string=d&account_name=n")
    assert url == "fsspec+abfs://box@account/x?account_name=n"
    assert dict(found) == {"account_key": "abc", "connection_string": "d"}
    assert part_url("fsspec+smb://me:pw@nas/share")[0] == "fsspec+smb://nas/share"


# --- errors -----------------------------------------------------------------------------------------------------------


def named(name: str, base: type[Exception] = Exception, **attributes: object) -> Exception:
    """Return an error of a class called `name`, as a library that is not installed would raise it."""
    error: Exception = type(name, (base,), {})("hidden-secret said\nso")
    for key, value in attributes.items():
        setattr(error, key, value)
    return error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (FileNotFoundError("x"), CloudMissing),
        (OSError(2, "no such"), CloudMissing),
        (TimeoutError(), CloudTimeout),
        (named("ReadTimeout"), CloudTimeout),
        (named("ConnectError"), CloudUnavailable),
        (named("HttpError", code=401), CloudNeedsLogin),
        (named("HttpError", code=429), CloudBusy),
        (named("HttpError", code="503"), CloudBusy),
        (named("HttpError", code=416), CloudCorrupt),
        (OSError("Forbidden: bucket\nno"), CloudRefused),
        (named("RefreshError"), CloudNeedsLogin),
        (named("HttpResponseError", error_code="AuthenticationFailed"), CloudNeedsLogin),
        (named("ClientAuthenticationError"), CloudNeedsLogin),
        (named("LogonFailure"), CloudNeedsLogin),
        (named("SMBOSError", OSError, ntstatus=0xC000007F), CloudFull),
        (named("SMBOSError", OSError, ntstatus=0xC0000022), CloudRefused),
        (OpenDalError("RateLimited", "slow down"), CloudBusy),
        (OpenDalError("Unexpected", "write: HTTP status 507", 507), CloudFull),
        (OpenDalError("PermissionDenied", "no"), CloudRefused),
        (OpenDalError("Unexpected", "send => invalid_grant"), CloudNeedsLogin),
        (OpenDalError("Unexpected", "error sending request"), CloudUnavailable),
        (KeyError("anything"), CloudUnavailable),
    ],
)
def test_errors_of_libraries_are_ours(error: Exception, kind: type[CloudError]) -> None:
    found = explain(error, SETTINGS, "a/b")
    assert type(found) is kind
    assert (found.cloud, found.name) == ("far", "a/b")
    assert "hidden-secret" not in str(found)
    assert "\n" not in str(found)


def test_how_long_to_wait_is_told() -> None:
    found = explain(Busy(503, "7"), SETTINGS, "")
    assert isinstance(found, CloudBusy)
    assert found.retry_after_s == 7.0


def test_a_broken_connection_is_known_behind_what_hides_it() -> None:
    error = OSError("hidden")
    error.__cause__ = named("RemoteProtocolError")
    assert is_broken(error)
    assert not is_broken(OSError("no room"))


def test_opendal_errors_have_no_urls_with_secrets_in_them() -> None:
    pytest.importorskip("opendal")
    secrets = {"refresh_token": "r/efresh", "client_id": "id", "client_secret": "clientsecret"}
    url = "fsspec+gdrive://folder"
    settings = CloudSettings(name="x", url=url, secrets=tuple(secrets.items()), timeout_s=0.001)
    cloud = open_fsspec_cloud(settings, url)
    with pytest.raises(CloudUnavailable) as caught:
        cloud.get("a/b")
    text = repr(caught.value) + repr(caught.value.__cause__) + str(caught.value)
    assert not any(secret in text for secret in ("r/efresh", "r%2Fefresh", "clientsecret", "https://"))


# --- the cloud --------------------------------------------------------------------------------------------------------


def register(protocol: str, made_by: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let fsspec know a protocol during a test."""
    monkeypatch.setitem(importlib.import_module("fsspec.registry")._registry, protocol, made_by)


def test_an_unknown_protocol_is_used_with_care(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that cuts what it stores is found out, as nothing is known of it."""
    pytest.importorskip("fsspec")
    from fsspec.implementations.memory import MemoryFileSystem

    class Cutting(MemoryFileSystem):  # type: ignore[misc]  # fsspec has no types
        protocol = "cutting"

        @classmethod
        def _strip_protocol(cls, path: str) -> str:
            return "/" + path.rpartition("://")[2].strip("/")

        def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: object) -> None:
            super().pipe_file(path, value[:-1], mode=mode, **kwargs)

    register("cutting", Cutting, monkeypatch)
    url = "fsspec+cutting://root"
    cloud = open_cloud(CloudSettings(name="x", url=url))
    assert isinstance(cloud, FsspecCloud)
    with pytest.raises(CloudUnavailable, match="there is no folder"):
        cloud.put("a/b", b"1234")
    MemoryFileSystem().mkdir("/root")
    with pytest.raises(CloudUnavailable, match="4 bytes were sent, it has 3"):
        cloud.put("a/b", b"1234")


@pytest.fixture(scope="module")
def webdav(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FileServer, HttpProxy]]:
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(file_server("wsgidav", tmp_path_factory.mktemp("wsgidav")))
        yield server, stack.enter_context(http_proxy(server.endpoint_url))


@pytest.mark.slow
@pytest.mark.parametrize(
    "scheme", ["fsspec+webdav+http://127.0.0.1:{port}/{folder}", "fsspec+opendal+webdav:///{folder}"]
)
def test_requests_are_counted(webdav: tuple[FileServer, HttpProxy], scheme: str) -> None:
    """One request per range; one for the data of a put, and one that gives them their name."""
    server, proxy = webdav
    opendal = "opendal" in scheme
    pytest.importorskip("opendal" if opendal else "webdav4")
    secrets = dict(server.secrets())
    options = {}
    if opendal:
        secrets["username"] = secrets.pop("user")
        options = {"endpoint": proxy.endpoint_url}
    folder = server.fresh_folder()
    url = scheme.format(port=proxy.port, folder=folder)
    settings = CloudSettings(name="x", url=url, options=tuple(options.items()), secrets=tuple(sorted(secrets.items())))
    with contextlib.closing(open_fsspec_cloud(settings, url)) as cloud:
        cloud.put("a/first", b"1")
        proxy.reset()
        cloud.put("a/second", b"12345")
        assert (server.data / folder / "a" / "second").read_bytes() == b"12345"
        if not opendal:
            assert proxy.counts().requests == {"PUT": 1, "MOVE": 1}
        proxy.reset()
        assert cloud.get_range("a/second", 1, 3) == b"234"
        assert proxy.counts().requests == {"GET": 1}
        assert cloud.get("a/second") == b"12345"
        assert {info.name for info in cloud.list("a/")} == {"a/first", "a/second"}
        cloud.delete("a/second")
        with pytest.raises(CloudMissing):
            cloud.get("a/second")
        server.remove_folder(folder)
        for call in (lambda: cloud.get("a/first"), lambda: list(cloud.list("")), lambda: cloud.put("b/c/d", b"x")):
            with pytest.raises(CloudUnavailable):
                call()


def test_an_asynchronous_call_ends_at_its_deadline_and_leaves_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fsspec")
    import asyncio

    from fsspec.asyn import AsyncFileSystem

    cancelled = threading.Event()

    class Hanging(AsyncFileSystem):  # type: ignore[misc]  # fsspec has no types
        protocol = "hanging"

        async def _cat_file(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.set()
                raise
            return b""

    register("hanging", Hanging, monkeypatch)
    monkeypatch.setattr("cuckoo_mount.clouds.fsspeccloud._LARGEST_BYTES", 0)
    url = "fsspec+hanging://root"
    for _ in range(3):
        cloud = open_fsspec_cloud(CloudSettings(name="x", url=url, timeout_s=0.05), url)
        with pytest.raises(CloudTimeout):
            cloud.get("a/b")
        assert cancelled.wait(30)
        cancelled.clear()
        cloud.close()
    assert sum(thread.name.startswith("fsspecIO") for thread in threading.enumerate()) == 1


@pytest.mark.slow
def test_nothing_of_it_is_imported_before_it_is_used() -> None:
    code = (
        "import sys, cuckoo_mount.cli.main, cuckoo_mount.clouds.registry as registry\n"
        "registry.parse_place('fsspec+gs://bucket/x')\n"
        "found = [name for name in sys.modules if 'fsspec' in name or name in ('opendal', 'smbclient', 'aiohttp')]\n"
        "sys.exit(str(found) if found else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, text=True)
    assert done.returncode == 0, done.stderr

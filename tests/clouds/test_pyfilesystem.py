"""The generic adapter against drivers that misbehave as real ones were seen to."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import pytest

from cuckoo_mount.clouds import fsimport
from cuckoo_mount.clouds.base import CloudSettings
from cuckoo_mount.clouds.osfs import FolderCloud
from cuckoo_mount.clouds.pyfilesystem import PyFilesystemCloud, open_pyfilesystem_cloud, url_with_settings
from cuckoo_mount.errors import CloudMissing, CloudRefused, CloudUnavailable, UsageError

with fsimport.stand_in():
    from fs.info import Info
    from fs.memoryfs import MemoryFS
    from fs.opener.parse import parse_fs_url


class OddFS(MemoryFS):
    """A memory file system with the faults of drivers, switched on by name."""

    faults: frozenset[str] = frozenset()

    def readbytes(self, path: str) -> bytes:
        if "empty-reads" in self.faults:
            return b""
        if "missing-is-denied" in self.faults and not self.exists(path):
            raise fsimport.errors.PermissionDenied(path)
        if "raw-errors" in self.faults:
            raise KeyError("a driver's own")
        data: bytes = super().readbytes(path)
        return data

    def writebytes(self, path: str, contents: bytes) -> None:
        if "short-writes" in self.faults:
            contents = contents[:-1]
        super().writebytes(path, contents)

    def scandir(
        self, path: str, namespaces: Collection[str] | None = None, page: tuple[int, int] | None = None
    ) -> Iterator[Info]:
        if "root-gone" in self.faults:
            raise fsimport.errors.ResourceNotFound(path)
        return super().scandir(path, namespaces, page)

    def close(self) -> None:
        """Keep the data: the adapter opens several of these and may close them."""


OddCloud = tuple[PyFilesystemCloud, Callable[..., None]]


@pytest.fixture
def odd(monkeypatch: pytest.MonkeyPatch) -> OddCloud:
    opened = OddFS()
    monkeypatch.setattr(fsimport, "open_fs", lambda url: opened)

    def switch_on(*faults: str) -> None:
        opened.faults = frozenset(faults)

    cloud = PyFilesystemCloud(CloudSettings(name="odd", url="odd://"), "odd://", shared=False)
    cloud.put("a/object", b"bytes")
    return cloud, switch_on


def test_an_empty_answer_for_an_object_with_bytes_is_an_error(odd: OddCloud) -> None:
    cloud, switch_on = odd
    switch_on("empty-reads")
    with pytest.raises(CloudUnavailable):
        cloud.get("a/object")
    with pytest.raises(CloudMissing):
        cloud.get("a/absent")


def test_permission_denied_for_what_is_not_there_is_missing(odd: OddCloud) -> None:
    cloud, switch_on = odd
    switch_on("missing-is-denied")
    assert cloud.get("a/object") == b"bytes"
    with pytest.raises(CloudMissing):
        cloud.get("a/absent")


def test_a_raw_exception_is_ours_and_the_next_call_works(odd: OddCloud) -> None:
    cloud, switch_on = odd
    switch_on("raw-errors")
    with pytest.raises(CloudUnavailable, match="KeyError"):
        cloud.get("a/object")
    switch_on()
    assert cloud.get("a/object") == b"bytes"


def test_a_short_write_is_an_error_and_leaves_no_object(odd: OddCloud) -> None:
    cloud, switch_on = odd
    switch_on("short-writes")
    with pytest.raises(CloudUnavailable, match="6 bytes sent, 5 arrived"):
        cloud.put("a/new", b"123456")
    switch_on()
    with pytest.raises(CloudMissing):
        cloud.get("a/new")


def test_not_found_is_believed_only_while_the_root_answers(odd: OddCloud) -> None:
    cloud, switch_on = odd
    with pytest.raises(CloudMissing):
        cloud.get("a/absent")
    switch_on("root-gone")
    with pytest.raises(CloudUnavailable, match="root cannot be opened"):
        cloud.get("a/absent")
    with pytest.raises(CloudUnavailable):
        cloud.delete("a/absent")


def test_nothing_listening_is_unavailable() -> None:
    with pytest.raises(CloudUnavailable):
        open_pyfilesystem_cloud(CloudSettings(name="far", url="ftp://127.0.0.1:9"), "ftp://127.0.0.1:9")


def test_a_scheme_without_its_driver_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="cannot open nosuch://"):
        open_pyfilesystem_cloud(CloudSettings(name="x", url="nosuch://y"), "nosuch://y")


def test_a_file_system_that_is_a_folder_gets_the_driver_for_folders(tmp_path: Path) -> None:
    url = f"osfs://{tmp_path}"
    assert isinstance(open_pyfilesystem_cloud(CloudSettings(name="x", url=url), url), FolderCloud)


def test_options_and_secrets_go_where_pyfilesystem_looks_for_them() -> None:
    settings = CloudSettings(
        name="x",
        url="ftp://host/dir?timeout=5",
        options=(("expect.drive", "ours"), ("proxy", "a&b=c%41/d")),
        secrets=(("password", "p@ss:w/rd%41"), ("user", "me")),
    )
    parsed = parse_fs_url(url_with_settings(settings, settings.url))
    assert (parsed.username, parsed.password, parsed.resource) == ("me", "p@ss:w/rd%41", "host/dir")
    assert parsed.params == {"timeout": "5", "proxy": "a&b=c%41/d"}


def test_a_password_alone_keeps_the_user_of_the_url() -> None:
    settings = CloudSettings(name="x", url="ftp://me@host", secrets=(("password", "pw"),))
    assert url_with_settings(settings, settings.url) == "ftp://me:pw@host"


def test_refused_is_still_refused(odd: OddCloud, monkeypatch: pytest.MonkeyPatch) -> None:
    cloud, _ = odd

    def denied(self: OddFS, path: str) -> bytes:
        raise fsimport.errors.PermissionDenied(path)

    monkeypatch.setattr(OddFS, "readbytes", denied)
    with pytest.raises(CloudRefused):
        cloud.get("a/object")

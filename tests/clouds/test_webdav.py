"""The WebDAV driver: what each call costs at real servers, and what it says when something is wrong."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator

import pytest
from attrs import evolve

from cuckoo_mount.clouds import jobs, webdavxml
from cuckoo_mount.clouds.base import Cloud, CloudSettings
from cuckoo_mount.clouds.registry import expecting, open_cloud
from cuckoo_mount.clouds.walking import Entry
from cuckoo_mount.clouds.webdav import WebDavCloud, open_webdav_cloud
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
from cuckoo_mount.testing.fileservers import FileServer
from cuckoo_mount.testing.httpproxy import Fault, HttpProxy
from cuckoo_mount.testing.serverprocess import free_ports
from cuckoo_mount.testing.tcpproxy import tcp_proxy

DRIVE, CLOUD = b"D" * 16, b"C" * 16
FOUR_KIB = bytes(4096)
SLOW_BYTES_PER_S = 2 << 20
PACKS = f"cuckoo/{DRIVE.hex()}/packs"
pytestmark = pytest.mark.slow  # for the servers' sake


@pytest.fixture
def folder(webdav: FileServer) -> str:
    return webdav.fresh_folder()


@pytest.fixture
def settings(webdav: FileServer, webdav_proxy: HttpProxy, folder: str) -> CloudSettings:
    return webdav.settings(folder=folder, port=webdav_proxy.port)


@pytest.fixture
def proxy(webdav_proxy: HttpProxy) -> Iterator[HttpProxy]:
    webdav_proxy.reset()
    yield webdav_proxy
    webdav_proxy.break_requests()


@pytest.fixture
def cloud(settings: CloudSettings) -> Iterator[Cloud]:
    with contextlib.closing(open_webdav_cloud(settings, settings.url)) as opened:
        yield opened


def test_what_each_call_costs(cloud: Cloud, proxy: HttpProxy) -> None:
    cloud.put(f"{PACKS}/ab/first", FOUR_KIB)
    for call, requests in (
        (lambda: cloud.put(f"{PACKS}/ab/b", FOUR_KIB), {"PUT": 1}),
        (lambda: cloud.put(f"{PACKS}/cd/c", bytes(17 << 20)), {"MKCOL": 1, "PUT": 1}),
        (lambda: cloud.put(f"{PACKS}/cd/c", FOUR_KIB), {"PUT": 1}),
        (lambda: cloud.get(f"{PACKS}/ab/b"), {"GET": 1}),
        (lambda: cloud.get_range(f"{PACKS}/ab/b", 100, 200), {"GET": 1}),
        (lambda: list(cloud.list(f"{PACKS}/ab/")), {"PROPFIND": 1}),
        (lambda: list(cloud.list(f"{PACKS}/")), {"PROPFIND": 3}),
        (lambda: cloud.delete(f"{PACKS}/ab/b"), {"DELETE": 1}),
        (cloud.space, {"PROPFIND": 1}),
    ):
        proxy.reset()
        call()
        assert proxy.counts().requests == requests


def test_folders_are_made_once_for_all_processes(cloud: Cloud, settings: CloudSettings, proxy: HttpProxy) -> None:
    """Another one asks once what there is in `packs`."""
    for number in range(4):
        cloud.put(f"{PACKS}/{number:02x}/a", b"x")
    assert proxy.counts().requests["MKCOL"] == 3 + 4
    proxy.reset()
    with contextlib.closing(open_webdav_cloud(settings, settings.url)) as other:
        for number in range(5):
            other.put(f"{PACKS}/{number:02x}/b", b"x")
    assert proxy.counts().requests == {"PROPFIND": 1, "MKCOL": 1, "PUT": 5}


def test_a_locked_name_is_asked_for_again(cloud: Cloud, proxy: HttpProxy) -> None:
    cloud.put("a/b", b"x")
    proxy.reset()
    proxy.break_requests(Fault("status", methods=("PUT",), status=423, times=2))
    cloud.put("a/b", b"y")
    assert proxy.counts().requests == {"PUT": 3}
    assert cloud.get("a/b") == b"y"


def test_a_put_that_moves_leaves_nothing_when_it_is_cut(
    settings: CloudSettings, proxy: HttpProxy, webdav: FileServer, folder: str
) -> None:
    moving = evolve(settings, options=(("upload", "move"),))
    with contextlib.closing(open_webdav_cloud(moving, moving.url)) as cloud:
        cloud.put("a/b", b"x")
        proxy.break_requests(Fault("cut_request", methods=("PUT",)))
        with pytest.raises(CloudUnavailable):
            cloud.put("a/c", bytes(300_000))
        proxy.break_requests()
        webdav.notice()
        assert [info.name for info in cloud.list("")] == ["a/b"]


def test_a_put_that_moves_costs_two(settings: CloudSettings, proxy: HttpProxy) -> None:
    moving = evolve(settings, options=(("upload", "move"),))
    with contextlib.closing(open_webdav_cloud(moving, moving.url)) as cloud:
        cloud.put("a/b", b"x")
        proxy.reset()
        cloud.put("a/c", b"x")
        assert proxy.counts().requests == {"PUT": 1, "MOVE": 1}
        assert cloud.capabilities.atomic_put


def test_a_range_transfers_only_the_range(cloud: Cloud, proxy: HttpProxy) -> None:
    cloud.put("a/large", bytes(9 << 20))
    proxy.reset()
    cloud.get_range("a/large", 5 << 20, 1000)
    assert proxy.counts().bytes_down < 5000


def test_a_check_of_the_identity_costs_one_get(settings: CloudSettings, proxy: HttpProxy) -> None:
    jobs.write_identity(settings, DRIVE, CLOUD)
    proxy.reset()
    jobs.check_identity(expecting(settings, DRIVE, CLOUD), DRIVE, CLOUD)
    assert proxy.counts().requests == {"GET": 1}


def test_a_folder_that_was_removed_is_made_again(cloud: Cloud, webdav: FileServer, folder: str) -> None:
    cloud.put("a/b/c", b"1")
    webdav.remove_folder(f"{folder}/a")
    cloud.put("a/b/c", b"2")
    assert (webdav.data / folder / "a/b/c").read_bytes() == b"2"


def test_the_root_is_never_made(webdav: FileServer, settings: CloudSettings) -> None:
    never = evolve(settings, url=f"{settings.url}-never")
    with contextlib.closing(open_webdav_cloud(never, never.url)) as cloud:
        for call in (lambda: cloud.put("a/b", b"x"), lambda: list(cloud.list("")), cloud.space):
            with pytest.raises(CloudUnavailable, match=r"there is no folder /test-.*-never at webdav://.*; make it"):
                call()
    assert not list(webdav.data.glob("*-never"))


def test_room_is_told_where_the_server_tells(webdav: FileServer, cloud: Cloud) -> None:
    """As measured: wsgidav tells its disk's, rclone does not."""
    room = cloud.space()
    assert cloud.capabilities.reports_space == (room is not None)
    assert (room is not None) == (webdav.kind == "wsgidav")


def test_names_of_others_are_not_listed(cloud: Cloud, webdav: FileServer, folder: str) -> None:
    cloud.put("ours", b"x")
    for name in ("Not Ours", "a~b", "ü"):
        (webdav.data / folder / name).write_bytes(b"x")
    webdav.notice()
    assert [info.name for info in cloud.list("")] == ["ours"]


def test_a_root_whose_name_needs_quotes(webdav: FileServer, settings: CloudSettings, folder: str) -> None:
    (webdav.data / folder / "mine @home ü%41").mkdir()
    webdav.notice()
    place, _, query = settings.url.partition("?")
    odd = f"{place}/mine%20%40home%20%C3%BC%2541?{query}"
    with contextlib.closing(open_webdav_cloud(evolve(settings, url=odd), odd)) as cloud:
        cloud.put("a/b", b"x")
        assert [(info.name, info.size_bytes) for info in cloud.list("")] == [("a/b", 1)]
    assert (webdav.data / folder / "mine @home ü%41/a/b").read_bytes() == b"x"


@pytest.mark.long
def test_a_slow_line_is_no_reason_to_give_up(webdav: FileServer, folder: str) -> None:
    """The limit on time is for each step of an upload, not for all of it."""
    with tcp_proxy(webdav.port) as line:
        line.slow_down(SLOW_BYTES_PER_S)
        slow = webdav.settings(folder=folder, port=line.port, timeout_s=4.0)
        with contextlib.closing(open_webdav_cloud(slow, slow.url)) as cloud:
            cloud.put("a", bytes(6 * SLOW_BYTES_PER_S))
    assert (webdav.data / folder / "a").stat().st_size == 6 * SLOW_BYTES_PER_S


def test_a_connection_dropped_once_is_not_noticed(cloud: Cloud, proxy: HttpProxy) -> None:
    cloud.put("a/b", FOUR_KIB)
    proxy.break_requests(Fault("drop", times=1))
    assert cloud.get("a/b") == FOUR_KIB


@pytest.mark.parametrize(
    ("status", "kind", "message"),
    [
        (301, CloudRefused, "check the URL"),
        (401, CloudNeedsLogin, "wrong user or password; where there are app passwords, it has to be one"),
        (403, CloudRefused, "let this user read, write and delete in folder /test-"),
        (404, CloudMissing, "no such object"),
        (405, CloudRefused, "is it that of WebDAV"),
        (408, CloudTimeout, "too long"),
        (413, CloudFull, "limit for uploads"),
        (416, CloudCorrupt, "ends before"),
        (418, CloudUnavailable, "HTTP status 418"),
        (429, CloudBusy, "too many requests; try again in 1 s"),
        (500, CloudUnavailable, "HTTP status 500"),
        (503, CloudBusy, "busy, or down for maintenance; try again in 1 s"),
        (507, CloudFull, "no room there"),
    ],
)
def test_what_a_server_says(cloud: Cloud, proxy: HttpProxy, status: int, kind: type[CloudError], message: str) -> None:
    proxy.break_requests(Fault("status", methods=("GET",), status=status))
    with pytest.raises(CloudError, match=message) as caught:
        cloud.get("a/b")
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("status", [403, 404, 500, 503])
def test_not_there_is_not_believed_where_the_root_cannot_be_seen(cloud: Cloud, proxy: HttpProxy, status: int) -> None:
    proxy.break_requests(
        Fault("status", methods=("GET",), status=404), Fault("status", methods=("PROPFIND",), status=status)
    )
    with pytest.raises(CloudError) as caught:
        cloud.get("a/b")
    assert not isinstance(caught.value, CloudMissing)


def test_a_server_that_is_none_of_webdav(cloud: Cloud, proxy: HttpProxy) -> None:
    proxy.break_requests(Fault("status", methods=("PROPFIND",), status=207))
    for call in (lambda: cloud.put("a/b", b"x"), lambda: list(cloud.list("")), cloud.space):
        with pytest.raises(CloudUnavailable, match=r"does not answer as a WebDAV server: .*; check the URL"):
            call()


def test_nothing_listening() -> None:
    url = f"webdav://127.0.0.1:{free_ports(1)[0]}/x"
    message = r"nothing answers at webdav://127.0.0.1:\d+; check the URL"
    cloud = open_webdav_cloud(CloudSettings(name="x", url=url), url)
    with contextlib.closing(cloud), pytest.raises(CloudUnavailable, match=message):
        cloud.get("a")


def test_a_server_without_tls(webdav: FileServer) -> None:
    url = webdav.url().replace("webdav://", "webdavs://")
    message = r"no secure connection to webdavs://.*option ca_file"
    cloud = open_webdav_cloud(CloudSettings(name="x", url=url), url)
    with contextlib.closing(cloud), pytest.raises(CloudUnavailable, match=message):
        cloud.get("a")


def test_credentials_in_the_url_and_the_registry(webdav: FileServer, folder: str) -> None:
    url = webdav.url(folder).replace("//", f"//{webdav.user}:{webdav.password}@")
    cloud = open_cloud(CloudSettings(name="x", url=url))
    assert isinstance(cloud, WebDavCloud)
    cloud.put("a", b"x")
    assert webdav.password not in repr(cloud)


@pytest.mark.parametrize(
    ("url", "secrets", "message"),
    [
        ("webdavs://", {}, "names no host; write webdavs://host/folder"),
        ("webdavs://h:x/y", {}, "port is no number"),
        ("webdavs://h/../y", {}, "cannot be its folder"),
        ("webdavs://h/y?compress=1", {}, "has no option 'compress'; known: upload, ca_file"),
        ("webdavs://h/y?upload=round", {}, "'round' is none of direct, move"),
        ("webdavs://h/y?ca_file=/nowhere.pem", {}, "ca_file '/nowhere.pem' cannot be read: No such file"),
        ("webdavs://h/y", {"user": "me"}, "secret 'password' is missing"),
        ("webdavs://h/y", {"passwort": "hidden"}, "no secret 'passwort'; known: user, password"),
        ("https://h/y", {}, "if it is a WebDAV server, write webdavs://host/folder"),
    ],
)
def test_mistakes_get_one_helpful_line(url: str, secrets: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        open_cloud(CloudSettings(name="x", url=url, secrets=tuple(secrets.items())))
    assert "\n" not in str(caught.value)
    assert "hidden" not in str(caught.value)


def _answer(*responses: tuple[str, str, str]) -> bytes:
    body = "".join(
        f"<d:response><d:href>{href}</d:href><d:propstat><d:prop><d:resourcetype>{kind}</d:resourcetype>{more}</d:prop>"
        "<d:status>HTTP/1.1 200 OK</d:status></d:propstat></d:response>"
        for href, kind, more in responses
    )
    return f'<d:multistatus xmlns:d="DAV:">{body}</d:multistatus>'.encode()


_FOLDER = "<d:collection/>"
_SIZE = "<d:getcontentlength>5</d:getcontentlength><d:getlastmodified>Wed, 25 Nov 2026 10:00:00 GMT</d:getlastmodified>"


@pytest.mark.parametrize("base", ["/dav/me", "https://proxy.example/other/dav/me", "/d%61v/me", ""])
def test_listings_of_servers_behind_proxies(base: str) -> None:
    """The paths in an answer need not be those that were asked for."""
    body = _answer((f"{base}/", _FOLDER, ""), (f"{base}/sub", _FOLDER, ""), (f"{base}/a.0", "", _SIZE))
    found = webdavxml.parse_multistatus(body)
    assert webdavxml.entries_of(found, "/dav/me") == [Entry("sub", None), Entry("a.0", 5, 1795600800.0)]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html/>",
        _answer(("/dav/me/", _FOLDER, ""))[:-5],
        _answer(("/dav/me", "", _SIZE)),
        _answer(("/dav/me/", _FOLDER, ""), ("/dav/me/x", "", "")),
        b'<d:multistatus xmlns:d="DAV:"><d:response><d:href>/dav/me/</d:href><d:status>HTTP/1.1 507 More</d:status>'
        b"</d:response></d:multistatus>",
    ],
    ids=["empty", "no multistatus", "cut", "a file", "no size", "left out"],
)
def test_a_listing_that_cannot_be_relied_on(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"the|there"):
        webdavxml.entries_of(webdavxml.parse_multistatus(body), "/dav/me")


def test_the_commands_do_not_load_it() -> None:
    """Nor what it needs: drivers are imported when a cloud is opened."""
    program = "import json, sys, cuckoo_mount.cli.main, cuckoo_mount.cli.mount\nprint(json.dumps(sorted(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(json.loads(result.stdout))
    assert not loaded & {
        *("urllib3", "requests", "paramiko", "ftplib", "boto3", "dropbox"),
        *(f"cuckoo_mount.clouds.{name}" for name in ("webdav", "sftp", "ftp", "s3", "dropbox", "dropboxlogin")),
    }

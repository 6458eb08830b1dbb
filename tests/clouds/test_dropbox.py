"""The Dropbox driver: what each call costs, how logins end and begin, and what it says when something is wrong."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator

import pytest
from attrs import evolve

from cuckoo_mount.clouds import dropbox as driver
from cuckoo_mount.clouds import jobs
from cuckoo_mount.clouds.accounts import account_of
from cuckoo_mount.clouds.base import CloudSettings, Space
from cuckoo_mount.clouds.dropbox import DropboxCloud, open_dropbox_cloud
from cuckoo_mount.clouds.dropboxerrors import tags_in
from cuckoo_mount.clouds.logins import begin_login, driver_with_login
from cuckoo_mount.clouds.registry import expecting, open_cloud
from cuckoo_mount.clouds.translate import hide_secrets
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
from cuckoo_mount.testing.httpproxy import Fault, HttpProxy
from cuckoo_mount.testing.serverprocess import free_ports
from cuckoo_mount.testing.tcpproxy import tcp_proxy
from tests.clouds.dropboxserver import DropboxServer

DRIVE, CLOUD = b"D" * 16, b"C" * 16
FOUR_KIB = bytes(4096)
SLOW_BYTES_PER_S = 2 << 20
PACKS = f"cuckoo/{DRIVE.hex()}/packs"
pytestmark = pytest.mark.slow  # for the sake of the SDK, which takes half a second to import


@pytest.fixture
def folder(dropbox: DropboxServer) -> str:
    return dropbox.fresh_folder()


@pytest.fixture
def settings(dropbox: DropboxServer, folder: str) -> CloudSettings:
    return dropbox.settings(folder)


@pytest.fixture
def cloud(settings: CloudSettings, dropbox: DropboxServer) -> Iterator[DropboxCloud]:
    """An opened cloud that has a token and has seen its folder."""
    with contextlib.closing(open_dropbox_cloud(settings, settings.url)) as opened:
        opened.put("first", b"x")
        dropbox.reset()
        yield opened


@pytest.fixture
def proxy(dropbox: DropboxServer) -> Iterator[HttpProxy]:
    yield dropbox.proxy
    dropbox.proxy.break_requests()


# -- requests --


def test_what_each_call_costs(cloud: DropboxCloud, dropbox: DropboxServer) -> None:
    """A pack of 16 MiB and a range of it: one request each, new or over what is there, in any folder."""
    pack = bytes(16 << 20)
    for call, requests in (
        (lambda: cloud.put(f"{PACKS}/ab/b", pack), {"files/upload": 1}),
        (lambda: cloud.put(f"{PACKS}/cd/b", FOUR_KIB), {"files/upload": 1}),
        (lambda: cloud.put(f"{PACKS}/cd/b", b"other"), {"files/upload": 1}),
        (lambda: cloud.get(f"{PACKS}/ab/b"), {"files/download": 1}),
        (lambda: cloud.get_range(f"{PACKS}/ab/b", 9 << 20, 2000), {"files/download": 1}),
        (lambda: list(cloud.list(f"{PACKS}/")), {"files/list_folder": 1}),
        (lambda: cloud.delete(f"{PACKS}/cd/b"), {"files/delete_v2": 1}),
        (cloud.space, {"users/get_space_usage": 1}),
    ):
        dropbox.reset()
        call()
        assert dropbox.requests() == requests
        if "files/download" in requests and dropbox.proxy.counts().bytes_down < len(pack):
            assert dropbox.proxy.counts().bytes_down < 5000


def test_a_range_from_something_that_knows_none(
    cloud: DropboxCloud, dropbox: DropboxServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dropbox, "knows_ranges", False)
    cloud.put("a", bytes(range(100)))
    assert cloud.get_range("a", 10, 5) == bytes(range(10, 15))
    with pytest.raises(CloudCorrupt):
        cloud.get_range("a", 98, 5)


def test_opening_costs_a_token_and_a_look_at_the_folder(settings: CloudSettings, dropbox: DropboxServer) -> None:
    dropbox.reset()
    with contextlib.closing(open_dropbox_cloud(settings, settings.url)) as opened:
        assert dropbox.requests() == {}
        opened.put("a", b"1")
        opened.put("b", b"2")
    assert dropbox.requests() == {"oauth2/token": 1, "files/get_metadata": 1, "files/upload": 2}


def test_a_check_of_the_identity_costs_one_download(settings: CloudSettings, dropbox: DropboxServer) -> None:
    jobs.write_identity(settings, DRIVE, CLOUD)
    dropbox.reset()
    jobs.check_identity(expecting(settings, DRIVE, CLOUD), DRIVE, CLOUD)
    assert dropbox.requests() == {"oauth2/token": 1, "files/download": 1}


def test_an_object_larger_than_a_request_goes_in_parts(
    cloud: DropboxCloud, dropbox: DropboxServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "UPLOAD_MAX_BYTES", 100_000)
    monkeypatch.setattr(driver, "PART_BYTES", 80_000)
    monkeypatch.setattr(dropbox.account, "upload_max_bytes", 100_000)
    for size_bytes, appends in ((100_000, None), (100_001, 0), (160_000, 0), (160_001, 1), (400_000, 3)):
        data = bytes(number % 251 for number in range(size_bytes))
        dropbox.reset()
        cloud.put("large", data)
        asked = dropbox.requests()
        assert asked.get("files/upload", 0) == (appends is None)
        assert asked.get("files/upload_session/append_v2", 0) == (appends or 0)
        assert cloud.get("large") == data
    monkeypatch.setattr(driver, "UPLOAD_MAX_BYTES", 100_001)
    with pytest.raises(CloudUnavailable, match="payload_too_large"):
        cloud.put("larger", bytes(100_001))


@pytest.mark.long
def test_more_than_150_mib(cloud: DropboxCloud, dropbox: DropboxServer) -> None:
    data = bytes(driver.UPLOAD_MAX_BYTES + 1)
    cloud.put("large", data)
    assert dropbox.requests() == {"files/upload_session/start": 1, "files/upload_session/finish": 1}
    assert cloud.get("large") == data


@pytest.mark.parametrize("lost", ["not_found", "incorrect_offset"])
def test_an_upload_in_parts_that_is_broken_off_is_tried_again(
    cloud: DropboxCloud, dropbox: DropboxServer, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    """It must not look as if an object were missing, or the cloud read-only."""
    monkeypatch.setattr(driver, "UPLOAD_MAX_BYTES", 1000)
    monkeypatch.setattr(driver, "PART_BYTES", 1000)
    body = json.dumps({"error": {".tag": lost, "correct_offset": 5}})
    for route in ("append_v2", "finish"):
        dropbox.proxy.break_requests(Fault("status", match=route, status=409, body=body))
        with pytest.raises(CloudUnavailable, match="try again"):
            cloud.put("large", bytes(2500))
    dropbox.proxy.break_requests()
    cloud.put("large", bytes(2500))


def test_many_deletes_are_one_batch(cloud: DropboxCloud, dropbox: DropboxServer, settings: CloudSettings) -> None:
    names = [f"{PACKS}/ab/{number}" for number in range(40)]
    for name in names:
        dropbox.account.write(f"{settings.url.partition('?')[0].removeprefix('dropbox://')}/{name}", b"x")
    dropbox.reset()
    jobs.delete_many(settings, [*names[:30], "never/was/here"])
    opening = {"oauth2/token": 1, "files/get_metadata": 1}  # the look at the folder is for the one that was not there
    assert dropbox.requests() == {**opening, "files/delete_batch": 1, "files/delete_batch/check": 2}
    assert sorted(info.name for info in cloud.list(f"{PACKS}/")) == sorted(names[30:])
    dropbox.reset()
    jobs.delete_many(settings, names[30:31])
    assert dropbox.requests() == {"files/delete_v2": 1}


class Clock:
    """Time for the driver's pauses, which take none."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


def test_a_batch_that_takes_too_long_is_said_to(
    cloud: DropboxCloud, dropbox: DropboxServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(driver, "time", clock)
    monkeypatch.setattr(dropbox.account, "delete_checks", 1000)
    with pytest.raises(CloudTimeout, match="takes too long"):
        cloud.delete_many(["a", "b"])
    assert 30.0 <= clock.now_s < 32.0
    assert dropbox.asked("files/delete_batch/check") < 25


# -- listings --


def test_a_listing_goes_on_while_things_change(
    cloud: DropboxCloud, dropbox: DropboxServer, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was told on an early page and deleted meanwhile is told again as deleted, a whole folder at once, too."""
    monkeypatch.setattr(driver, "PAGE_NAMES", 2)
    for name in ("a/1", "a/2", "b/1", "c/1", "c/2"):
        dropbox.account.write(f"{folder}/{name}", name.encode())
    go_on = cloud._client.files_list_folder_continue
    told = 0
    # By how many pages of two have been told: the folder itself and a, its two objects, b and its object, ….
    changes = {
        2: lambda: dropbox.account.remove(f"{folder}/a"),
        3: lambda: dropbox.account.write(f"{folder}/A/3", b"new"),
        4: lambda: dropbox.account.remove(f"{folder}/c/1"),
    }

    def change_and_go_on(cursor: str) -> object:
        nonlocal told
        told += 1
        changes.pop(told, lambda: None)()
        return go_on(cursor)

    monkeypatch.setattr(cloud._client, "files_list_folder_continue", change_and_go_on)
    found = {info.name: info.size_bytes for info in cloud.list("")}
    assert not changes
    assert found == {"first": 1, "a/3": 3, "b/1": 3, "c/2": 3}


def test_a_listing_that_the_service_gave_up_is_tried_again(
    cloud: DropboxCloud, dropbox: DropboxServer, folder: str, proxy: HttpProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy.break_requests(Fault("status", match="continue", status=409, body='{"error": {".tag": "reset"}}'))
    monkeypatch.setattr(driver, "PAGE_NAMES", 2)
    for number in range(3):
        dropbox.account.write(f"{folder}/many/{number}", b"x")
    with pytest.raises(CloudUnavailable, match="has to begin anew; try again"):
        list(cloud.list("many/"))


def test_names_are_told_apart_without_case_as_the_service_does(
    cloud: DropboxCloud, dropbox: DropboxServer, folder: str
) -> None:
    dropbox.account.write(f"{folder.upper()}/Cuckoo/PACK.0", b"ours, in other letters")
    assert cloud.get("cuckoo/pack.0") == b"ours, in other letters"
    assert [info.name for info in cloud.list("cuckoo/")] == ["cuckoo/pack.0"]
    cloud.put("cuckoo/pack.0", b"new")
    assert [info.size_bytes for info in cloud.list("cuckoo/")] == [3]
    dropbox.account.write(f"{folder}/cuckoo/Not ours", b"x")
    assert [info.name for info in cloud.list("cuckoo/")] == ["cuckoo/pack.0"]


@pytest.mark.parametrize("name", ["/", "/Mine @home ü%41", "/Über/All"])
def test_other_folders_as_the_root(dropbox: DropboxServer, name: str) -> None:
    if name != "/":
        dropbox.account.make_folder(name)
    quoted = name.replace("%", "%25").replace(" ", "%20").replace("@", "%40")
    settings = dropbox.settings(quoted)
    with contextlib.closing(open_dropbox_cloud(settings, settings.url)) as cloud:
        cloud.put("odd/root", b"x")
        assert [info.name for info in cloud.list("odd/")] == ["odd/root"]
        with pytest.raises(CloudMissing):
            cloud.get("odd/absent")
        cloud.delete("odd/root")
        assert list(cloud.list("odd/")) == []


def test_the_root_is_never_made(dropbox: DropboxServer) -> None:
    settings = dropbox.settings("/never-made")
    with contextlib.closing(open_dropbox_cloud(settings, settings.url)) as cloud:
        for call in (lambda: cloud.put("a/b", b"x"), lambda: list(cloud.list("")), lambda: cloud.delete("a")):
            with pytest.raises(
                CloudUnavailable, match=r"there is no folder /never-made in this Dropbox.*make it there"
            ):
                call()
    dropbox.account.write("/never-made", b"a file")
    with (
        contextlib.closing(open_dropbox_cloud(settings, settings.url)) as cloud,
        pytest.raises(CloudUnavailable, match="there is no folder /never-made"),
    ):
        cloud.put("a/b", b"x")
    dropbox.account.remove("/never-made")


# -- logins --


def test_an_expired_token_is_renewed_without_notice(cloud: DropboxCloud, dropbox: DropboxServer) -> None:
    for call in (lambda: cloud.put("a", FOUR_KIB), lambda: cloud.get("a"), lambda: list(cloud.list(""))):
        before = dropbox.logins.refreshes
        dropbox.logins.expire()
        call()
        assert dropbox.logins.refreshes == before + 1


def test_threads_share_one_token(settings: CloudSettings, dropbox: DropboxServer) -> None:
    from cuckoo_mount.testing.cloud_conformance import in_threads

    dropbox.reset()
    with contextlib.closing(open_dropbox_cloud(settings, settings.url)) as cloud:
        in_threads(lambda number: cloud.put(f"t/{number}", b"x"), 16)
    assert dropbox.requests()["oauth2/token"] == 1


def test_a_revoked_login_needs_a_new_one(cloud: DropboxCloud, dropbox: DropboxServer, settings: CloudSettings) -> None:
    dropbox.logins.revoke(dropbox.refresh_token)
    for call in (lambda: cloud.put("a", b"x"), lambda: cloud.get("first"), cloud.space):
        with pytest.raises(CloudNeedsLogin, match="log in again: cuckoo cloud login dropbox"):
            call()
    with (
        contextlib.closing(open_dropbox_cloud(settings, settings.url)) as anew,
        pytest.raises(CloudNeedsLogin, match=r"revoked.*\(refresh token is invalid or revoked\); log in again"),
    ):
        anew.get("first")
    dropbox.log_in()
    again = evolve(settings, secrets=(("refresh_token", dropbox.refresh_token),))
    with contextlib.closing(open_dropbox_cloud(again, again.url)) as anew:
        assert anew.get("first") == b"x"


def test_an_access_token_alone_works_until_it_expires(dropbox: DropboxServer, settings: CloudSettings) -> None:
    bare = evolve(settings, secrets=(("access_token", dropbox.logins.access_token()),))
    with contextlib.closing(open_dropbox_cloud(bare, bare.url)) as cloud:
        cloud.put("a", b"x")
        dropbox.logins.expire()
        with pytest.raises(CloudNeedsLogin, match="the login has expired; log in again: cuckoo cloud login dropbox"):
            cloud.get("a")


def test_a_permission_that_the_app_lacks_is_named(dropbox: DropboxServer, settings: CloudSettings) -> None:
    token = dropbox.logins.log_in(scopes=("files.metadata.read", "files.content.read"))
    reader = evolve(settings, secrets=(("refresh_token", token),))
    with (
        contextlib.closing(open_dropbox_cloud(reader, reader.url)) as cloud,
        pytest.raises(CloudNeedsLogin, match=r"lacks the permission files.content.write; tick it in .*App Console"),
    ):
        cloud.put("a", b"x")


def test_a_login_gives_what_opens_the_cloud(dropbox: DropboxServer, settings: CloudSettings) -> None:
    nobody = evolve(settings, secrets=())
    with pytest.raises(CloudNeedsLogin, match="nobody is logged in; log in again: cuckoo cloud login dropbox"):
        open_cloud(nobody)
    login = begin_login(nobody)
    given = login.finish(dropbox.logins.approve(login.url))
    assert given["access_token"] == ""
    again = evolve(settings, secrets=(("refresh_token", given["refresh_token"]),))
    with contextlib.closing(open_dropbox_cloud(again, again.url)) as cloud:
        cloud.put("a", b"x")
        assert cloud.space() is not None
        cloud.delete("a")
        assert list(cloud.list("")) == []


def test_a_code_is_of_use_to_its_own_login_only(dropbox: DropboxServer, settings: CloudSettings) -> None:
    first, second = begin_login(settings), begin_login(settings)
    code = dropbox.logins.approve(first.url)
    for login, wrong in ((second, code), (first, code), (first, "mistyped")):
        with pytest.raises(CloudNeedsLogin, match=r"did not take the code \(.*\); begin anew, and paste the new code"):
            login.finish(wrong)


def test_a_login_without_an_app(settings: CloudSettings) -> None:
    bare = CloudSettings(name="x", url="dropbox:///y")
    with pytest.raises(
        UsageError, match=r"a login needs the key of an app; make one at www.dropbox.com/developers/apps"
    ):
        begin_login(bare)
    assert driver_with_login("dropbox:///y") is not None
    assert driver_with_login("s3://dropbox") is None
    assert driver_with_login("/srv/dropbox") is None


def test_clouds_with_one_login_share_its_limits(dropbox: DropboxServer, settings: CloudSettings) -> None:
    other = evolve(settings, name="other", url=dropbox.url("/elsewhere"))
    assert account_of(settings) == account_of(other)
    assert account_of(settings) != account_of(evolve(other, secrets=(("refresh_token", "of somebody else"),)))
    one, two = (CloudSettings(name="x", url=f"dropbox:///?access_token={number}") for number in "12")
    assert account_of(one) != account_of(two)


# -- trouble --


def test_too_many_writes_are_the_business_of_the_limits(
    cloud: DropboxCloud, dropbox: DropboxServer, proxy: HttpProxy
) -> None:
    dropbox.reject_writes(1, retry_after_s=3)
    with pytest.raises(CloudBusy, match="too many writes at a time; try again in 3 s") as caught:
        cloud.put("a", b"x")
    assert caught.value.retry_after_s == 3.0
    cloud.put("a", b"x")
    # Without the header, and inside a 409.
    body = '{"error": {"reason": {".tag": "too_many_requests"}, "retry_after": 300}}'
    proxy.break_requests(Fault("status", status=429, body=body, retry_after="", times=1))
    with pytest.raises(CloudBusy, match="too many requests; try again in 300 s") as caught:
        cloud.get("a")
    assert caught.value.retry_after_s == 300.0
    inside = {".tag": "path", "reason": {".tag": "too_many_write_operations"}, "upload_session_id": "x"}
    proxy.break_requests(Fault("status", status=409, body=json.dumps({"error": inside}), retry_after="", times=1))
    with pytest.raises(CloudBusy, match="too many writes at a time"):
        cloud.put("a", b"x")


def _error(*tags: str) -> str:
    """Return the body of a 409 with tags in one another."""
    error: dict[str, object] = {".tag": tags[-1]}
    for tag in reversed(tags[:-1]):
        error = {".tag": tag, tag: error}
    return json.dumps({"error_summary": "/".join(tags), "error": error})


@pytest.mark.parametrize(
    ("status", "body", "kind", "message"),
    [
        (302, "", CloudUnavailable, "is there a proxy or a login page"),
        (400, "bad {path}", CloudUnavailable, r"answered HTTP status 400: bad {path}"),
        (401, _error("user_suspended"), CloudRefused, "has suspended this account"),
        (401, _error("brand_new"), CloudNeedsLogin, "the login was refused; log in again"),
        (401, "<html/>", CloudNeedsLogin, "the login was refused; log in again"),
        (403, _error("team_access_denied"), CloudRefused, "not allowed for this account or app"),
        (408, "", CloudTimeout, "waited too long"),
        (409, _error("path", "not_found"), CloudMissing, "no such object"),
        (409, _error("path", "not_file"), CloudMissing, "a folder is there"),
        (409, _error("path", "restricted_content"), CloudUnavailable, "refused it: path/restricted_content"),
        (409, _error("brand {new}"), CloudUnavailable, "refused it: brand {new}"),
        (409, "no json", CloudUnavailable, "HTTP status 409: no json"),
        (416, "", CloudCorrupt, "ends before the range"),
        (418, "", CloudUnavailable, "HTTP status 418"),
        (429, "", CloudBusy, "too many requests"),
        (500, "oops", CloudUnavailable, "HTTP status 500: oops"),
        (503, "", CloudBusy, "busy"),
        (507, "", CloudFull, "no room there"),
        (200, "<html>Welcome to our Wi-Fi</html>", CloudUnavailable, "is there a proxy or a login page"),
    ],
)
def test_what_the_service_says(
    cloud: DropboxCloud, proxy: HttpProxy, status: int, body: str, kind: type[CloudError], message: str
) -> None:
    content_type = "application/json" if body.startswith("{") else "text/html"
    fault = Fault("status", match="files/download", status=status, body=body, content_type=content_type)
    proxy.break_requests(fault)
    with pytest.raises(CloudError, match=message) as caught:
        cloud.get("a/b")
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)


def test_something_else_in_the_way_of_an_upload_or_listing(cloud: DropboxCloud, proxy: HttpProxy) -> None:
    proxy.break_requests(Fault("status", status=200, body="<html>Welcome to our Wi-Fi</html>"))
    for call in (lambda: cloud.put("a", b"x"), lambda: list(cloud.list("")), cloud.space):
        with pytest.raises(CloudUnavailable, match="is there a proxy or a login page"):
            call()


@pytest.mark.parametrize("status", [403, 409, 500, 503])
def test_not_there_is_not_believed_where_the_root_cannot_be_seen(
    cloud: DropboxCloud, proxy: HttpProxy, status: int
) -> None:
    proxy.break_requests(Fault("status", match="get_metadata", status=status))
    for call in (lambda: cloud.get("a/b"), lambda: cloud.delete("a/b"), lambda: list(cloud.list("absent/"))):
        with pytest.raises(CloudError) as caught:
            call()
        assert not isinstance(caught.value, CloudMissing)


def test_what_lies_in_the_way_is_said(cloud: DropboxCloud, dropbox: DropboxServer, folder: str) -> None:
    dropbox.account.write(f"{folder}/file", b"x")
    dropbox.account.make_folder(f"{folder}/sub/folder")
    with pytest.raises(CloudRefused, match="a file lies where a folder has to be"):
        cloud.put("file/below", b"x")
    with pytest.raises(CloudRefused, match="a folder lies where the object has to be"):
        cloud.put("sub/folder", b"x")
    with pytest.raises(CloudMissing, match="a folder is there"):
        cloud.get("sub/folder")
    assert list(cloud.list("file/")) == []


def test_nothing_listening(settings: CloudSettings) -> None:
    server = f"127.0.0.1:{free_ports(1)[0]}"
    nowhere = evolve(settings, options=(("server", server),))
    with (
        contextlib.closing(open_dropbox_cloud(nowhere, nowhere.url)) as cloud,
        pytest.raises(CloudUnavailable, match=f"nothing answers at {server}; check the network"),
    ):
        cloud.get("a")


def test_a_certificate_that_is_not_trusted(settings: CloudSettings, dropbox: DropboxServer) -> None:
    url = settings.url.replace(f"&ca_file={dropbox.ca_file}", "")
    with (
        contextlib.closing(open_dropbox_cloud(evolve(settings, url=url), url)) as cloud,
        pytest.raises(CloudUnavailable, match=r"no secure connection to 127.*option ca_file"),
    ):
        cloud.get("a")


@pytest.mark.long
def test_a_slow_line_is_no_reason_to_give_up(settings: CloudSettings, dropbox: DropboxServer) -> None:
    """The limit on time is for each step of an upload, not for all of it."""
    with tcp_proxy(dropbox.proxy.port) as line:
        line.slow_down(SLOW_BYTES_PER_S)
        url = settings.url.replace(f":{dropbox.proxy.port}", f":{line.port}")
        slow = evolve(settings, url=url, timeout_s=4.0)
        with contextlib.closing(open_dropbox_cloud(slow, url)) as cloud:
            cloud.put("a", bytes(6 * SLOW_BYTES_PER_S))
    assert dropbox.asked("files/upload", "/a") == 1


def test_a_connection_dropped_once_is_not_noticed(cloud: DropboxCloud, proxy: HttpProxy) -> None:
    proxy.break_requests(Fault("drop", times=1))
    assert cloud.get("first") == b"x"


def test_room_is_that_of_the_user_or_the_team(
    cloud: DropboxCloud, dropbox: DropboxServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = dropbox.account.used_bytes
    monkeypatch.setattr(dropbox.account, "quota_bytes", used + 10_000)
    assert cloud.space() == Space(used + 10_000, 10_000)
    monkeypatch.setattr(dropbox.account, "is_team", True)
    assert cloud.space() == Space(used + 9_000, 9_000)
    monkeypatch.setattr(dropbox.account, "quota_bytes", 0)
    assert cloud.space() == Space(used, 0)


@pytest.mark.parametrize(
    ("error", "tags"),
    [
        ({".tag": "path", "path": {".tag": "not_found"}}, ("path", "not_found")),
        ({".tag": "path", "reason": {".tag": "conflict", "conflict": {".tag": "file"}}}, ("path", "conflict", "file")),
        ({"reason": {".tag": "too_many_requests"}, "retry_after": 1}, ("too_many_requests",)),
        ({".tag": "malformed_path", "malformed_path": "text"}, ("malformed_path",)),
        ("invalid_grant", ()),
        (None, ()),
    ],
)
def test_tags(error: object, tags: tuple[str, ...]) -> None:
    assert tags_in(error) == tags


# -- settings --


def test_secrets_in_the_url_work_and_are_not_shown(
    dropbox: DropboxServer, folder: str, caplog: pytest.LogCaptureFixture
) -> None:
    token = dropbox.log_in()
    url = f"{dropbox.url(folder)}&refresh_token={token}"
    settings = CloudSettings(name="x", url=url)
    with caplog.at_level(logging.DEBUG):
        cloud = open_cloud(settings)
        cloud.put("a", b"x")
    assert token not in repr(cloud)
    assert token not in caplog.text
    assert "sl." not in caplog.text
    assert hide_secrets(url, settings) == f"{dropbox.url(folder)}&refresh_token=***"


@pytest.mark.parametrize(
    ("url", "secrets", "message"),
    [
        ("dropbox://folder", {}, "a Dropbox has no host; write dropbox:///folder, with three slashes"),
        ("dropbox:///a/../b", {}, "'/?a/../b' cannot be its folder"),
        ("dropbox:///a%5Cb", {}, "cannot be its folder"),
        ("dropbox:///?acl=x", {}, "has no option 'acl'; known: app_key, server, ca_file"),
        ("dropbox:///?app_key=", {}, "option app_key is empty"),
        ("dropbox:///?app_key=a%20b", {}, "app_key is no key of an app"),
        ("dropbox:///?server=https://h", {}, "server is no address; write host or host:port"),
        ("dropbox:///?app_key=k&ca_file=/nowhere.pem", {"refresh_token": "hidden"}, "ca_file '/nowhere.pem' cannot be"),
        ("dropbox:///", {"refresh_token": "hidden"}, "the option app_key is missing"),
        ("dropbox:///", {"password": "hidden"}, "no secret 'password'; known: refresh_token, access_token, app_secret"),
    ],
)
def test_mistakes_get_one_helpful_line(url: str, secrets: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        open_cloud(CloudSettings(name="x", url=url, secrets=tuple(secrets.items())))
    assert "\n" not in str(caught.value)
    assert "hidden" not in str(caught.value)

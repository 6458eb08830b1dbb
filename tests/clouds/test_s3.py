"""The S3 driver against real servers: what each call costs, and what it says when something is wrong."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from cuckoo_mount.clouds import jobs
from cuckoo_mount.clouds.base import Cloud, CloudSettings
from cuckoo_mount.clouds.registry import expecting, open_cloud, parse_place
from cuckoo_mount.clouds.s3 import S3Cloud, open_s3_cloud
from cuckoo_mount.errors import (
    CloudBusy,
    CloudCorrupt,
    CloudError,
    CloudFull,
    CloudMissing,
    CloudNeedsLogin,
    CloudNotOurs,
    CloudRefused,
    CloudTimeout,
    CloudUnavailable,
)
from cuckoo_mount.multi.jobs import try_cloud
from cuckoo_mount.testing.httpproxy import Fault, HttpProxy, http_proxy
from cuckoo_mount.testing.serverprocess import free_ports
from cuckoo_mount.testing.servers import S3Server, s3_server

DRIVE, CLOUD = b"D" * 16, b"C" * 16
FOUR_KIB = bytes(4096)


@pytest.fixture(scope="module")
def rclone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """Give the server that starts fastest."""
    with s3_server("rclone", tmp_path_factory.mktemp("rclone-s3")) as server:
        yield server


@pytest.fixture
def proxy(rclone: S3Server) -> Iterator[HttpProxy]:
    with http_proxy(rclone.endpoint_url) as running:
        yield running


@pytest.fixture
def cloud(rclone: S3Server, proxy: HttpProxy) -> Iterator[Cloud]:
    """Give a cloud behind the proxy."""
    settings = rclone.settings(prefix=rclone.fresh_prefix(), endpoint_url=proxy.endpoint_url)
    with contextlib.closing(open_s3_cloud(settings, settings.url)) as opened:
        yield opened


@pytest.mark.slow
def test_what_each_call_costs(s3: S3Server, s3_proxy: HttpProxy) -> None:
    """At the server, by kind of request.  The first put looks at the bucket; what has read once does not."""
    settings = s3.settings(prefix=s3.fresh_prefix(), endpoint_url=s3_proxy.endpoint_url)
    with contextlib.closing(open_s3_cloud(settings, settings.url)) as cloud:
        s3_proxy.reset()
        assert list(cloud.list("")) == []
        for call, method in (
            (lambda: cloud.put("a/b", FOUR_KIB), "PUT"),
            (lambda: cloud.put("a/large", bytes(17 << 20)), "PUT"),
            (lambda: cloud.get("a/b"), "GET"),
            (lambda: cloud.get_range("a/b", 100, 200), "GET"),
            (lambda: list(cloud.list("a/")), "GET"),
            (lambda: cloud.delete("a/b"), "DELETE"),
        ):
            s3_proxy.reset()
            call()
            assert s3_proxy.counts().requests == {method: 1}


def test_a_range_transfers_only_the_range(cloud: Cloud, proxy: HttpProxy) -> None:
    cloud.put("a/large", bytes(9 << 20))
    proxy.reset()
    cloud.get_range("a/large", 5 << 20, 1000)
    assert proxy.counts().bytes_down < 5000


def test_a_first_put_looks_at_the_bucket_once(cloud: Cloud, proxy: HttpProxy) -> None:
    for _ in range(3):
        cloud.put("a/b", FOUR_KIB)
    assert proxy.counts().requests == {"HEAD": 1, "PUT": 3}


def test_a_check_of_the_identity_costs_one_get(rclone: S3Server, proxy: HttpProxy) -> None:
    settings = rclone.settings(prefix=rclone.fresh_prefix(), endpoint_url=proxy.endpoint_url)
    jobs.write_identity(settings, DRIVE, CLOUD)
    ours = expecting(settings, DRIVE, CLOUD)
    proxy.reset()
    jobs.check_identity(ours, DRIVE, CLOUD)
    jobs.put(ours, "a/b", b"x")
    assert proxy.counts().requests == {"GET": 1, "PUT": 1}


def test_the_registry_opens_it(rclone: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings = rclone.settings(prefix=rclone.fresh_prefix())
    assert parse_place(settings.url).scheme == "s3"
    assert isinstance(open_cloud(settings), S3Cloud)
    assert rclone.secret_key not in repr(open_cloud(settings))
    monkeypatch.setenv("CUCKOO_TESTING", "1")
    open_cloud(evolve(settings, options=(("fault.plan", str(tmp_path / "plan")),))).put("a", b"x")


def test_credentials_in_the_url(rclone: S3Server) -> None:
    prefix = rclone.fresh_prefix()
    url = rclone.url(prefix).replace("s3://", f"s3://{rclone.access_key}:{rclone.secret_key}@")
    with contextlib.closing(open_s3_cloud(CloudSettings(name="x", url=url), url)) as cloud:
        cloud.put("a", b"x")
    assert rclone.rclone("cat", f":s3:{rclone.bucket}/{prefix}/a") == b"x"


def test_nothing_outside_the_prefix_is_seen(rclone: S3Server, cloud: Cloud) -> None:
    rclone.rclone("rcat", f":s3:{rclone.bucket}/elsewhere", data=b"x")
    cloud.put("inside", b"x")
    assert [info.name for info in cloud.list("")] == ["inside"]


def test_names_of_others_below_the_prefix_are_not_listed(rclone: S3Server) -> None:
    prefix = rclone.fresh_prefix()
    for name in ("ours", "Not Ours", "a~b"):
        rclone.rclone("rcat", f":s3:{rclone.bucket}/{prefix}/{name}", data=b"x")
    settings = rclone.settings(prefix=prefix)
    with contextlib.closing(open_s3_cloud(settings, settings.url)) as cloud:
        assert [info.name for info in cloud.list("")] == ["ours"]


def test_a_connection_dropped_once_is_not_noticed(cloud: Cloud, proxy: HttpProxy) -> None:
    cloud.put("a/b", FOUR_KIB)
    proxy.break_requests(Fault("drop", times=1))
    assert cloud.get("a/b") == FOUR_KIB


def test_no_checksums_and_no_second_round_trip(cloud: Cloud, proxy: HttpProxy) -> None:
    """A put is as long as its head and body: nothing is waited for in between, nothing sent behind."""
    cloud.put("a/b", FOUR_KIB)
    proxy.reset()
    cloud.put("a/c", FOUR_KIB)
    assert proxy.counts().bytes_up < len(FOUR_KIB) + 1500
    assert not any("expect" in head.headers for head in proxy.heads())


@pytest.mark.parametrize(
    ("status", "code", "kind", "message"),
    [
        (507, "InsufficientStorage", CloudFull, "InsufficientStorage"),
        (400, "EntityTooLarge", CloudFull, "EntityTooLarge"),
        (403, "QuotaExceeded", CloudFull, "QuotaExceeded"),
        (429, "TooManyRequests", CloudBusy, "TooManyRequests"),
        (503, "SlowDown", CloudBusy, "SlowDown"),
        (400, "RequestTimeout", CloudTimeout, "RequestTimeout"),
        (403, "RequestTimeTooSkewed", CloudRefused, "set the clock"),
        (400, "ExpiredToken", CloudNeedsLogin, "give new credentials"),
        (403, "InvalidAccessKeyId", CloudNeedsLogin, "check the secret user"),
        (403, "SignatureDoesNotMatch", CloudNeedsLogin, "check the secret password"),
        (403, "AccessDenied", CloudRefused, "let this key read, write, list and delete objects in bucket cuckoo-test"),
        (400, "AuthorizationHeaderMalformed", CloudRefused, "check the option region"),
        (404, "NoSuchBucket", CloudUnavailable, "bucket cuckoo-test does not exist at http://.*; create it"),
        (404, "NoSuchKey", CloudMissing, "no such object"),
        (404, "", CloudMissing, "no such object"),
        (416, "InvalidRange", CloudCorrupt, "InvalidRange"),
        (418, "Teapot", CloudUnavailable, "Teapot"),
    ],
)
def test_what_a_server_says(
    cloud: Cloud, proxy: HttpProxy, status: int, code: str, kind: type[CloudError], message: str
) -> None:
    proxy.break_requests(Fault("status", methods=("GET",), status=status, code=code))
    with pytest.raises(CloudError, match=message) as caught:
        cloud.get("a/b")
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("code", ["NoSuchKey", ""])
def test_not_there_is_not_believed_where_the_bucket_is_not(cloud: Cloud, proxy: HttpProxy, code: str) -> None:
    proxy.break_requests(
        Fault("status", methods=("GET",), status=404, code=code),
        Fault("status", methods=("HEAD",), status=404, code=""),
    )
    with pytest.raises(CloudUnavailable, match="does not exist"):
        cloud.get("a/b")


@pytest.mark.parametrize("status", [403, 500, 503])
def test_not_there_is_not_believed_where_the_bucket_cannot_be_seen(cloud: Cloud, proxy: HttpProxy, status: int) -> None:
    proxy.break_requests(
        Fault("status", methods=("GET",), status=404, code="NoSuchKey"),
        Fault("status", methods=("HEAD",), status=status, code=""),
    )
    with pytest.raises(CloudError) as caught:
        cloud.get("a/b")
    assert not isinstance(caught.value, CloudMissing)


def test_only_reads_find_things_missing(cloud: Cloud, proxy: HttpProxy) -> None:
    cloud.put("a/b", b"x")
    proxy.break_requests(Fault("status", methods=("GET", "PUT"), status=404, code="NoSuchKey"))
    for call in (lambda: cloud.put("a/c", b"x"), lambda: list(cloud.list("a/"))):
        with pytest.raises(CloudUnavailable, match="check endpoint_url"):
            call()


def test_a_missing_bucket_gets_a_helpful_line(rclone: S3Server) -> None:
    settings = rclone.settings(bucket="no-such-bucket")
    with pytest.raises(CloudUnavailable, match=r"bucket no-such-bucket does not exist at http.*; create it") as caught:
        jobs.write_identity(settings, DRIVE, CLOUD)
    assert not isinstance(caught.value, CloudNotOurs)


@pytest.mark.slow
def test_a_missing_bucket_is_never_made(s3: S3Server) -> None:
    """Not even by weed, with the credentials of an administrator, who makes buckets by putting into them."""
    settings = evolve(s3.settings(bucket="never-made"), secrets=s3.admin_secrets())
    with contextlib.closing(open_s3_cloud(settings, settings.url)) as cloud:
        for _ in range(2):
            with pytest.raises(CloudUnavailable, match="does not exist"):
                cloud.put("a", b"x")
    assert b"never-made" not in s3.rclone("lsf", ":s3:")


def test_nothing_listening() -> None:
    url = f"s3://bucket?endpoint_url=http://127.0.0.1:{free_ports(1)[0]}"
    settings = CloudSettings(name="x", url=url, secrets=(("password", "p"), ("user", "u")))
    message = r"nothing answers at http://127.0.0.1:\d+; check endpoint_url"
    with contextlib.closing(open_s3_cloud(settings, url)) as cloud, pytest.raises(CloudUnavailable, match=message):
        cloud.put("a", b"x")


@pytest.mark.slow
def test_no_credentials_anywhere(tmp_path: Path) -> None:
    """In a process of its own: boto looks for them once per process."""
    program = (
        "from cuckoo_mount.clouds.base import CloudSettings\n"
        "from cuckoo_mount.clouds.s3 import open_s3_cloud\n"
        "url = 's3://bucket?endpoint_url=http://127.0.0.1:9'\n"
        "try:\n"
        "    open_s3_cloud(CloudSettings(name='x', url=url), url)\n"
        "except Exception as error:\n"
        "    print(type(error).__name__, error)\n"
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith("AWS_")}
    environment |= {"HOME": str(tmp_path), "AWS_EC2_METADATA_DISABLED": "true"}
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert result.stdout.startswith("CloudNeedsLogin cloud x: Unable to locate credentials")
    assert "give them by --secret user=… --secret password=…" in result.stdout


@pytest.fixture
def plain_web_server(tmp_path: Path) -> Iterator[str]:
    """Give the URL of a server that knows neither ranges nor S3."""
    (tmp_path / "bucket").mkdir()
    (tmp_path / "bucket" / "object").write_bytes(bytes(range(200)))

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base class calls it so
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_server_that_knows_no_ranges(plain_web_server: str) -> None:
    url = f"s3://bucket?endpoint_url={plain_web_server}"
    settings = CloudSettings(name="x", url=url, secrets=(("password", "p"), ("user", "u")))
    with contextlib.closing(open_s3_cloud(settings, url)) as cloud:
        assert cloud.get_range("object", 10, 20) == bytes(range(10, 30))
        for offset, length_bytes in ((190, 11), (200, 1), (500, 1)):
            with pytest.raises(CloudCorrupt):
                cloud.get_range("object", offset, length_bytes)


def test_a_server_that_is_none_of_s3(plain_web_server: str) -> None:
    url = f"s3://bucket?endpoint_url={plain_web_server}"
    settings = CloudSettings(name="x", url=url, secrets=(("password", "p"), ("user", "u")))
    with contextlib.closing(open_s3_cloud(settings, url)) as cloud:
        for call in (lambda: cloud.get("absent"), lambda: cloud.put("a", b"x"), lambda: list(cloud.list(""))):
            with pytest.raises(CloudError) as caught:
                call()
            assert not isinstance(caught.value, CloudMissing)
            assert "\n" not in str(caught.value)


def test_it_tells_whether_the_bucket_keeps_versions(tmp_path: Path) -> None:
    with s3_server("moto", tmp_path) as server:
        settings = server.settings()
        assert "for good" in try_cloud(settings, "packs/00/first.0", 100).deleted
        cloud = open_s3_cloud(settings, settings.url)
        administrator: Any = cloud._client
        for status, words in (("Enabled", "old versions"), ("Suspended", "suspended")):
            administrator.put_bucket_versioning(Bucket=server.bucket, VersioningConfiguration={"Status": status})
            assert words in try_cloud(settings, f"packs/00/{status.lower()}.0", 100).deleted
        versions = administrator.list_object_versions(Bucket=server.bucket).get("Versions", [])
        assert "packs/00/enabled.0" in [version["Key"] for version in versions], "it says what is so"

"""S3 and what speaks like it, as a cloud: one request per put, get, range and delete, one per 1000 names of a listing.

Opened as a PyFilesystem, `S3FS(strict=False)` of fs-s3fs with a client of our own settings; data go through that
client, because the PyFilesystem API costs 2 to 5 requests per object and cannot read a range.  Used by registry.py for
`s3://`; see s3place.py for the URL.  boto3 costs 0.5 s and 30 MiB: nothing is imported before a cloud is opened.  Any
number of threads share the one client; the stock of connections is made for `CONNECTIONS_MAX` of them.

What servers were seen to do, and the answer here (measured with rclone, weed, juicefs gateway, moto):
* a missing bucket looks like missing objects → "not there" is believed after a look at the bucket (1 request more);
* weed makes a missing bucket at the first put of an administrator → not before the bucket was seen (1 request, once);
* weed says "access denied" to others for a put into a missing bucket → the bucket is looked at then, too;
* rclone answers a range with status 200 and the checksum of the whole object → no checksums unless required, and the
  length and place of what came back decide, not the status;
* a kept connection was closed by a server that restarted → the request is made once more, at once.
Nothing else is repeated: hanging and failing servers are the business of the layers above, which have other clouds.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from datetime import datetime
from functools import cache, partial
from typing import IO, Final, Protocol, TypedDict, TypeVar, cast

from cuckoo_mount.clouds import fsimport
from cuckoo_mount.clouds.base import Capabilities, CloudSettings, ObjectInfo, Space
from cuckoo_mount.clouds.names import check_object_name, check_prefix, check_range, is_object_name
from cuckoo_mount.clouds.s3errors import bucket_missing, explain
from cuckoo_mount.clouds.s3place import S3Place, parse_s3_place
from cuckoo_mount.clouds.translate import service_error, translate
from cuckoo_mount.errors import (
    CloudCorrupt,
    CloudError,
    CloudMissing,
    CloudRefused,
    CloudUnavailable,
)

CONNECTIONS_MAX: Final = 16
PAGE_NAMES: Final = 1000
MAX_OBJECT_BYTES: Final = 5 << 30
"""What one PUT may carry on Amazon S3."""
CONNECT_TIMEOUT_S: Final = 10.0
"""Limit for making a connection, where `timeout_s` is not shorter: a host that is down does not answer at all."""
_DEFAULT_REGION: Final = "us-east-1"
_CONTENT_RANGE: Final = re.compile(r"bytes (\d+)-(\d+)/")
# The server closed a kept connection before it answered; what it did with the request does not matter (write-once).
_CONNECTION_CLOSED: Final = "ConnectionClosedError"
# Which of several things is denied, they do not say; the second has no body.
_DENIED: Final = frozenset({"AccessDenied", ""})
_VERSIONING: Final = {
    "": "gone for good, as far as the bucket tells",
    "Enabled": "the bucket keeps them as old versions, which cost room and can be read by who has its keys; switch "
    "versioning off, or have a rule of the bucket remove old versions",
    "Suspended": "gone for good, but for what was deleted before versioning was suspended",
}
_session_lock: Final = threading.Lock()

T = TypeVar("T")


class _Listed(TypedDict):
    Key: str
    Size: int
    LastModified: datetime


class _Common(TypedDict):
    Prefix: str


class _Answer(TypedDict, total=False):
    """What we look at in the answers of boto3's client."""

    Body: IO[bytes]
    ContentLength: int
    ContentRange: str
    CommonPrefixes: list[_Common]
    Contents: list[_Listed]
    IsTruncated: bool
    NextContinuationToken: str
    Status: str


class _Client(Protocol):
    """The part of boto3's S3 client that is used; boto3 has no types."""

    def put_object(self, **arguments: object) -> _Answer: ...
    def get_object(self, **arguments: object) -> _Answer: ...
    def head_object(self, **arguments: object) -> _Answer: ...
    def delete_object(self, **arguments: object) -> _Answer: ...
    def list_objects_v2(self, **arguments: object) -> _Answer: ...
    def head_bucket(self, **arguments: object) -> _Answer: ...
    def get_bucket_versioning(self, **arguments: object) -> _Answer: ...
    def close(self) -> None: ...


class _S3FS(Protocol):
    """The part of fs-s3fs's S3FS that is used; it has no types."""

    @property
    def client(self) -> _Client: ...
    def close(self) -> None: ...


class S3Cloud:
    """A Cloud in a bucket of S3.  See clouds/base.py for what each method promises."""

    def __init__(self, settings: CloudSettings, place: S3Place) -> None:
        """Make the client; nothing is sent, but boto may ask the machine it runs on for credentials (≤ 2 s).

        Raises: CloudRefused without credentials.
        """
        self._settings = settings
        self._place = place
        try:
            self._fs = _open_s3fs(place, settings.timeout_s)
        except Exception as error:
            raise explain(translate(error, settings, ""), error, place) from error
        self._client: _Client = self._fs.client
        self._bucket_seen = False
        wanted = {"ACL": place.acl, "StorageClass": place.storage_class}
        self._put_arguments = {key: value for key, value in wanted.items() if value is not None}

    @property
    def settings(self) -> CloudSettings:
        return self._settings

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(max_object_bytes=MAX_OBJECT_BYTES, tells_of_deleted=True)

    def put(self, name: str, data: bytes | memoryview) -> None:
        key = self._key(name)
        content = bytes(data)  # no copy if it is bytes
        self._see_bucket()
        self._call(name, lambda: self._client.put_object(**key, Body=content, **self._put_arguments), reads=False)

    def get(self, name: str) -> bytes:
        key = self._key(name)
        answer, data = self._call(name, lambda: _with_body(self._client.get_object(**key)))
        self._check_length(name, answer, data)
        return data

    def get_range(self, name: str, offset: int, length_bytes: int) -> bytes:
        check_object_name(name)
        check_range(offset, length_bytes)
        return self._range(name, offset, length_bytes)

    def _range(self, name: str, offset: int, length_bytes: int) -> bytes:
        key = self._location(name)
        if not length_bytes:  # HTTP has no words for an empty range
            answer = self._call(name, lambda: self._client.head_object(**key))
            if answer.get("ContentLength", 0) < offset:
                raise self._too_short(name, offset, 0, 0)
            return b""
        wanted = f"bytes={offset}-{offset + length_bytes - 1}"
        answer, data = self._call(name, lambda: _with_body(self._client.get_object(**key, Range=wanted)))
        self._check_length(name, answer, data)
        found = _CONTENT_RANGE.match(answer.get("ContentRange", ""))
        if found is None:  # a server that does not know ranges gave the whole object
            data = data[offset : offset + length_bytes]
        elif int(found[1]) != offset:
            raise CloudUnavailable(
                f"asked for {wanted}, the server gave {found[0]}", cloud=self._settings.name, name=name
            )
        if len(data) != length_bytes:
            raise self._too_short(name, offset, length_bytes, len(data))
        return data

    def delete(self, name: str) -> None:
        key = self._key(name)
        with suppress(CloudMissing):
            self._call(name, lambda: self._client.delete_object(**key))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        check_prefix(prefix)
        last = ""
        for page in self._pages(prefix):
            for entry in page.get("Contents", []):
                name = entry["Key"][len(self._place.prefix) :]
                # rclone lists an object twice after it was stored twice at the same time.
                if is_object_name(name) and name != last:
                    yield ObjectInfo(name, entry["Size"])
                last = name

    def _pages(self, prefix: str, **more: str) -> Iterator[_Answer]:
        """Yield the answers of a listing of `prefix`.  `more`: other arguments of the request."""
        page: dict[str, object] = {}
        while True:
            wanted = {"Bucket": self._place.bucket, "Prefix": self._place.prefix + prefix, "MaxKeys": PAGE_NAMES}
            request = partial(self._client.list_objects_v2, **wanted, **more, **page)
            answer = self._call(prefix, request, reads=False)
            yield answer
            if not answer.get("IsTruncated"):
                return
            token, listed = answer.get("NextContinuationToken"), answer.get("Contents", [])
            if token is None and not listed:
                raise CloudUnavailable("the listing was cut by the server; try again", cloud=self._settings.name)
            page = {"StartAfter": listed[-1]["Key"]} if token is None else {"ContinuationToken": token}

    def space(self) -> Space | None:
        return None

    def of_deleted(self) -> str:
        """Ask whether the bucket keeps versions; rules that remove old ones are not asked for."""
        request = partial(self._client.get_bucket_versioning, Bucket=self._place.bucket)
        try:
            status = self._call("", request, reads=False).get("Status", "")
        except CloudRefused:
            return "whether the bucket keeps them is not told to this key (s3:GetBucketVersioning)"
        return _VERSIONING.get(status, _VERSIONING[""])

    def close(self) -> None:
        self._client.close()
        self._fs.close()

    def _key(self, name: str) -> dict[str, str]:
        check_object_name(name)
        return self._location(name)

    def _location(self, name: str) -> dict[str, str]:
        return {"Bucket": self._place.bucket, "Key": self._place.prefix + name}

    def _check_length(self, name: str, answer: _Answer, data: bytes) -> None:
        """Raises: CloudUnavailable if bytes are missing that the server announced; botocore does not always look."""
        announced = answer.get("ContentLength", len(data))
        if len(data) != announced:
            raise CloudUnavailable(
                f"the answer was cut: {announced} bytes announced, {len(data)} came; try again",
                cloud=self._settings.name,
                name=name,
            )

    def _too_short(self, name: str, offset: int, wanted: int, had: int) -> CloudCorrupt:
        return CloudCorrupt(f"{wanted} bytes wanted at {offset}, got {had}", cloud=self._settings.name, name=name)

    def _call(self, name: str, request: Callable[[], T], *, reads: bool = True) -> T:
        """Return what `request` returns, with the errors of the Cloud protocol; CloudMissing only if it `reads`."""
        try:
            result = _send(request)
        except Exception as error:
            found = self._judge(error, name)
            if isinstance(found, CloudMissing) and not reads:
                message = f"{self._place.endpoint} does not know this request; check endpoint_url"
                found = CloudUnavailable(message, cloud=self._settings.name, name=name)
            raise found from error
        self._bucket_seen = True
        return result

    def _judge(self, error: Exception, name: str) -> CloudError:
        """Return what `error` means; looks at the bucket where an answer may be about that."""
        found = explain(translate(error, self._settings, name), error, self._place)
        if isinstance(found, CloudMissing):
            return self._bucket_trouble() or CloudMissing("no such object", cloud=self._settings.name, name=name)
        service = service_error(error)
        if isinstance(found, CloudRefused) and service is not None and service.code in _DENIED:
            trouble = self._bucket_trouble()
            return trouble if isinstance(trouble, CloudUnavailable) else found
        return found

    def _bucket_trouble(self) -> CloudError | None:
        """Ask for the bucket: None if it is there; CloudUnavailable if it is not, or what prevents us from knowing."""
        try:
            _send(lambda: self._client.head_bucket(Bucket=self._place.bucket))
        except Exception as error:
            found = explain(translate(error, self._settings, ""), error, self._place)
            return bucket_missing(self._settings.name, self._place) if isinstance(found, CloudMissing) else found
        self._bucket_seen = True
        return None

    def _see_bucket(self) -> None:
        """Return if the bucket was there at some time since this cloud was opened; a put must never make it.

        Raises: CloudUnavailable.
        """
        if self._bucket_seen:
            return
        trouble = self._bucket_trouble()
        # Who may not ask for the bucket may still be allowed to put; and if not, the put's own answer says more.
        if trouble is not None and not isinstance(trouble, CloudRefused):
            raise trouble

    def __repr__(self) -> str:
        return f"S3Cloud({self._settings.name!r}, {self._place.bucket!r}, {self._place.endpoint!r})"


def open_s3_cloud(settings: CloudSettings, place: str) -> S3Cloud:
    """Return the cloud at the URL `place` (`s3://…`); sends nothing to it, so that it opens while the server is down.

    Raises: UsageError for a URL, options or secrets that cannot be; CloudRefused without credentials.
    """
    return S3Cloud(settings, parse_s3_place(settings, place))


def _send(request: Callable[[], T]) -> T:
    """Return what `request` returns; it is made once more if its connection had been closed."""
    try:
        return request()
    except Exception as error:
        if type(error).__name__ != _CONNECTION_CLOSED:
            raise
    return request()


def _with_body(answer: _Answer) -> tuple[_Answer, bytes]:
    with closing(answer["Body"]) as body:
        return answer, body.read()


def _open_s3fs(place: S3Place, timeout_s: float) -> _S3FS:
    """Return fs-s3fs's file system with a client for all threads, in place of one per thread without our settings."""
    with fsimport.stand_in():
        from fs_s3fs import S3FS

    client = _make_client(place, timeout_s)

    class SharedClientS3FS(S3FS):  # type: ignore[misc]  # fs_s3fs has no types
        @property
        def client(self) -> _Client:
            return client

    opened: _S3FS = SharedClientS3FS(place.bucket, dir_path=f"/{place.prefix}", strict=False)
    return opened


def _make_client(place: S3Place, timeout_s: float) -> _Client:
    from botocore.config import Config
    from botocore.exceptions import NoCredentialsError
    from botocore.handlers import add_expect_header

    config = Config(
        connect_timeout=min(timeout_s, CONNECT_TIMEOUT_S),
        read_timeout=timeout_s,
        retries={"total_max_attempts": 1},
        max_pool_connections=CONNECTIONS_MAX,
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"addressing_style": place.addressing_style or "auto"},
    )
    with _session_lock:
        session = _session()
        if place.access_key is None and session.get_credentials() is None:
            raise NoCredentialsError
        client = session.client(
            "s3",
            endpoint_url=place.endpoint_url,
            region_name=place.region or session.region_name or _DEFAULT_REGION,
            aws_access_key_id=place.access_key,
            aws_secret_access_key=place.secret_key,
            aws_session_token=place.session_token,
            config=config,
        )
    # "Expect: 100-continue" costs a round trip per put.
    client.meta.events.unregister("before-call.s3", add_expect_header)
    return client


class _Events(Protocol):
    def unregister(self, event_name: str, handler: object) -> None: ...


class _Meta(Protocol):
    events: _Events


class _NewClient(_Client, Protocol):
    meta: _Meta


class _Session(Protocol):
    """The part of boto3's Session that is used."""

    region_name: str | None

    def get_credentials(self) -> object | None: ...
    def client(self, service: str, **arguments: object) -> _NewClient: ...


@cache
def _session() -> _Session:
    """Return the session of this process: reading the description of S3 takes 0.3 s, a second client of it 15 ms.

    To be used under `_session_lock`: only the clients are made for several threads.
    """
    import boto3

    return cast(_Session, boto3.session.Session())

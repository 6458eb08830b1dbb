"""What single fsspec libraries need to be told, or are bypassed in, so that a cloud can rely on them.

Used by fsspeckinds.py, which says for which.  Blocks where said.  Any thread.  Found by reading and running webdav4
0.11, gcsfs 2026.10 and adlfs 2026.8 with fsspec 2026.9; tests/clouds/test_fsspec_conformance.py shows
what no longer holds with others.
"""

from __future__ import annotations

import errno
import importlib
import io
import weakref
from collections.abc import Callable, Mapping
from types import MethodType, SimpleNamespace
from typing import Final, Protocol, cast

from cuckoo_mount.clouds.fsspectypes import Arguments, Entry, FileSystem, FsspecPlace
from cuckoo_mount.clouds.walking import temporary_name

_CONFLICT: Final = 409
_CLOSE_TIMEOUT_S: Final = 5.0
_BUSY: Final = frozenset({429, 503})


class Busy(Exception):
    """A service wants fewer requests; `response` as translate.py looks at it."""

    def __init__(self, status: int, retry_after: str) -> None:
        super().__init__("the service was asked too much")
        self.response = SimpleNamespace(status_code=status, headers={"retry-after": retry_after})


def _sync(filesystem: FileSystem, function: Callable[[], object]) -> None:
    """Run an asynchronous `function` in the loop of `filesystem`."""
    sync = importlib.import_module("fsspec.asyn").sync
    sync(filesystem.loop, function, timeout=_CLOSE_TIMEOUT_S)  # type: ignore[attr-defined]


# --- WebDAV by webdav4 ------------------------------------------------------------------------------------------------


class _Closing(Protocol):
    def close(self) -> object: ...


class _Content(Protocol):
    content: bytes


class _WebDavClient(Protocol):
    http: _Closing

    def request(self, method: str, path: str, *, headers: Mapping[str, str]) -> _Content: ...
    def upload_fileobj(self, file: io.BytesIO, path: str, *, overwrite: bool, size: int) -> None: ...
    def move(self, old: str, new: str, overwrite: bool) -> None: ...


class _WebDav(FileSystem, Protocol):
    client: _WebDavClient


def webdav_place(place: FsspecPlace) -> tuple[Arguments, str]:
    """Return the constructor's arguments for `webdav+http(s)://host/path`, and the root below the server's."""
    scheme = place.protocol.rpartition("+")[2]
    host, _, path = place.target.partition("/")
    host = host.rpartition("@")[2]
    arguments: Arguments = {"base_url": f"{scheme}://{host}/", "skip_instance_cache": True}
    if scheme == "http":
        arguments["verify"] = False  # there is nothing to verify, and reading this machine's certificates takes long
    if "user" in place.secrets:
        arguments["auth"] = (place.secrets["user"], place.secrets.get("password", ""))
    return arguments, path.strip("/")


def webdav_write(filesystem: FileSystem, path: str, content: bytes) -> None:
    """PUT under a temporary name, then MOVE: whole or absent, on servers that write in place, too.

    Its own pipe_file looks for the folder before, and makes all of them, the root too.
    """
    client, temporary = cast(_WebDav, filesystem).client, temporary_name(path)
    try:
        client.upload_fileobj(io.BytesIO(content), temporary, overwrite=True, size=len(content))
        client.move(temporary, path, overwrite=True)
    except Exception as error:
        if type(error).__name__ == "ResourceNotFound" or getattr(error, "status_code", 0) == _CONFLICT:
            raise FileNotFoundError(errno.ENOENT, "no such folder", path) from error
        raise


def webdav_read(filesystem: FileSystem, path: str, start: int | None, end: int | None) -> bytes:
    """One GET.  Its own cat_file asks for everything from `start` on, and leaves connections open."""
    headers = {} if start is None or end is None else {"Range": f"bytes={start}-{end - 1}"}
    try:
        return cast(_WebDav, filesystem).client.request("GET", path, headers=headers).content
    except Exception as error:
        if type(error).__name__ == "ResourceNotFound":
            raise FileNotFoundError(errno.ENOENT, "no such file", path) from error
        raise


def webdav_closes_itself(filesystem: FileSystem, timeout_s: float) -> None:
    """Let connections go with the last reference, as others do."""
    weakref.finalize(filesystem, cast(_WebDav, filesystem).client.http.close)


def webdav_close(filesystem: FileSystem) -> None:
    """Close its connections; blocks for nothing."""
    cast(_WebDav, filesystem).client.http.close()


# --- Google Cloud Storage by gcsfs ------------------------------------------------------------------------------------


class _AioResponse(Protocol):
    status: int
    headers: dict[str, str]


class _RequestEnd(Protocol):
    response: _AioResponse


async def _raise_busy(session: object, context: object, end: _RequestEnd) -> None:
    if end.response.status in _BUSY:
        raise Busy(end.response.status, end.response.headers.get("retry-after", ""))


def aiohttp_arguments(timeout_s: float) -> Arguments:
    """Return arguments for gcsfs: limits on each operation, and errors that keep what the service says of waiting."""
    aiohttp = importlib.import_module("aiohttp")
    trace = aiohttp.TraceConfig()
    trace.on_request_end.append(_raise_busy)
    limits = aiohttp.ClientTimeout(total=None, sock_connect=timeout_s, sock_read=timeout_s)
    return {"requests_timeout": limits, "session_kwargs": {"trace_configs": [trace]}}


def gcs_without_retries(filesystem: FileSystem, timeout_s: float) -> None:
    """It would repeat each failed request for half a minute; the layers above know better what to do meanwhile."""
    request = type(filesystem)._request  # type: ignore[attr-defined]
    once: Callable[..., object] = request.__wrapped__
    filesystem._request = MethodType(once, filesystem)  # type: ignore[attr-defined]


def gcs_close(filesystem: FileSystem) -> None:
    """Close its connections."""
    session = filesystem._session  # type: ignore[attr-defined]
    if session is not None:
        _sync(filesystem, session.close)


# --- Azure Blob by adlfs ----------------------------------------------------------------------------------------------


def azure_place(place: FsspecPlace) -> tuple[Arguments, str]:
    """Return the arguments for `container@account/folder`, the account with or without its host, and the root."""
    before, at, after = place.target.partition("@")
    arguments: Arguments = {"use_listings_cache": False, "skip_instance_cache": True}
    if not at:
        return arguments, place.target.strip("/")
    host, _, folder = after.partition("/")
    return {**arguments, "account_name": host.partition(".")[0]}, f"{before}/{folder}".strip("/")


def azure_without_retries(filesystem: FileSystem, timeout_s: float) -> None:
    """Set limits and switch off repetition, for which adlfs has no arguments that count for all requests."""
    pipeline = filesystem.service_client._pipeline  # type: ignore[attr-defined]
    for policy in pipeline._impl_policies:
        for name in ("total_retries", "connect_retries", "read_retries", "status_retries"):
            if hasattr(policy, name):
                setattr(policy, name, 0)
    config = pipeline._transport.connection_config
    config.timeout = config.read_timeout = timeout_s


async def azure_find(filesystem: FileSystem, path: str) -> Mapping[str, Entry]:
    """List what lies below `path`; its own `find` asks before whether that is a file, and believes any failure."""
    container, prefix, _ = filesystem.split_path(f"{path}/")  # type: ignore[attr-defined]
    found: dict[str, Entry] = {}
    client = filesystem.service_client  # type: ignore[attr-defined]
    async with client.get_container_client(container=container) as opened:
        async for blob in opened.list_blobs(name_starts_with=prefix or None):
            name = f"{container}/{blob.name}"
            found[name] = {"name": name, "size": blob.size, "type": "file"}
    return found


def azure_close(filesystem: FileSystem) -> None:
    """Close its connections."""
    _sync(filesystem, filesystem.service_client.close)  # type: ignore[attr-defined]

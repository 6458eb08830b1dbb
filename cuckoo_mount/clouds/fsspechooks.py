"""What single fsspec libraries need to be told, or are bypassed in, so that a cloud can rely on them.

Used by fsspeckinds.py, which says for which.  Blocks where said.  Any thread.  Found by reading and running webdav4
0.11, gcsfs 2026.10, adlfs 2026.8, fsspec 2026.9 with smbprotocol 1.17; tests/clouds/test_fsspec_conformance.py shows
what no longer holds with others.
"""

from __future__ import annotations

import errno
import importlib
import io
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import MethodType, SimpleNamespace
from typing import Final, Protocol, cast

from cuckoo_mount.clouds.base import Space
from cuckoo_mount.clouds.fsspectypes import Arguments, Entry, FileSystem, FsspecPlace
from cuckoo_mount.clouds.walking import temporary_name

_CONFLICT: Final = 409
_BUSY: Final = frozenset({429, 503})


class Busy(Exception):
    """A service wants fewer requests; `response` as translate.py looks at it."""

    def __init__(self, status: int, retry_after: str) -> None:
        super().__init__("the service was asked too much")
        self.response = SimpleNamespace(status_code=status, headers={"retry-after": retry_after})


# --- WebDAV by webdav4 ------------------------------------------------------------------------------------------------


class _WebDavClient(Protocol):
    def upload_fileobj(self, file: io.BytesIO, path: str, *, overwrite: bool, size: int) -> None: ...


class _WebDav(FileSystem, Protocol):
    client: _WebDavClient


def webdav_place(place: FsspecPlace) -> tuple[Arguments, str]:
    """Return the constructor's arguments for `webdav+http(s)://host/path`, and the root below the server's."""
    scheme = place.protocol.rpartition("+")[2]
    host, _, path = place.target.partition("/")
    host = host.rpartition("@")[2]
    arguments: Arguments = {"base_url": f"{scheme}://{host}/", "skip_instance_cache": True}
    if "user" in place.secrets:
        arguments["auth"] = (place.secrets["user"], place.secrets.get("password", ""))
    return arguments, path.strip("/")


def webdav_write(filesystem: FileSystem, path: str, content: bytes) -> None:
    """One PUT.  Its own pipe_file looks for the folder before, and makes all of them, the root too."""
    client = cast(_WebDav, filesystem).client
    try:
        client.upload_fileobj(io.BytesIO(content), path, overwrite=True, size=len(content))
    except Exception as error:
        missing = type(error).__name__ == "ResourceNotFound" or getattr(error, "status_code", 0) == _CONFLICT
        if missing:
            raise FileNotFoundError(errno.ENOENT, "no such folder", path) from error
        raise


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


# --- Azure Blob by adlfs ----------------------------------------------------------------------------------------------


def azure_without_retries(filesystem: FileSystem, timeout_s: float) -> None:
    """Set limits and switch off repetition, for which adlfs has no arguments that count for all requests."""
    pipeline = filesystem.service_client._pipeline  # type: ignore[attr-defined]
    for policy in pipeline._impl_policies:
        for name in ("total_retries", "connect_retries", "read_retries", "status_retries"):
            if hasattr(policy, name):
                setattr(policy, name, 0)
    config = pipeline._transport.connection_config
    config.timeout = config.read_timeout = timeout_s


# --- SMB by smbprotocol -----------------------------------------------------------------------------------------------


class _SmbEntry(Protocol):
    name: str

    @property
    def smb_info(self) -> _SmbInfo: ...
    def is_dir(self) -> bool: ...


class _SmbInfo(Protocol):
    end_of_file: int
    last_write_time: object


class _Volume(Protocol):
    total_size: int
    caller_available_size: int


class _SmbClient(Protocol):
    """The part of the package smbclient that is used."""

    def replace(self, old: str, new: str, *, port: int) -> None: ...
    def scandir(self, path: str, *, port: int) -> Sequence[_SmbEntry]: ...
    def stat_volume(self, path: str, *, port: int) -> _Volume: ...
    def delete_session(self, server: str, port: int) -> None: ...


class _Smb(FileSystem, Protocol):
    host: str
    port: int | None


_SMB_PORT: Final = 445


def _smb(filesystem: FileSystem, path: str = "") -> tuple[_SmbClient, str, int]:
    """Return the client, `path` as it knows it, and the port."""
    opened = cast(_Smb, filesystem)
    client = cast(_SmbClient, importlib.import_module("smbclient"))
    unc = f"\\\\{opened.host}" + path.replace("/", "\\")
    return client, unc, opened.port or _SMB_PORT


def smb_write(filesystem: FileSystem, path: str, content: bytes) -> None:
    """Write under a temporary name and rename: whole or absent."""
    temporary = temporary_name(path)
    client, old, port = _smb(filesystem, temporary)
    _, new, _ = _smb(filesystem, path)
    try:
        filesystem.pipe_file(temporary, content)
        client.replace(old, new, port=port)
    except Exception:
        with suppress(Exception):  # the first error says what is wrong; leftovers go with a later listing
            filesystem.rm_file(temporary)
        raise


def smb_list(filesystem: FileSystem, path: str) -> Sequence[Entry]:
    """List a folder by what its listing says; its own `ls` asks for each entry again."""
    client, unc, port = _smb(filesystem, path)
    found: list[Entry] = []
    for item in client.scandir(unc, port=port):
        folder = item.is_dir()
        size = 0 if folder else item.smb_info.end_of_file
        kind = "directory" if folder else "file"
        found.append(
            {"name": f"{path}/{item.name}", "size": size, "type": kind, "mtime": item.smb_info.last_write_time}
        )
    return found


def smb_space(filesystem: FileSystem, root: str) -> Space | None:
    """Return the room of the volume the share is on, as far as this user may use it."""
    client, unc, port = _smb(filesystem, root)
    volume = client.stat_volume(unc, port=port)
    return Space(volume.total_size, volume.caller_available_size)


def smb_drop(filesystem: FileSystem) -> None:
    """Give up the connection: smbclient keeps one per server and process, and uses it on when it is broken."""
    client, _, port = _smb(filesystem)
    client.delete_session(cast(_Smb, filesystem).host, port=port)

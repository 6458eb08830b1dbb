"""The table of fsspec protocols that are known, and what holds for all others.  Used by fsspecfs.py and fsspec.py.

A new one is one row.  What is in no row works too, carefully: see `UNKNOWN`.
"""

from __future__ import annotations

from typing import Final

from attrs import evolve

from cuckoo_mount.clouds.fsspechooks import (
    aiohttp_arguments,
    azure_close,
    azure_find,
    azure_place,
    azure_without_retries,
    gcs_close,
    gcs_without_retries,
    webdav_close,
    webdav_closes_itself,
    webdav_place,
    webdav_read,
    webdav_write,
)
from cuckoo_mount.clouds.fsspectypes import FsspecKind
from cuckoo_mount.clouds.opendalfs import service_at
from cuckoo_mount.clouds.smbfs import smb_close, smb_place, smb_space

_OPENDAL: Final = "cuckoo_mount.clouds.opendalfs:OpenDalFileSystem"
_GCS_ONE_REQUEST_BYTES: Final = (50 << 20) - 1
_AZURE_ONE_REQUEST_BYTES: Final = 64 << 20
_DRIVE_BYTES: Final = 5 << 40
_ONEDRIVE_ONE_REQUEST_BYTES: Final = 250_000_000

KINDS: Final = (
    FsspecKind(
        names=("gs", "gcs"),
        title="Google Cloud Storage",
        extra="gcs",
        # Not what fsspec knows by that name: that one asks for the kind of each bucket by another protocol first.
        maker="gcsfs.core:GCSFileSystem",
        arguments=aiohttp_arguments,
        prepare=gcs_without_retries,
        close=gcs_close,
        required=("token",),
        flat=True,
        durable_put=True,
        max_object_bytes=_GCS_ONE_REQUEST_BYTES,  # above, it sends several parts
    ),
    FsspecKind(
        names=("abfs", "az", "abfss"),
        title="Azure Blob Storage",
        extra="azure",
        place=azure_place,
        prepare=azure_without_retries,
        find=azure_find,
        close=azure_close,
        required=("account_key", "connection_string", "sas_token", "client_secret", "anon"),
        flat=True,
        durable_put=True,
        max_object_bytes=_AZURE_ONE_REQUEST_BYTES,  # above, it sends several blocks
    ),
    FsspecKind(
        names=("gdrive",),
        title="Google Drive",
        extra="gdrive",
        maker=_OPENDAL,
        place=service_at,
        required=("refresh_token", "access_token"),
        library="opendal",
        makes_folders=True,
        max_object_bytes=_DRIVE_BYTES,
    ),
    FsspecKind(
        names=("onedrive",),
        title="OneDrive",
        extra="onedrive",
        maker=_OPENDAL,
        place=service_at,
        required=("refresh_token", "access_token"),
        library="opendal",
        makes_folders=True,
        max_object_bytes=_ONEDRIVE_ONE_REQUEST_BYTES,
    ),
    FsspecKind(
        names=("smb",),
        title="SMB",
        extra="smb",
        maker="cuckoo_mount.clouds.smbfs:SmbFileSystem",
        library="smbclient",
        place=smb_place,
        renamed={"user": "username"},
        shared=False,  # a server lets a connection have only so many requests on their way
        reconnects=True,
        reports_space=True,
        space=smb_space,
        close=smb_close,
        drop=smb_close,
    ),
    FsspecKind(
        names=("webdav+http", "webdav+https"),
        title="WebDAV by webdav4",
        package="webdav4[fsspec]",
        maker="webdav4.fsspec:WebdavFileSystem",
        arguments=lambda timeout_s: {"timeout": timeout_s, "retry": False},
        place=webdav_place,
        renamed={"user": "", "password": ""},
        known=frozenset({"verify", "cert", "http2"}),
        reconnects=True,
        prepare=webdav_closes_itself,
        write=webdav_write,
        read=webdav_read,
        close=webdav_close,
        drop=webdav_close,
    ),
    FsspecKind(names=("memory",), title="memory", flat=True, in_process=True),
)

UNKNOWN: Final = FsspecKind(names=(), shared=False, careful=True, atomic_put=False, native_range=False)
OPENDAL: Final = FsspecKind(
    names=(),
    extra="opendal",
    maker=_OPENDAL,
    library="opendal",
    place=service_at,
    careful=True,
    atomic_put=False,
    makes_folders=True,
)
OPENDAL_PREFIX: Final = "opendal+"
REFUSED: Final = {
    "file": "write its path",
    "local": "write its path",
    "sftp": "write sftp://host/folder, which looks whether the server's key is known",
    "ssh": "write ssh://host/folder, which looks whether the server's key is known",
    "http": "it cannot be written to; WebDAV is webdav://",
    "https": "it cannot be written to; WebDAV is webdavs://",
    "zip": "an archive has to be rewritten as a whole for every change; use a folder",
    "tar": "an archive has to be rewritten as a whole for every change; use a folder",
    "github": "it cannot be written to",
    "git": "it cannot be written to",
    "data": "it cannot be written to",
    "simplecache": "a cache in front would hide what is really stored; name the protocol below it",
    "filecache": "a cache in front would hide what is really stored; name the protocol below it",
    "blockcache": "a cache in front would hide what is really stored; name the protocol below it",
}
"""Protocols that are not opened, and what to do instead."""


def kind_of(protocol: str) -> FsspecKind:
    """Return the row for `protocol`, or what holds for those without one."""
    for kind in KINDS:
        if protocol in kind.names:
            return kind
    return evolve(OPENDAL if protocol.startswith(OPENDAL_PREFIX) else UNKNOWN, names=(protocol,))

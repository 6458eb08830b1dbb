"""Sources in storages that have a driver of ours: its connections, requests and errors, with names of any kind.

Used by opening.py.  Any number of threads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import partial

from cuckoo_mount.clouds.base import CloudSettings
from cuckoo_mount.clouds.ftp import FtpCloud, parse_ftp_place
from cuckoo_mount.clouds.s3 import S3Cloud
from cuckoo_mount.clouds.s3place import parse_s3_place
from cuckoo_mount.clouds.sftp import SftpCloud, parse_sftp_place
from cuckoo_mount.clouds.walking import Entry
from cuckoo_mount.clouds.webdav import WebDavCloud, parse_webdav_place
from cuckoo_mount.errors import CloudMissing
from cuckoo_mount.sources.base import Source, part_sizes


class _ReadInParts(ABC):
    """What all of them have in common: a file is read by ranges, whatever its name."""

    @abstractmethod
    def _range(self, name: str, offset: int, length_bytes: int) -> bytes:
        """Return a part of a file; the driver's."""

    def blocks(self, name: str, size_bytes: int) -> Iterator[bytes]:
        for offset, length_bytes in part_sizes(size_bytes):
            yield self._range(name, offset, length_bytes)


class WebDavSource(WebDavCloud, _ReadInParts):
    """Files of a WebDAV server.  One request per folder, and one per 8 MiB."""

    def entries(self, folder: str) -> list[Entry]:
        try:
            return self._entries(folder)
        except CloudMissing as error:
            self._see_root(error)
            raise


class SftpSource(SftpCloud, _ReadInParts):
    """Files of an SSH server; its links and special files are not shown."""

    def entries(self, folder: str) -> list[Entry]:
        return self._call(folder, partial(self._listed, folder))


class FtpSource(FtpCloud, _ReadInParts):
    """Files of an FTP server."""

    def entries(self, folder: str) -> list[Entry]:
        return self._call(folder, lambda session: session.entries(self._path(folder)))


class S3Source(S3Cloud, _ReadInParts):
    """Files of a bucket: `/` in keys parts folders, a key that ends with one is a folder.  1,000 names per request."""

    def entries(self, folder: str) -> list[Entry]:
        start = f"{folder}/" if folder else ""
        found: dict[str, Entry] = {}
        for page in self._pages(start, Delimiter="/"):
            for common in page.get("CommonPrefixes", []):
                name = common["Prefix"][len(self._place.prefix + start) :].removesuffix("/")
                found.setdefault(f"{name}/", Entry(name, None))
            for listed in page.get("Contents", []):
                name = listed["Key"][len(self._place.prefix + start) :]
                if name:  # the marker of the folder itself
                    found.setdefault(name, Entry(name, listed["Size"], listed["LastModified"].timestamp()))
        return list(found.values())


def open_remote(settings: CloudSettings) -> Source:
    """Return the source at `settings.url`; sends nothing to it.  Raises: UsageError for what cannot be."""
    scheme = settings.url.partition("://")[0]
    if scheme == "s3":
        return S3Source(settings, parse_s3_place(settings, settings.url))
    if scheme in ("webdav", "webdavs"):
        return WebDavSource(settings, parse_webdav_place(settings, settings.url))
    if scheme in ("ftp", "ftps"):
        return FtpSource(settings, parse_ftp_place(settings, settings.url))
    return SftpSource(settings, parse_sftp_place(settings, settings.url))

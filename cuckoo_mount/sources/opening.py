"""From settings to an opened source: a table of schemes, and PyFilesystem for all others.

Used by `cuckoo import`.  A driver is imported when it is asked for.
"""

from __future__ import annotations

from typing import Final

from cuckoo_mount.clouds.base import CloudSettings
from cuckoo_mount.clouds.fsimport import known_schemes
from cuckoo_mount.errors import UsageError
from cuckoo_mount.sources.base import Source

_OWN: Final = frozenset({"s3", "webdav", "webdavs", "ssh", "sftp", "ftp", "ftps"})
_FOLDERS: Final = frozenset({"osfs", "file"})
_WEB: Final = frozenset({"http", "https"})


def open_source(settings: CloudSettings) -> Source:
    """Return the source at `settings.url`; close it.  May contact it.

    Raises: UsageError for what cannot be opened, with what to write instead; CloudError.
    """
    scheme, separator, _ = settings.url.partition("://")
    if not separator or scheme in _FOLDERS:
        raise UsageError(
            f"{settings.url} is a folder of this machine; copy it with all it has: rsync -aHAX FOLDER/ DIR/"
        )
    if scheme in _WEB:
        raise UsageError(
            f"{scheme}:// has no folders; if it is a WebDAV server, write webdav{scheme[4:]}://…; if it speaks S3, "
            f"s3://bucket?endpoint_url={scheme}://…"
        )
    if scheme in _OWN:
        from cuckoo_mount.sources.remote import open_remote

        return open_remote(settings)
    if scheme not in known_schemes():
        known = ", ".join(f"{name}://" for name in sorted((_OWN | set(known_schemes())) - _FOLDERS))
        raise UsageError(f"{scheme}:// is not known; known: {known}")
    from cuckoo_mount.sources.pyfilesystem import PyFilesystemSource

    return PyFilesystemSource(settings)

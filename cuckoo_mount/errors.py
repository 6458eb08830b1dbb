"""Every exception the project raises on purpose, as one tree.

    CuckooError                      exit status 1
    ├── UsageError                   exit status 2: wrong arguments, URL, size, name
    ├── ConfigurationError           the files of this machine do not fit together
    │   └── WrongKey                 a passphrase or key that does not open the drive
    ├── FileSystemError              has an errno; what a program on the mount is told
    │   └── NotFound, AlreadyExists, NotADirectory, IsADirectory, DirectoryNotEmpty, NotPermitted, InvalidArgument,
    │       NameTooLong, NoSpace, TooManyLinks, NoAttribute, ReadOnly, NotSupported, StaleInode,
    │       DataUnavailable (EIO), DataTimeout (ETIMEDOUT), FileTooBig, Busy
    ├── CloudError                   one cloud failed; carries its name and the object's
    │   └── CloudUnavailable (try again later), CloudTimeout, CloudBusy (too many requests), CloudFull,
    │       CloudRefused (permission), CloudNeedsLogin (credentials), CloudMissing (no such object),
    │       CloudCorrupt (bytes are not what was stored), CloudNotOurs (drive.json)
    ├── FormatError                  stored bytes we cannot read: damaged, or newer than this program
    └── MetadataError                the local database is damaged, too new, or was lost

An exception of the world is one of these; an assertion that fails is our bug.
Errors are one or two lines and say what to do next.
"""

from __future__ import annotations

import errno
from typing import ClassVar


class CuckooError(Exception):
    """Root of the tree.  `exit_status` is what a command ends with."""

    exit_status: ClassVar[int] = 1


class UsageError(CuckooError):
    """The user asked for something that cannot be; the message says what to write instead."""

    exit_status = 2


class ConfigurationError(CuckooError):
    """The configuration, state or key files of this machine are missing or contradict each other."""


class WrongKey(ConfigurationError):
    """A passphrase, recovery key or key file is whole, but not this drive's."""


class FormatError(CuckooError):
    """Stored bytes do not follow docs/format.md, or follow a newer version of it."""


class MetadataError(CuckooError):
    """The local metadata cannot be used."""


class FileSystemError(CuckooError):
    """A file system operation is answered with `errno`."""

    errno: ClassVar[int] = errno.EIO


class NotFound(FileSystemError):
    errno = errno.ENOENT


class AlreadyExists(FileSystemError):
    errno = errno.EEXIST


class NotADirectory(FileSystemError):
    errno = errno.ENOTDIR


class IsADirectory(FileSystemError):
    errno = errno.EISDIR


class DirectoryNotEmpty(FileSystemError):
    errno = errno.ENOTEMPTY


class NotPermitted(FileSystemError):
    errno = errno.EPERM


class InvalidArgument(FileSystemError):
    errno = errno.EINVAL


class NameTooLong(FileSystemError):
    errno = errno.ENAMETOOLONG


class NoSpace(FileSystemError):
    errno = errno.ENOSPC


class FileTooBig(FileSystemError):
    errno = errno.EFBIG


class TooManyLinks(FileSystemError):
    errno = errno.EMLINK


class NoAttribute(FileSystemError):
    errno = errno.ENODATA


class AttributeTooBig(FileSystemError):
    errno = errno.E2BIG


class ReadOnly(FileSystemError):
    errno = errno.EROFS


class NotSupported(FileSystemError):
    errno = errno.EOPNOTSUPP


class NotImplementedHere(FileSystemError):
    """The kernel remembers this answer and does not ask again."""

    errno = errno.ENOSYS


class StaleInode(FileSystemError):
    errno = errno.ESTALE


class Busy(FileSystemError):
    errno = errno.EBUSY


class DataUnavailable(FileSystemError):
    """Bytes exist but no cloud gave them back whole."""

    errno = errno.EIO


class DataTimeout(FileSystemError):
    """Bytes exist but did not arrive before the deadline."""

    errno = errno.ETIMEDOUT


class CloudError(CuckooError):
    """Cloud `cloud` failed on object `name` (empty when it is not about one object)."""

    def __init__(self, message: str, *, cloud: str = "", name: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.cloud = cloud
        self.name = name

    def __str__(self) -> str:
        where = f"cloud {self.cloud}: " if self.cloud else ""
        what = f"{self.name}: " if self.name else ""
        return f"{where}{what}{self.message}"

    def retold(self, message: str | None = None, *, cloud: str | None = None, name: str | None = None) -> CloudError:
        """Return the same error with another text, cloud or object; None: as it was."""
        return type(self)(
            self.message if message is None else message,
            cloud=self.cloud if cloud is None else cloud,
            name=self.name if name is None else name,
        )

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        # Crosses the pipe from a worker process; keyword-only arguments need help.
        return _rebuild_cloud_error, (type(self), self.message, self.cloud, self.name)


def _rebuild_cloud_error(kind: type[CloudError], message: str, cloud: str, name: str) -> CloudError:
    return kind(message, cloud=cloud, name=name)


class CloudUnavailable(CloudError):
    """Trouble that may pass: network, server error, rate limit.  Try again later."""


class CloudTimeout(CloudUnavailable):
    """The deadline passed; whether the object was stored is not known."""


class CloudBusy(CloudUnavailable):
    """It was asked too much, and says so.  `retry_after_s`: how long it wants to be left alone; 0: it did not say."""

    def __init__(self, message: str, *, cloud: str = "", name: str = "", retry_after_s: float = 0.0) -> None:
        super().__init__(message, cloud=cloud, name=name)
        self.retry_after_s = retry_after_s

    def retold(self, message: str | None = None, *, cloud: str | None = None, name: str | None = None) -> CloudBusy:
        found = super().retold(message, cloud=cloud, name=name)
        assert isinstance(found, CloudBusy)
        found.retry_after_s = self.retry_after_s
        return found

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return _rebuild_cloud_busy, (self.message, self.cloud, self.name, self.retry_after_s)


def _rebuild_cloud_busy(message: str, cloud: str, name: str, retry_after_s: float) -> CloudBusy:
    return CloudBusy(message, cloud=cloud, name=name, retry_after_s=retry_after_s)


class CloudFull(CloudError):
    """No room there; choose another cloud."""


class CloudRefused(CloudError):
    """Credentials or permissions are wrong; trying again does not help."""


class CloudNeedsLogin(CloudRefused):
    """Credentials are missing, wrong, or have expired: nothing works there until there are others."""


class CloudMissing(CloudError):
    """The object is not there, while the cloud itself is."""


class CloudCorrupt(CloudError):
    """What came back is not what was stored."""


class CloudNotOurs(CloudError):
    """The place answers but does not carry this drive's drive.json: not mounted, emptied, or another drive."""

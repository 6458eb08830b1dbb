"""Our errors as PyFilesystem's.

Used by filesystem.py.  Pure.
"""

from __future__ import annotations

from typing import Final

from cuckoo_mount.clouds.fsimport import errors
from cuckoo_mount.errors import (
    AlreadyExists,
    Busy,
    CuckooError,
    DataTimeout,
    DataUnavailable,
    DirectoryNotEmpty,
    FileSystemError,
    InvalidArgument,
    IsADirectory,
    NameTooLong,
    NoSpace,
    NotADirectory,
    NotFound,
    NotPermitted,
    NotSupported,
    ReadOnly,
    StaleInode,
)
from cuckoo_mount.pyfs.loopthread import LoopEnded

_ABOUT_THE_PATH: Final[dict[type[FileSystemError], type[errors.ResourceError]]] = {
    NotFound: errors.ResourceNotFound,
    StaleInode: errors.ResourceNotFound,
    AlreadyExists: errors.FileExists,
    NotADirectory: errors.DirectoryExpected,
    IsADirectory: errors.FileExpected,
    DirectoryNotEmpty: errors.DirectoryNotEmpty,
    InvalidArgument: errors.ResourceInvalid,
    Busy: errors.ResourceLocked,
}
_ABOUT_THE_DRIVE: Final[dict[type[FileSystemError], type[errors.OperationFailed]]] = {
    NoSpace: errors.InsufficientStorage,
    NotPermitted: errors.PermissionDenied,
    NotSupported: errors.Unsupported,
    DataUnavailable: errors.RemoteConnectionError,
    DataTimeout: errors.OperationTimeout,
}


def as_fs_error(error: CuckooError | OSError, path: str) -> errors.FSError:
    """Return what a PyFilesystem raises in the place of `error`, which came of something done to `path`."""
    if isinstance(error, LoopEnded):
        return errors.FilesystemClosed(_literal(str(error)))
    if isinstance(error, NameTooLong):
        return errors.InvalidPath(path, msg=_literal(f"{path!r} cannot be: {error}"), exc=error)
    if isinstance(error, ReadOnly):
        # Of the whole drive: the reason says what happened, the path alone would not.
        return errors.ResourceReadOnly(path, exc=error, msg=_literal(f"{path!r} cannot be changed: {error}"))
    for kind, about_path in _ABOUT_THE_PATH.items():
        if isinstance(error, kind):
            return about_path(path, exc=error)
    message = _literal(str(error))
    for kind, about_drive in _ABOUT_THE_DRIVE.items():
        if isinstance(error, kind):
            return about_drive(path, exc=error, msg=message)
    if isinstance(error, OSError) and error.errno == NoSpace.errno:
        return errors.InsufficientStorage(path, exc=error, msg=message)
    return errors.OperationFailed(path, exc=error)


def as_os_error(error: CuckooError | OSError, path: str) -> Exception:
    """Return what an open file raises in the place of `error`: like any file, an OSError with errno."""
    if isinstance(error, FileSystemError):
        return OSError(error.errno, str(error), path)
    if isinstance(error, LoopEnded):
        return ValueError(f"I/O operation on a file of a closed file system: {error}")
    return error


def _literal(message: str) -> str:
    """Return `message` so that FSError, which formats its messages, shows it as it is."""
    return message.replace("{", "{{").replace("}", "}}")

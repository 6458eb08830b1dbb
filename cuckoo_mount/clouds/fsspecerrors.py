"""What fsspec's libraries raise, as our own errors, each with what to do next.  Used by fsspeccloud.py.  Pure.

translate.py knows statuses of HTTP and errors of the operating system; here is what these libraries say in other ways.
"""

from __future__ import annotations

import errno
from typing import Final

from cuckoo_mount.clouds.base import CloudSettings
from cuckoo_mount.clouds.translate import busy, describe, translate
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
)

_KINDS: Final[dict[str, type[CloudError]]] = {
    # httpx, of webdav4
    "ConnectTimeout": CloudTimeout,
    "ReadTimeout": CloudTimeout,
    "WriteTimeout": CloudTimeout,
    "PoolTimeout": CloudTimeout,
    # azure-core
    "ServiceRequestTimeoutError": CloudTimeout,
    "ServiceResponseTimeoutError": CloudTimeout,
    "ClientAuthenticationError": CloudNeedsLogin,
    "CredentialUnavailableError": CloudNeedsLogin,
    # google-auth
    "RefreshError": CloudNeedsLogin,
    "GoogleAuthError": CloudNeedsLogin,
    "TransportError": CloudUnavailable,
    # smbprotocol
    "LogonFailure": CloudNeedsLogin,
    "SMBAuthenticationError": CloudNeedsLogin,
    "SpnegoError": CloudNeedsLogin,
    "AccessDenied": CloudRefused,
    "BadNetworkName": CloudUnavailable,
    # gcsfs, of an answer that was damaged on its way
    "ChecksumError": CloudUnavailable,
}
# OpenDAL's kinds, and NT status codes of SMB.
_OPENDAL: Final[dict[str, type[CloudError]]] = {
    "RateLimited": CloudBusy,
    "PermissionDenied": CloudRefused,
    "RangeNotSatisfied": CloudCorrupt,
    "ConfigInvalid": CloudRefused,
    "Unsupported": CloudRefused,
}
_NT: Final[dict[int, type[CloudError]]] = {
    0xC0000022: CloudRefused,
    0xC000007F: CloudFull,
    0xC0000044: CloudFull,
    0xC00000B5: CloudTimeout,
}
# What Azure answers with 403 if it is not about rights.
_AZURE_LOGIN: Final = frozenset({"AuthenticationFailed", "InvalidAuthenticationInfo", "NoAuthenticationInformation"})
_AZURE: Final[dict[str, type[CloudError]]] = {
    "ServerBusy": CloudBusy,
    "AccountIsDisabled": CloudRefused,
    "InvalidRange": CloudCorrupt,
    "ContainerNotFound": CloudUnavailable,
    "ContainerBeingDeleted": CloudUnavailable,
}
_STATUS: Final[dict[int, type[CloudError]]] = {
    401: CloudNeedsLogin,
    403: CloudRefused,
    404: CloudMissing,
    408: CloudTimeout,
    413: CloudFull,
    416: CloudCorrupt,
    429: CloudBusy,
    503: CloudBusy,
    507: CloudFull,
}
_HINTS: Final[dict[type[CloudError], str]] = {
    CloudNeedsLogin: "give new credentials by cuckoo cloud set NAME --secret …",
    CloudRefused: "let this account read, write, list and delete there",
}
# The last ones come from smbclient, which forgets who logged in when another has dropped the connection of both.
_BROKEN: Final = frozenset(
    {
        *("RemoteProtocolError", "ReadError", "WriteError", "SMBConnectionClosed"),
        *("SMBAuthenticationError", "SpnegoError", "LogonFailure"),
    }
)
_EXPIRED: Final = ("invalid_grant", "unauthorized", "expired", "status: 401", "invalid credentials")
_FORBIDDEN: Final = "forbidden:"


def explain(error: Exception, settings: CloudSettings, name: str) -> CloudError:
    """Return our error for anything that was raised by a file system; CloudMissing is only what it said."""
    if isinstance(error, CloudError):
        return error
    seen: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in seen:
        seen.append(cause)
        kind = _kind(cause)
        if kind is not None:
            hint = _HINTS.get(kind)
            said = describe(error, settings)
            if kind is CloudBusy:
                return busy(said, _retry_after(cause), cloud=settings.name, name=name)
            return kind(f"{said}; {hint}" if hint else said, cloud=settings.name, name=name)
        cause = cause.__cause__ or cause.__context__
    found = translate(error, settings, name)
    hint = _HINTS.get(type(found))
    return found.retold(f"{found.message}; {hint}") if hint else found


def is_missing(error: BaseException) -> bool:
    """Return whether `error` says that a path is not there; some of the OSErrors are of no class of their own."""
    return isinstance(error, FileNotFoundError) or (isinstance(error, OSError) and error.errno == errno.ENOENT)


def is_broken(error: BaseException) -> bool:
    """Return whether `error` says that a kept connection, or a session on it, was no longer there."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ConnectionError) or type(cause).__name__ in _BROKEN:
            return True
        cause = cause.__cause__
    return False


def _retry_after(error: BaseException) -> str:
    return str(getattr(error, "retry_after", ""))


def _kind(error: BaseException) -> type[CloudError] | None:
    if is_missing(error):
        return CloudMissing
    if isinstance(error, OSError):
        status = getattr(error, "ntstatus", None)
        if status in _NT:
            return _NT[status]
        said = str(error).lower()
        if type(error).__name__ == "OpenDalError":
            answered = int(getattr(error, "status", 0))
            expired = any(word in said for word in _EXPIRED)
            kind = _OPENDAL.get(str(getattr(error, "kind", "")), CloudUnavailable)
            return CloudNeedsLogin if expired else _STATUS.get(answered, kind)
        if said.startswith(_FORBIDDEN):  # gcsfs
            return CloudRefused
    for parent in type(error).__mro__:
        if parent.__name__ in _KINDS:
            return _KINDS[parent.__name__]
    code = str(getattr(getattr(error, "error_code", None), "value", getattr(error, "error_code", "")))
    if code in _AZURE_LOGIN:
        return CloudNeedsLogin
    if code in _AZURE and _AZURE[code] is not CloudBusy:
        return _AZURE[code]
    if getattr(error, "response", None) is None:  # else translate.py finds its status, and how long to wait
        number = getattr(error, "code", None)
        if isinstance(number, int) or (isinstance(number, str) and number.isdecimal()):
            return _STATUS.get(int(number))
    return None

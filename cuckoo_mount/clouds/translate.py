"""What drivers raise, as our own errors: fs.errors alone is not enough, drivers leak those of their libraries.

Used by every driver, in workers.  Pure functions, any thread.  Rule: an error of the world becomes a CloudError with a
text that names the cause and never holds a secret.  What is not recognised counts as passing trouble
(CloudUnavailable): giving up on a cloud for good because of an unknown exception would be the worse mistake.
"""

from __future__ import annotations

import errno
import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final
from urllib.parse import unquote, unquote_plus

from attrs import frozen

from cuckoo_mount.clouds.base import CloudSettings
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

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_REFUSED: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_TEXT_MAX_CHARACTERS: Final = 300
_SECRET_MIN_CHARACTERS: Final = 3
RETRY_AFTER_MAX_S: Final = 3600.0
"""Whoever wants to be left alone for longer is asked once an hour all the same."""
_RETRY_AFTER_DIGITS: Final = 9
SECRET_QUERY: Final = re.compile(r"secret|token|passw|\Akey\Z|account_key|connection_string", re.IGNORECASE)
"""Names in the query of a URL whose values are secret."""

# By class name: importing the libraries here to name their classes would cost every worker their memory.
_BY_CLASS_NAME: Final[dict[str, type[CloudError]]] = {
    "InsufficientStorage": CloudFull,
    "PermissionDenied": CloudRefused,
    "ResourceReadOnly": CloudRefused,
    "OperationTimeout": CloudTimeout,
    "ResourceNotFound": CloudMissing,
    "AuthenticationException": CloudNeedsLogin,
    "AuthError": CloudNeedsLogin,
    "DefaultCredentialsError": CloudNeedsLogin,
    # botocore, whose timeouts have the names of urllib3's; its ClientError is judged by the code in the answer.
    "ConnectTimeoutError": CloudTimeout,
    "ReadTimeoutError": CloudTimeout,
    "NoCredentialsError": CloudNeedsLogin,
    "PartialCredentialsError": CloudNeedsLogin,
    "CredentialRetrievalError": CloudNeedsLogin,
    "ConfigParseError": CloudRefused,
    "ProfileNotFound": CloudRefused,
    "SSOError": CloudNeedsLogin,
    "TokenRetrievalError": CloudNeedsLogin,
}
_BY_STATUS: Final[dict[int, type[CloudError]]] = {
    401: CloudNeedsLogin,
    403: CloudRefused,
    404: CloudMissing,
    405: CloudRefused,
    408: CloudTimeout,
    413: CloudFull,
    416: CloudCorrupt,
    429: CloudBusy,
    501: CloudRefused,
    503: CloudBusy,
    507: CloudFull,
}
# Codes of S3 and its kin that say more than the HTTP status they come with, or otherwise.
_BY_CODE: Final[dict[str, type[CloudError]]] = {
    "NoSuchKey": CloudMissing,
    "NoSuchBucket": CloudUnavailable,
    "InvalidRange": CloudCorrupt,
    "EntityTooLarge": CloudFull,
    "InsufficientStorage": CloudFull,
    "QuotaExceeded": CloudFull,
    "XMinioAdminBucketQuotaExceeded": CloudFull,
    "XMinioStorageFull": CloudFull,
    "RequestTimeout": CloudTimeout,
    "SlowDown": CloudBusy,
    "RequestLimitExceeded": CloudBusy,
    "Throttling": CloudBusy,
    "ThrottlingException": CloudBusy,
    "TooManyRequests": CloudBusy,
    "AuthorizationHeaderMalformed": CloudRefused,
    "ExpiredToken": CloudNeedsLogin,
    "IllegalLocationConstraintException": CloudRefused,
    "InvalidAccessKeyId": CloudNeedsLogin,
    "InvalidBucketName": CloudRefused,
    "InvalidToken": CloudNeedsLogin,
    "PermanentRedirect": CloudRefused,
    "RequestTimeTooSkewed": CloudRefused,
    "SignatureDoesNotMatch": CloudNeedsLogin,
    "TokenRefreshRequired": CloudNeedsLogin,
}


@frozen(slots=True)
class ServiceError:
    """What a service's own answer says: its code ("" if it gave none), HTTP status (0 if not known), and text.

    `retry_after`: that header, as it came.
    """

    code: str
    status: int
    text: str
    retry_after: str = ""


def service_error(error: BaseException) -> ServiceError | None:
    """Return the answer inside a botocore ClientError, or None for any other error."""
    response = getattr(error, "response", None)
    if not isinstance(response, Mapping):
        return None
    details, metadata = response.get("Error", {}), response.get("ResponseMetadata", {})
    code = str(details.get("Code", ""))
    return ServiceError(
        # Where an answer has no body, botocore makes a code of the status.
        "" if code.isdigit() else code,
        int(metadata.get("HTTPStatusCode", 0)) or (int(code) if code.isdigit() else 0),
        str(details.get("Message", "")),
        str(metadata.get("HTTPHeaders", {}).get("retry-after", "")),
    )


def read_retry_after_s(text: str, now: datetime | None = None) -> float:
    """Return what the header `Retry-After` says, seconds or a date (RFC 9110), as seconds; 0 if it says nothing.

    At most `RETRY_AFTER_MAX_S`; a date that has passed gives 0.
    """
    text = text.strip()
    if text.isascii() and text.isdecimal():
        # By digits first: int() of a long text takes long, and refuses beyond some.
        seconds = float(text[:_RETRY_AFTER_DIGITS]) if len(text) <= _RETRY_AFTER_DIGITS else RETRY_AFTER_MAX_S
        return min(seconds, RETRY_AFTER_MAX_S)
    try:
        then = parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    if then.tzinfo is None:
        then = then.replace(tzinfo=UTC)
    return min(max(0.0, (then - (now or datetime.now(UTC))).total_seconds()), RETRY_AFTER_MAX_S)


def busy(message: str, retry_after: str, *, cloud: str, name: str) -> CloudBusy:
    """Return the error for a service that wants fewer requests; `retry_after`: its header, or empty."""
    wait_s = read_retry_after_s(retry_after)
    again = f"; try again in {math.ceil(wait_s)} s" if wait_s else ""
    return CloudBusy(f"{message}{again}", cloud=cloud, name=name, retry_after_s=wait_s)


def hide_secrets(text: str, settings: CloudSettings) -> str:
    """Return `text` with the secrets of `settings`, and those in its URL, replaced by ***."""
    hidden = {value for _, value in settings.secrets if len(value) >= _SECRET_MIN_CHARACTERS}
    _, found, rest = settings.url.partition("://")
    for part in rest.partition("?")[2].split("&"):
        key, _, value = part.partition("=")
        if len(value) >= _SECRET_MIN_CHARACTERS and SECRET_QUERY.search(unquote_plus(key)):
            hidden |= {value, unquote_plus(value)}
    credentials, at, _ = rest.partition("@")
    if found and at and ":" in credentials:
        password = credentials.partition(":")[2]
        hidden |= {credentials, password, unquote(password)} - {""}
    for value in sorted(hidden, key=len, reverse=True):
        text = text.replace(value, "***")
    return text


def describe(error: BaseException, settings: CloudSettings) -> str:
    """Return one line for `error`, without secrets: its text and, where that is not ours, its class or code."""
    service = service_error(error)
    text, kind = str(error), type(error).__name__
    if service is not None:
        text, kind = service.text, service.code or f"HTTP status {service.status}"
    text = " ".join(text.split())[:_TEXT_MAX_CHARACTERS]
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror
    elif kind not in text:
        text = f"{text} ({kind})" if text else kind
    return hide_secrets(text, settings)


def translate_os_error(error: OSError, settings: CloudSettings, name: str) -> CloudError:
    """Return our error for one of the operating system's.  ENOENT is not judged here: see `CloudMissing`'s rule."""
    kind = _kind_of_os_error(error) or CloudUnavailable
    return kind(describe(error, settings), cloud=settings.name, name=name)


def translate(error: Exception, settings: CloudSettings, name: str) -> CloudError:
    """Return our error for anything a driver raised.

    CloudMissing in the answer is only what the driver says: the caller confirms that the cloud itself is there.
    """
    if isinstance(error, CloudError):
        return error
    causes = _chain(error)
    for cause in causes:
        kind = _kind(cause)
        if kind is CloudBusy:
            return busy(describe(error, settings), _retry_after(cause), cloud=settings.name, name=name)
        if kind is not None:
            return kind(describe(error, settings), cloud=settings.name, name=name)
    return CloudUnavailable(describe(error, settings), cloud=settings.name, name=name)


def _chain(error: BaseException) -> list[BaseException]:
    """Return `error` and what it was made of; PyFilesystem keeps the original in `exc`."""
    found: list[BaseException] = []
    following: object = error
    while isinstance(following, BaseException) and following not in found:
        found.append(following)
        following = getattr(following, "exc", None) or following.__cause__ or following.__context__
    return found


def _retry_after(error: BaseException) -> str:
    """Return the header Retry-After of the answer inside an error of botocore or requests; "" without one."""
    service = service_error(error)
    if service is not None:
        return service.retry_after
    headers = getattr(getattr(error, "response", None), "headers", None)
    return str(headers.get("retry-after", "")) if isinstance(headers, Mapping) else ""


def _kind_of_os_error(error: OSError) -> type[CloudError] | None:
    if error.errno in _FULL:
        return CloudFull
    if error.errno in _REFUSED:
        return CloudRefused
    return CloudTimeout if isinstance(error, TimeoutError) else None


def _kind(error: BaseException) -> type[CloudError] | None:
    for parent in type(error).__mro__:
        if parent.__name__ in _BY_CLASS_NAME:
            return _BY_CLASS_NAME[parent.__name__]
    service = service_error(error)
    if service is not None:
        return _BY_CODE.get(service.code) or _BY_STATUS.get(service.status, CloudUnavailable)
    if isinstance(error, OSError):
        return _kind_of_os_error(error)
    status = getattr(getattr(error, "response", None), "status_code", None)
    return _BY_STATUS.get(status) if isinstance(status, int) else None

"""What a WebDAV server's refusals, and a broken connection to it, are as errors of ours, each with what to do next.

Used by webdav.py.  Pure functions, any thread.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from attrs import frozen

from cuckoo_mount.clouds.base import CloudSettings
from cuckoo_mount.clouds.remoteplace import RemotePlace
from cuckoo_mount.clouds.translate import busy, describe
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


@frozen(slots=True)
class Answer:
    """A whole answer: HTTP status, headers with lower-case names, body."""

    status: int
    headers: Mapping[str, str]
    body: bytes


_KINDS: Final[dict[int, tuple[type[CloudError], str]]] = {
    401: (CloudNeedsLogin, "wrong user or password; where there are app passwords, it has to be one"),
    403: (CloudRefused, "not allowed; let this user read, write and delete in folder {path}"),
    404: (CloudMissing, "no such object"),
    405: (CloudRefused, "{endpoint} does not allow this here; check the URL, is it that of WebDAV?"),
    408: (CloudTimeout, "the server waited too long for the request"),
    410: (CloudMissing, "no such object"),
    413: (CloudFull, "the server takes no object of this size; make its limit for uploads larger"),
    416: (CloudCorrupt, "the object ends before the range that was asked for"),
    423: (CloudUnavailable, "locked by somebody; try again"),
    429: (CloudBusy, "too many requests"),
    501: (CloudRefused, "{endpoint} does not know this request; check the URL, is it that of WebDAV?"),
    503: (CloudBusy, "busy, or down for maintenance"),
    507: (CloudFull, "no room there"),
}
_MOVED: Final = frozenset({301, 302, 303, 307, 308})
_BASIC: Final = "basic"
_TLS: Final = frozenset({"SSLError", "CertificateError"})
_NOTHING_THERE: Final = frozenset({"NewConnectionError", "NameResolutionError", "ConnectTimeoutError"})


def answered(answer: Answer, settings: CloudSettings, place: RemotePlace, name: str) -> CloudError:
    """Return the error for an answer that is not what was asked for."""
    kind, text = _KINDS.get(answer.status, (CloudUnavailable, "unexpected answer"))
    text = text.format(path=place.path, endpoint=place.endpoint)
    if answer.status in _MOVED:
        # Not followed: the password would go to wherever it says.
        kind, text = CloudRefused, f"the server says it is at {answer.headers.get('location', '?')}; check the URL"
    offered = answer.headers.get("www-authenticate", _BASIC)
    if answer.status == 401 and _BASIC not in offered.lower():
        text = f"the server wants another kind of login ({offered.split()[0]}); only Basic is supported"
    if kind is CloudBusy:
        found: CloudError = busy(text, answer.headers.get("retry-after", ""), cloud=settings.name, name=name)
    else:
        found = kind(text, cloud=settings.name, name=name)
    return found.retold(f"{found.message} (HTTP status {answer.status})")


def broken(error: Exception, settings: CloudSettings, place: RemotePlace, name: str) -> CloudError:
    """Return the error for a request that got no whole answer: an exception of urllib3, http.client or socket."""
    kinds = {parent.__name__ for parent in type(error).__mro__}
    if kinds & _TLS:
        trouble = "check the URL, and whether this machine trusts the server's certificate (option ca_file)"
        text = f"no secure connection to {place.endpoint}: {describe(error, settings)}; {trouble}"
    elif kinds & _NOTHING_THERE:
        text = f"nothing answers at {place.endpoint}; check the URL, and that the server runs"
    elif "TimeoutError" in kinds:
        return CloudTimeout(f"no answer in time from {place.endpoint}", cloud=settings.name, name=name)
    else:
        text = f"the connection to {place.endpoint} broke: {describe(error, settings)}"
    kind = CloudTimeout if "ConnectTimeoutError" in kinds else CloudUnavailable
    return kind(text, cloud=settings.name, name=name)

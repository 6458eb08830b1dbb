"""HTTP for WebDAV: connections, standing headers, and one more try where a kept connection was closed.

Used by webdav.py.  Any thread.  urllib3 is imported when it is used.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from cuckoo_mount.clouds.base import CloudSettings
from cuckoo_mount.clouds.remoteplace import RemotePlace
from cuckoo_mount.errors import UsageError

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse, PoolManager

CONNECTIONS_MAX: Final = 16
CONNECT_TIMEOUT_S: Final = 10.0
"""Limit for making a connection, where `timeout_s` is not shorter."""
CA_FILE: Final = "ca_file"


def standing_headers(place: RemotePlace) -> dict[str, str]:
    """Return what every request to `place` carries, credentials included."""
    from urllib3.util import make_headers

    headers = {"Accept-Encoding": "identity", "User-Agent": "cuckoo-mount"}
    if place.user is not None:
        # urllib3 would write Latin-1, which has not every sign a password may have.
        secret = f"{place.user}:{place.password}".encode().decode("latin-1")
        headers.update(make_headers(basic_auth=secret))
    return headers


def make_manager(settings: CloudSettings, place: RemotePlace, base: str) -> PoolManager:
    """Return the connections to the server at `base`, for any number of threads.  Raises: UsageError."""
    from urllib.request import getproxies, proxy_bypass

    from urllib3 import PoolManager, ProxyManager, Timeout

    try:
        context = ssl.create_default_context(cafile=place.options.get(CA_FILE))
    except OSError as error:  # an SSLError is one, too
        file = place.options.get(CA_FILE)
        raise UsageError(f"cloud {settings.name}: {CA_FILE} {file!r} cannot be read: {error.strerror}") from error
    scheme = base.partition(":")[0]
    proxy = None if proxy_bypass(place.host) else getproxies().get(scheme)
    timeout = Timeout(connect=min(settings.timeout_s, CONNECT_TIMEOUT_S), read=settings.timeout_s)
    make = PoolManager if proxy is None else partial(ProxyManager, proxy)
    return make(maxsize=CONNECTIONS_MAX, timeout=timeout, ssl_context=context)


def twice_if_closed(request: Callable[[], BaseHTTPResponse]) -> BaseHTTPResponse:
    """Return what `request` returns; it is made once more if its connection had been closed before an answer came."""
    from urllib3.exceptions import IncompleteRead, ProtocolError

    try:
        return request()
    except ProtocolError as error:
        cause = error.args[-1] if error.args else None
        if isinstance(cause, IncompleteRead) or not isinstance(cause, ConnectionError):
            raise
    return request()

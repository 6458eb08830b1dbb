"""The HTTP session that Dropbox's SDK is given: one for all threads of a cloud, with limits on time, no repeating.

Used by dropbox.py and dropboxlogin.py; the SDK would make its own, wait 100 s for an answer, sleep for as long as a
service says that was asked too much, and forget the pause that a 503 asks for.  Here every refusal is raised as it
comes, but for one about the login that the SDK can mend itself by a new access token.  Any thread.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeVar
from urllib.parse import urlsplit, urlunsplit

from cuckoo_mount.clouds.base import CloudSettings
from cuckoo_mount.clouds.dropboxerrors import Refusal, causes_of
from cuckoo_mount.clouds.dropboxplace import CA_FILE, DropboxPlace
from cuckoo_mount.errors import UsageError

if TYPE_CHECKING:
    from requests import PreparedRequest, Response, Session

CONNECTIONS_MAX: Final = 16
CONNECT_TIMEOUT_S: Final = 10.0
"""Limit for making a connection, where `timeout_s` is not shorter."""
TOKEN_PATH: Final = "/oauth2/token"
_JSON: Final = "application/json"
_DOWNLOADED: Final = "dropbox-api-result"
"""A header that comes with every object."""

T = TypeVar("T")


def timeout_of(settings: CloudSettings) -> tuple[float, float]:
    """Return the limits, in s, for making a connection and for each wait on it, as requests takes them."""
    return min(settings.timeout_s, CONNECT_TIMEOUT_S), settings.timeout_s


def make_session(settings: CloudSettings, place: DropboxPlace) -> Session:
    """Return a session; nothing is sent.  Raises: UsageError for a `ca_file` that cannot be read."""
    # Not above: 50 ms, and only who opens such a cloud has to wait for them.
    from requests import Session
    from requests.adapters import HTTPAdapter

    if place.ca_file is not None and not os.access(place.ca_file, os.R_OK):
        raise UsageError(f"cloud {settings.name}: {CA_FILE} {place.ca_file!r} cannot be read; check the path")

    class Adapter(HTTPAdapter):
        """Asks `place.server` instead of Dropbox's hosts, and trusts `place.ca_file` whatever the environment says."""

        def send(self, request: PreparedRequest, *positional: object, **arguments: object) -> Response:
            if isinstance(request.body, bytes):
                # Else all of it has to be sent within one time limit, however steadily it goes: 16 MiB in 10 s.
                request.body = io.BytesIO(request.body)
            if place.server is not None:
                request.url = urlunsplit(urlsplit(str(request.url))._replace(netloc=place.server))
                arguments["proxies"] = {}
            if place.ca_file is not None:
                arguments["verify"] = place.ca_file
            answer: Response = super().send(request, *positional, **arguments)  # type: ignore[arg-type]
            return answer

    session = Session()
    session.mount("https://", Adapter(pool_maxsize=CONNECTIONS_MAX))
    session.hooks["response"] = [_check]
    return session


def _check(response: Response, *_: object, **__: object) -> None:
    """Raises: Refusal for every answer that is not a good one, but a 401 of the API: the SDK may get a new token."""
    status, is_json = response.status_code, response.headers.get("content-type", "").startswith(_JSON)
    is_login = urlsplit(str(response.url)).path == TOKEN_PATH
    is_of_api = is_json or _DOWNLOADED in response.headers
    if (200 <= status < 300 and is_of_api) or (status == 401 and is_json and not is_login):
        return
    body = response.content.decode("utf-8", "replace")
    raise Refusal(status, body, retry_after=response.headers.get("retry-after", ""), is_login=is_login)


def twice_if_closed(request: Callable[[], T]) -> T:
    """Return what `request` returns; it is made once more if its connection had been closed before an answer came."""
    from requests.exceptions import ConnectionError as Broken
    from urllib3.exceptions import IncompleteRead, ProtocolError

    try:
        return request()
    except (Broken, ProtocolError) as error:
        causes = causes_of(error)
        if any(isinstance(cause, IncompleteRead) for cause in causes):
            raise
        if not any(isinstance(cause, ConnectionError) for cause in causes):  # Python's own: reset, or closed
            raise
    return request()

"""A login to Dropbox: OAuth 2 with PKCE and without redirection: the code is pasted, and no app secret is needed.

Used by logins.py.  The result is a refresh token, which Dropbox neither renews nor lets expire; the user can revoke it
in the account's settings.  Only what a cloud needs is asked for.
"""

from __future__ import annotations

from typing import Final, Protocol, cast

from cuckoo_mount.clouds.base import CloudSettings
from cuckoo_mount.clouds.dropboxerrors import Refusal, broken
from cuckoo_mount.clouds.dropboxplace import ACCESS_TOKEN, APP_KEY, REFRESH_TOKEN, DropboxPlace, parse_dropbox_place
from cuckoo_mount.clouds.dropboxsession import make_session, timeout_of
from cuckoo_mount.errors import CloudNeedsLogin, CloudUnavailable, UsageError

SCOPES: Final = ("account_info.read", "files.metadata.read", "files.content.read", "files.content.write")


class _Result(Protocol):
    refresh_token: str


class _Flow(Protocol):
    """The part of the SDK's DropboxOAuth2FlowNoRedirect that is used; it has no types."""

    requests_session: object

    def start(self) -> str: ...
    def finish(self, code: str) -> _Result: ...


class DropboxLogin:
    """A login that has begun; see logins.py."""

    def __init__(self, settings: CloudSettings, place: DropboxPlace) -> None:
        """Raises: UsageError without the key of an app."""
        from dropbox.oauth import DropboxOAuth2FlowNoRedirect

        if place.app_key is None:
            raise UsageError(
                f"cloud {settings.name}: a login needs the key of an app; make one at www.dropbox.com/developers/apps, "
                f"then give --option {APP_KEY}=KEY"
            )
        self._settings = settings
        self._place = place
        flow = DropboxOAuth2FlowNoRedirect(
            place.app_key,
            token_access_type="offline",
            scope=list(SCOPES),
            use_pkce=True,
            timeout=timeout_of(settings),
        )
        flow.requests_session = make_session(settings, place)
        self._flow = cast(_Flow, flow)
        self._url = self._flow.start()

    @property
    def url(self) -> str:
        return self._url

    def finish(self, code: str) -> dict[str, str]:
        try:
            token = self._flow.finish(code).refresh_token
        except Refusal as refusal:
            if 400 <= refusal.status < 500:
                said = f" ({refusal.text})" if refusal.text else ""
                message = f"Dropbox did not take the code{said}; begin anew, and paste the new code"
                raise CloudNeedsLogin(message, cloud=self._settings.name) from refusal
            message = f"{self._place.endpoint} answered HTTP status {refusal.status}; try again"
            raise CloudUnavailable(message, cloud=self._settings.name) from refusal
        except Exception as error:
            raise broken(error, self._settings, self._place, "") from error
        if not token:
            raise CloudNeedsLogin("Dropbox gave no refresh token; try again", cloud=self._settings.name)
        return {REFRESH_TOKEN: token, ACCESS_TOKEN: ""}


def begin_dropbox_login(settings: CloudSettings, place: str) -> DropboxLogin:
    """Begin a login for the cloud at the URL `place`.  Sends nothing.  Raises: UsageError."""
    return DropboxLogin(settings, parse_dropbox_place(settings, place))

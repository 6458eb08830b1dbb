"""What a `dropbox://` URL, its options and its secrets say, checked before anything is contacted.

    dropbox:///[folder][?app_key=KEY&server=host:port&ca_file=/path]

Used by dropbox.py and dropboxlogin.py.  Pure, any thread, imports no Dropbox library.  What stands in the query may as
well be given by `--option`; the secrets `refresh_token`, `access_token` and `app_secret` by `--secret`, or by
`cuckoo cloud login`.  Settings that nobody would look at are errors: they are typing mistakes or false hopes.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import parse_qsl, unquote

from attrs import field, frozen

from cuckoo_mount.clouds.base import CloudSettings
from cuckoo_mount.errors import UsageError

APP_KEY, SERVER, CA_FILE = "app_key", "server", "ca_file"
REFRESH_TOKEN, ACCESS_TOKEN, APP_SECRET = "refresh_token", "access_token", "app_secret"
_OPTIONS: Final = (APP_KEY, SERVER, CA_FILE)
_SECRETS: Final = (REFRESH_TOKEN, ACCESS_TOKEN, APP_SECRET)
_APP_KEY: Final = re.compile(r"[A-Za-z0-9_-]{1,100}")
_SERVER: Final = re.compile(r"[A-Za-z0-9.-]+(:[0-9]{1,5})?")
_PATH_MAX_CHARACTERS: Final = 600
_FORBIDDEN: Final = frozenset("\\:")
"""Dropbox takes no such sign in a name."""


@frozen(slots=True, kw_only=True)
class DropboxPlace:
    """A folder in a Dropbox, or in the folder of an app.  `folder`: `/a/b`, or empty for all there is.

    `server`: host and port to ask in place of Dropbox's own.  None: not said.
    """

    folder: str = ""
    app_key: str | None = None
    server: str | None = None
    ca_file: str | None = None
    refresh_token: str | None = field(default=None, repr=False)
    access_token: str | None = field(default=None, repr=False)
    app_secret: str | None = field(default=None, repr=False)

    @property
    def endpoint(self) -> str:
        """Where it is, for messages."""
        return self.server or "Dropbox"

    @property
    def depth(self) -> int:
        """How many folders lie above what is in it."""
        return self.folder.count("/")


def parse_dropbox_place(settings: CloudSettings, url: str) -> DropboxPlace:
    """Return what `url` (`dropbox://…`) and the options and secrets of `settings` name.

    Settings win over what stands in the URL.  Raises: UsageError, without secrets, that says what to write instead.
    """
    scheme, _, rest = url.partition("://")
    rest, _, query = rest.partition("?")
    before, _, path = rest.partition("/")
    if before:  # what was meant is not known, and it may hold a secret
        raise UsageError(f"cloud {settings.name}: a Dropbox has no host; write {scheme}:///folder, with three slashes")
    given = dict(parse_qsl(query, keep_blank_values=True))
    secrets = {key: given.pop(key) for key in _SECRETS if key in given}
    for key, value in settings.secrets:
        if key not in _SECRETS and "." not in key:
            known = ", ".join(_SECRETS)
            raise UsageError(f"cloud {settings.name}: {scheme}:// has no secret {key!r}; known: {known}")
        secrets[key] = value
    given.update((key, value) for key, value in settings.options if "." not in key)
    _check_options(settings, scheme, given)
    if secrets.get(REFRESH_TOKEN) and APP_KEY not in given:
        raise UsageError(
            f"cloud {settings.name}: the option {APP_KEY} is missing; give the key of the app that was logged in to"
        )
    return DropboxPlace(
        folder=_folder(settings, unquote(path)),
        **given,
        **{key: value for key, value in secrets.items() if key in _SECRETS and value},
    )


def _check_options(settings: CloudSettings, scheme: str, given: dict[str, str]) -> None:
    for key, value in given.items():
        if key not in _OPTIONS:
            known = f"known: {', '.join(_OPTIONS)}"
            raise UsageError(f"cloud {settings.name}: {scheme}:// has no option {key!r}; {known}")
        if not value:
            raise UsageError(f"cloud {settings.name}: option {key} is empty; give it a value or leave it out")
    if _APP_KEY.fullmatch(given.get(APP_KEY, "x")) is None:
        raise UsageError(f"cloud {settings.name}: {APP_KEY} is no key of an app; copy it from Dropbox's App Console")
    if _SERVER.fullmatch(given.get(SERVER, "x")) is None:
        raise UsageError(f"cloud {settings.name}: {SERVER} is no address; write host or host:port")


def _folder(settings: CloudSettings, path: str) -> str:
    parts = [part for part in path.split("/") if part]
    usable = all(part not in (".", "..") and part.isprintable() and not _FORBIDDEN & set(part) for part in parts)
    if not usable or len(path) > _PATH_MAX_CHARACTERS:
        raise UsageError(f"cloud {settings.name}: {path[:80]!r} cannot be its folder; write plain folder names")
    return "".join(f"/{part}" for part in parts)

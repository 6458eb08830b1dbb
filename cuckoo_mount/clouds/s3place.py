"""What an `s3://` URL, its options and its secrets say, checked before anything is contacted.

    s3://[KEY:SECRET@]bucket[/prefix][?endpoint_url=https://host:port&region=…&addressing_style=…&acl=…&storage_class=…]

Used by s3.py.  Pure, any thread, imports no S3 library.  What stands in the query may as well be given by `--option`;
credentials by `--secret` (`user` and `password`, or `access_key` and `secret_key`).  Settings that nobody would look at
are errors: they are typing mistakes or false hopes.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import parse_qsl, unquote, urlsplit

from attrs import field, frozen

from cuckoo_mount.clouds.base import CloudSettings
from cuckoo_mount.errors import UsageError

AWS_ENDPOINT: Final = "Amazon S3"
"""What messages call the place of a cloud that has no `endpoint_url`."""
_SCHEME: Final = "s3"
_BUCKET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
_ADDRESSING_STYLES: Final = ("auto", "path", "virtual")
_OPTIONS: Final = ("endpoint_url", "region", "addressing_style", "acl", "storage_class")
# fs-s3fs knows it; we never look at the folder markers it is about.
_IGNORED: Final = frozenset({"strict"})
_SECRETS: Final = {
    "user": "user",
    "access_key": "user",
    "password": "password",
    "secret_key": "password",
    "session_token": "session_token",
}
_PREFIX_MAX_CHARACTERS: Final = 600  # S3 keys may have 1024 bytes; ours 200 characters


@frozen(slots=True, kw_only=True)
class S3Place:
    """Bucket, the prefix of our keys in it (empty, or ending with `/`), and how to get there.

    None: not said; then boto's usual places count (environment, ~/.aws).  `access_key` and `secret_key`: both or none.
    """

    bucket: str
    prefix: str = ""
    endpoint_url: str | None = None
    region: str | None = None
    addressing_style: str | None = None
    acl: str | None = None
    storage_class: str | None = None
    access_key: str | None = field(default=None, repr=False)
    secret_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)

    @property
    def endpoint(self) -> str:
        """Where it is, for messages."""
        return self.endpoint_url or AWS_ENDPOINT


def parse_s3_place(settings: CloudSettings, url: str) -> S3Place:
    """Return what `url` (`s3://…`) and the options and secrets of `settings` name.

    Secrets win over credentials in the URL, options over its query.
    Raises: UsageError, without secrets, that says what to write instead.
    """
    scheme, _, rest = url.partition("://")
    if scheme != _SCHEME:
        raise UsageError(f"{scheme}:// is not S3; write s3://bucket/prefix?endpoint_url=https://host")
    rest, _, query = rest.partition("?")
    credentials, at, place = rest.partition("@")
    if not at or ":" not in credentials:
        credentials, place = "", rest
    bucket, _, path = place.partition("/")
    if _BUCKET.fullmatch(bucket) is None:
        wrong = f"{bucket!r} cannot be the name of a bucket" if bucket else "the URL names no bucket"
        raise UsageError(f"cloud {settings.name}: {wrong}; write s3://bucket/prefix?endpoint_url=https://host")
    options = _options(settings, query)
    user, password, token = _credentials(settings, credentials)
    return S3Place(
        bucket=bucket,
        prefix=_prefix(settings, unquote(path)),
        access_key=user,
        secret_key=password,
        session_token=token,
        **options,
    )


def _prefix(settings: CloudSettings, path: str) -> str:
    parts = [part for part in path.split("/") if part]
    if any(part in (".", "..") or "\0" in part for part in parts) or len(path) > _PREFIX_MAX_CHARACTERS:
        raise UsageError(f"cloud {settings.name}: {path[:80]!r} cannot be a prefix; write plain folder names")
    return "".join(f"{part}/" for part in parts)


def _options(settings: CloudSettings, query: str) -> dict[str, str]:
    found = dict(parse_qsl(query, keep_blank_values=True))
    found.update((key, value) for key, value in settings.options if "." not in key)
    for key, value in found.items():
        if key not in _OPTIONS and key not in _IGNORED:
            hint = "give it by --secret" if key in _SECRETS else f"known: {', '.join(_OPTIONS)}"
            raise UsageError(f"cloud {settings.name}: s3:// has no option {key!r}; {hint}")
        if not value:
            raise UsageError(f"cloud {settings.name}: option {key} is empty; give it a value or leave it out")
    style = found.get("addressing_style", "auto")
    if style not in _ADDRESSING_STYLES:
        raise UsageError(
            f"cloud {settings.name}: addressing_style {style!r} is none of {', '.join(_ADDRESSING_STYLES)}"
        )
    if "endpoint_url" in found:
        _check_endpoint(settings, found["endpoint_url"])
    return {key: value for key, value in found.items() if key not in _IGNORED}


def _check_endpoint(settings: CloudSettings, endpoint_url: str) -> None:
    hint = "write endpoint_url=https://host:port"
    try:
        parts = urlsplit(endpoint_url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
        parts = urlsplit("")
    if "@" in parts.netloc:  # not shown: it is a secret
        raise UsageError(f"cloud {settings.name}: credentials do not belong into endpoint_url; give them by --secret")
    if not usable or parts.query or parts.fragment:
        raise UsageError(f"cloud {settings.name}: endpoint_url {endpoint_url!r} is not the URL of a server; {hint}")


def _credentials(settings: CloudSettings, in_url: str) -> tuple[str | None, str | None, str | None]:
    found: dict[str, str] = {}
    if in_url:
        before, _, after = in_url.partition(":")
        found = {"user": unquote(before), "password": unquote(after)}
    for key, value in settings.secrets:
        if "." in key:
            continue
        if key not in _SECRETS:
            raise UsageError(f"cloud {settings.name}: s3:// has no secret {key!r}; known: {', '.join(_SECRETS)}")
        found[_SECRETS[key]] = value
    user, password = found.get("user") or None, found.get("password") or None
    if (user is None) != (password is None):
        missing = "user" if user is None else "password"
        raise UsageError(
            f"cloud {settings.name}: secret {missing!r} is missing; give both --secret user=… and password=…"
        )
    return user, password, found.get("session_token") or None

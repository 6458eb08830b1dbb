"""What a URL of the kind `scheme://[user[:password]@]host[:port][/path][?option=…]` and its settings say.

Used by the drivers for WebDAV, SFTP and FTP, before anything is contacted.  Pure, any thread.  What stands in the query
may as well be given by `--option`; user and password by `--secret`.  Settings that nobody would look at are errors:
they are typing mistakes or false hopes.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final
from urllib.parse import parse_qsl, unquote

from attrs import field, frozen

from cuckoo_mount.clouds.base import CloudSettings
from cuckoo_mount.errors import UsageError

CREDENTIALS: Final = ("user", "password")
_PATH_MAX_CHARACTERS: Final = 600
_PORT_MAX: Final = 65535


@frozen(slots=True, kw_only=True)
class RemotePlace:
    """A folder on a server.  `path`: unquoted, begins with `/`, and ends with `/` only if it is the root.

    `port` None: the scheme's own.  `user`, `password` None: not said.  `secrets`: those besides user and password.
    """

    scheme: str
    host: str
    port: int | None = None
    path: str = "/"
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    options: dict[str, str] = field(factory=dict)
    secrets: dict[str, str] = field(factory=dict, repr=False)

    @property
    def address(self) -> str:
        """Host and port as in a URL."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port is None else f"{host}:{self.port}"

    @property
    def endpoint(self) -> str:
        """Where it is, for messages."""
        return f"{self.scheme}://{self.address}"

    def below(self, name: str) -> str:
        """Return the path of object or folder `name`; of the root itself if it is empty."""
        return f"{self.path.rstrip('/')}/{name}" if name else self.path


def parse_remote_place(
    settings: CloudSettings,
    url: str,
    *,
    options: Collection[str] = (),
    secrets: Collection[str] = (),
) -> RemotePlace:
    """Return what `url` and the options and secrets of `settings` name.

    `options`, `secrets`: which there may be, besides user and password.  Settings win over what stands in the URL.
    Raises: UsageError, without secrets, that says what to write instead.
    """
    scheme, _, rest = url.partition("://")
    rest, _, query = rest.partition("?")
    before, slash, path = rest.partition("/")
    credentials, at, address = before.rpartition("@")
    known = (*CREDENTIALS, *secrets)
    found = {key: unquote(value) for key, value in zip(CREDENTIALS, credentials.split(":", 1), strict=False) if at}
    for key, value in settings.secrets:
        if key not in known and "." not in key:
            raise UsageError(f"cloud {settings.name}: {scheme}:// has no secret {key!r}; known: {', '.join(known)}")
        found[key] = value
    host, port = _host_and_port(settings, scheme, address)
    return RemotePlace(
        scheme=scheme,
        host=host,
        port=port,
        path=_path(settings, unquote(slash + path)),
        user=found.pop("user", "") or None,
        password=found.pop("password", "") or None,
        options=_options(settings, scheme, query, options, known),
        secrets={key: value for key, value in found.items() if key in secrets and value},
    )


def _host_and_port(settings: CloudSettings, scheme: str, address: str) -> tuple[str, int | None]:
    if address.startswith("["):  # IPv6
        host, _, after = address[1:].partition("]")
        port = after.removeprefix(":")
        usable = not after or after.startswith(":")
    else:
        host, _, port = address.partition(":")
        usable = True
    host = unquote(host)
    if not host or any(sign.isspace() or sign in "@/\\\0" for sign in host) or not usable:
        # What was taken for the host may be part of a password.
        wrong = "names no host" if not host else "has something else where the host should be"
        raise UsageError(f"cloud {settings.name}: the URL {wrong}; write {scheme}://host/folder")
    if port and not (port.isascii() and port.isdecimal() and 0 < int(port) <= _PORT_MAX):
        raise UsageError(f"cloud {settings.name}: the URL's port is no number; write {scheme}://{host}:PORT/folder")
    return host, int(port) if port else None


def _path(settings: CloudSettings, path: str) -> str:
    parts = [part for part in path.split("/") if part]
    if any(part in (".", "..") or not part.isprintable() for part in parts) or len(path) > _PATH_MAX_CHARACTERS:
        raise UsageError(f"cloud {settings.name}: {path[:80]!r} cannot be its folder; write plain folder names")
    return "/" + "/".join(parts)


def _options(
    settings: CloudSettings, scheme: str, query: str, options: Collection[str], secrets: Collection[str]
) -> dict[str, str]:
    found = dict(parse_qsl(query, keep_blank_values=True))
    found.update((key, value) for key, value in settings.options if "." not in key)
    for key, value in found.items():
        if key not in options:
            known = f"known: {', '.join(options)}" if options else "leave it out"
            hint = "give it by --secret" if key in secrets else known
            raise UsageError(f"cloud {settings.name}: {scheme}:// has no option {key!r}; {hint}")
        if not value:
            raise UsageError(f"cloud {settings.name}: option {key} is empty; give it a value or leave it out")
    return found

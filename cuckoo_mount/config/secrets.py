"""Secrets of clouds: what `--secret K=…` means, what the TOML file keeps of it, and the values themselves.

Used by commands and by drive.py.  The TOML file keeps references: `file:/abs/path`, `env:VARIABLE`, `keyring`, or
`value:TEXT` for what was typed at a prompt (the file is 0600).  Values exist in memory only, are never logged, and no
message of this module shows one.  `resolve_secrets` blocks for the local disk, or for the keyring's daemon.
"""

from __future__ import annotations

import importlib
import os
import re
from pathlib import Path
from typing import Final, Protocol, cast
from urllib.parse import parse_qsl, unquote, unquote_plus

from cuckoo_mount.config.paths import shown
from cuckoo_mount.config.records import CloudConfig
from cuckoo_mount.errors import ConfigurationError, UsageError

KEYRING_SERVICE: Final = "cuckoo-mount"
FILE: Final = "file:"
ENVIRONMENT: Final = "env:"
VALUE: Final = "value:"
KEYRING: Final = "keyring"
PROMPT: Final = "prompt"
"""Stands in a parsed `--secret` only: the command asks for the value and keeps that."""
_FILE_MAX_BYTES: Final = 1 << 16
_KEY: Final = re.compile(r"[A-Za-z0-9_.-]+", re.ASCII)
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_SECRET_QUERY: Final = re.compile(r"secret|token|passw|\Akey\Z|account_key|connection_string", re.IGNORECASE)


class _Keyring(Protocol):
    """What is used of the package `keyring`."""

    def get_password(self, service_name: str, username: str) -> str | None:
        """Return a stored secret."""


def parse_secret_spec(text: str) -> tuple[str, str]:
    """Return (key, reference) for a `--secret K=file:PATH|env:VARIABLE|prompt|keyring`.

    The path is made absolute.  For `prompt` the reference is `PROMPT`; see `prompted`.  Raises: UsageError.
    """
    key, separator, source = text.partition("=")
    if not separator or not _KEY.fullmatch(key):
        # The text is not repeated: it may well hold a secret.
        raise UsageError("--secret is written K=file:PATH, K=env:VARIABLE, K=prompt or K=keyring, with K e.g. password")
    if source in (KEYRING, PROMPT):
        return key, source
    if source.startswith(ENVIRONMENT):
        variable = source.removeprefix(ENVIRONMENT)
        if not _VARIABLE.fullmatch(variable):
            raise UsageError(f"--secret {key}: after env: comes the name of a variable, for example env:S3_SECRET")
        return key, source
    if source.startswith(FILE):
        path = source.removeprefix(FILE)
        if not path:
            raise UsageError(f"--secret {key}: after file: comes a path, for example file:/etc/cuckoo/secret")
        return key, FILE + os.path.abspath(os.path.expanduser(path))
    raise UsageError(
        f"--secret {key}: the value itself would be seen by everyone on this machine; "
        f"write {key}=prompt, {key}=file:PATH, {key}=env:VARIABLE or {key}=keyring"
    )


def prompted(value: str) -> str:
    """Return the reference that keeps a value that was typed in."""
    return VALUE + value


def resolve_secrets(drive: str, cloud: CloudConfig) -> tuple[tuple[str, str], ...]:
    """Return the (key, value) pairs of a cloud's secrets, sorted by key.

    Raises: ConfigurationError that names cloud and key and says what to do, and never shows a value.
    """
    return tuple((key, _resolve(drive, cloud.name, key, reference)) for key, reference in cloud.secrets)


def _resolve(drive: str, cloud: str, key: str, reference: str) -> str:
    where = f"cloud {cloud}: secret {key!r}"
    if reference.startswith(VALUE):
        return reference.removeprefix(VALUE)
    if reference.startswith(ENVIRONMENT):
        return _from_environment(where, reference.removeprefix(ENVIRONMENT))
    if reference.startswith(FILE):
        return _from_file(where, Path(reference.removeprefix(FILE)))
    if reference == KEYRING:
        return _from_keyring(where, f"{drive}/{cloud}/{key}")
    raise ConfigurationError(
        f"{where} is neither file:PATH, env:VARIABLE, keyring nor value:TEXT; "
        f"set it with: cuckoo cloud set {cloud} --secret {key}=prompt"
    )


def _from_environment(where: str, variable: str) -> str:
    value = os.environ.get(variable)
    if not value:
        raise ConfigurationError(f"{where}: the variable {variable} is not set; export it before the command")
    return value


def _from_file(where: str, path: Path) -> str:
    try:
        with path.open("rb") as file:
            line = file.readline(_FILE_MAX_BYTES)
        value = line.decode("utf-8").rstrip("\r\n")
    except FileNotFoundError as error:
        raise ConfigurationError(f"{where}: there is no file {shown(path)}; put the secret there") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(
            f"{where}: {shown(path)} is no text in UTF-8; put the secret on its first line"
        ) from error
    except OSError as error:
        raise ConfigurationError(f"{where}: {shown(path)}: {error.strerror}; check its owner and rights") from error
    if not value:
        raise ConfigurationError(f"{where}: {shown(path)} begins with an empty line; put the secret on its first line")
    return value


def _from_keyring(where: str, user: str) -> str:
    try:
        keyring = cast(_Keyring, importlib.import_module("keyring"))
    except ImportError as error:
        raise ConfigurationError(
            f"{where}: the package keyring is not installed; install it with: pip install 'cuckoo-mount[keyring]'"
        ) from error
    try:
        value = keyring.get_password(KEYRING_SERVICE, user)
    except Exception as error:  # every backend has its own exceptions
        raise ConfigurationError(
            f"{where}: the keyring answered: {type(error).__name__}; unlock it, or use file:PATH"
        ) from error
    if not value:
        raise ConfigurationError(f"{where} is not in the keyring; put it there: keyring set {KEYRING_SERVICE} {user}")
    return value


def secrets_in_url(url: str) -> list[str]:
    """Return the `--secret` keys of what looks like a secret in `url`: `user` and `password`, names of its query."""
    _, _, rest = url.partition("://")
    place, _, query = rest.partition("?")
    credentials, at, _ = place.rpartition("@")
    found = ["user", "password"] if at and ":" in credentials else []
    return found + [key for key, value in parse_qsl(query) if value and _SECRET_QUERY.search(key)]


def part_url(url: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    """Return `url` without what looks like a secret in it, and that as (key, value) pairs, sorted.

    The keys are those of `secrets_in_url`: given by `--secret`, the values would do the same.  Not for folders, whose
    paths may have any sign in them.
    """
    scheme, separator, rest = url.partition("://")
    # At the first @, as the drivers do: a secret key may have a slash in it, a place has no @.
    credentials, at, place = rest.partition("@")
    found: dict[str, str] = {}
    if at and ":" in credentials:
        user, _, password = credentials.partition(":")
        found = {"user": unquote(user), "password": unquote(password)}
        rest = place
    place, mark, query = rest.partition("?")
    kept = []
    for part in query.split("&"):
        key, _, value = part.partition("=")
        if value and _SECRET_QUERY.search(unquote_plus(key)):
            found[unquote_plus(key)] = unquote_plus(value)
        else:
            kept.append(part)
    query = "&".join(kept)
    return f"{scheme}{separator}{place}{mark if query else ''}{query}", tuple(sorted(found.items()))

"""A storage as a command line gives it, that is no cloud of a drive here: its URL, options and secrets.

Used by recover.py (the door to a drive) and importing.py (where files lie).  May ask on the terminal.
"""

from __future__ import annotations

import getpass
import sys
from collections.abc import Mapping, Sequence

from cuckoo_mount.clouds.base import CloudSettings
from cuckoo_mount.config.records import CloudConfig
from cuckoo_mount.config.secrets import PROMPT, parse_secret_spec, part_url, prompted, resolve_secrets
from cuckoo_mount.errors import UsageError
from cuckoo_mount.format import ID_BYTES


def given_secret(spec: str, of: str) -> tuple[str, str]:
    """Return (key, reference) for a `--secret`; one that is to be typed in is asked for.  `of`: whose it is, if known.

    Raises: UsageError, also without a terminal.
    """
    key, reference = parse_secret_spec(spec)
    if reference == PROMPT:
        if not sys.stdin.isatty():
            raise UsageError(f"there is no terminal to ask for secret {key!r} on; write {key}=file:PATH")
        reference = prompted(getpass.getpass(f"{key} of {of}: "))
    return key, reference


def given_option(text: str) -> tuple[str, str]:
    """Return (key, value) for an `--option`.  Raises: UsageError."""
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise UsageError(f"--option is written K=V, not {text!r}")
    return key, value


def secret_values(drive: str, name: str, url: str, references: Mapping[str, str]) -> dict[str, str]:
    """Return the values of secrets by key.  `name`: what errors call their storage.  Raises: ConfigurationError."""
    config = CloudConfig(name=name, url=url, cloud_id=bytes(ID_BYTES), secrets=tuple(sorted(references.items())))
    return dict(resolve_secrets(drive, config))


def given_settings(url: str, options: Sequence[str], secrets: Mapping[str, str]) -> CloudSettings:
    """Return how a storage is opened; errors call it by its URL, without secrets.  Raises: UsageError."""
    return CloudSettings(
        name=part_url(url)[0] if "://" in url else url,
        url=url,
        options=tuple(sorted(given_option(option) for option in options)),
        secrets=tuple(sorted(secrets.items())),
    )

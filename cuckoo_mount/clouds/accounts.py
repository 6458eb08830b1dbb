"""Which clouds have an account in common: services limit requests per account, not per bucket or folder.

Used by the daemon (multi/limits.py).  Pure, any thread, contacts nobody.  Two clouds are of one account if they are at
the same server with the same credentials, as far as their settings say.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final
from urllib.parse import parse_qsl

from cuckoo_mount.clouds.base import CloudSettings
from cuckoo_mount.clouds.registry import REQUESTS_PER_SECOND
from cuckoo_mount.clouds.translate import SECRET_QUERY
from cuckoo_mount.errors import UsageError

RATE_MAX: Final = 10_000.0

Account = tuple[str, ...]
"""A key.  Holds secrets: never shown, never stored."""


@lru_cache(maxsize=64)
def account_of(settings: CloudSettings) -> Account:
    """Return the account that requests to this cloud count for; a folder is an account of its own."""
    scheme, found, rest = settings.url.removeprefix("faulty+").partition("://")
    if not found or scheme in ("osfs", "file"):
        return ("folder", settings.name)
    place, _, query = rest.partition("?")
    authority = place.partition("/")[0]
    credentials, _, host = authority.rpartition("@")
    in_query = dict(parse_qsl(query))
    options = {**in_query, **dict(settings.options)}
    # In a URL of S3, the place of the host has the bucket; the server is an option.
    server = options.get("endpoint_url", "") if scheme == "s3" else host
    secrets = [(key, value) for key, value in sorted(in_query.items()) if SECRET_QUERY.search(key)]
    return (scheme, server, credentials, *(part for pair in (*secrets, *settings.secrets) for part in pair))


def requests_per_second(settings: CloudSettings) -> float | None:
    """Return the limit that the user set, > 0, or None.  Raises: UsageError for what is no such number."""
    text = dict(settings.options).get(REQUESTS_PER_SECOND)
    if text is None:
        return None
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0 < rate <= RATE_MAX:
        wanted = f"requests per second are a number above 0, up to {RATE_MAX:g}"
        raise UsageError(f"cloud {settings.name}: {wanted}, not {text!r}; say --requests-per-second 5, or none")
    return rate

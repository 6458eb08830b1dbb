"""Object names: what may be put on a cloud, and what in a listing can be ours.

Used by every driver.  Pure functions, any thread.  The alphabet is the smallest one that all storages keep apart:
no capitals (case-folding servers), nothing to escape in a URL, and no `~`, with which drivers mark their temporary
files, so that a leftover never looks like an object.
"""

from __future__ import annotations

import re
from typing import Final

from cuckoo_mount.errors import UsageError

NAME_MAX_CHARACTERS: Final = 200
_COMPONENT: Final = r"(?!\.{1,2}(?:/|\Z))[a-z0-9._-]+"
_NAME: Final = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")


def is_object_name(name: str) -> bool:
    """Return whether `name` can be an object of ours: `/`-separated, of [a-z0-9._-], 1 to 200 characters."""
    return len(name) <= NAME_MAX_CHARACTERS and _NAME.fullmatch(name) is not None


def check_object_name(name: str) -> None:
    """Raises: UsageError for a name that no cloud is asked to store."""
    if not is_object_name(name):
        raise UsageError(
            f"object name {name[: NAME_MAX_CHARACTERS + 1]!r} is not allowed: use a-z 0-9 . _ - and /, "
            f"at most {NAME_MAX_CHARACTERS} characters, no empty, '.' or '..' part"
        )


def check_prefix(prefix: str) -> None:
    """Raises: UsageError for a prefix that is neither empty nor the name of a folder followed by `/`."""
    if prefix and not (prefix.endswith("/") and is_object_name(prefix[:-1])):
        raise UsageError(f"prefix {prefix!r} is not allowed: it must be empty or a name that ends with '/'")


def check_range(offset: int, length_bytes: int) -> None:
    """Raises: UsageError for a byte range that starts or ends before 0."""
    if offset < 0 or length_bytes < 0:
        raise UsageError(f"byte range ({offset}, {length_bytes}) is not allowed: both must be 0 or more")

"""Sizes as people write them: `500MB` = 500 × 1000², `10GiB` and `10G` = 10 × 1024³.  Pure functions."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Final

from cuckoo_mount.errors import UsageError
from cuckoo_mount.types import SIZE_MAX_BYTES

_LETTERS: Final = "KMGTP"
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([KMGTP])(i?B)?|B)?", re.IGNORECASE | re.ASCII)


def parse_size(text: str) -> int:
    """Return the number of bytes that `text` names, rounded down.  Raises: UsageError."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{text!r} is no size; write for example 500MB or 10GiB")
    number, letter, suffix = match.groups()
    # As coreutils do: a lone letter is binary, with a B it is decimal.
    base = 1000 if suffix is not None and suffix.upper() == "B" else 1024
    power = _LETTERS.index(letter.upper()) + 1 if letter else 0
    size = int(Fraction(number) * base**power)
    if size > SIZE_MAX_BYTES:
        raise UsageError(f"{text!r} is more than a drive can hold; write for example 10TiB")
    return size


def format_size(size_bytes: int) -> str:
    """Return `size_bytes` so that `parse_size` gives it back exactly, with the largest unit that divides it."""
    for power in range(len(_LETTERS), 0, -1):
        if size_bytes and size_bytes % 1024**power == 0:
            return f"{size_bytes // 1024**power}{_LETTERS[power - 1]}iB"
    for power in range(len(_LETTERS), 0, -1):
        if size_bytes and size_bytes % 1000**power == 0:
            return f"{size_bytes // 1000**power}{_LETTERS[power - 1]}B"
    return str(size_bytes)


def human_size(size_bytes: int) -> str:
    """Return `size_bytes` rounded for people, for example `1.5 GiB`."""
    value, unit = float(size_bytes), "B"
    for letter in _LETTERS:
        if value < 1024:
            break
        value, unit = value / 1024, f"{letter}iB"
    return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"

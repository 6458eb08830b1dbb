"""The drive key's file: one line of 64 hexadecimal digits (52 of base32 are read too), 0600.

Used by the daemon.  Without this key nothing of the drive can be read; it is never overwritten and never logged.
"""

from __future__ import annotations

import base64
import binascii
import logging
from pathlib import Path
from typing import Final

from cuckoo_mount.config.atomic import make_private, write_private_file
from cuckoo_mount.config.paths import shown
from cuckoo_mount.errors import ConfigurationError

DRIVE_KEY_BYTES: Final = 32
_HEX_DIGITS: Final = 2 * DRIVE_KEY_BYTES
_BASE32_DIGITS: Final = 52
_FILE_MAX_BYTES: Final = 4096
log = logging.getLogger(__name__)


def read_drive_key(path: Path) -> bytes:
    """Return the 32-byte drive key.  A file that others may read is made private, with a warning.

    Raises: ConfigurationError if it is missing, cannot be read, or is no key.
    """
    try:
        if make_private(path):
            log.warning("%s could be read by other users of this machine; it is 0600 now", shown(path))
        with path.open("rb") as file:
            text = file.read(_FILE_MAX_BYTES)
    except FileNotFoundError as error:
        raise ConfigurationError(
            f"{shown(path)} is missing; put its backup there, without this key nothing of the drive can be read"
        ) from error
    except OSError as error:
        raise ConfigurationError(
            f"{shown(path)} cannot be read: {error.strerror}; check its owner and rights"
        ) from error
    key = _decode(b"".join(text.split()))
    if key is None:
        raise ConfigurationError(
            f"{shown(path)} is no drive key of {_HEX_DIGITS} hexadecimal digits; put its backup there"
        )
    return key


def write_drive_key(path: Path, key: bytes) -> None:
    """Keep a new drive's key.  Raises: ConfigurationError if the file is there already; OSError."""
    assert len(key) == DRIVE_KEY_BYTES
    try:
        write_private_file(path, key.hex().encode() + b"\n", replace=False)
    except FileExistsError as error:
        raise ConfigurationError(
            f"{shown(path)} is there already; it may be the only copy of a drive's key, move it away first"
        ) from error


def _decode(digits: bytes) -> bytes | None:
    try:
        if len(digits) == _HEX_DIGITS:
            return bytes.fromhex(digits.decode("ascii"))
        if len(digits.rstrip(b"=")) == _BASE32_DIGITS:
            return base64.b32decode(digits.rstrip(b"=").upper() + b"====")
    except (ValueError, binascii.Error):
        pass
    return None

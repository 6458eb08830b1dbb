"""The recovery key: 128 bits that a person can write down, derived from the drive key (docs/format.md, "Keys").

Used by keyslots.py, slots.py and commands.  Pure functions.  It can be shown again whenever the drive key is there,
and so need not be stored anywhere; the way back is one-way: without a key slot it says nothing about the drive key.
"""

from __future__ import annotations

import base64
import unicodedata
from typing import Final

from attrs import Attribute, field, frozen
from blake3 import blake3

from cuckoo_mount.errors import UsageError

RECOVERY_KEY_CONTEXT: Final = "cuckoo-mount 2026-11 recovery key"
SECRET_BYTES: Final = 16
_CHECK_BYTES: Final = 4
_SIGNS: Final = (SECRET_BYTES + _CHECK_BYTES) * 8 // 5
_GROUP: Final = 4
# Crockford's alphabet: no I, L, O, U.  base64 knows the one of RFC 4648, at the same places.
_ALPHABET: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_RFC_4648: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
_TO_SHOWN: Final = str.maketrans(_RFC_4648, _ALPHABET)
_TO_RFC_4648: Final = str.maketrans(_ALPHABET, _RFC_4648)
_FORGIVEN: Final = str.maketrans("OIL", "011")


@frozen(slots=True)
class RecoveryKey:
    """A recovery key.  Its repr does not show it."""

    secret: bytes = field(repr=False)

    @secret.validator
    def _has_its_length(self, _: Attribute[bytes], value: bytes) -> None:
        if len(value) != SECRET_BYTES:
            raise ValueError(f"a recovery key has {SECRET_BYTES} bytes, not {len(value)}")

    def shown(self) -> str:
        """Return it as it is printed: 8 groups of 4 signs; the last 32 bits are a check of the others."""
        digits = base64.b32encode(self.secret + _check(self.secret)).decode("ascii").translate(_TO_SHOWN)
        return "-".join(digits[at : at + _GROUP] for at in range(0, _SIGNS, _GROUP))


def recovery_key_of(drive_key: bytes) -> RecoveryKey:
    """Return the recovery key of a drive; always the same one for the same drive key (32 bytes)."""
    return RecoveryKey(blake3(drive_key, derive_key_context=RECOVERY_KEY_CONTEXT).digest(SECRET_BYTES))


def parse_recovery_key(text: str) -> RecoveryKey:
    """Return what was typed.  Case, spaces, dashes of any kind, O for 0, I and L for 1 make no difference.

    Raises: UsageError when it cannot be a recovery key, with what is wrong; a typo passes once in 2³².
    """
    signs = [sign for sign in text if not sign.isspace() and unicodedata.category(sign) != "Pd"]
    # Only ASCII: the capital of some other letters is one of ours, or two.
    digits = "".join(sign.upper().translate(_FORGIVEN) if sign.isascii() else sign for sign in signs)
    if unknown := next((sign for sign in digits if sign not in _ALPHABET), None):
        raise UsageError(f"a recovery key has no {unknown!r} in it; type the groups as they were printed")
    if len(digits) != _SIGNS:
        raise UsageError(f"a recovery key has {_SIGNS} letters and digits, not {len(digits)}; one is missing or twice")
    data = base64.b32decode(digits.translate(_TO_RFC_4648))
    secret, check = data[:SECRET_BYTES], data[SECRET_BYTES:]
    if check != _check(secret):
        raise UsageError("the recovery key is mistyped; compare it sign by sign with what was printed")
    return RecoveryKey(secret)


def _check(secret: bytes) -> bytes:
    return blake3(secret).digest(_CHECK_BYTES)

"""Key slots: the drive key, encrypted under a passphrase or the recovery key (docs/format.md, "Keys").

Used by slots.py, and by whatever opens a drive from its clouds alone.  Pure functions, thread-safe; with a passphrase
they take `Argon2Cost.memory_kib` of memory and some 0.25 s, so the loop calls them in a thread.

A slot is authenticated as a whole: with one bit changed it does not open.  Its checksum, which anybody can make, only
tells damage (`CloudCorrupt`) from a wrong passphrase (`WrongKey`).
"""

from __future__ import annotations

import struct
import unicodedata
from collections.abc import Iterable
from typing import Final

from attrs import evolve, field, frozen, validators
from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from cuckoo_mount.errors import CloudCorrupt, FormatError, UsageError, WrongKey
from cuckoo_mount.format import FORMAT_VERSION, ID_BYTES, SLOT_KINDS, SLOT_NUMBER_MAX, SlotKind
from cuckoo_mount.layers.keys import DRIVE_KEY_BYTES
from cuckoo_mount.layers.recoverykey import RecoveryKey

SLOT_MAGIC: Final = b"CUCKOOKS"
SALT_BYTES: Final = 16
RECOVERY_SLOT_CONTEXT: Final = "cuckoo-mount 2026-11 recovery slot"
_HEAD: Final = struct.Struct("<8sHHI16sIIII16s")
_WRAPPED_BYTES: Final = DRIVE_KEY_BYTES + 16
_CHECKSUM_BYTES: Final = 16
SLOT_BYTES: Final = _HEAD.size + _WRAPPED_BYTES + _CHECKSUM_BYTES
# A wrapping key serves once, for it depends on a random salt: the nonce need not vary.
_NONCE: Final = bytes(12)

MEMORY_MAX_KIB: Final = 1 << 20
ITERATIONS_MAX: Final = 16
LANES_MAX: Final = 16


@frozen(slots=True)
class Argon2Cost:
    """What one try of a passphrase costs.  The default, RFC 9106's second choice, takes 0.24 s on a 2-core machine.

    The bounds are those of reading: a cloud that changes them cannot make us take more than 1 GiB, for some 20 s.
    """

    memory_kib: int = field(default=64 << 10, validator=[validators.ge(8), validators.le(MEMORY_MAX_KIB)])
    iterations: int = field(default=3, validator=[validators.ge(1), validators.le(ITERATIONS_MAX)])
    lanes: int = field(default=4, validator=[validators.ge(1), validators.le(LANES_MAX)])

    def __attrs_post_init__(self) -> None:
        if self.memory_kib < 8 * self.lanes:
            raise ValueError(f"Argon2 needs 8 KiB per lane, not {self.memory_kib} KiB for {self.lanes} lanes")


DEFAULT_COST: Final = Argon2Cost()


@frozen(slots=True)
class Passphrase:
    """A passphrase as it was typed.  Not empty; its repr does not show it."""

    text: str = field(repr=False, validator=validators.min_len(1))

    def encoded(self) -> bytes:
        """Return what is hashed: NFC, so that two keyboards that compose `é` differently agree; then UTF-8.

        Raises: UsageError for lone surrogates, which is what bytes that are no UTF-8 become.
        """
        try:
            return unicodedata.normalize("NFC", self.text).encode("utf-8")
        except UnicodeEncodeError:
            raise UsageError("the passphrase is no valid UTF-8; type it in a UTF-8 terminal or file") from None


Secret = Passphrase | RecoveryKey


@frozen(slots=True)
class KeySlot:
    """One slot.  `number`: 1 … 2³² - 1, grows with every change.  `cost`: None for the kind recovery.

    `wrapped`: the encrypted drive key; empty only while the slot is being made.
    """

    drive_id: bytes
    number: int = field(validator=[validators.ge(1), validators.le(SLOT_NUMBER_MAX)])
    kind: SlotKind = field(validator=validators.in_(SLOT_KINDS))
    cost: Argon2Cost | None
    salt: bytes
    wrapped: bytes = b""

    def __attrs_post_init__(self) -> None:
        if (self.cost is None) != (self.kind == "recovery"):
            raise ValueError("a passphrase slot has a cost, a recovery slot has none")
        sizes = (len(self.drive_id), len(self.salt), len(self.wrapped))
        if sizes[:2] != (ID_BYTES, SALT_BYTES) or sizes[2] not in (0, _WRAPPED_BYTES):
            raise ValueError(f"not a key slot: drive id, salt and wrapped key of {sizes} bytes")


def make_slot(
    drive_key: bytes, secret: Secret, *, drive_id: bytes, number: int, salt: bytes, cost: Argon2Cost = DEFAULT_COST
) -> KeySlot:
    """Return the slot that `secret` opens.  `salt`: `SALT_BYTES` random bytes, never used before.

    The cost is for passphrases; a recovery key has 128 random bits and needs no slow hash.
    """
    if len(drive_key) != DRIVE_KEY_BYTES:
        raise ValueError(f"a drive key has {DRIVE_KEY_BYTES} bytes, not {len(drive_key)}")
    kind = _kind_of(secret)
    bare = KeySlot(drive_id, number, kind, cost if kind == "passphrase" else None, salt)
    return evolve(bare, wrapped=AESGCM(_wrapping_key(bare, secret)).encrypt(_NONCE, drive_key, _head(bare)))


def open_slot(slot: KeySlot, secret: Secret) -> bytes:
    """Return the drive key.  Raises: WrongKey if `secret` is not what the slot was made with."""
    if _kind_of(secret) != slot.kind:
        raise ValueError(f"a {slot.kind} slot is not opened by a {_kind_of(secret)}")
    try:
        return AESGCM(_wrapping_key(slot, secret)).decrypt(_NONCE, slot.wrapped, _head(slot))
    except InvalidTag:
        raise _wrong_key(slot.kind) from None


def open_slots(slots: Iterable[KeySlot], secret: Secret) -> bytes:
    """Return the drive key from the first slot that `secret` opens, the newest first.

    Raises: WrongKey when it opens none of them, or none is of its kind.
    """
    kind = _kind_of(secret)
    fitting = sorted((slot for slot in slots if slot.kind == kind), key=lambda slot: slot.number, reverse=True)
    if not fitting:
        other = "a recovery key" if kind == "passphrase" else "a passphrase"
        raise WrongKey(f"the drive has no {_WORDS[kind]}; try {other}, or put the key file back")
    for slot in fitting:
        try:
            return open_slot(slot, secret)
        except WrongKey:
            continue
    raise _wrong_key(kind)


def _wrong_key(kind: SlotKind) -> WrongKey:
    """Return the error that says that a secret is not the drive's."""
    if kind == "passphrase":
        return WrongKey("wrong passphrase; check capitals and keyboard layout, or use the recovery key")
    return WrongKey("wrong recovery key: it was typed correctly, but belongs to another drive")


def encode_slot(slot: KeySlot) -> bytes:
    """Return the `SLOT_BYTES` bytes of a slot's object."""
    content = _head(slot) + slot.wrapped
    return content + _checksum(content)


def decode_slot(data: bytes, *, drive_id: bytes, number: int, kind: SlotKind) -> KeySlot:
    """Return the slot with that name.

    Raises: CloudCorrupt (damaged), FormatError (no slot, a newer one, another drive's or another slot's, or parameters
    out of their bounds).
    """
    if data[: len(SLOT_MAGIC)] != SLOT_MAGIC:
        raise FormatError("not a key slot: wrong magic")
    # The version first: a newer one may have another length.
    version = int.from_bytes(data[8:10], "little")
    if version > FORMAT_VERSION and data[-_CHECKSUM_BYTES:] == _checksum(data[:-_CHECKSUM_BYTES]):
        raise FormatError(f"key slot has format {version}, this program knows up to {FORMAT_VERSION}; update it")
    if len(data) != SLOT_BYTES or data[-_CHECKSUM_BYTES:] != _checksum(data[:-_CHECKSUM_BYTES]):
        raise CloudCorrupt(f"key slot {number}.{kind} is damaged")
    _, _, kind_number, own_number, drive, memory_kib, iterations, lanes, _, salt = _HEAD.unpack_from(data)
    if (drive, own_number, kind_number) != (drive_id, number, SLOT_KINDS.index(kind) + 1):
        raise FormatError(f"key slot {number}.{kind} says that it is slot {own_number} of drive {drive.hex()}")
    try:
        cost = Argon2Cost(memory_kib, iterations, lanes) if kind == "passphrase" else None
    except ValueError:
        raise FormatError(
            f"key slot {number}.{kind} asks for {memory_kib} KiB, {iterations} iterations, {lanes} lanes; refused"
        ) from None
    slot = KeySlot(drive, number, kind, cost, salt, data[_HEAD.size : _HEAD.size + _WRAPPED_BYTES])
    if encode_slot(slot) != data:
        raise FormatError(f"key slot {number}.{kind} has something in its zero fields: made by a newer version?")
    return slot


_WORDS: Final[dict[SlotKind, str]] = {"passphrase": "passphrase", "recovery": "recovery key"}


def _kind_of(secret: Secret) -> SlotKind:
    return "passphrase" if isinstance(secret, Passphrase) else "recovery"


def _head(slot: KeySlot) -> bytes:
    cost = (slot.cost.memory_kib, slot.cost.iterations, slot.cost.lanes) if slot.cost is not None else (0, 0, 0)
    kind = SLOT_KINDS.index(slot.kind) + 1
    return _HEAD.pack(SLOT_MAGIC, FORMAT_VERSION, kind, slot.number, slot.drive_id, *cost, 0, slot.salt)


def _wrapping_key(slot: KeySlot, secret: Secret) -> bytes:
    if isinstance(secret, RecoveryKey):
        return blake3(secret.secret + slot.salt, derive_key_context=RECOVERY_SLOT_CONTEXT).digest()
    assert slot.cost is not None
    kdf = Argon2id(
        salt=slot.salt,
        length=32,
        iterations=slot.cost.iterations,
        lanes=slot.cost.lanes,
        memory_cost=slot.cost.memory_kib,
    )
    return kdf.derive(secret.encoded())


def _checksum(content: bytes) -> bytes:
    return blake3(content).digest(_CHECKSUM_BYTES)

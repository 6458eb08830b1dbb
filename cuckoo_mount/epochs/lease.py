"""What a claim of the right to write says, as bytes and back (docs/format.md, "Lease").

Used by whatever takes and watches the lease.  Pure functions.
"""

from __future__ import annotations

import hmac
import json
import os
import struct
from typing import Final

from attrs import asdict, field, frozen, validators
from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cuckoo_mount.epochformat import SALT_BYTES, TERM_MAX, LeaseName
from cuckoo_mount.errors import CloudCorrupt, FormatError
from cuckoo_mount.format import DIGEST_BYTES, FLAG_ENCRYPTED, FORMAT_VERSION
from cuckoo_mount.layers.encryption import NONCE_BYTES
from cuckoo_mount.layers.keys import DriveKeys

LEASE_MAGIC: Final = b"CUCKOOLS"
SEAL_CONTEXT: Final = "cuckoo-mount 2026-11 lease key"
HASH_CONTEXT: Final = "cuckoo-mount 2026-11 lease"
LEASE_BYTES_MAX: Final = 4096
HOST_BYTES_MAX: Final = 256
_HEADER: Final = struct.Struct("<8sHHI16sQII16s")
# The key depends on a salt that was never used before, so the nonce need not vary.
_NONCE: Final = bytes(NONCE_BYTES)


@frozen(slots=True)
class Lease:
    """A claim.  `time_ns`: when it was made or renewed, by its writer's clock; for people, nothing is decided by it.

    `host`: for people, too.  `counter`: 1 in a new claim, one more at each renewal.
    `released`: its writer ended in good order and writes no more under this term.
    """

    time_ns: int = field(validator=[validators.ge(0), validators.le(TERM_MAX)])
    host: str = field(validator=validators.max_len(HOST_BYTES_MAX))
    counter: int = field(validator=[validators.ge(1), validators.le(TERM_MAX)])
    released: bool = False


def seal_lease(lease: Lease, name: LeaseName, keys: DriveKeys, drive_id: bytes, *, encrypted: bool) -> bytes:
    """Return the object to put under `name`; other bytes at every call."""
    head = _header(name, drive_id, os.urandom(SALT_BYTES), encrypted=encrypted)
    body = json.dumps(asdict(lease), separators=(",", ":")).encode()
    if encrypted:
        body = AESGCM(keys.derive(SEAL_CONTEXT, head)).encrypt(_NONCE, body, None)
    return head + body + _hash(head + body, keys)


def unseal_lease(data: bytes, name: LeaseName, keys: DriveKeys, drive_id: bytes) -> Lease:
    """Return the claim in the object `name`, verified.

    Raises: CloudCorrupt (it is not what a writer of this drive put there), FormatError (newer than this program).
    """
    if not _HEADER.size + DIGEST_BYTES <= len(data) <= LEASE_BYTES_MAX or data[:8] != LEASE_MAGIC:
        raise CloudCorrupt("object is no lease")
    if not hmac.compare_digest(_hash(data[:-DIGEST_BYTES], keys), data[-DIGEST_BYTES:]):
        raise CloudCorrupt("lease was not made with this drive's key, or was changed")
    head, body = data[: _HEADER.size], data[_HEADER.size : -DIGEST_BYTES]
    _, version, flags, *_, salt = _HEADER.unpack(head)
    if version > FORMAT_VERSION:
        raise FormatError(f"lease has format {version}, this program knows up to {FORMAT_VERSION}; update cuckoo-mount")
    encrypted = bool(flags & FLAG_ENCRYPTED)
    if head != _header(name, drive_id, salt, encrypted=encrypted):
        raise CloudCorrupt(f"lease is not claim {name} of this drive")
    try:
        if encrypted:
            body = AESGCM(keys.derive(SEAL_CONTEXT, head)).decrypt(_NONCE, body, None)
        fields = json.loads(body)
        return Lease(
            int(fields["time_ns"]), str(fields["host"]), int(fields["counter"]), fields.get("released") is True
        )
    except (InvalidTag, ValueError, KeyError, TypeError, RecursionError):
        raise FormatError("lease has a content that this program does not know") from None


def _header(name: LeaseName, drive_id: bytes, salt: bytes, *, encrypted: bool) -> bytes:
    flags = FLAG_ENCRYPTED if encrypted else 0
    return _HEADER.pack(LEASE_MAGIC, FORMAT_VERSION, flags, 0, drive_id, name.term, name.writer, 0, salt)


def _hash(data: bytes, keys: DriveKeys) -> bytes:
    return blake3(data, key=keys.derive(HASH_CONTEXT)).digest()

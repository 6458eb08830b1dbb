"""The encryption layer: AES-256-GCM with a key per pack and the body's offset as nonce (docs/format.md, "Sealing").

Used by layers/stack.py.  Thread-safe, no state.  A nonce never serves twice under a key: a pack is written once, front
to back, and no two of its bodies begin at the same offset.
"""

from __future__ import annotations

import struct
from typing import Final

from attrs import frozen
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cuckoo_mount.errors import CloudCorrupt
from cuckoo_mount.format import FORMAT_VERSION
from cuckoo_mount.layers.base import SealContext
from cuckoo_mount.layers.keys import DriveKeys

NONCE_BYTES: Final = 12
TAG_BYTES: Final = 16
_VERSION: Final = struct.pack("<H", FORMAT_VERSION)


@frozen(slots=True)
class Encryption:
    """A layer.  Ciphertext is `TAG_BYTES` longer than what is given."""

    keys: DriveKeys

    def encode(self, data: bytes, context: SealContext) -> bytes:
        """Return `data` encrypted and authenticated together with `context`."""
        return self._cipher(context).encrypt(_nonce(context), data, _associated(context))

    def decode(self, data: bytes, context: SealContext) -> bytes:
        """Return what was encoded.  Raises: CloudCorrupt when a single bit of data, context or key differs."""
        if len(data) < TAG_BYTES:
            raise CloudCorrupt(f"encrypted data has {len(data)} bytes, not even those of its tag")
        try:
            return self._cipher(context).decrypt(_nonce(context), data, _associated(context))
        except InvalidTag:
            raise CloudCorrupt("encrypted data is not what was stored, or was stored elsewhere") from None

    def _cipher(self, context: SealContext) -> AESGCM:
        return AESGCM(self.keys.pack_key(context.pack_id))


def _nonce(context: SealContext) -> bytes:
    return context.offset.to_bytes(NONCE_BYTES, "little")


def _associated(context: SealContext) -> bytes:
    return _VERSION + context.drive_id + context.digest

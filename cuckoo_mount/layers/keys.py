"""All keys of a drive, derived from its drive key by BLAKE3's derive_key (docs/format.md, "Keyed hash", "Sealing").

Used by packs and layers, in the daemon and in worker processes: the record is picklable.  Its repr shows no key; it
must not be logged in other ways either.  Pure functions.
"""

from __future__ import annotations

import hmac
from typing import Final

from attrs import Attribute, field, frozen
from blake3 import blake3

from cuckoo_mount.errors import CloudCorrupt
from cuckoo_mount.format import ID_BYTES

DRIVE_KEY_BYTES: Final = 32
CHUNK_ID_CONTEXT: Final = "cuckoo-mount 2026-11 chunk id"
SHARE_DIGEST_CONTEXT: Final = "cuckoo-mount 2026-11 share digest"
PACK_KEY_CONTEXT: Final = "cuckoo-mount 2026-11 pack key"


def _derive(context: str, material: bytes) -> bytes:
    return blake3(material, derive_key_context=context).digest()


@frozen(slots=True)
class DriveKeys:
    """The drive key (32 bytes) and what follows from it; without the drive key, nothing stored can be verified."""

    drive_key: bytes = field(repr=False)
    chunk_id_key: bytes = field(init=False, repr=False, eq=False)
    share_digest_key: bytes = field(init=False, repr=False, eq=False)

    @drive_key.validator
    def _has_its_length(self, _: Attribute[bytes], value: bytes) -> None:
        if len(value) != DRIVE_KEY_BYTES:
            raise ValueError(f"a drive key has {DRIVE_KEY_BYTES} bytes, not {len(value)}")

    @chunk_id_key.default
    def _derive_chunk_id_key(self) -> bytes:
        return _derive(CHUNK_ID_CONTEXT, self.drive_key)

    @share_digest_key.default
    def _derive_share_digest_key(self) -> bytes:
        return _derive(SHARE_DIGEST_CONTEXT, self.drive_key)

    def pack_key(self, pack_id: bytes) -> bytes:
        """Return the 32-byte AES key of one pack; no two packs share one."""
        if len(pack_id) != ID_BYTES:
            raise ValueError(f"a pack id has {ID_BYTES} bytes, not {len(pack_id)}")
        return _derive(PACK_KEY_CONTEXT, self.drive_key + pack_id)

    def derive(self, context: str, material: bytes = b"") -> bytes:
        """Return the 32-byte key for one more purpose, from the drive key and `material`; `context` names it."""
        return _derive(context, self.drive_key + material)

    def chunk_digest(self, plain: bytes | memoryview) -> bytes:
        """Return the keyed hash of plain bytes: of a chunk, or of a pack's index."""
        return blake3(plain, key=self.chunk_id_key).digest()

    def check_chunk(self, plain: bytes | memoryview, digest: bytes) -> None:
        """Return if `plain` hashes to `digest` (I-11).  Raises: CloudCorrupt."""
        if not hmac.compare_digest(self.chunk_digest(plain), digest):
            raise CloudCorrupt("plain bytes do not have the hash they were stored with")

    def share_hasher(self) -> blake3:
        """Return a hasher for a share's whole content, to be fed in order."""
        return blake3(key=self.share_digest_key)

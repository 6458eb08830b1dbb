"""The keys of epochs and leases, and what is authenticated with them (docs/format.md, "Epochs").

Used by the other modules of this folder.  Pure functions, thread-safe.  A header is believed, also what it says about
encryption, once its keyed hash fits: nobody without the drive key can make one.
"""

from __future__ import annotations

import hmac
from typing import Final

from attrs import field, frozen
from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cuckoo_mount.epochformat import (
    EPOCH_HEADER_BYTES,
    EpochFooter,
    EpochHeader,
    EpochName,
    pack_epoch_header,
    unpack_epoch_footer,
    unpack_epoch_header,
)
from cuckoo_mount.errors import CloudCorrupt, FormatError
from cuckoo_mount.format import DIGEST_BYTES
from cuckoo_mount.layers.base import Layer, SealContext
from cuckoo_mount.layers.compression import Compression
from cuckoo_mount.layers.encryption import NONCE_BYTES, TAG_BYTES
from cuckoo_mount.layers.keys import DriveKeys

HEADER_CONTEXT: Final = "cuckoo-mount 2026-11 epoch header"
SEAL_CONTEXT: Final = "cuckoo-mount 2026-11 epoch key"
RECORDS_CONTEXT: Final = "cuckoo-mount 2026-11 epoch records"
OBJECT_CONTEXT: Final = "cuckoo-mount 2026-11 epoch object"


@frozen(slots=True)
class EpochKeys:
    """What follows from the drive key for epochs."""

    drive: DriveKeys = field(repr=False)
    header_key: bytes = field(init=False, repr=False, eq=False)
    records_key: bytes = field(init=False, repr=False, eq=False)
    object_key: bytes = field(init=False, repr=False, eq=False)

    @header_key.default
    def _derive_header_key(self) -> bytes:
        return self.drive.derive(HEADER_CONTEXT)

    @records_key.default
    def _derive_records_key(self) -> bytes:
        return self.drive.derive(RECORDS_CONTEXT)

    @object_key.default
    def _derive_object_key(self) -> bytes:
        return self.drive.derive(OBJECT_CONTEXT)

    def records_hasher(self) -> blake3:
        """Return a hasher for the plain records, to be fed in order."""
        return blake3(key=self.records_key)

    def object_hasher(self) -> blake3:
        """Return a hasher for an object's bytes but for the last 32, to be fed in order."""
        return blake3(key=self.object_key)


def header_bytes(header: EpochHeader, keys: EpochKeys) -> bytes:
    """Return the first `EPOCH_HEADER_BYTES` bytes of an epoch: the header and its keyed hash."""
    fields = pack_epoch_header(header)
    return fields + blake3(fields, key=keys.header_key).digest()


def parse_header(data: bytes, keys: EpochKeys, drive_id: bytes) -> EpochHeader:
    """Return the header at the start of `data`, verified.

    Raises: FormatError (no epoch, damaged, newer), CloudCorrupt (another drive's, or changed).
    """
    header = unpack_epoch_header(data)
    fields, found = data[: EPOCH_HEADER_BYTES - DIGEST_BYTES], data[EPOCH_HEADER_BYTES - DIGEST_BYTES :][:DIGEST_BYTES]
    if header.drive_id != drive_id:
        raise CloudCorrupt(f"epoch belongs to drive {header.drive_id.hex()}, not to {drive_id.hex()}")
    if not hmac.compare_digest(blake3(fields, key=keys.header_key).digest(), found):
        raise CloudCorrupt("epoch header was not made with this drive's key, or was changed")
    return header


def parse_ends(
    head: bytes, tail: bytes, keys: EpochKeys, drive_id: bytes, name: EpochName
) -> tuple[EpochHeader, EpochFooter]:
    """Return what the first `EPOCH_HEADER_BYTES` and the last `EPOCH_FOOTER_BYTES` bytes of object `name` say.

    Enough for choosing a chain without reading whole objects; that the object's hash is the one its footer gives is
    verified when it is read.  Raises: FormatError, CloudCorrupt.
    """
    header = parse_header(head, keys, drive_id)
    if header.name != name:
        raise CloudCorrupt(f"object is epoch {header.name}, not {name}")
    return header, unpack_epoch_footer(tail)


@frozen(slots=True)
class SegmentEncryption:
    """A layer as in packs, with the key of one epoch; the associated data is the segment's head."""

    key: bytes = field(repr=False)

    def encode(self, data: bytes, context: SealContext) -> bytes:
        """Return `data` encrypted and bound to its place and plain length."""
        return AESGCM(self.key).encrypt(_nonce(context), data, _associated(context))

    def decode(self, data: bytes, context: SealContext) -> bytes:
        """Return what was encoded.  Raises: CloudCorrupt when a single bit of data, context or key differs."""
        if len(data) < TAG_BYTES:
            raise CloudCorrupt(f"encrypted segment has {len(data)} bytes, not even those of its tag")
        try:
            return AESGCM(self.key).decrypt(_nonce(context), data, _associated(context))
        except InvalidTag:
            raise CloudCorrupt("encrypted segment is not what was stored") from None


def _nonce(context: SealContext) -> bytes:
    return context.offset.to_bytes(NONCE_BYTES, "little")


def _associated(context: SealContext) -> bytes:
    return context.plain_bytes.to_bytes(4, "little")


class SegmentSealer:
    """Seals and opens the segments of one object: compression, then encryption unless the drive was made without."""

    def __init__(self, header: EpochHeader, keys: EpochKeys) -> None:
        self._drive_id = header.drive_id
        self._salt = header.salt
        self._layers: tuple[Layer, ...] = (Compression(),)
        if header.encrypted:
            # Of the whole header: two objects that differ in anything have different keys, and the salt always differs.
            key = keys.drive.derive(SEAL_CONTEXT, pack_epoch_header(header))
            self._layers = (Compression(), SegmentEncryption(key))

    def seal(self, plain: bytes, offset: int) -> bytes:
        """Return the body that will stand at byte `offset` of the object."""
        context = self._context(offset, len(plain))
        for layer in self._layers:
            plain = layer.encode(plain, context)
        return plain

    def unseal(self, sealed: bytes, offset: int, plain_bytes: int) -> bytes:
        """Return the `plain_bytes` bytes sealed in the body at `offset`.  Raises: CloudCorrupt, FormatError."""
        context = self._context(offset, plain_bytes)
        for layer in reversed(self._layers):
            sealed = layer.decode(sealed, context)
        if len(sealed) != plain_bytes:
            raise FormatError(f"segment at {offset} has {len(sealed)} bytes instead of {plain_bytes}")
        return sealed

    def _context(self, offset: int, plain_bytes: int) -> SealContext:
        return SealContext(self._drive_id, self._salt, offset, bytes(DIGEST_BYTES), plain_bytes)

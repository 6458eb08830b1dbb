"""Reads whole packs without the catalogue: everything is found through the footer, and everything is checked.

Used by tests, and by whatever has the objects and the drive key only (fsck, extractor, recovery).  Pure functions of
bytes in memory; a pack is a little over 16 MiB.  Never believes what the object says about its own encryption.
"""

from __future__ import annotations

from attrs import frozen

from cuckoo_mount.errors import CloudCorrupt
from cuckoo_mount.format import (
    DIGEST_BYTES,
    ENTRY_BYTES,
    FOOTER_BYTES,
    HEADER_BYTES,
    PackEntry,
    parse_pack_footer,
    parse_pack_header,
    parse_pack_index,
)
from cuckoo_mount.layers.base import SealContext
from cuckoo_mount.layers.keys import DriveKeys
from cuckoo_mount.layers.stack import stack_of
from cuckoo_mount.packs.builder import INDEX_DIGEST_BYTES


@frozen(slots=True)
class InspectedPack:
    """A pack that is whole.  `chunks`: plain bytes, in the order of `entries`."""

    entries: tuple[PackEntry, ...]
    chunks: tuple[bytes, ...]


def share_digest(keys: DriveKeys, data: bytes) -> bytes:
    """Return the keyed hash that the catalogue keeps of a share with this content."""
    return keys.share_hasher().update(data).digest()


def inspect_pack(data: bytes, drive_id: bytes, pack_id: bytes, keys: DriveKeys, *, encrypted: bool) -> InspectedPack:
    """Return everything that is in pack `pack_id` (as the object's name says), each byte of it verified.

    `encrypted`: what the drive is, not the object.
    Raises: FormatError, CloudCorrupt for anything that `build_pack` would not have written.
    """
    entries = read_index(data, drive_id, pack_id, keys, encrypted=encrypted)
    chunks = tuple(unseal_entry(data, entry, drive_id, pack_id, keys, encrypted=encrypted) for entry in entries)
    return InspectedPack(entries, chunks)


def read_index(
    data: bytes, drive_id: bytes, pack_id: bytes, keys: DriveKeys, *, encrypted: bool
) -> tuple[PackEntry, ...]:
    """Return the entries of a whole pack without opening its chunks, which may be damaged.

    Raises: FormatError, CloudCorrupt when header, index or footer are not whole or contradict each other.
    """
    found_id, claims_encrypted = parse_pack_header(data, drive_id)
    if found_id != pack_id:
        raise CloudCorrupt(f"object is pack {found_id.hex()}, not {pack_id.hex()}")
    if claims_encrypted != encrypted:
        raise CloudCorrupt("pack header contradicts the drive about encryption")
    footer = parse_pack_footer(data)
    if footer.index_offset < HEADER_BYTES or footer.index_offset + footer.index_bytes + FOOTER_BYTES != len(data):
        raise CloudCorrupt("pack is not as long as its footer says")
    if footer.entry_count > footer.index_offset - HEADER_BYTES:  # before memory is taken for so many
        raise CloudCorrupt(f"pack has no room for {footer.entry_count} chunks")
    context = SealContext(drive_id, pack_id, footer.index_offset, bytes(DIGEST_BYTES), footer.entry_count * ENTRY_BYTES)
    sealed = data[footer.index_offset : footer.index_offset + footer.index_bytes]
    index = stack_of(keys, encrypted=encrypted).unseal(sealed, context)
    if keys.chunk_digest(index)[:INDEX_DIGEST_BYTES] != footer.index_digest:
        raise CloudCorrupt("pack index does not have the hash that the footer gives")
    entries = tuple(parse_pack_index(index))
    _check_order(entries, footer.index_offset)
    return entries


def unseal_entry(
    data: bytes, entry: PackEntry, drive_id: bytes, pack_id: bytes, keys: DriveKeys, *, encrypted: bool
) -> bytes:
    """Return the verified plain bytes of one chunk of a whole pack.  Raises: CloudCorrupt, FormatError."""
    context = SealContext(drive_id, pack_id, entry.offset, entry.digest, entry.plain_bytes)
    sealed = data[entry.offset : entry.offset + entry.sealed_bytes]
    plain = stack_of(keys, encrypted=encrypted).unseal(sealed, context)
    keys.check_chunk(plain, entry.digest)
    return plain


def _check_order(entries: tuple[PackEntry, ...], end: int) -> None:
    position = HEADER_BYTES
    for entry in entries:
        if entry.offset != position or entry.sealed_bytes < 1:
            raise CloudCorrupt(f"pack index has a gap or an overlap at offset {position}")
        position += entry.sealed_bytes
    if position != end:
        raise CloudCorrupt(f"pack has {end - position} bytes that no index entry names")

"""Everything persistent on a cloud, byte by byte: names, header layout, versions, magic.  See docs/format.md.

Used by packs, clouds and tools.  Pure functions; `FormatError` for anything that does not follow the document.
"""

from __future__ import annotations

import struct
from typing import Final, Literal, get_args

from attrs import frozen

from cuckoo_mount.errors import FormatError

FORMAT_VERSION: Final = 1
ID_BYTES: Final = 16
DIGEST_BYTES: Final = 32
ROOT_PREFIX: Final = "cuckoo"

SlotKind = Literal["passphrase", "recovery"]
SLOT_KINDS: Final[tuple[SlotKind, ...]] = get_args(SlotKind)
SLOT_NUMBER_MAX: Final = 2**32 - 1

PACK_MAGIC: Final = b"CUCKOOPK"
FOOTER_MAGIC: Final = b"CUCKOOFT"
FLAG_ENCRYPTED: Final = 1

_HEADER: Final = struct.Struct("<8sHHI16s16s16x")
_FOOTER: Final = struct.Struct("<QII8s16s8s")
_ENTRY: Final = struct.Struct("<QQQQII8x32s")
HEADER_BYTES: Final = _HEADER.size
FOOTER_BYTES: Final = _FOOTER.size
ENTRY_BYTES: Final = _ENTRY.size


def drive_prefix(drive_id: bytes) -> str:
    """Return the prefix, ending with `/`, of everything that a drive keeps on a cloud."""
    if len(drive_id) != ID_BYTES:
        raise ValueError(f"a drive id has {ID_BYTES} bytes, not {len(drive_id)}")
    return f"{ROOT_PREFIX}/{drive_id.hex()}/"


def identity_name(drive_id: bytes) -> str:
    """Return the name of drive.json."""
    return f"{drive_prefix(drive_id)}drive.json"


def packs_prefix(drive_id: bytes) -> str:
    """Return the prefix, ending with `/`, of all shares of all packs."""
    return f"{drive_prefix(drive_id)}packs/"


def share_length(pack_bytes: int, data_shares: int) -> int:
    """Return the length of each share of a pack that is cut into so many data shares; a copy is one of them."""
    return -(-pack_bytes // data_shares)


def pack_share_name(drive_id: bytes, pack_id: bytes, share: int) -> str:
    """Return the object name of share `share` (0 … 255) of a pack."""
    if len(pack_id) != ID_BYTES or not 0 <= share <= 255:
        raise ValueError("a pack id has 16 bytes, a share number is 0 to 255")
    name = pack_id.hex()
    return f"{packs_prefix(drive_id)}{name[:2]}/{name}.{share}"


def parse_pack_share_name(drive_id: bytes, name: str) -> tuple[bytes, int]:
    """Return (pack id, share number) of an object name made by `pack_share_name`.  Raises: FormatError."""
    prefix = packs_prefix(drive_id)
    stem, dot, share = name.removeprefix(prefix).rpartition(".")
    folder, slash, pack = stem.partition("/")
    try:
        # At most three digits: int() refuses thousands of them with an error of its own.
        pack_id, number = bytes.fromhex(pack), int(share[:3])
    except ValueError:
        raise FormatError(f"{name} is not the name of a share") from None
    # Made again and compared: whatever else hex and int accept (spaces, capitals, other digits) is not ours.
    known = name.startswith(prefix) and dot and slash and folder and len(pack_id) == ID_BYTES and 0 <= number <= 255
    if not known or pack_share_name(drive_id, pack_id, number) != name:
        raise FormatError(f"{name} is not the name of a share")
    return pack_id, number


def keys_prefix(drive_id: bytes) -> str:
    """Return the prefix, ending with `/`, of all key slots."""
    return f"{drive_prefix(drive_id)}keys/"


def key_slot_name(drive_id: bytes, number: int, kind: SlotKind) -> str:
    """Return the object name of key slot `number` (1 … `SLOT_NUMBER_MAX`)."""
    if not 1 <= number <= SLOT_NUMBER_MAX:
        raise ValueError(f"a key slot's number is 1 to {SLOT_NUMBER_MAX}, not {number}")
    return f"{keys_prefix(drive_id)}{number}.{kind}"


def parse_key_slot_name(drive_id: bytes, name: str) -> tuple[int, SlotKind]:
    """Return (number, kind) of an object name made by `key_slot_name`.  Raises: FormatError."""
    digits, _, word = name.removeprefix(keys_prefix(drive_id)).partition(".")
    for kind in SLOT_KINDS:
        # Ten digits at most, and made again and compared, as for shares.
        number = int(digits) if word == kind and digits.isdecimal() and len(digits) <= 10 else 0
        if 1 <= number <= SLOT_NUMBER_MAX and key_slot_name(drive_id, number, kind) == name:
            return number, kind
    raise FormatError(f"{name} is not the name of a key slot")


@frozen(slots=True)
class PackEntry:
    """One sealed chunk in a pack's index: whose it was when packed, where it lies, what it must hash to."""

    version: int
    ino: int
    index: int
    offset: int
    sealed_bytes: int
    plain_bytes: int
    digest: bytes


@frozen(slots=True)
class PackFooter:
    """The last bytes of a pack: where its index lies.  `index_digest`: first 16 bytes of the index's keyed hash."""

    index_offset: int
    index_bytes: int
    entry_count: int
    index_digest: bytes


def pack_header(drive_id: bytes, pack_id: bytes, *, encrypted: bool) -> bytes:
    """Return the first `HEADER_BYTES` bytes of a pack."""
    return _HEADER.pack(PACK_MAGIC, FORMAT_VERSION, FLAG_ENCRYPTED if encrypted else 0, 0, drive_id, pack_id)


def parse_pack_header(data: bytes, drive_id: bytes) -> tuple[bytes, bool]:
    """Return (pack id, encrypted).  Raises: FormatError for another drive's pack, a newer format, or no pack at all."""
    if len(data) < HEADER_BYTES:
        raise FormatError(f"pack header has {len(data)} of {HEADER_BYTES} bytes")
    magic, version, flags, _, drive, pack_id = _HEADER.unpack_from(data)
    if magic != PACK_MAGIC:
        raise FormatError("not a pack: wrong magic")
    if version > FORMAT_VERSION:
        raise FormatError(f"pack has format {version}, this program knows up to {FORMAT_VERSION}; update cuckoo-mount")
    if drive != drive_id:
        raise FormatError(f"pack belongs to drive {drive.hex()}, not to {drive_id.hex()}")
    if version < 1 or data[:HEADER_BYTES] != pack_header(drive_id, pack_id, encrypted=bool(flags & FLAG_ENCRYPTED)):
        # Whoever gives a meaning to a flag or a zero field raises the format: older readers must not guess.
        raise FormatError(f"pack header is damaged: format {version}, flags {flags:#x}, or its zero fields")
    return pack_id, bool(flags & FLAG_ENCRYPTED)


def pack_index(entries: list[PackEntry]) -> bytes:
    """Return the plain index of a pack."""
    return b"".join(
        _ENTRY.pack(e.version, e.ino, e.index, e.offset, e.sealed_bytes, e.plain_bytes, e.digest) for e in entries
    )


def parse_pack_index(data: bytes) -> list[PackEntry]:
    """Return the entries of a plain index.  Raises: FormatError."""
    if len(data) % ENTRY_BYTES:
        raise FormatError(f"pack index of {len(data)} bytes is no multiple of {ENTRY_BYTES}")
    entries = [PackEntry(*fields) for fields in _ENTRY.iter_unpack(data)]
    if pack_index(entries) != data:
        raise FormatError("pack index has something in its zero fields: damaged, or newer than this program")
    return entries


def pack_footer(footer: PackFooter) -> bytes:
    """Return the last `FOOTER_BYTES` bytes of a pack."""
    return _FOOTER.pack(
        footer.index_offset, footer.index_bytes, footer.entry_count, bytes(8), footer.index_digest, FOOTER_MAGIC
    )


def parse_pack_footer(data: bytes) -> PackFooter:
    """Return the footer found in the last bytes of `data`.  Raises: FormatError."""
    if len(data) < FOOTER_BYTES:
        raise FormatError("pack is shorter than its footer")
    offset, length, count, zero, digest, magic = _FOOTER.unpack(data[-FOOTER_BYTES:])
    if magic != FOOTER_MAGIC or any(zero):
        raise FormatError("pack has no footer: cut short or damaged")
    return PackFooter(offset, length, count, digest)

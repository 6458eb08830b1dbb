"""Names and fixed parts of epochs and leases on a cloud, byte by byte: see docs/format.md, "Epochs" and "Lease".

Used by epochs and by whatever lists `meta/` and `lease/`.  Pure functions without keys: what is authenticated here is
checked by epochs/sealing.py.  `FormatError` for anything that does not follow the document.
"""

from __future__ import annotations

import re
import struct
from typing import Final, Literal, get_args

from attrs import field, frozen, validators

from cuckoo_mount.errors import FormatError
from cuckoo_mount.format import DIGEST_BYTES, FLAG_ENCRYPTED, FORMAT_VERSION, ID_BYTES, drive_prefix

EpochKind = Literal["snapshot", "journal"]
EPOCH_KINDS: Final[tuple[EpochKind, ...]] = get_args(EpochKind)
_KIND_NUMBERS: Final[dict[int, EpochKind]] = {1: "snapshot", 2: "journal"}
_NUMBER_OF_KIND: Final = {kind: number for number, kind in _KIND_NUMBERS.items()}

EPOCH_MAGIC: Final = b"CUCKOOEP"
EPOCH_FOOTER_MAGIC: Final = b"CUCKOOEF"
SALT_BYTES: Final = 16
NO_PREDECESSOR: Final = bytes(DIGEST_BYTES)
TERM_MAX: Final = 2**63 - 1
"""Of terms and epoch numbers: what a signed 64-bit column holds."""
WRITER_MAX: Final = 2**32 - 1

_HEADER: Final = struct.Struct("<8sHHHH16sQQQII32s16s16s")
_FOOTER: Final = struct.Struct("<8sQQ8s32s32s")
_SEGMENT: Final = struct.Struct("<II")
EPOCH_HEADER_BYTES: Final = _HEADER.size + DIGEST_BYTES
EPOCH_FOOTER_BYTES: Final = _FOOTER.size
SEGMENT_HEAD_BYTES: Final = _SEGMENT.size

_EPOCH_PATTERN: Final = re.compile(r"([0-9a-f]{16})-([0-9a-f]{16})-([0-9a-f]{8})\.(snapshot|journal)", re.ASCII)
_LEASE_PATTERN: Final = re.compile(r"([0-9a-f]{16})\.([0-9a-f]{8})", re.ASCII)


@frozen(slots=True, order=True)
class EpochName:
    """What the name of an epoch's object says.  The order is that of (term, epoch, writer).

    `term`: 1 … `TERM_MAX`, of the lease it was written under.  `epoch`: 1 … `TERM_MAX`.  `writer`: of the state folder
    that wrote it, 0 … `WRITER_MAX`.
    """

    term: int = field(validator=[validators.ge(1), validators.le(TERM_MAX)])
    epoch: int = field(validator=[validators.ge(1), validators.le(TERM_MAX)])
    writer: int = field(validator=[validators.ge(0), validators.le(WRITER_MAX)])
    kind: EpochKind = field(validator=validators.in_(EPOCH_KINDS))

    def __str__(self) -> str:
        """Return the last part of the object's name."""
        return f"{self.term:016x}-{self.epoch:016x}-{self.writer:08x}.{self.kind}"


@frozen(slots=True, order=True)
class LeaseName:
    """What the name of a claim says; ranges as in `EpochName`."""

    term: int = field(validator=[validators.ge(1), validators.le(TERM_MAX)])
    writer: int = field(validator=[validators.ge(0), validators.le(WRITER_MAX)])

    def __str__(self) -> str:
        """Return the last part of the object's name."""
        return f"{self.term:016x}.{self.writer:08x}"


@frozen(slots=True)
class EpochHeader:
    """What the first `EPOCH_HEADER_BYTES` bytes of an epoch's object say.

    `time_ns`: of the cut, by the writer's clock.  `schema`: of the rows (schema.py, JOURNAL_SCHEMA).  `predecessor`:
    object hash of the epoch before, zeros for the first.  `salt`: random, never used twice, so that no two objects
    share a key even if one was begun twice under the same name.
    """

    drive_id: bytes
    name: EpochName
    time_ns: int = field(validator=[validators.ge(0), validators.le(2**64 - 1)])
    schema: int = field(validator=[validators.ge(1), validators.le(2**16 - 1)])
    predecessor: bytes
    encrypted: bool
    salt: bytes

    def __attrs_post_init__(self) -> None:
        sizes = (len(self.drive_id), len(self.predecessor), len(self.salt))
        if sizes != (ID_BYTES, DIGEST_BYTES, SALT_BYTES):
            raise ValueError(f"not an epoch header: drive id, predecessor and salt of {sizes} bytes")
        if (self.predecessor == NO_PREDECESSOR) != (self.name.epoch == 1):
            raise ValueError(f"epoch {self.name.epoch}: the first epoch, and no other, has no predecessor")


@frozen(slots=True)
class EpochFooter:
    """What the last `EPOCH_FOOTER_BYTES` bytes say.  `plain_bytes`: of all records; their keyed hash; the object's."""

    records: int
    plain_bytes: int
    records_hash: bytes
    object_hash: bytes


def meta_prefix(drive_id: bytes) -> str:
    """Return the prefix, ending with `/`, of all epochs."""
    return f"{drive_prefix(drive_id)}meta/"


def epoch_name(drive_id: bytes, name: EpochName) -> str:
    """Return the object name of an epoch."""
    return f"{meta_prefix(drive_id)}{name}"


def parse_epoch_name(drive_id: bytes, name: str) -> EpochName:
    """Return what an object name made by `epoch_name` says.  Raises: FormatError."""
    prefix = meta_prefix(drive_id)
    found = _EPOCH_PATTERN.fullmatch(name, len(prefix)) if name.startswith(prefix) else None
    if found is None:
        raise FormatError(f"{name} is not the name of an epoch")
    term, epoch, writer = (int(found[part], 16) for part in (1, 2, 3))
    if not (1 <= term <= TERM_MAX and 1 <= epoch <= TERM_MAX):
        raise FormatError(f"{name} is not the name of an epoch: term and epoch are 1 to {TERM_MAX}")
    return EpochName(term, epoch, writer, "snapshot" if found[4] == "snapshot" else "journal")


def lease_prefix(drive_id: bytes) -> str:
    """Return the prefix, ending with `/`, of all claims."""
    return f"{drive_prefix(drive_id)}lease/"


def lease_name(drive_id: bytes, name: LeaseName) -> str:
    """Return the object name of a claim."""
    return f"{lease_prefix(drive_id)}{name}"


def parse_lease_name(drive_id: bytes, name: str) -> LeaseName:
    """Return what an object name made by `lease_name` says.  Raises: FormatError."""
    prefix = lease_prefix(drive_id)
    found = _LEASE_PATTERN.fullmatch(name, len(prefix)) if name.startswith(prefix) else None
    if found is None or not 1 <= int(found[1], 16) <= TERM_MAX:
        raise FormatError(f"{name} is not the name of a lease")
    return LeaseName(int(found[1], 16), int(found[2], 16))


def pack_epoch_header(header: EpochHeader) -> bytes:
    """Return the header without the keyed hash at its end."""
    name = header.name
    return _HEADER.pack(
        *(EPOCH_MAGIC, FORMAT_VERSION, FLAG_ENCRYPTED if header.encrypted else 0),
        *(_NUMBER_OF_KIND[name.kind], header.schema, header.drive_id, name.term, name.epoch, header.time_ns),
        *(name.writer, 0, header.predecessor, header.salt, bytes(16)),
    )


def unpack_epoch_header(data: bytes) -> EpochHeader:
    """Return what a header says, before its keyed hash is compared: not to be believed yet.  Raises: FormatError."""
    if len(data) < EPOCH_HEADER_BYTES:
        raise FormatError(f"epoch header has {len(data)} of {EPOCH_HEADER_BYTES} bytes")
    magic, version, flags, kind, schema, drive, term, epoch, time_ns, writer, _, predecessor, salt, _ = (
        _HEADER.unpack_from(data)
    )
    if magic != EPOCH_MAGIC:
        raise FormatError("not an epoch: wrong magic")
    if version > FORMAT_VERSION:
        raise FormatError(f"epoch has format {version}, this program knows up to {FORMAT_VERSION}; update cuckoo-mount")
    try:
        name = EpochName(term, epoch, writer, _KIND_NUMBERS[kind])
        header = EpochHeader(drive, name, time_ns, schema, predecessor, bool(flags & FLAG_ENCRYPTED), salt)
    except (ValueError, KeyError):
        raise FormatError("epoch header is damaged: a field is out of its range") from None
    if version < 1 or data[: _HEADER.size] != pack_epoch_header(header):
        # As for packs: whoever gives a meaning to a flag or a zero field raises the format.
        raise FormatError(f"epoch header is damaged: format {version}, flags {flags:#x}, or its zero fields")
    return header


def pack_epoch_footer(footer: EpochFooter) -> bytes:
    """Return the last `EPOCH_FOOTER_BYTES` bytes of an epoch."""
    return _FOOTER.pack(
        EPOCH_FOOTER_MAGIC, footer.records, footer.plain_bytes, bytes(8), footer.records_hash, footer.object_hash
    )


def unpack_epoch_footer(data: bytes) -> EpochFooter:
    """Return the footer found in the last bytes of `data`.  Raises: FormatError."""
    if len(data) < EPOCH_FOOTER_BYTES:
        raise FormatError("epoch is shorter than its footer")
    magic, records, plain_bytes, zero, records_hash, object_hash = _FOOTER.unpack(data[-EPOCH_FOOTER_BYTES:])
    if magic != EPOCH_FOOTER_MAGIC or any(zero):
        raise FormatError("epoch has no footer: cut short or damaged")
    return EpochFooter(records, plain_bytes, records_hash, object_hash)


def pack_segment_head(sealed_bytes: int, plain_bytes: int) -> bytes:
    """Return the `SEGMENT_HEAD_BYTES` bytes before a segment's body."""
    return _SEGMENT.pack(sealed_bytes, plain_bytes)


def unpack_segment_head(data: bytes) -> tuple[int, int]:
    """Return (sealed bytes, plain bytes) of the segment that begins here, not to be believed yet."""
    sealed, plain = _SEGMENT.unpack(data)
    return sealed, plain

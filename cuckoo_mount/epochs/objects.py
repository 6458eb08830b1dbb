"""Writes epoch objects on the local disk, and reads them whole or not at all (docs/format.md, "Epochs").

Used by whatever takes cuts, recovers and follows.  Everything here blocks and runs in a thread; neither end ever holds
more than one segment, a little over 1 MiB at most.  Owns: an epoch's file is complete under its name or absent; nothing
of an object is given out before every byte of it was compared with the hash in its footer.
"""

from __future__ import annotations

import hmac
import io
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final

from attrs import frozen

from cuckoo_mount.epochformat import (
    EPOCH_FOOTER_BYTES,
    EPOCH_HEADER_BYTES,
    SALT_BYTES,
    SEGMENT_HEAD_BYTES,
    EpochFooter,
    EpochHeader,
    EpochName,
    pack_epoch_footer,
    pack_segment_head,
    unpack_segment_head,
)
from cuckoo_mount.epochs.records import decode, encode
from cuckoo_mount.epochs.sealing import EpochKeys, SegmentSealer, header_bytes, parse_ends
from cuckoo_mount.errors import CloudCorrupt, DataUnavailable, FileSystemError, FormatError, NoSpace
from cuckoo_mount.format import DIGEST_BYTES
from cuckoo_mount.metadata.records import JournalRecord
from cuckoo_mount.metadata.schema import JOURNAL_SCHEMA

SEGMENT_BYTES: Final = 256 << 10
"""A segment is closed when its records reach this many bytes; with 1 MiB zstd saves 2 % more."""
RECORD_BYTES_MAX: Final = 1 << 20
SEGMENT_BYTES_MAX: Final = SEGMENT_BYTES + RECORD_BYTES_MAX
_SEALED_BYTES_MAX: Final = SEGMENT_BYTES_MAX + 64
_READ_BYTES: Final = 1 << 20


@frozen(slots=True)
class EpochSummary:
    """A whole object.  `object_hash`: what the next epoch names as its predecessor."""

    size_bytes: int
    object_hash: bytes
    records: int


def new_header(drive_id: bytes, name: EpochName, *, time_ns: int, predecessor: bytes, encrypted: bool) -> EpochHeader:
    """Return the header for an object that is about to be written; another one for every try.

    Raises: ValueError when the first epoch has a predecessor or another one has none.
    """
    return EpochHeader(drive_id, name, time_ns, JOURNAL_SCHEMA, predecessor, encrypted, os.urandom(SALT_BYTES))


def write_epoch(path: Path, header: EpochHeader, keys: EpochKeys, records: Iterable[JournalRecord]) -> EpochSummary:
    """Write the object to file `path`, durably; it appears there when it is complete.  Blocks.

    Raises: NoSpace, DataUnavailable (the local disk refused), ValueError (a record that cannot be), and whatever
    `records` raises; then nothing is left behind but perhaps a file `<path>.part`, which the next try overwrites.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        with open(part, "wb", buffering=_READ_BYTES) as file:
            os.fchmod(file.fileno(), 0o600)
            body = _Body(header, keys)
            for piece in body.pieces(records):
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        os.rename(part, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise _local_error(error, path) from None
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return body.summary()


class _Body:
    """The bytes of one object, piece by piece."""

    def __init__(self, header: EpochHeader, keys: EpochKeys) -> None:
        self._head = header_bytes(header, keys)
        self._sealer = SegmentSealer(header, keys)
        self._object_hasher = keys.object_hasher()
        self._records_hasher = keys.records_hasher()
        self._size_bytes = 0
        self._plain_bytes = 0
        self._records = 0

    def pieces(self, records: Iterable[JournalRecord]) -> Iterator[bytes]:
        """Yield header, segments and footer; each is counted and hashed as it passes."""
        yield self._pass(self._head)
        for plain in self._segments(records):
            offset = self._size_bytes + SEGMENT_HEAD_BYTES
            sealed = self._sealer.seal(plain, offset)
            yield self._pass(pack_segment_head(len(sealed), len(plain)) + sealed)
        records_hash = self._records_hasher.digest()
        draft = EpochFooter(self._records, self._plain_bytes, records_hash, bytes(DIGEST_BYTES))
        self._object_hasher.update(pack_epoch_footer(draft)[:-DIGEST_BYTES])
        self._size_bytes += EPOCH_FOOTER_BYTES
        footer = EpochFooter(self._records, self._plain_bytes, records_hash, self._object_hasher.digest())
        yield pack_epoch_footer(footer)

    def summary(self) -> EpochSummary:
        return EpochSummary(self._size_bytes, self._object_hasher.digest(), self._records)

    def _pass(self, piece: bytes) -> bytes:
        self._object_hasher.update(piece)
        self._size_bytes += len(piece)
        return piece

    def _segments(self, records: Iterable[JournalRecord]) -> Iterator[bytes]:
        """Yield the plain bytes of the segments: whole records each, none empty."""
        parts: list[bytes] = []
        length = 0
        for record in records:
            encoded = encode(record)
            if len(encoded) > RECORD_BYTES_MAX:
                raise ValueError(f"a record of {record.table} has {len(encoded)} bytes, more than {RECORD_BYTES_MAX}")
            parts.append(encoded)
            length += len(encoded)
            self._records += 1
            if length >= SEGMENT_BYTES:
                yield self._count(b"".join(parts))
                parts, length = [], 0
        if parts:
            yield self._count(b"".join(parts))

    def _count(self, plain: bytes) -> bytes:
        self._records_hasher.update(plain)
        self._plain_bytes += len(plain)
        return plain


class OpenEpoch:
    """A verified object, open for reading; a context manager.  One thread at a time.

    The file must not change while it is open; it is the reader's own copy on the local disk.
    """

    def __init__(
        self, file: BinaryIO, size_bytes: int, header: EpochHeader, footer: EpochFooter, keys: EpochKeys
    ) -> None:
        self.header = header
        self.summary = EpochSummary(size_bytes, footer.object_hash, footer.records)
        self._file = file
        self._footer = footer
        self._keys = keys

    def __enter__(self) -> OpenEpoch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file.  May be called twice."""
        self._file.close()

    def records(self) -> Iterator[JournalRecord]:
        """Yield all records, from the first on at every call.

        Whoever applies them commits only after the last one: that their count and hash are those of the footer is
        found out at the end.  Raises: FormatError, CloudCorrupt (what wrote the object was not this program as it is,
        for its bytes were verified), DataUnavailable (the local disk).
        """
        sealer = SegmentSealer(self.header, self._keys)
        hasher = self._keys.records_hasher()
        count = plain_bytes = 0
        offset, end = EPOCH_HEADER_BYTES, self.summary.size_bytes - EPOCH_FOOTER_BYTES
        while offset < end:
            offset, plain = self._segment(sealer, offset, end)
            hasher.update(plain)
            plain_bytes += len(plain)
            for record in decode(plain):
                count += 1
                yield record
        footer = self._footer
        if (count, plain_bytes) != (footer.records, footer.plain_bytes) or not hmac.compare_digest(
            hasher.digest(), footer.records_hash
        ):
            raise CloudCorrupt(f"epoch {self.header.name} does not have the records that its footer promises")

    def _segment(self, sealer: SegmentSealer, offset: int, end: int) -> tuple[int, bytes]:
        """Return where the segment at `offset` ends, and its plain bytes."""
        head = _read_at(self._file, offset, min(SEGMENT_HEAD_BYTES, end - offset))
        if len(head) < SEGMENT_HEAD_BYTES:
            raise FormatError(f"epoch has {len(head)} bytes too many at {offset}")
        sealed_bytes, plain_bytes = unpack_segment_head(head)
        offset += SEGMENT_HEAD_BYTES
        if not 1 <= plain_bytes <= SEGMENT_BYTES_MAX or not 1 <= sealed_bytes <= min(_SEALED_BYTES_MAX, end - offset):
            raise FormatError(f"epoch claims a segment of {sealed_bytes} bytes at {offset}, {plain_bytes} when opened")
        sealed = _read_at(self._file, offset, sealed_bytes)
        return offset + sealed_bytes, sealer.unseal(sealed, offset, plain_bytes)


def read_epoch(source: Path | bytes, keys: EpochKeys, drive_id: bytes, name: EpochName) -> OpenEpoch:
    """Open the object in file `source`, or with these bytes, that was stored as `name`; verify it whole.  Blocks.

    Raises: CloudCorrupt, FormatError (it is not what was stored, or newer than this program), DataUnavailable (the
    local disk).
    """
    try:
        file: BinaryIO = io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb")  # noqa: SIM115
        try:
            return _verified(file, keys, drive_id, name)
        except BaseException:
            file.close()
            raise
    except OSError as error:
        assert isinstance(source, Path)
        raise _local_error(error, source) from None


def _verified(file: BinaryIO, keys: EpochKeys, drive_id: bytes, name: EpochName) -> OpenEpoch:
    size_bytes = file.seek(0, os.SEEK_END)
    if size_bytes < EPOCH_HEADER_BYTES + EPOCH_FOOTER_BYTES:
        raise FormatError(f"epoch {name} has {size_bytes} bytes, less than its header and footer")
    head = _read_at(file, 0, EPOCH_HEADER_BYTES)
    tail = _read_at(file, size_bytes - EPOCH_FOOTER_BYTES, EPOCH_FOOTER_BYTES)
    header, footer = parse_ends(head, tail, keys, drive_id, name)
    if header.schema != JOURNAL_SCHEMA:
        raise FormatError(
            f"epoch {name} has rows of schema {header.schema}, this program knows {JOURNAL_SCHEMA}; update cuckoo-mount"
        )
    hasher = keys.object_hasher()
    file.seek(0)
    left = size_bytes - DIGEST_BYTES
    while left and (piece := file.read(min(left, _READ_BYTES))):
        hasher.update(piece)
        left -= len(piece)
    if left or not hmac.compare_digest(hasher.digest(), footer.object_hash):
        raise CloudCorrupt(f"epoch {name} is not what was stored")
    return OpenEpoch(file, size_bytes, header, footer, keys)


def _read_at(file: BinaryIO, offset: int, length_bytes: int) -> bytes:
    try:
        file.seek(offset)
        data = file.read(length_bytes)
    except OSError as error:
        raise DataUnavailable(f"an epoch's file: {error.strerror}; check the local disk") from None
    if len(data) != length_bytes:
        raise CloudCorrupt(f"epoch ends at {offset + len(data)}, before what it says it has")
    return data


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _local_error(error: OSError, path: Path) -> FileSystemError:
    text = f"epoch {path.name}: {error.strerror}"
    if error.errno == NoSpace.errno:
        return NoSpace(f"{text}; free some space on the local disk")
    return DataUnavailable(f"{text}; check the local disk")

"""Journal records as bytes and back (docs/format.md, "Records").

Used by objects.py, for tens of thousands of records per second: plain code, no layers of helpers.  Pure functions.
There is one encoding per record: what `encode` would not make is refused, so that equal records have equal hashes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, cast

from cuckoo_mount.errors import FormatError
from cuckoo_mount.metadata.records import JournalRecord
from cuckoo_mount.metadata.schema import JOURNALED, JournaledTable

Field = int | bytes | str | None
Key = tuple[int | bytes | str, ...]

GONE: Final = 0x80
"""Added to the table's number when the row is gone and no values follow."""
_POSITIVE: Final = 0x80
_NEGATIVE: Final = 0x90
_NULL: Final = 0xA0
_BYTES: Final = 0xA1
_TEXT: Final = 0xA2
_BYTES_MARK: Final = bytes((_BYTES,))
_TEXT_MARK: Final = bytes((_TEXT,))
_NULL_MARK: Final = bytes((_NULL,))
_HEADS: Final = tuple(bytes((number,)) for number in range(256))
_INT_MIN: Final = -(1 << 63)
_INT_MAX: Final = (1 << 63) - 1
_LEAST: Final = {
    mark + length: 1 << 8 * (length - 1) if length > 1 else least
    for mark, least in ((_POSITIVE, 128), (_NEGATIVE, 0))
    for length in range(1, 9)
} | {mark: 1 << 64 for mark in range(_POSITIVE, _NULL) if not 1 <= mark & 0x0F <= 8}
"""The least number that is written with so many bytes, by mark; of marks that mean nothing, more than any number is."""

_BY_NAME: Final[Mapping[str, JournaledTable]] = {table.name: table for table in JOURNALED}
_BY_NUMBER: Final[Mapping[int, tuple[str, int, int]]] = {
    table.number: (table.name, len(table.keys), len(table.values)) for table in JOURNALED
}


def encode(record: JournalRecord) -> bytes:
    """Return the record as bytes.

    Raises: ValueError for an unknown table, a wrong number of columns, or a value that no column can have.
    """
    table = _BY_NAME.get(record.table)
    if table is None or len(record.key) != len(table.keys) or None in record.key:
        raise ValueError(f"no journaled table has such a key: {record.table}{record.key}")
    values = record.values
    if values is None:
        return b"".join((_HEADS[table.number | GONE], *map(_encode_field, record.key)))
    if len(values) != len(table.values):
        raise ValueError(f"table {table.name} has {len(table.values)} values, not {len(values)}")
    return b"".join((_HEADS[table.number], *map(_encode_field, record.key), *map(_encode_field, values)))


def decode(data: bytes) -> Iterator[JournalRecord]:
    """Yield the records of which `data` consists.

    Raises: FormatError for anything that `encode` would not have made, also a table or a column unknown here.
    """
    position, end = 0, len(data)
    try:
        while position < end:
            head = data[position]
            known = _BY_NUMBER.get(head & ~GONE)
            if known is None:
                raise FormatError(f"epoch has rows of table {head & ~GONE}, unknown here; update cuckoo-mount")
            name, keys, values = known
            fields, position = _decode_fields(data, position + 1, keys if head & GONE else keys + values)
            key = tuple(fields[:keys])
            if None in key:
                raise FormatError("epoch record has a key without a value")
            yield JournalRecord(name, cast("Key", key), None if head & GONE else tuple(fields[keys:]))
    except IndexError:
        raise FormatError("epoch record is cut short") from None


def _encode_field(value: Field) -> bytes:
    if isinstance(value, int):
        if 0 <= value < 128:
            return _HEADS[value]
        return _encode_big(value)
    if value is None:
        return _NULL_MARK
    if isinstance(value, bytes):
        return _BYTES_MARK + _encode_field(len(value)) + value
    text = value.encode("utf-8")
    return _TEXT_MARK + _encode_field(len(text)) + text


def _encode_big(value: int) -> bytes:
    if not _INT_MIN <= value <= _INT_MAX:
        raise ValueError(f"{value} does not fit into 64 bits")
    if value >= 0:
        length = (value.bit_length() + 7) >> 3
        return _HEADS[_POSITIVE + length] + value.to_bytes(length, "little")
    rest = -1 - value
    length = (rest.bit_length() + 7) >> 3 or 1
    return _HEADS[_NEGATIVE + length] + rest.to_bytes(length, "little")


def _decode_fields(data: bytes, position: int, count: int) -> tuple[list[Field], int]:
    """Return `count` fields that begin at `position`, and where they end.  IndexError: `data` ends before."""
    fields: list[Field] = []
    add = fields.append
    for _ in range(count):
        mark = data[position]
        position += 1
        if mark < 0x80:
            add(mark)
        elif mark < _NULL:
            start, position = position, position + (mark & 0x0F)
            number = int.from_bytes(data[start:position], "little")
            if position > len(data) or not _LEAST[mark] <= number <= _INT_MAX:
                raise FormatError("epoch record has a number that is cut short, too big or not in its shortest form")
            add(number if mark < _NEGATIVE else -1 - number)
        elif mark in (_BYTES, _TEXT):
            length, start = data[position], position + 1
            if length >= 0x80:
                length, start = _decode_length(data, position)
            position = start + length
            body = data[start:position]
            if len(body) != length:
                raise FormatError(f"epoch record claims {length} bytes where {len(body)} are left")
            add(body if mark == _BYTES else _decode_text(body))
        elif mark == _NULL:
            add(None)
        else:
            raise FormatError(f"epoch record has a field of unknown kind {mark:#x}: damaged, or a newer version")
    return fields, position


def _decode_length(data: bytes, position: int) -> tuple[int, int]:
    """Return the length ≥ 128 that stands at `position`, and where it ends."""
    if not _POSITIVE < data[position] < _NEGATIVE:
        raise FormatError("epoch record has a length that is no number")
    (length,), end = _decode_fields(data, position, 1)
    assert isinstance(length, int), "its mark says so"
    return length, end


def _decode_text(body: bytes) -> str:
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError:
        raise FormatError("epoch record has text that is no UTF-8") from None

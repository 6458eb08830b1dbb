"""Records as bytes and back: one encoding each, nothing else accepted, nothing raised but FormatError."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cuckoo_mount.epochs.records import decode, encode
from cuckoo_mount.errors import FormatError
from cuckoo_mount.metadata.records import JournalRecord
from tests.epochs.epochtools import records


@pytest.mark.slow
@given(st.lists(records(), max_size=6))
def test_there_and_back(found: list[JournalRecord]) -> None:
    assert list(decode(b"".join(encode(record) for record in found))) == found


@pytest.mark.slow
@given(st.lists(records(), min_size=1, max_size=3), st.data())
def test_damaged_is_refused_or_another_record(found: list[JournalRecord], data: st.DataObject) -> None:
    plain = bytearray(b"".join(encode(record) for record in found))
    bit = data.draw(st.integers(0, len(plain) * 8 - 1))
    plain[bit >> 3] ^= 1 << (bit & 7)
    check_canonical(bytes(plain))


@pytest.mark.slow
@given(st.lists(records(), min_size=1, max_size=3), st.data())
def test_cut_short(found: list[JournalRecord], data: st.DataObject) -> None:
    pieces = [encode(record) for record in found]
    plain = b"".join(pieces)
    ends = {sum(map(len, pieces[:count])) for count in range(len(pieces) + 1)}
    length = data.draw(st.integers(0, len(plain)).filter(lambda at: at not in ends))
    with pytest.raises(FormatError):
        list(decode(plain[:length]))


def test_a_number_cut_short() -> None:
    """-1 has a byte of zero, which is also what is read where nothing is left."""
    with pytest.raises(FormatError):
        list(decode(encode(JournalRecord("setting", (-1,), None))[:-1]))


@given(st.binary(max_size=60))
@example(b"\x05" + b"\xa1" * 2000)
@example(b"\x05\xa1\x88" + b"\xff" * 8)
def test_anything(plain: bytes) -> None:
    check_canonical(plain)


def check_canonical(plain: bytes) -> None:
    """Assert that `plain` is refused, or is exactly what its records are encoded as."""
    try:
        found = list(decode(plain))
    except FormatError:
        return
    assert b"".join(encode(record) for record in found) == plain


def test_documented_bytes() -> None:
    assert encode(JournalRecord("chunk", (2, 300), (127,))) == b"\x07" + b"\x02" + b"\x82\x2c\x01" + b"\x7f"
    assert encode(JournalRecord("dentry", (1, b"n"), None)) == b"\x84" + b"\x01" + b"\xa1\x01n"
    assert encode(JournalRecord("setting", ("k",), ("ä",))) == b"\x01" + b"\xa2\x01k" + b"\xa2\x02\xc3\xa4"
    assert encode(JournalRecord("chunk", (-1, -129), (128,))) == b"\x07" + b"\x91\x00" + b"\x91\x80" + b"\x81\x80"
    pack = JournalRecord("pack", (1,), (b"", "1", 0, 0, 0, 0, None))
    assert encode(pack) == b"\x09\x01" + b"\xa1\x00" + b"\xa2\x011" + bytes(4) + b"\xa0"


@pytest.mark.parametrize(
    ("plain", "why"),
    [
        (b"\x00", "unknown"),
        (b"\x0b\x01", "unknown"),
        (b"\x07\x02\x03\xa3", "kind"),
        (b"\x07\x02\x03\x81\x7f", "shortest"),
        (b"\x07\x02\x03\x82\xff\x00", "shortest"),
        (b"\x07\x02\x03\x92\xff\x00", "shortest"),
        (b"\x07\x02\x03\x88" + b"\xff" * 8, "too big"),
        (b"\x07\x02\x03\x80", "shortest"),
        (b"\x07\x02\x03\x89" + b"\x01" * 9, "shortest"),
        (b"\x07\x02\x03", "cut short"),
        (b"\x87\xa0\x01", "key"),
        (b"\x05\x01\xa1\x7fabc", "127 bytes where 3"),
        (b"\x05\x01\xa1\x91\x00", "length"),
        (b"\x01\xa2\x01\xff\xa2\x00", "UTF-8"),
        (b"\x01\xa2\x03\xed\xa0\x80\xa2\x00", "UTF-8"),
    ],
)
def test_refused(plain: bytes, why: str) -> None:
    with pytest.raises(FormatError, match=why):
        list(decode(plain))


@pytest.mark.parametrize(
    "record",
    [
        JournalRecord("held", (1, 2), (3,)),
        JournalRecord("chunk", (1,), (3,)),
        JournalRecord("chunk", (1, 2), (3, 4)),
        JournalRecord("chunk", (1, 2), (1 << 63,)),
        JournalRecord("chunk", (1, 2), (-(1 << 63) - 1,)),
        JournalRecord("setting", ("k",), ("\ud800",)),
    ],
)
def test_not_to_be_written(record: JournalRecord) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  UnicodeEncodeError is one, too
        encode(record)

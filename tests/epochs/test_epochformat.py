"""Names, headers and footers of epochs and leases: made and read back, everything else refused."""

from __future__ import annotations

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from cuckoo_mount.epochformat import (
    EPOCH_FOOTER_BYTES,
    EPOCH_HEADER_BYTES,
    TERM_MAX,
    WRITER_MAX,
    EpochFooter,
    EpochName,
    LeaseName,
    epoch_name,
    lease_name,
    pack_epoch_footer,
    pack_epoch_header,
    parse_epoch_name,
    parse_lease_name,
    unpack_epoch_footer,
    unpack_epoch_header,
)
from cuckoo_mount.epochs.sealing import header_bytes, parse_ends, parse_header
from cuckoo_mount.errors import CloudCorrupt, FormatError
from tests.epochs.epochtools import DRIVE, KEYS, OTHER_KEYS, header_of, name_of

NUMBERS = st.integers(1, TERM_MAX)
WRITERS = st.integers(0, WRITER_MAX)
PREFIX = "cuckoo/000102030405060708090a0b0c0d0e0f/"


def test_names_are_those_of_the_contract() -> None:
    name = EpochName(3, 255, 0xC0FFEE, "snapshot")
    assert epoch_name(DRIVE, name) == f"{PREFIX}meta/0000000000000003-00000000000000ff-00c0ffee.snapshot"
    assert lease_name(DRIVE, LeaseName(3, 0xC0FFEE)) == f"{PREFIX}lease/0000000000000003.00c0ffee"


@pytest.mark.slow
@given(NUMBERS, NUMBERS, WRITERS, st.sampled_from(["snapshot", "journal"]))
def test_names_there_and_back(term: int, epoch: int, writer: int, kind: str) -> None:
    name = EpochName(term, epoch, writer, "snapshot" if kind == "snapshot" else "journal")
    assert parse_epoch_name(DRIVE, epoch_name(DRIVE, name)) == name
    lease = LeaseName(term, writer)
    assert parse_lease_name(DRIVE, lease_name(DRIVE, lease)) == lease
    assert len(epoch_name(DRIVE, name)) <= 200


@pytest.mark.parametrize(
    "name",
    [
        "meta/0000000000000001-0000000000000001-00000007.snapshot",
        f"{PREFIX}lease/0000000000000001-0000000000000001-00000007.snapshot",
        f"{PREFIX}meta/0000000000000001-0000000000000001-00000007.other",
        f"{PREFIX}meta/0000000000000001-0000000000000001-00000007.snapshot.part",
        f"{PREFIX}meta/0000000000000001-0000000000000001-00000007.journal\n",
        f"{PREFIX}meta/000000000000000A-0000000000000001-00000007.journal",
        f"{PREFIX}meta/000000000000000\u0661-0000000000000001-00000007.journal",
        f"{PREFIX}meta/00000000000000001-0000000000000001-00000007.journal",
        f"{PREFIX}meta/0000000000000000-0000000000000001-00000007.journal",
        f"{PREFIX}meta/0000000000000001-0000000000000000-00000007.journal",
        f"{PREFIX}meta/8000000000000000-0000000000000001-00000007.journal",
        f"{PREFIX}meta/",
        f"{PREFIX}lease/0000000000000000.00000007",
        f"{PREFIX}lease/0000000000000001.7",
        "",
    ],
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(FormatError):
        parse_epoch_name(DRIVE, name)
    with pytest.raises(FormatError):
        parse_lease_name(DRIVE, name)


@pytest.mark.slow
@given(NUMBERS, NUMBERS, WRITERS, st.booleans(), st.integers(0, 2**64 - 1), st.integers(1, 2**16 - 1))
def test_header_there_and_back(term: int, epoch: int, writer: int, encrypted: bool, time_ns: int, schema: int) -> None:
    name = name_of(epoch, term=term, writer=writer, kind="snapshot" if schema % 2 else "journal")
    header = evolve(header_of(name, encrypted=encrypted), time_ns=time_ns, schema=schema)
    data = header_bytes(header, KEYS)
    assert len(data) == EPOCH_HEADER_BYTES == 160
    assert parse_header(data, KEYS, DRIVE) == header


def test_header_layout() -> None:
    header = evolve(header_of(name_of(258, term=3, writer=4)), time_ns=6, schema=9)
    data = pack_epoch_header(header)
    assert data[:8] == b"CUCKOOEP"
    assert [int.from_bytes(data[at : at + 2], "little") for at in (8, 10, 12, 14)] == [1, 1, 2, 9]
    assert data[16:32] == DRIVE
    assert [int.from_bytes(data[at : at + 8], "little") for at in (32, 40, 48)] == [3, 258, 6]
    assert data[56:64] == b"\x04" + bytes(7)
    assert data[64:96] == header.predecessor
    assert data[96:112] == header.salt
    assert data[112:] == bytes(16)


@pytest.mark.parametrize("encrypted", [True, False])
def test_every_bit_of_a_header_counts(encrypted: bool) -> None:
    data = header_bytes(header_of(name_of(2), encrypted=encrypted), KEYS)
    for bit in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[bit >> 3] ^= 1 << (bit & 7)
        with pytest.raises((FormatError, CloudCorrupt)):
            parse_header(bytes(flipped), KEYS, DRIVE)
    for length in range(len(data)):
        with pytest.raises(FormatError):
            parse_header(data[:length], KEYS, DRIVE)


def test_header_of_another_drive_or_key_or_format() -> None:
    data = header_bytes(header_of(name_of(2)), KEYS)
    with pytest.raises(CloudCorrupt, match="belongs to drive"):
        parse_header(data, KEYS, bytes(16))
    with pytest.raises(CloudCorrupt, match="key"):
        parse_header(data, OTHER_KEYS, DRIVE)
    with pytest.raises(FormatError, match="update"):
        unpack_epoch_header(data[:8] + b"\x02\x00" + data[10:])


def test_ends_must_be_those_of_the_name() -> None:
    head = header_bytes(header_of(name_of(2)), KEYS)
    footer = EpochFooter(1, 2, bytes(32), b"h" * 32)
    tail = pack_epoch_footer(footer)
    assert parse_ends(head, tail, KEYS, DRIVE, name_of(2))[1] == footer
    for other in (name_of(3), name_of(2, term=2), name_of(2, writer=1), name_of(2, kind="snapshot")):
        with pytest.raises(CloudCorrupt, match="object is epoch"):
            parse_ends(head, tail, KEYS, DRIVE, other)


def test_footer_there_and_back() -> None:
    footer = EpochFooter(2**63, 5, b"r" * 32, b"o" * 32)
    data = pack_epoch_footer(footer)
    assert len(data) == EPOCH_FOOTER_BYTES == 96
    assert unpack_epoch_footer(b"before" + data) == footer
    for bad in (data[1:], b"x" + data[1:], data[:24] + b"\x01" + data[25:]):
        with pytest.raises(FormatError):
            unpack_epoch_footer(bad)


@pytest.mark.parametrize(
    ("epoch", "predecessor"), [(1, b"\x01" * 32), (2, bytes(32))], ids=["first-with", "second-without"]
)
def test_only_the_first_epoch_has_no_predecessor(epoch: int, predecessor: bytes) -> None:
    with pytest.raises(ValueError, match="predecessor"):
        evolve(header_of(name_of(epoch)), predecessor=predecessor)

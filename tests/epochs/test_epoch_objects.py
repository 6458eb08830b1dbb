"""Whole objects: round trips, every flipped bit and truncation refused, atomic files, bounded memory."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import evolve
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cuckoo_mount.epochformat import (
    EPOCH_FOOTER_BYTES,
    EPOCH_HEADER_BYTES,
    EpochFooter,
    pack_epoch_footer,
    pack_segment_head,
)
from cuckoo_mount.epochs.objects import RECORD_BYTES_MAX, SEGMENT_BYTES_MAX, read_epoch, write_epoch
from cuckoo_mount.epochs.records import encode
from cuckoo_mount.epochs.sealing import SegmentSealer, header_bytes, parse_ends
from cuckoo_mount.errors import CloudCorrupt, DataUnavailable, FormatError
from cuckoo_mount.metadata.records import JournalRecord
from tests.epochs.epochtools import DRIVE, KEYS, OTHER_KEYS, header_of, name_of, read, records, write

SOME = [JournalRecord("setting", ("k",), ("v",)), JournalRecord("dentry", (1, b"\xff\xfe"), None)]


@pytest.mark.slow
@given(st.lists(records(), max_size=8), st.booleans(), st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
def test_there_and_back(tmp_path: Path, found: list[JournalRecord], encrypted: bool, first: bool) -> None:
    path, name, summary = write(tmp_path, found, name_of(1 if first else 2), encrypted=encrypted)
    assert read(path, name) == found
    assert read(path.read_bytes(), name) == found
    with read_epoch(path, KEYS, DRIVE, name) as epoch:
        assert epoch.summary == summary
        assert epoch.header.encrypted == encrypted
        assert list(epoch.records()) == list(epoch.records())
    assert summary.size_bytes == path.stat().st_size
    assert summary.records == len(found)


@pytest.mark.parametrize("encrypted", [True, False])
def test_every_flipped_bit_is_found(tmp_path: Path, encrypted: bool) -> None:
    path, name, _ = write(tmp_path, SOME, encrypted=encrypted)
    data = path.read_bytes()
    for bit in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[bit >> 3] ^= 1 << (bit & 7)
        with pytest.raises((FormatError, CloudCorrupt)):
            read_epoch(bytes(flipped), KEYS, DRIVE, name)


@pytest.mark.parametrize("encrypted", [True, False])
def test_every_truncation_is_found(tmp_path: Path, encrypted: bool) -> None:
    path, name, _ = write(tmp_path, SOME, encrypted=encrypted)
    data = path.read_bytes()
    for length in range(len(data)):
        with pytest.raises((FormatError, CloudCorrupt)):
            read_epoch(data[:length], KEYS, DRIVE, name)
        with pytest.raises((FormatError, CloudCorrupt)):
            read_epoch(data[length:] if length else b"\0" + data, KEYS, DRIVE, name)
    with pytest.raises((FormatError, CloudCorrupt)):
        read_epoch(data + b"\0", KEYS, DRIVE, name)


def test_pieces_of_two_objects_do_not_fit(tmp_path: Path) -> None:
    one = write(tmp_path, SOME, name_of(2))[0].read_bytes()
    two = write(tmp_path, SOME, name_of(2))[0].read_bytes()
    assert len(one) == len(two)
    assert one[112 + EPOCH_HEADER_BYTES :] != two[112 + EPOCH_HEADER_BYTES :], "each has a key of its own"
    for at in (EPOCH_HEADER_BYTES, len(one) - EPOCH_FOOTER_BYTES):
        with pytest.raises(CloudCorrupt):
            read_epoch(one[:at] + two[at:], KEYS, DRIVE, name_of(2))


def test_other_name_drive_key_or_schema(tmp_path: Path) -> None:
    path, name, _ = write(tmp_path, SOME, name_of(5))
    for other in (name_of(6), name_of(5, term=2), name_of(5, kind="snapshot"), name_of(5, writer=1)):
        with pytest.raises(CloudCorrupt):
            read_epoch(path, KEYS, DRIVE, other)
    with pytest.raises(CloudCorrupt):
        read_epoch(path, KEYS, bytes(16), name)
    with pytest.raises(CloudCorrupt):
        read_epoch(path, OTHER_KEYS, DRIVE, name)
    newer = evolve(header_of(name), schema=999)
    write_epoch(path, newer, KEYS, SOME)
    with pytest.raises(FormatError, match="update cuckoo-mount"):
        read_epoch(path, KEYS, DRIVE, name)


def test_plaintext_is_not_in_an_encrypted_object(tmp_path: Path) -> None:
    secret = [JournalRecord("dentry", (1, b"a name nobody should see"), (2, 3))]
    assert b"nobody" not in write(tmp_path, secret)[0].read_bytes()
    assert b"nobody" in write(tmp_path, secret, encrypted=False)[0].read_bytes()


def test_file_is_whole_or_absent(tmp_path: Path) -> None:
    def failing() -> Iterator[JournalRecord]:
        yield from SOME
        raise RuntimeError("a made-up failure")

    path = tmp_path / str(name_of(1))
    with pytest.raises(RuntimeError):
        write_epoch(path, header_of(name_of(1)), KEYS, failing())
    assert os.listdir(tmp_path) == []
    path.with_name(f"{path.name}.part").write_bytes(b"left by a crash")
    write(tmp_path, SOME)
    assert os.listdir(tmp_path) == [path.name]
    assert path.stat().st_mode & 0o777 == 0o600


def test_local_disk_refuses(tmp_path: Path) -> None:
    with pytest.raises(DataUnavailable):
        write(tmp_path / "missing", SOME)
    with pytest.raises(DataUnavailable):
        read(tmp_path / "missing", name_of(1))


def test_too_big_a_record(tmp_path: Path) -> None:
    fits = JournalRecord("setting", ("k",), ("v" * (RECORD_BYTES_MAX - 100),))
    assert read(*write(tmp_path, [fits, fits])[:2]) == [fits, fits]
    with pytest.raises(ValueError, match="more than"):
        write(tmp_path, [JournalRecord("setting", ("k",), ("v" * RECORD_BYTES_MAX,))])


def rows(count: int) -> Iterator[JournalRecord]:
    for number in range(count):
        yield JournalRecord("xattr", (number, b"user.x"), (os.urandom(400),))


@pytest.mark.slow
@pytest.mark.parametrize("encrypted", [True, False])
def test_many_segments_in_little_memory(tmp_path: Path, encrypted: bool) -> None:
    tracemalloc.start()
    try:
        path, name, summary = write(tmp_path, rows(20_000), encrypted=encrypted)
        with read_epoch(path, KEYS, DRIVE, name) as epoch:
            assert sum(1 for _ in epoch.records()) == summary.records == 20_000
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert summary.size_bytes > 7 << 20
    assert peak < 5 << 20, "neither end holds more than a few segments"


def forged(segments: list[bytes], footer: EpochFooter) -> bytes:
    """Return an object with these segments and hashes that fit: what a broken writer with the key might make."""
    data = header_bytes(header_of(name_of(1)), KEYS) + b"".join(segments)
    tail = pack_epoch_footer(footer)[:-32]
    return data + tail + KEYS.object_hasher().update(data + tail).digest()


def segment(plain: bytes, offset: int = EPOCH_HEADER_BYTES, *, claimed: int | None = None) -> bytes:
    # The salt is random, so what is sealed here does not open: for checks that come before that.
    sealed = SegmentSealer(header_of(name_of(1)), KEYS).seal(plain, offset + 8)
    return pack_segment_head(len(sealed), len(plain) if claimed is None else claimed) + sealed


@pytest.mark.parametrize(
    "segments",
    [
        [b"\0" * 7],
        [segment(b"\x01", claimed=0)],
        [segment(b"\x01", claimed=SEGMENT_BYTES_MAX + 1)],
        [pack_segment_head(1 << 31, 5) + b"12345"],
        [pack_segment_head(0, 5)],
        [segment(b"\x01")],
    ],
    ids=["no-head", "empty", "too-long", "past-the-end", "no-body", "another-key"],
)
def test_no_length_is_believed(segments: list[bytes]) -> None:
    data = forged(segments, EpochFooter(1, 1, KEYS.records_hasher().digest(), bytes(32)))
    with read_epoch(data, KEYS, DRIVE, name_of(1)) as epoch, pytest.raises((FormatError, CloudCorrupt)):
        list(epoch.records())


@pytest.mark.parametrize("wrong", ["records", "bytes", "hash"])
def test_records_must_be_those_of_the_footer(wrong: str) -> None:
    header = header_of(name_of(1), encrypted=False)
    plain = encode(SOME[0])
    sealed = SegmentSealer(header, KEYS).seal(plain, EPOCH_HEADER_BYTES + 8)
    data = header_bytes(header, KEYS) + pack_segment_head(len(sealed), len(plain)) + sealed
    footer = EpochFooter(1, len(plain), KEYS.records_hasher().update(plain).digest(), bytes(32))
    bad = {
        "records": evolve(footer, records=2),
        "bytes": evolve(footer, plain_bytes=1),
        "hash": evolve(footer, records_hash=bytes(32)),
    }[wrong]
    for tried, fits in ((footer, True), (bad, False)):
        tail = pack_epoch_footer(tried)[:-32]
        whole = data + tail + KEYS.object_hasher().update(data + tail).digest()
        with read_epoch(whole, KEYS, DRIVE, name_of(1)) as epoch:
            if fits:
                assert list(epoch.records()) == SOME[:1]
            else:
                with pytest.raises(CloudCorrupt, match="footer"):
                    list(epoch.records())


def test_ends_give_what_the_chain_needs(tmp_path: Path) -> None:
    path, name, summary = write(tmp_path, SOME, name_of(2), b"p" * 32)
    data = path.read_bytes()
    header, footer = parse_ends(data[:EPOCH_HEADER_BYTES], data[-EPOCH_FOOTER_BYTES:], KEYS, DRIVE, name)
    assert header.predecessor == b"p" * 32
    assert (footer.object_hash, footer.records) == (summary.object_hash, 2)

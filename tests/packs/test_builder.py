"""Pack files: any chunks round-trip, every changed bit is noticed, and the bytes are those of docs/format.md."""

from __future__ import annotations

import os
import struct
import tracemalloc
from pathlib import Path

import pytest
import zstandard
from attrs import evolve
from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from cuckoo_mount import format as cloud_format
from cuckoo_mount.errors import CloudCorrupt, DataUnavailable, FormatError
from cuckoo_mount.packs.builder import BuildSpec, ChunkSource, build_pack
from cuckoo_mount.packs.inspect import inspect_pack, read_index, share_digest, unseal_entry
from cuckoo_mount.types import ChunkIndex, DirtyChunk, InodeNo, VersionNo
from tests.packs.packtools import DRIVE, KEYS, PACK, build, make_sources

SMALL = [b"first chunk " * 3, b"", os.urandom(37), b"z" * 300]

contents = st.lists(
    st.binary(max_size=2000)
    | st.builds(lambda piece, count: piece * count, st.binary(min_size=1, max_size=20), st.integers(1, 500)),
    max_size=8,
)


@settings(deadline=None)
@given(chunks=contents, encrypted=st.booleans())
def test_any_chunks_round_trip(tmp_path_factory: pytest.TempPathFactory, chunks: list[bytes], encrypted: bool) -> None:
    built, data = build(tmp_path_factory.mktemp("pack"), chunks, encrypted=encrypted)
    found = inspect_pack(data, DRIVE, PACK, KEYS, encrypted=encrypted)
    versions = {item.chunk.version: item.digest for item in built.sealed}
    assert len(chunks) == len(versions) + len(built.repeats)
    assert all(versions[repeat.of] == KEYS.chunk_digest(chunks[repeat.chunk.version - 1]) for repeat in built.repeats)
    chunks = list(dict.fromkeys(chunks))
    assert list(found.chunks) == chunks
    assert built.size_bytes == len(data)
    assert built.share_digest == share_digest(KEYS, data)
    assert not built.missing
    for entry, sealed, plain in zip(found.entries, built.sealed, chunks, strict=True):
        assert (entry.version, entry.ino, entry.index) == (sealed.chunk.version, sealed.chunk.ino, sealed.chunk.index)
        assert (entry.offset, entry.sealed_bytes) == (sealed.offset, sealed.length_bytes)
        assert entry.plain_bytes == len(plain)
        assert entry.digest == sealed.digest == blake3(plain, key=KEYS.chunk_id_key).digest()
    # Nonces are offsets: none twice, the index included.
    offsets = [entry.offset for entry in found.entries]
    assert len(set(offsets)) == len(offsets)


@pytest.mark.parametrize("encrypted", [True, False])
def test_every_flipped_bit_is_noticed(tmp_path: Path, encrypted: bool) -> None:
    built, data = build(tmp_path, SMALL, encrypted=encrypted)
    harmless = 0
    for bit in range(len(data) * 8):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        assert share_digest(KEYS, bytes(damaged)) != built.share_digest
        try:
            found = inspect_pack(bytes(damaged), DRIVE, PACK, KEYS, encrypted=encrypted)
        except (CloudCorrupt, FormatError):
            continue
        harmless += 1
        assert list(found.chunks) == SMALL, "never wrong data"
    # zstd's frame header has one unused bit that its readers skip; here are three frames, the index among them.
    assert harmless <= (0 if encrypted else 3)


@pytest.mark.parametrize("encrypted", [True, False])
def test_every_truncation_and_extension_is_noticed(tmp_path: Path, encrypted: bool) -> None:
    _, data = build(tmp_path, SMALL, encrypted=encrypted)
    wrong = [data[:length] for length in range(len(data))]
    wrong += [data[start:] for start in range(1, len(data))]
    wrong += [data + b"\0", b"\0" + data, data + data, data[:100] + b"\0" + data[100:]]
    for damaged in wrong:
        with pytest.raises((CloudCorrupt, FormatError)):
            inspect_pack(damaged, DRIVE, PACK, KEYS, encrypted=encrypted)


@settings(deadline=None, max_examples=200)
@given(noise=st.binary(min_size=1, max_size=80), at=st.integers(0, 2000), encrypted=st.booleans())
def test_overwritten_stretches_are_noticed(
    tmp_path_factory: pytest.TempPathFactory, noise: bytes, at: int, encrypted: bool
) -> None:
    built, data = build(tmp_path_factory.mktemp("pack"), SMALL, encrypted=encrypted)
    at %= len(data)
    damaged = (data[:at] + noise + data[at + len(noise) :])[: len(data)]
    if damaged != data:
        assert share_digest(KEYS, damaged) != built.share_digest
        try:
            found = inspect_pack(damaged, DRIVE, PACK, KEYS, encrypted=encrypted)
        except (CloudCorrupt, FormatError):
            return
        assert not encrypted
        assert list(found.chunks) == SMALL, "never wrong data"


@pytest.mark.parametrize("encrypted", [True, False])
def test_damage_in_one_chunk_leaves_the_others_readable(tmp_path: Path, encrypted: bool) -> None:
    built, data = build(tmp_path, SMALL, encrypted=encrypted)
    damaged = bytearray(data)
    damaged[built.sealed[0].offset + 1] ^= 1
    entries = read_index(bytes(damaged), DRIVE, PACK, KEYS, encrypted=encrypted)
    with pytest.raises(CloudCorrupt):
        unseal_entry(bytes(damaged), entries[0], DRIVE, PACK, KEYS, encrypted=encrypted)
    for entry, plain in zip(entries[1:], SMALL[1:], strict=True):
        assert unseal_entry(bytes(damaged), entry, DRIVE, PACK, KEYS, encrypted=encrypted) == plain


def test_bodies_of_another_pack_do_not_fit(tmp_path: Path) -> None:
    (one := tmp_path / "one").mkdir()
    (two := tmp_path / "two").mkdir()
    built, data = build(one, [b"same bytes"], pack_id=b"1" * 16)
    _, other = build(two, [b"same bytes"], pack_id=b"2" * 16)
    assert data[64:] != other[64:], "another pack, another key"
    start, end = built.sealed[0].offset, built.sealed[0].offset + built.sealed[0].length_bytes
    with pytest.raises(CloudCorrupt):
        inspect_pack(data[:start] + other[start:end] + data[end:], DRIVE, b"1" * 16, KEYS, encrypted=True)


@pytest.mark.parametrize("encrypted", [True, False])
def test_what_a_pack_says_about_encryption_is_not_believed(tmp_path: Path, encrypted: bool) -> None:
    _, data = build(tmp_path, SMALL, encrypted=not encrypted)
    with pytest.raises(CloudCorrupt, match="contradicts"):
        inspect_pack(data, DRIVE, PACK, KEYS, encrypted=encrypted)


def test_other_drives_and_newer_formats_are_refused(tmp_path: Path) -> None:
    _, data = build(tmp_path, SMALL)
    with pytest.raises(FormatError, match="belongs to drive"):
        inspect_pack(data, b"x" * 16, PACK, KEYS, encrypted=True)
    newer = data[:8] + struct.pack("<H", 2) + data[10:]
    with pytest.raises(FormatError, match="update cuckoo-mount"):
        inspect_pack(newer, DRIVE, PACK, KEYS, encrypted=True)


def test_an_encrypted_pack_shows_nothing(tmp_path: Path) -> None:
    text = b"attack at dawn, bring the marmalade"
    _, data = build(tmp_path, [text, text])
    assert text not in data
    assert KEYS.chunk_digest(text) not in data


def test_the_same_spec_makes_the_same_bytes(tmp_path: Path) -> None:
    built, data = build(tmp_path, SMALL)
    again, data_again = build(tmp_path, SMALL)
    assert (built, data) == (again, data_again)


def _spec(folder: Path, sources: tuple[ChunkSource, ...]) -> BuildSpec:
    target = str(folder / "target.pack")
    return BuildSpec(drive_id=DRIVE, pack_id=PACK, keys=KEYS, encrypted=True, sources=sources, target=target)


def _contents(folder: Path, sources: tuple[ChunkSource, ...]) -> list[bytes]:
    built = build_pack(_spec(folder, sources))
    return list(inspect_pack(Path(built.path).read_bytes(), DRIVE, PACK, KEYS, encrypted=True).chunks)


def _chunk(length_bytes: int, version: int = 1) -> DirtyChunk:
    return DirtyChunk(InodeNo(5), ChunkIndex(0), VersionNo(version), length_bytes)


def test_past_the_end_of_a_sparse_file_are_zeros(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    path.write_bytes(b"abc")
    os.truncate(path, 10)
    sources = tuple(
        ChunkSource(_chunk(length), str(path), offset) for offset, length in [(0, 10), (0, 20), (2, 5), (9, 4), (50, 3)]
    )
    whole = b"abc" + bytes(100)
    assert _contents(tmp_path, sources) == [whole[:10], whole[:20], whole[2:7], whole[9:13], whole[50:53]]


def test_overlapping_chunks_of_one_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    data = os.urandom(5000)
    path.write_bytes(data)
    spans = [(0, 3000), (1000, 3000), (0, 5000), (4999, 1), (2000, 0)]
    sources = tuple(ChunkSource(_chunk(length), str(path), offset) for offset, length in spans)
    assert _contents(tmp_path, sources) == [data[offset : offset + length] for offset, length in spans]


def test_a_chunk_copied_aside_is_read_from_there(tmp_path: Path) -> None:
    path, aside = tmp_path / "file", tmp_path / "aside"
    path.write_bytes(b"NEWER bytes")
    aside.write_bytes(b"old bytes")
    unwritten = ChunkSource(_chunk(9, version=2), str(path), 0, str(tmp_path / "no such aside"))
    copied = ChunkSource(_chunk(9), str(path), 0, str(aside))
    assert _contents(tmp_path, (copied, unwritten, copied)) == [b"old bytes", b"NEWER byt", b"old bytes"]


def test_the_copy_aside_is_looked_for_after_the_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A writer that copies aside and overwrites while the builder reads: the builder must see the copy.
    path, aside = tmp_path / "file", tmp_path / "aside"
    path.write_bytes(b"old bytes")
    real_pread = os.pread

    def pread(descriptor: int, length: int, offset: int) -> bytes:
        if not aside.exists():
            aside.write_bytes(b"old bytes")
            path.write_bytes(b"NEW bytes")
        return real_pread(descriptor, length, offset)

    monkeypatch.setattr(os, "pread", pread)
    assert _contents(tmp_path, (ChunkSource(_chunk(9), str(path), 0, str(aside)),)) == [b"old bytes"]


def test_a_chunk_whose_file_is_gone_is_left_out_and_named(tmp_path: Path) -> None:
    sources = make_sources(tmp_path, [b"one", b"two", b"three"])
    os.unlink(sources[1].path)
    built = build_pack(_spec(tmp_path, sources))
    assert built.missing == (sources[1].chunk,)
    assert [sealed.chunk for sealed in built.sealed] == [sources[0].chunk, sources[2].chunk]
    assert inspect_pack(Path(built.path).read_bytes(), DRIVE, PACK, KEYS, encrypted=True).chunks == (b"one", b"three")


def test_an_unreadable_file_is_our_error(tmp_path: Path) -> None:
    source = ChunkSource(_chunk(3), str(tmp_path), 0)
    with pytest.raises(DataUnavailable, match="check the local disk"):
        build_pack(_spec(tmp_path, (source,)))
    spec = evolve(_spec(tmp_path, ()), target=str(tmp_path / "no folder" / "target"))
    with pytest.raises(DataUnavailable, match="pack file target"):
        build_pack(spec)


def test_memory_stays_small(tmp_path: Path) -> None:
    sources = make_sources(tmp_path, [os.urandom(1 << 20)] * 8)
    tracemalloc.start()
    try:
        build_pack(_spec(tmp_path, sources))
        assert tracemalloc.get_traced_memory()[1] < 6 << 20
    finally:
        tracemalloc.stop()


def test_repr_of_a_spec_shows_no_key(tmp_path: Path) -> None:
    text = repr(_spec(tmp_path, ()))
    assert KEYS.drive_key.hex() not in text
    assert "keys" not in text


@pytest.mark.parametrize("encrypted", [True, False])
def test_a_reader_written_from_the_document_alone(tmp_path: Path, encrypted: bool) -> None:
    """docs/format.md, "Pack", by hand: nothing of the project but the drive key."""
    _, data = build(tmp_path, SMALL, encrypted=encrypted)
    drive_key = KEYS.drive_key
    hash_key = blake3(drive_key, derive_key_context="cuckoo-mount 2026-11 chunk id").digest()
    pack_key = blake3(drive_key + PACK, derive_key_context="cuckoo-mount 2026-11 pack key").digest()
    assert data[:64] == b"CUCKOOPK" + struct.pack("<HHI", 1, int(encrypted), 0) + DRIVE + PACK + bytes(16)

    def unseal(offset: int, length: int, digest: bytes) -> bytes:
        body = data[offset : offset + length]
        if encrypted:
            associated = struct.pack("<H", 1) + DRIVE + digest
            body = AESGCM(pack_key).decrypt(offset.to_bytes(12, "little"), body, associated)
        return body[1:] if body[0] == 0 else zstandard.ZstdDecompressor().decompress(body[1:])

    index_offset, index_bytes, count, zero, index_digest, magic = struct.unpack("<QII8s16s8s", data[-48:])
    assert (magic, zero, index_offset + index_bytes + 48) == (b"CUCKOOFT", bytes(8), len(data))
    index = unseal(index_offset, index_bytes, bytes(32))
    assert blake3(index, key=hash_key).digest()[:16] == index_digest
    found = []
    for version, ino, number, offset, sealed, plain, zeros, digest in struct.iter_unpack("<QQQQII8s32s", index):
        chunk = unseal(offset, sealed, digest)
        assert (len(chunk), zeros) == (plain, bytes(8))
        assert blake3(chunk, key=hash_key).digest() == digest
        assert (ino, number) == (100 + version, version % 3)
        found.append(chunk)
    assert found == SMALL
    assert count == len(SMALL)


def test_share_names() -> None:
    name = cloud_format.pack_share_name(DRIVE, PACK, 7)
    assert cloud_format.parse_pack_share_name(DRIVE, name) == (PACK, 7)
    wrong = [name + "x", name[:-1] + "²", name[:-1] + "07", name[:-1] + "256", name[:-1] + "9" * 5000, name.upper()]
    wrong += ["", "packs/", name.replace("/packs/", "/meta/"), name[:-3], name.replace(PACK.hex(), PACK.hex() + " ")]
    for other in wrong:
        with pytest.raises(FormatError):
            cloud_format.parse_pack_share_name(DRIVE, other)


@given(st.text(max_size=60))
def test_no_text_breaks_the_parser_of_share_names(tail: str) -> None:
    try:
        pack_id, share = cloud_format.parse_pack_share_name(DRIVE, cloud_format.packs_prefix(DRIVE) + tail)
    except FormatError:
        return
    assert cloud_format.pack_share_name(DRIVE, pack_id, share).endswith(tail)

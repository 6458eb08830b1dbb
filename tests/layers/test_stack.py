"""Layers one by one and as stacks: what goes in comes out, and nothing else ever does."""

from __future__ import annotations

import os
import pickle
import threading

import pytest
import zstandard
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from cuckoo_mount.errors import CloudCorrupt, FormatError
from cuckoo_mount.layers.base import Layer, SealContext, Stack
from cuckoo_mount.layers.compression import METHOD_STORED, METHOD_ZSTD, Compression
from cuckoo_mount.layers.encryption import TAG_BYTES, Encryption
from cuckoo_mount.layers.keys import DriveKeys
from cuckoo_mount.layers.stack import stack_of

KEYS = DriveKeys(bytes(range(32)))


def context(plain_bytes: int, offset: int = 64) -> SealContext:
    return SealContext(b"d" * 16, b"p" * 16, offset, b"h" * 32, plain_bytes)


plain_data = st.binary(max_size=5000) | st.builds(
    lambda piece, count: piece * count, st.binary(min_size=1, max_size=50), st.integers(1, 200)
)


@given(plain_data, st.booleans())
def test_stack_gives_back_what_it_was_given(data: bytes, encrypted: bool) -> None:
    stack = stack_of(KEYS, encrypted=encrypted)
    sealed = stack.seal(data, context(len(data)))
    assert len(sealed) >= 1
    assert stack.unseal(sealed, context(len(data))) == data
    assert stack.seal(data, context(len(data))) == sealed, "a repeated job makes the same pack"


@given(st.binary(max_size=300), st.integers(0, 300), st.booleans())
def test_stack_never_raises_anything_but_ours_on_noise(noise: bytes, plain_bytes: int, encrypted: bool) -> None:
    stack = stack_of(KEYS, encrypted=encrypted)
    try:
        plain = stack.unseal(noise, context(plain_bytes))
    except (CloudCorrupt, FormatError):
        return
    assert not encrypted
    assert len(plain) == plain_bytes


@given(st.binary(max_size=300), st.integers(0, 300))
def test_damaged_zstd_is_our_error(noise: bytes, cut: int) -> None:
    frame = METHOD_ZSTD + zstandard.ZstdCompressor().compress(b"some text " * 30)
    for damaged in (METHOD_ZSTD + noise, frame[:cut], frame + noise + b"x", frame[:cut] + noise):
        if damaged == frame:
            continue
        try:
            plain = Compression().decode(damaged, context(300))
        except (CloudCorrupt, FormatError):
            continue
        assert len(plain) == 300


def test_stack_refuses_a_context_for_another_length() -> None:
    with pytest.raises(ValueError, match="3 bytes"):
        stack_of(KEYS, encrypted=True).seal(b"12345", context(3))


@pytest.mark.parametrize("size", [0, 1, 15, 16, 100, 4096])
def test_random_bytes_are_stored(size: int) -> None:
    data = os.urandom(size)
    assert Compression().encode(data, context(size)) == METHOD_STORED + data


@pytest.mark.parametrize("size", [100, 4096, 1 << 20])
def test_what_shrinks_is_compressed(size: int) -> None:
    packed = Compression().encode(bytes(size), context(size))
    assert packed[:1] == METHOD_ZSTD
    assert len(packed) < size


@given(st.integers(0, 2000), st.integers(0, 400))
def test_zstd_is_used_from_a_sixteenth_on(random_bytes: int, zero_bytes: int) -> None:
    data = os.urandom(random_bytes) + bytes(zero_bytes)
    packed = Compression().encode(data, context(len(data)))
    if packed[:1] == METHOD_ZSTD:
        assert (len(data) - (len(packed) - 1)) * 16 >= len(data)
    else:
        assert packed[1:] == data


def test_a_frame_that_claims_too_much_takes_no_memory() -> None:
    bomb = METHOD_ZSTD + zstandard.ZstdCompressor().compress(bytes(64 << 20))
    with pytest.raises(CloudCorrupt, match="where 10 belong"):
        Compression().decode(bomb, context(10))


@pytest.mark.parametrize("data", [b"", b"\x02abc", b"\xff"])
def test_unknown_method_is_a_format_error(data: bytes) -> None:
    with pytest.raises(FormatError, match="compression method"):
        Compression().decode(data, context(3))


def test_compression_in_many_threads() -> None:
    # One compressor shared between threads crashes the interpreter.
    data = b"abcdefgh" * 10_000
    layer = Compression()
    wrong: list[str] = []

    def work() -> None:
        for _ in range(50):
            if layer.decode(layer.encode(data, context(len(data))), context(len(data))) != data:
                wrong.append("differs")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


OTHER_CONTEXTS = {
    "drive": evolve(context(6), drive_id=b"D" * 16),
    "pack": evolve(context(6), pack_id=b"P" * 16),
    "offset": evolve(context(6), offset=65),
    "digest": evolve(context(6), digest=b"H" * 32),
}


@pytest.mark.parametrize("other", OTHER_CONTEXTS)
def test_encryption_binds_the_context(other: str) -> None:
    layer = Encryption(KEYS)
    sealed = layer.encode(b"secret", context(6))
    assert layer.decode(sealed, context(6)) == b"secret"
    with pytest.raises(CloudCorrupt):
        layer.decode(sealed, OTHER_CONTEXTS[other])


def test_encryption_needs_the_key() -> None:
    sealed = Encryption(KEYS).encode(b"secret", context(6))
    with pytest.raises(CloudCorrupt):
        Encryption(DriveKeys(bytes(32))).decode(sealed, context(6))


def test_every_bit_of_a_ciphertext_counts() -> None:
    layer = Encryption(KEYS)
    sealed = layer.encode(b"secret", context(6))
    for bit in range(len(sealed) * 8):
        damaged = bytearray(sealed)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CloudCorrupt):
            layer.decode(bytes(damaged), context(6))
    for length in range(len(sealed)):
        with pytest.raises(CloudCorrupt):
            layer.decode(sealed[:length], context(6))


def test_ciphertext_is_one_tag_longer_and_shows_nothing() -> None:
    sealed = Encryption(KEYS).encode(b"secret" * 10, context(60))
    assert len(sealed) == 60 + TAG_BYTES
    assert b"secret" not in sealed


def test_pack_keys_differ() -> None:
    ids = [os.urandom(16) for _ in range(1000)]
    keys = {KEYS.pack_key(pack_id) for pack_id in ids}
    assert len(keys) == len(set(ids))
    derived = {KEYS.drive_key, KEYS.chunk_id_key, KEYS.share_digest_key, KEYS.pack_key(bytes(16))}
    assert len(derived) == 4


def test_keys_show_no_secret_and_cross_a_pipe() -> None:
    text = f"{KEYS} {KEYS!r}"
    for secret in (KEYS.drive_key, KEYS.chunk_id_key, KEYS.share_digest_key):
        assert secret.hex() not in text
        assert repr(secret)[2:-1] not in text
    copy = pickle.loads(pickle.dumps(KEYS))
    assert copy == KEYS
    assert copy.chunk_id_key == KEYS.chunk_id_key


def test_keys_of_wrong_length_are_refused() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        DriveKeys(b"short")
    with pytest.raises(ValueError, match="16 bytes"):
        KEYS.pack_key(b"short")


def test_check_chunk() -> None:
    KEYS.check_chunk(b"data", KEYS.chunk_digest(b"data"))
    for wrong in (b"datb", b"", b"data\0"):
        with pytest.raises(CloudCorrupt):
            KEYS.check_chunk(wrong, KEYS.chunk_digest(b"data"))


def test_context_has_fixed_lengths() -> None:
    whole = (bytes(16), bytes(16), 0, bytes(32), 0)
    assert SealContext(*whole).offset == 0
    for position, bad in enumerate((bytes(15), bytes(17), -1, bytes(31), -1)):
        values = [*whole[:position], bad, *whole[position + 1 :]]
        with pytest.raises(ValueError, match="not a context"):
            SealContext(*values)  # type: ignore[arg-type]  # a row of mixed types


def test_a_stack_applies_layers_in_order() -> None:
    class Append:
        def __init__(self, tail: bytes) -> None:
            self.tail = tail

        def encode(self, data: bytes, context: SealContext) -> bytes:
            return data + self.tail

        def decode(self, data: bytes, context: SealContext) -> bytes:
            assert data.endswith(self.tail)
            return data.removesuffix(self.tail)

    layers: tuple[Layer, ...] = (Append(b"1"), Append(b"2"))
    stack = Stack(layers)
    assert stack.seal(b"x", context(1)) == b"x12"
    assert stack.unseal(b"x12", context(1)) == b"x"
    with pytest.raises(CloudCorrupt, match="instead of 2"):
        stack.unseal(b"x12", context(2))

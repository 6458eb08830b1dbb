"""Key slots: what opens them, what does not, and that the format of docs/format.md cannot change unnoticed."""

from __future__ import annotations

from typing import Final

import pytest
from attrs import evolve
from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from hypothesis import given
from hypothesis import strategies as st

from cuckoo_mount.errors import CloudCorrupt, FormatError, UsageError, WrongKey
from cuckoo_mount.format import SLOT_KINDS, SlotKind, key_slot_name, keys_prefix, parse_key_slot_name
from cuckoo_mount.layers.keyslots import (
    DEFAULT_COST,
    ITERATIONS_MAX,
    LANES_MAX,
    MEMORY_MAX_KIB,
    SLOT_BYTES,
    Argon2Cost,
    KeySlot,
    Passphrase,
    Secret,
    decode_slot,
    encode_slot,
    make_slot,
    open_slot,
    open_slots,
)
from cuckoo_mount.layers.recoverykey import RecoveryKey, recovery_key_of

DRIVE_KEY: Final = bytes(range(32))
DRIVE_ID: Final = bytes(16)
SALT: Final = bytes(range(16))
CHEAP: Final = Argon2Cost(memory_kib=64, iterations=2, lanes=2)
PASSPHRASE: Final = Passphrase("é horse")
RECOVERY: Final = recovery_key_of(DRIVE_KEY)
SECRETS: Final[dict[SlotKind, Secret]] = {"passphrase": PASSPHRASE, "recovery": RECOVERY}
VECTORS: Final[dict[SlotKind, str]] = {
    "passphrase": (
        "4355434b4f4f4b53010001000700000000000000000000000000000000000000"
        "40000000020000000200000000000000000102030405060708090a0b0c0d0e0f"
        "8f1688317948001c258c4ac2bf80616468aef39bfb2d1ab1c927065ca7a9fad6"
        "4f43cbc7102eea8d7cdd56f7b20853e2e97d794ffe955ebde10a4c55fc81e733"
    ),
    "recovery": (
        "4355434b4f4f4b53010002000700000000000000000000000000000000000000"
        "00000000000000000000000000000000000102030405060708090a0b0c0d0e0f"
        "ee3386f4a6e3a922ee99b65c1a2ff3e6cc4c0457e9bcc9eb61255145ccbc73ad"
        "c7511d6ae9d66c4dfe544158335da4060f670925dff6f4e1e99282d1f3dae6d2"
    ),
}


def slot_of(kind: SlotKind, number: int = 7) -> KeySlot:
    return make_slot(DRIVE_KEY, SECRETS[kind], drive_id=DRIVE_ID, number=number, salt=SALT, cost=CHEAP)


def read(data: bytes, kind: SlotKind = "passphrase") -> KeySlot:
    return decode_slot(data, drive_id=DRIVE_ID, number=7, kind=kind)


def with_checksum(content: bytes) -> bytes:
    return content + blake3(content).digest(16)


@pytest.mark.parametrize("kind", SLOT_KINDS)
def test_known_answer(kind: SlotKind) -> None:
    data = bytes.fromhex(VECTORS[kind])
    assert encode_slot(slot_of(kind)) == data
    assert len(data) == SLOT_BYTES == 128
    assert open_slot(read(data, kind), SECRETS[kind]) == DRIVE_KEY


def test_known_answer_by_the_document() -> None:
    # Nothing of the module under test: what docs/format.md says, step by step.
    data = bytes.fromhex(VECTORS["passphrase"])
    key = Argon2id(salt=data[48:64], length=32, iterations=2, lanes=2, memory_cost=64).derive("é horse".encode())
    assert AESGCM(key).decrypt(bytes(12), data[64:112], data[:64]) == DRIVE_KEY
    assert data[112:] == blake3(data[:112]).digest()[:16]
    data = bytes.fromhex(VECTORS["recovery"])
    secret = blake3(DRIVE_KEY, derive_key_context="cuckoo-mount 2026-11 recovery key").digest()[:16]
    key = blake3(secret + data[48:64], derive_key_context="cuckoo-mount 2026-11 recovery slot").digest()
    assert AESGCM(key).decrypt(bytes(12), data[64:112], data[:64]) == DRIVE_KEY


@pytest.mark.slow
def test_the_default_cost_is_not_weakened() -> None:
    assert Argon2Cost(memory_kib=64 * 1024, iterations=3, lanes=4) == DEFAULT_COST
    slot = make_slot(DRIVE_KEY, PASSPHRASE, drive_id=DRIVE_ID, number=1, salt=SALT)
    assert slot.cost == DEFAULT_COST
    assert open_slot(slot, PASSPHRASE) == DRIVE_KEY


@pytest.mark.slow
@given(
    st.binary(min_size=32, max_size=32), st.text(min_size=1, max_size=40).filter(str.isprintable), st.binary(max_size=9)
)
def test_round_trip(drive_key: bytes, text: str, noise: bytes) -> None:
    salt = blake3(noise).digest(16)
    for secret in (Passphrase(text), recovery_key_of(drive_key)):
        slot = make_slot(drive_key, secret, drive_id=DRIVE_ID, number=7, salt=salt, cost=CHEAP)
        assert open_slot(read(encode_slot(slot), slot.kind), secret) == drive_key


@pytest.mark.parametrize("kind", SLOT_KINDS)
def test_every_flipped_bit_is_damage(kind: SlotKind) -> None:
    data = encode_slot(slot_of(kind))
    for bit in range(len(data) * 8):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises((CloudCorrupt, FormatError)):
            read(bytes(damaged), kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", SLOT_KINDS)
def test_every_bit_is_authenticated(kind: SlotKind) -> None:
    # Somebody who makes the checksum anew does not get a slot that opens either.
    content = encode_slot(slot_of(kind))[:-16]
    opened = 0
    for bit in range(len(content) * 8):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        try:
            slot = read(with_checksum(bytes(changed)), kind)
        except FormatError:
            continue
        opened += 1
        if slot.cost is None or slot.cost.memory_kib * slot.cost.iterations <= 4096:
            with pytest.raises(WrongKey):
                open_slot(slot, SECRETS[kind])
    assert opened >= (16 + 48) * 8  # those of salt and wrapped key, at least


@pytest.mark.parametrize("size", [0, 7, 64, 127, 129, 1000])
def test_another_length_is_refused(size: int) -> None:
    data = (encode_slot(slot_of("passphrase")) * 8)[:size]
    with pytest.raises((CloudCorrupt, FormatError)):
        read(data)


def test_another_slots_object_is_refused() -> None:
    data = encode_slot(slot_of("passphrase"))
    for drive_id, number, kind in (
        (b"1" * 16, 7, "passphrase"),
        (DRIVE_ID, 8, "passphrase"),
        (DRIVE_ID, 7, "recovery"),
    ):
        with pytest.raises(FormatError, match="says that it is slot 7"):
            decode_slot(data, drive_id=drive_id, number=number, kind="recovery" if kind == "recovery" else "passphrase")


@pytest.mark.parametrize(
    ("at", "value", "says"),
    [
        pytest.param(8, 2, "format 2, this program knows up to 1", id="newer"),
        pytest.param(8, 0, "zero fields", id="format-0"),
        pytest.param(32, 100 << 20, "104857600 KiB", id="100-GiB"),
        pytest.param(32, MEMORY_MAX_KIB + 1, "refused", id="memory"),
        pytest.param(32, 15, "15 KiB", id="memory-of-lanes"),
        pytest.param(36, ITERATIONS_MAX + 1, "17 iterations", id="iterations"),
        pytest.param(36, 0, "0 iterations", id="no-iterations"),
        pytest.param(40, LANES_MAX + 1, "17 lanes", id="lanes"),
        pytest.param(40, 0, "0 lanes", id="no-lanes"),
        pytest.param(44, 1, "zero fields", id="zero"),
    ],
)
def test_fields_out_of_range_are_refused(at: int, value: int, says: str) -> None:
    content = bytearray(encode_slot(slot_of("passphrase"))[:-16])
    content[at : at + 4] = value.to_bytes(4, "little") if at != 8 else value.to_bytes(2, "little") + content[10:12]
    with pytest.raises(FormatError, match=says):
        read(with_checksum(bytes(content)))


def test_wrong_secrets() -> None:
    slot = slot_of("passphrase")
    for text in ("é hors", "é horse ", "É horse", "e horse"):
        with pytest.raises(WrongKey, match="wrong passphrase; check capitals"):
            open_slot(slot, Passphrase(text))
    with pytest.raises(WrongKey, match="belongs to another drive"):
        open_slot(slot_of("recovery"), RecoveryKey(bytes(16)))
    with pytest.raises(ValueError, match="not opened by a recovery"):
        open_slot(slot, RECOVERY)


def test_a_passphrase_is_the_same_however_it_is_composed() -> None:
    assert open_slot(slot_of("passphrase"), Passphrase("e\N{COMBINING ACUTE ACCENT} horse")) == DRIVE_KEY


def test_a_passphrase_that_is_no_text_is_refused() -> None:
    with pytest.raises(UsageError, match="no valid UTF-8"):
        Passphrase("\udcff").encoded()
    with pytest.raises(ValueError, match="text"):
        Passphrase("")


def test_no_secret_is_shown() -> None:
    assert repr([PASSPHRASE, RECOVERY]) == "[Passphrase(), RecoveryKey()]"


def test_any_slot_of_the_kind_will_do() -> None:
    older = slot_of("passphrase", 2)
    newer = make_slot(DRIVE_KEY, Passphrase("new"), drive_id=DRIVE_ID, number=9, salt=SALT, cost=CHEAP)
    slots = [older, slot_of("recovery", 1), newer]
    for secret in (Passphrase("new"), PASSPHRASE, RECOVERY):
        assert open_slots(slots, secret) == DRIVE_KEY
    with pytest.raises(WrongKey, match="wrong passphrase"):
        open_slots(slots, Passphrase("newer"))
    with pytest.raises(WrongKey, match="has no passphrase; try a recovery key"):
        open_slots(slots[1:2], PASSPHRASE)
    with pytest.raises(WrongKey, match="has no recovery key; try a passphrase"):
        open_slots([older], RECOVERY)


def test_two_slots_of_one_secret_have_nothing_in_common() -> None:
    for kind in SLOT_KINDS:
        first = slot_of(kind)
        second = make_slot(DRIVE_KEY, SECRETS[kind], drive_id=DRIVE_ID, number=7, salt=bytes(16), cost=CHEAP)
        assert first.wrapped != second.wrapped
        with pytest.raises(WrongKey):
            open_slot(evolve(first, salt=second.salt), SECRETS[kind])


def test_our_own_mistakes_are_refused() -> None:
    with pytest.raises(ValueError, match="32 bytes, not 31"):
        make_slot(bytes(31), RECOVERY, drive_id=DRIVE_ID, number=1, salt=SALT)
    with pytest.raises(ValueError, match="wrapped key of"):
        make_slot(DRIVE_KEY, RECOVERY, drive_id=DRIVE_ID, number=1, salt=bytes(15))
    with pytest.raises(ValueError, match="number"):
        make_slot(DRIVE_KEY, RECOVERY, drive_id=DRIVE_ID, number=0, salt=SALT)
    with pytest.raises(ValueError, match="a recovery slot has none"):
        KeySlot(DRIVE_ID, 1, "recovery", CHEAP, SALT)
    with pytest.raises(ValueError, match="8 KiB per lane"):
        Argon2Cost(memory_kib=16, iterations=1, lanes=4)


@given(st.integers(1, 2**32 - 1), st.sampled_from(SLOT_KINDS))
def test_names(number: int, kind: SlotKind) -> None:
    name = key_slot_name(DRIVE_ID, number, kind)
    assert name == f"cuckoo/{'00' * 16}/keys/{number}.{kind}"
    assert name.startswith(keys_prefix(DRIVE_ID))
    assert parse_key_slot_name(DRIVE_ID, name) == (number, kind)
    with pytest.raises(FormatError):
        parse_key_slot_name(b"1" * 16, name)


@pytest.mark.parametrize(
    "last",
    [
        *("", "1", "1.", ".recovery", "0.recovery", "01.recovery", "-1.recovery", "+1.recovery", " 1.recovery"),
        *("1.Recovery", "1.recovery.x", "1.other", "4294967296.recovery", "9" * 5000 + ".recovery", "1_0.recovery"),
        *("x/1.recovery", "\N{ARABIC-INDIC DIGIT ONE}.recovery", "\N{SUPERSCRIPT ONE}.recovery"),
    ],
)
def test_other_names_are_refused(last: str) -> None:
    with pytest.raises(FormatError, match="not the name of a key slot"):
        parse_key_slot_name(DRIVE_ID, keys_prefix(DRIVE_ID) + last)


@pytest.mark.parametrize("number", [0, -1, 2**32])
def test_numbers_out_of_range_have_no_name(number: int) -> None:
    with pytest.raises(ValueError, match="number is 1 to"):
        key_slot_name(DRIVE_ID, number, "recovery")

"""The recovery key as people type it: what is forgiven, and that a typo is never taken for another key."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuckoo_mount.errors import UsageError
from cuckoo_mount.layers.recoverykey import RecoveryKey, parse_recovery_key, recovery_key_of

ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
KEY = recovery_key_of(bytes(range(32)))
SHOWN = KEY.shown()
secrets = st.binary(min_size=16, max_size=16)


def test_known_answer() -> None:
    assert KEY.secret.hex() == "c2d788cb306a9c46fac2da7be598ea3d"
    assert SHOWN == "RBBR-HJSG-DAE4-DYP2-V9XY-B67A-7M8K-8AP8"


def test_it_depends_on_the_drive_key_and_shows_nothing_of_it() -> None:
    other = recovery_key_of(bytes(31) + b"\x01")
    assert other != recovery_key_of(bytes(32))
    assert repr(other) == "RecoveryKey()"


@given(secrets)
def test_what_is_shown_is_read_back(secret: bytes) -> None:
    shown = RecoveryKey(secret).shown()
    assert [len(group) for group in shown.split("-")] == [4] * 8
    assert set(shown) <= set(ALPHABET + "-")
    assert parse_recovery_key(shown).secret == secret


@pytest.mark.parametrize(
    "typed",
    [
        pytest.param(SHOWN.lower(), id="case"),
        pytest.param(SHOWN.replace("-", ""), id="no-dashes"),
        pytest.param(f"  {SHOWN.replace('-', ' ')}\n", id="spaces"),
        pytest.param(SHOWN.replace("-", "\N{EN DASH}"), id="other-dashes"),
        pytest.param(SHOWN.replace("-", "\u00a0\u2011"), id="typeset"),
        pytest.param("-".join(SHOWN.replace("-", "")), id="dashes-everywhere"),
    ],
)
def test_forgiven(typed: str) -> None:
    assert parse_recovery_key(typed) == KEY


@given(secrets)
def test_look_alikes_are_forgiven(secret: bytes) -> None:
    shown = RecoveryKey(secret).shown()
    for right, wrong in (("0", "O"), ("0", "o"), ("1", "I"), ("1", "l")):
        assert parse_recovery_key(shown.replace(right, wrong)).secret == secret


@given(secrets, st.integers(0, 31), st.sampled_from(ALPHABET))
def test_a_wrong_sign_is_a_typo(secret: bytes, at: int, sign: str) -> None:
    digits = RecoveryKey(secret).shown().replace("-", "")
    typed = digits[:at] + sign + digits[at + 1 :]
    if typed == digits:
        assert parse_recovery_key(typed).secret == secret
        return
    with pytest.raises(UsageError, match="mistyped"):
        parse_recovery_key(typed)


@given(secrets, st.integers(0, 30))
def test_two_signs_in_the_wrong_order_are_a_typo(secret: bytes, at: int) -> None:
    digits = RecoveryKey(secret).shown().replace("-", "")
    typed = digits[:at] + digits[at + 1] + digits[at] + digits[at + 2 :]
    if typed != digits:
        with pytest.raises(UsageError, match="mistyped"):
            parse_recovery_key(typed)


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        pytest.param("", "32 letters and digits, not 0", id="empty"),
        pytest.param(SHOWN[:-1], "not 31", id="short"),
        pytest.param(SHOWN + "0", "not 33", id="long"),
        pytest.param("U" + SHOWN[1:], "has no 'U'", id="u"),
        pytest.param("u" + SHOWN[1:], "has no 'U'", id="u-small"),
        pytest.param("\N{ARABIC-INDIC DIGIT ONE}" + SHOWN[1:], "has no", id="other-digit"),
        pytest.param("\N{LATIN SMALL LETTER SHARP S}" + SHOWN[1:], "has no", id="two-capitals"),
        pytest.param(SHOWN[::-1], "mistyped", id="backwards"),
    ],
)
def test_what_is_wrong_is_said(typed: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        parse_recovery_key(typed)


def test_a_secret_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        RecoveryKey(bytes(15))

"""What a deep scrub keeps of itself, as local settings and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuckoo_mount.packs.findings import (
    GOES_ON_NS,
    LAST,
    POSITION,
    Finding,
    Position,
    as_settings,
    last_setting,
    read_findings,
    read_last,
)
from cuckoo_mount.types import PackNo

NUMBERS = st.integers(1, 1 << 40).map(PackNo)
SHARES = st.sets(st.integers(0, 255), max_size=5)
FINDINGS = st.dictionaries(NUMBERS, st.builds(Finding, SHARES, SHARES, st.booleans()), max_size=5)
BEGAN_NS = 10**18


@given(st.builds(Position, NUMBERS, NUMBERS, st.just(BEGAN_NS), st.integers(0, 1 << 40)), FINDINGS)
def test_there_and_back(position: Position, found: dict[PackNo, Finding]) -> None:
    settings = {key: value for key, value in as_settings(position, found).items() if value is not None}
    assert read_findings(settings, BEGAN_NS + GOES_ON_NS) == (position, found)
    assert read_findings(settings, BEGAN_NS + GOES_ON_NS + 1) == (None, {}), "too long ago"


@pytest.mark.parametrize("text", [None, "", "{", "[]", "7", '{"after": 1, "last": 2}', '{"after": "x"}'])
def test_what_is_not_understood_counts_as_none(text: str | None) -> None:
    settings = {} if text is None else {POSITION: text}
    assert read_findings(settings, BEGAN_NS) == (None, {})
    assert read_last(text) is None


def test_what_the_last_scrub_left() -> None:
    text = last_setting(BEGAN_NS, deep=True, left=3, lost=1)[LAST]
    assert read_last(text) == {"time_ns": BEGAN_NS, "deep": True, "left": 3, "lost": 1}

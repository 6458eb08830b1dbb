"""The redundancies of a drive together."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuckoo_mount.errors import UsageError
from cuckoo_mount.multi.policies import Policies
from cuckoo_mount.multi.redundancy import format_policy, parse_policy

TEXTS = st.one_of(
    st.integers(1, 9).map(str), st.tuples(st.integers(2, 9), st.integers(1, 5)).map(lambda pair: f"{pair[0]}+{pair[1]}")
)


@given(TEXTS, st.lists(TEXTS))
def test_the_metadata_survives_what_any_file_survives(default: str, others: list[str]) -> None:
    policies = Policies(default)
    assert [policies.add(text) for text in others] == [text not in others[:at] for at, text in enumerate(others)]
    assert policies.is_uniform == (not others)
    everything = [parse_policy(text) for text in (default, *others)]
    assert policies.losses == max(policy.parity for policy in everything)
    assert policies.most_shares == max(policy.shares for policy in everything)
    assert policies.others == set(others)


@given(TEXTS, st.lists(st.none() | TEXTS, min_size=1))
def test_of_several_the_strongest_counts(default: str, texts: list[str | None]) -> None:
    policies = Policies(default)
    found = policies.strongest(texts)
    assert found in {default if text is None else text for text in texts}
    for text in texts:
        other = parse_policy(default if text is None else text)
        assert parse_policy(found).parity >= other.parity
        if parse_policy(found).parity == other.parity:
            assert parse_policy(found).data <= other.data
    assert policies.strongest([*texts, found]) == policies.strongest(reversed(texts)) == found


def test_the_default_changes_and_is_written_as_packs_have_it() -> None:
    policies = Policies("none", ["1+2"])
    assert (policies.default, policies.others) == ("1", frozenset({"3"}))
    policies.set_default("4+2")
    assert policies.strongest([None, "3"]) == "3"
    assert policies.default == format_policy(parse_policy("4+2"))
    with pytest.raises(UsageError):
        policies.add("much")

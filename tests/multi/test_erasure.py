"""The erasure code: any K of K + M shares give the pack back, and the bytes are those of the formula in the format."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from cuckoo_mount.multi.erasure import data_of, parity_of, split, ways
from cuckoo_mount.multi.redundancy import Policy

POLYNOMIAL = 0x11D


def multiply(a: int, b: int) -> int:
    """Multiply in GF(2^8), bit by bit."""
    product = 0
    while b:
        product ^= a if b & 1 else 0
        a = a << 1 ^ (POLYNOMIAL if a & 0x80 else 0)
        b >>= 1
    return product


def inverse(a: int) -> int:
    return next(x for x in range(1, 256) if multiply(a, x) == 1)


policies = st.builds(Policy, data=st.integers(2, 12), parity=st.integers(1, 6))


@settings(deadline=None)  # the first call imports what computes
@given(st.binary(min_size=1, max_size=3000), policies, st.randoms(use_true_random=False))
def test_any_k_shares_are_enough(pack: bytes, policy: Policy, dice: object) -> None:
    shares = split(pack, policy)
    shares += parity_of(shares, policy)
    assert len(shares) == policy.shares
    assert {len(share) for share in shares} == {-(-len(pack) // policy.data)}
    numbers = list(range(policy.shares))
    getattr(dice, "shuffle")(numbers)  # noqa: B009 - Hypothesis' Random has no public type
    found = data_of({number: shares[number] for number in numbers[: policy.data]}, policy)
    assert b"".join(found)[: len(pack)] == pack
    start, end = sorted((len(shares[0]) // 3, len(shares[0]) // 2))
    part = data_of({number: shares[number][start:end] for number in numbers[: policy.data]}, policy)
    assert part == [share[start:end] for share in shares[: policy.data]]


@given(st.binary(min_size=1, max_size=40), policies)
def test_parity_is_what_the_format_says(pack: bytes, policy: Policy) -> None:
    shares = split(pack, policy)
    for i, parity in enumerate(parity_of(shares, policy)):
        for position, byte in enumerate(parity):
            wanted = 0
            for j, share in enumerate(shares):
                wanted ^= multiply(inverse((policy.data + i) ^ j), share[position])
            assert byte == wanted


def test_ways() -> None:
    policy = Policy(2, 2)
    assert list(ways([3, 0, 2], policy, most=10)) == [(0, 2), (0, 3), (2, 3)]
    assert list(ways([3, 0, 2], policy, most=1)) == [(0, 2)]
    assert list(ways([3], policy, most=9)) == []

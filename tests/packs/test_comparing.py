"""Share rows against listings, as pure functions: properties that any rows and any listings must have."""

from __future__ import annotations

from typing import Final

from hypothesis import given, settings
from hypothesis import strategies as st

from cuckoo_mount.multi.redundancy import parse_policy
from cuckoo_mount.packs.comparing import BAD, Listing, Verdict, compare, decide, share_key
from cuckoo_mount.types import CloudName, PackNo, PackRow, ShareRow

PACK_ID: Final = b"pack-id-16-bytes"
OTHER_ID: Final = b"other-id-16bytes"
CLOUDS: Final = tuple(CloudName(name) for name in "abcdef")
POLICIES: Final = ("1", "2", "3", "2+1", "3+2")


@st.composite
def packs(draw: st.DrawFn) -> PackRow:
    """A living pack with at least as many rows as reading it takes, on distinct clouds."""
    policy = draw(st.sampled_from(POLICIES))
    wanted = parse_policy(policy)
    count = draw(st.integers(wanted.data, wanted.shares))
    numbers = draw(st.permutations(range(wanted.shares)))[:count]
    clouds = draw(st.permutations(CLOUDS))[:count]
    shares = tuple(ShareRow(number, cloud, b"d" * 32) for number, cloud in zip(numbers, clouds, strict=True))
    return PackRow(PackNo(1), PACK_ID, policy, draw(st.integers(1, 50)), 1, False, shares, 1)


def length_bytes(pack: PackRow) -> int:
    return parse_policy(pack.policy).share_bytes(pack.size_bytes)


@st.composite
def cases(draw: st.DrawFn) -> tuple[PackRow, dict[CloudName, Listing], list[CloudName]]:
    """A pack, what some clouds list, and the drive's clouds."""
    pack = draw(packs())
    clouds = draw(st.lists(st.sampled_from(CLOUDS), unique=True))
    listings: dict[CloudName, Listing] = {}
    for cloud in draw(st.lists(st.sampled_from(clouds), unique=True)) if clouds else ():
        sizes = st.one_of(st.none(), st.just(length_bytes(pack)), st.integers(0, 60))
        # Also objects of other packs, and other shares of this one.
        listing = {share_key(OTHER_ID, 0): 7, share_key(PACK_ID, 200): length_bytes(pack)}
        for share in pack.shares:
            if (size := draw(sizes)) is not None:
                listing[share_key(PACK_ID, share.share)] = size
        listings[cloud] = listing
    return pack, listings, clouds


@given(cases())
def test_a_verdict_is_what_the_shares_own_cloud_shows(
    case: tuple[PackRow, dict[CloudName, Listing], list[CloudName]],
) -> None:
    pack, listings, clouds = case
    verdicts = compare(pack, listings, clouds)
    assert verdicts.keys() == set(pack.shares)
    for share, verdict in verdicts.items():
        listing = listings.get(share.cloud)
        shown = None if listing is None else listing.get(share_key(PACK_ID, share.share))
        if share.cloud not in clouds:
            assert verdict is Verdict.ELSEWHERE
        elif listing is None:
            assert verdict is Verdict.UNKNOWN, "a cloud that was not listed proves nothing"
        elif shown is None:
            assert verdict is Verdict.MISSING
        else:
            assert (verdict is Verdict.WHOLE) == (shown == length_bytes(pack))
            assert verdict in (Verdict.WHOLE, Verdict.DAMAGED)


@settings(max_examples=300)
@given(packs(), st.data())
def test_what_follows_never_makes_it_worse(pack: PackRow, data: st.DataObject) -> None:
    verdicts = {share: data.draw(st.sampled_from(Verdict)) for share in pack.shares}
    needed = parse_policy(pack.policy).data
    consequence = decide(pack.policy, verdicts)
    bad = {share for share, verdict in verdicts.items() if verdict in BAD}
    assert set(consequence.drop) | set(consequence.keep) == bad
    assert not set(consequence.drop) & set(consequence.keep)
    left = [verdict for share, verdict in verdicts.items() if share not in consequence.drop]
    if consequence.drop:
        assert len(left) >= needed, "I-8"
    if any(verdicts[share] is Verdict.DAMAGED for share in consequence.drop):
        assert left.count(Verdict.WHOLE) >= needed
    possible = left.count(Verdict.WHOLE) + left.count(Verdict.UNKNOWN)
    assert consequence.is_lost == (possible < needed)
    if left.count(Verdict.WHOLE) >= needed:
        assert set(consequence.drop) == bad, "whatever is bad goes where enough are whole"
    if consequence.is_lost:
        assert not consequence.drop

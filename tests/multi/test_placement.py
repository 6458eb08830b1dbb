"""Placement and policies: puzzles by name, and what must hold for all of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuckoo_mount.errors import UsageError
from cuckoo_mount.multi.placement import CloudState, can_take, choose, room_bytes, usable_bytes
from cuckoo_mount.multi.redundancy import Policy, format_policy, parse_policy, shares_needed
from cuckoo_mount.types import CloudName

GIB = 1 << 30


def cloud(name: str, free: int | None = None, **more: int | bool | str | None) -> CloudState:
    return CloudState(name=CloudName(name), free_bytes=free, **more)  # type: ignore[arg-type]  # a table of kinds


PUZZLES = {
    "nobody": ([], 1, []),
    "one": ([cloud("a", GIB)], 1, ["a"]),
    "the emptier one": ([cloud("a", GIB, placed_bytes=GIB), cloud("b", GIB)], 1, ["b"]),
    "the bigger one of two half full": (
        [cloud("a", GIB, placed_bytes=GIB), cloud("b", 9 * GIB, placed_bytes=GIB)],
        1,
        ["b"],
    ),
    "down is skipped": ([cloud("a", GIB, is_up=False), cloud("b", GIB)], 2, ["b"]),
    "full is skipped": ([cloud("a", GIB, is_full=True), cloud("b", GIB)], 2, ["b"]),
    "read-only is skipped": ([cloud("a", GIB, is_read_only=True), cloud("b", GIB)], 2, ["b"]),
    "slow is last": ([cloud("a", 9 * GIB, is_slow=True), cloud("b", 2 * GIB), cloud("c", GIB)], 2, ["b", "c"]),
    "slow is better than nobody": ([cloud("a", GIB, is_slow=True), cloud("b", GIB)], 2, ["b", "a"]),
    "slow is better than lost together": (
        [cloud("a", GIB, group="x"), cloud("b", GIB, group="x"), cloud("c", GIB, is_slow=True)],
        2,
        ["a", "c"],
    ),
    "reserve is kept": ([cloud("a", GIB, reserve_bytes=GIB), cloud("b", GIB)], 2, ["b"]),
    "capacity counts": ([cloud("a", GIB, capacity_bytes=10, placed_bytes=5), cloud("b", GIB)], 2, ["b"]),
    "no room at all": ([cloud("a", 50)], 1, []),
    "fits exactly": ([cloud("a", 100)], 1, ["a"]),
    "groups apart": (
        [cloud("a", 9 * GIB, group="x"), cloud("b", 8 * GIB, group="x"), cloud("c", 1 * GIB, placed_bytes=7 * GIB)],
        2,
        ["a", "c"],
    ),
    "groups together when there is no other way": (
        [cloud("a", GIB, group="x"), cloud("b", GIB, group="x")],
        2,
        ["a", "b"],
    ),
    "no group is not a group": ([cloud("a", GIB), cloud("b", GIB), cloud("c", GIB, group="x")], 2, ["a", "b"]),
    "unknown room counts as much": ([cloud("a"), cloud("b", 10 * GIB, placed_bytes=GIB)], 1, ["a"]),
    "by name when equal": ([cloud("b", GIB), cloud("a", GIB)], 1, ["a"]),
}


@pytest.mark.parametrize("puzzle", PUZZLES)
def test_puzzle(puzzle: str) -> None:
    clouds, copies, expected = PUZZLES[puzzle]
    assert choose(clouds, 100, copies) == expected


def test_taken_clouds_and_their_groups_are_avoided() -> None:
    clouds = [cloud("a", GIB, group="x"), cloud("b", 9 * GIB, group="x"), cloud("c", GIB, placed_bytes=GIB)]
    assert choose(clouds, 100, 1, taken=[CloudName("a")]) == ["c"]
    assert choose(clouds[:2], 100, 1, taken=[CloudName("a")]) == ["b"]


sizes = st.integers(0, 1000)
limits = st.none() | sizes
states = st.lists(
    st.builds(
        CloudState,
        name=st.text("abcdefgh", min_size=1, max_size=3).map(CloudName),
        is_up=st.booleans(),
        is_full=st.booleans(),
        is_read_only=st.booleans(),
        placed_bytes=sizes,
        capacity_bytes=limits,
        free_bytes=limits,
        reserve_bytes=st.integers(0, 100),
        group=st.sampled_from(["", "", "x", "y"]),
    ),
    max_size=8,
    unique_by=lambda state: state.name,
)


@given(states, sizes, st.integers(1, 5), st.data())
def test_choice_keeps_the_rules(clouds: list[CloudState], size: int, copies: int, data: st.DataObject) -> None:
    chosen = choose(clouds, size, copies)
    by_name = {state.name: state for state in clouds}
    able = [state for state in clouds if can_take(state, size)]
    assert len(chosen) == len(set(chosen)) == min(copies, len(able))
    assert all(can_take(by_name[name], size) for name in chosen)
    # As many distinct groups as any choice could have.
    kinds = {state.group or f"alone {state.name}" for state in able}
    of_chosen = {by_name[name].group or f"alone {name}" for name in chosen}
    assert len(of_chosen) == min(copies, len(kinds))
    assert choose(data.draw(st.permutations(clouds)), size, copies) == chosen, "the order given does not matter"


@given(states)
def test_room_is_never_negative_nor_beyond_a_limit(clouds: list[CloudState]) -> None:
    for state in clouds:
        room = room_bytes(state)
        assert (room is None) == (state.capacity_bytes is None and state.free_bytes is None)
        if room is not None:
            assert room >= 0
            assert state.capacity_bytes is None or room <= max(0, state.capacity_bytes - state.placed_bytes)
            assert state.free_bytes is None or room <= max(0, state.free_bytes - state.reserve_bytes)


@given(st.lists(st.integers(50, 400), min_size=1, max_size=5), st.integers(1, 3))
def test_clouds_fill_up_evenly_and_to_the_end(capacities: list[int], copies: int) -> None:
    placed = dict.fromkeys((CloudName(str(number)) for number in range(len(capacities))), 0)
    copies = min(copies, len(capacities))

    def now() -> list[CloudState]:
        return [
            CloudState(name=name, capacity_bytes=capacity, placed_bytes=placed[name])
            for (name, capacity) in zip(placed, capacities, strict=True)
        ]

    stored = 0
    while len(chosen := choose(now(), 10, copies)) == copies:
        for name in chosen:
            placed[name] += 10
        stored += 10
    assert stored >= usable_bytes(capacities, copies) - 10 * len(capacities) * copies


@given(st.lists(st.integers(0, 50), max_size=5), st.integers(1, 4))
def test_usable_bytes_is_what_greedy_placement_reaches(rooms: list[int], copies: int) -> None:
    # One byte at a time to the clouds with most room is optimal, and slow.
    copies_here = min(copies, len(rooms))
    left, stored = sorted(rooms, reverse=True), 0
    while copies_here and left[copies_here - 1] > 0:
        left = sorted([room - 1 for room in left[:copies_here]] + left[copies_here:], reverse=True)
        stored += 1
    assert usable_bytes(rooms, copies) == stored


@pytest.mark.parametrize(
    ("text", "policy", "written"),
    [
        ("none", Policy(1, 0), "1"),
        ("1", Policy(1, 0), "1"),
        ("2", Policy(1, 1), "2"),
        ("12", Policy(1, 11), "12"),
        ("4+2", Policy(4, 2), "4+2"),
        ("1+1", Policy(1, 1), "2"),
    ],
)
def test_policies(text: str, policy: Policy, written: str) -> None:
    assert parse_policy(text) == policy
    assert format_policy(policy) == written
    assert parse_policy(written) == policy


@pytest.mark.parametrize(
    "text", ["", "0", "-1", "2+", "+2", "2+0", "0+2", "two", "257", "200+100", "²", " 2", "2\n", "999+999"]
)
def test_what_is_no_policy(text: str) -> None:
    with pytest.raises(UsageError):
        parse_policy(text)


@pytest.mark.parametrize(
    ("text", "needed", "length"), [("1", 1, 1000), ("3", 1, 1000), ("4+2", 4, 250), ("3+1", 3, 334)]
)
def test_shares_needed_and_their_length(text: str, needed: int, length: int) -> None:
    assert shares_needed(text) == needed
    assert parse_policy(text).share_bytes(1000) == length

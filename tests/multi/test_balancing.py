"""Which packs are written anew to even clouds out: puzzles by name, and what must hold for all of them."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from cuckoo_mount.multi.balancing import (
    SPREAD_MAX,
    Moves,
    PackPlace,
    choose_moves,
    fits_without,
    spread,
    takes_part,
)
from cuckoo_mount.multi.placement import CloudState, choose, fill_level, total_bytes
from cuckoo_mount.multi.redundancy import Policy
from cuckoo_mount.types import CloudName, PackNo

MIB = 1 << 20


def clouds_of(packs: Sequence[PackPlace], capacities: dict[str, int], **more: CloudState) -> list[CloudState]:
    """Return clouds that have these packs and nothing else."""
    found = []
    for name, capacity in capacities.items():
        placed = sum(pack.share_bytes for pack in packs if name in pack.clouds)
        found.append(CloudState(name=CloudName(name), capacity_bytes=capacity, placed_bytes=placed))
    return [more.get(cloud.name, cloud) for cloud in found]


def pack(number: int, size: int, *clouds: str, shares: int = 0) -> PackPlace:
    return PackPlace(PackNo(number), size, shares or len(clouds), tuple(CloudName(cloud) for cloud in clouds))


def stored(count: int, size: int, capacities: dict[str, int], shares: int, seed: int = 1) -> list[PackPlace]:
    """Return packs as placement puts them on clouds of these capacities."""
    states = {name: CloudState(name=CloudName(name), capacity_bytes=most) for name, most in capacities.items()}
    dice, packs = random.Random(seed), []
    for number in range(count):
        size_bytes = dice.randrange(size // 2, size)
        chosen = choose(list(states.values()), size_bytes, shares)
        packs.append(pack(number, size_bytes, *chosen))
        states |= {name: evolve(states[name], placed_bytes=states[name].placed_bytes + size_bytes) for name in chosen}
    return packs


def names(*clouds: str) -> dict[str, int]:
    return dict.fromkeys(clouds, 1000)


ONE_EACH = [pack(number, 50, cloud) for number, cloud in enumerate("aabb")]
PUZZLES: dict[str, tuple[list[PackPlace], dict[str, int], list[int]]] = {
    "nothing there": ([], names("a", "b"), []),
    "no cloud": ([], {}, []),
    "even already": (ONE_EACH, names("a", "b"), []),
    "within the limit": ([pack(1, 50, "a")], names("a", "b"), []),
    "one to the other": ([pack(1, 50, "a"), pack(2, 50, "a")], names("a", "b"), [1]),
    "the big one first, and that is enough": ([pack(1, 60, "a"), pack(2, 100, "a")], names("a", "b"), [2]),
    "one lump stays: the other would be as full": ([pack(1, 500, "a")], names("a", "b"), []),
    "every cloud has a share of all": ([pack(n, 90, "a", "b") for n in range(3)], {"a": 1000, "b": 300}, []),
    "by part, not by bytes": (
        [*(pack(n, 100, "a") for n in range(9)), pack(9, 100, "b")],
        {"a": 9000, "b": 1000},
        [],
    ),
    "a share on a cloud that is gone": ([pack(n, 50, "a", "gone") for n in range(4)], names("a", "b", "c"), []),
    "a share is missing": ([pack(n, 50, "a", shares=2) for n in range(4)], names("a", "b", "c"), []),
}


@pytest.mark.parametrize("puzzle", PUZZLES)
def test_puzzle(puzzle: str) -> None:
    packs, capacities, expected = PUZZLES[puzzle]
    assert list(choose_moves(clouds_of(packs, capacities), packs).packs) == expected


@pytest.mark.parametrize("change", [{"is_up": False}, {"is_read_only": True}, {"is_no_new": True}])
def test_clouds_that_do_not_take_part_are_left_alone(change: dict[str, bool]) -> None:
    packs = [pack(number, 50, "a") for number in range(10)]
    clouds = clouds_of(packs, names("a", "b", "c"))
    for place in (0, 1):
        some = list(clouds)
        some[place] = evolve(some[place], **change)  # type: ignore[arg-type]  # a table of kinds
        moves = choose_moves(some, packs)
        assert bool(moves.packs) == (place == 1), "nothing goes off it, nothing comes to it"
        assert moves.after[place] == some[place]


@pytest.mark.parametrize(("shares", "count"), [(1, 60), (2, 60), (3, 90), (5, 200)])
def test_a_new_cloud_is_filled_as_the_others(shares: int, count: int) -> None:
    """The moment after `cloud add`: all but one are half full, or more, in clouds of different sizes."""
    capacities = {name: 1000 * (4 + place % 3) for place, name in enumerate("abcdef"[: shares + 2])}
    size = sum(capacities.values()) // 2 // count // shares
    packs = stored(count, size, capacities, shares)
    clouds = clouds_of(packs, capacities | {"new": 5000})
    assert spread(clouds) > 0.3
    moved = rounds = 0
    while spread(clouds) > SPREAD_MAX:
        moves = choose_moves(clouds, packs)
        moved += sum(pack.share_bytes * pack.shares for pack in packs if pack.number in moves.packs)
        packs, rounds = _carried_out(clouds, packs, moves), rounds + 1
        clouds = list(moves.after)
        assert rounds <= 3
    needed = clouds[-1].placed_bytes
    assert moved <= 2.5 * shares * needed, "far more is written anew than has to come to the new cloud"


sizes = st.integers(1, 400)
cloud_names = st.sampled_from([CloudName(name) for name in "abcdef"])
some_packs = st.lists(
    st.tuples(sizes, st.lists(cloud_names, min_size=1, max_size=4, unique=True), st.integers(1, 5)), max_size=30
).map(lambda rows: [PackPlace(PackNo(n), size, shares, tuple(at)) for n, (size, at, shares) in enumerate(rows)])
some_clouds = st.lists(
    st.builds(
        CloudState,
        name=cloud_names,
        is_up=st.sampled_from([True, True, True, False]),
        is_full=st.sampled_from([False, False, False, True]),
        is_no_new=st.sampled_from([False, False, False, True]),
        capacity_bytes=st.none() | st.integers(0, 9000),
        free_bytes=st.none() | st.integers(0, 9000),
        reserve_bytes=st.integers(0, 100),
        group=st.sampled_from(["", "", "x"]),
    ),
    max_size=6,
    unique_by=lambda cloud: cloud.name,
)


def filled(clouds: Sequence[CloudState], packs: Sequence[PackPlace]) -> list[CloudState]:
    """Return the clouds with these packs on them."""
    return [
        evolve(cloud, placed_bytes=sum(pack.share_bytes for pack in packs if cloud.name in pack.clouds))
        for cloud in clouds
    ]


def highest(clouds: Sequence[CloudState]) -> float:
    return max((fill_level(cloud) for cloud in clouds if takes_part(cloud)), default=0.0)


def is_better(before: Sequence[CloudState], moves: Moves) -> bool:
    return spread(moves.after) <= spread(before) and highest(moves.after) <= highest(before)


@given(some_clouds, some_packs, st.data())
def test_a_plan_keeps_the_rules(empty: list[CloudState], packs: list[PackPlace], data: st.DataObject) -> None:
    clouds = filled(empty, packs)
    moves = choose_moves(clouds, packs)
    assert len(set(moves.packs)) == len(moves.packs), "no pack twice"
    assert is_better(clouds, moves)
    assert [cloud.name for cloud in moves.after] == [cloud.name for cloud in clouds]
    by_number = {pack.number: pack for pack in packs}
    aside = {cloud.name for cloud in clouds if not takes_part(cloud)}
    assert not any(aside & set(by_number[number].clouds) for number in moves.packs)
    for before, after in zip(clouds, moves.after, strict=True):
        if before.name in aside:
            assert after == before
    # Nothing is lost or made, but for shares that are more than the policy wants.
    more = sum(
        by_number[number].share_bytes * (len(by_number[number].clouds) - by_number[number].shares)
        for number in moves.packs
    )
    placed = [sum(cloud.placed_bytes for cloud in some) for some in (clouds, moves.after)]
    assert placed[0] - placed[1] == more >= 0
    assert choose_moves(data.draw(st.permutations(clouds)), packs).packs == moves.packs, "the order does not matter"


@given(some_clouds, some_packs)
def test_planning_again_and_again_comes_to_an_end(empty: list[CloudState], packs: list[PackPlace]) -> None:
    """Each plan carried out as it was foreseen: no pack goes round in circles."""
    clouds = filled(empty, packs)
    for _ in range(200):
        moves = choose_moves(clouds, packs)
        if not moves.packs:
            return
        assert is_better(clouds, moves)
        packs = _carried_out(clouds, packs, moves)
        clouds = filled(empty, packs) if all(cloud.free_bytes is None for cloud in empty) else list(moves.after)
        assert list(moves.after) == clouds
    raise AssertionError("there is always something to be moved")


def _carried_out(clouds: Sequence[CloudState], packs: Sequence[PackPlace], moves: Moves) -> list[PackPlace]:
    """Return the packs where placement puts them, on distinct clouds, one after the other."""
    states = {cloud.name: cloud for cloud in clouds}
    places = {pack.number: pack for pack in packs}
    for number in moves.packs:
        old = places[number]
        chosen = choose(list(states.values()), old.share_bytes, old.shares)
        assert len(set(chosen)) == old.shares
        for name, sign in [*((name, -1) for name in old.clouds if name in states), *((name, 1) for name in chosen)]:
            state, change = states[name], sign * old.share_bytes
            free = None if state.free_bytes is None else max(0, state.free_bytes - change)
            states[name] = evolve(state, placed_bytes=state.placed_bytes + change, free_bytes=free)
        places[number] = evolve(old, clouds=tuple(chosen))
    return list(places.values())


@given(some_clouds, some_packs)
def test_levels_are_parts(empty: list[CloudState], packs: list[PackPlace]) -> None:
    clouds = filled(empty, packs)
    for cloud in clouds:
        assert 0.0 <= fill_level(cloud) <= 1.0
        assert total_bytes(cloud) >= cloud.placed_bytes
    assert 0.0 <= spread(clouds) <= 1.0


@pytest.mark.parametrize(
    ("capacities", "policy", "stored_bytes", "fits"),
    [
        ({"a": 100, "b": 100}, Policy(1, 0), 100, True),
        ({"a": 100, "b": 100}, Policy(1, 0), 101, False),
        ({"a": 100, "b": 100}, Policy(1, 1), 1, False),  # one cloud is too few for two copies
        ({"a": 100, "b": 100, "c": 50}, Policy(1, 1), 50, True),
        ({"a": 100, "b": 100, "c": 50}, Policy(1, 1), 51, False),
        ({"a": 9, "b": 100, "c": 100, "d": 100, "e": 100, "f": 100}, Policy(3, 2), 300, True),
        ({"a": 9, "b": 100, "c": 100, "d": 100, "e": 100, "f": 100}, Policy(3, 2), 301, False),
        ({"a": 9, "b": 100, "c": 100, "d": 100, "e": 100}, Policy(3, 2), 1, False),
    ],
)
def test_whether_a_cloud_can_be_emptied(
    capacities: dict[str, int], policy: Policy, stored_bytes: int, fits: bool
) -> None:
    clouds = clouds_of([], capacities)
    assert fits_without(clouds, CloudName("a"), policy, stored_bytes) == fits


def test_a_cloud_without_a_limit_holds_anything() -> None:
    clouds = [CloudState(name=CloudName("a")), CloudState(name=CloudName("b"))]
    assert fits_without(clouds, CloudName("a"), Policy(1, 0), 1 << 39)
    assert not fits_without([evolve(clouds[0]), evolve(clouds[1], is_no_new=True)], CloudName("a"), Policy(1, 0), 1)
    assert math.isclose(fill_level(evolve(clouds[0], placed_bytes=1 << 39)), 0.5)

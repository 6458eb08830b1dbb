"""Which packs are compacted: the rules as puzzles, and what holds for any drive."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cuckoo_mount.packs.choosing import (
    MAX_CHUNKS_PER_PACK,
    MERGE_COUNT,
    SMALL,
    STORED_RATIO,
    Batch,
    choose_now_and_then,
    choose_thoroughly,
    choose_to_squeeze,
    fullness,
    needed_bytes,
)
from cuckoo_mount.packs.compactjobs import SAVE_GAP_BYTES, SAVE_MAX_BYTES, save_runs
from cuckoo_mount.types import Location, PackFill, PackNo

FULL = 16 << 20


def fill(number: int, size: int, used: int, versions: int = 16, live: int | None = None) -> PackFill:
    return PackFill(PackNo(number), "1", size, used if live is None else live, used, versions)


def numbers(batches: list[Batch]) -> list[list[int]]:
    return [[pack.number for pack in batch] for batch in batches]


def rewritten(batch: Batch, number: int) -> PackFill:
    """Return the pack that a batch becomes."""
    used, versions = sum(p.used_bytes for p in batch), sum(p.versions for p in batch)
    pack = fill(number, 1, used, versions, sum(p.live_bytes for p in batch))
    return fill(number, needed_bytes(pack), used, versions, pack.live_bytes)


def test_full_packs_are_left_alone() -> None:
    packs = [fill(n, FULL, FULL - 4000) for n in range(20)]
    assert choose_now_and_then(packs, FULL) == choose_thoroughly(packs, FULL) == []


def test_sparse_packs_fill_each_other_up() -> None:
    packs = [fill(n, FULL, FULL // 3) for n in range(7)]
    assert numbers(choose_now_and_then(packs, FULL)) == [[0, 1, 2], [3, 4, 5], [6]]


def test_little_to_gain_is_not_worth_two_requests() -> None:
    assert choose_now_and_then([fill(1, 100_000, 10_000, live=FULL // 2)], FULL) == []
    assert numbers(choose_thoroughly([fill(1, 100_000, 10_000, live=FULL // 2)], FULL)) == [[1]]


def test_for_a_full_cloud_the_emptiest_packs_come_first() -> None:
    packs = [fill(n, FULL, part * FULL // 32) for n, part in enumerate((31, 29, 24, 8, 16, 32))]
    assert numbers(choose_to_squeeze(packs, FULL)) == [[3, 4], [2], [1]]


def test_half_full_packs_wait_for_gc() -> None:
    packs = [fill(n, FULL, FULL * 6 // 10) for n in range(4)]
    assert choose_now_and_then(packs, FULL) == []
    assert choose_thoroughly(packs, FULL) != []


def test_tiny_chunks_are_no_waste() -> None:
    """Their index entries are longer than they are."""
    packs = [fill(n, 4000 * 120, 4000 * 40, 4000) for n in range(9)]
    assert choose_now_and_then(packs, FULL) == choose_thoroughly(packs, FULL) == []


def test_small_packs_are_merged_with_their_like_only() -> None:
    tiny = [fill(n, 4300, 4100, 1) for n in range(MERGE_COUNT)]
    medium = [fill(100 + n, FULL // 8 + 4000, FULL // 8) for n in range(MERGE_COUNT - 1)]
    assert numbers(choose_now_and_then([*tiny, *medium], FULL)) == [list(range(MERGE_COUNT))]
    assert choose_now_and_then([*tiny[1:], *medium], FULL) == []
    assert len(numbers(choose_thoroughly([*tiny[1:], *medium], FULL))[0]) > 7


def test_a_trickle_costs_little() -> None:
    """One file of 4 KiB a minute for four days: few packs are left, and each byte was written again few times."""
    packs: list[PackFill] = []
    number = written = 0
    for minute in range(4 * 24 * 60):
        number += 1
        packs.append(fill(number, 4300, 4100, 1))
        if minute % 10 == 9:
            for batch in choose_now_and_then(packs, FULL):
                number += 1
                written += sum(pack.versions for pack in batch)
                packs = [*(pack for pack in packs if pack not in batch), rewritten(batch, number)]
    assert sum(pack.versions for pack in packs) == 4 * 24 * 60
    assert len(packs) <= 5 * MERGE_COUNT
    assert written <= 4 * 4 * 24 * 60


def some_pack(number: int, row: tuple[int, float, int, int]) -> PackFill:
    """Return a pack of which a part lives; `squeezed`: how well it was compressed."""
    size, part, versions, squeezed = row
    used = max(1, int(size * part))
    return fill(number, size + 80 * versions + 200, used, versions, min(FULL, used * squeezed))


PACKS = st.lists(
    st.tuples(st.integers(1, FULL), st.floats(0.0001, 1), st.integers(1, MAX_CHUNKS_PER_PACK), st.integers(1, 3)),
    max_size=40,
).map(lambda rows: [some_pack(number, row) for number, row in enumerate(rows)])


@given(PACKS)
def test_batches_are_disjoint_and_fit(packs: list[PackFill]) -> None:
    for batches in (choose_now_and_then(packs, FULL), choose_thoroughly(packs, FULL)):
        chosen = [pack for batch in batches for pack in batch]
        assert len(set(chosen)) == len(chosen)
        for batch in batches:
            assert len(batch) == 1 or fullness(rewritten(batch, 0), FULL) <= 1


@given(PACKS)
def test_gc_ends_with_little_waste_and_then_rests(packs: list[PackFill]) -> None:
    rounds, number = 0, 1000
    while batches := choose_thoroughly(packs, FULL):
        rounds += 1
        assert rounds <= 40, "it goes on for ever"
        for batch in batches:
            number += 1
            packs = [*(pack for pack in packs if pack not in batch), rewritten(batch, number)]
    assert sum(p.size_bytes for p in packs) <= STORED_RATIO * sum(needed_bytes(p) for p in packs)
    assert sum(fullness(p, FULL) < 1 / SMALL for p in packs) <= 1 + len(packs) // 2


@given(
    st.lists(
        st.tuples(st.integers(0, 2 * SAVE_GAP_BYTES), st.integers(1, 1 << 20), st.integers(0, 1 << 20)), max_size=40
    ),
    st.integers(0, 99),
)
def test_runs_bring_everything_back_to_back(chunks: list[tuple[int, int, int]], start: int) -> None:
    locations, offset = [], 64
    for gap, length, plain in chunks:
        locations.append(Location(PackNo(1), offset + gap, length, plain, b""))
        offset += gap + length
    runs = list(save_runs(locations, "path", start))
    assert [location for run in runs for location in run.locations] == locations
    for run in runs:
        assert run.start == start
        start += sum(location.plain_bytes for location in run.locations)
        first, last = run.locations[0], run.locations[-1]
        assert len(run.locations) == 1 or last.offset + last.length_bytes - first.offset <= SAVE_MAX_BYTES

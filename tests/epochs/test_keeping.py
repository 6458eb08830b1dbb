"""Which epochs stay, when a snapshot is made, what the ledger knows, and whose claim counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from cuckoo_mount.clock import Moment
from cuckoo_mount.epochformat import EpochKind, LeaseName
from cuckoo_mount.epochs.claims import (
    EARLIER_MAX,
    STALE_S,
    Claim,
    Notes,
    is_stale,
    read_notes,
    watch_claim,
    write_notes,
)
from cuckoo_mount.epochs.keeping import (
    DAY_NS,
    HOUR_NS,
    JOURNALS_MAX,
    NEWEST,
    SMALL_BYTES,
    kept_epochs,
    needed_entries,
    wants_snapshot,
)
from cuckoo_mount.epochs.lease import Lease
from cuckoo_mount.epochs.ledger import Entry, Ledger, from_local
from cuckoo_mount.errors import MetadataError
from tests.epochs.epochtools import header_of, name_of

NOW = 1000 * DAY_NS


def entry_of(epoch: int, kind: EpochKind = "journal", *, time_ns: int = NOW, size_bytes: int = 100) -> Entry:
    header = evolve(header_of(name_of(epoch, kind=kind)), time_ns=time_ns)
    return Entry(header, header.salt * 2, size_bytes)


def line_of(kinds: str, *, every_ns: int = 0, end_ns: int = NOW) -> list[Entry]:
    """Return a line of snapshots (`s`) and journals (`j`), the last one at `end_ns`, the others `every_ns` apart."""
    last = len(kinds) - 1
    return [
        entry_of(place + 1, "snapshot" if kind == "s" else "journal", time_ns=end_ns - (last - place) * every_ns)
        for place, kind in enumerate(kinds)
    ]


# -- keeping --


def test_the_last_three_stay() -> None:
    line = line_of("sjjjjj", end_ns=NOW - 30 * DAY_NS)
    assert kept_epochs(line, NOW) == {4, 5, 6}
    assert NEWEST == 3


def test_of_an_hour_the_snapshot_stays_else_the_newest() -> None:
    # Two hours ago: journals only; one hour ago: a snapshot among journals; then three that stay anyway.
    two, one = NOW - 2 * HOUR_NS, NOW - HOUR_NS
    line = [
        entry_of(1, "snapshot", time_ns=NOW - 30 * DAY_NS),
        *(entry_of(number, time_ns=two + number) for number in (2, 3)),
        entry_of(4, time_ns=one + 1),
        entry_of(5, "snapshot", time_ns=one + 2),
        entry_of(6, time_ns=one + 3),
        *(entry_of(number, time_ns=NOW + number) for number in (7, 8, 9)),
    ]
    assert kept_epochs(line, NOW + 10) == {3, 5, 7, 8, 9}


def test_one_per_day_for_a_week() -> None:
    line = line_of("s" * 20, every_ns=DAY_NS)
    assert kept_epochs(line, NOW) == set(range(14, 21))


@pytest.mark.parametrize(("newest", "kept"), [(1, {6}), (2, {5, 6}), (100, {1, 2, 3, 4, 5, 6}), (0, {6})])
def test_so_many_as_were_asked_for(newest: int, kept: set[int]) -> None:
    assert kept_epochs(line_of("sjjsjj"), NOW, newest) == kept


def test_what_a_kept_epoch_is_made_of_is_needed() -> None:
    line = line_of("sjjsjjsj")
    assert [entry.name.epoch for entry in needed_entries(line, frozenset({3, 8}))] == [1, 2, 3, 7, 8]
    assert [entry.name.epoch for entry in needed_entries(line, frozenset({4, 7}))] == [4, 7]


@given(st.text("sj", min_size=1, max_size=30), st.integers(0, 400), st.integers(0, 10**9))
def test_every_kept_epoch_can_be_loaded(kinds: str, hours_apart: int, shift: int) -> None:
    line = line_of("s" + kinds, every_ns=hours_apart * HOUR_NS // 10)
    kept = kept_epochs(line, NOW + shift)
    assert line[-1].name.epoch in kept
    needed = {entry.name.epoch: entry for entry in needed_entries(line, kept)}
    for epoch in kept:
        while needed[epoch].name.kind != "snapshot":
            epoch -= 1
    assert kept_epochs(list(needed.values()), NOW + shift) == kept  # what was deleted changes nothing


# -- snapshots --


@pytest.mark.parametrize(
    ("parts", "wanted"),
    [
        ([], True),
        (line_of("s"), False),
        (line_of("sj"), False),
        (line_of("s" + "j" * (JOURNALS_MAX - 1)), False),
        (line_of("s" + "j" * JOURNALS_MAX), True),
        ([entry_of(1, "snapshot"), entry_of(2, size_bytes=300 << 10)], True),
        ([entry_of(1, "snapshot", size_bytes=10 << 20), entry_of(2, size_bytes=300 << 10)], False),
        ([entry_of(1, "snapshot", size_bytes=10 << 20), entry_of(2, size_bytes=6 << 20)], True),
        (line_of("sj", every_ns=HOUR_NS), True),
        ([entry_of(1, "snapshot", time_ns=NOW - HOUR_NS)], False),
        ([entry_of(1, "snapshot", time_ns=NOW - HOUR_NS, size_bytes=SMALL_BYTES + 1), entry_of(2)], False),
        ([evolve(entry_of(1, "snapshot"), header=evolve(entry_of(1, "snapshot").header, schema=1))], True),
    ],
)
def test_when_a_snapshot_is_made(parts: list[Entry], wanted: bool) -> None:
    assert wants_snapshot(parts, NOW) == wanted


# -- the ledger --


def test_the_ledger_survives_as_settings() -> None:
    ledger = Ledger(line_of("sjjsj"), 4)
    settings = {key: value for key, value in ledger.as_local().items() if value is not None}
    assert from_local(settings | {"epoch": "6", "other": "x"}) == ledger
    assert ledger.epoch == 5
    assert [part.name.epoch for part in ledger.parts] == [4, 5]


def test_an_empty_ledger() -> None:
    assert from_local({}) == Ledger()
    assert (Ledger().epoch, Ledger().tip, Ledger().parts) == (0, None, ())
    assert Ledger(line_of("sj")[1:]).parts == ()  # its snapshot is not known


@pytest.mark.parametrize("text", ["", "{}", '{"head": "00", "hash": "00", "size": 1}', '{"head": 1}', "[]"])
def test_a_damaged_ledger_is_refused(text: str) -> None:
    with pytest.raises(MetadataError, match="damaged"):
        from_local({"epoch.object.x": text})


# -- claims --


def claim_of(term: int, writer: int, counter: int = 1, *, released: bool = False) -> Claim:
    return Claim(LeaseName(term, writer), Lease(0, "host", counter, released))


START: Final = Moment("a boot", 10**9)
STALE: Final = evolve(START, ns=START.ns + int(STALE_S * 1e9))


def test_a_claim_is_stale_when_nothing_changed_for_five_minutes() -> None:
    notes = watch_claim(Notes(), claim_of(3, 1), [name_of(7)], START)
    assert not is_stale(notes, evolve(STALE, ns=STALE.ns - 1))
    same = watch_claim(notes, claim_of(3, 1), [name_of(7)], STALE)
    assert same == notes
    assert is_stale(same, STALE)
    for other in (
        watch_claim(notes, claim_of(3, 1, counter=2), [name_of(7)], STALE),
        watch_claim(notes, claim_of(3, 1), [name_of(7), name_of(8)], STALE),
        watch_claim(notes, claim_of(4, 1), [name_of(7)], STALE),
    ):
        assert not is_stale(other, STALE)


def test_a_reboot_or_another_machine_begins_to_watch_anew() -> None:
    """It may have been a copy of the state folder that watched; how long ago, nobody knows."""
    notes = watch_claim(Notes(), claim_of(3, 1), [], START)
    elsewhere = Moment("another boot", STALE.ns)
    assert not is_stale(notes, elsewhere)
    notes = watch_claim(notes, claim_of(3, 1), [], elsewhere)
    assert not is_stale(notes, elsewhere)
    assert is_stale(notes, evolve(elsewhere, ns=elsewhere.ns + int(STALE_S * 1e9)))


def test_notes_of_earlier_versions_begin_to_watch_anew(tmp_path: Path) -> None:
    """They had a time of day."""
    old = {"own": "1-a", "counter": 3, "seen": "x", "since_ns": 5, "earlier": []}
    (tmp_path / "lease.json").write_text(json.dumps(old))
    notes = read_notes(tmp_path)
    assert (notes.own, notes.counter) == ("1-a", 3)
    assert not is_stale(notes, STALE)


def test_whose_claim_it_is(tmp_path: Path) -> None:
    mine = claim_of(3, 77, counter=5)
    write_notes(tmp_path, Notes(own=str(mine.name), counter=5))
    notes = read_notes(tmp_path)
    assert notes.is_own(mine)
    assert notes.is_own(claim_of(3, 77, counter=4))  # an older renewal, on a cloud that was away
    assert not notes.is_own(claim_of(3, 77, counter=6))  # renewed by a copy of this state folder
    assert not notes.is_own(claim_of(3, 78))
    assert not notes.is_own(claim_of(4, 77))
    assert not Notes().is_own(mine)


def test_a_claim_that_no_cloud_took_does_not_make_us_strangers_to_the_one_before(tmp_path: Path) -> None:
    write_notes(tmp_path, Notes().with_own("1-a", 1).with_own("1-a", 2))
    for term in range(2, 40):
        write_notes(tmp_path, read_notes(tmp_path).with_own(str(claim_of(term, 5).name), 1))
    notes = read_notes(tmp_path)
    assert notes.own == str(claim_of(39, 5).name)
    assert notes.is_own(claim_of(39, 5))
    assert notes.is_own(claim_of(38, 5))
    assert not notes.is_own(claim_of(38, 5, counter=2))
    assert not notes.is_own(claim_of(38, 6))
    assert len(notes.earlier) == EARLIER_MAX
    assert not notes.is_own(claim_of(2, 5)), "they are not kept for ever"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"own": 1}', "\xff"])
def test_damaged_notes_are_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "lease.json").write_text(content, encoding="latin-1")
    assert read_notes(tmp_path) == Notes()

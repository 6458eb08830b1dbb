"""Which chain is chosen: by name for each case that matters, and against a slow model for all others."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from attrs import define, field
from hypothesis import given, settings
from hypothesis import strategies as st

from cuckoo_mount.epochformat import NO_PREDECESSOR, EpochKind, EpochName
from cuckoo_mount.epochs.chain import Chain, EpochObject, Sighting, choose_chain
from cuckoo_mount.types import CloudName
from tests.epochs.epochtools import header_of

A, B, C = CloudName("a"), CloudName("b"), CloudName("c")
ALL = (A, B, C)


@define
class Line:
    """Epochs made one after the other; `fork` lets another writer go on from one of them."""

    made: list[EpochObject] = field(factory=list)

    @property
    def last(self) -> EpochObject:
        return self.made[-1]

    def add(
        self,
        kind: EpochKind = "journal",
        *,
        term: int | None = None,
        writer: int = 1,
        clouds: Iterable[CloudName] = ALL,
    ) -> EpochObject:
        before = self.made[-1] if self.made else None
        epoch = before.name.epoch + 1 if before else 1
        name = EpochName(term or (before.name.term if before else 1), epoch, writer, kind)
        header = header_of(name, before.object_hash if before else NO_PREDECESSOR)
        self.made.append(EpochObject(name, header, header.salt * 2, tuple(clouds)))
        return self.last

    def fork(self, epoch: int) -> Line:
        return Line([item for item in self.made if item.name.epoch <= epoch])


def line_of(kinds: str) -> Line:
    """Return a line of snapshots (`s`) and journals (`j`)."""
    line = Line()
    for kind in kinds:
        line.add("snapshot" if kind == "s" else "journal")
    return line


def shown(items: Iterable[EpochObject], damaged: Iterable[EpochObject] = ()) -> list[Sighting]:
    broken = list(damaged)
    return [
        Sighting(cloud, item.name, None if item in broken else (item.header, item.object_hash))
        for item in items
        for cloud in item.clouds
    ]


def choose(*items: EpochObject, damaged: Iterable[EpochObject] = ()) -> Chain:
    return choose_chain(shown(items, damaged), ALL)


def epochs(items: Iterable[EpochObject]) -> list[int]:
    return [item.name.epoch for item in items]


def test_nothing() -> None:
    chain = choose()
    assert chain == Chain()
    assert chain.tip is None
    assert chain.standing(0, b"") == "equal"
    assert chain.standing(3, b"x") == "ahead"


def test_newest_snapshot_and_the_journals_after_it() -> None:
    line = line_of("sjjsjj")
    chain = choose(*line.made)
    assert epochs(chain.parts) == [4, 5, 6]
    assert epochs(chain.history) == [1, 2, 3, 4, 5, 6]
    assert chain.tip == line.last
    assert not chain.newer
    assert not chain.forks
    assert chain.missing == {A: (), B: (), C: ()}


def test_tip_that_is_a_snapshot() -> None:
    assert epochs(choose(*line_of("sjs").made).parts) == [3]


def test_missing_says_what_is_missing_where() -> None:
    line = Line()
    line.add("snapshot")
    line.add(clouds=(A, C))
    line.add(clouds=(C,))
    chain = choose(*line.made)
    assert chain.missing == {A: (line.made[2].name,), B: (line.made[1].name, line.made[2].name), C: ()}
    assert chain.tip == line.last
    assert chain.tip.clouds == (C,)


def test_gap_stops_there_and_is_named() -> None:
    line = line_of("sjjj")
    del line.made[2]
    chain = choose(*line.made)
    assert epochs(chain.parts) == [1, 2]
    (newer,) = chain.newer
    assert newer.name == line.last.name
    assert newer.reason == f"epoch 3 is missing, which {line.last.name} follows"
    assert not chain.forks


def test_gap_before_a_snapshot_does_not_matter() -> None:
    line = line_of("sjjsj")
    del line.made[1]
    chain = choose(*line.made)
    assert epochs(chain.parts) == [4, 5]
    assert epochs(chain.history) == [3, 4, 5]
    assert not chain.newer


def test_without_any_snapshot_nothing_can_be_loaded() -> None:
    line = line_of("sjj")
    chain = choose(*line.made[1:])
    assert chain.parts == ()
    assert [newer.name.epoch for newer in chain.newer] == [2, 3]


def test_damaged_on_one_cloud_and_on_all() -> None:
    line = line_of("sjj")
    good = [Sighting(B, line.last.name, (line.last.header, line.last.object_hash))]
    chain = choose_chain([*shown(line.made[:2]), Sighting(A, line.last.name, None), *good], ALL)
    assert chain.tip is not None
    assert chain.tip.name == line.last.name
    assert chain.tip.clouds == (B,)
    assert chain.damaged == ((A, line.last.name),)
    assert not chain.newer
    chain = choose(*line.made, damaged=[line.last])
    assert epochs(chain.parts) == [1, 2]
    assert [newer.name for newer in chain.newer] == [line.last.name]
    assert "damaged" in chain.newer[0].reason


def test_hash_of_the_predecessor_must_fit() -> None:
    line = line_of("sjj")
    other = line.fork(1)
    other.add()
    chain = choose(line.made[0], other.last, line.last)
    assert epochs(chain.parts) == [1, 2]
    assert chain.tip == other.last
    assert "which is not the one that" in chain.newer[0].reason


def test_highest_term_wins_however_long_the_other_branch_is() -> None:
    line = line_of("sj")
    taken_over = line.fork(2)
    taken_over.add(term=2, writer=2)
    for _ in range(5):
        line.add()
    chain = choose(*line.made, taken_over.last)
    assert chain.tip == taken_over.last
    (fork,) = chain.forks
    assert (fork.newest, fork.after) == (line.last, 2)
    assert chain.standing(7, line.last.object_hash) == "ahead"
    assert chain.standing(3, line.made[2].object_hash) == "forked"
    assert chain.standing(2, line.made[1].object_hash) == "behind"


def test_taking_over_a_branch_makes_it_the_drive() -> None:
    line = line_of("sj")
    other = line.fork(2)
    other.add(term=2, writer=2)
    line.add()
    line.add(term=3)
    chain = choose(*line.made, other.last)
    assert chain.tip == line.last
    assert [(fork.newest, fork.after) for fork in chain.forks] == [(other.last, 2)]


def test_two_writers_with_one_term_are_named_and_the_choice_is_stable() -> None:
    line = line_of("s")
    other = line.fork(1)
    line.add(writer=1)
    other.add(writer=2)
    for order in ((line.last, other.last), (other.last, line.last)):
        chain = choose(line.made[0], *order)
        assert chain.tip == other.last
        assert [fork.newest for fork in chain.forks] == [line.last]


def test_a_term_never_falls_along_a_chain() -> None:
    line = line_of("s")
    line.add(term=3)
    line.add(term=2)
    chain = choose(*line.made)
    assert chain.tip == line.made[1]
    assert [fork.newest for fork in chain.forks] == [line.made[2]]
    line.add(term=3)
    chain = choose(*line.made)
    assert chain.tip == line.made[1]
    assert [newer.name for newer in chain.newer] == [line.last.name]


def test_same_name_with_other_bytes() -> None:
    """A writer must not do it; if two clouds show different objects under one name, one is chosen and one a fork."""
    line = line_of("s")
    other = line.fork(1)
    line.add()
    other.add()
    assert line.last.name == other.last.name
    chain = choose(line.made[0], line.last, other.last)
    assert chain.tip in (line.last, other.last)
    assert len(chain.forks) == 1


def test_standing() -> None:
    line = line_of("sjjsj")
    chain = choose(*line.made[2:])
    hashes = [item.object_hash for item in line.made]
    assert chain.standing(5, hashes[4]) == "equal"
    assert chain.standing(4, hashes[3]) == "behind"
    assert chain.standing(3, hashes[2]) == "behind"
    assert chain.standing(2, hashes[1]) == "behind", "the oldest one left says whom it followed"
    assert chain.standing(2, b"x") == "forked"
    assert chain.standing(1, hashes[0]) == "unknown"
    assert chain.standing(5, b"x") == "forked"
    assert chain.standing(3, b"x") == "forked"
    assert chain.standing(6, b"x") == "ahead"
    assert chain.standing(0, b"") == "behind"


def test_parts_after() -> None:
    line = line_of("sjjsjj")
    chain = choose(*line.made)
    assert epochs(chain.parts_after(4)) == [5, 6]
    assert epochs(chain.parts_after(5)) == [6]
    assert chain.parts_after(6) == ()
    assert epochs(chain.parts_after(2)) == [4, 5, 6], "a snapshot in between: made anew"
    assert epochs(chain.parts_after(0)) == [4, 5, 6]
    chain = choose(*line_of("sjj").made)
    assert epochs(chain.parts_after(1)) == [2, 3]


@st.composite
def worlds(draw: st.DrawFn) -> list[EpochObject]:
    """Some branches of one drive, of which some objects are lost."""
    lines = [Line()]
    for _ in range(draw(st.integers(1, 12))):
        line = draw(st.sampled_from(lines))
        if line.made and draw(st.integers(0, 4)) == 0:
            line = line.fork(draw(st.integers(1, line.last.name.epoch)))
            lines.append(line)
        term = max(1, (line.last.name.term if line.made else 1) + draw(st.sampled_from([0, 0, 0, 0, 1, -1])))
        kind: EpochKind = "snapshot" if not line.made or draw(st.integers(0, 3)) == 0 else "journal"
        clouds = draw(st.lists(st.sampled_from(ALL), unique=True, max_size=3))
        line.add(kind, term=term, writer=draw(st.integers(1, 2)), clouds=clouds)
    made = {id(item): item for line in lines for item in line.made}
    return [item for item in made.values() if item.clouds]


def loads(item: EpochObject, present: list[EpochObject]) -> list[EpochObject] | None:
    """Return what loading `item` takes, newest first, by trying everything."""
    if item.name.kind == "snapshot":
        return [item]
    for before in present:
        follows = item.header.predecessor == before.object_hash and item.name.epoch == before.name.epoch + 1
        if follows and before.name.term <= item.name.term and (rest := loads(before, present)):
            return [item, *rest]
    return None


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(worlds())
def test_against_model(present: list[EpochObject]) -> None:
    sightings = shown(present)
    chain = choose_chain(reversed(sightings), ALL)
    assert chain == choose_chain(sightings, ALL), "the order in which clouds answer does not matter"
    usable = {id(item): parts for item in present if (parts := loads(item, present))}
    if not usable:
        assert chain.parts == ()
        assert {newer.name for newer in chain.newer} == {item.name for item in present}
        return
    best = max((item for item in present if id(item) in usable), key=lambda item: (item.name, item.object_hash))
    assert chain.tip is not None
    assert chain.tip.object_hash == best.object_hash
    assert [part.object_hash for part in reversed(chain.parts)] == [part.object_hash for part in usable[id(best)]]
    for before, after in zip(chain.history, chain.history[1:], strict=False):
        assert after.header.predecessor == before.object_hash
        assert after.name.epoch == before.name.epoch + 1
    assert {newer.name for newer in chain.newer} == {
        item.name for item in present if id(item) not in usable and item.name > best.name
    }
    for cloud in ALL:
        assert list(chain.missing[cloud]) == [
            part.name for part in reversed(usable[id(best)]) if cloud not in part.clouds
        ]
    known = {item.object_hash for item in chain.history}
    for fork in chain.forks:
        assert fork.newest.object_hash not in known
    for item in chain.history:
        wanted = "equal" if item == chain.tip else "behind"
        assert chain.standing(item.name.epoch, item.object_hash) == wanted

"""Random work on a real store, cuts at random moments, objects on disk: replay is the store as it was at the cut.

The two rule machines of tests/metadata go on as they do there; in between, cuts are taken, and finished later, when the
versions they froze were overwritten, sent, linked or purged.  A second store follows, sometimes several epochs behind.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest
import trio
from attrs import frozen
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import rule, run_state_machine_as_test

from cuckoo_mount.epochformat import NO_PREDECESSOR, EpochName
from cuckoo_mount.epochs.chain import Chain, Sighting, choose_chain
from cuckoo_mount.epochs.objects import read_epoch
from cuckoo_mount.epochs.placing import pack_records, version_record
from cuckoo_mount.metadata.cut import Cut, open_cut
from cuckoo_mount.metadata.records import JournalRecord
from cuckoo_mount.metadata.replay import build_store, catch_up
from cuckoo_mount.metadata.store import open_store
from cuckoo_mount.types import CloudName, DirtyChunk, Location
from tests.epochs.epochtools import DRIVE, KEYS, write
from tests.metadata.helpers import DIGEST, at_once, journaled_rows
from tests.metadata.machine import SETTINGS, Model, StoreMachine
from tests.metadata.test_content_model import ContentMachine
from tests.metadata.test_names_model import NamesMachine

Rows = dict[str, list[tuple[object, ...]]]


@frozen
class Pending:
    """A cut under way: what it froze, and the rows that were committed with it."""

    cut: Cut
    dirty: list[DirtyChunk]
    rows: Rows


class EpochMachine(StoreMachine[Model]):
    """`follower`: a store that catches up now and then, with the number of its epoch."""

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self.pending: Pending | None = None
        self.sightings: list[Sighting] = []
        self.predecessor = NO_PREDECESSOR
        self.follower: tuple[Path, int] | None = None

    @rule()
    def take(self) -> None:
        if self.pending is not None:
            return
        self.commit()
        cut = open_cut(self.path)
        at_once(self.store.take_cut(cut))
        dirty = [chunk for chunk, _ in cut.dirty()]
        self.pending = Pending(cut, dirty, journaled_rows(self.path))

    @rule(snapshot=st.booleans(), follow=st.integers(0, 3))
    def finish(self, snapshot: bool, follow: int) -> None:
        pending, self.pending = self.pending, None
        if pending is None:
            return
        epoch = len(self.sightings) + 1
        name = EpochName(1, epoch, 1, "snapshot" if snapshot or epoch == 1 else "journal")
        extra = list(self.place(pending.dirty))
        found = pending.cut.snapshot() if name.kind == "snapshot" else pending.cut.journal()
        folder = Path(self.folder.name)
        path, _, summary = write(folder, chain(found, extra), name, self.predecessor)
        at_once(self.store.clear_outbox(pending.cut.mark, {"epoch": str(epoch + 1)}))
        pending.cut.close()
        with read_epoch(path, KEYS, DRIVE, name) as opened:
            self.sightings.append(Sighting(CloudName("a"), name, (opened.header, summary.object_hash)))
        self.predecessor = summary.object_hash
        self.check_replay(expected_rows(pending.rows, extra), follow=follow == 0)

    def place(self, dirty: list[DirtyChunk]) -> Iterator[JournalRecord]:
        """Send what the cut froze, and yield the extra records."""
        assert not dirty
        yield from ()

    def check_replay(self, expected: Rows, *, follow: bool) -> None:
        chosen = choose_chain(self.sightings, [CloudName("a")])
        assert len(chosen.history) == len(self.sightings)
        self.check_store(self.build(chosen, "built"), expected)
        (Path(self.folder.name) / "built").unlink()
        if not follow:
            return
        epoch = len(self.sightings)
        parts = chosen.parts_after(self.follower[1]) if self.follower is not None else chosen.parts
        if self.follower is None or parts[0].name.kind == "snapshot":
            (Path(self.folder.name) / "follower").unlink(missing_ok=True)
            path = self.build(chosen, "follower")
        else:
            path = self.follower[0]
            catch_up(path, (self.records(part.name) for part in parts), epoch=epoch, local={})
        self.follower = (path, epoch)
        self.check_store(path, expected)

    def build(self, chosen: Chain, name: str) -> Path:
        path = Path(self.folder.name) / name
        parts = (self.records(part.name) for part in chosen.parts)
        build_store(path, parts, epoch=len(self.sightings), local={})
        return path

    def records(self, name: EpochName) -> Iterator[JournalRecord]:
        with read_epoch(Path(self.folder.name) / str(name), KEYS, DRIVE, name) as opened:
            yield from opened.records()

    def check_store(self, path: Path, expected: Rows) -> None:
        async def violations() -> list[str]:
            async with await open_store(path) as store:
                assert store.statistics().outbox_rows == 0
                return await store.check_invariants()

        assert trio.run(violations) == []
        assert without_death_dates(journaled_rows(path)) == without_death_dates(expected)

    def give_up(self) -> None:
        if self.pending is not None:
            self.pending.cut.close()
            self.pending = None

    def reopen(self) -> None:
        self.give_up()
        super().reopen()

    def kill(self) -> None:
        self.give_up()
        super().kill()

    def teardown(self) -> None:
        self.finish_all()
        trio.run(self.store.aclose)
        self.folder.cleanup()

    def finish_all(self) -> None:
        """End with an epoch, so that every run checks at least one."""
        self.finish(snapshot=False, follow=0)
        self.take()
        self.finish(snapshot=False, follow=0)


def expected_rows(at_cut: Rows, extra: list[JournalRecord]) -> Rows:
    """Return what replay should make of the rows at the cut and the extra records, counted in the plainest way."""
    rows = {table: {row[: key_columns(table)]: row for row in found} for table, found in at_cut.items()}
    for record in extra:
        assert record.values is not None
        rows[record.table][record.key] = record.key + record.values
    named = [row[2] for row in rows["chunk"].values()]
    rows["version"] = {key: (*row[:6], named.count(row[0])) for key, row in rows["version"].items() if row[0] in named}
    for key, row in rows["pack"].items():
        inside = [version for version in rows["version"].values() if version[1] == row[0]]
        live, used = sum(int(str(v[4])) for v in inside), sum(int(str(v[3])) for v in inside)
        rows["pack"][key] = (*row[:4], live, used, row[6], None if inside else row[7] or 1)
    return {table: sorted(found.values(), key=lambda row: row[:2]) for table, found in rows.items()}


def without_death_dates(rows: Rows) -> Rows:
    """Return rows in which packs are dead or not: since when, is not the same for who read all epochs and who some."""
    return rows | {"pack": [(*row[:7], row[7] is None) for row in rows["pack"]]}


def key_columns(table: str) -> int:
    return 2 if table in ("dentry", "xattr", "chunk", "share") else 1


class NamesAndEpochs(NamesMachine, EpochMachine):  # type: ignore[type-arg]
    """Names, links, attributes, orphans."""


class ContentAndEpochs(ContentMachine, EpochMachine):  # type: ignore[type-arg]
    """Chunks, dedup, compaction: versions the cut froze are sent when some of them are no longer named."""

    def take(self) -> None:
        super().take()
        if self.pending is not None:
            taken = {chunk.version for chunk in self.frozen}
            partial = {held[0] for key, held in self.model.held.items() if key in self.model.partial}
            self.frozen += [c for c in self.pending.dirty if c.version not in taken and c.version not in partial]

    def place(self, dirty: list[DirtyChunk]) -> Iterator[JournalRecord]:
        if not dirty:
            return
        wanted = {chunk.version for chunk in dirty}
        sent = [chunk for chunk in self.frozen if chunk.version in wanted]
        self.frozen = sent + [chunk for chunk in self.frozen if chunk.version not in wanted]
        if not sent:
            # Those that are left were sent, linked or purged meanwhile; where to does not matter here.
            self.frozen.insert(0, dirty[0])
        self.finish_pack(max(len(sent), 1), newer=5)
        number = max(int(row.number) for row in at_once(self.store.packs(10_000)))
        pack = next(row for row in at_once(self.store.packs(10_000)) if row.number == number)
        yield from pack_records(pack, 1)
        for place, chunk in enumerate(dirty):
            location = Location(pack.number, 64 + place, chunk.length_bytes + 16, chunk.length_bytes, DIGEST)
            yield version_record(chunk.version, location)


RUN = settings(SETTINGS, max_examples=15)


@pytest.mark.slow
def test_names() -> None:
    run_state_machine_as_test(NamesAndEpochs, settings=RUN)


@pytest.mark.slow
def test_content() -> None:
    run_state_machine_as_test(ContentAndEpochs, settings=RUN)

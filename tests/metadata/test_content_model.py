"""Chunks, versions, held rows and packs against a model, with reopening and kills."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from attrs import define, field
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule, run_state_machine_as_test

from cuckoo_mount.types import (
    ChunkIndex,
    ChunkWritten,
    CloudName,
    DirtyChunk,
    Duplicate,
    InodeChanges,
    InodeNo,
    PackNo,
    Partial,
    SealedChunk,
    ShareRow,
    VersionNo,
)
from tests.metadata.helpers import DIGEST, ROOT, at_once, make_file, pack
from tests.metadata.machine import SETTINGS, StoreMachine

Key = tuple[int, int]
INDEX = st.integers(0, 3)
FILE = st.integers(0, 2)
PICK = st.integers(0, 1 << 16)


@define
class Files:
    """`chunks`: version by (inode, index); `held`: (version, dirty, length); `stored`: pack and bytes by version."""

    inodes: list[int] = field(factory=list)
    orphans: set[int] = field(factory=set)
    chunks: dict[Key, int] = field(factory=dict)
    held: dict[Key, tuple[int, bool, int]] = field(factory=dict)
    partial: dict[Key, Partial] = field(factory=dict)
    stored: dict[int, tuple[int, int]] = field(factory=dict)
    packs: set[int] = field(factory=set)

    def named(self) -> set[int]:
        return set(self.chunks.values()) | {partial.base for partial in self.partial.values()}

    def tidy(self) -> None:
        """Forget stored versions that nothing names."""
        self.stored = {version: place for version, place in self.stored.items() if version in self.named()}

    def live(self, pack_number: int) -> set[int]:
        return {version for version, (number, _) in self.stored.items() if number == pack_number}

    def write(self, key: Key, version: int, length: int, partial: Partial | None) -> None:
        self.chunks[key] = version
        self.held[key] = (version, True, length)
        self.partial.pop(key, None)
        if partial is not None:
            self.partial[key] = partial
        self.tidy()

    def cut(self, ino: int, first: int) -> None:
        for rows in (self.chunks, self.held, self.partial):
            for key in [key for key in rows if key[0] == ino and key[1] >= first]:
                del rows[key]
        self.tidy()


class ContentMachine(StoreMachine[Files]):
    """`frozen`: chunks that are being packed, as the packer remembers them; lost by a kill."""

    def __init__(self) -> None:
        super().__init__(Files())
        self.frozen: list[DirtyChunk] = []
        self.pack_ids = 0
        self.tick = 0

    @initialize()
    def make_files(self) -> None:
        for name in (b"x", b"y", b"z"):
            self.model.inodes.append(at_once(make_file(self.store, name)))
        for index in (0, 1, 2):
            self.write([(0, index, 50, 0, False), (1, index, 60, 0, False)])
        self.pack_at_once(5)
        self.write([(0, 0, 50, 1, False), (2, 2, 30, 0, False)])
        self.commit()

    def ino(self, number: int) -> InodeNo:
        return InodeNo(self.model.inodes[number % len(self.model.inodes)])

    def partial_over(self, key: Key, wanted: int) -> Partial | None:
        """Return a partial over the chunk's stored version, or over the base it has, if there is one to be had."""
        if not wanted % 3:
            return None
        if key in self.model.partial:
            return Partial(self.model.partial[key].base, wanted % 50, ((wanted % 7, 50),))
        version = self.model.chunks.get(key)
        return Partial(VersionNo(version), wanted % 99, ()) if version in self.model.stored and version else None

    @rule(writes=st.lists(st.tuples(FILE, INDEX, st.integers(0, 100), PICK, st.booleans()), min_size=1, max_size=4))
    def write(self, writes: list[tuple[int, int, int, int, bool]]) -> None:
        for file, index, length, wanted, same in writes:
            self.write_one(file, index, length, wanted, same=same)

    def write_one(self, file: int, index: int, length: int, wanted: int, *, same: bool) -> None:
        key = (self.ino(file), index)
        partial = self.partial_over(key, wanted)
        held = self.model.held.get(key)
        frozen = {chunk.version for chunk in self.frozen}
        if same and held is not None and held[1] and held[0] not in frozen:
            version = VersionNo(held[0])
        else:
            version = at_once(self.store.new_versions(1))
            assert version not in self.model.named()
        at_once(
            self.store.apply_written(
                self.ino(file),
                InodeChanges(size_bytes=length),
                [ChunkWritten(ChunkIndex(index), version, length, partial)],
            )
        )
        self.model.write(key, version, length, partial)

    @rule(file=FILE, first=INDEX, wanted=PICK, cut_chunk=st.booleans())
    def truncate(self, file: int, first: int, wanted: int, cut_chunk: bool) -> None:
        ino, boundary = self.ino(file), None
        key = (ino, first - 1)
        if cut_chunk and key in self.model.chunks:
            version = at_once(self.store.new_versions(1))
            boundary = ChunkWritten(ChunkIndex(first - 1), version, 5, self.partial_over(key, wanted))
        inode = at_once(self.store.truncate_rows(ino, InodeChanges(size_bytes=first), ChunkIndex(first), boundary))
        assert inode.size_bytes == first
        self.model.cut(ino, first)
        if boundary is not None:
            self.model.write(key, boundary.version, 5, boundary.partial)

    @rule(limit=st.integers(1, 4))
    def freeze(self, limit: int) -> None:
        taken = {chunk.version for chunk in self.frozen}
        found = at_once(self.store.dirty_chunks(limit, taken))
        dirty = sorted(
            held[0]
            for key, held in self.model.held.items()
            if held[1] and key not in self.model.partial and held[0] not in taken
        )
        assert [chunk.version for chunk in found] == dirty[:limit]
        self.frozen += found

    @rule(
        limit=st.integers(2, 6),
        newer=st.integers(0, 63),
        meanwhile=st.lists(st.tuples(FILE, INDEX, st.just(70), PICK, st.booleans()), max_size=2),
    )
    def pack_at_once(
        self, limit: int, newer: int = 0, meanwhile: Sequence[tuple[int, int, int, int, bool]] = ()
    ) -> None:
        """Freeze, write to what may be frozen, and finish, as one rule: three rules seldom come in this order."""
        self.freeze(limit)
        for file, index, length, wanted, same in meanwhile:
            self.write_one(file, index, length, wanted, same=same)
        self.finish_pack(limit, newer)

    @rule(count=st.integers(1, 4), newer=st.integers(0, 15))
    def finish_pack(self, count: int, newer: int) -> None:
        if not self.frozen:
            return
        chunks, self.frozen = self.frozen[:count], self.frozen[count:]
        overwritten = frozenset(chunk.version for bit, chunk in enumerate(chunks) if newer >> bit & 1)
        self.pack_ids += 1
        number = at_once(pack(self.store, chunks, self.pack_ids, overwritten))
        assert number not in self.model.packs
        self.model.packs.add(number)
        for chunk in chunks:
            key = (chunk.ino, chunk.index)
            if self.model.chunks.get(key) != chunk.version:
                continue
            self.model.stored[chunk.version] = (number, chunk.length_bytes)
            _, _, length = self.model.held.pop(key)
            if chunk.version not in overwritten:
                self.model.held[key] = (chunk.version, False, length)

    @rule(count=st.integers(1, 4), newer=st.integers(0, 15), wanted=PICK)
    def link(self, count: int, newer: int, wanted: int) -> None:
        """Let frozen chunks name a stored version of their length, or one that is no more."""
        chunks, self.frozen = self.frozen[:count], self.frozen[count:]
        overwritten = frozenset(chunk.version for bit, chunk in enumerate(chunks) if newer >> bit & 1)
        for number, chunk in enumerate(chunks):
            same = [version for version, (_, length) in self.model.stored.items() if length == chunk.length_bytes]
            of = same[(wanted + number) % len(same)] if same else 1_000_000
            linked = at_once(self.store.link_duplicates([Duplicate(chunk, VersionNo(of))], overwritten))
            key = (chunk.ino, chunk.index)
            done = of in self.model.stored and self.model.chunks.get(key) == chunk.version
            assert [(link.chunk, link.version) for link in linked] == ([(chunk, of)] if done else [])
            if done:
                assert linked[0].location.pack == self.model.stored[of][0]
                self.model.chunks[key] = of
                _, _, length = self.model.held.pop(key)
                if chunk.version not in overwritten:
                    self.model.held[key] = (of, False, length)

    @rule(wanted=PICK, count=st.integers(1, 5), kept=st.booleans())
    def move(self, wanted: int, count: int, kept: bool) -> None:
        """Move some versions into a new pack; `kept`: one of them dies before."""
        versions = sorted(self.model.stored)[wanted % 3 :][:count]
        chunks = [
            DirtyChunk(InodeNo(1), ChunkIndex(0), VersionNo(version), self.model.stored[version][1])
            for version in versions
        ]
        if not kept:
            chunks.append(DirtyChunk(InodeNo(1), ChunkIndex(0), VersionNo(1_000_000), 50))
        self.pack_ids += 1
        name = self.pack_ids.to_bytes(16, "big")
        at_once(self.store.begin_pack(name))
        items = [SealedChunk(chunk, 64 + number, 7, DIGEST) for number, chunk in enumerate(chunks)]
        shares = [ShareRow(0, CloudName("a"), DIGEST)]
        places = at_once(self.store.move_versions(name, "1", 1000, shares, items))
        assert list(places) == versions
        number = max(int(row.number) for row in at_once(self.store.packs(1000)))
        assert number not in self.model.packs
        self.model.packs.add(number)
        for version in versions:
            self.model.stored[version] = (number, self.model.stored[version][1])
            assert places[VersionNo(version)].pack == number
        if versions:
            found = at_once(self.store.versions_in(PackNo(number)))
            assert [item.chunk.version for item in found] == versions
            assert [item.location for item in found] == list(places.values())

    @rule(file=FILE, index=INDEX, version=st.none() | st.integers(1, 40))
    def add_held(self, file: int, index: int, version: int | None) -> None:
        ino, key = self.ino(file), (self.ino(file), index)
        self.tick += 1
        named = self.model.chunks.get(key)
        offered = version or named or 1
        at_once(self.store.add_held(ino, [(ChunkIndex(index), VersionNo(offered), 50)], self.tick))
        if named == offered and offered in self.model.stored and key not in self.model.held:
            self.model.held[key] = (offered, False, 50)

    @rule(file=FILE, index=INDEX)
    def drop_held(self, file: int, index: int) -> None:
        key = (self.ino(file), index)
        held = self.model.held.get(key)
        drop = self.store.drop_held([(self.ino(file), ChunkIndex(index))])
        if held is not None and held[1]:
            with pytest.raises(AssertionError):
                at_once(drop)
        else:
            at_once(drop)
            self.model.held.pop(key, None)

    @rule(file=FILE, index=INDEX)
    def touch(self, file: int, index: int) -> None:
        self.tick += 1
        at_once(self.store.touch_held([(self.ino(file), ChunkIndex(index))], self.tick))

    @rule(file=FILE)
    def replace_file(self, file: int) -> None:
        """Remove a file and make another in its place."""
        ino = self.ino(file)
        name = {entry.inode.ino: entry.name for entry in at_once(self.store.list_directory(ROOT, 0, 9))}[ino]
        at_once(self.store.remove_link(ROOT, name, 1))
        at_once(self.store.purge_inode(ino))
        self.model.cut(ino, 0)
        self.model.inodes.remove(ino)
        self.model.inodes.append(at_once(make_file(self.store, name)))

    @rule()
    def forget_dead_pack(self) -> None:
        for dead in at_once(self.store.dead_packs(1)):
            at_once(self.store.forget_pack(dead.number))
            self.model.packs.remove(dead.number)

    def kill(self) -> None:
        self.frozen = []
        super().kill()

    def compare(self) -> None:
        model = self.model
        dead = {row.number for row in at_once(self.store.dead_packs(1000))}
        assert dead == {number for number in model.packs if not model.live(number)}
        for number in model.packs - dead:
            entered = at_once(self.store.get_pack(PackNo(number)))
            assert entered.live_bytes == sum(model.stored[version][1] for version in model.live(number))
            assert entered.used_bytes > 0
        for ino in model.inodes:
            rows = at_once(self.store.chunk_rows(InodeNo(ino), ChunkIndex(0), ChunkIndex(99)))
            assert at_once(self.store.get_inode(InodeNo(ino))).chunk_count == len(rows)
            assert {(ino, row.index): row.version for row in rows} == {
                k: v for k, v in model.chunks.items() if k[0] == ino
            }
            for row in rows:
                key = (ino, row.index)
                held = row.held and (row.held.version, row.held.dirty, row.held.length_bytes)
                assert held == model.held.get(key)
                assert row.partial == model.partial.get(key)
                assert (row.location is not None) == (row.version in model.stored)
                assert row.location is None or row.location.pack == model.stored[row.version][0]
                assert (row.base_location is None) == (row.partial is None)
            dirty = any(held[1] for key, held in model.held.items() if key[0] == ino)
            assert at_once(self.store.has_dirty(InodeNo(ino))) == dirty
        clean = {key for key, held in model.held.items() if not held[1]}
        assert {(ino, index) for ino, index, _, _ in at_once(self.store.evictable(1 << 40))} == clean
        assert set(at_once(self.store.partial_chunks(99))) == set(model.partial)


@pytest.mark.slow
def test_content_against_model() -> None:
    run_state_machine_as_test(ContentMachine, settings=settings(SETTINGS, max_examples=20))

"""What files consist of and what is held of it here: chunk rows, held rows, partial rows.

Used by store.py.  Runs in the loop, never waits.  Keeps I-1 (a version is stored or held dirty) and, with versions.py,
I-16.
A chunk row, its held row and its partial row always speak of the same version.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Sequence
from typing import Any, Final

from cuckoo_mount.metadata.nodes import Nodes, stale
from cuckoo_mount.metadata.versions import Versions
from cuckoo_mount.types import (
    REDUNDANCY_XATTR,
    AbsentChunk,
    ChunkIndex,
    ChunkRow,
    ChunkWritten,
    DirtyChunk,
    Held,
    Inode,
    InodeChanges,
    InodeNo,
    Location,
    PackNo,
    Partial,
    VersionNo,
)

_ROWS: Final = """
    SELECT c.idx, c.version, v.pack, v.offset, v.length, v.plain, v.digest, h.version, h.dirty, h.length, h.tick,
           p.base, p.base_bytes, p.ranges, b.pack, b.offset, b.length, b.plain, b.digest
    FROM chunk c
    LEFT JOIN version v ON v.version = c.version
    LEFT JOIN held h ON h.ino = c.ino AND h.idx = c.idx
    LEFT JOIN partial p ON p.ino = c.ino AND p.idx = c.idx
    LEFT JOIN version b ON b.version = p.base
    WHERE c.ino = ? AND c.idx BETWEEN ? AND ? ORDER BY c.idx"""
_BEFORE: Final = """
    SELECT c.version, h.dirty, h.length, p.base FROM chunk c
    LEFT JOIN held h ON h.ino = c.ino AND h.idx = c.idx LEFT JOIN partial p ON p.ino = c.ino AND p.idx = c.idx
    WHERE c.ino = ? AND c.idx = ?"""
_PUT_HELD: Final = """
    INSERT INTO held (ino, idx, version, dirty, length, tick) VALUES (?, ?, ?, 1, ?, ?)
    ON CONFLICT (ino, idx) DO UPDATE SET version = excluded.version, dirty = 1, length = excluded.length,
    tick = excluded.tick"""
_PUT_PARTIAL: Final = """
    INSERT INTO partial (ino, idx, base, base_bytes, ranges) VALUES (?, ?, ?, ?, ?)
    ON CONFLICT (ino, idx) DO UPDATE SET base = excluded.base, base_bytes = excluded.base_bytes,
    ranges = excluded.ranges"""
_ADD_HELD: Final = """
    INSERT INTO held (ino, idx, version, dirty, length, tick)
    SELECT c.ino, c.idx, c.version, 0, ?, ? FROM chunk c JOIN version v ON v.version = c.version
    WHERE c.ino = ? AND c.idx = ? AND c.version = ?
    ON CONFLICT (ino, idx) DO NOTHING"""
_DIRTY: Final = """
    SELECT h.ino, h.idx, h.version, h.length FROM held h WHERE h.dirty = 1
    AND NOT EXISTS (SELECT 1 FROM partial p WHERE p.ino = h.ino AND p.idx = h.idx) ORDER BY h.version"""
_ALL_DIRTY: Final = "SELECT ino, idx, version, length FROM held WHERE dirty = 1 ORDER BY version"
_DIRTY_POLICIES: Final = """
    SELECT DISTINCT h.ino, x.value FROM held h JOIN xattr x ON x.ino = h.ino AND x.name = ? WHERE h.dirty = 1"""
_PARTIAL: Final = """
    SELECT h.version, p.base, p.base_bytes, p.ranges, b.pack, b.offset, b.length, b.plain, b.digest
    FROM partial p JOIN held h ON h.ino = p.ino AND h.idx = p.idx JOIN version b ON b.version = p.base"""
_NAMED_OFTEN: Final = 16
"""A version that more rows name is not brought here for all of them when one of its neighbours is read."""
_ABSENT: Final = """
    SELECT c.ino, c.idx, c.version, v.pack, v.offset, v.length, v.plain, v.digest
    FROM version v CROSS JOIN chunk c ON c.version = v.version
    WHERE v.pack = ? AND v.offset >= ? AND v.offset < ? AND v.refs <= ?
    AND NOT EXISTS (SELECT 1 FROM held h WHERE h.ino = c.ino AND h.idx = c.idx)
    AND EXISTS (SELECT 1 FROM inode i WHERE i.ino = c.ino AND i.nlink > 0)
    ORDER BY v.offset LIMIT ?"""
_HELD_TWIN: Final = """
    SELECT c.ino, c.idx FROM chunk c CROSS JOIN held h ON h.ino = c.ino AND h.idx = c.idx
    WHERE c.version = ? AND h.version = c.version AND h.dirty = 0 LIMIT 1"""
_NOTHING: Final[frozenset[int]] = frozenset()


def _pack_ranges(ranges: tuple[tuple[int, int], ...]) -> bytes:
    return b"".join(struct.pack("<II", start, end) for start, end in ranges)


def _chunk_row(row: tuple[Any, ...]) -> ChunkRow:
    return ChunkRow(
        index=row[0],
        version=row[1],
        location=None if row[2] is None else Location(PackNo(row[2]), *row[3:7]),
        held=None if row[7] is None else Held(VersionNo(row[7]), row[8] == 1, row[9], row[10]),
        partial=None
        if row[11] is None
        else Partial(VersionNo(row[11]), row[12], tuple(struct.iter_unpack("<II", row[13]))),
        base_location=None if row[14] is None else Location(PackNo(row[14]), *row[15:19]),
    )


class Content(Nodes, Versions):
    """See `Metadata` for every public method."""

    _latest_tick: int | None = None

    async def new_versions(self, count: int) -> VersionNo:
        assert count >= 1, "at least one version"
        self._db.ready()
        return VersionNo(self._db.take("version", count))

    async def chunk_rows(self, ino: InodeNo, first: ChunkIndex, last: ChunkIndex) -> list[ChunkRow]:
        return [_chunk_row(row) for row in self._db.rows(_ROWS, (ino, first, last))]

    async def apply_written(self, ino: InodeNo, changes: InodeChanges, chunks: Sequence[ChunkWritten]) -> None:
        with self._db.change:
            made = 0
            for chunk in chunks:
                made += self._apply(ino, chunk)
            self._change(ino, changes, made)

    async def truncate_rows(
        self, ino: InodeNo, changes: InodeChanges, first_removed: ChunkIndex, boundary: ChunkWritten | None
    ) -> Inode:
        with self._db.change:
            made = -self._remove_rows(ino, first_removed)
            if boundary is not None:
                assert boundary.index < first_removed, "the cut chunk is before those removed"
                made += self._apply(ino, boundary)
            return self._change(ino, changes, made)

    async def purge_inode(self, ino: InodeNo) -> None:
        row = self._db.row("SELECT nlink FROM inode WHERE ino = ?", (ino,))
        if row is None:
            raise stale(ino)
        assert row[0] == 0, f"inode {ino} still has a name"
        with self._db.change:
            self._remove_rows(ino, 0)
            for table in ("xattr", "symlink", "inode"):
                self._db.run(f"DELETE FROM {table} WHERE ino = ?", (ino,))
            self._db.counters.inodes -= 1

    async def drop_held(self, chunks: Collection[tuple[InodeNo, ChunkIndex]]) -> None:
        with self._db.change:
            for ino, index in chunks:
                row = self._db.row("DELETE FROM held WHERE ino = ? AND idx = ? RETURNING dirty, length", (ino, index))
                if row is not None:
                    assert not row[0], f"chunk {index} of inode {ino} is dirty: dropping it would lose it"
                    self._db.counters.held_gone(ino, row[1], dirty=False)

    async def drop_held_files(self, inodes: Collection[InodeNo]) -> None:
        with self._db.change:
            for ino in inodes:
                gone = self._db.rows("DELETE FROM held WHERE ino = ? AND dirty = 0 RETURNING length", (ino,))
                for (length,) in gone:
                    self._db.counters.held_gone(ino, length, dirty=False)

    async def add_held(self, ino: InodeNo, chunks: Sequence[tuple[ChunkIndex, VersionNo, int]], tick: int) -> None:
        with self._db.change:
            self._note_tick(tick)
            for index, version, length in chunks:
                if self._db.run(_ADD_HELD, (length, tick, ino, index, version)):
                    self._db.counters.held_made(ino, length, dirty=False)

    async def touch_held(self, chunks: Collection[tuple[InodeNo, ChunkIndex]], tick: int) -> None:
        with self._db.change:
            self._note_tick(tick)
            for ino, index in chunks:
                self._db.run("UPDATE held SET tick = ? WHERE ino = ? AND idx = ?", (tick, ino, index))

    async def evictable(self, wanted_bytes: int) -> list[tuple[InodeNo, ChunkIndex, VersionNo, int]]:
        found: list[tuple[InodeNo, ChunkIndex, VersionNo, int]] = []
        total = 0
        # In steps: how many rows make up `wanted_bytes` is not known before, and a full list may be a million long.
        key, step = (-(1 << 63), -1, -1), 16
        sql = (
            "SELECT ino, idx, version, length, tick FROM held WHERE dirty = 0 AND (tick, ino, idx) > (?, ?, ?)"
            " ORDER BY tick, ino, idx LIMIT ?"
        )
        while total < wanted_bytes and (rows := self._db.rows(sql, (*key, step))):
            step *= 2
            for ino, index, version, length, tick in rows:
                key = (tick, ino, index)
                found.append((ino, index, version, length))
                total += length
                if total >= wanted_bytes:
                    break
        return found

    async def files_with_clean_chunks(self) -> list[InodeNo]:
        return [InodeNo(ino) for (ino,) in self._db.rows("SELECT DISTINCT ino FROM held WHERE dirty = 0 ORDER BY ino")]

    async def has_dirty(self, ino: InodeNo) -> bool:
        return ino in self._db.counters.dirty_files

    async def dirty_chunks(self, limit: int, exclude: Collection[VersionNo]) -> list[DirtyChunk]:
        return [DirtyChunk(*row) for row in self._db.some(_DIRTY, (), limit, frozenset(exclude), 2)]

    async def partial_chunks(self, limit: int) -> list[tuple[InodeNo, ChunkIndex]]:
        rows = self._db.rows("SELECT ino, idx FROM partial ORDER BY ino, idx LIMIT ?", (limit,))
        return [(InodeNo(ino), ChunkIndex(index)) for ino, index in rows]

    async def dirty_versions(self) -> list[tuple[InodeNo, ChunkIndex, VersionNo, int]]:
        return self._db.rows(_ALL_DIRTY)

    async def redundancies(self, inos: Collection[InodeNo]) -> dict[InodeNo, str]:
        found = {}
        for ino in inos:
            row = self._db.row("SELECT value FROM xattr WHERE ino = ? AND name = ?", (ino, REDUNDANCY_XATTR))
            if row is not None:
                found[ino] = row[0].decode("ascii")
        return found

    async def dirty_redundancies(self) -> dict[InodeNo, str]:
        return {
            InodeNo(ino): value.decode("ascii") for ino, value in self._db.rows(_DIRTY_POLICIES, (REDUNDANCY_XATTR,))
        }

    async def partial_versions(self) -> dict[VersionNo, tuple[Partial, Location]]:
        return {
            VersionNo(version): (
                Partial(VersionNo(base), base_bytes, tuple(struct.iter_unpack("<II", ranges))),
                Location(PackNo(number), *place),
            )
            for version, base, base_bytes, ranges, number, *place in self._db.rows(_PARTIAL)
        }

    async def absent_neighbours(self, pack: PackNo, start: int, end: int, limit: int) -> list[AbsentChunk]:
        found = self._db.rows(_ABSENT, (pack, start, end, _NAMED_OFTEN, limit))
        return [
            AbsentChunk(InodeNo(ino), ChunkIndex(index), VersionNo(version), Location(PackNo(number), *place))
            for ino, index, version, number, *place in found
        ]

    async def held_twin(self, version: VersionNo) -> tuple[InodeNo, ChunkIndex] | None:
        row = self._db.row(_HELD_TWIN, (version,))
        return None if row is None else (InodeNo(row[0]), ChunkIndex(row[1]))

    # -- inside; part of the caller's change --

    def _note_tick(self, tick: int) -> None:
        self._latest_tick = max(self._tick(), tick)

    def _tick(self) -> int:
        """Return the highest tick given so far."""
        if self._latest_tick is None:
            row = self._db.row("SELECT max(tick) FROM held")
            self._latest_tick = 0 if row is None or row[0] is None else int(row[0])
        return self._latest_tick

    def _apply(self, ino: InodeNo, chunk: ChunkWritten) -> int:
        """Name a written version in its file's row; return 1 if the row is new, else 0."""
        index, version = chunk.index, chunk.version
        before = self._db.row(_BEFORE, (ino, index))
        if before is None:
            self._db.run("INSERT INTO chunk (ino, idx, version) VALUES (?, ?, ?)", (ino, index, version))
            self._put_partial(ino, chunk, None)
        else:
            old, dirty, _, base = before
            assert old != version or dirty == 1, f"version {version} is stored, its bytes cannot change"
            self._put_partial(ino, chunk, base)
            if old != version:
                self._db.run("UPDATE chunk SET version = ? WHERE ino = ? AND idx = ?", (version, ino, index))
                if dirty != 1:
                    self._release(old)
        self._db.run(_PUT_HELD, (ino, index, version, chunk.length_bytes, self._tick()))
        if before is not None and before[1] is not None:
            self._db.counters.held_gone(ino, before[2], dirty=before[1] == 1)
        self._db.counters.held_made(ino, chunk.length_bytes, dirty=True)
        return 1 if before is None else 0

    def _put_partial(self, ino: InodeNo, chunk: ChunkWritten, old_base: int | None) -> None:
        """Make, change or remove the partial row; its base is counted before anything releases it."""
        partial = chunk.partial
        if partial is None:
            if old_base is not None:
                self._db.run("DELETE FROM partial WHERE ino = ? AND idx = ?", (ino, chunk.index))
                self._release(old_base)
            return
        if partial.base != old_base:
            self._refer(partial.base)
        self._db.run(_PUT_PARTIAL, (ino, chunk.index, partial.base, partial.base_bytes, _pack_ranges(partial.ranges)))
        if old_base is not None and partial.base != old_base:
            self._release(old_base)

    def _remove_rows(self, ino: InodeNo, first: int) -> int:
        """Remove all rows of a file from index `first` on; return how many chunk rows that were."""
        for length, dirty in self._db.rows(
            "DELETE FROM held WHERE ino = ? AND idx >= ? RETURNING length, dirty", (ino, first)
        ):
            self._db.counters.held_gone(ino, length, dirty=dirty == 1)
        bases = self._db.rows("DELETE FROM partial WHERE ino = ? AND idx >= ? RETURNING base", (ino, first))
        for (base,) in bases:
            self._release(base)
        self._release_file(ino, first)
        return self._db.run("DELETE FROM chunk WHERE ino = ? AND idx >= ?", (ino, first))

"""Chunks that share a version, and versions that move to another pack: the rows of dedup and compaction.

Used by store.py.  Runs in the loop, never waits.  Keeps I-1, I-8, I-10 and, with versions.py, I-16.
A version that died is absent for all of these: nothing is linked to it, and it is not moved.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final

from cuckoo_mount.metadata.versions import Versions
from cuckoo_mount.types import (
    REDUNDANCY_XATTR,
    ChunkIndex,
    CloudName,
    DirtyChunk,
    Duplicate,
    InodeNo,
    Linked,
    Location,
    PackFill,
    PackNo,
    SealedChunk,
    StoredVersion,
    VersionNo,
)

_STILL_DIRTY: Final = """
    SELECT h.length FROM chunk c JOIN held h ON h.ino = c.ino AND h.idx = c.idx
    WHERE c.ino = ? AND c.idx = ? AND c.version = ? AND h.version = c.version AND h.dirty = 1"""
_SAME: Final = "SELECT version, pack FROM version WHERE digest = ? AND plain = ? ORDER BY version LIMIT 8"
_FILLS: Final = """
    SELECT number, policy, size, live, used, (SELECT count(*) FROM version v WHERE v.pack = number) FROM pack
    WHERE dead_epoch IS NULL AND (100 * used <= ? * size OR used < ?) ORDER BY number"""
# Of the chunks that name a version one is enough: it is for the index in the pack only.
_IN_PACK: Final = """
    SELECT v.version, v.pack, v.offset, v.length, v.plain, v.digest, coalesce(min(c.ino), 0), coalesce(c.idx, 0)
    FROM version v LEFT JOIN chunk c ON c.version = v.version WHERE v.pack = ? GROUP BY v.version ORDER BY v.offset"""

_POLICIES_IN_PACK: Final = """
    SELECT DISTINCT v.version, x.value FROM version v JOIN chunk c ON c.version = v.version
    LEFT JOIN xattr x ON x.ino = c.ino AND x.name = ? WHERE v.pack = ?"""


def shares_wanted(policy: str) -> int:
    """Return how many shares a pack of this policy should have: '1' one, 'N' N, 'K+M' K + M."""
    return sum(int(part) for part in policy.split("+"))


class Sharing(Versions):
    """See `Metadata` for every public method."""

    async def find_duplicates(
        self, policy: str, clouds: Collection[CloudName], wanted: Collection[tuple[bytes, int]]
    ) -> dict[tuple[bytes, int], VersionNo]:
        trusted: dict[int, bool] = {}
        found: dict[tuple[bytes, int], VersionNo] = {}
        for digest, plain in wanted:
            for version, pack in self._db.rows(_SAME, (digest, plain)):
                if pack not in trusted:
                    trusted[pack] = self._is_trusted(pack, policy, clouds)
                if trusted[pack]:
                    found[digest, plain] = VersionNo(version)
                    break
        return found

    async def link_duplicates(
        self, duplicates: Sequence[Duplicate], overwritten: Collection[VersionNo]
    ) -> list[Linked]:
        linked: list[Linked] = []
        with self._db.change:
            for duplicate in duplicates:
                location = self._link_duplicate(duplicate, overwritten)
                if location is not None:
                    linked.append(Linked(duplicate.chunk, duplicate.of, location))
        return linked

    async def pack_fills(self, percent: int, small_bytes: int) -> list[PackFill]:
        return [PackFill(*row) for row in self._db.rows(_FILLS, (percent, small_bytes))]

    async def versions_in(self, pack: PackNo) -> list[StoredVersion]:
        return [
            StoredVersion(
                DirtyChunk(InodeNo(ino), ChunkIndex(index), VersionNo(version), plain),
                Location(PackNo(number), offset, length, plain, digest),
            )
            for version, number, offset, length, plain, digest, ino, index in self._db.rows(_IN_PACK, (pack,))
        ]

    async def redundancies_in(self, pack: PackNo) -> list[tuple[VersionNo, str | None]]:
        rows = self._db.rows(_POLICIES_IN_PACK, (REDUNDANCY_XATTR, pack))
        return [(VersionNo(version), None if value is None else value.decode("ascii")) for version, value in rows]

    # -- inside; part of the caller's change --

    def _is_trusted(self, pack: int, policy: str, clouds: Collection[CloudName]) -> bool:
        """Return whether a pack is as well stored now as a new one would be."""
        row = self._db.row("SELECT policy, dead_epoch FROM pack WHERE number = ?", (pack,))
        if row is None or row[0] != policy or row[1] is not None:
            return False
        shares = self._db.rows("SELECT cloud FROM share WHERE pack = ?", (pack,))
        return sum(cloud in clouds for (cloud,) in shares) >= max(1, min(shares_wanted(policy), len(clouds)))

    def _link_duplicate(self, duplicate: Duplicate, overwritten: Collection[VersionNo]) -> Location | None:
        """Point a dirty chunk's row at a stored version of the same bytes, if both still are what they were."""
        chunk, of = duplicate.chunk, duplicate.of
        held = self._db.row(_STILL_DIRTY, (chunk.ino, chunk.index, chunk.version))
        row = self._db.row("SELECT pack, offset, length, plain, digest FROM version WHERE version = ?", (of,))
        if held is None or row is None:
            return None
        assert row[3] == chunk.length_bytes, f"version {of} has other bytes than version {chunk.version}"
        self._refer(of)
        self._db.run("UPDATE chunk SET version = ? WHERE ino = ? AND idx = ?", (of, chunk.ino, chunk.index))
        self._settle_held(chunk, of, held[0], stays=chunk.version not in overwritten)
        return Location(PackNo(row[0]), *row[1:])

    def _settle_held(self, chunk: DirtyChunk, version: VersionNo, length_bytes: int, *, stays: bool) -> None:
        """Make a dirty held row clean, under the version that its chunk row names now, or remove it."""
        self._db.counters.held_gone(chunk.ino, length_bytes, dirty=True)
        if stays:
            self._db.run(
                "UPDATE held SET dirty = 0, version = ? WHERE ino = ? AND idx = ?", (version, chunk.ino, chunk.index)
            )
            self._db.counters.held_made(chunk.ino, length_bytes, dirty=False)
        else:
            self._db.run("DELETE FROM held WHERE ino = ? AND idx = ?", (chunk.ino, chunk.index))

    def _place(self, pack: int, item: SealedChunk, overwritten: Collection[VersionNo]) -> bool:
        """Enter where a version is stored and settle its held row, if its file still names it and it is still dirty."""
        chunk = item.chunk
        row = self._db.row(_STILL_DIRTY, (chunk.ino, chunk.index, chunk.version))
        if row is None:
            return False
        self._db.run(
            "INSERT INTO version (version, pack, offset, length, plain, digest, refs) VALUES (?, ?, ?, ?, ?, ?, 1)",
            (chunk.version, pack, item.offset, item.length_bytes, chunk.length_bytes, item.digest),
        )
        self._settle_held(chunk, chunk.version, row[0], stays=chunk.version not in overwritten)
        return True

    def _move_versions(self, pack: int, moved: Sequence[SealedChunk]) -> Mapping[VersionNo, Location]:
        """Point the versions that still live at their new places, and take them from their old packs."""
        places: dict[VersionNo, Location] = {}
        left: list[tuple[int, int, int]] = []
        for item in moved:
            version = item.chunk.version
            row = self._db.row("SELECT pack, plain, length, digest FROM version WHERE version = ?", (version,))
            if row is None:
                continue
            assert row[3] == item.digest, f"version {version} was sealed with other bytes than it has"
            self._db.run(
                "UPDATE version SET pack = ?, offset = ?, length = ? WHERE version = ?",
                (pack, item.offset, item.length_bytes, version),
            )
            left.append(row[:3])
            places[version] = Location(PackNo(pack), item.offset, item.length_bytes, row[1], item.digest)
        self._lighten_all(left)
        return places

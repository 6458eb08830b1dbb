"""The part of the protocol about what files consist of and what is held of it here; base.py has the rules."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from cuckoo_mount.types import (
    AbsentChunk,
    ChunkIndex,
    ChunkRow,
    ChunkWritten,
    DirtyChunk,
    Inode,
    InodeChanges,
    InodeNo,
    Location,
    PackNo,
    Partial,
    VersionNo,
)


class ContentMetadata(Protocol):
    """Chunks, versions, and local copies."""

    async def new_versions(self, count: int) -> VersionNo:
        """Reserve `count` (≥ 1) version numbers that were never used and never will be again; return the first."""

    async def chunk_rows(self, ino: InodeNo, first: ChunkIndex, last: ChunkIndex) -> list[ChunkRow]:
        """Return the rows with first ≤ index ≤ last in index order; a hole has none."""

    async def apply_written(self, ino: InodeNo, changes: InodeChanges, chunks: Sequence[ChunkWritten]) -> None:
        """Name written versions in their file's rows, as dirty, together with the file's size and times.

        The caller has made the bytes durable before.  A version that a row named before loses that reference; a
        partial's base keeps one.  Rows of the same version update length and partial.  Raises: StaleInode.
        """

    async def truncate_rows(
        self, ino: InodeNo, changes: InodeChanges, first_removed: ChunkIndex, boundary: ChunkWritten | None
    ) -> Inode:
        """Remove all chunk rows from `first_removed` on, apply `boundary` (the cut chunk, dirty) and `changes`."""

    async def drop_held(self, chunks: Collection[tuple[InodeNo, ChunkIndex]]) -> None:
        """Forget that clean chunks are held here.  A chunk held dirty is never dropped: AssertionError."""

    async def drop_held_files(self, inodes: Collection[InodeNo]) -> None:
        """Forget all clean chunks of these files (their local file is gone)."""

    async def add_held(self, ino: InodeNo, chunks: Sequence[tuple[ChunkIndex, VersionNo, int]], tick: int) -> None:
        """Record (index, version, length) fetched from a cloud as held clean; ignored where the row changed
        meanwhile."""

    async def touch_held(self, chunks: Collection[tuple[InodeNo, ChunkIndex]], tick: int) -> None:
        """Record that these chunks were used at `tick`."""

    async def evictable(self, wanted_bytes: int) -> list[tuple[InodeNo, ChunkIndex, VersionNo, int]]:
        """Return held clean chunks, least recently used first, of at least `wanted_bytes` in all (fewer if all)."""

    async def files_with_clean_chunks(self) -> list[InodeNo]:
        """Return every file of which at least one clean chunk is recorded as held."""

    async def has_dirty(self, ino: InodeNo) -> bool:
        """Return whether any chunk of the file is held dirty."""

    async def dirty_chunks(self, limit: int, exclude: Collection[VersionNo]) -> list[DirtyChunk]:
        """Return up to `limit` complete dirty chunks, oldest version first, without those in `exclude`."""

    async def partial_chunks(self, limit: int) -> list[tuple[InodeNo, ChunkIndex]]:
        """Return up to `limit` dirty chunks whose base is still missing here."""

    async def redundancies(self, inos: Collection[InodeNo]) -> dict[InodeNo, str]:
        """Return the redundancy of those of these files that have one of their own (`REDUNDANCY_XATTR`)."""

    async def dirty_redundancies(self) -> dict[InodeNo, str]:
        """Return the same for all files with dirty chunks.  Reads all of these."""

    async def dirty_versions(self) -> list[tuple[InodeNo, ChunkIndex, VersionNo, int]]:
        """Return (inode, index, version, length) of every dirty chunk, incomplete ones included, oldest version first.

        Plain rows, because there may be very many and the caller is in a hurry: about 1 µs for each.
        """

    async def partial_versions(self) -> dict[VersionNo, tuple[Partial, Location]]:
        """Return what is missing under each incomplete dirty version, and where that base is stored."""

    async def absent_neighbours(self, pack: PackNo, start: int, end: int, limit: int) -> list[AbsentChunk]:
        """Return up to `limit` chunks stored in `pack` at offsets start ≤ offset < end and not held here, by offset.

        Without chunks of nodes that lost their last name, and without versions that so many chunks name that bringing
        them all here for one of them would be waste.  A version named by several chunks is there for each of them.
        """

    async def held_twin(self, version: VersionNo) -> tuple[InodeNo, ChunkIndex] | None:
        """Return a chunk with this version that is held clean here, if there is any: equal chunks share a version."""

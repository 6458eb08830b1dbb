"""What is known of one file's chunks in memory: slots, and the changes that are not yet in the metadata.

Used by the rest of cache/.  No I/O, no checkpoints.  A `Slot` mirrors one chunk row plus what happened since; the words
are those of docs/concurrency.md, "Life of a chunk".
"""

from __future__ import annotations

from typing import Final

import trio
from attrs import define, field, frozen

from cuckoo_mount.clock import later
from cuckoo_mount.errors import DataUnavailable
from cuckoo_mount.types import (
    CHUNK_SIZE_BYTES,
    ChunkIndex,
    ChunkRow,
    ChunkWritten,
    InodeChanges,
    InodeNo,
    Location,
    Partial,
    VersionNo,
)

WINDOW_CHUNKS: Final = 64
"""Chunk rows are loaded by windows of this many."""
MAX_WINDOWS: Final = 64
"""Windows kept per file before those without changes are forgotten."""

Range = tuple[int, int]


def add_range(ranges: list[Range], start: int, end: int) -> list[Range]:
    """Return `ranges` (sorted, disjoint) with start…end joined in."""
    merged: list[Range] = []
    for low, high in ranges:
        if high < start or low > end:
            merged.append((low, high))
        else:
            start, end = min(start, low), max(end, high)
    merged.append((start, end))
    merged.sort()
    return merged


def missing_ranges(ranges: list[Range], start: int, end: int) -> list[Range]:
    """Return the parts of start…end that `ranges` (sorted, disjoint) do not cover."""
    gaps: list[Range] = []
    for low, high in ranges:
        if high <= start:
            continue
        if low >= end:
            break
        if low > start:
            gaps.append((start, low))
        start = max(start, high)
    if start < end:
        gaps.append((start, end))
    return gaps


@define(slots=True, eq=False)
class Base:
    """The older version under a partial one: its first `size_bytes` bytes show through where `ranges` do not cover."""

    version: VersionNo
    location: Location
    size_bytes: int
    ranges: list[Range]

    def missing(self, start: int, end: int) -> list[Range]:
        """Return what of start…end would have to come from the base."""
        return missing_ranges(self.ranges, start, min(end, self.size_bytes))

    @property
    def is_covered(self) -> bool:
        """Whether nothing of the base shows through any more."""
        return not self.missing(0, self.size_bytes)


@define(slots=True, eq=False)
class Slot:
    """One chunk.  `length_bytes` are valid; beyond them the chunk reads as zeros, whatever the local file has there.

    `location` None: nothing of this version is on a cloud.  `present`: the local file has the valid bytes (but for
    `base`).  `promised`: a row says so, as clean.  `unverified`: believed only after its digest was compared (I-4).
    `committed`: what the file's row names.  `pending`: row, length or partial of it must still be written.
    """

    version: VersionNo
    location: Location | None
    present: bool
    promised: bool
    length_bytes: int
    committed: VersionNo | None
    pending: bool = False
    unverified: bool = False
    base: Base | None = None

    @property
    def is_clean(self) -> bool:
        """Here and on clouds."""
        return self.present and self.location is not None

    def written(self, index: ChunkIndex) -> ChunkWritten:
        """Return the row to be written for this slot."""
        partial = None
        if self.base is not None:
            partial = Partial(self.base.version, self.base.size_bytes, tuple(self.base.ranges))
        return ChunkWritten(index, self.version, self.length_bytes, partial)

    def note_written(self, start: int, end: int) -> None:
        """Account for bytes start…end (within the chunk) that are now in the local file."""
        self.length_bytes = max(self.length_bytes, end)
        if self.base is not None:
            self.base.ranges = add_range(self.base.ranges, start, end)
            if self.base.is_covered:
                self.base = None
            self.pending = True


def slot_from_row(row: ChunkRow, unverified_tick: int) -> Slot:
    """Return the slot of a chunk as committed.  Raises: DataUnavailable when the metadata is damaged."""
    base = None
    if row.partial is not None and row.base_location is not None:
        base = Base(row.partial.base, row.base_location, row.partial.base_bytes, list(row.partial.ranges))
    held = row.held
    if held is not None:
        length = held.length_bytes
    else:
        if row.location is None:
            raise DataUnavailable(f"version {row.version} is stored nowhere (I-1); `cuckoo fsck --repair`")
        length = row.location.plain_bytes
    return Slot(
        version=row.version,
        location=row.location,
        present=held is not None,
        promised=held is not None and not held.dirty,
        length_bytes=length,
        committed=row.version,
        unverified=held is not None and not held.dirty and held.tick <= unverified_tick,
        base=base,
    )


@frozen(slots=True)
class Snapshot:
    """A file's pending changes at one moment; what they name may enter the metadata once the bytes are durable."""

    serial: int
    truncations: int
    changes: InodeChanges
    chunks: tuple[ChunkWritten, ...]


@define(slots=True, eq=False)
class FileState:
    """One file that is open or has changes not yet in the metadata.

    `serial` grows with every change of bytes, size or times, `durable_serial` is the serial at the last snapshot that
    reached the disk and the metadata: equal means nothing is pending.  `truncations` counts them, so that a
    snapshot older than one is never applied.  `extra_bytes`: this file's share of `Pressure.pending_bytes`.  `removed`:
    the node is gone, nothing of it is ever written to the metadata again.  `never_clean`: made while this state was in
    memory, and no chunk of it was clean since: no row says that anything is held clean.  `told_mtime_ns`,
    `told_ctime_ns`: the last times that were set from outside, or found at open; `stamped`: moved by writes since.
    `rows_lock` is held around every metadata call that changes this file's rows.
    """

    ino: InodeNo
    size_bytes: int
    mtime_ns: int | None = None
    ctime_ns: int | None = None
    told_mtime_ns: int | None = None
    told_ctime_ns: int | None = None
    stamped: bool = False
    users: int = 0
    writers: int = 0
    serial: int = 0
    durable_serial: int = 0
    truncations: int = 0
    slots: dict[ChunkIndex, Slot] = field(factory=dict)
    windows: dict[int, None] = field(factory=dict)
    extra_bytes: int = 0
    removed: bool = False
    never_clean: bool = False
    rows_lock: trio.Lock = field(factory=trio.Lock)

    @property
    def is_pending(self) -> bool:
        """Whether bytes, size or times changed that the metadata does not have."""
        return self.serial != self.durable_serial

    def note_change(self, now_ns: int) -> None:
        """Account for a change of content: times move forward, and back only where the clock was set back."""
        self.serial += 1
        self.mtime_ns = later(self.mtime_ns, now_ns)
        self.ctime_ns = later(self.ctime_ns, now_ns)
        self.stamped = True

    def note_told(self, *, mtime_ns: int | None, ctime_ns: int) -> None:
        """Account for times that came from outside; `mtime_ns` None: that one did not move."""
        self.told_ctime_ns = ctime_ns
        if mtime_ns is not None:
            self.told_mtime_ns = mtime_ns
            self.stamped = False

    def undo_stamp(self) -> None:
        """Make the times again what they were told last, after our own stamps."""
        if self.stamped and self.told_mtime_ns is not None:
            self.stamped = False
            self.serial += 1
            self.mtime_ns = self.told_mtime_ns
            self.ctime_ns = self.told_ctime_ns

    def snapshot(self) -> Snapshot:
        """Return what is pending now."""
        return Snapshot(
            serial=self.serial,
            truncations=self.truncations,
            changes=InodeChanges(size_bytes=self.size_bytes, mtime_ns=self.mtime_ns, ctime_ns=self.ctime_ns),
            chunks=tuple(slot.written(index) for index, slot in self.slots.items() if slot.pending),
        )

    def is_renewed(self, snapshot: Snapshot) -> bool:
        """Whether a chunk got a new version since the snapshot: then its row must stay as it is.

        It was frozen with the length that its row has, which is shorter than what the snapshot would write there.
        """
        slots = [(self.slots.get(chunk.index), chunk) for chunk in snapshot.chunks]
        return any(slot is not None and slot.pending and slot.version != chunk.version for slot, chunk in slots)

    def is_pending_chunk(self, chunk: ChunkWritten) -> bool:
        """Whether a chunk of a snapshot is not in its row yet; another snapshot may have brought it meanwhile.

        If so it may also be on clouds by now, and its row must not be made dirty again.
        """
        slot = self.slots.get(chunk.index)
        return slot is not None and slot.pending

    def note_applied(self, snapshot: Snapshot) -> None:
        """Account for a snapshot that entered the metadata."""
        for chunk in snapshot.chunks:
            slot = self.slots.get(chunk.index)
            if slot is None:
                continue
            slot.committed = chunk.version
            if slot.version == chunk.version and slot.written(chunk.index) == chunk:
                slot.pending = False
        self.durable_serial = max(self.durable_serial, snapshot.serial)
        if not self.is_pending:
            self.mtime_ns = self.ctime_ns = None

    def is_loaded(self, first: ChunkIndex, last: ChunkIndex) -> bool:
        """Return whether the rows first…last are in memory."""
        return all(number in self.windows for number in range(first // WINDOW_CHUNKS, last // WINDOW_CHUNKS + 1))

    def forget_windows(self) -> None:
        """Drop the rows of clean and absent chunks when there are many; they can be loaded again."""
        if len(self.windows) <= MAX_WINDOWS:
            return
        kept = {i: slot for i, slot in self.slots.items() if slot.pending or slot.committed != slot.version}
        keep_windows = {index // WINDOW_CHUNKS for index in kept}
        self.slots = {i: s for i, s in self.slots.items() if i // WINDOW_CHUNKS in keep_windows}
        self.windows = {number: None for number in self.windows if number in keep_windows}


def chunk_spans(offset: int, size_bytes: int) -> list[tuple[ChunkIndex, int, int]]:
    """Cut a byte range into (chunk index, start, end) with start and end within the chunk."""
    spans = []
    end = offset + size_bytes
    while offset < end:
        index, start = divmod(offset, CHUNK_SIZE_BYTES)
        stop = min(CHUNK_SIZE_BYTES, start + end - offset)
        spans.append((ChunkIndex(index), start, stop))
        offset += stop - start
    return spans

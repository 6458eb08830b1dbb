"""Changing a file's size.

Used by chunkcache.py.  Loop only.  Growing costs nothing: the size is pending, what lies beyond a chunk's length
reads as zeros.
Shrinking changes the rows first and the local file last: the cut bytes may be the only copy of what the
committed rows still promise, so they are touched only when the commit that stops naming them is durable (I-5).
"""

from __future__ import annotations

import os

from cuckoo_mount.cache.content import Content
from cuckoo_mount.cache.state import Base, FileState, Slot, missing_ranges
from cuckoo_mount.types import CHUNK_SIZE_BYTES, ChunkIndex, ChunkRow, ChunkWritten, InodeChanges, Partial


async def set_size(content: Content, state: FileState, size_bytes: int, now_ns: int) -> None:
    """Make the file `size_bytes` long and stamp mtime and ctime.  Waits for the local disk at most, never for a cloud.

    Raises: StaleInode, MetadataError.
    """
    while not content.gate.is_open:
        await content.gate.wait()
    if size_bytes >= state.size_bytes:
        state.size_bytes = size_bytes
        state.note_change(now_ns)
        return
    unsent = await content.metadata.has_dirty(state.ino)
    await _shrink_rows(content, state, size_bytes, now_ns)
    if unsent:
        await content.metadata.make_durable()
    _cut_local_file(content, state, size_bytes)


async def _shrink_rows(content: Content, state: FileState, size_bytes: int, now_ns: int) -> None:
    index, cut = divmod(size_bytes, CHUNK_SIZE_BYTES)
    boundary_index = ChunkIndex(index)
    first_removed = ChunkIndex(index + (cut > 0))
    file = content.files.get(state.ino)
    if file is not None:
        await content.prepare_file(state)
    await content.load(state, boundary_index, boundary_index)
    async with state.rows_lock:
        await content.versions.reserve(2)
        boundary = None
        if cut:
            rows = await content.metadata.chunk_rows(state.ino, boundary_index, boundary_index)
            boundary = _cut_row(content, state, rows[0], cut) if rows else None
        state.note_change(now_ns)
        changes = InodeChanges(size_bytes=size_bytes, mtime_ns=state.mtime_ns, ctime_ns=state.ctime_ns)
        await content.metadata.truncate_rows(state.ino, changes, first_removed, boundary)
        # No checkpoint until the slots say the same as the rows.
        state.truncations += 1
        state.size_bytes = size_bytes
        state.slots = {i: slot for i, slot in state.slots.items() if i < first_removed}
        content.frozen.displace(state.ino, first_removed)
        if boundary is not None:
            content.frozen.displace_chunk(state.ino, boundary_index)
        slot = state.slots.get(boundary_index)
        if cut and slot is not None:
            _cut_slot(content, state, slot, boundary, cut)
        content.settle_account(state)
        await content.metadata.commit()


def _cut_row(content: Content, state: FileState, row: ChunkRow, cut: int) -> ChunkWritten | None:
    """Return what the committed boundary chunk becomes, or None if it is short enough.

    It never needs bytes that are not durable: a dirty version keeps its own, one that is on clouds becomes the base
    of a version of which nothing is here.
    """
    if row.location is not None:
        if row.location.plain_bytes <= cut:
            return None
        return ChunkWritten(row.index, content.versions.take(), cut, Partial(row.version, cut, ()))
    assert row.held is not None, f"I-1: version {row.version} is nowhere"
    if row.held.length_bytes <= cut:
        return None
    frozen = content.frozen.get(state.ino, row.index)
    version = content.versions.take() if frozen is not None and frozen.version == row.version else row.version
    partial = None
    if row.partial is not None:
        base_bytes = min(row.partial.base_bytes, cut)
        ranges = tuple((low, min(high, cut)) for low, high in row.partial.ranges if low < cut)
        if missing_ranges(list(ranges), 0, base_bytes):
            partial = Partial(row.partial.base, base_bytes, ranges)
    return ChunkWritten(row.index, version, cut, partial)


def _cut_slot(content: Content, state: FileState, slot: Slot, boundary: ChunkWritten | None, cut: int) -> None:
    """Bring the boundary slot in line with its row, keeping what is newer or more complete here."""
    was = slot.committed
    if boundary is not None:
        slot.committed = boundary.version
    if slot.length_bytes <= cut and slot.location is None:
        return
    if slot.location is not None:
        if boundary is None:
            return
        if not slot.present or slot.unverified:
            slot.base = Base(slot.version, slot.location, cut, [])
        else:
            # Complete here, while its row shows the base through: pending until the next checkpoint says so.
            slot.pending = True
        slot.version = boundary.version
        slot.location = None
        slot.present = True
        slot.promised = slot.unverified = False
    elif boundary is not None and slot.version == was:
        slot.version = boundary.version
    slot.length_bytes = min(slot.length_bytes, cut)
    if slot.base is not None:
        slot.base.size_bytes = min(slot.base.size_bytes, cut)
        slot.base.ranges = [(low, min(high, cut)) for low, high in slot.base.ranges if low < cut]
        if slot.base.is_covered:
            slot.base = None
            slot.pending = True


def _cut_local_file(content: Content, state: FileState, size_bytes: int) -> None:
    """Give back the room behind the new end, unless something was written there meanwhile."""
    index, cut = divmod(size_bytes, CHUNK_SIZE_BYTES)
    last = index if cut else index - 1
    file = content.files.get(state.ino)
    if file is None or state.size_bytes > size_bytes or any(i > last for i in state.slots) or file.moving is not None:
        return
    if content.frozen.needs_local(state.ino, ChunkIndex(index)):
        # Not copied aside: it may be the whole of a large file.  What lies there is nobody's, like all behind an end.
        content.untrimmed.add(state.ino)
        return
    content.evicting -= {(ino, i) for ino, i in content.evicting if ino == state.ino and i >= index}
    if os.fstat(file.fd).st_size > size_bytes:
        os.ftruncate(file.fd, size_bytes)
    content.pressure.made_progress()

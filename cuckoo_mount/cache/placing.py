"""Bringing the slots in line with rows that changed without their file's doing: stored, linked, moved.

Used by writeback.py, dedup.py and, through chunkcache.py, by compaction.  Loop only, no checkpoints: each is called in
one step with the metadata call that wrote the rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cuckoo_mount.cache.content import Content
from cuckoo_mount.cache.state import Slot
from cuckoo_mount.types import DirtyChunk, Linked, Location, PackNo, SealedChunk, VersionNo


def note_stored(content: Content, number: PackNo, sealed: Sequence[SealedChunk]) -> None:
    """After `finish_pack`: these versions are in pack `number`."""
    for item in sealed:
        slot = _slot(content, item.chunk)
        if slot is None or slot.version != item.chunk.version:
            continue
        slot.location = Location(number, item.offset, item.length_bytes, item.chunk.length_bytes, item.digest)
        slot.promised = True


def note_linked(content: Content, linked: Sequence[Linked]) -> None:
    """After `link_duplicates`: the rows of these chunks name stored versions."""
    for link in linked:
        slot = _slot(content, link.chunk)
        if slot is None:
            continue
        if slot.version == link.chunk.version:
            slot.version = slot.committed = link.version
            slot.location = link.location
            slot.promised = True
        elif slot.committed == link.chunk.version:
            slot.committed = link.version


def note_moved(content: Content, places: Mapping[VersionNo, Location]) -> None:
    """After `move_versions`: these versions are elsewhere; also those under partly written chunks."""
    for state in content.states.values():
        for slot in state.slots.values():
            if slot.location is not None:
                slot.location = places.get(slot.version, slot.location)
            if slot.base is not None:
                slot.base.location = places.get(slot.base.version, slot.base.location)


def _slot(content: Content, chunk: DirtyChunk) -> Slot | None:
    """Return the slot of a chunk that was held dirty and now is clean, if it is in memory."""
    state = content.states.get(chunk.ino)
    if state is None:
        return None
    state.never_clean = False
    return state.slots.get(chunk.index)

"""Between a local file and its rows: fetched bytes land, lost files are accounted for, doubtful chunks are verified.

Used by fetching.py and content.py.  Loop only.  Fetched bytes land only where the chunk is still absent, in one step
with the look, under the file's rows lock.  Invariants: I-3, I-4.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from typing import Final, Protocol

from attrs import evolve

from cuckoo_mount.cache.files import LocalFile, LocalFiles
from cuckoo_mount.cache.sparse import pwrite_all, reserve
from cuckoo_mount.cache.state import WINDOW_CHUNKS, FileState
from cuckoo_mount.errors import DataUnavailable, StaleInode
from cuckoo_mount.metadata.base import Metadata
from cuckoo_mount.types import CHUNK_SIZE_BYTES, AbsentChunk, ChunkIndex, InodeNo, Location

log = logging.getLogger(__name__)
Chunk = tuple[InodeNo, ChunkIndex]


class FileStates(Protocol):
    """What landing needs of Content: the state of a file, open or not."""

    @property
    def states(self) -> Mapping[InodeNo, FileState]:
        """The files that are open or have pending changes."""

    async def open(self, ino: InodeNo, *, writing: bool) -> FileState:
        """Return the file's state, to be given back by `release`.  Raises: StaleInode."""

    async def load(self, state: FileState, first: ChunkIndex, last: ChunkIndex) -> None:
        """Return when the rows first…last are in memory."""

    def release(self, state: FileState, *, writing: bool) -> None:
        """Give back what `open` returned."""


class Landing:
    """Puts fetched chunks into local files.  `evicting`: chunks about to be punched; what lands is taken out of it."""

    def __init__(
        self,
        metadata: Metadata,
        files: LocalFiles,
        states: FileStates,
        *,
        evicting: set[Chunk],
        digest: Callable[[bytes], bytes],
        clock: Callable[[], int],
    ) -> None:
        self._metadata = metadata
        self._files = files
        self._states = states
        self._evicting: Final = evicting
        self._digest = digest
        self._clock = clock

    async def land(self, chunk: AbsentChunk, data: bytes) -> bool:
        """Put the verified bytes of a chunk where they belong; return False if they are not wanted there any more.

        Checkpoint.  Raises: OSError of the local disk, MetadataError.
        """
        try:
            state = await self._states.open(chunk.ino, writing=False)
        except StaleInode:
            return False
        try:
            await self._states.load(state, chunk.index, chunk.index)
            async with state.rows_lock:
                return not state.removed and await self._land(state, chunk, data)
        finally:
            self._states.release(state, writing=False)

    async def _land(self, state: FileState, chunk: AbsentChunk, data: bytes) -> bool:
        file = await self._landing_file(state)
        slot = state.slots.get(chunk.index)
        if slot is None:
            return False
        start = chunk.index * CHUNK_SIZE_BYTES
        if slot.version == chunk.version and not slot.present:
            reserve(file.fd, start, slot.length_bytes)
            self._evicting.discard((state.ino, chunk.index))
            pwrite_all(file.fd, data[: slot.length_bytes], start)
            slot.present = slot.promised = True
            held = [(chunk.index, chunk.version, slot.length_bytes)]
            await self._metadata.add_held(state.ino, held, self._clock())
            return True
        if slot.base is not None and slot.base.version == chunk.version:
            for low, high in slot.base.missing(0, slot.base.size_bytes):
                reserve(file.fd, start + low, high - low)
                pwrite_all(file.fd, memoryview(data)[low:high], start + low)
            slot.base = None
            slot.pending = True
            state.serial += 1
            return True
        return False

    async def copy_here(self, chunk: AbsentChunk) -> bytes | None:
        """Return the chunk's bytes from another file that holds the same version, if one does and they are right."""
        twin = await self._metadata.held_twin(chunk.version)
        file = self._files.get(twin[0]) if twin is not None else None
        if twin is None or file is None:
            return None
        data = os.pread(file.fd, chunk.location.plain_bytes, twin[1] * CHUNK_SIZE_BYTES)
        return data if self._digest(data) == chunk.location.digest else None

    async def look_up(self, chunk: AbsentChunk) -> AbsentChunk | None:
        """Return the chunk as its row says now that it is stored, or None if the row does not speak of it any more.

        Compaction moves versions to other packs and deletes the old ones, also while they are fetched.
        """
        for row in await self._metadata.chunk_rows(chunk.ino, chunk.index, chunk.index):
            location = row.location if row.version == chunk.version else None
            if row.partial is not None and row.partial.base == chunk.version:
                location = row.base_location
            if location is not None:
                self._note_moved(chunk, location)
                return evolve(chunk, location=location)
        return None

    def _note_moved(self, chunk: AbsentChunk, location: Location) -> None:
        state = self._states.states.get(chunk.ino)
        slot = state.slots.get(chunk.index) if state is not None else None
        if slot is None:
            return
        if slot.version == chunk.version and slot.location is not None:
            slot.location = location
        elif slot.base is not None and slot.base.version == chunk.version:
            slot.base.location = location

    async def _landing_file(self, state: FileState) -> LocalFile:
        """Return the file to write fetched bytes into; the caller holds the rows lock."""
        file = self._files.get(state.ino)
        while file is not None and file.moving is not None:
            await file.moving.wait()
            file = self._files.get(state.ino)
        if file is None:
            await self.lose_clean(state)
            file = self._files.create(state.ino, in_state=await self._metadata.has_dirty(state.ino))
        return file

    async def lose_clean(self, state: FileState) -> None:
        """Account for a local file that is not there: what was clean in it is absent.  The caller holds the rows
        lock."""
        if state.never_clean or _knows_nothing_clean(state):
            return
        lost = [slot for slot in state.slots.values() if slot.is_clean]
        for slot in lost:
            slot.present = slot.promised = slot.unverified = False
        await self._metadata.drop_held_files([state.ino])
        await self._metadata.commit()

    async def lost_file(self, state: FileState, spans: list[tuple[ChunkIndex, int, int]]) -> bool:
        """Look why there is no local file: return whether to look again, as clean chunks went with it.

        Somebody may delete the cache folder while the drive is mounted.  Raises: DataUnavailable (dirty bytes went).
        """
        slots = [slot for index, start, _ in spans if (slot := state.slots.get(index)) and start < slot.length_bytes]
        if any(slot.location is None for slot in slots):
            raise DataUnavailable(f"unsent data of inode {state.ino} is gone from the state folder")
        if slots:
            async with state.rows_lock:
                await self.lose_clean(state)
        return bool(slots)

    async def verify(self, state: FileState, index: ChunkIndex) -> None:
        """Compare a chunk from before a power cut with its digest (I-4).  The caller holds the rows lock."""
        slot = state.slots.get(index)
        if slot is None or not slot.unverified:
            return
        assert slot.location is not None, "only clean chunks are unverified"
        file = self._files.get(state.ino)
        data = os.pread(file.fd, slot.length_bytes, index * CHUNK_SIZE_BYTES) if file is not None else b""
        slot.unverified = False
        if self._digest(data) == slot.location.digest:
            await self._metadata.touch_held([(state.ino, index)], self._clock())
            return
        log.warning(
            "inode %d chunk %d: the local copy is older or newer than its record; fetching it again", state.ino, index
        )
        slot.present = slot.promised = False
        await self._metadata.drop_held([(state.ino, index)])
        await self._metadata.commit()


def _knows_nothing_clean(state: FileState) -> bool:
    """Return whether all rows of the file are in memory and none says that something is held clean.

    Spares a commit for each small file that is fetched.
    """
    last = max(0, state.size_bytes - 1) // CHUNK_SIZE_BYTES
    if last >= WINDOW_CHUNKS or not state.is_loaded(ChunkIndex(0), ChunkIndex(last)):
        return False
    return not any(slot.is_clean or slot.promised for slot in state.slots.values())

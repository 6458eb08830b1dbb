"""Bringing bytes here: from clouds into the local file, and from a doubtful local file into certainty.

Used by content.py.  Loop only.  A fetch lands only where the chunk is still absent, in one step with the look, under
the file's rows
lock.  Invariants: I-3, I-4, I-11.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Final, Protocol

from cuckoo_mount.cache.files import LocalFile, LocalFiles
from cuckoo_mount.cache.pressure import Pressure
from cuckoo_mount.cache.sparse import pwrite_all
from cuckoo_mount.cache.state import FileState
from cuckoo_mount.errors import DataUnavailable
from cuckoo_mount.locks import SingleFlight
from cuckoo_mount.metadata.base import Metadata
from cuckoo_mount.types import CHUNK_SIZE_BYTES, ChunkIndex, InodeNo, Location, VersionNo

log = logging.getLogger(__name__)
Chunk = tuple[InodeNo, ChunkIndex]


class ChunkReader(Protocol):
    """Where absent chunks come from."""

    async def read(self, location: Location) -> bytes:
        """Return the plain bytes stored at `location`, verified.  Raises: DataUnavailable, DataTimeout."""


class Fetcher:
    """Fetches and verifies chunks.  `evicting`: chunks about to be punched; what lands is taken out of it."""

    def __init__(
        self,
        metadata: Metadata,
        files: LocalFiles,
        reader: ChunkReader,
        pressure: Pressure,
        *,
        evicting: set[Chunk],
        digest: Callable[[bytes], bytes],
        clock: Callable[[], int],
    ) -> None:
        self.misses = 0
        self._metadata = metadata
        self._files = files
        self._reader = reader
        self._pressure = pressure
        self._evicting: Final = evicting
        self._digest = digest
        self._clock = clock
        self._flights: SingleFlight[tuple[InodeNo, ChunkIndex, VersionNo], None] = SingleFlight()

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

    async def bring(self, state: FileState, index: ChunkIndex) -> None:
        """Fetch or verify one chunk; return when it was tried (the caller looks again).  Raises: DataUnavailable, …"""
        slot = state.slots.get(index)
        if slot is None:
            return
        if slot.unverified:
            async with state.rows_lock:
                await self.verify(state, index)
            return
        if not slot.present and slot.location is not None:
            version, location = slot.version, slot.location
        elif slot.base is not None:
            version, location = slot.base.version, slot.base.location
        else:
            return
        await self._flights.run((state.ino, index, version), lambda: self._fetch(state, index, version, location))

    async def _fetch(self, state: FileState, index: ChunkIndex, version: VersionNo, location: Location) -> None:
        self.misses += 1
        data = await self._reader.read(location)
        await self._pressure.make_way(len(data))
        async with state.rows_lock:
            if state.removed:
                return
            file = await self._landing_file(state)
            slot = state.slots.get(index)
            if slot is None:
                return
            start = index * CHUNK_SIZE_BYTES
            if slot.version == version and not slot.present:
                self._evicting.discard((state.ino, index))
                pwrite_all(file.fd, data[: slot.length_bytes], start)
                slot.present = slot.promised = True
                await self._metadata.add_held(state.ino, [(index, version, slot.length_bytes)], self._clock())
            elif slot.base is not None and slot.base.version == version:
                for low, high in slot.base.missing(0, slot.base.size_bytes):
                    pwrite_all(file.fd, memoryview(data)[low:high], start + low)
                slot.base = None
                slot.pending = True
                state.serial += 1

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
        if state.never_clean:
            return
        lost = [slot for slot in state.slots.values() if slot.is_clean]
        for slot in lost:
            slot.present = slot.promised = slot.unverified = False
        await self._metadata.drop_held_files([state.ino])
        await self._metadata.commit()

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

"""Giving back local disk: clean chunks leave, least recently used first.

Used by chunkcache.py.  Loop only.  Order (I-3): rows gone → that durable → holes punched, unless the chunk came back
meanwhile.
"""

from __future__ import annotations

import logging
import os
from typing import Final

import trio

from cuckoo_mount.cache.checkpoint import Checkpointer
from cuckoo_mount.cache.content import Content
from cuckoo_mount.cache.files import LocalFile
from cuckoo_mount.cache.sparse import punch_hole
from cuckoo_mount.cache.state import FileState
from cuckoo_mount.errors import StaleInode
from cuckoo_mount.types import CHUNK_SIZE_BYTES, ChunkIndex, InodeNo, VersionNo

log = logging.getLogger(__name__)
BATCH_BYTES: Final = 64 << 20
_LAST_INDEX: Final = ChunkIndex(1 << 43)
RETRY_S: Final = 1.0

Chunk = tuple[InodeNo, ChunkIndex]


class Evictor:
    """Keeps the cache below its limit."""

    def __init__(self, content: Content, checkpointer: Checkpointer) -> None:
        self._content = content
        self._checkpointer = checkpointer
        self.evicted_bytes = 0

    async def run(self) -> None:
        """Evict whenever the account is high, until cancelled."""
        pressure = self._content.pressure
        while True:
            await pressure.need.wait()
            pressure.need = trio.Event()
            try:
                while pressure.is_high:
                    if await self.evict(min(pressure.excess_bytes, BATCH_BYTES)) == 0:
                        # Nothing clean is left: sending makes some, a checkpoint makes pending data ready to be sent.
                        self._checkpointer.want()
                        with trio.move_on_after(RETRY_S):
                            await pressure.room.wait()
                        pressure.check_disk()
            except OSError as error:
                log.error("the local disk refused an eviction: %s; trying again", error)
                await trio.sleep(RETRY_S)

    async def evict(self, wanted_bytes: int) -> int:
        """Give back about `wanted_bytes`; return how many were.  Raises: OSError, MetadataError."""
        found = await self._choose(wanted_bytes)
        by_file: dict[InodeNo, list[ChunkIndex]] = {}
        for ino, index, _, _ in found:
            by_file.setdefault(ino, []).append(index)
        dropped: set[Chunk] = set()
        for ino, indexes in by_file.items():
            dropped.update((ino, index) for index in await self._drop(ino, indexes))
        if not dropped:
            return 0
        await self._checkpointer.make_durable()
        await self._punch([chunk for chunk in dropped if chunk in self._content.evicting])
        freed = sum(length for ino, index, _, length in found if (ino, index) in dropped)
        self.evicted_bytes += freed
        self._content.pressure.made_progress()
        return freed

    async def _choose(self, wanted_bytes: int) -> list[tuple[InodeNo, ChunkIndex, VersionNo, int]]:
        """Return what to evict: what was fetched ahead and not yet read only if nothing else is left."""
        fetcher = self._content.fetcher
        if not fetcher.unread_bytes:
            return await self._content.metadata.evictable(wanted_bytes)
        found = await self._content.metadata.evictable(wanted_bytes + fetcher.unread_bytes)
        chosen, total = [], 0
        for chunk in sorted(found, key=lambda chunk: fetcher.is_unread(chunk[0], chunk[1])):
            if total >= wanted_bytes:
                break
            chosen.append(chunk)
            total += chunk[3]
        return chosen

    async def _drop(self, ino: InodeNo, indexes: list[ChunkIndex]) -> list[ChunkIndex]:
        """Take back the promise that these chunks are here; return those for which it was done."""
        try:
            state = await self._content.open(ino, writing=False)
        except StaleInode:
            return []
        try:
            async with state.rows_lock:
                kept = [index for index in indexes if await self._is_promised(state, index)]
                for index in kept:
                    slot = state.slots.get(index)
                    if slot is not None:
                        slot.present = slot.promised = slot.unverified = False
                self._content.evicting.update((ino, index) for index in kept)
                await self._content.metadata.drop_held([(ino, index) for index in kept])
                return kept
        finally:
            self._content.release(state, writing=False)

    async def _is_promised(self, state: FileState, index: ChunkIndex) -> bool:
        """Return whether the chunk is clean; it may have become dirty, and its state forgotten, since it was chosen."""
        slot = state.slots.get(index)
        if slot is not None:
            return slot.promised
        rows = await self._content.metadata.chunk_rows(state.ino, index, index)
        return bool(rows) and rows[0].held is not None and not rows[0].held.dirty

    async def _punch(self, chunks: list[Chunk]) -> None:
        """Punch what is still to be evicted; a file of which nothing is left goes."""
        for ino, index in chunks:
            if (ino, index) not in self._content.evicting:
                continue
            self._content.evicting.discard((ino, index))
            file = self._content.files.get(ino)
            if file is None or file.moving is not None:
                continue
            punch_hole(file.fd, index * CHUNK_SIZE_BYTES, CHUNK_SIZE_BYTES)
            if _is_empty(file) and not await self._is_held(ino) and _is_empty(file):
                self._content.files.remove(ino)

    async def _is_held(self, ino: InodeNo) -> bool:
        """Return whether a row says that something of the file is here; a chunk of zeros may need no blocks."""
        rows = await self._content.metadata.chunk_rows(ino, ChunkIndex(0), _LAST_INDEX)
        return any(row.held is not None for row in rows)


def _is_empty(file: LocalFile) -> bool:
    return not file.pins and not file.in_state and os.fstat(file.fd).st_blocks == 0

"""Making partly written chunks whole: their base is fetched from the clouds, so that they can be sent.

Used by writeback.py for chunks as their files have them now, and by cutting.py for frozen versions.  Loop only.
A frozen version that its file still consists of is made whole in the local file, like any; one that was written, cut or
removed since is put together aside.  Invariants: I-2, I-7.
"""

from __future__ import annotations

from typing import Final

import trio

from cuckoo_mount.cache.checkpoint import Checkpointer
from cuckoo_mount.cache.content import Content
from cuckoo_mount.cache.fetching import ChunkReader
from cuckoo_mount.cache.frozen import Frozen
from cuckoo_mount.errors import StaleInode
from cuckoo_mount.types import ChunkIndex, InodeNo, Partial

MAX_PARTIALS: Final = 64


class Completer:
    """Fetches bases."""

    def __init__(self, content: Content, checkpointer: Checkpointer, reader: ChunkReader) -> None:
        self._content = content
        self._checkpointer = checkpointer
        self._reader = reader

    async def complete_some(self) -> bool:
        """Make up to MAX_PARTIALS chunks whole; return whether there were any.  Raises: as `complete`."""
        found = await self._content.metadata.partial_chunks(MAX_PARTIALS)
        for ino, index in found:
            await self.complete(ino, index)
        return bool(found)

    async def complete(self, ino: InodeNo, index: ChunkIndex) -> None:
        """Make a chunk whole as it is now, and enter it.  Raises: DataUnavailable, DataTimeout, OSError."""
        try:
            state = await self._content.open(ino, writing=False)
        except StaleInode:
            return
        try:
            await self._content.load(state, index, index)
            slot = state.slots.get(index)
            if slot is not None and slot.base is not None:
                await self._content.fetcher.bring(state, index)
            await self._checkpointer.sync_file(state)
        finally:
            self._content.release(state, writing=False)

    async def complete_frozen(self, frozen: Frozen) -> None:
        """Make a frozen version whole, here or aside; nothing to do if it is.  Raises: as `complete`.

        Afterwards no row names it as incomplete: either it is whole in its row, too, or the row names a newer one.
        """
        while frozen.partial is not None:
            if frozen.is_displaced:
                await self._put_together(frozen, frozen.partial)
                await self._enter(frozen.ino)
                return
            await self.complete(frozen.ino, frozen.index)
            for row in await self._content.metadata.chunk_rows(frozen.ino, frozen.index, frozen.index):
                if row.version == frozen.version and row.partial is None:
                    frozen.partial = frozen.base = None
            await trio.lowlevel.checkpoint()

    async def _enter(self, ino: InodeNo) -> None:
        """Enter what is pending of a file: until then a row may name what was displaced."""
        state = self._content.states.get(ino)
        if state is not None and state.is_pending:
            await self._checkpointer.sync_file(state)

    async def _put_together(self, frozen: Frozen, partial: Partial) -> None:
        assert frozen.base is not None, f"version {frozen.version} is incomplete and has no base"
        below = await self._reader.read(frozen.base)
        own = self._content.frozen.read(frozen)
        whole = bytearray(below[: partial.base_bytes] + own[partial.base_bytes :])
        for start, end in partial.ranges:
            whole[start:end] = own[start:end]
        self._content.frozen.put_aside(frozen, bytes(whole))
        frozen.partial = frozen.base = None

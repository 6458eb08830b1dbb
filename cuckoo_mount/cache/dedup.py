"""Not sending what is stored already: chunks with the bytes of a stored version are pointed at it.

Used by sending.py.  Loop only.  A chunk's digest is known once it was read to be sealed: so a pack is built, its
digests are looked up, and where that pays the pack is built again, under a new id, without the duplicates.
Within one policy only, and only versions that can be read now.  Invariants: I-1, I-8, I-10.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import trio

from cuckoo_mount.cache.content import Content
from cuckoo_mount.cache.frozen import Frozen
from cuckoo_mount.cache.placing import note_linked
from cuckoo_mount.packs.builder import BuiltPack, ChunkSource
from cuckoo_mount.packs.writer import PackWriter
from cuckoo_mount.types import CHUNK_SIZE_BYTES, Duplicate, Linked, VersionNo

WORTH_PART: Final = 16
"""A pack is built again when at least 1/16 of it is duplicates, …"""
WORTH_BYTES: Final = 64 << 10
"""… or so many sealed bytes of it."""
_STEP: Final = 512
"""Rows looked up or changed between two checkpoints: about 10 ms."""


class Deduplicator:
    """Builds packs of what is not stored yet.  `linked_bytes`: plain bytes that were not sent, since the mount."""

    def __init__(self, content: Content, writer: PackWriter) -> None:
        self.linked_bytes = 0
        self._content = content
        self._metadata = content.metadata
        self._writer = writer

    async def build(
        self, batch: Sequence[Frozen], note: Callable[[Sequence[Linked]], None] | None = None
    ) -> BuiltPack | None:
        """Return a pack of these frozen chunks, all of one policy, without those whose bytes turn out to be stored.

        None: that are all of them.  `note`: told of them in the same step.  Checkpoint.  Raises: as `PackWriter.build`.
        """
        sources = [self._source(frozen) for frozen in batch]
        (policy,) = {frozen.policy for frozen in batch}
        built = await self._writer.build(sources, policy)
        try:
            duplicates = await self._find(built, policy)
        except BaseException:  # cancellation, too
            self._writer.leave(built)
            raise
        if not duplicates:
            return built
        await self._writer.discard(built)
        linked = await self.link(duplicates, batch, note)
        left = [source for source in sources if source.chunk.version not in linked]
        return await self._writer.build(left, policy) if left else None

    async def link(
        self,
        duplicates: Sequence[Duplicate],
        batch: Sequence[Frozen],
        note: Callable[[Sequence[Linked]], None] | None = None,
    ) -> set[VersionNo]:
        """Let chunks of the batch name the stored versions that they repeat; return those for which it was done."""
        linked: set[VersionNo] = set()
        for start in range(0, len(duplicates), _STEP):
            overwritten = self.overwritten(batch)
            done = await self._metadata.link_duplicates(duplicates[start : start + _STEP], overwritten)
            note_linked(self._content, done)
            if note is not None:
                note(done)
            linked.update(link.chunk.version for link in done)
            self.linked_bytes += sum(link.chunk.length_bytes for link in done)
            await trio.lowlevel.checkpoint()
        return linked

    def overwritten(self, batch: Sequence[Frozen]) -> set[VersionNo]:
        """Return the versions of the batch whose bytes the local file no longer has."""
        return {frozen.version for frozen in batch if frozen.is_aside or self._is_overwritten(frozen)}

    async def _find(self, built: BuiltPack, policy: str) -> list[Duplicate]:
        """Return which chunks of a pack are stored already, if they are enough to build it again."""
        wanted = {(item.digest, item.chunk.length_bytes): item.length_bytes for item in built.sealed}
        found = await self._lookup([*wanted], policy)
        size_bytes = sum(wanted[key] for key in found)
        if not found or (size_bytes * WORTH_PART < built.size_bytes and size_bytes < WORTH_BYTES):
            return []
        known = {item.chunk.version: found.get((item.digest, item.chunk.length_bytes)) for item in built.sealed}
        chunks = [(item.chunk, item.chunk.version) for item in built.sealed]
        chunks += [(repeat.chunk, repeat.of) for repeat in built.repeats]
        return [Duplicate(chunk, of) for chunk, first in chunks if (of := known[first]) is not None]

    async def _lookup(self, wanted: Sequence[tuple[bytes, int]], policy: str) -> dict[tuple[bytes, int], VersionNo]:
        found: dict[tuple[bytes, int], VersionNo] = {}
        for start in range(0, len(wanted), _STEP):
            step = wanted[start : start + _STEP]
            found.update(await self._metadata.find_duplicates(policy, self._writer.clouds_up, step))
            await trio.lowlevel.checkpoint()
        return found

    def _source(self, frozen: Frozen) -> ChunkSource:
        path = self._content.files.path(frozen.ino, in_state=True)
        aside = self._content.frozen.aside_path(frozen.version)
        return ChunkSource(frozen.chunk, path, frozen.index * CHUNK_SIZE_BYTES, aside)

    def _is_overwritten(self, frozen: Frozen) -> bool:
        state = self._content.states.get(frozen.ino)
        slot = state.slots.get(frozen.index) if state is not None else None
        return slot is not None and slot.version != frozen.version

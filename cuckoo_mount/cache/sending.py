"""Sending one batch of frozen chunks: seal into a pack, store that, record where it is.

Used by writeback.py and cutting.py.  Loop only; several batches at the same time.  Failures of clouds are a state, not
an error: a pack is tried again with growing pauses until it is stored.  Invariants: I-8, I-9.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from typing import Final

import trio
from attrs import define, field

from cuckoo_mount.cache.content import Content
from cuckoo_mount.cache.dedup import Deduplicator
from cuckoo_mount.cache.frozen import Frozen
from cuckoo_mount.cache.placing import note_stored
from cuckoo_mount.errors import CloudError, CuckooError, NoSpace
from cuckoo_mount.packs.builder import BuiltPack
from cuckoo_mount.packs.repacking import ask_for_repacking
from cuckoo_mount.packs.writer import PackWriter, StoredPack
from cuckoo_mount.types import (
    ChunkIndex,
    DirtyChunk,
    InodeNo,
    Linked,
    Location,
    PackNo,
    PackRow,
    VersionNo,
)

log = logging.getLogger(__name__)
MAX_PAUSE_S: Final = 60.0
LOCAL_FAILURES: Final = 2
"""Pauses after failures of the local disk grow no further than after so many: 4 s."""


@define(slots=True, eq=False)
class SentVersions:
    """Where the versions of a cut are, also those that no row names any more.  `epoch`: the cut's number.

    `missing`: versions whose bytes cannot be had.
    """

    epoch: int
    locations: dict[VersionNo, Location] = field(factory=dict)
    duplicates: dict[tuple[InodeNo, ChunkIndex], VersionNo] = field(factory=dict)
    packs: list[PackRow] = field(factory=list)
    missing: list[DirtyChunk] = field(factory=list)
    settled: set[VersionNo] = field(factory=set)

    def note_pack(self, number: PackNo, built: BuiltPack, stored: StoredPack) -> None:
        """The pack is stored and entered."""
        for item in built.sealed:
            place = Location(number, item.offset, item.length_bytes, item.chunk.length_bytes, item.digest)
            self.locations[item.chunk.version] = place
        for repeat in built.repeats:
            # The same bytes serve both, and `of` need not be named any more when somebody wants to be linked to it.
            self.locations[repeat.chunk.version] = self.locations[repeat.of]
        self.settled.update(item.chunk.version for item in built.sealed)
        self.settled.update(repeat.chunk.version for repeat in built.repeats)
        self.packs.append(
            PackRow(
                number=number,
                pack_id=built.pack_id,
                policy=stored.policy,
                size_bytes=built.size_bytes,
                live_bytes=sum(item.chunk.length_bytes for item in built.sealed),
                dead=False,
                shares=stored.shares,
                used_bytes=sum(item.length_bytes for item in built.sealed),
            )
        )

    def note_linked(self, linked: Sequence[Linked]) -> None:
        """These chunks name versions that were stored before."""
        for link in linked:
            if link.chunk.version not in self.settled:
                self.duplicates[link.chunk.ino, link.chunk.index] = link.version
                self.settled.add(link.chunk.version)

    def note_missing(self, chunk: DirtyChunk) -> None:
        """The bytes of this version are lost."""
        self.missing.append(chunk)
        self.settled.add(chunk.version)


class PackSender:
    """Sends batches.  `kick`: set to try again at once what failed, and to look for more to send.

    `gives_way`: a cut waits until no pack is under way that is not its own: those that no cloud takes are given up.
    """

    def __init__(self, content: Content, writer: PackWriter) -> None:
        self._content = content
        self._metadata = content.metadata
        self._writer = writer
        self._dedup = Deduplicator(content, writer)
        self.kick = trio.Event()
        self.gives_way = False
        self.last_error: CuckooError | OSError | None = None
        self.failures = 0
        self.packs_sent = 0

    async def send(self, batch: Sequence[Frozen], sent: SentVersions | None = None) -> None:
        """Return when these frozen chunks are on clouds; what became of them is entered into `sent` at once.

        In one pack, or in smaller ones where the clouds are nearly full.  May be cancelled anywhere.  Raises:
        CuckooError, OSError where it is not a cloud that refuses; then some of them may be done.
        """
        # The bytes that are named stay in the file that names them: it is these that others may be linked to.
        left = sorted(batch, key=lambda frozen: frozen.is_displaced)
        most_bytes = self._writer.pack_size_bytes
        while left:
            most_bytes = min(most_bytes, self._writer.room_bytes())
            part = left if most_bytes >= self._writer.pack_size_bytes else _first(left, most_bytes)
            if await self._send_part(part, sent):
                left = left[len(part) :]
            else:
                most_bytes = sum(frozen.length_bytes for frozen in part) // 2

    async def _send_part(self, part: Sequence[Frozen], sent: SentVersions | None) -> bool:
        """Send these in one pack; return False if there is room for a smaller one only, there or here."""
        try:
            with self._content.pressure.clouds.sending():
                built = await self._dedup.build(part, None if sent is None else sent.note_linked)
        except NoSpace:
            if len(part) == 1:
                raise
            return False
        return built is None or await self._send_pack(built, part, sent)

    async def _send_pack(self, built: BuiltPack, batch: Sequence[Frozen], sent: SentVersions | None) -> bool:
        for chunk in built.missing:
            log.error("inode %d chunk %d is dirty but its local file is gone", chunk.ino, chunk.index)
            if sent is not None:
                sent.note_missing(chunk)
        if not built.sealed:
            await self._writer.discard(built)
            return True
        stored = await self._store(built, is_cut=sent is not None)
        if stored is None:
            return False
        # No checkpoint until it is recorded: what is stored must not be forgotten by a cancellation.
        number = await self._metadata.finish_pack(
            built.pack_id,
            stored.policy,
            built.size_bytes,
            stored.shares,
            built.sealed,
            self._dedup.overwritten(batch),
            stored.strays,
            None if sent is None else sent.epoch,
        )
        note_stored(self._content, number, built.sealed)
        await self._follow_change(built, stored.policy)
        if sent is not None:
            sent.note_pack(number, built, stored)
        self.packs_sent += 1
        await self._dedup.link(built.repeats, batch)
        return True

    async def _follow_change(self, built: BuiltPack, policy: str) -> None:
        """See to it that the pack is written anew if files in it were given another redundancy meanwhile."""
        policies = self._writer.policies
        inos = {item.chunk.ino for item in built.sealed}
        own = {} if policies.is_uniform else await self._metadata.redundancies(inos)
        if any(own.get(ino, policies.default) != policy for ino in inos):
            await ask_for_repacking(self._metadata)

    async def _store(self, built: BuiltPack, *, is_cut: bool) -> StoredPack | None:
        """Store the pack, however long the clouds take to accept it; the same pack, so that a retry is idempotent.

        None: there is room only for a smaller one; it was given up.
        Raises: CloudError if it gives way; then the pack was given up, too.
        """
        try:
            while True:
                try:
                    with self._content.pressure.clouds.sending():
                        stored = await self._writer.store(built)
                except CloudError as error:
                    if self.gives_way and not is_cut:
                        raise
                    if len(built.sealed) > 1 and self._writer.is_too_big(built.size_bytes):
                        await self._writer.discard(built)
                        return None
                    self.note_failure(error)
                    await self.pause()
                else:
                    self.failures = 0
                    return stored
        except CuckooError:
            await self._writer.discard(built)
            raise
        except BaseException:  # a cancellation may come as a group of them
            self._writer.leave(built)
            raise

    def note_failure(self, error: CuckooError | OSError) -> None:
        """Something could not be sent and will be tried again."""
        self.failures += 1
        if not isinstance(error, CloudError):
            # The local disk has room again without anybody being told.
            self.failures = min(self.failures, LOCAL_FAILURES)
        self.last_error = error
        log.warning("sending a pack failed, it will be tried again: %s", error)

    async def pause(self) -> None:
        """Wait before a new try, longer after each failure; `kick` ends it."""
        longest = min(MAX_PAUSE_S, 2.0 ** min(self.failures, 6))
        with trio.move_on_after(longest * random.uniform(0.5, 1.0)):
            await self.kick.wait()


def _first(batch: Sequence[Frozen], most_bytes: int) -> list[Frozen]:
    """Return the first versions of a batch that have at most so many bytes, at least one."""
    part = [batch[0]]
    size_bytes = batch[0].length_bytes
    for frozen in batch[1:]:
        size_bytes += frozen.length_bytes
        if size_bytes > most_bytes:
            break
        part.append(frozen)
    return part

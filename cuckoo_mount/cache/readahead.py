"""How far to fetch ahead of whom: bookkeeping only, no I/O, no checkpoints.

Used by fetching.py.  Loop only.

A program that goes through a file or a folder shows as a *trail*: chunks it misses, each where the one before ended, in
the file or in the pack.  What it will want next is the rest of the file, or the chunks behind in the pack: files of a
folder lie there in the order in which they were written, which is nearly that of their names.  The window of a trail
starts small and doubles as long as reading goes on where it ended; a miss anywhere else begins a new trail, so that
random reads in a big file bring little more than what was asked for.  Files of one chunk are another matter: a miss
anywhere in a pack where a folder is being read widens the window too, because a pack is at most one window or two, and
programs that go through a folder in an order of their own (of inode numbers, of hashes) come to all of it.

What was fetched and not yet read is *unread*: it is not evicted, within a budget, and the first read of it moves the
trail on: when less than half of the window is left unread, more is fetched, so that a stream seldom waits.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from attrs import define, evolve

from cuckoo_mount.packs.reader import RUN_GAP_BYTES, RUN_MAX_BYTES
from cuckoo_mount.types import AbsentChunk, ChunkIndex, InodeNo, PackNo

START_BYTES: Final = 256 << 10
"""First window.  Over a connection of 10 MiB/s it takes as long as one round trip, so that it is nearly free."""
LEAD_MAX_BYTES: Final = 16 << 20
"""Largest window: 80 MiB/s at a round trip of 200 ms."""
UNREAD_MAX_BYTES: Final = 64 << 20
"""Of all trails together, and at most a quarter of the cache."""
TRAILS_MAX: Final = 32
NEW_TRAILS_MAX: Final = 4
"""Trails that nothing has followed yet.  Random reads make such, and the more of them there are, the likelier one of
these reads looks like a step on one."""
SLOW_S: Final = 4.0
"""A request that takes longer brought too much: who waits for its first chunk waits for all of it."""
_SEALING_BYTES: Final = 64 << 10
"""So that as many whole chunks go into a request as it has MiB: sealed, each is a little longer."""

Chunk = tuple[InodeNo, ChunkIndex]


@define(slots=True, eq=False)
class Trail:
    """One reader, as far as its reads show.

    `pack`, `low`, `high`: the bytes of a pack that were fetched for it last; more begins at `high`.  `ino`,
    `next_index`: the same in the file.  `whole_folder`: all neighbours in the pack count, else only those of the file.
    `at_end`: nothing follows in the pack, nor in the file.  `window_bytes`: how far ahead to fetch.  `ahead_bytes`:
    fetched or under way, and not yet read.  `fetched_bytes`: what it missed and what was fetched for it.  `busy`: a
    task is looking for what comes next.  `is_new`: it has one step only.
    """

    ino: InodeNo
    next_index: ChunkIndex
    pack: PackNo
    low: int
    high: int
    whole_folder: bool
    window_bytes: int = START_BYTES
    ahead_bytes: int = 0
    fetched_bytes: int = 0
    at_end: bool = False
    busy: bool = False
    is_new: bool = True

    def pass_by(self, chunk: AbsentChunk) -> None:
        """Move on behind a chunk that was or is being fetched."""
        place = chunk.location
        if place.pack != self.pack or place.offset < self.low:
            self.pack, self.low = place.pack, place.offset
            self.high = self.low
        self.high = max(self.high, place.offset + place.length_bytes)
        self.ino, self.next_index = chunk.ino, ChunkIndex(chunk.index + 1)
        self.fetched_bytes += place.plain_bytes

    def leads_to(self, chunk: AbsentChunk, *, is_small: bool) -> bool:
        """Return whether a miss of `chunk` (`is_small`: it is a whole file) looks like this reader's next step."""
        place = chunk.location
        if chunk.ino == self.ino and chunk.index == self.next_index:
            return True
        if place.pack == self.pack:
            if is_small and self.whole_folder:
                return True
            low = self.low if self.whole_folder else self.high
            return low <= place.offset <= self.high + RUN_GAP_BYTES
        return self.whole_folder and self.at_end and place.offset < START_BYTES


class ReadAhead:
    """All trails of a drive, and what is unread.  `budget_bytes`: bound of what is unread, and of what is under way."""

    def __init__(self, limit_bytes: int) -> None:
        self.budget_bytes: Final = min(UNREAD_MAX_BYTES, limit_bytes // 4)
        self.hits = 0
        self.unread_bytes = 0
        self._trails: list[Trail] = []
        self._unread: OrderedDict[Chunk, tuple[Trail, int]] = OrderedDict()
        self._widest_bytes = self._lead_max_bytes = min(LEAD_MAX_BYTES, self.budget_bytes // 2)
        self._run_max_bytes = RUN_MAX_BYTES

    def is_unread(self, chunk: Chunk) -> bool:
        """Return whether the chunk was fetched ahead, or is about to come, and nobody has read it yet."""
        return chunk in self._unread

    def missed(self, chunk: AbsentChunk, *, is_small: bool) -> Trail:
        """Return the trail of a reader that has to wait for `chunk`, with the window it has earned, behind `chunk`."""
        self.forget((chunk.ino, chunk.index))
        place = chunk.location
        trail = Trail(chunk.ino, chunk.index, place.pack, place.offset, place.offset, is_small)
        old = next((old for old in reversed(self._trails) if old.leads_to(chunk, is_small=is_small)), None)
        if old is not None:
            self._trails.remove(old)
            # A trail of its own: what the old one fetched and nobody reads must not count as this one's lead.
            low = old.low if old.pack == place.pack else place.offset
            trail = evolve(
                trail,
                low=min(low, place.offset),
                whole_folder=is_small or old.whole_folder or chunk.ino != old.ino,
                window_bytes=self._wider(max(old.window_bytes, old.fetched_bytes)),
                is_new=False,
            )
        trail.pass_by(chunk)
        self._trails.append(trail)
        new = [trail for trail in self._trails if trail.is_new]
        for oldest in new[:-NEW_TRAILS_MAX] or self._trails[:-TRAILS_MAX]:
            self._trails.remove(oldest)
        return trail

    def _wider(self, window_bytes: int) -> int:
        return max(START_BYTES, min(2 * window_bytes, self._widest_bytes))

    def launched(self, trail: Trail, chunks: Iterable[AbsentChunk]) -> None:
        """Account for chunks that are being fetched ahead of a trail, in the order in which it will come to them."""
        for chunk in chunks:
            trail.pass_by(chunk)
            key, size_bytes = (chunk.ino, chunk.index), chunk.location.plain_bytes
            self.forget(key)
            self._unread[key] = (trail, size_bytes)
            trail.ahead_bytes += size_bytes
            self.unread_bytes += size_bytes
        while self.unread_bytes > self.budget_bytes:
            self.forget(next(iter(self._unread)))

    def used(self, chunk: Chunk) -> Trail | None:
        """Account for a read of a chunk; return its trail if more should be fetched for it now, with a wider window."""
        if chunk not in self._unread:
            return None
        trail, _ = self._unread[chunk]
        self.forget(chunk)
        self.hits += 1
        if trail.busy or trail.at_end or trail.ahead_bytes > trail.window_bytes // 2 or trail not in self._trails:
            return None
        trail.window_bytes = self._wider(trail.window_bytes)
        return trail

    def forget(self, chunk: Chunk) -> None:
        """The chunk was read, did not come, or went again."""
        entry = self._unread.pop(chunk, None)
        if entry is not None:
            trail, size_bytes = entry
            trail.ahead_bytes -= size_bytes
            self.unread_bytes -= size_bytes

    def note_speed(self, run_bytes: int, seconds: float) -> None:
        """Learn from a request of `run_bytes` bytes that took so long: over a thin line less is fetched at a time."""
        if seconds > SLOW_S:
            self._run_max_bytes = max(START_BYTES, min(self._run_max_bytes, run_bytes) // 2)
        elif seconds < SLOW_S / 2 and 2 * run_bytes > self._run_max_bytes:
            self._run_max_bytes = min(RUN_MAX_BYTES, 2 * self._run_max_bytes)
        self._widest_bytes = min(self._lead_max_bytes, self._run_max_bytes * (LEAD_MAX_BYTES // RUN_MAX_BYTES))

    def runs(self, chunks: Sequence[AbsentChunk]) -> Iterator[list[AbsentChunk]]:
        """Yield the chunks in the order given, in groups for one request each: neighbours in one pack."""
        group: list[AbsentChunk] = []
        for chunk in chunks:
            if group and not self._fits(group, chunk):
                yield group
                group = []
            group.append(chunk)
        if group:
            yield group

    def _fits(self, group: Sequence[AbsentChunk], chunk: AbsentChunk) -> bool:
        first, last, place = group[0].location, group[-1].location, chunk.location
        gap_bytes = place.offset - (last.offset + last.length_bytes)
        span_bytes = place.offset + place.length_bytes - first.offset
        return (
            place.pack == first.pack
            and place.offset >= last.offset
            and gap_bytes <= RUN_GAP_BYTES
            and span_bytes <= self._run_max_bytes + _SEALING_BYTES
        )

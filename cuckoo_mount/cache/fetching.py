"""Bringing bytes here from clouds: what somebody waits for, its neighbours along with it, and what will be wanted next.

Used by content.py, writeback.py and eviction.py.  Loop only.  Requests run in tasks of their own: a reader that is
cancelled leaves its fetch to those who want the same.  A chunk is under way once at a time, alone or among others;
whoever needs it waits for that.

Nobody waits for what is fetched ahead, it makes nobody wait, and when it fails nobody is told: it is
fetched only into room that is free, its bytes under way are bounded, and what finds no room when it comes is
dropped.  How far ahead is decided in readahead.py.  Invariants: I-3, I-4, I-11.
"""

from __future__ import annotations

import errno
import logging
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final, Protocol

import trio

from cuckoo_mount.cache.landing import Landing
from cuckoo_mount.cache.pressure import Pressure
from cuckoo_mount.cache.readahead import START_BYTES, ReadAhead, Trail
from cuckoo_mount.cache.state import FileState
from cuckoo_mount.errors import CuckooError, DataTimeout, DataUnavailable, MetadataError
from cuckoo_mount.locks import Flights
from cuckoo_mount.metadata.base import Metadata
from cuckoo_mount.types import (
    CHUNK_SIZE_BYTES,
    AbsentChunk,
    ChunkIndex,
    InodeNo,
    Location,
    VersionNo,
)

log = logging.getLogger(__name__)
NEIGHBOURS_MAX: Final = 1024
"""Chunks that one look ahead brings at most: each costs the loop some 0.3 ms to land."""
RUNS_MAX: Final = 4
"""Requests under way that nobody waits for; the workers have room for twice as many."""
MOVES_MAX: Final = 3
"""How often a chunk that is not where its row said is looked up again: compaction may move it while it is fetched."""

Flight = tuple[InodeNo, ChunkIndex, VersionNo]


class ChunkReader(Protocol):
    """Where absent chunks come from."""

    async def read(self, location: Location) -> bytes:
        """Return the plain bytes stored at `location`, verified.  Raises: DataUnavailable, DataTimeout."""

    async def read_ahead(self, locations: Sequence[Location]) -> list[bytes | None]:
        """Return the verified bytes at neighbouring locations of one pack, with one request; only the first is certain.

        Raises: as `read`, also where it is only the others that cannot be read.
        """


PASSING_MAX: Final = 16
"""Chunks that are kept in memory for their readers, as the disk has no room for them."""
FULL_DISK: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


class Fetcher:
    """Fetches chunks, and more than was asked for.  Works while `run` runs."""

    def __init__(self, metadata: Metadata, reader: ChunkReader, landing: Landing, pressure: Pressure) -> None:
        self.misses = 0
        self.prefetched = 0
        self._metadata = metadata
        self._reader = reader
        self._landing: Final = landing
        self._pressure = pressure
        self._ahead: Final = ReadAhead(pressure.limits.limit_bytes)
        self._flights: Flights[Flight] = Flights()
        self._passing: OrderedDict[Flight, bytes] = OrderedDict()
        self._runs = 0
        self._nursery: trio.Nursery | None = None

    @property
    def prefetch_hits(self) -> int:
        """Chunks fetched ahead that were read afterwards."""
        return self._ahead.hits

    @property
    def unread_bytes(self) -> int:
        """Plain bytes fetched ahead, or on their way, that nobody has read yet, as far as they are protected."""
        return self._ahead.unread_bytes

    def is_unread(self, ino: InodeNo, index: ChunkIndex) -> bool:
        """Return whether the chunk was fetched ahead and should stay until it was read."""
        return self._ahead.is_unread((ino, index))

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Carry out fetches until cancelled, which ends those under way."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                task_status.started()
                await trio.sleep_forever()
            finally:
                self._nursery = None

    def _start(self, function: Callable[..., Awaitable[object]], *arguments: object) -> None:
        if self._nursery is None:
            raise DataUnavailable("the drive is being closed")
        self._nursery.start_soon(function, *arguments)

    # -- what is asked for --

    async def bring(self, state: FileState, index: ChunkIndex) -> None:
        """Fetch or verify one chunk; return when it was tried (the caller looks again).  Raises: DataUnavailable, …"""
        slot = state.slots.get(index)
        if slot is None:
            return
        if slot.unverified:
            async with state.rows_lock:
                await self._landing.verify(state, index)
            return
        is_read = not slot.present and slot.location is not None
        if not slot.present and slot.location is not None:
            chunk = AbsentChunk(state.ino, index, slot.version, slot.location)
        elif slot.base is not None:
            chunk = AbsentChunk(state.ino, index, slot.base.version, slot.base.location)
        else:
            return
        flight = _flight(chunk)
        if flight not in self._flights:
            is_small = state.size_bytes <= CHUNK_SIZE_BYTES
            self._start(
                self._fetch_wanted, chunk, partial(self._ahead.missed, chunk, is_small=is_small) if is_read else None
            )
            self._flights.begin(flight)
        await self._flights.wait(flight)

    async def _fetch_wanted(self, chunk: AbsentChunk, missed: Callable[[], Trail] | None) -> None:
        """Fetch a chunk that somebody waits for, and what follows it as far as its trail's window goes.

        `missed`: enters a read that has to wait into the trails.
        """
        along: deque[AbsentChunk] = deque()
        others: Sequence[bytes | None] = ()
        error: Exception | None = None
        try:
            try:
                data = await self._landing.copy_here(chunk)
                if data is None:
                    self.misses += 1
                    if missed is not None:
                        along.extend(await self._go_on(missed(), chunk))
                    data, others = await self._read_wanted(chunk, along)
                await self._pressure.make_way(len(data))
                await self._land_wanted(chunk, data)
            except (CuckooError, OSError) as failure:
                error = failure
            finally:
                self._flights.end(_flight(chunk), error)
            if error is None:
                await self._land_ahead(along, others)
        except (CuckooError, OSError) as failure:
            log.debug("neighbours of chunk %d of inode %d are left out: %s", chunk.index, chunk.ino, failure)
        finally:
            self._give_up(along)

    async def _land_wanted(self, chunk: AbsentChunk, data: bytes) -> None:
        """Land a chunk that somebody waits for; where the disk is full he gets it all the same."""
        try:
            await self._landing.land(chunk, data)
        except OSError as error:
            if error.errno not in FULL_DISK:
                raise
            self._passing[_flight(chunk)] = data
            while len(self._passing) > PASSING_MAX:
                self._passing.popitem(last=False)
        else:
            self._passing.clear()

    def passing(self, ino: InodeNo, index: ChunkIndex, version: VersionNo) -> bytes | None:
        """Return the bytes of a version that was fetched and found no room on the disk, while they are at hand."""
        return self._passing.get((ino, index, version)) if self._passing else None

    async def _read_wanted(self, chunk: AbsentChunk, along: deque[AbsentChunk]) -> tuple[bytes, Sequence[bytes | None]]:
        """Return the chunk's bytes, and those of `along`, which is empty afterwards if they did not come.

        Raises: DataUnavailable, DataTimeout, MetadataError.
        """
        if along:
            try:
                first, *others = await self._request([chunk, *along])
            except (DataUnavailable, MetadataError) as error:
                log.debug("inode %d chunk %d is fetched alone: %s", chunk.ino, chunk.index, error)
            else:
                if first is not None:
                    return first, others
            self._give_up(along)
        return await self._read_alone(chunk), ()

    async def _read_alone(self, chunk: AbsentChunk) -> bytes:
        """Return the bytes of a version wherever it is now: its row may have changed since it was loaded."""
        for _ in range(MOVES_MAX):
            try:
                return await self._reader.read(chunk.location)
            except (DataUnavailable, MetadataError):
                moved = await self._landing.look_up(chunk)
                if moved is None or moved == chunk:
                    raise
                chunk = moved
        return await self._reader.read(chunk.location)

    async def _request(self, chunks: Sequence[AbsentChunk]) -> list[bytes | None]:
        first, last = chunks[0].location, chunks[-1].location
        span_bytes = last.offset + last.length_bytes - first.offset
        started_s = trio.current_time()
        try:
            found = await self._reader.read_ahead([chunk.location for chunk in chunks])
        except DataTimeout:
            self._ahead.note_speed(span_bytes, trio.current_time() - started_s)
            raise
        self._ahead.note_speed(span_bytes, trio.current_time() - started_s)
        return found

    # -- what nobody asked for --

    def note_read(self, ino: InodeNo, index: ChunkIndex) -> None:
        """A chunk that is here was read: fetch more if it had been fetched ahead.  No checkpoint."""
        trail = self._ahead.used((ino, index))
        if trail is not None and self._nursery is not None and self._spare_bytes > 0:
            trail.busy = True
            self._start(self._follow, trail)

    async def _follow(self, trail: Trail) -> None:
        try:
            await self._go_on(trail, None)
        except (CuckooError, OSError) as error:
            log.debug("nothing is fetched ahead: %s", error)
        finally:
            trail.busy = False

    @property
    def _spare_bytes(self) -> int:
        """How much more may be under way that nobody waits for."""
        return min(self._ahead.budget_bytes - self._pressure.coming_bytes, self._pressure.spare_bytes)

    async def _go_on(self, trail: Trail, wanted: AbsentChunk | None) -> list[AbsentChunk]:
        """Begin to fetch what a trail comes to next; return what the caller has to fetch along with `wanted`.

        Raises: MetadataError.
        """
        room_bytes = trail.window_bytes - trail.ahead_bytes - (wanted.location.plain_bytes if wanted else 0)
        room_bytes = min(room_bytes, self._spare_bytes)
        if room_bytes <= 0:
            return []
        found = await self._look_ahead(trail, room_bytes)
        if self._nursery is None:
            return []
        # No checkpoint from here on: what is begun was not under way when it was looked for.
        chunks = self._choose(found, min(room_bytes, self._spare_bytes))
        groups = list(self._ahead.runs(chunks if wanted is None else [wanted, *chunks]))
        along = [] if wanted is None else groups.pop(0)[1:]
        self._begin(trail, along)
        for group in groups[: max(0, RUNS_MAX - self._runs)]:
            self._start(self._fetch_ahead, group)
            self._runs += 1
            self._begin(trail, group)
        return along

    def _choose(self, found: Sequence[AbsentChunk], room_bytes: int) -> list[AbsentChunk]:
        """Return the first of these chunks that have room, without those under way; each once."""
        chosen: dict[Flight, AbsentChunk] = {}
        for chunk in found:
            room_bytes -= chunk.location.plain_bytes
            if room_bytes < 0:
                break
            if _flight(chunk) not in self._flights:
                chosen[_flight(chunk)] = chunk
        return list(chosen.values())

    async def _look_ahead(self, trail: Trail, wanted_bytes: int) -> list[AbsentChunk]:
        """Return about `wanted_bytes` or more of what the trail's reader should come to, nearest first."""
        found: list[AbsentChunk] = []
        ino, index, bytes_found = trail.ino, trail.next_index, 0
        if trail.whole_folder:
            # Twice as far as there may be sealed bytes of so many plain ones, for the gaps.
            end = trail.high + 2 * max(wanted_bytes, START_BYTES)
            found = await self._metadata.absent_neighbours(trail.pack, trail.high, end, NEIGHBOURS_MAX)
            bytes_found = sum(chunk.location.plain_bytes for chunk in found)
            if found:
                ino, index = found[-1].ino, ChunkIndex(found[-1].index + 1)
        if bytes_found < wanted_bytes and len(found) < NEIGHBOURS_MAX:
            # The pack ends here, and with it perhaps not the file.
            rest = await self._rest_of_file(ino, index, wanted_bytes - bytes_found)
            trail.at_end = not rest
            found += rest
        return found

    async def _rest_of_file(self, ino: InodeNo, index: ChunkIndex, wanted_bytes: int) -> list[AbsentChunk]:
        last = ChunkIndex(index + -(-wanted_bytes // CHUNK_SIZE_BYTES) - 1)
        rows = await self._metadata.chunk_rows(ino, index, last)
        return [
            AbsentChunk(ino, row.index, row.version, row.location)
            for row in rows
            if row.held is None and row.location is not None
        ]

    def _begin(self, trail: Trail, chunks: Sequence[AbsentChunk]) -> None:
        self._ahead.launched(trail, chunks)
        for chunk in chunks:
            self._flights.begin(_flight(chunk))
            self._pressure.coming_bytes += chunk.location.plain_bytes
        if self._pressure.is_high:
            self._pressure.need.set()

    async def _fetch_ahead(self, group: Sequence[AbsentChunk]) -> None:
        """Fetch neighbours that nobody waits for."""
        coming = deque(group)
        try:
            await self._land_ahead(coming, await self._request(group))
        except (CuckooError, OSError) as error:
            log.debug("%d chunks could not be fetched ahead: %s", len(coming), error)
        finally:
            self._runs -= 1
            self._give_up(coming)

    async def _land_ahead(self, coming: deque[AbsentChunk], found: Sequence[bytes | None]) -> None:
        """Land what was fetched, if there is room for it; each one leaves `coming`."""
        for data in found:
            chunk = coming[0]
            has_room = self._pressure.used_bytes + chunk.location.plain_bytes <= self._pressure.limits.limit_bytes
            landed = data is not None and has_room and await self._landing.land(chunk, data)
            coming.popleft()
            self.prefetched += landed
            self._arrived(chunk, landed=landed)

    def _give_up(self, coming: deque[AbsentChunk]) -> None:
        """Let those go on who wait for chunks that will not come this way."""
        while coming:
            self._arrived(coming.popleft(), landed=False)

    def _arrived(self, chunk: AbsentChunk, *, landed: bool) -> None:
        self._pressure.coming_bytes -= chunk.location.plain_bytes
        if not landed:
            self._ahead.forget((chunk.ino, chunk.index))
        self._flights.end(_flight(chunk))


def _flight(chunk: AbsentChunk) -> Flight:
    return chunk.ino, chunk.index, chunk.version

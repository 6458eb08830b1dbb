"""Bytes of files: read, write and truncate over local files and clouds.

Used by chunkcache.py.  Loop only; the rules are those of docs/concurrency.md: a write is one synchronous step after
its preparation, before which it waits while a cut is about to be made; a read waits for absent chunks and looks again;
a fetch lands only where a chunk is still absent.
Invariants: I-2, I-3, I-4, I-7.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from cuckoo_mount.cache.fetching import ChunkReader, Fetcher
from cuckoo_mount.cache.files import LocalFile, LocalFiles
from cuckoo_mount.cache.frozen import Frozen, FrozenChunks
from cuckoo_mount.cache.landing import Landing
from cuckoo_mount.cache.pressure import Pressure
from cuckoo_mount.cache.sparse import punch_hole, pwrite_all, reserve
from cuckoo_mount.cache.state import (
    WINDOW_CHUNKS,
    Base,
    FileState,
    Slot,
    chunk_spans,
    slot_from_row,
)
from cuckoo_mount.cache.versions import VersionNumbers
from cuckoo_mount.clock import now_ns
from cuckoo_mount.errors import DataTimeout
from cuckoo_mount.locks import Gate
from cuckoo_mount.metadata.base import Metadata
from cuckoo_mount.types import CHUNK_SIZE_BYTES, ChunkIndex, Inode, InodeNo

WAITING_READS_MAX: Final = 512
"""Reads that may wait for clouds together: each holds a task that answers the kernel, and others must be answered."""


class Content:
    """All files' content.  One instance per mounted drive."""

    def __init__(
        self,
        metadata: Metadata,
        files: LocalFiles,
        reader: ChunkReader,
        pressure: Pressure,
        *,
        digest: Callable[[bytes], bytes],
        aside_folder: Path,
        boot_tick: int,
        unverified_tick: int,
    ) -> None:
        self.metadata: Final = metadata
        self.files: Final = files
        self.pressure: Final = pressure
        self.states: dict[InodeNo, FileState] = {}
        self.frozen: Final = FrozenChunks(files, aside_folder, pressure)
        self.gate: Final = Gate()
        """Closed for a moment before a cut: meanwhile no byte and no size changes."""
        self.untrimmed: set[InodeNo] = set()
        """Files that became shorter than their local files, which could not be cut because of frozen versions."""
        self.versions: Final = VersionNumbers(metadata)
        self.evicting: set[tuple[InodeNo, ChunkIndex]] = set()
        self.touched: set[tuple[InodeNo, ChunkIndex]] = set()
        self.hits = 0
        self._waiting_reads = 0
        self.digest = digest
        self._boot_tick = boot_tick
        self._unverified_tick = unverified_tick
        self._started = time.monotonic()
        self.landing: Final = Landing(
            metadata, files, self, evicting=self.evicting, digest=digest, clock=lambda: self.tick
        )
        self.fetcher: Final = Fetcher(metadata, reader, self.landing, pressure)

    def is_unverified(self, tick: int) -> bool:
        """Return whether a clean chunk last used at `tick` must be verified first (I-4)."""
        return tick <= self._unverified_tick

    @property
    def tick(self) -> int:
        """The time stamp of use for chunks touched now (metadata/schema.py)."""
        return self._boot_tick + int(time.monotonic() - self._started)

    # No checkpoint from here to the next comment: what these do is one step with the look of their caller.

    def _make_dirty(self, state: FileState, file: LocalFile, index: ChunkIndex, start: int) -> None:
        """Prepare chunk `index` for bytes to be written from `start` on: version, base, zeros before `start`."""
        self.frozen.copy_aside(state.ino, (index,))
        self.evicting.discard((state.ino, index))
        slot = state.slots.get(index)
        if slot is None:
            slot = state.slots[index] = Slot(
                version=self.versions.take(),
                location=None,
                present=True,
                promised=False,
                length_bytes=0,
                committed=None,
                pending=True,
            )
        elif slot.location is not None:
            assert not slot.promised, "a promised chunk is written"
            if not slot.present:
                slot.base = Base(slot.version, slot.location, slot.length_bytes, [])
            self.renew(state, slot)
        else:
            frozen = self.frozen.get(state.ino, index)
            if frozen is not None and frozen.version == slot.version:
                self.renew(state, slot)
        if start > slot.length_bytes:
            punch_hole(file.fd, index * CHUNK_SIZE_BYTES + slot.length_bytes, start - slot.length_bytes)

    def renew(self, state: FileState, slot: Slot) -> None:
        """Give the slot a new, dirty, pending version."""
        slot.version = self.versions.take()
        slot.location = None
        slot.present = True
        slot.pending = True
        self.account(state, slot.length_bytes)

    def account(self, state: FileState, more_bytes: int) -> None:
        """Count bytes that are in a local file but not yet in a row."""
        state.extra_bytes += more_bytes
        self.pressure.pending_bytes += more_bytes

    def settle_account(self, state: FileState) -> None:
        """Count again what of the file is not in a row: after rows were written, cut or removed."""
        extra = 0
        if not state.removed:
            extra = sum(s.length_bytes for s in state.slots.values() if s.pending and s.committed != s.version)
        self.account(state, extra - state.extra_bytes)

    def freeze(self, frozen: Frozen) -> None:
        """Promise that a version's bytes can be read until it is thawed; the caller reserved a version number."""
        self.frozen.add(frozen)
        state = self.states.get(frozen.ino)
        slot = state.slots.get(frozen.index) if state is not None else None
        if state is not None and slot is not None and slot.pending and slot.version == frozen.version:
            # It grew since its row was written: what is pending belongs to a new version, the row's length to this one.
            self.renew(state, slot)

    def _needed(self, state: FileState, spans: list[tuple[ChunkIndex, int, int]]) -> list[ChunkIndex]:
        """Return the chunks without which these spans cannot be read."""
        needed = []
        for index, start, end in spans:
            slot = state.slots.get(index)
            if slot is None or start >= slot.length_bytes:
                continue
            absent = not slot.present or slot.unverified
            if absent or (slot.base is not None and slot.base.missing(start, end)):
                needed.append(index)
        return needed

    def _passing(self, state: FileState, needed: list[ChunkIndex]) -> dict[ChunkIndex, bytes]:
        """Return the bytes of these chunks, which cannot land as the disk is full; {} if not all are at hand."""
        found = {}
        for index in needed:
            slot = state.slots[index]
            data = None if slot.present or slot.base else self.fetcher.passing(state.ino, index, slot.version)
            if data is None:
                return {}
            found[index] = data
        return found

    def _gather(
        self,
        state: FileState,
        spans: list[tuple[ChunkIndex, int, int]],
        offset: int,
        size_bytes: int,
        passing: Mapping[ChunkIndex, bytes],
    ) -> bytes:
        """Return bytes all of which are here, or in `passing`: one pread where chunks are whole, zeros where not."""
        file = self.files.get(state.ino)
        slots = [state.slots.get(index) for index, _, _ in spans]
        whole = [slot is not None and slot.length_bytes >= end for slot, (*_, end) in zip(slots, spans, strict=True)]
        if file is not None and not passing and all(whole):
            data = os.pread(file.fd, size_bytes, offset)
            return data if len(data) == size_bytes else data.ljust(size_bytes, b"\0")
        parts = []
        for slot, (index, start, end) in zip(slots, spans, strict=True):
            valid = 0 if slot is None else max(0, min(end, slot.length_bytes) - start)
            if index in passing:
                parts.append(passing[index][start : start + valid].ljust(end - start, b"\0"))
                continue
            data = os.pread(file.fd, valid, index * CHUNK_SIZE_BYTES + start) if valid and file is not None else b""
            parts.append(data.ljust(end - start, b"\0"))
        return b"".join(parts)

    def present_part(self, ino: InodeNo, index: ChunkIndex, margin_bytes: int) -> tuple[int, bytes] | None:
        """Return (offset in the chunk, bytes) of what can be read of an open file's chunk without waiting.

        Without `margin_bytes` at a side where the neighbouring chunk would have to be waited for.  None if the chunk
        itself would, if it is a hole, or if somebody has the file open for writing.
        """
        state = self.states.get(ino)
        size = 0 if state is None else min(CHUNK_SIZE_BYTES, state.size_bytes - index * CHUNK_SIZE_BYTES)
        if state is None or state.writers or size <= 0 or not state.is_loaded(index, index):
            return None
        if index not in state.slots or self._needed(state, [(index, 0, size)]) or self.files.get(ino) is None:
            return None
        start = margin_bytes if index and self._is_away(state, ChunkIndex(index - 1)) else 0
        end = size - margin_bytes if self._is_away(state, ChunkIndex(index + 1)) else size
        if start >= end:
            return None
        offset = index * CHUNK_SIZE_BYTES + start
        return start, self._gather(state, [(index, start, end)], offset, end - start, {})

    def _is_away(self, state: FileState, index: ChunkIndex) -> bool:
        """Return whether a read of the chunk may have to wait for a cloud."""
        slot = state.slots.get(index)
        if slot is None:
            return not state.is_loaded(index, index)
        return not slot.present or (slot.base is not None and bool(slot.base.missing(0, CHUNK_SIZE_BYTES)))

    # Checkpoints are possible again.

    async def open(self, ino: InodeNo, *, writing: bool) -> FileState:
        """Return the file's state, to be given back by `release`.  Raises: StaleInode."""
        state = self.states.get(ino)
        if state is not None:
            state.users += 1
        else:
            state = self.states[ino] = FileState(ino, -1, users=1)
        try:
            if state.size_bytes < 0:
                async with state.rows_lock:
                    if state.size_bytes < 0:
                        inode = await self.metadata.get_inode(ino)
                        state.size_bytes = inode.size_bytes
                        state.note_told(mtime_ns=inode.mtime_ns, ctime_ns=inode.ctime_ns)
        except BaseException:
            self.release(state, writing=False)
            raise
        state.writers += writing
        return state

    def adopt_new(self, inode: Inode) -> FileState:
        """Return the state of a file made just now: nothing to load."""
        state = self.states[inode.ino] = FileState(inode.ino, 0, users=1, writers=1, never_clean=True)
        state.note_told(mtime_ns=inode.mtime_ns, ctime_ns=inode.ctime_ns)
        state.windows[0] = None
        return state

    def release(self, state: FileState, *, writing: bool) -> None:
        """Give back what `open` returned; pending changes stay until they are in the metadata."""
        state.users -= 1
        state.writers -= writing
        self.forget_idle(state)

    def forget_idle(self, state: FileState) -> None:
        """Drop the state if nobody uses it and nothing in it is pending."""
        if not state.users and (not state.is_pending or state.removed) and self.states.get(state.ino) is state:
            del self.states[state.ino]

    async def load(self, state: FileState, first: ChunkIndex, last: ChunkIndex) -> None:
        """Return when the rows first…last are in memory."""
        while not state.is_loaded(first, last):
            async with state.rows_lock:
                state.forget_windows()
                for number in range(first // WINDOW_CHUNKS, last // WINDOW_CHUNKS + 1):
                    if number not in state.windows:
                        await self._load_window(state, number)

    async def _load_window(self, state: FileState, number: int) -> None:
        low = ChunkIndex(number * WINDOW_CHUNKS)
        rows = await self.metadata.chunk_rows(state.ino, low, ChunkIndex(low + WINDOW_CHUNKS - 1))
        for row in rows:
            if row.index not in state.slots:
                state.slots[row.index] = slot_from_row(row, self._unverified_tick)
        state.windows[number] = None

    async def read(self, state: FileState, offset: int, size_bytes: int) -> bytes:
        """Return up to `size_bytes` bytes from `offset`, fewer only at the end of the file.

        Checkpoint only if something must be fetched.  Raises: DataUnavailable, DataTimeout.
        """
        missed = False
        while True:
            size_bytes = min(size_bytes, state.size_bytes - offset)
            if size_bytes <= 0:
                return b""
            spans = chunk_spans(offset, size_bytes)
            await self.load(state, spans[0][0], spans[-1][0])
            needed = self._needed(state, spans)
            if needed and (passing := self._passing(state, needed)):
                return self._gather(state, spans, offset, size_bytes, passing)
            if not needed and self.files.get(state.ino) is None and await self.landing.lost_file(state, spans):
                continue
            if not needed:
                self.hits += not missed
                self.touched.update((state.ino, index) for index, _, _ in spans)
                if self.fetcher.unread_bytes:
                    for index, _, _ in spans:
                        self.fetcher.note_read(state.ino, index)
                return self._gather(state, spans, offset, size_bytes, {})
            missed = True
            await self._bring(state, needed)

    async def _bring(self, state: FileState, needed: list[ChunkIndex]) -> None:
        if self._waiting_reads >= WAITING_READS_MAX:
            raise DataTimeout(f"{self._waiting_reads} other reads wait for clouds already")
        self._waiting_reads += 1
        try:
            for index in needed:
                await self.fetcher.bring(state, index)
        finally:
            self._waiting_reads -= 1

    async def write(self, state: FileState, offset: int, data: bytes) -> None:
        """Put `data` at `offset`; visible to reads when this returns, durable after `Checkpointer.sync_file`.

        Never waits for a cloud, apart from the throttle (pressure.py).  Raises: NoSpace; OSError of the local disk
        (some bytes may then have changed).
        """
        spans = chunk_spans(offset, len(data))
        if not spans:
            return
        more_bytes = len(data) + self.frozen.copy_cost(state.ino, [index for index, _, _ in spans])
        await self.pressure.admit(more_bytes)
        with self.pressure.clouds.promised(more_bytes):
            await self._write(state, spans, offset, data)

    async def _write(
        self, state: FileState, spans: list[tuple[ChunkIndex, int, int]], offset: int, data: bytes
    ) -> None:
        while True:
            if not self.gate.is_open:
                await self.gate.wait()
                continue
            await self.load(state, spans[0][0], spans[-1][0])
            if not self.versions.has(len(spans)):
                await self.versions.reserve(len(spans))
                continue
            file = self.files.get(state.ino)
            if file is None or not file.in_state or file.moving is not None:
                await self.prepare_file(state)
                continue
            promised = [index for index, _, _ in spans if (slot := state.slots.get(index)) and slot.promised]
            if promised:
                await self.unpromise(state, promised)
            elif self.gate.is_open:
                break
        # No checkpoint until the end.
        try:
            if self.pressure.is_disk_short:
                reserve(file.fd, offset, len(data))
            for index, start, _ in spans:
                self._make_dirty(state, file, index, start)
            state.note_change(now_ns())
            pwrite_all(file.fd, data, offset)
        except OSError:
            self._forget_unborn(state, spans)
            raise
        for index, start, end in spans:
            slot = state.slots[index]
            growth = end - slot.length_bytes
            if growth > 0:
                self.account(state, growth)
                slot.pending = True
            slot.note_written(start, end)
        state.size_bytes = max(state.size_bytes, offset + len(data))

    def _forget_unborn(self, state: FileState, spans: list[tuple[ChunkIndex, int, int]]) -> None:
        """After a refused write: a chunk that never had a byte must not get a row, least of all behind the end."""
        for index, _, _ in spans:
            slot = state.slots.get(index)
            if slot is not None and slot.committed is None and slot.base is None and not slot.length_bytes:
                del state.slots[index]

    async def prepare_file(self, state: FileState) -> None:
        """Return when the file exists in the state folder."""
        async with state.rows_lock:
            file = self.files.get(state.ino)
            if file is None:
                await self.landing.lose_clean(state)
                self.files.create(state.ino, in_state=True)  # nobody else does: the rows lock is held
            else:
                await self.files.to_state(file)

    async def unpromise(self, state: FileState, indexes: list[ChunkIndex]) -> None:
        """Take back, committed, that these chunks are held clean: their bytes are about to change (I-3)."""
        async with state.rows_lock:
            for index in indexes:
                await self.landing.verify(state, index)
            held = [index for index in indexes if (slot := state.slots.get(index)) and slot.promised]
            if held:
                await self.metadata.drop_held([(state.ino, index) for index in held])
                await self.metadata.commit()
            for index in held:
                state.slots[index].promised = False

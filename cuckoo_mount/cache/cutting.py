"""Cuts: everything dirty is frozen at one moment, and exactly these bytes are brought to the clouds.

Used by the engine of the epochs, through chunkcache.py.  Loop only; one cut at a time.

    checkpoint · no pack under way · gate closed · the rest of what is pending enters its rows ─┐  local disk only
    one step without checkpoint: times and sizes, epoch, freeze, `at_moment` ────────────────────┤
    gate open; frozen versions are sealed and stored as packs, however long it takes ◀───────────┘

The gate makes the cut exact: all that WRITE and truncate did before it is in the rows, nothing of what they do after
it.  They wait for it as long as the local disk needs for what was written during the checkpoint before, never for a
cloud.
What only changes attributes passes the gate, and is entered in the step.
An incomplete version (ranges over a base that is not here) is frozen like any other and made whole later
(completing.py): nothing is copied or fetched for it at the cut.
Invariants: I-7, I-8, I-10.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Final, TypeVar

import trio

from cuckoo_mount.cache.checkpoint import Checkpointer
from cuckoo_mount.cache.completing import Completer
from cuckoo_mount.cache.content import Content
from cuckoo_mount.cache.frozen import Frozen
from cuckoo_mount.cache.sending import PackSender, SentVersions
from cuckoo_mount.cache.state import FileState
from cuckoo_mount.cache.writeback import WriteBack
from cuckoo_mount.errors import CuckooError, MetadataError, StaleInode
from cuckoo_mount.packs.choosing import MAX_CHUNKS_PER_PACK
from cuckoo_mount.packs.writer import PackWriter
from cuckoo_mount.types import CHUNK_SIZE_BYTES, ChunkIndex, DirtyChunk, InodeNo, Location, PackRow, VersionNo

T = TypeVar("T")
log = logging.getLogger(__name__)
PENDING_BYTES: Final = 4 << 20
"""When less than this is pending, the gate is closed to enter the rest: some 10 ms of an SSD, 0.1 s of a hard disk."""
ROUNDS_MAX: Final = 5
PARTIAL_TRIES: Final = 4
"""So often the base of an incomplete version is asked for while a cloud is up.  Then the cut goes on without it: one
object that is lost must not keep everything else from being recoverable."""

FULL_S: Final = 20.0
"""So long the clouds may be full, with nothing sent, until a cut goes on without what does not fit."""
ROOM_POLL_S: Final = 1.0
PARTIALS_PER_PACK: Final = 16
"""Incomplete versions are fetched so many at a time, and then sent together."""

Moment = Callable[[], Coroutine[object, object, None]]


class ContentCut:
    """The content of a drive as it was at one moment.  `epoch`: the number of the cut."""

    def __init__(self, left: dict[VersionNo, Frozen], sent: SentVersions, cutter: Cutter) -> None:
        self.epoch: Final = sent.epoch
        self._left = left
        self._sent = sent
        self._cutter = cutter

    @property
    def unsent(self) -> int:
        """How many frozen versions are not on clouds yet."""
        return len(self._left)

    @property
    def unsent_bytes(self) -> int:
        """Their plain bytes."""
        return sum(frozen.length_bytes for frozen in self._left.values())

    @property
    def locations(self) -> Mapping[VersionNo, Location]:
        """Where the versions are that were dirty at the cut, as far as they are sent; also those overwritten since."""
        return self._sent.locations

    @property
    def duplicates(self) -> Mapping[tuple[InodeNo, ChunkIndex], VersionNo]:
        """For chunks of which the bytes were stored before: the version that their row is to name instead.

        It was stored before the cut, or is in `locations`.  The version that the row named is not.
        """
        return self._sent.duplicates

    @property
    def packs(self) -> Sequence[PackRow]:
        """The packs of `locations`, as if all in them lived; born in `epoch`."""
        return self._sent.packs

    @property
    def missing(self) -> Sequence[DirtyChunk]:
        """Versions that could not be stored: their local file or, of incomplete ones, their base cannot be read; or the
        clouds are full.

        They have no location, so that reading them after a recovery is an error; here they stay dirty.
        """
        return self._sent.missing

    async def send(self) -> None:
        """Return when every frozen version is on clouds and that is durable here: the epoch may be sent.

        Waits as long as that takes; may be cancelled and repeated.  But where clouds are up and all of them full, what
        does not fit becomes `missing` after `FULL_S`: else deleting would not help, as it takes an epoch to free space.

        Background sending goes on afterwards.  Within the context only.  Raises: MetadataError.
        """
        await self._cutter.send(self._left, self._sent)


class Cutter:
    """Makes cuts and sends them."""

    def __init__(
        self,
        content: Content,
        checkpointer: Checkpointer,
        writeback: WriteBack,
        sender: PackSender,
        completer: Completer,
        writer: PackWriter,
    ) -> None:
        self._content = content
        self._metadata = content.metadata
        self._checkpointer = checkpointer
        self._writeback = writeback
        self._sender = sender
        self._completer = completer
        self._writer = writer
        self._lock = trio.Lock()

    @asynccontextmanager
    async def cut(self, epoch: int, at_moment: Moment) -> AsyncIterator[ContentCut]:
        """Freeze all that is dirty; within the context it is the cut's.  At its end what is unsent is only dirty again.

        `epoch`: its number; used again for the next cut if nothing of this one was ever put on a cloud.  `at_moment`
        must not wait (AssertionError): it commits, and pins what reads the metadata as of now.  It is called after
        `Metadata.enter_epoch`, which is part of that commit: so what is born and dies later belongs to `epoch` + 1,
        and no pack that this cut refers to is deleted as long as `Collector` is told that epochs before it, or it
        itself, are kept.

        Waits for packs under way, also for clouds.  Raises: OSError (the local disk), MetadataError.
        """
        async with self._lock:
            left: dict[VersionNo, Frozen] = {}
            try:
                await self._checkpointer.checkpoint()
                await self._writeback.hold()
                await self._enter_most()
                self._content.gate.close()
                try:
                    await self._enter_rest()
                    left = _at_once(self._freeze(epoch, at_moment))
                finally:
                    self._content.gate.open()
                yield ContentCut(left, SentVersions(epoch), self)
            finally:
                self._thaw(left, list(left))
                self._writeback.resume()

    async def _enter_most(self) -> None:
        """Leave little to be done while the gate is closed."""
        for _ in range(ROUNDS_MAX):
            await self._checkpointer.enter_pending()
            if self._content.pressure.pending_bytes < PENDING_BYTES:
                return

    async def _enter_rest(self) -> None:
        """Return when no row is behind its bytes; the gate is closed."""
        for _ in range(ROUNDS_MAX):
            await self._checkpointer.enter_pending()
            if not any(_has_unentered(state) for state in self._content.states.values()):
                return
        raise AssertionError("bytes change while the gate is closed")

    async def _freeze(self, epoch: int, at_moment: Moment) -> dict[VersionNo, Frozen]:
        """The moment: never waits."""
        for state in [state for state in self._content.states.values() if state.is_pending and not state.removed]:
            await self._enter_changes(state)
        policies = self._writer.policies
        own = {} if policies.is_uniform else await self._metadata.dirty_redundancies()
        left = {
            VersionNo(row[2]): Frozen(*row, policy=own.get(row[0], policies.default))
            for row in await self._metadata.dirty_versions()
        }
        for version, (partial, base) in (await self._metadata.partial_versions()).items():
            left[version].partial, left[version].base = partial, base
        await self._metadata.enter_epoch(epoch)
        await at_moment()
        for frozen in left.values():
            self._content.frozen.add(frozen)
        return left

    async def _enter_changes(self, state: FileState) -> None:
        """Enter times and sizes that changed while the gate was closed, or whose bytes are in the rows anyway."""
        snapshot = state.snapshot()
        try:
            await self._metadata.apply_written(state.ino, snapshot.changes, ())
        except StaleInode:
            state.removed = True
        else:
            if not snapshot.chunks:
                state.note_applied(snapshot)
        self._content.forget_idle(state)

    async def send(self, left: dict[VersionNo, Frozen], sent: SentVersions) -> None:
        """See `ContentCut.send`; what is done leaves `left`."""
        errors: list[MetadataError] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_room, left, nursery.cancel_scope)
            await self._send_batches(left, sent, errors)
            nursery.cancel_scope.cancel()
        if errors:
            raise errors[0]
        if left:
            log.error("the clouds are full: %d chunks are in no epoch until there is room", len(left))
            for frozen in left.values():
                sent.note_missing(frozen.chunk)
            self._thaw(left, list(left))
        self._writeback.resume()
        # Else a crash could take back the rows, and the mount the objects of packs that an epoch names already (I-17).
        await self._checkpointer.make_durable()

    async def _send_batches(
        self, left: dict[VersionNo, Frozen], sent: SentVersions, errors: list[MetadataError]
    ) -> None:
        async with trio.open_nursery() as nursery:

            async def task(batch: Sequence[Frozen], ticket: object) -> None:
                try:
                    await self._send_batch(batch, sent)
                except MetadataError as error:
                    errors.append(error)
                    nursery.cancel_scope.cancel()
                finally:
                    self._thaw(left, [frozen.version for frozen in batch if frozen.version in sent.settled])
                    self._writeback.limiter.release_on_behalf_of(ticket)

            for batch in list(_batches(left.values(), self._writer.pack_size_bytes)):
                ticket = object()
                await self._writeback.limiter.acquire_on_behalf_of(ticket)
                nursery.start_soon(task, batch, ticket)

    async def _watch_room(self, left: Mapping[VersionNo, Frozen], scope: trio.CancelScope) -> None:
        """End the sending when nothing of it fits any more."""
        count, since_s = len(left), trio.current_time()
        while True:
            await trio.sleep(ROOM_POLL_S)
            size_bytes = sum(frozen.length_bytes for frozen in left.values())
            if len(left) != count or not self._writer.is_full(min(size_bytes, CHUNK_SIZE_BYTES)):
                count, since_s = len(left), trio.current_time()
            elif trio.current_time() >= since_s + FULL_S:
                scope.cancel()
                return

    async def _send_batch(self, batch: Sequence[Frozen], sent: SentVersions) -> None:
        tries: dict[VersionNo, int] = {}
        while todo := [frozen for frozen in batch if frozen.version not in sent.settled]:
            try:
                await self._complete([frozen for frozen in todo if frozen.partial is not None], tries, sent)
                if whole := [frozen for frozen in todo if frozen.version not in sent.settled]:
                    await self._sender.send(whole, sent)
            except (CuckooError, OSError) as error:
                if isinstance(error, MetadataError):
                    raise
                self._sender.note_failure(error)
                await self._sender.pause()

    async def _complete(self, todo: Sequence[Frozen], tries: dict[VersionNo, int], sent: SentVersions) -> None:
        """Make incomplete versions whole, or give them up.  Raises: as `complete_frozen`, when it is to be repeated."""
        errors: list[CuckooError | OSError] = []

        async def task(frozen: Frozen) -> None:
            try:
                await self._completer.complete_frozen(frozen)
            except OSError as error:
                errors.append(error)
            except CuckooError as error:
                tries[frozen.version] = tries.get(frozen.version, 0) + bool(self._writer.clouds_up)
                if isinstance(error, MetadataError) or tries[frozen.version] < PARTIAL_TRIES:
                    errors.append(error)
                    return
                log.error("inode %d chunk %d cannot be sent: %s", frozen.ino, frozen.index, error)
                sent.note_missing(frozen.chunk)

        async with trio.open_nursery() as nursery:
            for frozen in todo:
                nursery.start_soon(task, frozen)
        if errors:
            raise next((error for error in errors if isinstance(error, MetadataError)), errors[0])

    def _thaw(self, left: dict[VersionNo, Frozen], versions: Collection[VersionNo]) -> None:
        for version in versions:
            frozen = left.pop(version)
            self._content.frozen.thaw(frozen)
            self._checkpointer.settle(frozen.ino)
        self._content.pressure.made_progress()


def _at_once(call: Coroutine[object, object, T]) -> T:
    """Run what must not wait, as one step of the loop."""
    try:
        call.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    call.close()
    raise AssertionError("the moment of a cut waited for something")


def _has_unentered(state: FileState) -> bool:
    """Return whether the file has bytes that no row names."""
    if not state.is_pending or state.removed:
        return False
    return any(slot.pending and slot.committed != slot.version for slot in state.slots.values())


def _batches(versions: Collection[Frozen], pack_size_bytes: int) -> Iterator[list[Frozen]]:
    """Yield the versions pack by pack, each of one policy, oldest first, but the incomplete ones last."""
    batches: dict[str, list[Frozen]] = {}
    partial: dict[str, list[Frozen]] = {}
    totals: dict[str, int] = {}
    for frozen in versions:
        if frozen.partial is not None:
            partial.setdefault(frozen.policy, []).append(frozen)
            continue
        batch = batches.setdefault(frozen.policy, [])
        batch.append(frozen)
        totals[frozen.policy] = totals.get(frozen.policy, 0) + frozen.length_bytes
        if len(batch) == MAX_CHUNKS_PER_PACK or totals[frozen.policy] >= pack_size_bytes:
            totals[frozen.policy] = 0
            yield batches.pop(frozen.policy)
    yield from batches.values()
    for items in partial.values():
        for start in range(0, len(items), PARTIALS_PER_PACK):
            yield items[start : start + PARTIALS_PER_PACK]

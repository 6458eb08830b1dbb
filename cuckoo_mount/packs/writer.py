"""Writes packs: builds the file in the staging folder, records the intent, stores the shares.

Used by the cache's write-back, which decides what goes into a pack and enters it into the metadata afterwards
(`finish_pack`).  For one trio loop; packs may be built and stored at the same time.  Owns I-9: a pack's id is durable
in the intents before its first byte is sent; and I-17 after a crash, by `recover`.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import trio
from attrs import frozen

from cuckoo_mount.catalogue import PackCatalogue
from cuckoo_mount.errors import CloudUnavailable
from cuckoo_mount.format import ID_BYTES
from cuckoo_mount.layers.keys import DriveKeys
from cuckoo_mount.multi.erasure import parity_path
from cuckoo_mount.multi.multifs import MultiFS
from cuckoo_mount.multi.policies import Policies
from cuckoo_mount.multi.records import transfer_deadline_s
from cuckoo_mount.multi.redundancy import Policy, format_policy, parse_policy
from cuckoo_mount.multi.requests import Pool
from cuckoo_mount.packs.builder import BuildSpec, BuiltPack, ChunkSource, build_pack
from cuckoo_mount.types import CHUNK_SIZE_BYTES, PACK_SIZE_BYTES, CloudName, ShareRow

log = logging.getLogger(__name__)

BUILD_DEADLINE_S: Final = 120.0
"""Sealing takes a fraction of a second; the rest is for a disk that is busy flushing."""
QUIET_S: Final = 60.0
QUIET_POLL_S: Final = 0.1

PACK_SUFFIX: Final = ".pack"
FRAME_BYTES: Final = 4096
FRAME_PART: Final = 32
"""About what a pack needs besides its chunks.  Thousands of tiny chunks need more: whoever sends halves it then."""


@frozen(slots=True)
class StoredPack:
    """A pack whose shares are on the clouds and which the metadata does not know yet: arguments of `finish_pack`.

    `strays`: clouds that may hold a share besides, because they failed in a way that leaves that open.
    """

    pack_id: bytes
    policy: str
    size_bytes: int
    shares: tuple[ShareRow, ...]
    strays: frozenset[CloudName] = frozenset()


@frozen(slots=True)
class Recovery:
    """What `recover` did: intents withdrawn, intents kept because a cloud did not answer, staging files removed."""

    withdrawn: int
    kept: int
    files: int


class PackWriter:
    """Builds and stores packs of one drive.  `staging_dir` belongs to it alone.  `policies`: those of the drive.

    `pack_size_bytes`: plain bytes that close a pack; what whoever chooses the chunks keeps to.
    """

    def __init__(
        self,
        metadata: PackCatalogue,
        multifs: MultiFS,
        pool: Pool,
        keys: DriveKeys,
        staging_dir: Path,
        *,
        drive_id: bytes,
        encrypted: bool,
        policies: Policies | None = None,
        pack_size_bytes: int = PACK_SIZE_BYTES,
    ) -> None:
        self._metadata = metadata
        self._multifs = multifs
        self._pool = pool
        self._keys = keys
        self._drive_id = drive_id
        self._encrypted = encrypted
        self.policies: Final = policies or Policies()
        self.pack_size_bytes: Final = pack_size_bytes
        self.staging_dir: Final = staging_dir
        self._files: set[bytes] = set()
        self._lost_files: set[bytes] = set()
        self._begun: set[bytes] = set()
        self._left: set[bytes] = set()
        self._sent_until_s: dict[bytes, float] = {}

    @property
    def clouds_up(self) -> frozenset[CloudName]:
        """The clouds that would take a share now, as far as is known."""
        return frozenset(name for name in self._multifs.names if self._multifs.is_up(name))

    def is_full(self, size_bytes: int) -> bool:
        """Return whether clouds are up, and none of them has room for a pack of that size, as far as is known."""
        return bool(self.clouds_up) and not self._multifs.rooms.has_room(
            size_bytes, parse_policy(self.policies.default)
        )

    def is_too_big(self, size_bytes: int) -> bool:
        """Return whether a pack of that size finds no room now, and a smaller one would."""
        return self.is_full(size_bytes) and not self.is_full(CHUNK_SIZE_BYTES + FRAME_BYTES)

    def room_bytes(self) -> int:
        """Return up to how many plain bytes a pack may have now: fewer than a full one where clouds are nearly full.

        At least one chunk, whether or not there is room for it.
        """
        room = self._multifs.rooms.largest_pack_bytes(
            parse_policy(self.policies.default), at_least=CHUNK_SIZE_BYTES + FRAME_BYTES
        )
        return min(self.pack_size_bytes, max(CHUNK_SIZE_BYTES, room - room // FRAME_PART - FRAME_BYTES))

    async def build(
        self, sources: Sequence[ChunkSource], policy: str | None = None, *, seal_repeats: bool = False
    ) -> BuiltPack:
        """Seal frozen versions into a new pack file in the staging folder.  Checkpoint.

        `policy`: how it will be stored; None: as the drive's default.

        Every call makes a new random id, so that no nonce ever serves twice.  If cancelled, or on an error, the file
        is removed; what a worker still writes goes at the next `recover`.
        Raises: NoSpace, DataUnavailable (see `build_pack`), CloudUnavailable (the worker died or was too slow).
        """
        pack_id = os.urandom(ID_BYTES)
        target = self.staging_dir / f"{pack_id.hex()}{PACK_SUFFIX}"
        spec = BuildSpec(
            drive_id=self._drive_id,
            pack_id=pack_id,
            keys=self._keys,
            encrypted=self._encrypted,
            sources=tuple(sources),
            target=str(target),
            seal_repeats=seal_repeats,
            policy=parse_policy(policy or self.policies.default),
        )
        self._files.add(pack_id)
        try:
            return await self._pool.run(build_pack, spec, deadline_s=BUILD_DEADLINE_S)
        except BaseException:  # cancellation, too
            self._remove(str(target), spec.policy)
            self._files.discard(pack_id)
            self._lost_files.add(pack_id)
            raise

    async def store(self, built: BuiltPack, *, rewriting: bool = False) -> StoredPack:
        """Store a built pack on the clouds and remove its file.  Checkpoint.  `rewriting`: see `MultiFS.put_pack`.

        Its intent stays until the caller's `finish_pack`.  If cancelled, or on an error, file and intent stay: call
        again with the same pack, or `discard` it.
        Raises: CloudUnavailable, FormatError, DataUnavailable (see `MultiFS.put_pack`), MetadataError.
        """
        if built.pack_id not in self._begun:
            with trio.CancelScope(shield=True):  # afterwards there is no doubt whether there is an intent
                await self._metadata.begin_pack(built.pack_id)
            self._begun.add(built.pack_id)
        # Also when it was begun before: that call may have been cancelled before it was durable.
        await self._metadata.make_durable()
        policy = format_policy(built.policy)
        try:
            shares = await self._multifs.put_pack(
                built.pack_id,
                built.path,
                built.size_bytes,
                policy,
                built.share_digest,
                built.fragments,
                rewriting=rewriting,
            )
        except BaseException as error:
            if not isinstance(error, Exception):  # cancelled
                self._note_abandoned(built.pack_id, built.size_bytes)
            raise
        # From here on a cancellation waits: what is stored must be reported.
        self._sent_until_s.pop(built.pack_id, None)
        with trio.CancelScope(shield=True):
            await self._remove_files(built)
        self._begun.discard(built.pack_id)
        strays = self._multifs.take_strays(built.pack_id, shares)
        return StoredPack(built.pack_id, policy, built.size_bytes, shares, strays)

    async def discard(self, built: BuiltPack) -> None:
        """Give up a built pack: remove its file, and what a failed `store` may have left on the clouds.  Checkpoint.

        Where a cloud does not answer, the intent stays for `withdraw_left`; that of a pack that was stored and never
        finished stays for the next `recover`.  One that was finished is not touched.
        """
        await self._remove_files(built)
        if built.pack_id in self._begun:
            self.leave(built)
            await self._withdraw(built.pack_id)

    def leave(self, built: BuiltPack) -> None:
        """Give up a built pack now, without waiting: `withdraw_left` or the next mount clears it away."""
        self._remove(built.path, built.policy)
        self._files.discard(built.pack_id)
        if built.pack_id in self._begun:
            self._begun.discard(built.pack_id)
            self._left.add(built.pack_id)

    def renounce(self, stored: StoredPack) -> None:
        """Give up a pack that is stored and was not finished: `withdraw_left` or the next mount clears it away."""
        share_bytes = parse_policy(stored.policy).share_bytes(stored.size_bytes)
        self._multifs.rooms.note_deleted([share.cloud for share in stored.shares], share_bytes)
        self._left.add(stored.pack_id)

    def leave_intent(self, pack_id: bytes, *, uploading_bytes: int = 0) -> None:
        """Have an intent that somebody else made cleared away by `withdraw_left` or the next mount.

        `uploading_bytes`: of an upload that was cancelled.
        """
        if uploading_bytes:
            self._note_abandoned(pack_id, uploading_bytes)
        self._left.add(pack_id)

    def _note_abandoned(self, pack_id: bytes, size_bytes: int) -> None:
        """Do not withdraw the pack yet: a worker may go on with the upload, and would store it after we looked."""
        self._sent_until_s[pack_id] = trio.current_time() + transfer_deadline_s(size_bytes)

    @property
    def left(self) -> frozenset[bytes]:
        """The packs that were given up and wait for `withdraw_left`: all other intents are on their way."""
        return frozenset(self._left)

    async def wait_until_quiet(self, deadline_s: float = QUIET_S) -> None:
        """Return when no pack that was begun before this call is on its way any more.  Raises: CloudUnavailable."""
        begun = await self._under_way()
        with trio.move_on_after(deadline_s) as scope:
            while begun & await self._under_way():  # noqa: ASYNC110 (rows tell nobody when they go)
                await trio.sleep(QUIET_POLL_S)
        if scope.cancelled_caught:
            raise CloudUnavailable("packs are still on their way to clouds; try again when `cuckoo sync` has ended")

    async def _under_way(self) -> set[bytes]:
        return set(await self._metadata.pack_intents()) - self._left

    async def withdraw_left(self) -> int:
        """Try again to withdraw what was given up while a cloud did not answer; return how many packs wait still.

        Now and then.  No request where nothing waits, nor while a cloud is not up: it would have to be asked, too.
        Checkpoint.
        """
        writable = [name for name in self._multifs.names if not self._multifs.entry(name).read_only]
        if not all(self._multifs.is_up(name) for name in writable):
            return len(self._left)
        now_s = trio.current_time()
        for pack_id in sorted(self._left):
            if now_s < self._sent_until_s.get(pack_id, now_s):
                continue
            if not await self._withdraw(pack_id):
                break  # the same cloud would be asked for every one of them
        return len(self._left)

    async def recover(self) -> Recovery:
        """Undo what a crash interrupted: withdraw every pack begun and not finished, empty the staging folder.

        At mount, after the first probe, before anything is built; also makes the staging folder.  Checkpoint.  If
        cancelled, call it again.  A cloud that does not answer keeps the intents for `withdraw_left`, with a warning.
        """
        files = await trio.to_thread.run_sync(_empty_folder, self.staging_dir)
        withdrawn = kept = 0
        for pack_id in await self._metadata.pack_intents():
            self._left.add(pack_id)
            if await self._withdraw(pack_id):
                withdrawn += 1
            else:
                kept += 1
        if kept:
            log.warning("%d interrupted uploads are cleared away later: not every cloud answers", kept)
        return Recovery(withdrawn, kept, files)

    async def _remove_files(self, built: BuiltPack) -> None:
        await trio.to_thread.run_sync(self._remove, built.path, built.policy)
        self._files.discard(built.pack_id)

    async def check_invariants(self) -> list[str]:
        """Return one line per violated invariant of packs under way and of the clouds; empty when all hold.

        Of the same moment of the metadata, the staging folder (which `recover` makes) and the room on the clouds (I-9,
        I-17, I-34, I-35).
        """
        intents, usage = set(await self._metadata.pack_intents()), await self._metadata.cloud_usage()
        problems = []
        for what, packs in (("begun", self._begun), ("given up", self._left), ("cancelled", set(self._sent_until_s))):
            problems += [f"I-9: pack {pack_id.hex()} is {what} and has no intent" for pack_id in packs - intents]
        problems += [f"I-17: pack {pack_id.hex()} is begun and given up" for pack_id in self._begun & self._left]
        known = self._files | self._lost_files
        problems += [
            f"I-17: {name} in the staging folder is no pack's that is under way"
            for name in (sorted(os.listdir(self.staging_dir)) if self.staging_dir.exists() else ())
            if PACK_SUFFIX in name and bytes.fromhex(name.partition(PACK_SUFFIX)[0]) not in known
        ]
        return problems + self._multifs.check_invariants(usage, intents)

    def _remove(self, path: str, policy: Policy) -> None:
        numbers = () if policy.is_copies else range(policy.data, policy.shares)
        for name in (path, *(parity_path(path, number) for number in numbers)):
            with suppress(OSError):  # what stays goes at the next mount
                os.unlink(name)

    async def _withdraw(self, pack_id: bytes) -> bool:
        if trio.current_time() < self._sent_until_s.get(pack_id, -math.inf):
            return False
        self._multifs.forget_upload(pack_id)
        # The intent goes after the objects: until then it is what they are found by.
        confirmed = await self._multifs.withdraw(pack_id, shares=self.policies.most_shares)
        if confirmed:
            await self._metadata.abandon_pack(pack_id)
            self._left.discard(pack_id)
            self._sent_until_s.pop(pack_id, None)
        return confirmed


def _empty_folder(folder: Path) -> int:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    files = list(folder.iterdir())
    for file in files:
        file.unlink(missing_ok=True)
    return len(files)

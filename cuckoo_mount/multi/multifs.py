"""All clouds of a drive as one place for packs: stores shares, fetches from them, deletes them, knows how clouds are.

Used by packs and by the drive.  For one trio loop; blocking work runs in worker processes.  Owns: shares of a pack lie
on distinct clouds; nothing is written to a cloud whose drive.json was not read (see health.py); no cloud's trouble
leaves this module as anything but the errors documented at each method.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Final, TypeVar

from cuckoo_mount.clouds import jobs
from cuckoo_mount.clouds.base import ObjectInfo, Space
from cuckoo_mount.errors import CloudError, CloudRefused, CuckooError
from cuckoo_mount.format import pack_share_name, packs_prefix
from cuckoo_mount.multi.fetching import ShareReader
from cuckoo_mount.multi.figures import cloud_statistics
from cuckoo_mount.multi.health import Condition, Health, Request
from cuckoo_mount.multi.jobs import withdraw_pack
from cuckoo_mount.multi.placement import choose
from cuckoo_mount.multi.records import TRANSFER_BASE_S, CloudEntry, CloudStatistics
from cuckoo_mount.multi.redundancy import parse_policy
from cuckoo_mount.multi.requests import CloudRequests, Pool, gather
from cuckoo_mount.multi.rooms import Rooms
from cuckoo_mount.multi.storing import PackStorer
from cuckoo_mount.multi.stripes import StripeReader, Wanted
from cuckoo_mount.types import PACK_SIZE_BYTES, CloudName, CloudUse, PackRow, ShareRow

T = TypeVar("T")
DELETE_BATCH: Final = 100
"""Objects deleted by one job: each is a request of its own to most clouds."""
LIST_DEADLINE_S: Final = 600.0
SILENT_S: Final = 300.0
"""An idle drive asks a cloud that is well this seldom whether it still is: each time costs a worker's start."""
UNWELL_SILENT_S: Final = 50.0
"""One that is slow or failing gets little else to show that it is well again.  With the right to write renewed every
two minutes that is still one request a minute."""


class MultiFS:
    """The pool of a drive's clouds.  `usage`: per cloud packs with a share there and bytes, as metadata counts them."""

    def __init__(
        self,
        clouds: Mapping[CloudName, CloudEntry],
        pool: Pool,
        health: Health,
        drive_id: bytes,
        *,
        usage: Mapping[CloudName, tuple[int, int]] | None = None,
        share_bytes: int = PACK_SIZE_BYTES,
    ) -> None:
        """`share_bytes`: how long the shares of a full pack are, of which each cloud keeps about one in spare."""
        self._clouds = dict(clouds)
        self._health = health
        self._drive_id = drive_id
        self._requests = CloudRequests(self._clouds, pool, health, drive_id)
        self.rooms: Final = Rooms(self._clouds, health, share_bytes=share_bytes)
        self.rooms.set_usage(usage or {})
        self._storer = PackStorer(self._clouds, self._requests, self.rooms, health, drive_id)
        self._reader = ShareReader(self._requests, health, drive_id, self._clouds)
        self._stripes = StripeReader(self._requests, self._reader)

    @property
    def names(self) -> tuple[CloudName, ...]:
        """The clouds, in the order they were given."""
        return tuple(self._clouds)

    # -- packs --

    async def put_pack(
        self,
        pack_id: bytes,
        path: str,
        size_bytes: int,
        policy: str,
        share_digest: bytes,
        fragments: Sequence[bytes] = (),
        *,
        rewriting: bool = False,
    ) -> tuple[ShareRow, ...]:
        """Store the pack file `path` as `policy` wants and return its shares in order of their numbers.  Checkpoint.

        Shares go to distinct clouds; with fewer clouds that take one there are fewer shares, at least as many as
        reading takes.  A cloud that fails is replaced by another.  `fragments`: the digests of all shares, where they
        are not copies; the parity shares are files beside the pack's (packs/builder.py).  `rewriting`: what lives in it
        is stored already, so it may take the room that is kept for that.  If cancelled, or on an error, any share may
        be there: put the pack again, which goes on, or withdraw it.
        Raises: CloudUnavailable (too few shares could be stored; try again later), UsageError (no such policy),
        FormatError (the file has another size), DataUnavailable (the local file cannot be read).
        """
        return await self._storer.put_pack(
            pack_id, path, size_bytes, policy, share_digest, fragments, rewriting=rewriting
        )

    def forget_upload(self, pack_id: bytes) -> None:
        """Forget which shares of a pack are stored already, as it is not going to be put again."""
        self._storer.forget(pack_id)

    def take_strays(self, pack_id: bytes, shares: Sequence[ShareRow]) -> frozenset[CloudName]:
        """Return, once, the clouds besides those of `shares` where an upload of the pack failed.

        An object of it may be there all the same: the answer may have been lost.
        """
        return self._storer.take_strays(pack_id, shares)

    async def first_whole(
        self,
        pack_id: bytes,
        shares: Sequence[ShareRow],
        job: Callable[..., T],
        *args: object,
        length_bytes: int,
        deadline_s: float,
        urgent: bool = True,
    ) -> T:
        """Return `job(settings, object name, *args)`, run in a worker on one share after the other until it succeeds.

        The job raises CloudCorrupt when what it got is not right.  `length_bytes`: about how much it transfers.
        `urgent`: somebody waits: it goes before other requests, and may run on two shares at the same time.
        Waits for clouds whose trouble may pass.  Checkpoint.
        Raises: DataUnavailable (no share is right or ever will be), DataTimeout (those left did not answer in time).
        """
        return await self._reader.first_whole(
            pack_id, shares, job, *args, length_bytes=length_bytes, deadline_s=deadline_s, urgent=urgent
        )

    async def read_stripe(
        self, wanted: Wanted, job: Callable[..., T], *args: object, deadline_s: float, urgent: bool = True
    ) -> T:
        """As `first_whole`, for a pack whose shares are fragments: `job(source, object name, *args)`.

        `source` is a multi.stripejobs.Source.  Raises: DataUnavailable (too few shares are right), DataTimeout.
        """
        return await self._stripes.read(wanted, job, *args, deadline_s=deadline_s, urgent=urgent)

    def take_damaged(self) -> frozenset[bytes]:
        """Return, and forget, the packs of which a share turned out to be damaged or lost while it was read."""
        return self._reader.take_damaged()

    @property
    def has_damaged(self) -> bool:
        """Whether `take_damaged` would return any."""
        return self._reader.has_damaged

    @property
    def conditions(self) -> frozenset[tuple[CloudName, bool, bool]]:
        """The clouds that take something, with whether they are up and whether full: what decides where shares go."""
        return frozenset(
            (name, self._health.is_up(name), self._health.takes_nothing(name))
            for name, entry in self._clouds.items()
            if not entry.read_only
        )

    def note_damaged(self, pack_id: bytes) -> None:
        """Remember that a share of the pack is damaged or lost; see `take_damaged`."""
        self._reader.note_damaged(pack_id)

    def shares_possible(self, pack_bytes: int, policy: str) -> int:
        """Return how many shares of a pack of that size clouds that are up would take now, at most all of them."""
        wanted = parse_policy(policy)
        return len(choose(self.rooms.states(), wanted.share_bytes(pack_bytes), wanted.shares))

    async def get_range(
        self, pack_id: bytes, shares: Sequence[ShareRow], offset: int, length_bytes: int, *, deadline_s: float
    ) -> bytes:
        """Return stored bytes of a pack, *not verified*, as `first_whole` gets them."""
        return await self.first_whole(
            pack_id, shares, jobs.get_range, offset, length_bytes, length_bytes=length_bytes, deadline_s=deadline_s
        )

    async def delete_packs(self, packs: Sequence[PackRow]) -> list[PackRow]:
        """Delete all shares of these packs; return the packs of which nothing is left.  Checkpoint, raises nothing.

        The others wait for a cloud that did not answer; deleting again is no error.  If cancelled, any may be deleted.
        The room counts as taken until the caller, who drops the rows, says so to `rooms`.
        What lies on a cloud that was removed from the drive is no concern of ours any more.
        """
        by_cloud: dict[CloudName, list[PackRow]] = {}
        for pack in packs:
            for cloud in {share.cloud for share in pack.shares} & self._clouds.keys():
                by_cloud.setdefault(cloud, []).append(pack)
        kept: set[bytes] = set()
        calls = [partial(self._delete_on, cloud, tuple(there), kept) for cloud, there in by_cloud.items()]
        await gather(calls)
        return [pack for pack in packs if pack.pack_id not in kept]

    async def _delete_on(self, cloud: CloudName, packs: Sequence[PackRow], kept: set[bytes]) -> None:
        start = 0
        while start < len(packs):
            batch = packs[start : start + self._requests.batch(cloud, DELETE_BATCH)]
            names = [
                pack_share_name(self._drive_id, pack.pack_id, share.share)
                for pack in batch
                for share in pack.shares
                if share.cloud == cloud
            ]
            try:
                await self._ask_if_up(
                    cloud,
                    jobs.delete_many,
                    names,
                    request=Request.DELETE,
                    deadline_s=TRANSFER_BASE_S + len(names),
                    requests=len(names),
                )
            except CloudError:
                kept.update(pack.pack_id for pack in packs[start:])
                return
            start += len(batch)

    async def withdraw(self, pack_id: bytes, *, shares: int) -> bool:
        """Delete whatever is stored of a pack that was never finished, on every cloud.  Checkpoint, raises nothing.

        `shares`: how many it may have had at least.  Returns whether every cloud confirmed; False: try again later.
        """
        clouds = [name for name, entry in self._clouds.items() if not entry.read_only]
        count = max(shares, len(clouds))
        calls = [
            partial(
                self._ask_if_up,
                name,
                withdraw_pack,
                self._drive_id,
                pack_id,
                count,
                deadline_s=TRANSFER_BASE_S + count,
                requests=count + 1,
            )
            for name in clouds
        ]
        return not any(isinstance(answer, CuckooError) for answer in await gather(calls))

    async def _ask_if_up(
        self,
        cloud: CloudName,
        job: Callable[..., T],
        *args: object,
        deadline_s: float,
        requests: int = 1,
        request: Request = Request.NOTE,
    ) -> T:
        """Delete, on a cloud that is up; elsewhere "deleted" would mean nothing.  Raises: CloudError.

        `request` DELETE: what is deleted was stored, so that it makes room.
        """
        if not self._health.is_up(cloud):
            await self._requests.probe_if_due(cloud)
        return await self._requests.ask(cloud, request, job, *args, deadline_s=deadline_s, requests=requests)

    # -- clouds --

    def set_cloud(self, name: CloudName, entry: CloudEntry) -> None:
        """Add a cloud, or use it in another way from now on; it is *unknown* until it was probed.

        Requests under way go on as they began.
        """
        before = self._clouds.get(name)
        self._clouds[name] = entry
        if before is None or (before.settings, before.trouble) != (entry.settings, entry.trouble):
            self._forget(name)

    def _forget(self, name: CloudName) -> None:
        self._health.forget(name)
        self.rooms.forget_space(name)
        self._requests.forget(name)

    def drop_cloud(self, name: CloudName) -> None:
        """Ask this cloud for nothing any more, and forget what is known of it."""
        self._clouds.pop(name, None)
        self._forget(name)

    async def ask(self, name: CloudName, job: Callable[..., T], *args: object, deadline_s: float) -> T:
        """Return `job(settings, *args)` for an object outside packs/, run in a worker.  Checkpoint.

        A cloud that is not up is probed first.  Raises: CloudError.
        """
        if not self._health.is_up(name):
            await self._requests.probe_if_due(name)
        state = self._health.state(name)
        if state.condition is Condition.READ_ONLY and self._health.takes_nothing(name):
            raise CloudRefused(state.last_error.removeprefix(f"cloud {name}: "), cloud=name)
        return await self._requests.ask(name, Request.NOTE, job, *args, deadline_s=deadline_s)

    async def consult(self, name: CloudName, job: Callable[..., T], *args: object, deadline_s: float) -> T:
        """As `ask`, for a job that only reads: that it works says nothing about room."""
        if not self._health.is_up(name):
            await self._requests.probe_if_due(name)
        return await self._requests.ask(name, Request.READ, job, *args, deadline_s=deadline_s)

    async def examine(
        self, name: CloudName, job: Callable[..., T], *args: object, deadline_s: float, bytes_down: int = 0
    ) -> T:
        """As `consult`, between two readings of the cloud's drive.json: so "not there" in the answer means lost."""
        await self._requests.probe(name)
        answer = await self._requests.ask(name, Request.READ, job, *args, deadline_s=deadline_s, bytes_down=bytes_down)
        await self._requests.probe(name)
        return answer

    async def read_object(
        self, name: CloudName, job: Callable[..., T], *args: object, deadline_s: float, bytes_down: int
    ) -> T:
        """As `consult`, but CloudMissing is raised only after drive.json was seen there.  Waits for nothing."""
        return await self._requests.ask_for_object(
            name, job, *args, deadline_s=deadline_s, bytes_down=bytes_down, urgent=False
        )

    def entry(self, name: CloudName) -> CloudEntry:
        """Return how a cloud is used.  Raises: KeyError for a name that is not in `names`."""
        return self._clouds[name]

    def is_up(self, name: CloudName) -> bool:
        """Return whether the cloud's own drive.json was read there and it answers."""
        return self._health.is_up(name)

    def takes_objects(self, name: CloudName) -> bool:
        """Return whether packs and epochs are stored there."""
        return not self._clouds[name].read_only and self._clouds[name].use is CloudUse.NORMAL

    def loses_objects(self, name: CloudName) -> bool:
        """Return whether something may be deleted there."""
        return not self._clouds[name].read_only

    def is_idle(self, name: CloudName) -> bool:
        """Return whether no request to the cloud has begun and not ended, also if it has been dropped."""
        return not self._requests.under_way(name)

    async def look_after(self) -> None:
        """Probe what is not well or was not heard of for long, and ask for room where that may have changed.

        To be called every minute; at most one request per cloud.  Checkpoint, raises nothing.
        """
        doubtful = [name for name in self._clouds if self._health.may_ask(name) and self._is_doubtful(name)]
        await gather([partial(self._requests.probe, name) for name in doubtful])
        # A full one, too: somebody else may have made room there.
        wanted = {*self.rooms.changed(), *self.rooms.short()}
        await self.refresh_space([name for name in self._clouds if name in wanted and name not in doubtful])

    def _is_doubtful(self, name: CloudName) -> bool:
        health = self._health
        if not health.is_up(name) or health.is_suspect(name):
            return True
        return health.silent_s(name) >= (SILENT_S if health.is_well(name) else UNWELL_SILENT_S)

    async def probe(self, among: Collection[CloudName] | None = None) -> dict[CloudName, Condition]:
        """Read drive.json on these clouds (None: all), at the same time, and return how every cloud is.

        Checkpoint, raises nothing.  One request per cloud.  Until a cloud's first probe worked, nothing is written or
        deleted there.
        """
        await gather([partial(self._requests.probe, name) for name in (self._clouds if among is None else among)])
        return {name: self._health.state(name).condition for name in self._clouds}

    async def list_packs(self, cloud: CloudName) -> list[ObjectInfo]:
        """Return every object below packs/ of one cloud.  Checkpoint.  Raises: CloudError."""
        return await self._ask_if_up(cloud, jobs.list_objects, packs_prefix(self._drive_id), deadline_s=LIST_DEADLINE_S)

    async def delete_objects(self, cloud: CloudName, names: Sequence[str]) -> None:
        """Delete objects below packs/ that no share row is about.  Checkpoint.  Raises: CloudError."""
        start = 0
        while start < len(names):
            batch = list(names[start : start + self._requests.batch(cloud, DELETE_BATCH)])
            await self._ask_if_up(
                cloud, jobs.delete_many, batch, deadline_s=TRANSFER_BASE_S + len(batch), requests=len(batch)
            )
            start += len(batch)

    async def refresh_space(self, among: Collection[CloudName] | None = None) -> None:
        """Ask clouds (None: all) that are up and did not say before that they never tell, for their room.

        One request each.  Checkpoint, raises nothing.
        """
        wanted = self._clouds if among is None else among
        names = [name for name in wanted if self._health.is_up(name) and self.rooms.may_tell(name)]
        calls = [
            partial(self._requests.ask, name, Request.READ, jobs.space, deadline_s=TRANSFER_BASE_S) for name in names
        ]
        for name, answer in zip(names, await gather(calls), strict=True):
            if answer is None or isinstance(answer, Space):
                self.rooms.set_space(name, answer)

    def check_invariants(self, usage: Mapping[CloudName, tuple[int, int]], intents: Collection[bytes]) -> list[str]:
        """Return one line per violated invariant (I-34, I-35).  `usage`, `intents`: the metadata's, of this moment."""
        problems = self.rooms.check(usage, is_exact=not intents) + self._storer.check(intents)
        return problems + self._health.check(self._clouds) + self._requests.check()

    def statistics(self) -> tuple[CloudStatistics, ...]:
        """Return every cloud's figures, in the order of `names`."""
        return tuple(
            cloud_statistics(name, entry, self._health, self.rooms, self._requests)
            for name, entry in self._clouds.items()
        )

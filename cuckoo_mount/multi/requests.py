"""One request to one cloud: in its turn, run in a worker, timed, counted, and a documented error when it fails.

Used by multi/multifs.py and multi/fetching.py; the only place of the daemon that hands cloud work to the pool.
For one trio loop.  Every method is a checkpoint; a cancelled request is not counted, but it may show that its cloud is
late.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, Protocol, TypeVar

import trio

from cuckoo_mount.clouds import jobs
from cuckoo_mount.clouds.accounts import Account, account_of, requests_per_second
from cuckoo_mount.clouds.base import CloudSettings
from cuckoo_mount.clouds.registry import expecting
from cuckoo_mount.errors import (
    CloudBusy,
    CloudError,
    CloudMissing,
    CloudNeedsLogin,
    CloudRefused,
    CloudTimeout,
    CloudUnavailable,
    CuckooError,
    FormatError,
    UsageError,
)
from cuckoo_mount.multi.health import Health, Request
from cuckoo_mount.multi.limits import Limits
from cuckoo_mount.multi.pace import Paces
from cuckoo_mount.multi.records import CloudEntry
from cuckoo_mount.types import CloudName

T = TypeVar("T")
PROBE_DEADLINE_S: Final = 20.0


class Pool(Protocol):
    """What is asked of workers.WorkerPool."""

    async def run(
        self, function: Callable[..., T], *args: object, deadline_s: float, started: Callable[[], object] = ...
    ) -> T:
        """Return function(*args), run in a worker process; raise what it raises, CloudTimeout after `deadline_s`.

        `started` is called when a worker gets it.
        """


class CloudRequests:
    """Asks the clouds of one drive and tells `health` how it went.  `clouds` may change while this is used."""

    def __init__(self, clouds: Mapping[CloudName, CloudEntry], pool: Pool, health: Health, drive_id: bytes) -> None:
        self._clouds = clouds
        self._pool = pool
        self._health = health
        self._drive_id = drive_id
        self.limits: Final = Limits()
        self.paces: Final = Paces()
        self._under_way: Counter[CloudName] = Counter()

    async def compute(self, job: Callable[..., T], *args: object, deadline_s: float) -> T:
        """Return `job(*args)`, run in a worker, which asks no cloud.  Raises: what the job does, CloudUnavailable."""
        return await self._pool.run(job, *args, deadline_s=deadline_s)

    def batch(self, cloud: CloudName, most: int) -> int:
        """Return how many requests one job should make there, 1 to `most`: within a job nothing waits for its turn."""
        entry = self._clouds.get(cloud)
        return most if entry is None else self.limits.batch(account_of(entry.settings), most)

    def per_second(self, cloud: CloudName) -> float | None:
        """Return how many requests per second the cloud's account gets now, None for any number."""
        entry = self._clouds.get(cloud)
        return None if entry is None else self.limits.per_s(account_of(entry.settings))

    def forget(self, cloud: CloudName) -> None:
        """Drop what is known of the times of a cloud, and of accounts that no cloud has any more."""
        self.paces.forget(cloud)
        self.limits.keep_only(account_of(entry.settings) for entry in self._clouds.values())

    def under_way(self, cloud: CloudName) -> int:
        """Return how many requests to the cloud have begun and not ended."""
        return self._under_way[cloud]

    def check(self) -> list[str]:
        """Return what is wrong with the book of requests."""
        problems = [f"I-35: {count} requests are under way" for count in self._under_way.values() if count < 0]
        return problems + self.limits.check()

    async def ask(
        self,
        cloud: CloudName,
        request: Request,
        job: Callable[..., T],
        *args: object,
        deadline_s: float,
        bytes_up: int = 0,
        bytes_down: int = 0,
        requests: int = 1,
        urgent: bool = False,
    ) -> T:
        """Return `job(settings of cloud, *args)`.  `bytes_…`: what counts as moved when it works.

        Waits for its turn, `deadline_s` at most, where the cloud's account is limited; `requests`: how many the job
        makes there, `urgent`: before others.  What the cloud rejects as too much is asked again, unless it is urgent:
        then another share may be nearer.
        Raises: CloudError and its children with `cloud` filled in; FormatError, DataUnavailable and OSError when a
        local file is at fault, which says nothing about the cloud.
        """
        ends_at_s = trio.current_time() + deadline_s
        while True:
            settings, entry = self._settings(cloud), self._clouds[cloud]
            account = account_of(entry.settings)
            try:
                await self.limits.turn(account, requests, urgent=urgent, deadline_s=ends_at_s - trio.current_time())
            except CloudBusy as error:
                raise error.retold(cloud=cloud) from None
            watch = _Watch(entry, request, bytes_up, bytes_down)
            try:
                result = await self._ask_once(cloud, settings, watch, job, *args, deadline_s=deadline_s)
            except CloudBusy as error:
                if self._is_same(cloud, entry):
                    self.limits.note_rejected(account, error.retry_after_s)
                if urgent or not self._health.is_up(cloud) or trio.current_time() >= ends_at_s:
                    raise
                continue
            if self._is_same(cloud, entry):
                self.limits.note_accepted(account, requests)
            return result

    def _is_same(self, cloud: CloudName, entry: CloudEntry) -> bool:
        """Return whether the cloud is where it was when a request began: else its answer says nothing about it."""
        now = self._clouds.get(cloud)
        return now is not None and (now.settings, now.cloud_id) == (entry.settings, entry.cloud_id)

    async def _ask_once(
        self,
        cloud: CloudName,
        settings: CloudSettings,
        watch: _Watch,
        job: Callable[..., T],
        *args: object,
        deadline_s: float,
    ) -> T:
        self._under_way[cloud] += 1
        try:
            result = await self._pool.run(job, settings, *args, deadline_s=deadline_s, started=watch.start)
        except CuckooError as error:
            if self._clouds.get(cloud) is None:
                raise CloudUnavailable("was removed from the drive meanwhile", cloud=cloud) from None
            known = _as_cloud_error(error, cloud, watch.request)
            if known is None:
                raise
            if self._is_same(cloud, watch.entry):
                if isinstance(known, CloudTimeout):
                    self._note_given_up(cloud, watch)
                self._health.report(cloud, watch.request, known)
            raise known from None
        except BaseException as error:
            if not isinstance(error, Exception):  # a cancellation, perhaps as a group of them
                self._note_given_up(cloud, watch)
            raise
        finally:
            self._under_way[cloud] -= 1
        if not self._is_same(cloud, watch.entry):
            return result
        pace = self.paces.note(cloud, watch.request, watch.size_bytes, watch.seconds) if watch.is_measured else None
        self._health.report(cloud, watch.request, None, bytes_up=watch.bytes_up, bytes_down=watch.bytes_down, pace=pace)
        return result

    def _note_given_up(self, cloud: CloudName, watch: _Watch) -> None:
        if watch.is_measured and watch.is_started and self._is_same(cloud, watch.entry):
            late_s = self.paces.late_s(cloud, watch.request, watch.size_bytes)
            if watch.seconds >= late_s:
                pace = self.paces.note_given_up(cloud, watch.request, watch.size_bytes, watch.seconds)
                self._health.note_late(cloud, pace)

    def _settings(self, cloud: CloudName) -> CloudSettings:
        """Return how a worker opens the cloud.  Raises: CloudUnavailable, CloudRefused when that cannot be."""
        entry = self._clouds.get(cloud)
        if entry is None:
            raise CloudUnavailable("is not one of this drive's clouds; add it again", cloud=cloud)
        if entry.trouble:
            refused = CloudNeedsLogin(entry.trouble, cloud=cloud)
            self._health.report(cloud, Request.PROBE, refused)
            raise refused
        try:
            self._set_ceiling(account_of(entry.settings))
        except UsageError as error:
            wrong = CloudRefused(str(error), cloud=cloud)
            self._health.report(cloud, Request.PROBE, wrong)
            raise wrong from None
        return expecting(entry.settings, self._drive_id, entry.cloud_id)

    def _set_ceiling(self, account: Account) -> None:
        """Limit the account as the user wants: of several numbers for it the smallest.  Raises: UsageError."""
        of_account = [entry.settings for entry in self._clouds.values() if account_of(entry.settings) == account]
        given = [per_s for settings in of_account if (per_s := requests_per_second(settings)) is not None]
        self.limits.set_ceiling(account, min(given, default=None))

    async def probe(self, cloud: CloudName) -> None:
        """Return if the cloud's own drive.json was read there just now.  Raises: as `ask`."""
        entry = self._clouds.get(cloud)
        cloud_id = entry.cloud_id if entry is not None else b""
        await self.ask(cloud, Request.PROBE, jobs.check_identity, self._drive_id, cloud_id, deadline_s=PROBE_DEADLINE_S)

    async def probe_if_due(self, cloud: CloudName) -> None:
        """Probe a cloud that is not up, unless it is to be left alone for now.  Raises: CloudError, also then."""
        if not self._health.may_ask(cloud):
            state = self._health.state(cloud)
            why = state.last_error.removeprefix(f"cloud {cloud}: ")
            raise CloudUnavailable(f"is {state.condition.value}: {why}", cloud=cloud)
        await self.probe(cloud)

    async def ask_for_object(
        self, cloud: CloudName, job: Callable[..., T], *args: object, deadline_s: float, bytes_down: int, urgent: bool
    ) -> T:
        """As `ask` with a read; CloudMissing is raised only after drive.json was seen there, else what the probe says.

        An emptied bucket or another disk at the same place must never look like lost objects.
        """
        try:
            return await self.ask(
                cloud, Request.READ, job, *args, deadline_s=deadline_s, bytes_down=bytes_down, urgent=urgent
            )
        except CloudMissing:
            await self.probe(cloud)
            raise


class _Watch:
    """Times one request from when a worker gets it: waiting for a worker is no cloud's fault.

    `entry`: what the cloud was when it began.
    """

    def __init__(self, entry: CloudEntry, request: Request, bytes_up: int, bytes_down: int) -> None:
        self.entry: Final = entry
        self.request: Final = request
        self.bytes_up: Final = bytes_up
        self.bytes_down: Final = bytes_down
        self._started_at_s: float | None = None

    def start(self) -> None:
        """Begin; once more, when the job is started again."""
        self._started_at_s = trio.current_time()

    @property
    def is_started(self) -> bool:
        return self._started_at_s is not None

    @property
    def is_measured(self) -> bool:
        """Whether its time can be compared: of jobs that move no objects it depends on what they do."""
        return bool(self.size_bytes) or self.request is Request.PROBE

    @property
    def size_bytes(self) -> int:
        return self.bytes_up + self.bytes_down

    @property
    def seconds(self) -> float:
        return 0.0 if self._started_at_s is None else trio.current_time() - self._started_at_s


def _as_cloud_error(error: CuckooError, cloud: CloudName, request: Request) -> CloudError | None:
    """Return what `error` says about the cloud, or None if it is about something else."""
    if isinstance(error, CloudError):
        return error if error.cloud else error.retold(cloud=cloud)
    if isinstance(error, UsageError) or (
        isinstance(error, FormatError) and request not in (Request.WRITE, Request.NOTE)
    ):
        # Settings that open nothing, or a drive.json from the future: as hopeless as wrong credentials.
        return CloudRefused(str(error), cloud=cloud)
    return None


async def gather(calls: Sequence[Callable[[], Awaitable[T]]]) -> list[T | CuckooError]:
    """Run all calls at the same time; return, in order, what each returned or the error of ours that it raised.

    Cancellation ends all of them.  Anything else that is raised is a bug and ends all of them too.
    """
    outcomes: dict[int, T | CuckooError] = {}

    async def run(index: int, call: Callable[[], Awaitable[T]]) -> None:
        try:
            outcomes[index] = await call()
        except CuckooError as error:
            outcomes[index] = error

    async with trio.open_nursery() as nursery:
        for index, call in enumerate(calls):
            nursery.start_soon(run, index, call)
    return [outcomes[index] for index in range(len(calls))]

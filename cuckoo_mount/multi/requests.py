"""One request to one cloud: run in a worker, timed, counted, and turned into a documented error when it fails.

Used by multi/multifs.py and multi/fetching.py; the only place of the daemon that hands cloud work to the pool.
For one trio loop.  Every method is a checkpoint; a cancelled request is not counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, Protocol, TypeVar

import trio

from cuckoo_mount.clouds import jobs
from cuckoo_mount.clouds.base import CloudSettings
from cuckoo_mount.clouds.registry import expecting
from cuckoo_mount.errors import (
    CloudError,
    CloudMissing,
    CloudRefused,
    CloudUnavailable,
    CuckooError,
    FormatError,
    UsageError,
)
from cuckoo_mount.multi.health import Health, Request
from cuckoo_mount.multi.records import CloudEntry
from cuckoo_mount.types import CloudName

T = TypeVar("T")
PROBE_DEADLINE_S: Final = 20.0


class Pool(Protocol):
    """What is asked of workers.WorkerPool."""

    async def run(self, function: Callable[..., T], *args: object, deadline_s: float) -> T:
        """Return function(*args), run in a worker process; raise what it raises, CloudTimeout after `deadline_s`."""


class CloudRequests:
    """Asks the clouds of one drive and tells `health` how it went.  `clouds` may change while this is used."""

    def __init__(self, clouds: Mapping[CloudName, CloudEntry], pool: Pool, health: Health, drive_id: bytes) -> None:
        self._clouds = clouds
        self._pool = pool
        self._health = health
        self._drive_id = drive_id
        self._under_way: Counter[CloudName] = Counter()

    async def compute(self, job: Callable[..., T], *args: object, deadline_s: float) -> T:
        """Return `job(*args)`, run in a worker, which asks no cloud.  Raises: what the job does, CloudUnavailable."""
        return await self._pool.run(job, *args, deadline_s=deadline_s)

    def under_way(self, cloud: CloudName) -> int:
        """Return how many requests to the cloud have begun and not ended."""
        return self._under_way[cloud]

    async def ask(
        self,
        cloud: CloudName,
        request: Request,
        job: Callable[..., T],
        *args: object,
        deadline_s: float,
        bytes_up: int = 0,
        bytes_down: int = 0,
    ) -> T:
        """Return `job(settings of cloud, *args)`.  `bytes_…`: what counts as moved when it works.

        Raises: CloudError and its children with `cloud` filled in; FormatError, DataUnavailable and OSError when a
        local file is at fault, which says nothing about the cloud.
        """
        settings = self._settings(cloud)
        self._under_way[cloud] += 1
        try:
            result = await self._pool.run(job, settings, *args, deadline_s=deadline_s)
        except CuckooError as error:
            if self._clouds.get(cloud) is None:
                raise CloudUnavailable("was removed from the drive meanwhile", cloud=cloud) from None
            known = _as_cloud_error(error, cloud, request)
            if known is None:
                raise
            self._health.report(cloud, request, known)
            raise known from None
        finally:
            self._under_way[cloud] -= 1
        self._health.report(cloud, request, None, bytes_up=bytes_up, bytes_down=bytes_down)
        return result

    def _settings(self, cloud: CloudName) -> CloudSettings:
        """Return how a worker opens the cloud.  Raises: CloudUnavailable, CloudRefused when that cannot be."""
        entry = self._clouds.get(cloud)
        if entry is None:
            raise CloudUnavailable("is not one of this drive's clouds; add it again", cloud=cloud)
        if entry.trouble:
            refused = CloudRefused(entry.trouble, cloud=cloud)
            self._health.report(cloud, Request.PROBE, refused)
            raise refused
        return expecting(entry.settings, self._drive_id, entry.cloud_id)

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
        self, cloud: CloudName, job: Callable[..., T], *args: object, deadline_s: float, bytes_down: int
    ) -> T:
        """As `ask` with a read; CloudMissing is raised only after drive.json was seen there, else what the probe says.

        An emptied bucket or another disk at the same place must never look like lost objects.
        """
        try:
            return await self.ask(cloud, Request.READ, job, *args, deadline_s=deadline_s, bytes_down=bytes_down)
        except CloudMissing:
            await self.probe(cloud)
            raise


def _as_cloud_error(error: CuckooError, cloud: CloudName, request: Request) -> CloudError | None:
    """Return what `error` says about the cloud, or None if it is about something else."""
    if isinstance(error, CloudError):
        return error if error.cloud else type(error)(error.message, cloud=cloud, name=error.name)
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

"""Records of the multi layer: a cloud as the drive uses it, and what `status` says about one.

Used by multi/*, the drive and commands.  Frozen, no behaviour beyond small pure functions.
"""

from __future__ import annotations

from typing import Final

from attrs import frozen

from cuckoo_mount.clouds.base import CloudSettings
from cuckoo_mount.types import CloudName, CloudRow, CloudUse

TRANSFER_BASE_S: Final = 30.0
SLOWEST_BYTES_PER_S: Final = 64 << 10
"""A transfer slower than this counts as hung: its worker is killed and another cloud is asked."""


@frozen(slots=True, kw_only=True)
class CloudEntry:
    """One cloud of the drive: how to open it, and what the drive's metadata says about it (see types.CloudRow).

    `trouble`: why this machine cannot even ask it (a secret that is not there), or empty.
    """

    settings: CloudSettings
    cloud_id: bytes
    trouble: str = ""
    capacity_bytes: int | None = None
    reserve_bytes: int = 0
    group: str = ""
    read_only: bool = False
    use: CloudUse = CloudUse.NORMAL


@frozen(slots=True, kw_only=True)
class CloudStatistics:
    """A cloud in `status --json`, field by field.  `url` and `last_error` show no secrets.

    `use`: a `CloudUse`.  `used_bytes`, `packs`: our shares there.  `capacity_bytes`: what the user allowed, or else
    what the cloud says it has; None if neither is known.  `sending_bytes`: of shares on their way there right now.
    `rejected`: requests that were too many for it.  `hedged`: reads for which another cloud was asked as well, because
    this one was late.  `requests_per_second`: what its account gets now; None: as many as are wanted.
    `last_error_age_s`: how long ago that error was; None if there was none.  The counters begin at the mount.
    """

    name: CloudName
    url: str
    state: str
    use: str
    used_bytes: int = 0
    capacity_bytes: int | None = None
    packs: int = 0
    requests: int = 0
    errors: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    rejected: int = 0
    hedged: int = 0
    requests_per_second: float | None = None
    sending_bytes: int = 0
    last_error: str = ""
    last_error_age_s: float | None = None


def entry_of(row: CloudRow, settings: CloudSettings, trouble: str = "") -> CloudEntry:
    """Return the entry of a cloud from its row in the metadata and this machine's settings for it."""
    return CloudEntry(
        settings=settings,
        cloud_id=row.cloud_id,
        trouble=trouble,
        capacity_bytes=row.capacity_bytes,
        reserve_bytes=row.reserve_bytes,
        group=row.group,
        read_only=row.read_only,
        use=row.use,
    )


def transfer_deadline_s(size_bytes: int) -> float:
    """Return how long a request that moves `size_bytes` may take."""
    return TRANSFER_BASE_S + size_bytes / SLOWEST_BYTES_PER_S

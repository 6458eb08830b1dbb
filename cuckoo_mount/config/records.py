"""A drive's configuration as frozen records, checked when built.

Used by config/files.py, which reads and writes them, drive.py and cli/.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Final

from attrs import Attribute, field, frozen, validators

from cuckoo_mount.format import ID_BYTES

CACHE_LIMIT_DEFAULT_BYTES: Final = 10 << 30
CACHE_LIMIT_MIN_BYTES: Final = 16 << 20
DEADLINE_DEFAULT_S: Final = 60.0
REDUNDANCIES: Final = ("none", "1")
"""What this release can do with one cloud: nothing, and what is the same, one copy."""


def _is_an_id(_: object, attribute: Attribute[bytes], value: bytes) -> None:
    if len(value) != ID_BYTES:
        raise ValueError(f"{attribute.name} has {ID_BYTES} bytes, not {len(value)}")


@frozen(slots=True, kw_only=True)
class CloudConfig:
    """One cloud.  `cloud_id`: 16 bytes, also in its drive.json.  `options`, `secrets`: sorted (key, value) pairs.

    `capacity_bytes`: what we may use of it, None for all it has; `reserve_bytes`: what is to stay free there.
    `group`: clouds of one group may be lost together (an account, a house).
    """

    name: str = field(validator=validators.min_len(1))
    url: str = field(validator=validators.min_len(1))
    cloud_id: bytes = field(validator=_is_an_id)
    capacity_bytes: int | None = field(default=None, validator=validators.optional(validators.ge(0)))
    reserve_bytes: int = field(default=0, validator=validators.ge(0))
    group: str = ""
    read_only: bool = False
    options: tuple[tuple[str, str], ...] = ()
    secrets: tuple[tuple[str, str], ...] = field(default=(), repr=False)


@frozen(slots=True, kw_only=True)
class DriveConfig:
    """One drive as this machine knows it.

    `drive_id`: 16 bytes.  `redundancy`: one of `REDUNDANCIES`.  `deadline_s`: how long a read may wait for a cloud.
    """

    name: str
    drive_id: bytes = field(validator=_is_an_id)
    redundancy: str = field(default="none", validator=validators.in_(REDUNDANCIES))
    encrypted: bool = True
    mountpoint: Path | None = None
    cache_limit_bytes: int = field(default=CACHE_LIMIT_DEFAULT_BYTES, validator=validators.ge(CACHE_LIMIT_MIN_BYTES))
    deadline_s: float = field(default=DEADLINE_DEFAULT_S, validator=[validators.gt(0), validators.le(3600)])
    clouds: tuple[CloudConfig, ...] = field(validator=validators.min_len(1))

    @clouds.validator
    def _are_distinct(self, _: Attribute[tuple[CloudConfig, ...]], value: tuple[CloudConfig, ...]) -> None:
        for what, counted in (
            ("name", Counter(cloud.name for cloud in value)),
            ("url", Counter(cloud.url for cloud in value)),
            ("id", Counter(cloud.cloud_id.hex() for cloud in value)),
        ):
            twice, count = counted.most_common(1)[0]
            if count > 1:
                raise ValueError(f"two clouds have the {what} {twice!r}")

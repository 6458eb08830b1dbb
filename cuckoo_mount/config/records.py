"""A drive's configuration as frozen records, checked when built.

Used by config/files.py, which reads and writes them, drive.py and cli/.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from attrs import Attribute, field, frozen, validators

from cuckoo_mount.config.sizes import format_size
from cuckoo_mount.errors import UsageError
from cuckoo_mount.format import ID_BYTES
from cuckoo_mount.multi.redundancy import NO_REDUNDANCY, check_redundancy
from cuckoo_mount.types import PACK_SIZE_BYTES

CACHE_LIMIT_DEFAULT_BYTES: Final = 10 << 30
CACHE_LIMIT_MIN_BYTES: Final = 16 << 20
DEADLINE_DEFAULT_S: Final = 60.0
PACK_SIZE_MIN_BYTES: Final = 1 << 20
PACK_SIZE_MAX_BYTES: Final = 256 << 20
CLOUD_NAME_MAX: Final = 64
_CLOUD_NAME: Final = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{CLOUD_NAME_MAX - 1}}}", re.ASCII)


def check_cloud_name(name: str) -> str:
    """Return `name` if a cloud may be called so.  Raises: UsageError."""
    if not _CLOUD_NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot name a cloud; use up to {CLOUD_NAME_MAX} letters, digits, '.', '_' and '-', "
            "and begin with a letter or digit"
        )
    return name


def check_pack_size(size_bytes: int) -> int:
    """Return `size_bytes` if packs may be so big.  Raises: UsageError."""
    if not PACK_SIZE_MIN_BYTES <= size_bytes <= PACK_SIZE_MAX_BYTES:
        low, high = format_size(PACK_SIZE_MIN_BYTES), format_size(PACK_SIZE_MAX_BYTES)
        raise UsageError(f"a pack of {format_size(size_bytes)} is out of range; choose from {low} to {high}")
    return size_bytes


def _is_an_id(_: object, attribute: Attribute[bytes], value: bytes) -> None:
    if len(value) != ID_BYTES:
        raise ValueError(f"{attribute.name} has {ID_BYTES} bytes, not {len(value)}")


@frozen(slots=True, kw_only=True)
class CloudConfig:
    """One cloud.  `cloud_id`: 16 bytes, also in its drive.json.  `options`: sorted (key, value) pairs.

    `secrets`: sorted (key, reference) pairs; config/secrets.py says what a reference is and what it stands for.
    `capacity_bytes`: what we may use of it, None for all it has; `reserve_bytes`: what is to stay free there.
    `group`: clouds of one group may be lost together (an account, a house).
    """

    name: str = field(converter=check_cloud_name)
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

    `drive_id`: 16 bytes.  `redundancy`: see `check_redundancy`.  `pack_size_bytes`: plain bytes at which a pack is
    closed.  `deadline_s`: how long a read may wait for a cloud.  `clouds`: none in a drive that was just made.
    `heal_rate_bytes`: how much healing may send per second, > 0; None: as much as the clouds take.
    `ask`: there is no key file on purpose; mounting takes the passphrase.
    """

    name: str
    drive_id: bytes = field(validator=_is_an_id)
    redundancy: str = field(default=NO_REDUNDANCY, converter=check_redundancy)
    pack_size_bytes: int = field(default=PACK_SIZE_BYTES, converter=check_pack_size)
    encrypted: bool = True
    ask: bool = False
    mountpoint: Path | None = None
    cache_limit_bytes: int = field(default=CACHE_LIMIT_DEFAULT_BYTES, validator=validators.ge(CACHE_LIMIT_MIN_BYTES))
    deadline_s: float = field(default=DEADLINE_DEFAULT_S, validator=[validators.gt(0), validators.le(3600)])
    heal_rate_bytes: int | None = field(default=None, validator=validators.optional(validators.gt(0)))
    clouds: tuple[CloudConfig, ...] = field()

    @clouds.validator
    def _are_distinct(self, _: Attribute[tuple[CloudConfig, ...]], value: tuple[CloudConfig, ...]) -> None:
        for what, values in (
            ("name", [cloud.name for cloud in value]),
            ("url", [cloud.url for cloud in value]),
            ("id", [cloud.cloud_id.hex() for cloud in value]),
        ):
            for cloud, content in zip(value, values, strict=True):
                if values.count(content) > 1:
                    # Not the content: a URL may hold a secret.
                    raise UsageError(f"two clouds have the {what} of cloud {cloud.name!r}")

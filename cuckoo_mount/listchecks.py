"""What is refused when clouds join or leave the drive's list, and with which words.

Used by roster.py.  Never waits.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from cuckoo_mount.clouds.registry import parse_place
from cuckoo_mount.cloudsettings import shown_url
from cuckoo_mount.config import CloudConfig, DriveConfig
from cuckoo_mount.errors import UsageError
from cuckoo_mount.metadata.base import Metadata
from cuckoo_mount.types import CloudName


def check_new(cloud: CloudConfig, config: DriveConfig, listed: Collection[str]) -> None:
    """Return if neither name nor URL is on the list.  Raises: UsageError."""
    for other in config.clouds:
        if other.name == cloud.name:
            raise UsageError(
                f"there is a cloud {cloud.name!r} already ({shown_url(other)}); choose another name, "
                f"or change it with: cuckoo cloud set {cloud.name}"
            )
        if parse_place(other.url) == parse_place(cloud.url):
            raise UsageError(f"{shown_url(cloud)} is already cloud {other.name!r} of this drive")
    if cloud.name in listed:
        raise UsageError(f"there is a cloud {cloud.name!r} on the drive's list already; choose another name")


def check_not_listed(cloud: CloudConfig, found: bytes, ids: Mapping[bytes, str]) -> None:
    """Return if `found`, the id that the place has already, is none of the list's.  Raises: UsageError."""
    if found in ids:
        raise UsageError(f"{shown_url(cloud)} is the same place as cloud {ids[found]!r} of this drive")


def only_there(name: str, packs: int, size_bytes: int) -> str:
    """Return why a cloud is not removed that has the only shares of these packs."""
    what = "1 pack" if packs == 1 else f"{packs} packs"
    return (
        f"cloud {name!r} holds {what} ({size_bytes} bytes) that lie nowhere else; "
        f"give them up with: cuckoo cloud remove {name} --lost"
    )


async def removal_plan(metadata: Metadata, cloud: CloudName) -> dict[str, object]:
    """Return how many packs lie on a cloud, and how many of them nowhere else, with their bytes; JSON-able."""
    packs, size_bytes = await metadata.only_on(cloud)
    there, _ = (await metadata.cloud_usage()).get(cloud, (0, 0))
    return {"packs": there, "lost_packs": packs, "lost_bytes": size_bytes}

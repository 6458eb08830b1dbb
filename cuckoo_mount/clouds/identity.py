"""drive.json: what makes a place one of this drive's clouds.

Used by jobs.py and registry.py.  Functions over any Cloud, blocking, any thread.  The rule they serve: a cloud is up
only when its own drive.json was read there with both ids; before that, "no such object" means nothing (an unmounted
disk and an emptied bucket look just like lost objects).
"""

from __future__ import annotations

import json
from typing import Final

from cuckoo_mount.clouds.base import Cloud
from cuckoo_mount.errors import CloudCorrupt, CloudMissing, CloudNotOurs, FormatError
from cuckoo_mount.format import FORMAT_VERSION, identity_name

_FORMAT: Final = "format"
_DRIVE: Final = "drive"
_CLOUD: Final = "cloud"


def identity_bytes(drive_id: bytes, cloud_id: bytes) -> bytes:
    """Return the content of drive.json, always the same for the same ids."""
    record = {_FORMAT: FORMAT_VERSION, _DRIVE: drive_id.hex(), _CLOUD: cloud_id.hex()}
    return json.dumps(record).encode() + b"\n"


def read_identity(cloud: Cloud, drive_id: bytes) -> bytes:
    """Return the cloud id that this place has in drive `drive_id`.

    Raises: CloudNotOurs if it has no drive.json of that drive, or one that names another; CloudCorrupt if it cannot be
    read; FormatError if a newer program wrote it; and whatever `Cloud.get` raises but CloudMissing.
    """
    name, where = identity_name(drive_id), cloud.settings.name
    try:
        data = cloud.get(name)
    except CloudMissing as error:
        raise CloudNotOurs(
            "no drive.json of this drive is there; mount the disk, check the URL, or add the place as a cloud",
            cloud=where,
        ) from error
    try:
        record = json.loads(data)
        version, drive, found = int(record[_FORMAT]), bytes.fromhex(record[_DRIVE]), bytes.fromhex(record[_CLOUD])
    except (ValueError, TypeError, KeyError) as error:
        raise CloudCorrupt("damaged; remove it and add the cloud again", cloud=where, name=name) from error
    if version > FORMAT_VERSION:
        raise FormatError(f"cloud {where} has format {version}, this program knows {FORMAT_VERSION}; update it")
    if drive != drive_id:
        raise CloudNotOurs(f"its drive.json names drive {drive.hex()}", cloud=where, name=name)
    return found


def find_identity(cloud: Cloud, drive_id: bytes) -> bytes | None:
    """Return the cloud id that this place has in drive `drive_id`; None if it has no drive.json of that drive.

    Raises: as `read_identity` otherwise.
    """
    try:
        return read_identity(cloud, drive_id)
    except CloudNotOurs as error:
        if isinstance(error.__cause__, CloudMissing):
            return None
        raise


def check_identity(cloud: Cloud, drive_id: bytes, cloud_id: bytes) -> None:
    """Return if this place is cloud `cloud_id` of drive `drive_id`; only then may its CloudMissing be believed.

    Raises: CloudNotOurs if it is not; otherwise as `read_identity`.
    """
    found = read_identity(cloud, drive_id)
    if found != cloud_id:
        raise CloudNotOurs(
            f"it is cloud {found.hex()} of this drive, {cloud_id.hex()} was expected; check which URL belongs to which",
            cloud=cloud.settings.name,
        )


def write_identity(cloud: Cloud, drive_id: bytes, cloud_id: bytes) -> None:
    """Make this place cloud `cloud_id` of drive `drive_id`.  Repeating it is harmless; nothing is overwritten.

    Raises: CloudNotOurs if it already is another cloud of this drive; otherwise as `read_identity` and `Cloud.put`.
    """
    if find_identity(cloud, drive_id) is None:
        cloud.put(identity_name(drive_id), identity_bytes(drive_id, cloud_id))
    check_identity(cloud, drive_id, cloud_id)

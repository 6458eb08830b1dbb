"""What the daemon asks workers to do with a cloud: importable functions of picklable arguments.

Run by `WorkerPool.run` inside worker processes, several at a time in threads; every one may be repeated, because
objects are write-once.  They raise CloudError and its children, UsageError for settings that cannot be opened, and
OSError for a local file.  Bytes come back through the pipe; bytes to send go by file name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Final, cast

from cuckoo_mount.clouds import identity
from cuckoo_mount.clouds.base import Capabilities, CloudSettings, DeletesMany, ObjectInfo, Space
from cuckoo_mount.clouds.registry import expecting, forget_cloud, open_cloud, without_expectations
from cuckoo_mount.errors import CloudCorrupt, CloudMissing, FormatError
from cuckoo_mount.format import ID_BYTES, ROOT_PREFIX

WHOLE_BYTES: Final = 64 << 10
"""An object up to this size is fetched whole where only its ends are wanted: one request instead of two."""
_IDENTITY: Final = re.compile(rf"{ROOT_PREFIX}/([0-9a-f]{{{2 * ID_BYTES}}})/drive\.json", re.ASCII)


def put_file(settings: CloudSettings, name: str, path: str, size_bytes: int | None = None) -> None:
    """Store the local file `path` as object `name`; it must have `size_bytes` bytes, if given.

    Raises: OSError if the file cannot be read, FormatError if it has another size; otherwise as `Cloud.put`.
    """
    with open(path, "rb", buffering=0) as file:
        data = file.readall()
    if size_bytes is not None and len(data) != size_bytes:
        raise FormatError(f"{path} has {len(data)} bytes, {size_bytes} were to be stored as {name}; build it again")
    open_cloud(settings).put(name, data)


def put(settings: CloudSettings, name: str, data: bytes) -> None:
    """Store `data`, a small object, as `Cloud.put`."""
    open_cloud(settings).put(name, data)


def get(settings: CloudSettings, name: str) -> bytes:
    """Return a whole object, as `Cloud.get`."""
    return open_cloud(settings).get(name)


def get_file(settings: CloudSettings, name: str, path: str) -> None:
    """Fetch object `name` into the local file `path`, which appears when it is complete.

    Raises: OSError if the file cannot be written; otherwise as `Cloud.get`.
    """
    data = open_cloud(settings).get(name)
    part = f"{path}.fetched"
    with open(part, "wb", buffering=0) as file:
        file.write(data)
    os.rename(part, path)


def get_ends(
    settings: CloudSettings, objects: Sequence[tuple[str, int]], head_bytes: int, tail_bytes: int
) -> list[tuple[bytes, bytes] | None]:
    """Return the first and last bytes of objects given as (name, size), None for one that is gone or too short.

    One request for each that is small, else two.  Raises: as `Cloud.get`, but for CloudMissing and CloudCorrupt.
    """
    cloud = open_cloud(settings)
    found: list[tuple[bytes, bytes] | None] = []
    for name, size_bytes in objects:
        try:
            if size_bytes <= WHOLE_BYTES:
                data = cloud.get(name)
                found.append((data[:head_bytes], data[-tail_bytes:]) if len(data) >= head_bytes + tail_bytes else None)
            else:
                tail = cloud.get_range(name, size_bytes - tail_bytes, tail_bytes)
                found.append((cloud.get_range(name, 0, head_bytes), tail))
        except (CloudMissing, CloudCorrupt):
            found.append(None)
    return found


def get_range(settings: CloudSettings, name: str, offset: int, length_bytes: int) -> bytes:
    """Return exactly `length_bytes` bytes from `offset`, as `Cloud.get_range`."""
    return open_cloud(settings).get_range(name, offset, length_bytes)


def delete_many(settings: CloudSettings, names: Sequence[str]) -> None:
    """Remove objects; those that are not there are no error.  The first error ends it: repeat with the same names."""
    cloud = open_cloud(settings)
    at_once = cloud.capabilities.delete_batch if len(names) > 1 else 1
    if at_once > 1:
        for start in range(0, len(names), at_once):
            cast(DeletesMany, cloud).delete_many(names[start : start + at_once])
        return
    for name in names:
        cloud.delete(name)


def list_objects(settings: CloudSettings, prefix: str) -> list[ObjectInfo]:
    """Return every object below `prefix` (empty, or ending with `/`), in no particular order."""
    return list(open_cloud(settings).list(prefix))


def space(settings: CloudSettings) -> Space | None:
    """Return the room there is, or None where the storage does not tell."""
    return open_cloud(settings).space()


def capabilities(settings: CloudSettings) -> Capabilities:
    """Return what the cloud can do."""
    return open_cloud(settings).capabilities


def check_identity(settings: CloudSettings, drive_id: bytes, cloud_id: bytes) -> None:
    """Return if the place is cloud `cloud_id` of drive `drive_id` now, as identity.check_identity.

    Opens it anew, and costs one get.
    """
    forget_cloud(settings)
    cloud = open_cloud(settings)
    if expecting(settings, drive_id, cloud_id) != settings:  # else opening it was the check
        identity.check_identity(cloud, drive_id, cloud_id)


def write_identity(settings: CloudSettings, drive_id: bytes, cloud_id: bytes) -> None:
    """Make the place cloud `cloud_id` of drive `drive_id`, as identity.write_identity."""
    identity.write_identity(open_cloud(without_expectations(settings)), drive_id, cloud_id)


def find_identity(settings: CloudSettings, drive_id: bytes) -> bytes | None:
    """Return the cloud id that the place has in drive `drive_id`, None if it was never a cloud of that drive."""
    return identity.find_identity(open_cloud(without_expectations(settings)), drive_id)


def find_drives(settings: CloudSettings) -> list[bytes]:
    """Return the ids of the drives that have a drive.json at this place, sorted.  Lists all that is below cuckoo/."""
    cloud = open_cloud(without_expectations(settings))
    found: set[bytes] = set()
    for item in cloud.list(f"{ROOT_PREFIX}/"):
        if (shown := _IDENTITY.fullmatch(item.name)) is not None:
            found.add(bytes.fromhex(shown[1]))
    return sorted(found)

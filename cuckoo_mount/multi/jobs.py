"""Jobs for worker processes that know what shares are called; the plain ones are in clouds/jobs.py.

Importable functions of picklable arguments, may be repeated, raise as clouds/jobs.py.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import cast

from attrs import frozen

from cuckoo_mount.clouds import jobs
from cuckoo_mount.clouds.base import Capabilities, Cloud, CloudSettings, TellsOfDeleted
from cuckoo_mount.clouds.registry import forget_cloud, open_cloud
from cuckoo_mount.errors import CloudCorrupt, CuckooError, FormatError
from cuckoo_mount.format import pack_share_name
from cuckoo_mount.multi.erasure import parity_path
from cuckoo_mount.multi.redundancy import Policy


@frozen(slots=True)
class TrialStep:
    """One step of `try_cloud` that worked."""

    step: str
    seconds: float


@frozen(slots=True)
class Trial:
    """What `try_cloud` found: the steps that worked, in order, and why the next one did not (empty: all worked).

    `deleted`: what becomes of deleted objects there, in words, where the cloud tells.
    """

    steps: tuple[TrialStep, ...]
    capabilities: Capabilities | None
    error: str
    deleted: str = ""


def withdraw_pack(settings: CloudSettings, drive_id: bytes, pack_id: bytes, shares: int) -> int:
    """Delete every share of a pack from one cloud and return how many objects a listing showed there.

    Shares 0 … `shares` - 1 are deleted even if the listing does not show them: some storages list late.
    """
    certain = [pack_share_name(drive_id, pack_id, share) for share in range(max(shares, 1))]
    stem = certain[0].removesuffix("0")
    folder = stem[: stem.rindex("/") + 1]
    listed = [found.name for found in jobs.list_objects(settings, folder) if found.name.startswith(stem)]
    jobs.delete_many(settings, sorted({*certain, *listed}))
    return len(listed)


def put_share(settings: CloudSettings, name: str, path: str, size_bytes: int, policy: Policy, share: int) -> None:
    """Store share `share` of the pack file `path`, which must have `size_bytes` bytes, as object `name`.

    A copy is the file; a data share a range of it, filled up with zeros; a parity share a file of its own beside it.
    Raises: as `jobs.put_file`.
    """
    if policy.is_copies:
        jobs.put_file(settings, name, path, size_bytes)
        return
    length = policy.share_bytes(size_bytes)
    if share >= policy.data:
        jobs.put_file(settings, name, parity_path(path, share), length)
        return
    with open(path, "rb", buffering=0) as file:
        if os.fstat(file.fileno()).st_size != size_bytes:
            raise FormatError(f"{path} has not the {size_bytes} bytes that were to be stored; build it again")
        data = os.pread(file.fileno(), length, share * length)
    jobs.put(settings, name, data.ljust(length, b"\0"))


def try_cloud(settings: CloudSettings, name: str, size_bytes: int) -> Trial:
    """Store, read, read in part, and delete an object of random bytes, and return how long each took.

    Never raises for the cloud: the step that failed is the last one, and says why.
    """
    data, steps = os.urandom(size_bytes), []
    half = size_bytes // 2
    cloud: Cloud | None = None

    def read_back(found: bytes, wanted: bytes) -> None:
        if found != wanted:
            raise CloudCorrupt("gave back other bytes than were stored", cloud=settings.name, name=name)

    def run(step: str, action: Callable[[], object]) -> None:
        started = time.monotonic()
        action()
        steps.append(TrialStep(step, time.monotonic() - started))

    def connect() -> None:
        nonlocal cloud
        forget_cloud(settings)
        cloud = open_cloud(settings)

    error = deleted = ""
    try:
        run("connect", connect)
        assert cloud is not None, "connect raises or opens"
        opened = cloud
        run("store", lambda: opened.put(name, data))
        run("read", lambda: read_back(opened.get(name), data))
        run("read a part", lambda: read_back(opened.get_range(name, half, size_bytes - half), data[half:]))
        run("delete", lambda: opened.delete(name))
        run("ask for room", opened.space)
        if opened.capabilities.tells_of_deleted:
            deleted = cast(TellsOfDeleted, opened).of_deleted()
    except CuckooError as caught:
        error = str(caught)
    return Trial(tuple(steps), None if cloud is None else cloud.capabilities, error, deleted)

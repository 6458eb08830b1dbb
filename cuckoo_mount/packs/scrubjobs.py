"""Looking at shares in a worker process: listing them, asking for single ones, and reading one against its digest.

Used by packs/scrubbing.py through MultiFS.  Importable functions of picklable arguments, may be repeated, raise as
clouds/jobs.py.  Memory: one piece of a share at a time.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from typing import Final

from cuckoo_mount.clouds import jobs
from cuckoo_mount.clouds.base import CloudSettings
from cuckoo_mount.errors import CloudCorrupt, CloudMissing, FormatError
from cuckoo_mount.format import packs_prefix, parse_pack_share_name
from cuckoo_mount.layers.keys import DriveKeys
from cuckoo_mount.packs.comparing import Verdict, share_key

PIECE_BYTES: Final = 32 << 20
"""A share up to this size, which all are where packs have 16 MiB, is one request."""


def list_shares(settings: CloudSettings, drive_id: bytes) -> dict[bytes, int]:
    """Return the sizes of all shares on a cloud, by `share_key`; objects with other names are left out."""
    found: dict[bytes, int] = {}
    for item in jobs.list_objects(settings, packs_prefix(drive_id)):
        try:
            found[share_key(*parse_pack_share_name(drive_id, item.name))] = item.size_bytes
        except FormatError:
            continue  # `gc` looks after objects that are none of ours
    return found


def look_at_shares(settings: CloudSettings, shares: Sequence[tuple[str, int]]) -> list[Verdict]:
    """Return whether objects, given as (name, size), are there with that size: some storages list late.

    One request for each that is not there, else two.
    """
    return [_look_at(settings, name, size_bytes) for name, size_bytes in shares]


def _look_at(settings: CloudSettings, name: str, size_bytes: int) -> Verdict:
    try:
        jobs.get_range(settings, name, size_bytes - 1, 1)
    except CloudMissing:
        return Verdict.MISSING
    except CloudCorrupt:
        return Verdict.DAMAGED
    try:
        jobs.get_range(settings, name, size_bytes, 1)
    except CloudMissing:
        return Verdict.MISSING
    except CloudCorrupt:
        return Verdict.WHOLE
    return Verdict.DAMAGED  # it goes on behind its end


def read_share(settings: CloudSettings, name: str, size_bytes: int, digest: bytes, keys: DriveKeys) -> int:
    """Read a share of `size_bytes` bytes, compare it with its digest, and return its size.

    Raises: CloudCorrupt when it is shorter or has other bytes; otherwise as `Cloud.get_range`.
    """
    hasher = keys.share_hasher()
    for start in range(0, size_bytes, PIECE_BYTES):
        hasher.update(jobs.get_range(settings, name, start, min(PIECE_BYTES, size_bytes - start)))
    if not hmac.compare_digest(hasher.digest(), digest):
        raise CloudCorrupt("its bytes are not those that were stored", cloud=settings.name, name=name)
    return size_bytes

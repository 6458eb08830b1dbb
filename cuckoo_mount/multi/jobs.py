"""Jobs for worker processes that know what shares are called; the plain ones are in clouds/jobs.py.

Importable functions of picklable arguments, may be repeated, raise as clouds/jobs.py.
"""

from __future__ import annotations

from cuckoo_mount.clouds import jobs
from cuckoo_mount.clouds.base import CloudSettings
from cuckoo_mount.format import pack_share_name


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

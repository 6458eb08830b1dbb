"""`cuckoo cloud test`: an object that is stored, read and deleted on one cloud.

Used by roster.py.  Loop only.  The object has the name of a pack that is entered as begun, so that a crash leaves
nothing behind for long.
"""

from __future__ import annotations

import secrets
from typing import Final

from cuckoo_mount.clouds import jobs
from cuckoo_mount.format import ID_BYTES, pack_share_name
from cuckoo_mount.metadata.base import Metadata
from cuckoo_mount.multi.jobs import Trial, try_cloud
from cuckoo_mount.multi.multifs import MultiFS
from cuckoo_mount.packs.writer import PackWriter
from cuckoo_mount.types import CloudName

CONNECT_DEADLINE_S: Final = 30.0
TRIAL_BYTES: Final = 64 << 10
TRIAL_DEADLINE_S: Final = 120.0


async def try_listed(
    metadata: Metadata, multifs: MultiFS, writer: PackWriter, name: CloudName, drive_id: bytes
) -> Trial:
    """Store, read and delete an object on a cloud; return how that went.  Checkpoint.  Raises: CloudError."""
    await multifs.ask(name, jobs.capabilities, deadline_s=CONNECT_DEADLINE_S)
    pack_id = secrets.token_bytes(ID_BYTES)
    await metadata.begin_pack(pack_id)
    share = pack_share_name(drive_id, pack_id, 0)
    try:
        await metadata.make_durable()
        trial = await multifs.ask(name, try_cloud, share, TRIAL_BYTES, deadline_s=TRIAL_DEADLINE_S)
    except BaseException:  # cancellation, too
        writer.leave_intent(pack_id)
        raise
    if "delete" in {step.step for step in trial.steps}:
        await metadata.abandon_pack(pack_id)
    else:
        writer.leave_intent(pack_id)
    return trial

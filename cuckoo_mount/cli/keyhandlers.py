"""What `cuckoo key` asks of an open drive: two lines in the table of commands.py.

Used by commands.py.  Loop only.  Passphrases come in as arguments and go nowhere but into a key slot.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

from cuckoo_mount.errors import UsageError
from cuckoo_mount.fuse.control import Arguments
from cuckoo_mount.layers.keyslots import Passphrase

if TYPE_CHECKING:
    from cuckoo_mount.drive import Drive

log = logging.getLogger(__name__)


async def change_passphrase(drive: Drive, arguments: Arguments) -> Mapping[str, object]:
    """Set `passphrase`, and bring the new slot to the clouds; `proof` as in slots.py.

    Returns `missing`: what the clouds that did not take it answered; the drive tries again every minute.
    """
    passphrase, proof = arguments.get("passphrase"), arguments.get("proof")
    if not isinstance(passphrase, str) or not passphrase or not isinstance(proof, str):
        raise UsageError("passphrase and proof have to be texts")
    await drive.slots.change_passphrase(Passphrase(passphrase), proof)
    log.info("the passphrase was changed")
    return {"missing": await drive.roster.put_slots()}


async def recovery_key_shown(drive: Drive, arguments: Arguments) -> Mapping[str, object]:
    """Note that the user has seen the recovery key."""
    await drive.slots.note_recovery_key_shown()
    return {}

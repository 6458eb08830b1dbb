"""How a command or the daemon comes by the drive key: from the key file, else by the passphrase or the recovery key.

Used by daemon.py, operate.py and key.py, before any loop runs.  Blocks, perhaps for somebody who types.
"""

from __future__ import annotations

import sys
from contextlib import suppress

from cuckoo_mount.config import DriveConfig, DrivePaths, read_drive_key, shown
from cuckoo_mount.config.passphrase import TRIES, credential_file, read_passphrase
from cuckoo_mount.errors import ConfigurationError, UsageError, WrongKey
from cuckoo_mount.layers.keyslots import Passphrase
from cuckoo_mount.layers.recoverykey import parse_recovery_key
from cuckoo_mount.slots import OPEN_PASSPHRASE, stored_slots, unlock_store


def find_drive_key(config: DriveConfig, paths: DrivePaths, passphrase_file: str | None = None) -> bytes:
    """Return the drive key of a drive of this machine.

    Without a key file a passphrase opens it: from `passphrase_file` ("-": standard input), a systemd credential or, for
    a drive made with --ask, the terminal.  The recovery key may stand in its place.  A drive that is not encrypted has
    a passphrase that is known.
    Raises: ConfigurationError that says what to do, WrongKey, UsageError, MetadataError.
    """
    if paths.key_file.exists():
        return read_drive_key(paths.key_file)
    if not paths.metadata.exists():
        raise ConfigurationError(
            f"neither {shown(paths.key_file)} nor {shown(paths.metadata)} is here: the drive's key is in none of "
            "them; put one of the two back from a backup"
        )
    if not config.encrypted:
        with suppress(WrongKey):
            return unlock_store(paths.metadata, config.drive_id, OPEN_PASSPHRASE)
    given = passphrase_file is not None or credential_file(paths.name) is not None
    if not given and not config.ask:
        raise ConfigurationError(
            f"{shown(paths.key_file)} is missing; put its backup there, or mount with --passphrase-file FILE, "
            "which has the passphrase or the recovery key in it (- is standard input)"
        )
    if not stored_slots(paths.metadata):
        raise ConfigurationError(
            f"{shown(paths.key_file)} is missing and the drive has no key slots; put the file's backup there"
        )
    for _ in range(0 if given else TRIES - 1):
        try:
            return _unlock(config, paths, read_passphrase(paths.name, None))
        except WrongKey as error:
            print(error, file=sys.stderr)
    return _unlock(config, paths, read_passphrase(paths.name, passphrase_file))


def _unlock(config: DriveConfig, paths: DrivePaths, typed: Passphrase) -> bytes:
    try:
        return unlock_store(paths.metadata, config.drive_id, typed)
    except WrongKey:
        try:
            recovery_key = parse_recovery_key(typed.text)
        except UsageError:
            recovery_key = None
        if recovery_key is None:
            raise
    return unlock_store(paths.metadata, config.drive_id, recovery_key)

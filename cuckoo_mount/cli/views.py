"""An older epoch, mounted beside the drive: a drive of its own to this machine, with folders that go with it.

Used by daemon.py.  Blocks.
"""

from __future__ import annotations

import shutil

from attrs import evolve

from cuckoo_mount.config.paths import DrivePaths, drive_paths


def view_paths(paths: DrivePaths, epoch: int) -> DrivePaths:
    """Return where the view of an epoch keeps what it needs: named `<drive>.epoch<N>`, as commands call it.

    The settings and the key are the drive's.  Raises: UsageError (the drive's name is too long for that).
    """
    view = drive_paths(f"{paths.name}.epoch{epoch}")
    return evolve(view, config_file=paths.config_file, key_file=paths.key_file)


def forget_view(paths: DrivePaths) -> None:
    """Delete what an earlier view of that epoch left that was killed; the caller holds the lock."""
    for entry in paths.state.glob("metadata.sqlite*"):
        entry.unlink(missing_ok=True)
    shutil.rmtree(paths.cache, ignore_errors=True)


def clear_view(paths: DrivePaths) -> None:
    """Delete what a view kept, the lock that the caller holds included: all of it came from the clouds."""
    shutil.rmtree(paths.state, ignore_errors=True)
    shutil.rmtree(paths.cache, ignore_errors=True)

"""What has to be true before a drive can be mounted, each with a line that says what to do.

Used by daemon.py, before anything is started.  Blocks for the local machine only.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from cuckoo_mount.cli.background import Reporter
from cuckoo_mount.cli.common import drive_argument
from cuckoo_mount.cli.lock import DriveLock, LockHeld, LockHolder
from cuckoo_mount.cli.mounts import CuckooMount, MountBusy, is_dead, mount_at, unmount
from cuckoo_mount.config.paths import DrivePaths, shown
from cuckoo_mount.errors import ConfigurationError, UsageError

FUSE_DEVICE: Final = "/dev/fuse"
ENDING_DEADLINE_S: Final = 60.0


def check_fuse() -> None:
    """Raises: ConfigurationError when nothing can be mounted on this machine."""
    if not os.path.exists(FUSE_DEVICE):
        raise ConfigurationError(
            f"there is no {FUSE_DEVICE} here, so nothing can be mounted; as root: modprobe fuse "
            "(a container needs: --device /dev/fuse --cap-add SYS_ADMIN)"
        )
    if not os.access(FUSE_DEVICE, os.R_OK | os.W_OK):
        raise ConfigurationError(f"you may not open {FUSE_DEVICE}; as root: chmod 666 {FUSE_DEVICE}")


def clear_dead_mount(mountpoint: Path, reporter: Reporter) -> None:
    """Unmount what a daemon that died left at `mountpoint`, and say so.  Raises: ConfigurationError."""
    mount = mount_at(mountpoint)
    if mount is None or not is_dead(mount):
        return
    try:
        unmount(mountpoint)
    except MountBusy:
        unmount(mountpoint, lazy=True)
    reporter.say(f"{shown(mountpoint)} was still attached to a daemon that had died; it is unmounted now")


def check_mountpoint(mountpoint: Path) -> None:
    """Raises: UsageError or ConfigurationError if nothing can be mounted there."""
    mount = mount_at(mountpoint)
    if mount is not None:
        raise ConfigurationError(_already(mount))
    name = shown(mountpoint)
    try:
        with os.scandir(mountpoint) as entries:
            found = next(entries, None)
    except FileNotFoundError as error:
        raise UsageError(f"the mountpoint {name} does not exist; make it with: mkdir -p {name}") from error
    except NotADirectoryError as error:
        raise UsageError(f"the mountpoint {name} is no folder; choose an empty folder") from error
    except OSError as error:
        raise UsageError(
            f"the mountpoint {name} cannot be looked into: {error.strerror}; choose another one"
        ) from error
    if found is not None:
        raise UsageError(
            f"the mountpoint {name} is not empty (there is {shown(found.name)}): the drive would hide what is in it; "
            "choose an empty folder"
        )
    if not os.access(mountpoint, os.W_OK):
        raise UsageError(
            f"you may not write to the mountpoint {name}, so you may not mount there; choose your own folder"
        )


def _already(mount: CuckooMount) -> str:
    place, option = shown(mount.mountpoint), drive_argument(mount.drive)
    return f"drive {mount.drive!r} is already mounted at {place}; see: cuckoo status{option}"


@contextmanager
def hold_drive(paths: DrivePaths, reporter: Reporter) -> Iterator[DriveLock]:
    """Hold the drive's lock inside the `with`; a daemon that is only sending the rest is asked to leave it to us.

    Raises: ConfigurationError that says who has the drive, and where.
    """
    try:
        lock = DriveLock(paths.lock)
    except LockHeld as held:
        if held.holder is None or not held.holder.ending or not held.holder.pid:
            raise ConfigurationError(_who(paths, held.holder)) from held
        reporter.say(f"pid {held.holder.pid} is still sending what was written before; taking over from it")
        _end(held.holder.pid)
        try:
            lock = DriveLock(paths.lock)
        except LockHeld as still:
            raise ConfigurationError(_who(paths, still.holder)) from still
    try:
        yield lock
    finally:
        lock.close()


def _who(paths: DrivePaths, holder: LockHolder | None) -> str:
    if holder is None or not holder.pid:
        return f"drive {paths.name!r} is just being mounted by another process; see: cuckoo status --drive {paths.name}"
    if holder.command:
        return f"another command is at work on drive {paths.name!r} (pid {holder.pid}); try again when it has ended"
    where = f" at {shown(holder.mountpoint)}" if holder.mountpoint is not None else ""
    return (
        f"drive {paths.name!r} is already mounted{where} (pid {holder.pid}); "
        f"unmount it first: cuckoo umount --drive {paths.name}"
    )


def _end(pid: int) -> None:
    """Ask the process to end now and wait until it has; what it has not sent is safe on the local disk."""
    with suppress(ProcessLookupError, PermissionError):
        pidfd = os.pidfd_open(pid)
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGTERM)
            poller = select.poll()
            poller.register(pidfd, select.POLLIN)
            poller.poll(ENDING_DEADLINE_S * 1000)
        finally:
            os.close(pidfd)

"""Mounting: from a PartedFS to a mountpoint and back.

Used by the daemon.  pyfuse3 keeps one session per process in module globals, so there is one mount per process.
A programming error leaves the mountpoint attached: an empty folder in its place would make a mirror job delete the
data.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pyfuse3
import trio

from cuckoo_mount.errors import ConfigurationError
from cuckoo_mount.fuse.guard import Upcalls
from cuckoo_mount.fuse.operations import Operations
from cuckoo_mount.fuse.options import MountOptions
from cuckoo_mount.parted.partedfs import PartedFS

log = logging.getLogger(__name__)
MAX_TASKS: Final = 99
MAX_BACKGROUND: Final = 64
"""READs of the page cache and late WRITEs that the kernel may have under way together.  Its own limit is 12: so many
reads that wait for a cloud would hold back every write and fsync until their deadline."""
_CONGESTION: Final = 48
_CONNECTIONS: Final = Path("/sys/fs/fuse/connections")


async def serve_mount(
    filesystem: PartedFS,
    mountpoint: Path,
    *,
    drive_name: str,
    options: MountOptions,
    upcalls_to: Callable[[Upcalls], None] = lambda upcalls: None,
    ready: trio.Event,
) -> None:
    """Mount, set `ready` once the kernel may ask, and return when the file system was unmounted.

    Ends by umount(8), fusermount3 -u or `request_stop`.  Raises: ConfigurationError when it cannot be mounted; anything
    else is a bug of ours and leaves the mountpoint attached.
    """
    operations = Operations(filesystem, options)
    filesystem.access_times = options.access_times
    upcalls_to(operations.upcalls)
    flags = set(pyfuse3.default_options) | options.kernel | {f"fsname=cuckoo:{drive_name}", "subtype=cuckoo"}
    try:
        pyfuse3.init(operations, str(mountpoint), flags)
    except RuntimeError as error:
        raise ConfigurationError(
            f"{mountpoint} cannot be mounted ({error}); is fuse3 installed, and for -o allow_other, "
            "user_allow_other in /etc/fuse.conf?"
        ) from error
    unmount = False
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(operations.run_notifier)
            nursery.start_soon(operations.pusher.run)
            nursery.start_soon(_raise_background_limit, mountpoint)
            ready.set()
            await pyfuse3.main(max_tasks=MAX_TASKS)
            nursery.cancel_scope.cancel()
        unmount = True
    finally:
        pyfuse3.close(unmount=unmount)


async def _raise_background_limit(mountpoint: Path) -> None:
    """Let the kernel have more requests under way, where it offers that; the files belong to who mounted."""
    try:
        await trio.to_thread.run_sync(_write_limits, mountpoint, abandon_on_cancel=True)
    except OSError as error:
        log.info(
            "as root: mount -t fusectl none %s, else reads that wait may hold back writes (%s)", _CONNECTIONS, error
        )


def _write_limits(mountpoint: Path) -> None:
    connection = _CONNECTIONS / _connection_number(mountpoint)
    for name, value in (("max_background", MAX_BACKGROUND), ("congestion_threshold", _CONGESTION)):
        fd = os.open(connection / name, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, b"%d\n" % value)
        finally:
            os.close(fd)


def _connection_number(mountpoint: Path) -> str:
    """Return the number of the mount's connection.

    Not by stat(2): a thread that waits for the mount would keep a killed daemon from ending (cli/outside.py).
    Raises: OSError when it is not mounted (any more).
    """
    place = os.fsencode(mountpoint)
    for char in b"\\ \t\n":
        place = place.replace(bytes([char]), b"\\%03o" % char)
    for line in reversed(Path("/proc/self/mountinfo").read_bytes().splitlines()):
        fields = line.split(b" ")
        if fields[4] == place:
            return fields[2].partition(b":")[2].decode("ascii")
    raise FileNotFoundError(f"{mountpoint} is not in the table of mounts")


def request_stop() -> None:
    """End `serve_mount`: the file system is unmounted, lazily if somebody is still in it.  From the loop only."""
    pyfuse3.terminate()

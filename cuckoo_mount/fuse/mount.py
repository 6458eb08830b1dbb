"""Mounting: from a PartedFS to a mountpoint and back.

Used by the daemon.  pyfuse3 keeps one session per process in module globals, so there is one mount per process.
A programming error leaves the mountpoint attached: an empty folder in its place would make a mirror job delete the
data.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pyfuse3
import trio

from cuckoo_mount.cache.content import WAITING_READS_MAX
from cuckoo_mount.errors import ConfigurationError
from cuckoo_mount.fuse.guard import Upcalls
from cuckoo_mount.fuse.limits import raise_background_limit
from cuckoo_mount.fuse.operations import Operations
from cuckoo_mount.fuse.options import MountOptions
from cuckoo_mount.parted.partedfs import PartedFS

log = logging.getLogger(__name__)
MAX_TASKS: Final = 2 * WAITING_READS_MAX


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
            nursery.start_soon(raise_background_limit, mountpoint)
            ready.set()
            await pyfuse3.main(max_tasks=MAX_TASKS)
            nursery.cancel_scope.cancel()
        unmount = True
    finally:
        pyfuse3.close(unmount=unmount)


def request_stop() -> None:
    """End `serve_mount`: the file system is unmounted, lazily if somebody is still in it.  From the loop only."""
    pyfuse3.terminate()

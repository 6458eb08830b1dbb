"""From an opened drive to the actions on it, and in the end back.

Used by filesystem.py, in the loop's thread.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Final, Protocol

from cuckoo_mount.parted.partedfs import PartedFS
from cuckoo_mount.parted.tree import Caller
from cuckoo_mount.pyfs.actions import Actions

_STRICT_UMASK: Final = 0o077


class OpenedDrive(Protocol):
    """What a drive has to offer (`drive.Drive` does)."""

    @property
    def filesystem(self) -> PartedFS:
        """Its files."""

    async def send_all(self) -> None:
        """Return when everything written before is on clouds."""


@asynccontextmanager
async def serving(opening: Callable[[], AbstractAsyncContextManager[OpenedDrive]]) -> AsyncIterator[Actions]:
    """Enter what `opening` makes, act as this process's user, and close all files before leaving it."""
    async with opening() as drive:
        actions = Actions(drive.filesystem, Caller(os.getuid(), os.getgid()), _umask(), drive.send_all)
        try:
            yield actions
        finally:
            await actions.files.release_all()


def _umask() -> int:
    """Return this process's umask, without changing it for a moment as os.umask() would; in doubt a strict one."""
    with suppress(OSError, ValueError), open("/proc/self/status", encoding="utf-8", errors="replace") as status:
        for line in status:
            if line.startswith("Umask:"):
                return int(line.removeprefix("Umask:"), 8)
    return _STRICT_UMASK

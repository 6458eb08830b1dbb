"""What fsync waits for: this machine's disk, or the clouds; of the drive, and of files by `user.cuckoo.durability`.

Used by tree.py and partedfs.py.  Loop only.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import trio

from cuckoo_mount.durabilities import (
    CLOUD,
    DURABILITY_SETTING,
    DURABILITY_USED_SETTING,
    DURABILITY_XATTR,
    LOCAL,
    check_durability,
)
from cuckoo_mount.errors import DataTimeout, InvalidArgument, NoAttribute, UsageError
from cuckoo_mount.metadata.base import Metadata
from cuckoo_mount.types import Inode, InodeNo

WAITING_MAX: Final = 256
"""So many calls may wait for the clouds at once; together with the reads that wait they leave room for others."""


class Durability:
    """Knows what fsync of a file of one drive waits for.

    `to_clouds`: returns when all that was written before is durable on the clouds, names included; may be cancelled.
    """

    name: Final = DURABILITY_XATTR

    def __init__(self, metadata: Metadata, to_clouds: Callable[[], Awaitable[None]], *, deadline_s: float) -> None:
        self._metadata = metadata
        self._to_clouds = to_clouds
        self._deadline_s = deadline_s
        self._waiting = 0
        self.default = LOCAL
        self.is_used = False

    async def load(self) -> None:
        """Learn what the drive wants.  Raises: MetadataError."""
        self.default = await self._metadata.get_setting(DURABILITY_SETTING) or LOCAL
        self.is_used = await self._metadata.get_setting(DURABILITY_USED_SETTING) is not None

    async def set_default(self, text: str) -> None:
        """Let the drive want another durability from now on; durable when this returns.

        Raises: UsageError, MetadataError.
        """
        self.default = check_durability(text)
        await self._metadata.set_setting(DURABILITY_SETTING, text)
        await self._metadata.make_durable()

    def check(self, value: bytes) -> bytes:
        """Return the attribute's value.  Raises: InvalidArgument."""
        try:
            return check_durability(value.rstrip(b"\0\n").decode("ascii")).encode("ascii")
        except (UsageError, UnicodeDecodeError) as error:
            raise InvalidArgument(f"not a durability: {error}") from None

    async def before_change(self, inode: Inode, value: bytes | None) -> None:
        """See `Mark.before_change`."""
        if value is not None and not self.is_used:
            self.is_used = True
            await self._metadata.set_setting(DURABILITY_USED_SETTING, "1")

    async def synced(self, ino: InodeNo) -> None:
        """To be called when a file or directory is safe on this machine: wait for the clouds, too, if it wants that.

        Raises: DataTimeout (what was written stays queued), ReadOnly, MetadataError, OSError.
        """
        if await self._of(ino) != CLOUD:
            return
        if self._waiting >= WAITING_MAX:
            raise DataTimeout(f"{self._waiting} others wait for the clouds already; it is safe here and will be sent")
        self._waiting += 1
        try:
            with trio.move_on_after(self._deadline_s):
                await self._to_clouds()
                return
        finally:
            self._waiting -= 1
        raise DataTimeout(f"inode {ino} is not on the clouds after {self._deadline_s:g} s; it is safe here and queued")

    async def _of(self, ino: InodeNo) -> str:
        if self.is_used:
            try:
                return (await self._metadata.get_xattr(ino, DURABILITY_XATTR)).decode("ascii")
            except NoAttribute:
                pass
        return self.default

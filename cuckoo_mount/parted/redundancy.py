"""The redundancy that files and directories have of their own: `user.cuckoo.redundancy`.

Used by tree.py, as a mark.  Loop only, never waits for a cloud.  Stored packs follow a change of it
(packs/repacking.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from cuckoo_mount.errors import InvalidArgument, UsageError
from cuckoo_mount.metadata.base import Metadata
from cuckoo_mount.multi.policies import Policies
from cuckoo_mount.multi.redundancy import check_redundancy, format_policy, parse_policy
from cuckoo_mount.packs.repacking import ask_for_repacking, note_policy
from cuckoo_mount.types import REDUNDANCY_XATTR, Inode

_LONGEST: Final = 16


class Redundancy:
    """The redundancy of one drive's files, as a mark.  `clouds`: tells how many clouds take shares."""

    name: Final = REDUNDANCY_XATTR

    def __init__(self, metadata: Metadata, policies: Policies, clouds: Callable[[], int]) -> None:
        self._metadata = metadata
        self._policies = policies
        self._clouds = clouds

    @property
    def is_used(self) -> bool:
        """Whether any file or directory may have one of its own."""
        return not self._policies.is_uniform

    def check(self, value: bytes) -> bytes:
        """Return the attribute's value as it is kept: `1`, `2`, …, `K+M`.

        Raises: InvalidArgument for what is no redundancy, or could not even be stored with the clouds there are: that
        would hold up every epoch.
        """
        try:
            text = value[: _LONGEST + 1].rstrip(b"\0\n").decode("ascii")
            policy = parse_policy("1" if text == "1" else check_redundancy(text))
        except (UsageError, UnicodeDecodeError) as error:
            raise InvalidArgument(f"not a redundancy: {error}") from None
        if policy.data > self._clouds():
            raise InvalidArgument(f"redundancy {text} takes at least {policy.data} clouds")
        return format_policy(policy).encode("ascii")

    async def before_change(self, inode: Inode, value: bytes | None) -> None:
        """See `Mark.before_change`: packs that are stored follow."""
        own = (await self._metadata.redundancies([inode.ino])).get(inode.ino)
        if own == (None if value is None else value.decode("ascii")):
            return
        if value is not None:
            await note_policy(self._metadata, self._policies, value.decode("ascii"))
        if inode.chunk_count:
            await ask_for_repacking(self._metadata)

"""Extended attributes that mean something to the drive: checked, and inherited by what is made in a directory.

Used by tree.py.  Loop only, never waits for a cloud.  They are kept like any other attribute, so that copies and
backups that keep attributes keep them, too.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from typing import Protocol

from cuckoo_mount.errors import NoAttribute
from cuckoo_mount.metadata.base import Metadata
from cuckoo_mount.types import Inode, InodeNo


class Mark(Protocol):
    """One such attribute of one drive."""

    @property
    def name(self) -> bytes:
        """The attribute's name."""

    @property
    def is_used(self) -> bool:
        """Whether any file or directory may have it."""

    def check(self, value: bytes) -> bytes:
        """Return the value as it is kept.  Raises: InvalidArgument."""

    async def before_change(self, inode: Inode, value: bytes | None) -> None:
        """To be called right before the attribute of a node becomes `value`, as `check` returned it, or goes.

        No checkpoint in between.  Raises: MetadataError.
        """


class Marks:
    """All of them."""

    def __init__(self, metadata: Metadata, marks: Iterable[Mark]) -> None:
        self._metadata = metadata
        self._marks = {mark.name: mark for mark in marks}

    def get(self, name: bytes) -> Mark | None:
        """Return the mark that an attribute is, None if it is like any other."""
        return self._marks.get(name)

    async def inherited(self, directory: InodeNo, mode: int) -> dict[bytes, bytes]:
        """Return the attributes that a node of this mode gets when it is made in `directory`."""
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            return {}
        found: dict[bytes, bytes] = {}
        for mark in self._marks.values():
            if mark.is_used:
                try:
                    found[mark.name] = await self._metadata.get_xattr(directory, mark.name)
                except NoAttribute:
                    continue
        return found

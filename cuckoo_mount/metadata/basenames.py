"""The part of the protocol about names, nodes and their attributes; base.py has the rules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from cuckoo_mount.metadata.records import NewNode, Renamed
from cuckoo_mount.types import (
    DirectoryEntry,
    Inode,
    InodeChanges,
    InodeNo,
)


class NameMetadata(Protocol):
    """Names and nodes."""

    async def get_inode(self, ino: InodeNo) -> Inode:
        """Return the node.  Raises: StaleInode when there is none with that number (any more)."""

    async def lookup(self, parent: InodeNo, name: bytes) -> Inode:
        """Return the node called `name` in `parent` (never `.` or `..`).  Raises: NotFound, NotADirectory,
        StaleInode."""

    async def get_parent(self, ino: InodeNo) -> Inode:
        """Return the directory that directory `ino` lies in (the root's is itself).  Raises: NotFound, StaleInode."""

    async def list_directory(self, ino: InodeNo, after_cookie: int, limit: int) -> list[DirectoryEntry]:
        """Return up to `limit` entries with cookie > `after_cookie` in cookie order, with their nodes."""

    async def make_node(self, parent: InodeNo, name: bytes, node: NewNode) -> Inode:
        """Make a node (a directory gets nlink 2 and raises its parent's) and stamp the parent's mtime and ctime.

        Raises: AlreadyExists, NotFound (parent unlinked), NotADirectory, TooManyLinks.
        """

    async def add_link(self, ino: InodeNo, parent: InodeNo, name: bytes, now_ns: int) -> Inode:
        """Give a non-directory one more name.  Raises: AlreadyExists, NotPermitted (directory), TooManyLinks,
        NotFound."""

    async def remove_link(self, parent: InodeNo, name: bytes, now_ns: int) -> Inode:
        """Take a name from a non-directory; return the node as it is now: with nlink 0 it stays until `purge_inode`.

        Raises: NotFound, IsADirectory.
        """

    async def remove_directory(self, parent: InodeNo, name: bytes, now_ns: int) -> Inode:
        """Remove an empty directory; its node stays with nlink 0 until `purge_inode`.

        Raises: NotFound, NotADirectory, DirectoryNotEmpty.
        """

    async def rename(
        self,
        old_parent: InodeNo,
        old_name: bytes,
        new_parent: InodeNo,
        new_name: bytes,
        *,
        now_ns: int,
        no_replace: bool = False,
        exchange: bool = False,
    ) -> Renamed:
        """Move a name atomically, as rename(2): same node under both names is a no-op, a directory never into itself.

        Raises: NotFound, AlreadyExists (no_replace), NotADirectory, IsADirectory, DirectoryNotEmpty, InvalidArgument
        (a directory into its own subtree), TooManyLinks.
        """

    async def change_inode(self, ino: InodeNo, changes: InodeChanges) -> Inode:
        """Set attributes exactly as given and return the node as it is now.  Raises: StaleInode."""

    async def read_symlink(self, ino: InodeNo) -> bytes:
        """Return a symbolic link's target.  Raises: InvalidArgument when it is none, StaleInode."""

    async def get_xattr(self, ino: InodeNo, name: bytes) -> bytes:
        """Return an extended attribute.  Raises: NoAttribute."""

    async def list_xattrs(self, ino: InodeNo) -> list[bytes]:
        """Return the names of a node's extended attributes."""

    async def set_xattrs(self, ino: InodeNo, values: Mapping[bytes, bytes | None], changes: InodeChanges) -> Inode:
        """Set (or with None remove) attributes together with `changes` (ctime, mode after an ACL), atomically.

        Raises: NoAttribute when one to remove is not there, StaleInode.
        """

    async def orphans(self) -> list[InodeNo]:
        """Return every node with nlink 0: still open somewhere, or left by a crash.

        Not one that has a name all the same: its number of names is wrong, and fsck sets it right.
        """

    async def purge_inode(self, ino: InodeNo) -> None:
        """Remove a node with nlink 0 and all that belongs to it: its versions die when nothing else names them."""

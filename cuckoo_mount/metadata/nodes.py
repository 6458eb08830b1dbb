"""Nodes by number: attributes, symbolic links, extended attributes, orphans.

Used by store.py, and by names.py and content.py, which build on `Nodes`.  Runs in the loop, never waits.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from typing import Final

from cuckoo_mount.errors import InvalidArgument, NoAttribute, StaleInode
from cuckoo_mount.metadata.database import Part
from cuckoo_mount.types import Inode, InodeChanges, InodeNo

INODE_COLUMNS: Final = "ino, mode, uid, gid, rdev, nlink, size, atime, mtime, ctime, btime, chunks"
"""In the order of `Inode`'s fields."""
_ORPHANS: Final = "SELECT ino FROM inode WHERE nlink = 0 AND ino NOT IN (SELECT ino FROM dentry) ORDER BY ino"
GET_INODE: Final = f"SELECT {INODE_COLUMNS} FROM inode WHERE ino = ?"


def stale(ino: InodeNo) -> StaleInode:
    """Return the error for a node that does not exist."""
    return StaleInode(f"there is no inode {ino}")


def assignments(changes: InodeChanges) -> tuple[str, tuple[int, ...]]:
    """Return `column = ?, …` and the values for what `changes` sets; both empty if nothing."""
    pairs = (
        ("mode", changes.mode),
        ("uid", changes.uid),
        ("gid", changes.gid),
        ("size", changes.size_bytes),
        ("atime", changes.atime_ns),
        ("mtime", changes.mtime_ns),
        ("ctime", changes.ctime_ns),
    )
    given = [(column, value) for column, value in pairs if value is not None]
    return ", ".join([f"{column} = ?" for column, _ in given]), tuple([value for _, value in given])


class Nodes(Part):
    """See `Metadata` for every public method."""

    async def get_inode(self, ino: InodeNo) -> Inode:
        return self._inode(ino)

    async def change_inode(self, ino: InodeNo, changes: InodeChanges) -> Inode:
        self._db.ready()
        return self._change(ino, changes)

    async def read_symlink(self, ino: InodeNo) -> bytes:
        row = self._db.row("SELECT target FROM symlink WHERE ino = ?", (ino,))
        if row is None:
            self._inode(ino)
            raise InvalidArgument(f"inode {ino} is no symbolic link")
        target: bytes = row[0]
        return target

    async def get_xattr(self, ino: InodeNo, name: bytes) -> bytes:
        row = self._db.row("SELECT value FROM xattr WHERE ino = ? AND name = ?", (ino, name))
        if row is None:
            raise NoAttribute(f"inode {ino} has no attribute {name!r}")
        value: bytes = row[0]
        return value

    async def list_xattrs(self, ino: InodeNo) -> list[bytes]:
        return [name for (name,) in self._db.rows("SELECT name FROM xattr WHERE ino = ? ORDER BY name", (ino,))]

    async def set_xattrs(self, ino: InodeNo, values: Mapping[bytes, bytes | None], changes: InodeChanges) -> Inode:
        self._inode(ino)
        with self._db.change:
            for name, value in values.items():
                if value is not None:
                    self._put_xattr(ino, name, value)
                elif not self._db.run("DELETE FROM xattr WHERE ino = ? AND name = ?", (ino, name)):
                    raise NoAttribute(f"inode {ino} has no attribute {name!r}")
            return self._change(ino, changes)

    async def orphans(self) -> list[InodeNo]:
        return [InodeNo(ino) for (ino,) in self._db.rows(_ORPHANS)]

    def _inode(self, ino: InodeNo) -> Inode:
        """Return the node.  Raises: StaleInode."""
        row = self._db.row(GET_INODE, (ino,))
        if row is None:
            raise stale(ino)
        return Inode(*row)

    def _change(self, ino: InodeNo, changes: InodeChanges, new_chunks: int = 0) -> Inode:
        """Set attributes and add `new_chunks` to the number of chunk rows, in one statement.  Raises: StaleInode."""
        sets, values = assignments(changes)
        if new_chunks:
            sets = f"{sets}, chunks = chunks + ?" if sets else "chunks = chunks + ?"
            values = (*values, new_chunks)
        if not sets:
            return self._inode(ino)
        row = self._db.row(f"UPDATE inode SET {sets} WHERE ino = ? RETURNING {INODE_COLUMNS}", (*values, ino))
        if row is None:
            raise stale(ino)
        return Inode(*row)

    def _put_xattr(self, ino: InodeNo, name: bytes, value: bytes) -> None:
        self._db.run(
            "INSERT INTO xattr (ino, name, value) VALUES (?, ?, ?)"
            " ON CONFLICT (ino, name) DO UPDATE SET value = excluded.value",
            (ino, name, value),
        )


def is_directory(mode: int) -> bool:
    """Return whether `mode` is that of a directory."""
    return stat.S_ISDIR(mode)

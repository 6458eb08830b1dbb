"""Names in directories: look up, list, make, link, remove.  Moving them is in renames.py.

Used by store.py.  Runs in the loop, never waits.  Keeps I-15: nlink of a node = names that refer to it, of a directory
2 + subdirectories; `inode.parent` names the directory a directory lies in.
"""

from __future__ import annotations

import stat
from typing import Final

import apsw

from cuckoo_mount.errors import (
    AlreadyExists,
    DirectoryNotEmpty,
    IsADirectory,
    NotADirectory,
    NotFound,
    NotPermitted,
    TooManyLinks,
)
from cuckoo_mount.metadata.nodes import GET_INODE, INODE_COLUMNS, Nodes, is_directory, stale
from cuckoo_mount.metadata.records import NewNode
from cuckoo_mount.types import LINK_MAX, ROOT_INODE, DirectoryEntry, Inode, InodeNo

_QUALIFIED: Final = ", ".join(f"i.{column}" for column in INODE_COLUMNS.split(", "))
_LOOKUP: Final = f"SELECT {_QUALIFIED} FROM dentry d JOIN inode i ON i.ino = d.ino WHERE d.parent = ? AND d.name = ?"
_LIST: Final = (
    f"SELECT d.cookie, d.name, {_QUALIFIED} FROM dentry d JOIN inode i ON i.ino = d.ino"
    " WHERE d.parent = ? AND d.cookie > ? ORDER BY d.cookie LIMIT ?"
)
INSERT_INODE: Final = f"INSERT INTO inode ({INODE_COLUMNS}, parent) VALUES ({', '.join('?' * 13)})"


class Names(Nodes):
    """See `Metadata` for every public method."""

    async def lookup(self, parent: InodeNo, name: bytes) -> Inode:
        row = self._db.row(_LOOKUP, (parent, name))
        if row is None:
            self._directory(parent)
            raise NotFound(f"no {name!r} in directory {parent}")
        return Inode(*row)

    async def get_parent(self, ino: InodeNo) -> Inode:
        parent = self._parent_number(ino)
        if parent == 0:
            self._directory(ino)
            raise NotFound(f"directory {ino} was removed")
        return self._inode(parent)

    async def list_directory(self, ino: InodeNo, after_cookie: int, limit: int) -> list[DirectoryEntry]:
        rows = self._db.rows(_LIST, (ino, after_cookie, limit))
        if not rows:
            self._directory(ino)
        return [DirectoryEntry(row[0], row[1], Inode(*row[2:])) for row in rows]

    async def make_node(self, parent: InodeNo, name: bytes, node: NewNode) -> Inode:
        links = self._live_directory(parent)
        directory = is_directory(node.mode)
        if directory and links >= LINK_MAX:
            raise TooManyLinks(f"directory {parent} has {links} links")
        with self._db.change:
            return self._make_node(parent, name, node)

    async def add_link(self, ino: InodeNo, parent: InodeNo, name: bytes, now_ns: int) -> Inode:
        node = self._inode(ino)
        if is_directory(node.mode):
            raise NotPermitted("a directory has one name")
        if node.nlink >= LINK_MAX:
            raise TooManyLinks(f"inode {ino} has {node.nlink} links")
        if node.nlink == 0:
            # linkat(2) refuses a file whose last name is gone, but for O_TMPFILE, which the drive does not offer.
            raise NotFound(f"inode {ino} has no name any more")
        self._live_directory(parent)
        with self._db.change:
            self._put_name(parent, name, ino)
            self._stamp(parent, now_ns)
            return self._add_links(ino, 1, now_ns)

    async def remove_link(self, parent: InodeNo, name: bytes, now_ns: int) -> Inode:
        node = await self.lookup(parent, name)
        if is_directory(node.mode):
            raise IsADirectory(f"{name!r} is a directory")
        with self._db.change:
            self._remove_name(parent, name)
            self._stamp(parent, now_ns)
            return self._add_links(node.ino, -1, now_ns)

    async def remove_directory(self, parent: InodeNo, name: bytes, now_ns: int) -> Inode:
        node = await self.lookup(parent, name)
        if not is_directory(node.mode):
            raise NotADirectory(f"{name!r} is no directory")
        self._require_empty(node.ino)
        with self._db.change:
            self._remove_name(parent, name)
            self._stamp(parent, now_ns, -1)
            return self._bury_directory(node.ino, now_ns)

    # -- shared with renames.py and repairs.py; all but the checks are part of the caller's change --

    def _make_node(self, parent: InodeNo, name: bytes, node: NewNode) -> Inode:
        """Make a node and its name.  Raises: AlreadyExists."""
        directory = is_directory(node.mode)
        ino = InodeNo(self._db.take("inode"))
        self._put_name(parent, name, ino)
        size, links, now = len(node.target or b""), 2 if directory else 1, node.now_ns
        row = (ino, node.mode, node.uid, node.gid, node.rdev, links, size, now, now, now, now, 0)
        self._db.run(INSERT_INODE, (*row, parent if directory else 0))
        if node.target is not None:
            self._db.run("INSERT INTO symlink (ino, target) VALUES (?, ?)", (ino, node.target))
        for key, value in node.xattrs.items():
            self._put_xattr(ino, key, value)
        self._stamp(parent, now, 1 if directory else 0)
        self._db.counters.inodes += 1
        return Inode(*row)

    def _directory(self, ino: InodeNo) -> int:
        """Return the nlink of a directory, 0 if it was removed.  Raises: NotADirectory, StaleInode."""
        row = self._db.row("SELECT mode, nlink FROM inode WHERE ino = ?", (ino,))
        if row is None:
            raise stale(ino)
        mode, links = row
        if not stat.S_ISDIR(mode):
            raise NotADirectory(f"inode {ino} is no directory")
        return int(links)

    def _live_directory(self, ino: InodeNo) -> int:
        """Return the nlink of a directory that may get entries.  Raises: NotFound if removed, else as `_directory`."""
        links = self._directory(ino)
        if links == 0:
            raise NotFound(f"directory {ino} was removed")
        return links

    def _parent_number(self, ino: InodeNo) -> InodeNo:
        """Return the directory that a directory lies in, 0 if removed and for other nodes.  Raises: StaleInode."""
        row = self._db.row("SELECT parent FROM inode WHERE ino = ?", (ino,))
        if row is None:
            raise stale(ino)
        return InodeNo(row[0])

    def _is_within(self, ino: InodeNo, ancestor: InodeNo) -> bool:
        """Return whether directory `ino` is `ancestor` or lies anywhere below it."""
        while ino not in (ancestor, ROOT_INODE, 0):
            ino = self._parent_number(ino)
        return ino == ancestor

    def _require_empty(self, ino: InodeNo) -> None:
        if self._db.row("SELECT 1 FROM dentry WHERE parent = ? LIMIT 1", (ino,)) is not None:
            raise DirectoryNotEmpty(f"directory {ino} is not empty")

    def _put_name(self, parent: InodeNo, name: bytes, ino: InodeNo) -> None:
        """Enter a name with a new cookie.  Raises: AlreadyExists."""
        try:
            self._db.run(
                "INSERT INTO dentry (parent, name, ino, cookie) VALUES (?, ?, ?, ?)",
                (parent, name, ino, self._db.take("cookie")),
            )
        except apsw.ConstraintError:
            # Looking first would cost every create a statement; this one has changed nothing.
            raise AlreadyExists(f"{name!r} exists in directory {parent}") from None

    def _remove_name(self, parent: InodeNo, name: bytes) -> None:
        self._db.run("DELETE FROM dentry WHERE parent = ? AND name = ?", (parent, name))

    def _stamp(self, ino: InodeNo, now_ns: int, links: int = 0) -> None:
        """Set a directory's mtime and ctime; add `links` to its nlink."""
        if links:
            sql = "UPDATE inode SET mtime = ?, ctime = ?, nlink = nlink + ? WHERE ino = ?"
            self._db.run(sql, (now_ns, now_ns, links, ino))
        else:
            self._db.run("UPDATE inode SET mtime = ?, ctime = ? WHERE ino = ?", (now_ns, now_ns, ino))

    def _add_links(self, ino: InodeNo, links: int, now_ns: int) -> Inode:
        """Add `links` to a node's nlink, set its ctime, return it."""
        self._db.run("UPDATE inode SET nlink = nlink + ?, ctime = ? WHERE ino = ?", (links, now_ns, ino))
        return self._inode(ino)

    def _bury_directory(self, ino: InodeNo, now_ns: int) -> Inode:
        """Make an empty directory without a name an orphan; return it."""
        self._db.run("UPDATE inode SET nlink = 0, parent = 0, ctime = ? WHERE ino = ?", (now_ns, ino))
        row = self._db.row(GET_INODE, (ino,))
        assert row is not None
        return Inode(*row)

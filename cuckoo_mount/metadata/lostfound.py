"""`/lost+found`: where fsck puts what has no place any more, and files with damaged chunks.

Used by repairs.py, within its changes.  Runs in the loop, never waits.
"""

from __future__ import annotations

import stat
from collections.abc import Sequence
from typing import Final

from cuckoo_mount.metadata.names import Names
from cuckoo_mount.metadata.nodes import is_directory
from cuckoo_mount.metadata.records import DamagedName, NewNode, Repaired
from cuckoo_mount.types import NAME_MAX_BYTES, ROOT_INODE, InodeNo

LOST_FOUND: Final = b"lost+found"
_MODE: Final = stat.S_IFDIR | 0o700
_SUFFIX_ROOM: Final = 12
"""Bytes kept for what makes a name unique."""


def readable_name(path: bytes) -> bytes:
    """Return a name that shows where a file was: its path with `_` for `/`; of a long one the end."""
    return path.strip(b"/").replace(b"/", b"_")[-(NAME_MAX_BYTES - _SUFFIX_ROOM) :]


class LostFound(Names):
    """See `Metadata` for the public method."""

    async def set_aside(self, names: Sequence[DamagedName], now_ns: int) -> Repaired:
        entries: list[tuple[InodeNo, bytes]] = []
        nodes: list[InodeNo] = []
        moved: list[tuple[bytes, bytes]] = []
        with self._db.change:
            for name in names:
                if self._names_now(name.parent, name.name) != name.ino:
                    continue
                folder = self._lost_found(now_ns)
                if name.parent == folder:
                    continue
                new = self._free_name(folder, readable_name(name.path))
                self._remove_name(name.parent, name.name)
                self._put_name(folder, new, name.ino)
                self._stamp(name.parent, now_ns)
                self._stamp(folder, now_ns)
                entries += [(name.parent, name.name), (folder, new)]
                nodes += [name.parent, folder, name.ino]
                moved.append((name.path, self._lost_found_path() + b"/" + new))
        if moved:
            entries.append((ROOT_INODE, self._lost_found_path()[1:]))
        return Repaired(len(moved), tuple(entries), tuple(dict.fromkeys(nodes)), tuple(moved))

    # -- for repairs.py; part of the caller's change --

    def _lost_found(self, now_ns: int) -> InodeNo:
        """Return the directory, made if it is not there."""
        name = self._lost_found_path()[1:]
        ino = self._names_now(ROOT_INODE, name)
        if ino is not None:
            return InodeNo(ino)
        root = self._inode(ROOT_INODE)
        node = NewNode(mode=_MODE, uid=root.uid, gid=root.gid, now_ns=now_ns)
        return self._make_node(ROOT_INODE, name, node).ino

    def _lost_found_path(self) -> bytes:
        """Return its path: another name where somebody has something else of that name."""
        number = 0
        while True:
            name = LOST_FOUND if not number else LOST_FOUND + b"~%d" % number
            ino = self._names_now(ROOT_INODE, name)
            row = None if ino is None else self._db.row("SELECT mode FROM inode WHERE ino = ?", (ino,))
            if ino is None or (row is not None and is_directory(row[0])):
                return b"/" + name
            number += 1

    def _free_name(self, folder: InodeNo, wanted: bytes) -> bytes:
        number, name = 0, wanted
        while self._names_now(folder, name) is not None:
            number += 1
            name = wanted + b"~%d" % number
        return name

    def _names_now(self, parent: int, name: bytes) -> int | None:
        """Return the node that a name refers to, whether it exists or not; None: there is no such name."""
        row = self._db.row("SELECT ino FROM dentry WHERE parent = ? AND name = ?", (parent, name))
        return None if row is None else int(row[0])

"""rename(2) in all its cases: move, replace, exchange.

Used by store.py.  Runs in the loop, never waits.  The order of the checks is Linux's (as rename(2) tells it, and as
tried on ext4), so that programs see the errno they know.  Stickiness and permissions are the kernel's.
"""

from __future__ import annotations

from attrs import frozen

from cuckoo_mount.errors import (
    AlreadyExists,
    DirectoryNotEmpty,
    FileSystemError,
    InvalidArgument,
    IsADirectory,
    NotADirectory,
    NotFound,
    TooManyLinks,
)
from cuckoo_mount.metadata.names import Names
from cuckoo_mount.metadata.nodes import is_directory
from cuckoo_mount.metadata.records import Renamed
from cuckoo_mount.types import LINK_MAX, Inode, InodeNo


@frozen(slots=True)
class _Move:
    """What rename was asked: `source` is called `old_name` in `old_parent`, `target` holds the new name or is None."""

    source: Inode
    old_parent: InodeNo
    old_name: bytes
    target: Inode | None
    new_parent: InodeNo
    new_name: bytes
    now_ns: int


class Renames(Names):
    """See `Metadata` for every public method."""

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
        if no_replace and exchange:
            raise InvalidArgument("an exchange needs both names")
        source = await self.lookup(old_parent, old_name)
        self._live_directory(new_parent)
        target = await self._target(new_parent, new_name)
        if no_replace and target is not None:
            raise AlreadyExists(f"{new_name!r} exists in directory {new_parent}")
        move = _Move(source, old_parent, old_name, target, new_parent, new_name, now_ns)
        if exchange:
            if target is None:
                raise NotFound(f"no {new_name!r} in directory {new_parent}")
            return self._exchange(move, target)
        self._refuse_cycle(source, new_parent, InvalidArgument("a directory cannot move into itself"))
        if target is not None:
            self._refuse_cycle(target, old_parent, DirectoryNotEmpty(f"{new_name!r} is not empty"))
            if target.ino == source.ino:
                return Renamed(source, None)
            self._require_replaceable(source, target)
        return self._move(move)

    async def _target(self, parent: InodeNo, name: bytes) -> Inode | None:
        try:
            return await self.lookup(parent, name)
        except NotFound:
            return None

    def _refuse_cycle(self, node: Inode, parent: InodeNo, error: FileSystemError) -> None:
        """Raise `error` if `node` is a directory and `parent` is it or lies below it."""
        if is_directory(node.mode) and self._is_within(parent, node.ino):
            raise error

    def _require_replaceable(self, source: Inode, target: Inode) -> None:
        if is_directory(source.mode):
            if not is_directory(target.mode):
                raise NotADirectory("a directory replaces a directory only")
            self._require_empty(target.ino)
        elif is_directory(target.mode):
            raise IsADirectory("only a directory replaces a directory")

    def _require_room(self, parent: InodeNo, links: int) -> None:
        """Raise TooManyLinks if `links` more subdirectories are too many for `parent`."""
        if links > 0 and self._directory(parent) + links > LINK_MAX:
            raise TooManyLinks(f"directory {parent} has {LINK_MAX} links")

    def _move(self, move: _Move) -> Renamed:
        source, target = move.source, move.target
        directory = is_directory(source.mode)
        gained = 1 if directory else 0
        lost = 1 if target is not None and is_directory(target.mode) else 0
        same = move.old_parent == move.new_parent
        if not same:
            self._require_room(move.new_parent, gained - lost)
        with self._db.change:
            self._remove_name(move.old_parent, move.old_name)
            if target is not None:
                self._remove_name(move.new_parent, move.new_name)
            self._put_name(move.new_parent, move.new_name, source.ino)
            if same:
                self._stamp(move.new_parent, move.now_ns, -lost)
            else:
                self._stamp(move.old_parent, move.now_ns, -gained)
                self._stamp(move.new_parent, move.now_ns, gained - lost)
            moved = self._settle(source, move.new_parent, move.now_ns)
            if target is None:
                return Renamed(moved, None)
            if lost:
                return Renamed(moved, self._bury_directory(target.ino, move.now_ns))
            return Renamed(moved, self._add_links(target.ino, -1, move.now_ns))

    def _exchange(self, move: _Move, target: Inode) -> Renamed:
        source = move.source
        self._refuse_cycle(source, move.new_parent, InvalidArgument("a directory cannot move into itself"))
        self._refuse_cycle(target, move.old_parent, InvalidArgument("a directory cannot move into itself"))
        if source.ino == target.ino:
            return Renamed(source, None)
        gained = int(is_directory(source.mode)) - int(is_directory(target.mode))
        same = move.old_parent == move.new_parent
        if not same:
            self._require_room(move.new_parent, gained)
            self._require_room(move.old_parent, -gained)
        with self._db.change:
            for parent, name, node in (
                (move.old_parent, move.old_name, target),
                (move.new_parent, move.new_name, source),
            ):
                self._remove_name(parent, name)
                self._put_name(parent, name, node.ino)
            if same:
                self._stamp(move.new_parent, move.now_ns)
            else:
                self._stamp(move.old_parent, move.now_ns, -gained)
                self._stamp(move.new_parent, move.now_ns, gained)
            moved = self._settle(source, move.new_parent, move.now_ns)
            return Renamed(moved, self._settle(target, move.old_parent, move.now_ns))

    def _settle(self, node: Inode, parent: InodeNo, now_ns: int) -> Inode:
        """Set the ctime of a node that was moved to `parent`, and, of a directory, where it lies; return it."""
        if is_directory(node.mode):
            self._db.run("UPDATE inode SET ctime = ?, parent = ? WHERE ino = ?", (now_ns, parent, node.ino))
        else:
            self._db.run("UPDATE inode SET ctime = ? WHERE ino = ?", (now_ns, node.ino))
        return self._inode(node.ino)

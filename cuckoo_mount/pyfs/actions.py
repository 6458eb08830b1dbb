"""What a PyFilesystem does with paths, as async functions over PartedFS.

Used by filesystem.py, through the loop's thread.  Loop only.  Nothing here waits for a cloud.  Each function that takes
names raises NotFound where they lead to nothing.
Whoever has the drive's key is its owner: permissions are kept, and not asked.
The metadata answers without a checkpoint, so what may take many steps makes its own.
"""

from __future__ import annotations

import stat
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from cuckoo_mount.errors import (
    AlreadyExists,
    DirectoryNotEmpty,
    IsADirectory,
    NotADirectory,
    NotFound,
)
from cuckoo_mount.parted.partedfs import PartedFS
from cuckoo_mount.parted.tree import AttributeRequest, Caller
from cuckoo_mount.pyfs.info import Seen
from cuckoo_mount.pyfs.openfiles import OpenFiles
from cuckoo_mount.pyfs.resolving import Names, Spot, resolve, there
from cuckoo_mount.types import DirectoryEntry, InodeNo

BATCH: Final = 256
_BEFORE_ALL: Final = 2
"""The cookie of `..`, which all others are behind."""


class Actions:
    """The actions on one drive.

    `umask`: what new files and directories are not to have.  `send_all`: returns when all is on the clouds.
    """

    def __init__(
        self, filesystem: PartedFS, caller: Caller, umask: int, send_all: Callable[[], Awaitable[None]]
    ) -> None:
        self.send_all: Final = send_all
        self.files: Final = OpenFiles(filesystem, caller, umask)
        self._tree = filesystem.tree
        self._caller = caller
        self._umask = umask

    async def look(self, names: Names) -> Seen:
        """Return the node a path leads to, with what the last name itself is."""
        spot = await resolve(self._tree, names, follow=False)
        own = there(spot)
        if not stat.S_ISLNK(own.mode):
            return Seen(own, own)
        target = await self._tree.readlink(own.ino)
        return Seen(there(await resolve(self._tree, names, follow=True)), own, target)

    async def spot(self, names: Names) -> Spot:
        """Return where a path leads, without following its last name."""
        spot = await resolve(self._tree, names, follow=False)
        there(spot)
        return spot

    async def directory(self, names: Names) -> InodeNo:
        """Return the number of the directory a path leads to.  Raises: NotADirectory."""
        inode = there(await resolve(self._tree, names, follow=True))
        if not stat.S_ISDIR(inode.mode):
            raise NotADirectory("no directory")
        return inode.ino

    async def names(self, names: Names) -> list[bytes]:
        """Return the names in a directory, in the order they were made.  Raises: NotADirectory."""
        ino, found, cookie = await self.directory(names), list[bytes](), _BEFORE_ALL
        while entries := await self._entries(ino, cookie):
            found += [entry.name for entry in entries]
            cookie = entries[-1].cookie
        return found

    async def scan(self, ino: InodeNo, after_cookie: int) -> list[tuple[int, bytes, Seen]]:
        """Return (cookie, name, node) of the next names in a directory; links are not followed.  Start with 0."""
        found = []
        for entry in await self._entries(ino, max(after_cookie, _BEFORE_ALL)):
            own = entry.inode
            target = await self._tree.readlink(own.ino) if stat.S_ISLNK(own.mode) else None
            found.append((entry.cookie, entry.name, Seen(own, own, target)))
        return found

    async def _entries(self, ino: InodeNo, after_cookie: int) -> list[DirectoryEntry]:
        await trio.lowlevel.checkpoint()
        return await self._tree.entries(ino, after_cookie, BATCH)

    async def make_directory(self, names: Names, mode: int) -> None:
        """Make a directory.  Raises: AlreadyExists."""
        spot = await resolve(self._tree, names, follow=False)
        if spot.inode is not None:
            raise AlreadyExists("it exists")
        mode = stat.S_IFDIR | stat.S_IMODE(mode) & ~self._umask
        await self._tree.make(spot.parent, spot.name, mode, self._caller)

    async def remove_file(self, names: Names) -> None:
        """Take a name from what is no directory; a symbolic link goes itself.  Raises: IsADirectory."""
        spot = await self.spot(names)
        if stat.S_ISDIR(there(spot).mode):
            raise IsADirectory("a directory")
        await self._tree.unlink(spot.parent, spot.name)

    async def remove_directory(self, names: Names) -> None:
        """Remove an empty directory that is not the root.  Raises: NotADirectory, DirectoryNotEmpty."""
        spot = await self.spot(names)
        if not stat.S_ISDIR(there(spot).mode):
            raise NotADirectory("no directory")
        await self._tree.rmdir(spot.parent, spot.name)

    async def remove_tree(self, names: Names) -> None:
        """Remove a directory with all that is in it, of the root only that; follows no link.  Raises: NotADirectory."""
        spot = await self.spot(names)
        top = there(spot)
        if not stat.S_ISDIR(top.mode):
            raise NotADirectory("no directory")
        left = [(spot.parent, spot.name, top.ino)]
        while left:
            parent, name, ino = left[-1]
            entries = await self._entries(ino, _BEFORE_ALL)
            for entry in entries:
                if stat.S_ISDIR(entry.inode.mode):
                    left.append((ino, entry.name, entry.inode.ino))
                else:
                    await self._tree.unlink(ino, entry.name)
            if not entries:
                left.pop()
                if name:
                    await self._tree.rmdir(parent, name)

    async def set_attributes(self, names: Names, request: AttributeRequest) -> None:
        """Change what a path leads to."""
        inode = there(await resolve(self._tree, names, follow=True))
        if request != AttributeRequest():
            await self._tree.set_attributes(inode.ino, request)

    async def move_file(self, source: Spot, names: Names, *, overwrite: bool) -> None:
        """Rename `source` atomically.  Raises: AlreadyExists, IsADirectory; NotFound for the new place."""
        target = await resolve(self._tree, names, follow=False)
        if target.inode is not None and not overwrite:
            raise AlreadyExists("it exists")
        if target.inode is not None and stat.S_ISDIR(target.inode.mode):
            raise IsADirectory("a directory")
        if (source.parent, source.name) != (target.parent, target.name):
            await self._put(source.parent, source.name, target.parent, target.name, no_replace=not overwrite)

    async def move_directory(self, source: Spot, names: Names, *, create: bool) -> None:
        """Rename directory `source`, or, where there is one with something in it, move into that what `source` has.

        Raises: NotFound (there is none and `create` is false), NotADirectory, IsADirectory, InvalidArgument (into
        itself); what has been moved into a full directory before an error stays there.
        """
        target = await resolve(self._tree, names, follow=False)
        if target.inode is None and not create:
            raise NotFound("it does not exist")
        if not stat.S_ISDIR(there(source).mode):
            raise NotADirectory("no directory")
        if target.inode is not None and not stat.S_ISDIR(target.inode.mode):
            raise NotADirectory("no directory")
        if target.inode is not None and target.inode.ino == there(source).ino:
            return
        if source.name and target.name:
            try:
                await self._put(source.parent, source.name, target.parent, target.name)
            except DirectoryNotEmpty:
                pass
            else:
                return
        await self._merge(source, there(target).ino)

    async def _merge(self, source: Spot, target: InodeNo) -> None:
        left = [(source.parent, source.name, there(source).ino, target)]
        while left:
            parent, name, ino, into = left[-1]
            entries = await self._entries(ino, _BEFORE_ALL)
            for entry in entries:
                try:
                    await self._put(ino, entry.name, into, entry.name)
                except DirectoryNotEmpty:
                    inner = await self._tree.lookup(into, entry.name)
                    left.append((ino, entry.name, entry.inode.ino, inner.ino))
            if not entries:
                left.pop()
                if name:
                    await self._tree.rmdir(parent, name)

    async def _put(
        self, parent: InodeNo, name: bytes, new_parent: InodeNo, new_name: bytes, *, no_replace: bool = False
    ) -> None:
        await self._tree.rename(parent, name, new_parent, new_name, no_replace=no_replace)
        # rename(2) does nothing between two names of one file; who moves wants the old one to go.
        try:
            left = await self._tree.lookup(parent, name)
        except NotFound:
            return
        if left.ino == (await self._tree.lookup(new_parent, new_name)).ino:
            await self._tree.unlink(parent, name)

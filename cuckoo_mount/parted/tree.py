"""The namespace: names, nodes, attributes, extended attributes, over the metadata.

Used by partedfs.py and pyfs.py.  Loop only; never waits for a cloud.  Permissions are the caller's job (the kernel's,
with
`default_permissions`); what POSIX makes depend on the file system is done here: set-group-id directories, default
ACLs, clearing of set-id bits by chown, times.
What changes names or attributes looks at the fence first, and raises ReadOnly behind it.
"""

from __future__ import annotations

import stat
from collections.abc import Callable
from typing import Final

from attrs import frozen

from cuckoo_mount.cache.chunkcache import ChunkCache
from cuckoo_mount.clock import later, now_ns
from cuckoo_mount.errors import (
    AttributeTooBig,
    InvalidArgument,
    NameTooLong,
    NoAttribute,
    NotFound,
    NotSupported,
)
from cuckoo_mount.metadata.base import Metadata
from cuckoo_mount.metadata.records import NewNode
from cuckoo_mount.parted import acl
from cuckoo_mount.parted.fence import Fence
from cuckoo_mount.parted.handles import References
from cuckoo_mount.parted.marks import Marks
from cuckoo_mount.types import (
    NAME_MAX_BYTES,
    SYMLINK_MAX_BYTES,
    DirectoryEntry,
    Inode,
    InodeChanges,
    InodeNo,
)

XATTR_MAX_BYTES: Final = 65536
_NAMESPACES: Final = (b"user.", b"trusted.", b"security.")


@frozen(slots=True)
class Caller:
    """Who asks."""

    uid: int
    gid: int


@frozen(slots=True, kw_only=True)
class AttributeRequest:
    """What setattr(2) and its relatives want changed; None leaves as is."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
    ctime_ns: int | None = None


def check_name(name: bytes) -> None:
    """Raises: NameTooLong, InvalidArgument."""
    if len(name) > NAME_MAX_BYTES:
        raise NameTooLong(f"a name has at most {NAME_MAX_BYTES} bytes")
    if not name or b"/" in name or b"\0" in name:
        raise InvalidArgument("not a name")


def check_attribute_name(name: bytes) -> None:
    """Raises: NotSupported (unknown namespace), NameTooLong, InvalidArgument (nothing but a namespace)."""
    if name.startswith(_NAMESPACES):
        if name in _NAMESPACES:
            raise InvalidArgument("an attribute's name goes on after its namespace")
        if len(name) > NAME_MAX_BYTES:
            raise NameTooLong(f"an attribute's name has at most {NAME_MAX_BYTES} bytes")
    elif name not in (acl.ACCESS, acl.DEFAULT):
        known = b", ".join(_NAMESPACES).decode()
        raise NotSupported(f"extended attributes are called {known}…, and the two ACLs are there")


class Tree:
    """Names and attributes of one drive."""

    def __init__(self, metadata: Metadata, cache: ChunkCache, fence: Fence, marks: Marks) -> None:
        self._metadata = metadata
        self._cache = cache
        self._fence = fence
        self._marks = marks
        self.references: Final = References()

    async def lookup(self, parent: InodeNo, name: bytes) -> Inode:
        """Return the node called `name`, also for `.` and `..`.  Raises: NotFound, NotADirectory, StaleInode."""
        if name == b".":
            return await self.inode(parent)
        if name == b"..":
            return await self._metadata.get_parent(parent)
        if len(name) > NAME_MAX_BYTES:
            raise NameTooLong(f"a name has at most {NAME_MAX_BYTES} bytes")
        return self._cache.overlay(await self._metadata.lookup(parent, name))

    async def inode(self, ino: InodeNo) -> Inode:
        """Return a node as programs see it.  Raises: StaleInode."""
        return self._cache.overlay(await self._metadata.get_inode(ino))

    async def entries(self, ino: InodeNo, after_cookie: int, limit: int) -> list[DirectoryEntry]:
        """Return up to `limit` entries behind a cookie, without `.` and `..`."""
        found = await self._metadata.list_directory(ino, after_cookie, limit)
        return [DirectoryEntry(e.cookie, e.name, self._cache.overlay(e.inode)) for e in found]

    async def make(
        self,
        parent: InodeNo,
        name: bytes,
        mode: int,
        caller: Caller,
        *,
        rdev: int = 0,
        target: bytes | None = None,
    ) -> Inode:
        """Make a node with file type and permissions `mode`.  Raises: AlreadyExists, NotFound, NoSpace, …"""
        self._fence.check()
        check_name(name)
        if target is not None and not 0 < len(target) <= SYMLINK_MAX_BYTES:
            raise NameTooLong(f"a symbolic link's target has 1 to {SYMLINK_MAX_BYTES} bytes")
        await self._cache.admit_file()
        directory = await self._metadata.get_inode(parent)
        gid = caller.gid
        if directory.mode & stat.S_ISGID:
            gid = directory.gid
            if stat.S_ISDIR(mode):
                mode |= stat.S_ISGID
        xattrs: dict[bytes, bytes] = {}
        if not stat.S_ISLNK(mode):
            mode, xattrs = await self._inherit(parent, mode)
            xattrs |= await self._marks.inherited(parent, mode)
        node = NewNode(mode=mode, uid=caller.uid, gid=gid, now_ns=now_ns(), rdev=rdev, target=target, xattrs=xattrs)
        return await self._metadata.make_node(parent, name, node)

    async def _inherit(self, parent: InodeNo, mode: int) -> tuple[int, dict[bytes, bytes]]:
        """Return mode and ACLs that a new node gets from its directory's default ACL."""
        try:
            value = await self._metadata.get_xattr(parent, acl.DEFAULT)
        except NoAttribute:
            return mode, {}
        access, mode = acl.inherit(acl.parse(value), mode)
        xattrs = {} if access is None else {acl.ACCESS: acl.build(access)}
        if stat.S_ISDIR(mode):
            xattrs[acl.DEFAULT] = value
        return mode, xattrs

    async def link(self, ino: InodeNo, parent: InodeNo, name: bytes) -> Inode:
        """Give a node one more name.  Raises: AlreadyExists, NotPermitted, TooManyLinks, NotFound."""
        self._fence.check()
        check_name(name)
        return self._cache.overlay(await self._metadata.add_link(ino, parent, name, now_ns()))

    async def unlink(self, parent: InodeNo, name: bytes) -> None:
        """Take a name from a node; content goes with the last name and use.  Raises: NotFound, IsADirectory."""
        self._fence.check()
        await self._lose_name(await self._metadata.remove_link(parent, name, now_ns()))

    async def rmdir(self, parent: InodeNo, name: bytes) -> None:
        """Remove an empty directory.  Raises: NotFound, NotADirectory, DirectoryNotEmpty."""
        self._fence.check()
        await self._lose_name(await self._metadata.remove_directory(parent, name, now_ns()))

    async def _lose_name(self, inode: Inode) -> None:
        if inode.nlink == 0 and self.references.lost_last_name(inode.ino):
            await self._cache.purge(inode.ino)

    async def forget(self, ino: InodeNo, count: int) -> None:
        """Take back `count` references; the last one of a node without names ends it, behind the fence too."""
        if self.references.drop(ino, count):
            await self._cache.purge(ino)

    async def rename(
        self,
        old_parent: InodeNo,
        old_name: bytes,
        new_parent: InodeNo,
        new_name: bytes,
        *,
        no_replace: bool = False,
        exchange: bool = False,
    ) -> None:
        """Move a name atomically.  A file that replaces another one is brought to the disk first (I-12).

        Raises: as `Metadata.rename`, OSError.
        """
        self._fence.check()
        check_name(new_name)
        await self._settle_source(old_parent, old_name, new_parent, new_name)
        renamed = await self._metadata.rename(
            old_parent, old_name, new_parent, new_name, now_ns=now_ns(), no_replace=no_replace, exchange=exchange
        )
        if renamed.replaced is not None and renamed.replaced.ino != renamed.moved.ino:
            await self._lose_name(renamed.replaced)

    async def _settle_source(self, old_parent: InodeNo, old_name: bytes, parent: InodeNo, name: bytes) -> None:
        try:
            await self._metadata.lookup(parent, name)
        except NotFound:
            return
        source = await self._metadata.lookup(old_parent, old_name)
        if self._cache.pending_state(source.ino) is None:
            return
        state = await self._cache.open(source.ino, writing=False)
        try:
            await self._cache.sync_file(state)
        finally:
            self._cache.release(state, writing=False)

    async def readlink(self, ino: InodeNo) -> bytes:
        """Return a symbolic link's target.  Raises: InvalidArgument, StaleInode."""
        return await self._metadata.read_symlink(ino)

    async def set_attributes(self, ino: InodeNo, request: AttributeRequest) -> Inode:
        """Change mode, owner or times; ctime is now unless given.  Raises: StaleInode."""
        self._fence.check()
        inode = await self._metadata.get_inode(ino)
        ctime_ns = now_ns() if request.ctime_ns is None else request.ctime_ns
        mode = request.mode if request.mode is None else stat.S_IFMT(inode.mode) | stat.S_IMODE(request.mode)
        if mode is None and (request.uid is not None or request.gid is not None):
            mode = without_set_id(inode.mode)
        mtime_ns = request.mtime_ns
        if self._cache.set_times(ino, mtime_ns=mtime_ns, ctime_ns=ctime_ns):
            # Times of a file with unsaved bytes enter the metadata together with these (I-12).
            mtime_ns = None
        changes = InodeChanges(
            mode=mode,
            uid=request.uid,
            gid=request.gid,
            atime_ns=request.atime_ns,
            mtime_ns=mtime_ns,
            ctime_ns=later(inode.ctime_ns, ctime_ns) if request.ctime_ns is None else ctime_ns,
        )
        xattrs: dict[bytes, bytes | None] = {}
        if request.mode is not None and mode is not None:
            xattrs = await self._acl_after_chmod(ino, mode)
        if xattrs:
            return self._cache.overlay(await self._metadata.set_xattrs(ino, xattrs, changes))
        return self._cache.overlay(await self._metadata.change_inode(ino, changes))

    async def _acl_after_chmod(self, ino: InodeNo, mode: int) -> dict[bytes, bytes | None]:
        try:
            value = await self._metadata.get_xattr(ino, acl.ACCESS)
        except NoAttribute:
            return {}
        return {acl.ACCESS: acl.build(acl.with_mode(acl.parse(value), mode))}

    async def get_xattr(self, ino: InodeNo, name: bytes) -> bytes:
        """Return an extended attribute.  Raises: NoAttribute, NotSupported, InvalidArgument, StaleInode."""
        check_attribute_name(name)
        return await self._metadata.get_xattr(ino, name)

    async def list_xattrs(self, ino: InodeNo) -> list[bytes]:
        """Return the names of all extended attributes."""
        return await self._metadata.list_xattrs(ino)

    async def set_xattr(
        self, ino: InodeNo, name: bytes, value: bytes, *, is_member: Callable[[int], bool] = lambda gid: True
    ) -> None:
        """Set an extended attribute; an access ACL changes the mode with it.

        As with chmod(2) the set-group-id bit goes if the caller is not in the node's group: `is_member` tells of a gid.
        Raises: NotSupported (unknown namespace), AttributeTooBig, NameTooLong, InvalidArgument (no ACL, or nothing that
        a mark may be), StaleInode.
        """
        self._fence.check()
        check_attribute_name(name)
        if len(value) > XATTR_MAX_BYTES:
            raise AttributeTooBig(f"an attribute has at most {XATTR_MAX_BYTES} bytes")
        ctime_ns = now_ns()
        stored: bytes | None = value
        mode: int | None = None
        if (mark := self._marks.get(name)) is not None:
            stored = mark.check(value)
            await mark.before_change(await self._metadata.get_inode(ino), stored)
        if name in (acl.ACCESS, acl.DEFAULT):
            inode = await self._metadata.get_inode(ino)
            entries = acl.parse(value)
            if name == acl.DEFAULT and not stat.S_ISDIR(inode.mode):
                raise NotSupported("only a directory has a default ACL")
            if name == acl.ACCESS and entries:
                mode = acl.mode_of(entries, inode.mode)
                if mode & stat.S_ISGID and not is_member(inode.gid):
                    mode &= ~stat.S_ISGID
            if not entries or (name == acl.ACCESS and acl.is_minimal(entries)):
                stored = None
        if stored is None and name not in await self._metadata.list_xattrs(ino):
            await self._metadata.change_inode(ino, InodeChanges(mode=mode, ctime_ns=ctime_ns))
            return
        await self._metadata.set_xattrs(ino, {name: stored}, InodeChanges(mode=mode, ctime_ns=ctime_ns))

    async def remove_xattr(self, ino: InodeNo, name: bytes) -> None:
        """Remove an extended attribute; an ACL that is not there is no error, as on Linux's own file systems.

        Raises: NoAttribute, NotSupported, InvalidArgument, StaleInode.
        """
        self._fence.check()
        check_attribute_name(name)
        if name in (acl.ACCESS, acl.DEFAULT) and name not in await self._metadata.list_xattrs(ino):
            return
        if (mark := self._marks.get(name)) is not None:
            await mark.before_change(await self._metadata.get_inode(ino), None)
        await self._metadata.set_xattrs(ino, {name: None}, InodeChanges(ctime_ns=now_ns()))


def without_set_id(mode: int) -> int:
    """Return the mode of a regular file without set-user-id, and set-group-id where it means that; others unchanged."""
    if not stat.S_ISREG(mode):
        return mode
    mode &= ~stat.S_ISUID
    if mode & stat.S_IXGRP:
        mode &= ~stat.S_ISGID
    return mode

"""The FUSE handlers: a thin adapter from pyfuse3 to PartedFS.  errno, kernel cache lifetimes, nothing else.

Used by mount.py.  Loop only.  Every handler runs inside guard.py.
With the writeback cache the kernel owns size, mtime and ctime of open files: WRITE arrives late, also on O_RDONLY
handles, always with an absolute offset (O_APPEND is the kernel's), and READ arrives on O_WRONLY handles.
"""

from __future__ import annotations

import logging
import stat
from collections.abc import Sequence
from functools import partial
from typing import Final

import pyfuse3
import trio

from cuckoo_mount.errors import InvalidArgument, NotFound, NotImplementedHere
from cuckoo_mount.fuse.attributes import attribute_request, entry_attributes, no_entry
from cuckoo_mount.fuse.guard import Upcalls, guarded, guarded_silent
from cuckoo_mount.fuse.options import MountOptions
from cuckoo_mount.fuse.pushing import Pusher
from cuckoo_mount.parted.handles import FileHandle
from cuckoo_mount.parted.partedfs import PartedFS
from cuckoo_mount.parted.tree import Caller
from cuckoo_mount.types import NAME_MAX_BYTES, Inode, InodeNo

log = logging.getLogger(__name__)
DIRECTORY_BATCH: Final = 256
STALE_MAX: Final = 10_000
_KNOWN_RENAME_FLAGS: Final = int(pyfuse3.RENAME_NOREPLACE) | int(pyfuse3.RENAME_EXCHANGE)
_FRAGMENT: Final = 4096
_MANY_INODES: Final = 1 << 32

Context = pyfuse3.RequestContext


def _note_nothing(handle: FileHandle, offset: int, size_bytes: int) -> None:
    pass


def _forget_attributes(ino: InodeNo) -> None:
    """Make the kernel ask for a node's attributes anew, at once; only within an open of it.  No checkpoint.

    Not from a thread, as others are told: open would answer first, and who asks then could still see the old number
    of blocks.  The kernel waits here for a node that is on its way out of its memory, that is for handlers; one that
    is being opened is not.
    """
    try:
        pyfuse3.invalidate_inode(pyfuse3.InodeT(ino), attr_only=True)
    except OSError as error:
        log.debug("inode %d: the kernel does not know it: %s", ino, error)


def _caller(context: Context) -> Caller:
    return Caller(context.uid, context.gid)


def _is_member(context: Context, gid: int) -> bool:
    """Whether who asks is in a group, or root; not if that cannot be seen (another PID namespace)."""
    if context.uid == 0 or context.gid == gid:
        return True
    try:
        return gid in pyfuse3.get_sup_groups(context.pid)
    except (OSError, RuntimeError):
        return False


class Operations(pyfuse3.Operations):
    """Handlers of one mounted drive."""

    supports_dot_lookup = True
    enable_writeback_cache = True

    def __init__(self, filesystem: PartedFS, options: MountOptions) -> None:
        super().__init__()
        self._fs = filesystem
        self._options = options
        self.enable_acl = options.acls
        self.upcalls = Upcalls()
        self.pusher: Final = Pusher(filesystem, self.upcalls)
        self._note_read = self.pusher.note_read if options.pushing else _note_nothing
        self._stale, self._stale_receiver = trio.open_memory_channel[InodeNo | tuple[InodeNo, bytes]](STALE_MAX)
        filesystem.on_attributes_stale = self._note_stale
        filesystem.on_first_writer = _forget_attributes
        filesystem.on_name_stale = lambda parent, name: self._note_stale((parent, name))

    def _shown(self, inode: Inode) -> pyfuse3.EntryAttributes:
        is_written = not inode.chunk_count and self._fs.is_written(inode.ino)
        return entry_attributes(inode, self._options, is_written=is_written)

    def _check_xattrs(self) -> None:
        """With noxattr the kernel is told once, for each of the four calls, and never asks again."""
        if not self._options.xattrs:
            raise NotImplementedHere("mounted with noxattr")

    def _note_stale(self, what: InodeNo | tuple[InodeNo, bytes]) -> None:
        try:
            self._stale.send_nowait(what)
        except trio.WouldBlock:
            log.warning("the kernel is not told of a change of %s: too many at once", what)

    async def run_notifier(self) -> None:
        """Tell the kernel of changes it did not make, until cancelled.  From a thread: the call may wait for
        handlers."""
        async for what in self._stale_receiver:
            if isinstance(what, tuple):
                call = partial(pyfuse3.invalidate_entry, pyfuse3.InodeT(what[0]), pyfuse3.FileNameT(what[1]))
            else:
                call = partial(pyfuse3.invalidate_inode, pyfuse3.InodeT(what), attr_only=True)
            try:
                await trio.to_thread.run_sync(call, abandon_on_cancel=True)
            except OSError as error:
                log.debug("%s: the kernel does not know it: %s", what, error)

    @guarded
    async def lookup(self, parent_inode: int, name: bytes, ctx: Context) -> pyfuse3.EntryAttributes:
        """Look a name up; a missing one is remembered by the kernel."""
        try:
            inode = await self._fs.tree.lookup(InodeNo(parent_inode), name)
        except NotFound:
            return no_entry()
        self._fs.tree.references.add(inode.ino)
        return self._shown(inode)

    @guarded_silent
    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """The kernel forgets lookups."""
        for ino, count in inode_list:
            await self._fs.tree.forget(InodeNo(ino), count)

    @guarded
    async def getattr(self, inode: int, ctx: Context) -> pyfuse3.EntryAttributes:
        """Attributes of a node."""
        return self._shown(await self._fs.tree.inode(InodeNo(inode)))

    @guarded
    async def setattr(
        self,
        inode: int,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: Context,
    ) -> pyfuse3.EntryAttributes:
        """chmod, chown, truncate, utimes."""
        request, size_bytes = attribute_request(attr, fields)
        changed = await self._fs.set_attributes(InodeNo(inode), request, size_bytes)
        if request.mtime_ns is None:
            self._fs.believe_times(InodeNo(inode))  # before it asks for other changes the kernel sends what it has
        return self._shown(changed)

    @guarded
    async def readlink(self, inode: int, ctx: Context) -> bytes:
        """Target of a symbolic link."""
        return await self._fs.tree.readlink(InodeNo(inode))

    @guarded
    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: Context
    ) -> pyfuse3.EntryAttributes:
        """Regular file, device, FIFO or socket."""
        inode = await self._fs.tree.make(InodeNo(parent_inode), name, mode, _caller(ctx), rdev=rdev)
        self._fs.tree.references.add(inode.ino)
        return self._shown(inode)

    @guarded
    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: Context) -> pyfuse3.EntryAttributes:
        """Directory."""
        inode = await self._fs.tree.make(InodeNo(parent_inode), name, mode, _caller(ctx))
        self._fs.tree.references.add(inode.ino)
        return self._shown(inode)

    @guarded
    async def unlink(self, parent_inode: int, name: bytes, ctx: Context) -> None:
        """Remove a name."""
        await self._fs.tree.unlink(InodeNo(parent_inode), name)

    @guarded
    async def rmdir(self, parent_inode: int, name: bytes, ctx: Context) -> None:
        """Remove an empty directory."""
        await self._fs.tree.rmdir(InodeNo(parent_inode), name)

    @guarded
    async def symlink(self, parent_inode: int, name: bytes, target: bytes, ctx: Context) -> pyfuse3.EntryAttributes:
        """Symbolic link."""
        inode = await self._fs.tree.make(InodeNo(parent_inode), name, stat.S_IFLNK | 0o777, _caller(ctx), target=target)
        self._fs.tree.references.add(inode.ino)
        return self._shown(inode)

    @guarded
    async def rename(
        self, parent_inode_old: int, name_old: bytes, parent_inode_new: int, name_new: bytes, flags: int, ctx: Context
    ) -> None:
        """Move a name; RENAME_NOREPLACE and RENAME_EXCHANGE are known."""
        if flags & ~_KNOWN_RENAME_FLAGS:
            raise InvalidArgument(f"rename flags {flags:#x} are not known")
        await self._fs.tree.rename(
            InodeNo(parent_inode_old),
            name_old,
            InodeNo(parent_inode_new),
            name_new,
            no_replace=bool(flags & pyfuse3.RENAME_NOREPLACE),
            exchange=bool(flags & pyfuse3.RENAME_EXCHANGE),
        )

    @guarded
    async def link(self, inode: int, new_parent_inode: int, new_name: bytes, ctx: Context) -> pyfuse3.EntryAttributes:
        """Hard link."""
        linked = await self._fs.tree.link(InodeNo(inode), InodeNo(new_parent_inode), new_name)
        self._fs.tree.references.add(linked.ino)
        return self._shown(linked)

    @guarded
    async def open(self, inode: int, flags: int, ctx: Context) -> pyfuse3.FileInfo:
        """Open a file; O_TRUNC arrives here and is honoured."""
        handle = await self._fs.open(InodeNo(inode), flags)
        return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(handle), keep_cache=True)

    @guarded
    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: Context
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        """Make a file and open it."""
        handle, inode = await self._fs.create(InodeNo(parent_inode), name, mode, _caller(ctx))
        self._fs.tree.references.add(inode.ino)
        return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(handle), keep_cache=True), self._shown(inode)

    @guarded
    async def read(self, fh: int, off: int, size: int) -> bytes:
        """Bytes; fewer than asked for only at the end of the file."""
        data = await self._fs.read(fh, off, size)
        self._note_read(self._fs.handles.file(fh), off, size)
        return data

    @guarded
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        """Bytes, late, from the page cache."""
        return await self._fs.write(fh, off, buf)

    @guarded
    async def flush(self, fh: int) -> None:
        """close(2): nothing to do, bytes are kept from WRITE on.  The kernel asks once, and from then on never again;
        it still writes its dirty pages and reports their errors at close."""
        raise NotImplementedHere("close has nothing to wait for")

    @guarded
    async def release(self, fh: int) -> None:
        """Last close."""
        self._fs.believe_times(self._fs.handles.file(fh).state.ino)
        await self._fs.release(fh)

    @guarded
    async def fsync(self, fh: int, datasync: bool) -> None:
        """Make a file durable."""
        self._fs.believe_times(self._fs.handles.file(fh).state.ino)
        await self._fs.sync_file(fh)

    @guarded
    async def opendir(self, inode: int, ctx: Context) -> int:
        """Open a directory."""
        return await self._fs.open_directory(InodeNo(inode))

    @guarded
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """Entries with attributes (readdirplus): each one that was taken counts as a lookup, but for `.` and `..`."""
        while True:
            entries = await self._fs.read_directory(fh, start_id, DIRECTORY_BATCH)
            if not entries:
                return
            for entry in entries:
                name = pyfuse3.FileNameT(entry.name)
                if not pyfuse3.readdir_reply(token, name, self._shown(entry.inode), entry.cookie):
                    return
                if entry.cookie > 2:
                    self._fs.tree.references.add(entry.inode.ino)
                start_id = entry.cookie

    @guarded
    async def releasedir(self, fh: int) -> None:
        """Close a directory."""
        await self._fs.release_directory(fh)

    @guarded
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        """Make names durable."""
        await self._fs.sync_directory(fh)

    @guarded
    async def statfs(self, ctx: Context) -> pyfuse3.StatvfsData:
        """What can be stored; never waits for a cloud."""
        space = await self._fs.space()
        result = pyfuse3.StatvfsData()
        result.f_bsize = result.f_frsize = _FRAGMENT
        result.f_blocks = space.total_bytes // _FRAGMENT
        result.f_bfree = result.f_bavail = space.free_bytes // _FRAGMENT
        result.f_files = result.f_ffree = result.f_favail = _MANY_INODES
        result.f_namemax = NAME_MAX_BYTES
        return result

    @guarded
    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: Context) -> None:
        """Set an extended attribute."""
        self._check_xattrs()
        await self._fs.tree.set_xattr(InodeNo(inode), name, value, is_member=partial(_is_member, ctx))

    @guarded
    async def getxattr(self, inode: int, name: bytes, ctx: Context) -> bytes:
        """Read an extended attribute."""
        self._check_xattrs()
        return await self._fs.tree.get_xattr(InodeNo(inode), name)

    @guarded
    async def listxattr(self, inode: int, ctx: Context) -> Sequence[bytes]:
        """Names of extended attributes."""
        self._check_xattrs()
        return await self._fs.tree.list_xattrs(InodeNo(inode))

    @guarded
    async def removexattr(self, inode: int, name: bytes, ctx: Context) -> None:
        """Remove an extended attribute."""
        self._check_xattrs()
        await self._fs.tree.remove_xattr(InodeNo(inode), name)

    @guarded
    async def access(self, inode: int, mode: int, ctx: Context) -> bool:
        """Never asked with default_permissions: the kernel knows."""
        raise NotImplementedHere("the kernel checks permissions")

    @guarded
    async def poll(self, inode: int, fh: int, ph: pyfuse3.PollHandle | None, ctx: Context) -> int:
        """Files are always ready, and the kernel knows it."""
        raise NotImplementedHere("files are always ready")

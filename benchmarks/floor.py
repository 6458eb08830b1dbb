"""The floor: a file system in memory, with nothing in it but what pyfuse3 asks for.

`floor.py MOUNTPOINT`.  What it takes is what pyfuse3 and trio take: no file system on them can be faster.
No checks, no permissions, no hard or symbolic links.
"""

from __future__ import annotations

import errno
import stat
import sys
import time
from collections.abc import Sequence

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, ReaddirToken, RequestContext, SetattrFields, StatvfsData

LIFETIME_S = 86400
BLOCK_SIZE = 128 * 1024


class Floor(pyfuse3.Operations):
    """Inode numbers lead to attributes and, by type, to names or bytes."""

    enable_writeback_cache = True

    def __init__(self) -> None:
        super().__init__()
        self._next = pyfuse3.ROOT_INODE
        self._attributes: dict[int, EntryAttributes] = {}
        self._directories: dict[int, dict[bytes, int]] = {}
        self._files: dict[int, bytearray] = {}
        self._make(stat.S_IFDIR | 0o755)

    def _make(self, mode: int) -> EntryAttributes:
        entry = EntryAttributes()
        entry.st_ino = self._next
        entry.st_mode = mode
        entry.st_nlink = 1
        entry.st_blksize = BLOCK_SIZE
        entry.entry_timeout = entry.attr_timeout = LIFETIME_S
        entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = time.time_ns()
        self._attributes[self._next] = entry
        if stat.S_ISDIR(mode):
            self._directories[self._next] = {}
        else:
            self._files[self._next] = bytearray()
        self._next += 1
        return entry

    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        ino = self._directories[parent_inode].get(name)
        if ino is not None:
            return self._attributes[ino]
        missing = EntryAttributes()
        missing.st_ino = 0
        missing.entry_timeout = LIFETIME_S
        return missing

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        pass

    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        return self._attributes[inode]

    async def setattr(
        self, inode: int, attr: EntryAttributes, fields: SetattrFields, fh: int | None, ctx: RequestContext
    ) -> EntryAttributes:
        entry = self._attributes[inode]
        if fields.update_size:
            entry.st_size = attr.st_size
            del self._files[inode][attr.st_size :]
        if fields.update_mtime:
            entry.st_mtime_ns = attr.st_mtime_ns
        if fields.update_mode:
            entry.st_mode = attr.st_mode
        if fields.update_uid:
            entry.st_uid = attr.st_uid
        if fields.update_gid:
            entry.st_gid = attr.st_gid
        return entry

    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        return inode

    async def readdir(self, fh: int, start_id: int, token: ReaddirToken) -> None:
        entries = list(self._directories[fh].items())
        for number, (name, ino) in enumerate(entries[start_id:], start_id + 1):
            if not pyfuse3.readdir_reply(token, name, self._attributes[ino], number):
                return

    async def releasedir(self, fh: int) -> None:
        pass

    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:
        entry = self._make(stat.S_IFDIR | mode)
        self._directories[parent_inode][name] = entry.st_ino
        return entry

    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        entry = self._make(stat.S_IFREG | mode)
        self._directories[parent_inode][name] = entry.st_ino
        return FileInfo(fh=entry.st_ino, keep_cache=True), entry

    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        return FileInfo(fh=inode, keep_cache=True)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        return bytes(memoryview(self._files[fh])[off : off + size])

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        content = self._files[fh]
        if off > len(content):
            content.extend(bytes(off - len(content)))
        content[off : off + len(buf)] = buf
        entry = self._attributes[fh]
        entry.st_size = max(entry.st_size, len(content))
        return len(buf)

    async def flush(self, fh: int) -> None:
        pass

    async def fsync(self, fh: int, datasync: bool) -> None:
        pass

    async def release(self, fh: int) -> None:
        pass

    async def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        del self._directories[parent_inode][name]

    async def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        del self._directories[parent_inode][name]

    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        result = StatvfsData()
        result.f_bsize = result.f_frsize = 4096
        result.f_blocks = result.f_bfree = result.f_bavail = 1 << 30
        result.f_files = result.f_ffree = result.f_favail = 1 << 20
        result.f_namemax = 255
        return result

    async def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        raise FUSEError(errno.ENOSYS)


def main() -> None:
    """Mount, and serve until unmounted."""
    pyfuse3.init(Floor(), sys.argv[1], {*pyfuse3.default_options, "fsname=floor"})
    try:
        trio.run(pyfuse3.main)
    finally:
        pyfuse3.close(unmount=False)


if __name__ == "__main__":
    main()

"""Our nodes as pyfuse3 wants them.

Used by operations.py.  Pure.  One writer means that the kernel may believe what it was told for as long as it likes:
every change goes through the kernel itself, the few that do not are pushed (operations.py).
"""

from __future__ import annotations

import stat
from typing import Final

import pyfuse3

from cuckoo_mount.fuse.options import MountOptions
from cuckoo_mount.parted.tree import AttributeRequest
from cuckoo_mount.types import CHUNK_SIZE_BYTES, Inode

LIFETIME_S: Final = 86400
BLOCK_SIZE: Final = 128 * 1024
_PAGE: Final = 4096
_SECTOR: Final = 512
_ALL_PERMISSIONS: Final = 0o777


def entry_attributes(inode: Inode, options: MountOptions, *, is_written: bool = False) -> pyfuse3.EntryAttributes:
    """Return what lookup, getattr and readdir answer; owner, group and mode as the mount options want them shown.

    `is_written`: somebody has the file open for writing.  Then it has a block at least: the kernel keeps the number
    until a close, whatever is written meanwhile, and to `tar --sparse` a file without blocks is one hole.
    """
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = inode.ino
    entry.generation = 1
    entry.entry_timeout = LIFETIME_S
    entry.attr_timeout = LIFETIME_S
    mode, umask = inode.mode, options.umask
    entry.st_mode = mode if umask is None or stat.S_ISLNK(mode) else stat.S_IFMT(mode) | _ALL_PERMISSIONS & ~umask
    entry.st_nlink = inode.nlink
    entry.st_uid = inode.uid if options.uid is None else options.uid
    entry.st_gid = inode.gid if options.gid is None else options.gid
    entry.st_rdev = inode.rdev
    entry.st_blksize = BLOCK_SIZE
    size, stored = _sizes(inode)
    if is_written:
        stored = max(stored, _PAGE)
    entry.st_size = size
    entry.st_blocks = -(-stored // _PAGE) * (_PAGE // _SECTOR)
    entry.st_atime_ns = inode.atime_ns
    entry.st_mtime_ns = inode.mtime_ns
    entry.st_ctime_ns = inode.ctime_ns
    return entry


def _sizes(inode: Inode) -> tuple[int, int]:
    """Return (size, bytes that are not holes); a directory shows one block."""
    if stat.S_ISDIR(inode.mode):
        return _PAGE, _PAGE
    return inode.size_bytes, min(inode.size_bytes, inode.chunk_count * CHUNK_SIZE_BYTES)


def no_entry() -> pyfuse3.EntryAttributes:
    """Return the answer that lets the kernel remember that a name does not exist."""
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = pyfuse3.InodeT(0)
    entry.entry_timeout = LIFETIME_S
    return entry


def attribute_request(
    attributes: pyfuse3.EntryAttributes, fields: pyfuse3.SetattrFields
) -> tuple[AttributeRequest, int | None]:
    """Return what setattr asks for, and the new size if that is part of it."""
    request = AttributeRequest(
        mode=attributes.st_mode if fields.update_mode else None,
        uid=attributes.st_uid if fields.update_uid else None,
        gid=attributes.st_gid if fields.update_gid else None,
        atime_ns=attributes.st_atime_ns if fields.update_atime else None,
        mtime_ns=attributes.st_mtime_ns if fields.update_mtime else None,
        ctime_ns=attributes.st_ctime_ns if fields.update_ctime else None,
    )
    return request, attributes.st_size if fields.update_size else None

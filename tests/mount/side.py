"""One of two folders in which the same calls are made: what they return, and what can be seen afterwards.

Used by test_tree_machine.py.  Paths are bytes below the folder.  Every method returns what a program would see, so
that the outcomes of two sides can be compared; errors are OSErrors.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import mmap
import os
import stat
from collections.abc import Callable, Iterator
from typing import Final

from attrs import define, field, frozen

OLD_NS: Final = 10**18
"""Times that tests set lie before this (2001-09-09), those that "now" sets after it."""
_LIBC: Final = ctypes.CDLL(None, use_errno=True)


@frozen
class Look:
    """What lstat(2) tells of a node: `compared` on both sides, the rest where it makes sense."""

    compared: tuple[object, ...]
    ino: int
    size_bytes: int
    mtime_ns: int
    ctime_ns: int
    has_blocks: bool


def look(status: os.stat_result) -> Look:
    """Return what there is to compare; a time that nobody set is "now", whenever that was."""
    size = None if stat.S_ISDIR(status.st_mode) else status.st_size
    mtime = status.st_mtime_ns if status.st_mtime_ns < OLD_NS else "now"
    compared = (oct(status.st_mode), status.st_nlink, status.st_uid, status.st_gid, status.st_rdev, size, mtime)
    return Look(compared, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns, bool(status.st_blocks))


def outcome(call: Callable[[], object]) -> object:
    """Return what a call returns, or the name of its errno."""
    try:
        return call()
    except OSError as error:
        return f"errno {errno.errorcode.get(error.errno or 0, error.errno)}"


@define
class Side:
    """A folder, and the files that are held open in it."""

    root: bytes
    fds: dict[int, int] = field(factory=dict)

    def path(self, name: bytes) -> bytes:
        """Return the whole path of a name."""
        return self.root + b"/" + name

    # -- open files --

    def open(self, slot: int, name: bytes, flags: int, mode: int) -> object:
        """Hold a file open, whatever becomes of its name."""
        self.close(slot)
        self.fds[slot] = os.open(self.path(name), flags | os.O_NONBLOCK, mode)
        return "opened"

    def close(self, slot: int) -> object:
        """Close what is held open, if anything is."""
        fd = self.fds.pop(slot, None)
        if fd is not None:
            os.close(fd)
        return fd is not None

    def close_all(self) -> None:
        """Close everything."""
        for slot in list(self.fds):
            self.close(slot)

    def fd(self, slot: int) -> int:
        """Raises: OSError (EBADF) if nothing is held open."""
        if slot not in self.fds:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return self.fds[slot]

    def map(self, slot: int, offset: int, data: bytes) -> object:
        """Write through a mapping of the whole file; return what is there then."""
        fd = self.fd(slot)
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or not status.st_size:
            return "nothing to map"
        with mmap.mmap(fd, status.st_size) as mapping:
            offset %= len(mapping)
            mapping[offset : offset + len(data)] = data[: len(mapping) - offset]
            return digest(mapping[:])

    def within(self, slot: int, what: str, name: bytes) -> object:
        """Use what is held open as a directory, also when it has no name any more."""
        fd = self.fd(slot)
        if what == "list":
            return sorted(os.listdir(fd))
        if what == "stat":
            return look(os.stat(name, dir_fd=fd, follow_symlinks=False)).compared
        if what == "mkdir":
            os.mkdir(name, 0o755, dir_fd=fd)
        elif what == "create":
            os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644, dir_fd=fd))
        else:
            os.unlink(name, dir_fd=fd)
        return None

    # -- names --

    def rename(self, old: bytes, new: bytes, flags: int) -> object:
        """renameat2(2)."""
        if _LIBC.renameat2(-100, self.path(old), -100, self.path(new), flags) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return "renamed"

    def write_file(self, name: bytes, offset: int, data: bytes) -> object:
        """Open, write at an offset, close."""
        fd = os.open(self.path(name), os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK, 0o664)
        try:
            return os.pwrite(fd, data, offset)
        finally:
            os.close(fd)

    def append(self, name: bytes, data: bytes) -> object:
        """Open for appending, write, close."""
        fd = os.open(self.path(name), os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK)
        try:
            return os.write(fd, data) if stat.S_ISREG(os.fstat(fd).st_mode) else None
        finally:
            os.close(fd)

    def read_file(self, name: bytes, offset: int, length: int) -> object:
        """Open, read at an offset, close."""
        fd = os.open(self.path(name), os.O_RDONLY | os.O_NONBLOCK)
        try:
            return digest(os.pread(fd, length, offset))
        finally:
            os.close(fd)

    # -- everything --

    def walk(self) -> Iterator[bytes]:
        """Yield the paths of all nodes, the folder itself first."""
        yield b"."
        for folder, folders, files in os.walk(self.root):
            for name in sorted([*folders, *files]):
                yield os.path.join(folder, name)[len(self.root) + 1 :]

    def looks(self) -> dict[bytes, Look]:
        """Return what lstat(2) tells of every node."""
        return {name: look(os.lstat(self.path(name))) for name in self.walk()}

    def contents(self) -> dict[bytes, object]:
        """Return bytes, targets and extended attributes (ACLs are some) of every node."""
        found: dict[bytes, object] = {}
        for name in self.walk():
            path = self.path(name)
            names = sorted(os.listxattr(path, follow_symlinks=False))
            attributes = {name: os.getxattr(path, name, follow_symlinks=False) for name in names}
            found[name] = attributes, _content(path)
        return found


def same_nodes(looks: dict[bytes, Look]) -> dict[bytes, bytes]:
    """Return for each name the first one that leads to the same node."""
    first: dict[int, bytes] = {}
    return {name: first.setdefault(node.ino, name) for name, node in looks.items()}


def changed_times(before: dict[bytes, Look], after: dict[bytes, Look]) -> set[tuple[str, bytes]]:
    """Return which times moved, of the nodes that are there before and after; by their names then."""
    old = {node.ino: node for node in before.values()}
    pairs = [(name, node, old[node.ino]) for name, node in after.items() if node.ino in old]
    return {("mtime", name) for name, new, was in pairs if new.mtime_ns != was.mtime_ns} | {
        ("ctime", name) for name, new, was in pairs if new.ctime_ns != was.ctime_ns
    }


def digest(data: bytes) -> object:
    """Return something short that tells the bytes."""
    return len(data), hashlib.sha256(data).hexdigest()[:16]


def _content(path: bytes) -> object:
    mode = os.lstat(path).st_mode
    if stat.S_ISLNK(mode):
        return os.readlink(path)
    if not stat.S_ISREG(mode):
        return None
    with open(path, "rb") as file:
        return digest(file.read())

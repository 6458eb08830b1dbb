"""Open files and directories, and how often the kernel knows each node.

Used by partedfs.py.  Loop only, no I/O.  A node without names lives until the kernel forgot it and its last handle is
gone.
"""

from __future__ import annotations

from attrs import define, field

from cuckoo_mount.cache.state import FileState
from cuckoo_mount.errors import InvalidArgument
from cuckoo_mount.types import InodeNo


@define(slots=True, eq=False)
class FileHandle:
    """One open(2) of a regular file.  `drops_privileges`: its set-id bits must go at the first write.

    `leaves_atime`: its reads move no atime (any more).
    `impatient_until_s`: by trio's clock; before it a read does not wait for a cloud again.  `read_end`: where the last
    read ended.
    """

    state: FileState
    writing: bool
    drops_privileges: bool
    leaves_atime: bool = False
    impatient_until_s: float = 0.0
    read_end: int = 0


@define(slots=True, eq=False)
class DirectoryHandle:
    """One opendir(3)."""

    ino: InodeNo


@define(slots=True, eq=False)
class HandleTable:
    """Numbers for open files and directories; a number is not used again while the drive is mounted."""

    _files: dict[int, FileHandle] = field(factory=dict)
    _directories: dict[int, DirectoryHandle] = field(factory=dict)
    _next: int = 1

    def add_file(self, handle: FileHandle) -> int:
        """Return the new handle's number."""
        number, self._next = self._next, self._next + 1
        self._files[number] = handle
        return number

    def add_directory(self, handle: DirectoryHandle) -> int:
        """Return the new handle's number."""
        number, self._next = self._next, self._next + 1
        self._directories[number] = handle
        return number

    def file(self, number: int) -> FileHandle:
        """Return an open file.  Raises: InvalidArgument."""
        handle = self._files.get(number)
        if handle is None:
            raise InvalidArgument(f"file handle {number} is not open")
        return handle

    def directory(self, number: int) -> DirectoryHandle:
        """Return an open directory.  Raises: InvalidArgument."""
        handle = self._directories.get(number)
        if handle is None:
            raise InvalidArgument(f"directory handle {number} is not open")
        return handle

    def remove_file(self, number: int) -> FileHandle:
        """Close a file's number.  Raises: InvalidArgument."""
        handle = self.file(number)
        del self._files[number]
        return handle

    def remove_directory(self, number: int) -> DirectoryHandle:
        """Close a directory's number.  Raises: InvalidArgument."""
        handle = self.directory(number)
        del self._directories[number]
        return handle

    def __len__(self) -> int:
        """Number of open files and directories."""
        return len(self._files) + len(self._directories)


@define(slots=True, eq=False)
class References:
    """Lookup counts of the kernel plus open handles, and the nodes that have lost their last name."""

    _counts: dict[InodeNo, int] = field(factory=dict)
    _nameless: set[InodeNo] = field(factory=set)

    def add(self, ino: InodeNo) -> None:
        """The kernel was told about the node once more, or a handle was opened."""
        self._counts[ino] = self._counts.get(ino, 0) + 1

    def drop(self, ino: InodeNo, count: int) -> bool:
        """Take `count` references back; return whether the node is to be purged now."""
        left = self._counts.get(ino, 0) - count
        if left > 0:
            self._counts[ino] = left
            return False
        self._counts.pop(ino, None)
        if ino in self._nameless:
            self._nameless.discard(ino)
            return True
        return False

    def lost_last_name(self, ino: InodeNo) -> bool:
        """The node has no name any more; return whether it is to be purged now, else it is at the last `drop`."""
        if ino in self._counts:
            self._nameless.add(ino)
            return False
        return True

    def __len__(self) -> int:
        """Number of nodes with references."""
        return len(self._counts)

"""A namespace as dictionaries, to compare the store with: obviously right, and slow."""

from __future__ import annotations

from cuckoo_mount.errors import (
    AlreadyExists,
    DirectoryNotEmpty,
    InvalidArgument,
    IsADirectory,
    NoAttribute,
    NotADirectory,
    NotFound,
    NotPermitted,
)


class Tree:
    """`names` of every directory, also removed ones until purged; `xattrs` of every node, which is how one exists."""

    def __init__(self) -> None:
        self.names: dict[int, dict[bytes, int]] = {1: {}}
        self.removed: set[int] = set()
        self.xattrs: dict[int, dict[bytes, bytes]] = {1: {}}

    def links(self, ino: int) -> int:
        if ino in self.names:
            subdirectories = sum(child in self.names for child in self.names[ino].values())
            return 0 if ino in self.removed else 2 + subdirectories
        return sum(child == ino for names in self.names.values() for child in names.values())

    def orphans(self) -> list[int]:
        return sorted(ino for ino in self.xattrs if self.links(ino) == 0)

    def find(self, parent: int, name: bytes) -> int:
        if parent not in self.names:
            raise NotADirectory
        if name not in self.names[parent]:
            raise NotFound
        return self.names[parent][name]

    def check_new(self, parent: int, name: bytes) -> None:
        if parent not in self.names:
            raise NotADirectory
        if parent in self.removed:
            raise NotFound
        if name in self.names[parent]:
            raise AlreadyExists

    def make(self, parent: int, name: bytes, ino: int, *, directory: bool) -> None:
        self.names[parent][name] = ino
        self.xattrs[ino] = {}
        if directory:
            self.names[ino] = {}

    def link(self, ino: int, parent: int, name: bytes) -> None:
        if ino in self.names:
            raise NotPermitted
        if self.links(ino) == 0:
            raise NotFound
        self.check_new(parent, name)
        self.names[parent][name] = ino

    def unlink(self, parent: int, name: bytes) -> None:
        if self.find(parent, name) in self.names:
            raise IsADirectory
        del self.names[parent][name]

    def rmdir(self, parent: int, name: bytes) -> None:
        ino = self.find(parent, name)
        if ino not in self.names:
            raise NotADirectory
        if self.names[ino]:
            raise DirectoryNotEmpty
        del self.names[parent][name]
        self.removed.add(ino)

    def within(self, ino: int) -> set[int]:
        """Return `ino` and all directories below it; empty for a file."""
        if ino not in self.names:
            return set()
        return {ino}.union(*(self.within(child) for child in self.names[ino].values()))

    def rename(self, old: tuple[int, bytes], new: tuple[int, bytes], *, no_replace: bool, exchange: bool) -> None:
        if no_replace and exchange:
            raise InvalidArgument
        source = self.find(*old)
        if new[0] not in self.names:
            raise NotADirectory
        if new[0] in self.removed:
            raise NotFound
        target = self.names[new[0]].get(new[1])
        if no_replace and target is not None:
            raise AlreadyExists
        if exchange and target is None:
            raise NotFound
        if new[0] in self.within(source):
            raise InvalidArgument
        if target is not None and old[0] in self.within(target):
            raise InvalidArgument if exchange else DirectoryNotEmpty
        if source == target:
            return
        if exchange and target is not None:
            self.names[old[0]][old[1]] = target
        else:
            self._check_replace(source, target)
            del self.names[old[0]][old[1]]
            if target in self.names:
                self.removed.add(target)
        self.names[new[0]][new[1]] = source

    def _check_replace(self, source: int, target: int | None) -> None:
        if target is None:
            return
        if source in self.names:
            if target not in self.names:
                raise NotADirectory
            if self.names[target]:
                raise DirectoryNotEmpty
        elif target in self.names:
            raise IsADirectory

    def set_xattr(self, ino: int, name: bytes, value: bytes | None) -> None:
        if value is not None:
            self.xattrs[ino][name] = value
        elif name not in self.xattrs[ino]:
            raise NoAttribute
        else:
            del self.xattrs[ino][name]

    def purge(self, ino: int) -> None:
        del self.xattrs[ino]
        self.names.pop(ino, None)
        self.removed.discard(ino)

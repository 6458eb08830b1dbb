"""The local files: one sparse file per inode, in the state folder while anything in it is unsent, else in the cache
folder.

Used by the rest of cache/.  Loop thread only; calls are short local system calls, except `to_state`/`to_cache` across
file systems, `sync`, `sync_all` and `free_removed`, which go to threads.  Descriptors are kept open up to a bound,
least recently used first out.  A chunk lies at its own offset, so one pread serves neighbouring chunks.
Invariants: I-13 (dirty files in the state folder), I-19 (unknown files are removed at mount).
"""

from __future__ import annotations

import os
import shutil
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import trio
from attrs import define

from cuckoo_mount.cache.sparse import sync_file_system
from cuckoo_mount.types import InodeNo

MAX_OPEN_FILES: Final = 400
FEW_FILES: Final = 8
"""Up to this many files are synced one by one; for more, one syncfs is cheaper (docs/measurements.md)."""
LARGE_BYTES: Final = 1 << 20
"""With so much on the disk a file that was removed is closed in a thread: a disk takes up to milliseconds for each
extent, and a file that was written here and there has thousands of them."""
_FOLDERS: Final = 256
_COPYING: Final = ".copying"
"""Ends the name of a file that is being copied to the other file system."""
_SECTOR_BYTES: Final = 512
"""What st_blocks counts."""


@define(slots=True, eq=False)
class LocalFile:
    """One open local file.

    `pins` > 0: a thread uses the descriptor, it must stay open.  `moving`: it is being copied to the other file
    system, nobody may write to it before that event.
    """

    ino: InodeNo
    fd: int
    in_state: bool
    pins: int = 0
    moving: trio.Event | None = None


class LocalFiles:
    """All local files of a drive."""

    def __init__(self, state_folder: Path, cache_folder: Path) -> None:
        self._state = state_folder
        self._cache = cache_folder
        self._open: OrderedDict[InodeNo, LocalFile] = OrderedDict()
        self._removed: list[int] = []
        """Descriptors of large files that have no name any more: the last close gives their room back."""
        self._renamed: dict[InodeNo, int] = {}
        """Files moved to the state folder since they were synced: fdatasync brings no new name to the disk.  The
        number is that of the move."""
        self._moves = 0
        for folder in (state_folder, cache_folder):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            for number in range(_FOLDERS):
                (folder / f"{number:02x}").mkdir(exist_ok=True, mode=0o700)
        self._state_fd = os.open(state_folder, os.O_RDONLY | os.O_DIRECTORY)
        self._cache_fd = os.open(cache_folder, os.O_RDONLY | os.O_DIRECTORY)
        self.same_file_system: Final = os.stat(state_folder).st_dev == os.stat(cache_folder).st_dev

    def path(self, ino: InodeNo, *, in_state: bool) -> str:
        """Return where the inode's file lies, or would lie, in the state or the cache folder."""
        return f"{self._state if in_state else self._cache}/{ino % _FOLDERS:02x}/{ino:x}"

    def get(self, ino: InodeNo) -> LocalFile | None:
        """Return the inode's file, opened, or None if it has none."""
        file = self._open.get(ino)
        if file is not None:
            self._open.move_to_end(ino)
            return file
        for in_state in (True, False):
            try:
                fd = os.open(self.path(ino, in_state=in_state), os.O_RDWR | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            return self._keep(LocalFile(ino, fd, in_state))
        return None

    def is_busy(self, ino: InodeNo) -> bool:
        """Return whether a thread uses the inode's file, so that it cannot be removed now."""
        file = self._open.get(ino)
        return file is not None and (file.pins > 0 or file.moving is not None)

    def create(self, ino: InodeNo, *, in_state: bool) -> LocalFile:
        """Make the inode's file, which must not exist."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        return self._keep(LocalFile(ino, os.open(self.path(ino, in_state=in_state), flags, 0o600), in_state))

    def _keep(self, file: LocalFile) -> LocalFile:
        self._open[file.ino] = file
        if len(self._open) > MAX_OPEN_FILES:
            for ino, old in self._open.items():
                if not old.pins and old is not file:
                    del self._open[ino]
                    os.close(old.fd)
                    break
        return file

    async def to_state(self, file: LocalFile) -> None:
        """Bring the file into the state folder, before its first dirty byte.  Checkpoint only across file systems."""
        await self._move(file, in_state=True)

    async def to_cache(self, file: LocalFile) -> None:
        """Bring the file into the cache folder; nothing in it is dirty and that is durable."""
        await self._move(file, in_state=False)

    async def _move(self, file: LocalFile, *, in_state: bool) -> None:
        if file.in_state == in_state:
            return
        source, target = self.path(file.ino, in_state=not in_state), self.path(file.ino, in_state=in_state)
        if self.same_file_system:
            os.rename(source, target)
            self._note_moved(file, in_state=in_state)
            return
        if file.moving is not None:
            await file.moving.wait()
            return
        file.moving = trio.Event()
        file.pins += 1
        try:
            await trio.to_thread.run_sync(_copy_sparse, source, target)
            fd = os.open(target, os.O_RDWR | os.O_CLOEXEC)
            os.dup2(fd, file.fd, inheritable=False)
            os.close(fd)
            os.unlink(source)
            self._note_moved(file, in_state=in_state)
        finally:
            file.pins -= 1
            file.moving.set()
            file.moving = None

    def _note_moved(self, file: LocalFile, *, in_state: bool) -> None:
        file.in_state = in_state
        self._renamed.pop(file.ino, None)
        if in_state:
            self._moves += 1
            self._renamed[file.ino] = self._moves

    def remove(self, ino: InodeNo) -> None:
        """Delete the inode's file; none is no error.  The commit that stopped referring to it is durable (I-5).

        The room of a large one comes back at `free_removed`.
        """
        self._renamed.pop(ino, None)
        file = self._open.pop(ino, None)
        if file is not None and file.pins:
            self._open[ino] = file
            raise AssertionError(f"local file of inode {ino} is removed while a thread uses it")
        for in_state in (True, False):
            with suppress(FileNotFoundError):
                path = self.path(ino, in_state=in_state)
                if file is None and _is_large(os.lstat(path)):
                    self._removed.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
                os.unlink(path)
        if file is not None and _is_large(os.fstat(file.fd)):
            self._removed.append(file.fd)
        elif file is not None:
            os.close(file.fd)

    async def free_removed(self) -> None:
        """Return when the room of removed files was given back; seconds for large ones.  Cannot be cancelled then."""
        removed, self._removed = self._removed, []
        if removed:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(_close_each, removed)

    async def sync(self, files: Sequence[LocalFile]) -> None:
        """Return when the bytes written to these files, and their names if they were moved to the state folder, are on
        the disk.  Checkpoint; cannot be cancelled meanwhile.

        Raises: OSError as fdatasync(2).
        """
        if not files:
            await trio.lowlevel.checkpoint()
            return
        moves = {file.ino: self._renamed[file.ino] for file in files if file.ino in self._renamed}
        folders = {os.path.dirname(self.path(ino, in_state=True)) for ino in moves}
        for file in files:
            file.pins += 1
        try:
            await trio.to_thread.run_sync(_sync_each, [file.fd for file in files], folders)
        finally:
            for file in files:
                file.pins -= 1
        self._note_synced(moves)

    async def sync_all(self, *, with_cache: bool = False) -> None:
        """Return when everything written to the state folder's file system is on the disk; `with_cache`: and to that of
        the cache folder.  Raises: OSError."""
        moves = dict(self._renamed)
        await trio.to_thread.run_sync(sync_file_system, self._state_fd)
        self._note_synced(moves)
        if with_cache and not self.same_file_system:
            await trio.to_thread.run_sync(sync_file_system, self._cache_fd)

    def _note_synced(self, moves: Mapping[InodeNo, int]) -> None:
        for ino, move in moves.items():
            if self._renamed.get(ino) == move:
                del self._renamed[ino]

    def remove_copies(self) -> None:
        """Remove what a crash left of moves between two file systems: copies that were not finished, and files in the
        cache folder that are in the state folder, too.  At mount, before any file is open."""
        for number in range(_FOLDERS):
            names = [set(os.listdir(base / f"{number:02x}")) for base in (self._state, self._cache)]
            for base, found in zip((self._state, self._cache), names, strict=True):
                for name in found:
                    if name.endswith(_COPYING):
                        os.unlink(base / f"{number:02x}" / name)
            for name in names[0] & names[1]:
                if not name.endswith(_COPYING):
                    os.unlink(self._cache / f"{number:02x}" / name)

    def inodes(self, *, in_state: bool) -> Iterator[InodeNo]:
        """Yield the inode number of every local file in the state or the cache folder; other files are skipped."""
        base = self._state if in_state else self._cache
        for number in range(_FOLDERS):
            with os.scandir(base / f"{number:02x}") as entries:
                for entry in entries:
                    try:
                        yield InodeNo(int(entry.name, 16))
                    except ValueError:
                        continue

    def close(self) -> None:
        """Close all descriptors.  May be called twice."""
        for file in self._open.values():
            os.close(file.fd)
        self._open.clear()
        _close_each(self._removed)
        self._removed.clear()
        if self._state_fd >= 0:
            os.close(self._state_fd)
            os.close(self._cache_fd)
            self._state_fd = self._cache_fd = -1


def _is_large(status: os.stat_result) -> bool:
    return status.st_blocks * _SECTOR_BYTES > LARGE_BYTES


def _close_each(descriptors: Sequence[int]) -> None:
    for fd in descriptors:
        os.close(fd)


def _sync_each(descriptors: Sequence[int], folders: Iterable[str]) -> None:
    for fd in descriptors:
        os.fdatasync(fd)
    for folder in folders:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _copy_sparse(source: str, target: str) -> None:
    """Copy with holes kept, visible under its name only when complete and durable; the name itself is not yet."""
    temporary = f"{target}{_COPYING}"
    with open(source, "rb") as reader, open(temporary, "wb") as writer:
        size = os.fstat(reader.fileno()).st_size
        position = 0
        while position < size:
            try:
                start = os.lseek(reader.fileno(), position, os.SEEK_DATA)
            except OSError:
                break
            position = os.lseek(reader.fileno(), start, os.SEEK_HOLE)
            reader.seek(start)
            writer.seek(start)
            while (left := position - reader.tell()) > 0:
                writer.write(reader.read(min(left, 1 << 20)))
        writer.truncate(size)
        writer.flush()
        os.fsync(writer.fileno())
    shutil.move(temporary, target)

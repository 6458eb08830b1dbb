"""`CuckooFS`: a drive as `fs.base.FS`, on the same PartedFS, cache and clouds as a mount, with no FUSE anywhere.

Used by opener.py, and by tests with a drive of their own.  Thread-safe; no method here takes `lock()`, which is for
those who combine several.  The loop of the drive runs in a thread of its own.

What is written is sent to the clouds in the background, as on a mount, for as long as the file system is open.  `close`
brings everything to the local disk, not to the clouds: the rest is sent when the drive is opened or mounted the next
time.  `sync` waits until everything is on the clouds.

Symbolic links: a path goes through them, and methods that take a path act on what its last name points to; `move`,
`remove`, `islink` and the namespace `lstat` are about the link.  In `scandir`, and so for whatever walks through a
tree, a link is a thing of its own and no directory: nothing that walks leaves the tree, goes in circles, or deletes
what a link points to.  A link that is absolute or climbs out of the drive leads to nothing here.
"""

from __future__ import annotations

import atexit
import io
import itertools
import stat
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, ExitStack, contextmanager, suppress
from functools import partial
from typing import IO, TYPE_CHECKING, Any, BinaryIO, Final, Self, TypeVar, cast
from urllib.parse import quote
from weakref import WeakSet

from cuckoo_mount.clouds.fsimport import FS, errors, stand_in
from cuckoo_mount.errors import CuckooError
from cuckoo_mount.pyfs.actions import Actions
from cuckoo_mount.pyfs.failures import as_fs_error
from cuckoo_mount.pyfs.info import decoded, encoded, info_of, request_from
from cuckoo_mount.pyfs.loopthread import LoopEnded, LoopThread, is_inside
from cuckoo_mount.pyfs.openfiles import PIECE_BYTES
from cuckoo_mount.pyfs.rawfile import Buffer, RawFile, as_text, with_buffer
from cuckoo_mount.pyfs.serving import OpenedDrive, serving
from cuckoo_mount.types import InodeNo

with stand_in():
    from fs.info import Info
    from fs.mode import Mode
    from fs.path import abspath, normpath
    from fs.permissions import Permissions

if TYPE_CHECKING:
    from fs.subfs import SubFS

T = TypeVar("T")
BUFFER_BYTES: Final = 256 << 10
"""Of an open file, unless it asks for another: a way into the loop and back costs as much as many kilobytes."""


class CuckooFS(FS):
    """Drive `name`, opened."""

    _meta = {  # noqa: RUF012 (the base class has it so)
        "case_insensitive": False,
        "invalid_path_chars": "\0",
        "max_path_length": None,
        "max_sys_path_length": None,
        "network": False,
        "read_only": False,
        "supports_mtime": True,
        "supports_rename": False,  # it means os.rename between system paths
        "thread_safe": True,
        "unicode_paths": True,
        "virtual": False,
    }

    def __init__(self, name: str, opening: Callable[[], AbstractAsyncContextManager[OpenedDrive]]) -> None:
        """Open the drive.  Blocks until it is.  Raises: what entering `opening()` raises."""
        self._loop: LoopThread[Actions] | None = None  # first: __del__ comes even after an error
        super().__init__()
        self._name: Final = name
        self._files: WeakSet[io.IOBase] = WeakSet()
        self._loop = LoopThread(name, lambda: serving(opening))
        _open_ones.add(self)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._name!r})"

    def __str__(self) -> str:
        return f"<cuckoo drive {self._name!r}>"

    def __enter__(self) -> Self:
        return self

    def close(self) -> None:
        """Close the files that are still open, with what is in their buffers, and the drive; all is then on this disk.

        What other threads are waiting for ends with FilesystemClosed.  May be called again.
        Raises: OperationFailed, InsufficientStorage, and what else goes wrong on the local disk.
        """
        if self._loop is None or self._closed:
            return
        self._closed = True
        try:
            with ExitStack() as closing:
                closing.callback(self._loop.close)
                if not is_inside():
                    for file in list(self._files):
                        closing.callback(file.close)
                    with suppress(LoopEnded):  # by an error, which closing tells
                        self._loop.call(self._actions.files.stop_reading)
        except (CuckooError, OSError) as error:
            raise as_fs_error(error, "/") from error

    def validatepath(self, path: str) -> str:
        """Return the path absolute and without detours.  Raises: FilesystemClosed, TypeError, InvalidCharsInPath."""
        self.check()
        if not isinstance(path, str):
            raise TypeError(f"a path is a str, not {type(path).__name__}")
        try:
            encoded(path)
        except UnicodeEncodeError as error:
            raise errors.InvalidCharsInPath(path, exc=error) from error
        if "\0" in path:
            raise errors.InvalidCharsInPath(path)
        return abspath(normpath(path))

    def getinfo(self, path: str, namespaces: Collection[str] | None = None) -> Info:
        """Return what is known of what a path leads to: basic, details, access, link, stat, lstat.

        Never waits for a cloud.  Raises: ResourceNotFound.
        """
        names = self._names(path)
        seen = self._call(path, self._actions.look, names)
        return info_of(decoded(names[-1]) if names else "", seen, namespaces or ())

    def islink(self, path: str) -> bool:
        """Return whether a path's last name is a symbolic link, to whatever it leads.  Raises: ResourceNotFound."""
        spot = self._call(path, self._actions.spot, self._names(path))
        return spot.inode is not None and stat.S_ISLNK(spot.inode.mode)

    def listdir(self, path: str) -> list[str]:
        """Return the names in a directory, in the order they were made.  Raises: DirectoryExpected, …"""
        return [decoded(name) for name in self._call(path, self._actions.names, self._names(path))]

    def scandir(
        self, path: str, namespaces: Collection[str] | None = None, page: tuple[int, int] | None = None
    ) -> Iterator[Info]:
        """Return an iterator of what is in a directory; symbolic links are told as such.

        Names that come and go meanwhile may be seen or not; no other is missed or seen twice.
        Raises: DirectoryExpected, ResourceNotFound.
        """
        ino = self._call(path, self._actions.directory, self._names(path))
        found = self._scan(path, ino, namespaces or ())
        return found if page is None else itertools.islice(found, *page)

    def _scan(self, path: str, ino: InodeNo, namespaces: Collection[str]) -> Iterator[Info]:
        cookie = 0
        while batch := self._call(path, self._actions.scan, ino, cookie):
            cookie = batch[-1][0]
            for _, name, seen in batch:
                yield info_of(decoded(name), seen, namespaces)

    def setinfo(self, path: str, info: Mapping[str, Mapping[str, object]]) -> None:
        """Change the times (details: accessed, modified) and permissions, uid, gid (access); pass over the rest."""
        self._call(path, self._actions.set_attributes, self._names(path), request_from(info))

    def geturl(self, path: str, purpose: str = "download") -> str:
        """Return the URL that `fs.open_fs` opens, for purpose "fs".  Raises: NoURL."""
        if purpose != "fs":
            raise errors.NoURL(path, purpose)
        return f"cuckoo://{quote(self._name + self.validatepath(path), errors='surrogateescape')}"

    def makedir(self, path: str, permissions: Permissions | None = None, recreate: bool = False) -> SubFS[FS]:
        """Make a directory; the umask cuts `permissions`.  Raises: DirectoryExists, ResourceNotFound."""
        try:
            self._call(path, self._actions.make_directory, self._names(path), Permissions.get_mode(permissions))
        except errors.FileExists as error:
            if not recreate:
                raise errors.DirectoryExists(path, exc=error.exc) from error
        return self.opendir(path)

    def remove(self, path: str) -> None:
        """Remove a file, or a symbolic link itself.  Raises: FileExpected, ResourceNotFound."""
        self._call(path, self._actions.remove_file, self._names(path))

    def removedir(self, path: str) -> None:
        """Remove an empty directory.  Raises: DirectoryExpected, DirectoryNotEmpty, RemoveRootError, …"""
        names = self._names(path)
        if not names:
            raise errors.RemoveRootError(path)
        self._call(path, self._actions.remove_directory, names)

    def removetree(self, dir_path: str) -> None:
        """Remove a directory with all that is in it; of the root, only that.  Links are removed, not followed."""
        self._call(dir_path, self._actions.remove_tree, self._names(dir_path))

    def move(self, src_path: str, dst_path: str, overwrite: bool = False, preserve_time: bool = False) -> None:
        """Rename a file, atomically; times, permissions and links go with it, whatever `preserve_time` says."""
        source = self._call(src_path, self._actions.spot, self._names(src_path))
        if source.inode is not None and stat.S_ISDIR(source.inode.mode):
            raise errors.FileExpected(src_path)
        with _destination(dst_path):
            self._call(dst_path, partial(self._actions.move_file, overwrite=overwrite), source, self._names(dst_path))

    def movedir(self, src_path: str, dst_path: str, create: bool = False, preserve_time: bool = False) -> None:
        """Rename a directory, atomically; into one that is not empty what is in it is moved name by name."""
        source = self._call(src_path, self._actions.spot, self._names(src_path))
        if source.inode is not None and not stat.S_ISDIR(source.inode.mode):
            raise errors.DirectoryExpected(src_path)
        action = partial(self._actions.move_directory, create=create)
        self._call(dst_path, action, source, self._names(dst_path))

    def copy(self, src_path: str, dst_path: str, overwrite: bool = False, preserve_time: bool = False) -> None:
        """Copy a file inside the drive; equal chunks are stored once.  Raises: DestinationExists, FileExpected, …"""
        names = self._names(src_path)
        self._call(src_path, self._actions.look, names)
        action = partial(self._actions.files.copy, overwrite=overwrite, keep_times=preserve_time)
        with _destination(dst_path):
            self._call(dst_path, action, names, self._names(dst_path))

    def create(self, path: str, wipe: bool = False) -> bool:
        """Make an empty file, or, with `wipe`, empty one; return whether anything was done."""
        try:
            self.openbin(path, "xb").close()
        except errors.FileExists:
            if not wipe:
                return False
            self.openbin(path, "wb").close()
        return True

    def openbin(self, path: str, mode: str = "r", buffering: int = -1, **options: Any) -> BinaryIO:  # noqa: ANN401
        """Open a file; modes and `buffering` as of Python's open().  It keeps the file system open while it lives.

        Raises: FileExpected (a directory), ResourceInvalid (a device), FileExists (mode x), ResourceNotFound.
        """
        file = self._open_file(path, mode, buffering)
        self._files.add(file)
        return cast(BinaryIO, file)

    def _open_file(self, path: str, mode: str, buffering: int) -> RawFile | Buffer:
        asked = Mode(mode)
        asked.validate_bin()
        raw = RawFile(
            self._running,
            self._open(path, asked),
            path,
            mode=asked.to_platform_bin(),
            reading=asked.reading,
            writing=asked.writing,
            appending=asked.appending,
            owner=self,
        )
        return with_buffer(raw, BUFFER_BYTES if buffering in (-1, 1) else buffering) if buffering else raw

    def open(
        self,
        path: str,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = "",
        **options: Any,  # noqa: ANN401
    ) -> IO[Any]:
        """Open a file, as text unless the mode has a b.  Raises: as `openbin`."""
        if Mode(mode).binary:
            return self.openbin(path, mode, buffering)
        file = self._open_file(path, mode.replace("t", ""), buffering)
        if isinstance(file, RawFile):
            file.close()
            raise ValueError("text cannot be unbuffered")
        line_buffering = bool(options.get("line_buffering", buffering == 1))
        text = as_text(file, encoding or "utf-8", errors, newline, line_buffering=line_buffering)
        self._files.add(text)
        return text

    def readbytes(self, path: str) -> bytes:
        """Return a file's content.  Raises: FileExpected, ResourceNotFound; what reading from clouds raises."""
        return self._call(path, self._actions.files.read_all, self._names(path))

    def writebytes(self, path: str, contents: bytes) -> None:
        """Make a file, or empty one, and give it this content.  Raises: TypeError, FileExpected, …"""
        if not isinstance(contents, bytes):
            raise TypeError(f"the contents are bytes, not {type(contents).__name__}")
        self._call(path, self._actions.files.write_all, self._names(path), contents)

    def upload(self, path: str, file: BinaryIO, chunk_size: int | None = None, **options: Any) -> None:  # noqa: ANN401
        """Give a file the content of an open one, from where that stands, without holding more than 4 MiB of it."""
        with self._opened(path, "wb") as number:
            offset = 0
            while piece := file.read(chunk_size or PIECE_BYTES):
                data = piece if type(piece) is bytes else bytes(memoryview(piece))
                offset = self._call(path, self._actions.files.write, number, offset, data)

    def download(self, path: str, file: BinaryIO, chunk_size: int | None = None, **options: Any) -> None:  # noqa: ANN401
        """Write a file's content to an open one, without holding more than 4 MiB of it."""
        with self._opened(path, "rb") as number:
            offset = 0
            while piece := self._call(path, self._actions.files.read, number, offset, chunk_size or PIECE_BYTES):
                file.write(piece)
                offset += len(piece)

    @contextmanager
    def _opened(self, path: str, mode: str) -> Iterator[int]:
        number = self._open(path, Mode(mode))
        try:
            yield number
        finally:
            with suppress(errors.FilesystemClosed):  # then it was closed
                self._call(path, self._actions.files.release, number)

    def _open(self, path: str, mode: Mode) -> int:
        action = partial(
            self._actions.files.open,
            writing=mode.writing,
            create=mode.create,
            exclusive=mode.exclusive,
            truncate=mode.truncate,
        )
        return self._call(path, action, self._names(path))

    def make_durable(self, path: str) -> None:
        """Return when what a path leads to survives a power cut of this machine (fsync(2)).

        Of a file all that was flushed from Python's buffers, of a directory the names in it.
        """
        self._call(path, self._actions.files.make_durable, self._names(path))

    def sync(self) -> None:
        """Return when everything written before is on the clouds; waits as long as that takes."""
        self.check()
        self._call("/", self._actions.send_all)

    @property
    def _running(self) -> LoopThread[Actions]:
        if self._loop is None:
            raise errors.FilesystemClosed
        return self._loop

    @property
    def _actions(self) -> Actions:
        return self._running.service

    def _names(self, path: str) -> list[bytes]:
        return [encoded(name) for name in self.validatepath(path).split("/") if name]

    def _call(self, path: str, function: Callable[..., Awaitable[T]], *args: object) -> T:
        try:
            return self._running.call(function, *args)
        except (CuckooError, OSError) as error:
            raise as_fs_error(error, path) from error


_open_ones: Final[WeakSet[CuckooFS]] = WeakSet()


@atexit.register
def _close_all() -> None:
    """Close what the program leaves open when it ends, while there are still threads to do it."""
    with ExitStack() as closing:
        for system in list(_open_ones):
            closing.callback(system.close)


@contextmanager
def _destination(path: str) -> Iterator[None]:
    """What exists is the destination of a copy or move."""
    try:
        yield
    except errors.FileExists as error:
        raise errors.DestinationExists(path, exc=error.exc) from error

"""A folder of this machine as a cloud: opened through PyFilesystem, its data read and written by system calls.

PyFilesystem's own OSFS truncates in place, which is neither atomic nor durable; here a put is temporary file, write,
fsync, rename, fsync of the folder.  Used by registry.py.  Any number of threads; holds no file open between calls, so
that the disk below may be unmounted.

Rules it keeps:
* An object is whole or absent, and on the disk, when put returns; so are the folders it lies in.
* "Not there" is said only while the root is the folder that was opened: when a disk was unmounted, its empty
  mountpoint stands in the same place.  Another folder is accepted there only if it holds our top folder.
* Only files with our own temporary name are ever swept, and not before `LEFTOVER_AGE_S`.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Final, TypeVar

from cuckoo_mount.clouds import fsimport
from cuckoo_mount.clouds.base import Capabilities, CloudSettings, ObjectInfo, Space
from cuckoo_mount.clouds.names import check_object_name, check_prefix, check_range, is_object_name
from cuckoo_mount.clouds.translate import translate_os_error
from cuckoo_mount.errors import CloudCorrupt, CloudMissing, CloudUnavailable

LEFTOVER_AGE_S: Final = 3 * 24 * 3600.0
"""Temporary files older than this belong to no put that is still running, as workers are killed at their deadline; so
much that this holds where a clock is a day off."""
_TEMPORARY: Final = re.compile(r"~put-[0-9a-f]{16}")
_GONE: Final = frozenset({errno.ENOENT, errno.ENOTDIR})
# File systems without fsync of folders (some network ones) say so; they order their own metadata.
_NO_FOLDER_SYNC: Final = frozenset({errno.EINVAL, errno.EOPNOTSUPP, errno.EBADF})

T = TypeVar("T")
_Entries = list[tuple[str, int | None]]
"""What lies directly in a folder: full name, and size in bytes or None for a folder."""


class FolderCloud:
    """A Cloud in the folder `root` (absolute).  See clouds/base.py for what each method promises."""

    def __init__(self, settings: CloudSettings, root: str) -> None:
        """Open `root`, which must be there.  Raises: CloudUnavailable, CloudRefused."""
        self._settings = settings
        try:
            with fsimport.open_folder(root) as opened:
                self._root = opened.getsyspath("/").rstrip("/") or "/"
            self._root_key = self._stat_root()
        except fsimport.errors.FSError as error:
            raise self._root_gone(root) from error
        except OSError as error:
            raise translate_os_error(error, settings, "") from error
        self._lock = threading.Lock()
        self._ready_folders: set[str] = set()

    @property
    def settings(self) -> CloudSettings:
        return self._settings

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(reports_space=True)

    def put(self, name: str, data: bytes | memoryview) -> None:
        check_object_name(name)
        try:
            self._call(name, lambda: self._put(name, data))
        except CloudMissing as error:
            raise CloudUnavailable(
                "its folder vanished while it was written; try again", cloud=self._settings.name, name=name
            ) from error

    def get(self, name: str) -> bytes:
        check_object_name(name)
        return self._call(name, lambda: self._read(name, 0, None))

    def get_range(self, name: str, offset: int, length_bytes: int) -> bytes:
        check_object_name(name)
        check_range(offset, length_bytes)
        return self._call(name, lambda: self._read(name, offset, length_bytes))

    def delete(self, name: str) -> None:
        check_object_name(name)
        try:
            self._call(name, lambda: os.unlink(self._path(name)))
        except CloudMissing:
            return

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        check_prefix(prefix)
        pending = [prefix]
        while pending:
            folder = pending.pop()
            try:
                found = self._call(folder, partial(self._scan, folder))
            except CloudMissing:  # never made, or removed meanwhile
                continue
            for name, size_bytes in found:
                if size_bytes is None:
                    pending.append(f"{name}/")
                else:
                    yield ObjectInfo(name, size_bytes)

    def space(self) -> Space | None:
        def ask() -> Space:
            answer = os.statvfs(self._root)
            return Space(answer.f_blocks * answer.f_frsize, answer.f_bavail * answer.f_frsize)

        return self._call("", ask)

    def close(self) -> None:
        """Nothing is held open."""

    # --- errors ---------------------------------------------------------------------------------------------------

    def _call(self, name: str, action: Callable[[], T]) -> T:
        """Return what `action` returns, with the errors of the Cloud protocol."""
        try:
            return action()
        except OSError as error:
            if error.errno in _GONE:
                self._check_root(name)
                raise CloudMissing("no such object", cloud=self._settings.name, name=name) from error
            raise translate_os_error(error, self._settings, name) from error

    def _stat_root(self) -> tuple[int, int]:
        found = os.stat(self._root)
        if not stat.S_ISDIR(found.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), self._root)
        return found.st_dev, found.st_ino

    def _check_root(self, name: str) -> None:
        """Raises: CloudUnavailable if the root is gone, or another folder stands there without our top folder."""
        try:
            key = self._stat_root()
        except OSError as error:
            raise self._root_gone(self._root) from error
        if key == self._root_key:
            return
        top = name.partition("/")[0]
        if not (top and os.path.isdir(os.path.join(self._root, top))):
            raise CloudUnavailable(
                f"another folder stands at {self._root} since it was opened; mount the disk that belongs there",
                cloud=self._settings.name,
            )
        with self._lock:
            self._root_key = key
            self._ready_folders.clear()

    def _root_gone(self, root: str) -> CloudUnavailable:
        return CloudUnavailable(
            f"folder {root} is not there; mount the disk it is on, or create the folder",
            cloud=self._settings.name,
        )

    # --- data -----------------------------------------------------------------------------------------------------

    def _path(self, name: str) -> str:
        return os.path.join(self._root, name)

    def _put(self, name: str, data: bytes | memoryview) -> None:
        target = self._path(name)
        folder = os.path.dirname(target)
        self._prepare(folder, name)
        temporary = os.path.join(folder, f"~put-{secrets.token_hex(8)}")
        try:
            _write_durably(temporary, data)
            os.rename(temporary, target)
        except BaseException:
            _unlink_quietly(temporary)
            raise
        _sync_folder(folder)

    def _prepare(self, folder: str, name: str) -> None:
        """Make `folder` and put its name, and those of its parents, on the disk: once per folder and process.

        Also for folders that exist: whoever made them may have been killed before its fsync.
        """
        with self._lock:
            ready = folder in self._ready_folders
        if ready and os.path.isdir(folder):
            return
        self._check_root(name)
        above = self._root
        for part in name.split("/")[:-1]:  # not makedirs: that would make a root which is gone
            below = os.path.join(above, part)
            with suppress(FileExistsError):
                os.mkdir(below, 0o700)
            _sync_folder(above)
            above = below
        self._sweep(folder)
        with self._lock:
            self._ready_folders.add(folder)

    def _read(self, name: str, offset: int, length_bytes: int | None) -> bytes:
        descriptor = os.open(self._path(name), os.O_RDONLY | os.O_CLOEXEC)
        try:
            size_bytes = os.fstat(descriptor).st_size
            wanted = size_bytes - offset if length_bytes is None else length_bytes
            if offset + wanted > size_bytes:
                raise self._too_short(name, offset + wanted, size_bytes)
            data = _pread_all(descriptor, offset, wanted)
        finally:
            os.close(descriptor)
        if len(data) != wanted:
            raise self._too_short(name, offset + wanted, offset + len(data))
        return data

    def _too_short(self, name: str, wanted: int, had: int) -> CloudCorrupt:
        return CloudCorrupt(f"{wanted} bytes wanted, the object has {had}", cloud=self._settings.name, name=name)

    # --- folders --------------------------------------------------------------------------------------------------

    def _scan(self, prefix: str) -> _Entries:
        """Return what lies directly below `prefix`; remove leftovers."""
        found: _Entries = []
        with os.scandir(self._path(prefix)) as entries:
            for entry in entries:
                name = f"{prefix}{entry.name}"
                if not is_object_name(name):
                    _remove_if_leftover(entry)
                elif entry.is_dir(follow_symlinks=False):
                    found.append((name, None))
                elif entry.is_file(follow_symlinks=False):
                    try:
                        found.append((name, entry.stat(follow_symlinks=False).st_size))
                    except FileNotFoundError:
                        continue  # deleted since the folder was read
        return found

    def _sweep(self, folder: str) -> None:
        """Remove what interrupted puts left in `folder`.

        Here, when a folder is first written to, and in listings: going through the whole tree at every start of a
        worker would cost more than the leftovers do.
        """
        with os.scandir(folder) as entries:
            for entry in entries:
                _remove_if_leftover(entry)

    def __repr__(self) -> str:
        return f"FolderCloud({self._settings.name!r}, {self._root!r})"


def open_folder_cloud(settings: CloudSettings, place: str) -> FolderCloud:
    """Return the cloud in the folder `place` (absolute).  Raises: CloudUnavailable, CloudRefused."""
    return FolderCloud(settings, place)


def _remove_if_leftover(entry: os.DirEntry[str]) -> None:
    if _TEMPORARY.fullmatch(entry.name) is None:
        return
    try:
        if time.time() - entry.stat(follow_symlinks=False).st_mtime > LEFTOVER_AGE_S:
            os.unlink(entry.path)
    except OSError:
        return  # another process was faster, or may not: a leftover harms nobody


def _write_durably(path: str, data: bytes | memoryview) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        rest = memoryview(data).cast("B")
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _pread_all(descriptor: int, offset: int, length_bytes: int) -> bytes:
    """Return up to `length_bytes` bytes: fewer only at the end of the file.  One call gives at most 2 GiB."""
    data = os.pread(descriptor, length_bytes, offset)
    if len(data) == length_bytes or not data:
        return data
    parts = [data]
    done = len(data)
    while done < length_bytes and (data := os.pread(descriptor, length_bytes - done, offset + done)):
        parts.append(data)
        done += len(data)
    return b"".join(parts)


def _sync_folder(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(descriptor)


def _unlink_quietly(path: str) -> None:
    with suppress(OSError):
        os.unlink(path)

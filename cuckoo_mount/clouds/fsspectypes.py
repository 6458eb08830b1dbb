"""What is used of an fsspec file system, and what fsspeckinds.py says of each kind.  Used by the fsspec*.py modules.

fsspec has no types; a file system is whatever has these methods, so that others than fsspec's may stand in for one
(opendalfs.py).  Pure, any thread.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

from attrs import field, frozen

from cuckoo_mount.clouds.base import Space

Entry = Mapping[str, object]
"""What is known of a file or folder: `name` (its full path), `size` in bytes, `type` ("file" or "directory")."""
Arguments = dict[str, object]
"""Keyword arguments of a file system's constructor."""


class FileSystem(Protocol):
    """The part of fsspec's AbstractFileSystem that is used.  Paths are those that `_strip_protocol` returns.

    Raises anything; FileNotFoundError for a path that is not there.
    """

    def info(self, path: str) -> Entry: ...
    def ls(self, path: str, detail: bool = True) -> Sequence[Entry]: ...
    def find(self, path: str, detail: bool = True) -> Mapping[str, Entry]: ...
    def mkdir(self, path: str, create_parents: bool = True) -> None: ...
    def pipe_file(self, path: str, value: bytes) -> None: ...
    def cat_file(self, path: str, start: int | None = None, end: int | None = None) -> bytes: ...
    def rm_file(self, path: str) -> None: ...
    def rmdir(self, path: str) -> None: ...


@frozen(slots=True, kw_only=True)
class FsspecPlace:
    """What a URL says: `protocol` as fsspec names it, `target` what follows `://` without the query.

    `options` also hold those of the query.
    """

    protocol: str
    target: str = field(repr=False)  # may have a password in it
    options: dict[str, str] = field(factory=dict)
    secrets: dict[str, str] = field(factory=dict, repr=False)
    timeout_s: float = 30.0


def _write(filesystem: FileSystem, path: str, content: bytes) -> None:
    filesystem.pipe_file(path, content)


def _read(filesystem: FileSystem, path: str, start: int | None, end: int | None) -> bytes:
    return filesystem.cat_file(path, start=start, end=end)


def _no_space(filesystem: FileSystem, root: str) -> Space | None:
    return None


def _leave(filesystem: FileSystem, timeout_s: float) -> None:
    pass


@frozen(slots=True, kw_only=True)
class FsspecKind:
    """How file systems of some protocols are made and treated.

    `extra`: of ours, which installs what is needed; else `package`.
    `maker`: "module:class", where that is not what fsspec knows.
    `library`: the module that a maker of ours needs.
    `arguments`: what the constructor is given besides options and secrets, by the limit on a network operation in s.
    `place`: arguments and root where the class itself does not read them out of a URL.
    `renamed`: our names of options and secrets → the constructor's.
    `required`: options or secrets of which one has to be there, or the library would try to ask somebody.
    `known`: names the constructor takes without saying so.
    `flat`: an object store: no folders, and everything below a prefix is listed at once.
    `shared`: any number of threads may use one file system; else each call has one for itself.
    `in_process`: it begins with the process, so that its root is always there.
    `makes_folders`: storing a file makes its folders, the root too, so that this is looked at before.
    `careful`: nothing is known of it: the root is looked at before each put, sizes are compared after puts and gets.
    `reconnects`: a kept connection may turn out to be broken, and the call is made once more.
    `find`: replaces an asynchronous file system's own.
    `close`, `drop`: give back the connections of one that is not used any more; of one that turned out to be broken.
    `prepare`: called with each file system that was made, and the limit in s.
    """

    names: tuple[str, ...]
    title: str = ""
    extra: str = ""
    package: str = ""
    maker: str = ""
    library: str = ""
    arguments: Callable[[float], Arguments] = field(default=lambda _: {})
    place: Callable[[FsspecPlace], tuple[Arguments, str]] | None = None
    renamed: Mapping[str, str] = field(factory=dict)
    required: tuple[str, ...] = ()
    known: frozenset[str] = frozenset()
    flat: bool = False
    shared: bool = True
    in_process: bool = False
    makes_folders: bool = False
    careful: bool = False
    reconnects: bool = False
    atomic_put: bool = True
    native_range: bool = True
    durable_put: bool = False
    reports_space: bool = False
    max_object_bytes: int | None = None
    prepare: Callable[[FileSystem, float], None] = _leave
    write: Callable[[FileSystem, str, bytes], None] = _write
    read: Callable[[FileSystem, str, int | None, int | None], bytes] = _read
    find: Callable[[FileSystem, str], Awaitable[Mapping[str, Entry]]] | None = None
    space: Callable[[FileSystem, str], Space | None] = _no_space
    close: Callable[[FileSystem], None] = field(default=lambda _: None)
    drop: Callable[[FileSystem], None] = field(default=lambda _: None)

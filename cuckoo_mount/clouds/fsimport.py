"""The one door to PyFilesystem: everything of ours gets `fs` from here, so that `import fs` works and is silent.

PyFilesystem 2.4.16 and most of its drivers import `pkg_resources` for namespace packages and entry points.  setuptools
82 dropped that module, the versions before it warn, and a fresh virtual environment has no setuptools at all.  So while
`fs` or one of its drivers is imported or opened, a small stand-in takes that name in `sys.modules`; the opener registry
keeps its own reference to it.  Afterwards the name is free again: other libraries must not take it for the real thing.
Where the real one was imported before us, it is used and stays.

Threading: `stand_in` may be entered by several threads at once; the first one installs it, the last one removes it.
Measured: importing `fs` this way on Python 3.11.7, 3.12.1 and 3.13.0, with setuptools absent, 58, 65, 79, 81 and 84.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

_NAME: Final = "pkg_resources"
_FSSPEC: Final = "fsspec+"
_lock: Final = threading.Lock()
_users = 0


def _declare_namespace(package: str) -> None:
    """Let `package` span every folder of sys.path: fs.dropboxfs may be installed elsewhere than fs."""
    module = sys.modules[package]
    module.__path__ = pkgutil.extend_path(module.__path__, package)


def _iter_entry_points(group: str, name: str | None = None) -> Iterator[EntryPoint]:
    """Yield installed entry points.  An iterator, not a list: the opener registry calls next() on it."""
    from importlib.metadata import entry_points  # imports the email package: only when an extension is asked for

    found = entry_points(group=group) if name is None else entry_points(group=group, name=name)
    return iter(found)


def _resource_string(package: str, name: str) -> bytes:
    """Return the bytes of a file inside `package` (fs.sshfs keeps its version in one)."""
    data = pkgutil.get_data(package, name)
    if data is None:
        raise FileNotFoundError(f"{package} has no file {name}")
    return data


def _delegate(attribute: str) -> object:
    """Answer for what the stand-in lacks with the real module, for drivers that use more than we know of.

    Raises: AttributeError when the real module is not installed or lacks it too.
    """
    if attribute.startswith("__"):  # the import system probes these
        raise AttributeError(attribute)
    value: object = getattr(_real(attribute), attribute)
    return value


@cache
def _real(attribute: str) -> ModuleType:
    with _lock:
        ours = sys.modules.pop(_NAME, None)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return importlib.import_module(_NAME)
        except Exception as error:  # old setuptools on new Python fails with many kinds
            raise AttributeError(f"{_NAME}.{attribute} needs setuptools < 82, which cannot be imported") from error
        finally:
            sys.modules.pop(_NAME, None)
            if ours is not None:
                sys.modules[_NAME] = ours


def _make_stand_in() -> ModuleType:
    module = ModuleType(_NAME, "Stand-in of cuckoo_mount.clouds.fsimport while PyFilesystem is imported.")
    vars(module).update(
        declare_namespace=_declare_namespace,
        iter_entry_points=_iter_entry_points,
        resource_string=_resource_string,
        __getattr__=_delegate,
    )
    return module


_STAND_IN: Final = _make_stand_in()


@contextmanager
def stand_in() -> Iterator[None]:
    """Keep a `pkg_resources` importable inside the block: the real one if already imported, else the stand-in.

    Needed around everything that may import a PyFilesystem driver, which includes opening one.
    """
    global _users
    with _lock:
        _users += 1
        sys.modules.setdefault(_NAME, _STAND_IN)
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if not _users and sys.modules.get(_NAME) is _STAND_IN:
                del sys.modules[_NAME]


with stand_in(), warnings.catch_warnings():
    # The real pkg_resources, where something has imported it before us, warns about every namespace declared with it.
    warnings.filterwarnings("ignore", message=".*pkg_resources", category=DeprecationWarning)
    warnings.filterwarnings("ignore", message=".*pkg_resources", category=UserWarning)
    import fs.opener
    import fs.opener.base
    from fs import errors
    from fs.base import FS
    from fs.opener.errors import OpenerError


def open_fs(url: str, *, writeable: bool = True) -> FS:
    """Open the file system that `url` names, as PyFilesystem does, importing its driver if need be.

    `writeable` False: an archive is only read.

    Blocks: drivers may contact their server.  Raises: whatever the driver raises (map it with translate.py);
    fs.opener.errors.UnsupportedProtocol for an unknown scheme.
    """
    scheme = url.partition("://")[0]
    if scheme.startswith(_FSSPEC) and scheme not in fs.opener.registry.protocols:
        fs.opener.registry.install(_FsspecOpener(scheme))
    with stand_in():
        opened: FS = fs.opener.open_fs(url, writeable=writeable, create=False)
    return opened


class _FsspecOpener(fs.opener.base.Opener):
    """Lets PyFilesystem open a scheme of fsspecfs.py, of which there are more than can be listed."""

    def __init__(self, scheme: str) -> None:
        self.protocols = [scheme]

    def open_fs(self, fs_url: str, parse_result: object, writeable: bool, create: bool, cwd: str) -> FS:
        from cuckoo_mount.clouds.fsspecfs import open_fsspec_fs

        return open_fsspec_fs(fs_url)


def open_folder(path: str) -> FS:
    """Open the local folder `path`, taken literally: no `$VARIABLE`, `%41` or `!` in it is given a meaning.

    Raises: fs.errors.CreateFailed if it is not a folder.
    """
    from fs.osfs import OSFS

    return OSFS(path, create=False, expand_vars=False)


def known_schemes() -> list[str]:
    """Return the schemes PyFilesystem can open with what is installed, sorted."""
    with stand_in():
        return sorted(fs.opener.registry.protocols)


__all__ = ["FS", "OpenerError", "errors", "known_schemes", "open_folder", "open_fs", "stand_in"]

"""rename(2): bookkeeping, and the same errors as the file system under the tests."""

from __future__ import annotations

import ctypes
import errno
import itertools
import os
from pathlib import Path

import pytest

from cuckoo_mount.errors import FileSystemError
from cuckoo_mount.metadata.store import SqliteMetadata
from cuckoo_mount.types import InodeNo
from tests.metadata.helpers import ROOT, make_directory, make_file, names_in

FLAGS = {"plain": 0, "no_replace": 1, "exchange": 2}
PATHS = (b"f", b"g", b"empty", b"full", b"full/inner", b"full/inner/file", b"full/inner/deep", b"missing", b"empty/new")


def _make_real_tree(root: bytes) -> None:
    os.makedirs(root + b"/full/inner/deep")
    os.mkdir(root + b"/empty")
    for name in (b"f", b"g", b"full/inner/file"):
        os.close(os.open(root + b"/" + name, os.O_CREAT | os.O_WRONLY))


async def _listing(store: SqliteMetadata, ino: InodeNo = ROOT, prefix: bytes = b"") -> set[bytes]:
    found: set[bytes] = set()
    for name, inode in (await names_in(store, ino)).items():
        found.add(prefix + name)
        if inode.mode & 0o40000:
            found |= await _listing(store, inode.ino, prefix + name + b"/")
    return found


def _real_listing(root: bytes) -> set[bytes]:
    found: set[bytes] = set()
    for folder, folders, files in os.walk(root):
        found |= {os.path.join(folder, name)[len(root) + 1 :] for name in folders + files}
    return found


@pytest.mark.slow
@pytest.mark.parametrize("how", FLAGS)
async def test_same_outcome_as_the_real_thing(store: SqliteMetadata, tmp_path: Path, how: str) -> None:
    renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    for number, (old, new) in enumerate(itertools.product(PATHS, PATHS)):
        real = os.fsencode(tmp_path / str(number))
        _make_real_tree(real)
        failed = renameat2(-100, real + b"/" + old, -100, real + b"/" + new, FLAGS[how])
        expected = ctypes.get_errno() if failed else 0
        if expected == errno.ENOSYS:
            pytest.skip("no renameat2 here")
        top = await make_directory(store, b"top%d" % number)
        got = await _rename_below(store, top, old, new, how)
        assert got == expected, (old, new)
        assert await _listing(store, top) == _real_listing(real), (old, new)
    assert await store.check_invariants() == []


async def _rename_below(store: SqliteMetadata, top: InodeNo, old: bytes, new: bytes, how: str) -> int:
    await make_file(store, b"f", top)
    await make_file(store, b"g", top)
    await make_directory(store, b"empty", top)
    inner = await make_directory(store, b"inner", await make_directory(store, b"full", top))
    await make_file(store, b"file", inner)
    await make_directory(store, b"deep", inner)
    parents = []
    for path in (old, new):
        ino = top
        for part in path.split(b"/")[:-1]:
            ino = (await store.lookup(ino, part)).ino
        parents.append(ino)
    try:
        await store.rename(
            parents[0],
            old.split(b"/")[-1],
            parents[1],
            new.split(b"/")[-1],
            now_ns=5,
            no_replace=how == "no_replace",
            exchange=how == "exchange",
        )
    except FileSystemError as error:
        return error.errno
    return 0


async def test_moving_stamps_and_counts(store: SqliteMetadata) -> None:
    a, b = await make_directory(store, b"a"), await make_directory(store, b"b")
    d = await make_directory(store, b"d", a)
    cookie = (await store.list_directory(a, 0, 1))[0].cookie
    renamed = await store.rename(a, b"d", b, b"e", now_ns=60)
    assert renamed.replaced is None
    assert (renamed.moved.ino, renamed.moved.ctime_ns, renamed.moved.mtime_ns) == (d, 60, 10)
    for parent, links in ((a, 2), (b, 3)):
        inode = await store.get_inode(parent)
        assert (inode.nlink, inode.mtime_ns, inode.ctime_ns) == (links, 60, 60)
    assert (await store.get_parent(d)).ino == b
    assert (await store.list_directory(b, 0, 1))[0].cookie > cookie


async def test_replaced_file_loses_a_link(store: SqliteMetadata) -> None:
    await make_file(store, b"a")
    b = await make_file(store, b"b")
    await store.add_link(b, ROOT, b"other", 11)
    renamed = await store.rename(ROOT, b"a", ROOT, b"b", now_ns=60)
    assert renamed.replaced is not None
    assert (renamed.replaced.ino, renamed.replaced.nlink, renamed.replaced.ctime_ns) == (b, 1, 60)
    renamed = await store.rename(ROOT, b"b", ROOT, b"other", now_ns=61)
    assert renamed.replaced is not None
    assert renamed.replaced.nlink == 0
    assert await store.orphans() == [b]


async def test_replaced_directory_is_an_orphan(store: SqliteMetadata) -> None:
    await make_directory(store, b"a")
    b = await make_directory(store, b"b")
    renamed = await store.rename(ROOT, b"a", ROOT, b"b", now_ns=60)
    assert renamed.replaced is not None
    assert (renamed.replaced.ino, renamed.replaced.nlink) == (b, 0)
    assert (await store.get_inode(ROOT)).nlink == 3
    assert await store.orphans() == [b]


async def test_two_names_of_one_node_stay(store: SqliteMetadata) -> None:
    a = await make_file(store, b"a")
    await store.add_link(a, ROOT, b"b", 11)
    before = await store.get_inode(a)
    renamed = await store.rename(ROOT, b"a", ROOT, b"b", now_ns=60)
    assert (renamed.moved, renamed.replaced) == (before, None)
    assert set(await names_in(store)) == {b"a", b"b"}


async def test_exchange_of_directory_and_file(store: SqliteMetadata) -> None:
    a, b = await make_directory(store, b"a"), await make_directory(store, b"b")
    d, f = await make_directory(store, b"d", a), await make_file(store, b"f", b)
    renamed = await store.rename(a, b"d", b, b"f", now_ns=60, exchange=True)
    assert renamed.replaced is not None
    assert (renamed.moved.ino, renamed.replaced.ino) == (d, f)
    assert renamed.moved.ctime_ns == renamed.replaced.ctime_ns == 60
    assert [(await store.get_inode(ino)).nlink for ino in (a, b)] == [2, 3]
    assert (await store.get_parent(d)).ino == b
    assert (await names_in(store, a))[b"d"].ino == f

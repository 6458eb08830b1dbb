"""Nodes and names by operation."""

from __future__ import annotations

import stat

import pytest

from cuckoo_mount.errors import (
    AlreadyExists,
    DirectoryNotEmpty,
    InvalidArgument,
    IsADirectory,
    NoAttribute,
    NotADirectory,
    NotFound,
    NotPermitted,
    StaleInode,
    TooManyLinks,
)
from cuckoo_mount.metadata import names, renames
from cuckoo_mount.metadata.base import Metadata
from cuckoo_mount.metadata.records import NewNode
from cuckoo_mount.metadata.store import SqliteMetadata
from cuckoo_mount.types import InodeChanges, InodeNo
from tests.metadata.helpers import ROOT, make_directory, make_file, names_in, node


async def test_is_the_protocol(store: SqliteMetadata) -> None:
    metadata: Metadata = store
    assert metadata is store


async def test_root(store: SqliteMetadata) -> None:
    root = await store.get_inode(ROOT)
    assert (root.ino, root.mode, root.uid, root.gid, root.nlink) == (1, stat.S_IFDIR | 0o755, 7, 8, 2)
    assert root.atime_ns == root.mtime_ns == root.ctime_ns == root.btime_ns == 1
    assert await store.get_parent(ROOT) == root


async def test_make_node_stores_what_was_given(store: SqliteMetadata) -> None:
    new = NewNode(mode=stat.S_IFCHR | 0o600, uid=3, gid=4, now_ns=55, rdev=0x103, xattrs={b"user.a": b"1"})
    made = await store.make_node(ROOT, b"null", new)
    assert made == await store.lookup(ROOT, b"null") == await store.get_inode(made.ino)
    assert (made.mode, made.uid, made.gid, made.rdev, made.nlink) == (new.mode, 3, 4, 0x103, 1)
    assert made.atime_ns == made.mtime_ns == made.ctime_ns == made.btime_ns == 55
    assert await store.list_xattrs(made.ino) == [b"user.a"]
    root = await store.get_inode(ROOT)
    assert (root.mtime_ns, root.ctime_ns, root.atime_ns, root.nlink) == (55, 55, 1, 2)


async def test_make_directory_counts_links(store: SqliteMetadata) -> None:
    ino = await make_directory(store, b"d")
    assert (await store.get_inode(ino)).nlink == 2
    assert (await store.get_inode(ROOT)).nlink == 3
    assert (await store.get_parent(ino)).ino == ROOT


async def test_make_node_refuses(store: SqliteMetadata) -> None:
    ino = await make_file(store, b"f")
    with pytest.raises(AlreadyExists):
        await make_file(store, b"f")
    with pytest.raises(NotADirectory):
        await make_file(store, b"g", ino)
    with pytest.raises(StaleInode):
        await make_file(store, b"g", InodeNo(99))
    assert store.statistics().inodes == 2
    assert list(await names_in(store)) == [b"f"]


async def test_removed_directory_takes_no_entries(store: SqliteMetadata) -> None:
    ino = await make_directory(store, b"d")
    await make_file(store, b"f")
    gone = await store.remove_directory(ROOT, b"d", 20)
    assert (gone.nlink, gone.ctime_ns) == (0, 20)
    assert await store.orphans() == [ino]
    for attempt in (
        store.make_node(ino, b"x", node()),
        store.add_link((await store.lookup(ROOT, b"f")).ino, ino, b"x", 1),
        store.rename(ROOT, b"f", ino, b"x", now_ns=1),
        store.lookup(ino, b"x"),
        store.get_parent(ino),
    ):
        with pytest.raises(NotFound):
            await attempt
    assert await store.list_directory(ino, 0, 10) == []
    await store.purge_inode(ino)
    with pytest.raises(StaleInode):
        await store.get_inode(ino)


async def test_symlink(store: SqliteMetadata) -> None:
    link = await store.make_node(ROOT, b"l", node(stat.S_IFLNK, target=b"to/there"))
    assert link.size_bytes == 8
    assert await store.read_symlink(link.ino) == b"to/there"
    with pytest.raises(InvalidArgument):
        await store.read_symlink(ROOT)
    with pytest.raises(StaleInode):
        await store.read_symlink(InodeNo(99))


async def test_list_directory_in_cookie_order(store: SqliteMetadata) -> None:
    for name in (b"c", b"a", b"b"):
        await make_file(store, name)
    first = await store.list_directory(ROOT, 0, 2)
    assert [(entry.cookie, entry.name) for entry in first] == [(3, b"c"), (4, b"a")]
    await store.remove_link(ROOT, b"a", 1)
    rest = await store.list_directory(ROOT, first[-1].cookie, 10)
    assert [entry.name for entry in rest] == [b"b"]
    assert rest[0].inode == await store.lookup(ROOT, b"b")
    with pytest.raises(NotADirectory):
        await store.list_directory(rest[0].inode.ino, 0, 10)


async def test_links(store: SqliteMetadata) -> None:
    ino = await make_file(store, b"a")
    d = await make_directory(store, b"d")
    linked = await store.add_link(ino, d, b"b", 30)
    assert (linked.nlink, linked.ctime_ns, linked.mtime_ns) == (2, 30, 10)
    assert (await store.get_inode(d)).mtime_ns == 30
    left = await store.remove_link(ROOT, b"a", 31)
    assert (left.nlink, left.ctime_ns) == (1, 31)
    assert await store.orphans() == []
    last = await store.remove_link(d, b"b", 32)
    assert last.nlink == 0
    assert await store.orphans() == [ino]
    with pytest.raises(NotFound):
        await store.add_link(ino, ROOT, b"again", 33)
    await store.purge_inode(ino)
    assert await store.orphans() == []
    with pytest.raises(StaleInode):
        await store.purge_inode(ino)


async def test_links_refused(store: SqliteMetadata) -> None:
    d = await make_directory(store, b"d")
    ino = await make_file(store, b"f")
    with pytest.raises(NotPermitted):
        await store.add_link(d, ROOT, b"e", 1)
    with pytest.raises(AlreadyExists):
        await store.add_link(ino, ROOT, b"d", 1)
    with pytest.raises(IsADirectory):
        await store.remove_link(ROOT, b"d", 1)
    with pytest.raises(NotADirectory):
        await store.remove_directory(ROOT, b"f", 1)
    with pytest.raises(NotFound):
        await store.remove_link(ROOT, b"x", 1)
    await make_file(store, b"g", d)
    with pytest.raises(DirectoryNotEmpty):
        await store.remove_directory(ROOT, b"d", 1)


async def test_link_max(store: SqliteMetadata, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "LINK_MAX", 4)
    monkeypatch.setattr(renames, "LINK_MAX", 4)
    ino = await make_file(store, b"f")
    for number in range(3):
        await store.add_link(ino, ROOT, b"%d" % number, 1)
    with pytest.raises(TooManyLinks):
        await store.add_link(ino, ROOT, b"more", 1)
    d, _ = await make_directory(store, b"d"), await make_directory(store, b"e")
    with pytest.raises(TooManyLinks):
        await make_directory(store, b"x")
    await make_directory(store, b"x", d)
    with pytest.raises(TooManyLinks):
        await store.rename(d, b"x", ROOT, b"x", now_ns=1)
    with pytest.raises(TooManyLinks):
        await store.rename(d, b"x", ROOT, b"f", now_ns=1, exchange=True)
    await store.rename(d, b"x", ROOT, b"e", now_ns=1)


async def test_change_inode_changes_only_what_is_given(store: SqliteMetadata) -> None:
    before = await store.get_inode(await make_file(store, b"f"))
    after = await store.change_inode(before.ino, InodeChanges(mode=stat.S_IFREG, size_bytes=0, atime_ns=-5))
    assert (after.mode, after.size_bytes, after.atime_ns) == (stat.S_IFREG, 0, -5)
    assert (after.uid, after.mtime_ns, after.ctime_ns) == (before.uid, before.mtime_ns, before.ctime_ns)
    assert await store.change_inode(before.ino, InodeChanges()) == after
    everything = InodeChanges(mode=1, uid=2, gid=3, size_bytes=4, atime_ns=5, mtime_ns=6, ctime_ns=7)
    all_changed = await store.change_inode(before.ino, everything)
    assert (all_changed.uid, all_changed.gid, all_changed.mtime_ns, all_changed.ctime_ns) == (2, 3, 6, 7)
    with pytest.raises(StaleInode):
        await store.change_inode(InodeNo(99), InodeChanges(uid=1))


async def test_xattrs(store: SqliteMetadata) -> None:
    ino = await make_file(store, b"f")
    changed = await store.set_xattrs(ino, {b"user.b": b"\0", b"user.a": b""}, InodeChanges(ctime_ns=77))
    assert changed.ctime_ns == 77
    assert await store.list_xattrs(ino) == [b"user.a", b"user.b"]
    assert await store.get_xattr(ino, b"user.a") == b""
    await store.set_xattrs(ino, {b"user.a": b"new", b"user.b": None}, InodeChanges())
    assert await store.get_xattr(ino, b"user.a") == b"new"
    with pytest.raises(NoAttribute):
        await store.get_xattr(ino, b"user.b")
    with pytest.raises(StaleInode):
        await store.set_xattrs(InodeNo(99), {b"user.b": b"1"}, InodeChanges())


async def test_a_change_that_fails_changes_nothing(store: SqliteMetadata) -> None:
    ino = await make_file(store, b"f")
    await store.commit()
    before = (await store.get_inode(ino), store.statistics())
    with pytest.raises(NoAttribute):
        await store.set_xattrs(ino, {b"user.a": b"1", b"user.gone": None}, InodeChanges(ctime_ns=99))
    assert await store.list_xattrs(ino) == []
    assert (await store.get_inode(ino), store.statistics()) == before
    assert await store.commit() is False

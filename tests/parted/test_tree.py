"""Names, nodes and handles through PartedFS without FUSE: what only a caller that is no kernel can see."""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from cuckoo_mount.cache.pressure import CacheLimits
from cuckoo_mount.errors import (
    AlreadyExists,
    AttributeTooBig,
    CuckooError,
    DataTimeout,
    DataUnavailable,
    DirectoryNotEmpty,
    FileTooBig,
    InvalidArgument,
    IsADirectory,
    NameTooLong,
    NoAttribute,
    NotADirectory,
    NotFound,
    NotSupported,
    StaleInode,
)
from cuckoo_mount.parted import acl
from cuckoo_mount.parted.acl import GROUP_OBJ, MASK, OTHER, USER, USER_OBJ, AclEntry
from cuckoo_mount.parted.partedfs import AGAIN_S, DEADLINE_S, IMPATIENT_S, PartedFS
from cuckoo_mount.parted.tree import AttributeRequest, Caller, without_set_id
from cuckoo_mount.testing.rig import Rig, RigPlace
from cuckoo_mount.types import CHUNK_SIZE_BYTES, NAME_MAX_BYTES, ROOT_INODE, SIZE_MAX_BYTES, Inode, InodeNo

ROOT, USER_1000 = Caller(0, 0), Caller(1000, 1000)
LIMITS = CacheLimits(limit_bytes=16 << 20)
DIRECTORY, REGULAR = stat.S_IFDIR | 0o755, stat.S_IFREG | 0o644
DEFAULT_ACL = acl.build(
    (
        AclEntry(USER_OBJ, 7),
        AclEntry(USER, 6, 1000),
        AclEntry(GROUP_OBJ, 5),
        AclEntry(MASK, 7),
        AclEntry(OTHER, 0),
    )
)


@asynccontextmanager
async def opened(root: Path, *, crash: bool = False) -> AsyncIterator[Rig]:
    """A rig that must be in order when the test is through with it."""
    async with RigPlace(root).opened(LIMITS, crash=crash) as rig:
        yield rig
        assert await rig.cache.check_invariants() == []


async def make(fs: PartedFS, name: bytes, mode: int = REGULAR, parent: InodeNo = ROOT_INODE) -> Inode:
    return await fs.tree.make(parent, name, mode, ROOT)


async def names(fs: PartedFS, ino: InodeNo) -> set[bytes]:
    return {entry.name for entry in await fs.tree.entries(ino, 2, 1000)}


async def put(fs: PartedFS, name: bytes, data: bytes) -> InodeNo:
    handle, inode = await fs.create(ROOT_INODE, name, 0o644, ROOT)
    await fs.write(handle, 0, data)
    await fs.release(handle)
    return inode.ino


async def content(fs: PartedFS, ino: InodeNo) -> bytes:
    handle = await fs.open(ino, os.O_RDONLY)
    try:
        with trio.fail_after(30):
            return await fs.read(handle, 0, 1 << 30)
    finally:
        await fs.release(handle)


Refused = Callable[[PartedFS, Inode, Inode], Coroutine[object, object, object]]
REFUSED: dict[str, tuple[type[CuckooError], Refused]] = {
    "an empty name": (InvalidArgument, lambda fs, d, f: make(fs, b"")),
    "a slash": (InvalidArgument, lambda fs, d, f: make(fs, b"a/b")),
    "a null byte": (InvalidArgument, lambda fs, d, f: make(fs, b"a\0b")),
    "256 bytes": (NameTooLong, lambda fs, d, f: make(fs, b"n" * 256)),
    "lookup of 256 bytes": (NameTooLong, lambda fs, d, f: fs.tree.lookup(ROOT_INODE, b"n" * 256)),
    "a name twice": (AlreadyExists, lambda fs, d, f: make(fs, b"file")),
    "a name in a file": (NotADirectory, lambda fs, d, f: make(fs, b"x", parent=f.ino)),
    "a name in nothing": (StaleInode, lambda fs, d, f: make(fs, b"x", parent=InodeNo(4711))),
    "unlink of a directory": (IsADirectory, lambda fs, d, f: fs.tree.unlink(ROOT_INODE, b"dir")),
    "rmdir of a file": (NotADirectory, lambda fs, d, f: fs.tree.rmdir(ROOT_INODE, b"file")),
    "rmdir of what is full": (DirectoryNotEmpty, lambda fs, d, f: fs.tree.rmdir(ROOT_INODE, b"dir")),
    "unlink of nothing": (NotFound, lambda fs, d, f: fs.tree.unlink(ROOT_INODE, b"nothing")),
    "open of a directory": (IsADirectory, lambda fs, d, f: fs.open(d.ino, os.O_RDONLY)),
    "opendir of a file": (NotADirectory, lambda fs, d, f: fs.open_directory(f.ino)),
    "open of nothing": (StaleInode, lambda fs, d, f: fs.open(InodeNo(4711), os.O_RDONLY)),
    "readlink of a file": (InvalidArgument, lambda fs, d, f: fs.tree.readlink(f.ino)),
    "a size for a directory": (InvalidArgument, lambda fs, d, f: fs.set_attributes(d.ino, AttributeRequest(), 0)),
    "too big": (FileTooBig, lambda fs, d, f: fs.set_attributes(f.ino, AttributeRequest(), SIZE_MAX_BYTES + 1)),
    "no such attribute": (NoAttribute, lambda fs, d, f: fs.tree.get_xattr(f.ino, b"user.none")),
    "remove no attribute": (NoAttribute, lambda fs, d, f: fs.tree.remove_xattr(f.ino, b"user.none")),
    "a namespace of its own": (NotSupported, lambda fs, d, f: fs.tree.set_xattr(f.ino, b"mine.x", b"")),
    "a big attribute": (AttributeTooBig, lambda fs, d, f: fs.tree.set_xattr(f.ino, b"user.x", bytes(65537))),
    "a broken ACL": (InvalidArgument, lambda fs, d, f: fs.tree.set_xattr(f.ino, acl.ACCESS, b"\x02\0\0")),
    "a default ACL of a file": (NotSupported, lambda fs, d, f: fs.tree.set_xattr(f.ino, acl.DEFAULT, DEFAULT_ACL)),
    "a link to a directory's child too long": (NameTooLong, lambda fs, d, f: fs.tree.link(f.ino, d.ino, b"n" * 256)),
    "a long target": (
        NameTooLong,
        lambda fs, d, f: fs.tree.make(ROOT_INODE, b"s", stat.S_IFLNK | 0o777, ROOT, target=b"t" * 4096),
    ),
    "an empty target": (
        NameTooLong,
        lambda fs, d, f: fs.tree.make(ROOT_INODE, b"s", stat.S_IFLNK | 0o777, ROOT, target=b""),
    ),
}


async def test_what_is_refused_changes_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path) as rig:
        fs = rig.filesystem
        directory, file = await make(fs, b"dir", DIRECTORY), await make(fs, b"file")
        await make(fs, b"child", parent=directory.ino)
        for what, (error, call) in REFUSED.items():
            before = [await fs.tree.inode(ino) for ino in (ROOT_INODE, directory.ino, file.ino)]
            print(what)
            with pytest.raises(error):
                await call(fs, directory, file)
            assert [await fs.tree.inode(ino) for ino in (ROOT_INODE, directory.ino, file.ino)] == before, what
        assert await names(fs, ROOT_INODE) == {b"dir", b"file"}
        assert not fs.handles


async def test_dot_and_dot_dot(tmp_path: Path) -> None:
    async with opened(tmp_path) as rig:
        tree = rig.filesystem.tree
        directory = await make(rig.filesystem, b"dir", DIRECTORY)
        assert (await tree.lookup(directory.ino, b".")).ino == directory.ino
        assert (await tree.lookup(directory.ino, b"..")).ino == ROOT_INODE
        assert (await tree.lookup(ROOT_INODE, b"..")).ino == ROOT_INODE


async def test_names_are_any_bytes(tmp_path: Path) -> None:
    wanted = {b"\xff\xfe", b"\n", b"a" * NAME_MAX_BYTES, b"\xc3\xa4", b"a\xcc\x88", b"...", b" ", b"A", b"a"}
    async with opened(tmp_path) as rig:
        for name in wanted:
            await make(rig.filesystem, name)
    async with opened(tmp_path) as rig:
        assert await names(rig.filesystem, ROOT_INODE) == wanted


async def test_a_directory_that_changes_while_it_is_read_by_single_entries(tmp_path: Path) -> None:
    """What stays is seen exactly once, whatever comes and goes between two calls."""
    async with opened(tmp_path) as rig:
        fs = rig.filesystem
        stay = {b"stay%d" % number for number in range(40)}
        for number in range(40):
            await make(fs, b"go%d" % number)
            await make(fs, b"stay%d" % number)
        handle, seen, cookie = await fs.open_directory(ROOT_INODE), list[bytes](), 0
        for number in range(1000):
            found = await fs.read_directory(handle, cookie, 1)
            if not found:
                break
            seen.append(found[0].name)
            cookie = found[0].cookie
            if number < 40:
                await fs.tree.unlink(ROOT_INODE, b"go%d" % (39 - number))
                await make(fs, b"new%d" % number)
        else:
            pytest.fail("the directory has no end")
        assert sorted(name for name in seen if name in stay) == sorted(stay)
        assert seen[:2] == [b".", b".."]
        assert len(seen) == len(set(seen))
        # A cookie stays good, also when its own entry has gone.
        again = await fs.read_directory(handle, 2, 1000)
        assert stay <= {entry.name for entry in again}
        await fs.release_directory(handle)


async def test_a_directory_removed_while_open_is_empty(tmp_path: Path) -> None:
    async with opened(tmp_path) as rig:
        fs = rig.filesystem
        directory = await make(fs, b"dir", DIRECTORY)
        handle = await fs.open_directory(directory.ino)
        await fs.tree.rmdir(ROOT_INODE, b"dir")
        found = await fs.read_directory(handle, 0, 10)
        assert {entry.name for entry in found} <= {b".", b".."}
        with pytest.raises(NotFound):
            await make(fs, b"late", parent=directory.ino)
        await fs.release_directory(handle)
        with pytest.raises(StaleInode):
            await fs.tree.inode(directory.ino)


async def test_an_unlinked_file_lives_until_its_last_handle(tmp_path: Path) -> None:
    async with opened(tmp_path) as rig:
        fs = rig.filesystem
        handle, inode = await fs.create(ROOT_INODE, b"f", 0o644, ROOT)
        await fs.write(handle, 0, b"one")
        await rig.cache.send_all()
        await fs.tree.unlink(ROOT_INODE, b"f")
        await rig.cache.evict(1 << 40)
        with trio.fail_after(30):
            assert await fs.read(handle, 0, 10) == b"one"
        await fs.write(handle, 3, b"two")
        await fs.sync_file(handle)
        assert (await fs.tree.inode(inode.ino)).nlink == 0
        assert (await fs.tree.inode(inode.ino)).size_bytes == 6
        await fs.release(handle)
        with pytest.raises(StaleInode):
            await fs.tree.inode(inode.ino)
        await rig.cache.checkpoint()
        assert not list((tmp_path / "state" / "files").glob("*/*"))


async def test_an_orphan_of_a_crash_goes_at_the_next_mount(tmp_path: Path) -> None:
    place = RigPlace(tmp_path)
    async with place.opened(LIMITS, crash=True) as rig:
        handle, inode = await rig.filesystem.create(ROOT_INODE, b"f", 0o644, ROOT)
        await rig.filesystem.write(handle, 0, b"gone")
        await rig.filesystem.sync_file(handle)
        await rig.filesystem.tree.unlink(ROOT_INODE, b"f")
        await rig.cache.make_durable()
    async with place.opened(LIMITS) as rig:
        with pytest.raises(StaleInode):
            await rig.filesystem.tree.inode(inode.ino)
        assert await rig.cache.check_invariants() == []
        assert not list(place.state_folder.glob("files/*/*"))


async def test_a_file_that_was_replaced_while_open_keeps_its_bytes(tmp_path: Path) -> None:
    async with opened(tmp_path) as rig:
        fs = rig.filesystem
        old = await put(fs, b"f", b"old")
        new = await put(fs, b"g", b"new")
        handle = await fs.open(old, os.O_RDWR)
        await fs.tree.rename(ROOT_INODE, b"g", ROOT_INODE, b"f")
        assert await fs.read(handle, 0, 10) == b"old"
        assert (await fs.tree.lookup(ROOT_INODE, b"f")).ino == new
        await fs.release(handle)
        with pytest.raises(StaleInode):
            await fs.tree.inode(old)
        assert await content(fs, new) == b"new"


async def test_a_group_and_its_bit_come_from_a_setgid_directory(tmp_path: Path) -> None:
    async with opened(tmp_path) as rig:
        tree = rig.filesystem.tree
        directory = await tree.make(ROOT_INODE, b"d", stat.S_IFDIR | 0o2775, Caller(0, 4711))
        file = await tree.make(directory.ino, b"f", REGULAR, USER_1000)
        below = await tree.make(directory.ino, b"below", DIRECTORY, USER_1000)
        assert (file.uid, file.gid, file.mode) == (1000, 4711, REGULAR)
        assert (below.gid, below.mode & stat.S_ISGID) == (4711, stat.S_ISGID)


async def test_default_acl_is_inherited_and_survives(tmp_path: Path) -> None:
    async with opened(tmp_path) as rig:
        fs = rig.filesystem
        directory = await make(fs, b"d", DIRECTORY)
        await fs.tree.set_xattr(directory.ino, acl.DEFAULT, DEFAULT_ACL)
        file = await make(fs, b"f", stat.S_IFREG | 0o644, directory.ino)
        below = await make(fs, b"below", stat.S_IFDIR | 0o755, directory.ino)
        link = await fs.tree.make(directory.ino, b"s", stat.S_IFLNK | 0o777, ROOT, target=b"t")
    async with opened(tmp_path) as rig:
        tree = rig.filesystem.tree
        access = acl.parse(await tree.get_xattr(file.ino, acl.ACCESS))
        assert access == (
            AclEntry(USER_OBJ, 6),
            AclEntry(USER, 6, 1000),
            AclEntry(GROUP_OBJ, 5),
            AclEntry(MASK, 4),
            AclEntry(OTHER, 0),
        )
        assert (await tree.inode(file.ino)).mode == stat.S_IFREG | 0o640
        assert await tree.get_xattr(below.ino, acl.DEFAULT) == DEFAULT_ACL
        assert await tree.list_xattrs(link.ino) == []
        with pytest.raises(NoAttribute):
            await tree.get_xattr(file.ino, acl.DEFAULT)


async def test_acl_and_mode_move_together(tmp_path: Path) -> None:
    async with opened(tmp_path) as rig:
        tree = rig.filesystem.tree
        file = await make(rig.filesystem, b"f")
        entries = (
            AclEntry(USER_OBJ, 6),
            AclEntry(USER, 7, 1000),
            AclEntry(GROUP_OBJ, 4),
            AclEntry(MASK, 7),
            AclEntry(OTHER, 4),
        )
        await tree.set_xattr(file.ino, acl.ACCESS, acl.build(entries))
        assert (await tree.inode(file.ino)).mode == stat.S_IFREG | 0o674
        changed = await tree.set_attributes(file.ino, AttributeRequest(mode=0o600))
        assert changed.mode == stat.S_IFREG | 0o600
        after = acl.parse(await tree.get_xattr(file.ino, acl.ACCESS))
        assert {entry.tag: entry.permissions for entry in after} == {
            USER_OBJ: 6,
            USER: 7,
            GROUP_OBJ: 4,
            MASK: 0,
            OTHER: 0,
        }
        minimal = acl.build((AclEntry(USER_OBJ, 7), AclEntry(GROUP_OBJ, 5), AclEntry(OTHER, 1)))
        await tree.set_xattr(file.ino, acl.ACCESS, minimal)
        assert (await tree.inode(file.ino)).mode == stat.S_IFREG | 0o751
        assert await tree.list_xattrs(file.ino) == []


async def test_an_acl_that_is_not_there_can_be_removed(tmp_path: Path) -> None:
    """As on ext4 and xfs; another attribute that is not there is an error."""
    async with opened(tmp_path) as rig:
        tree = rig.filesystem.tree
        file = await make(rig.filesystem, b"f")
        for name in (acl.ACCESS, acl.DEFAULT):
            await tree.remove_xattr(file.ino, name)
        assert await tree.inode(file.ino) == file


@pytest.mark.parametrize(
    ("mode", "left"),
    [
        (stat.S_IFREG | 0o4755, 0o755),
        (stat.S_IFREG | 0o2755, 0o755),
        (stat.S_IFREG | 0o2745, 0o2745),
        (stat.S_IFREG | 0o6777, 0o777),
        (stat.S_IFREG | 0o1644, 0o1644),
        (stat.S_IFDIR | 0o6777, 0o6777),
    ],
)
def test_which_set_id_bits_go(mode: int, left: int) -> None:
    assert stat.S_IMODE(without_set_id(mode)) == left


@pytest.mark.parametrize("how", ["write", "truncate", "open", "chown"])
async def test_set_id_bits_go_with_the_first_change(tmp_path: Path, how: str) -> None:
    async with opened(tmp_path) as rig:
        fs, told = rig.filesystem, list[InodeNo]()
        fs.on_attributes_stale = told.append
        ino = await put(fs, b"f", b"x")
        await fs.tree.set_attributes(ino, AttributeRequest(mode=0o6755))
        handle = await fs.open(ino, os.O_WRONLY | (os.O_TRUNC if how == "open" else 0))
        if how == "write":
            await fs.write(handle, 0, b"y")
        elif how == "truncate":
            await fs.set_attributes(ino, AttributeRequest(), 0)
        elif how == "chown":
            await fs.tree.set_attributes(ino, AttributeRequest(uid=1))
        await fs.release(handle)
        assert stat.S_IMODE((await fs.tree.inode(ino)).mode) == 0o755
        # The kernel knows what its own setattr answered; of the others it must be told.
        assert bool(told) == (how != "chown")


async def test_times_of_unsaved_bytes_are_seen_and_saved(tmp_path: Path) -> None:
    async with opened(tmp_path) as rig:
        fs = rig.filesystem
        handle, inode = await fs.create(ROOT_INODE, b"f", 0o644, ROOT)
        await fs.write(handle, 0, b"x")
        assert (await fs.tree.inode(inode.ino)).size_bytes == 1
        await fs.set_attributes(inode.ino, AttributeRequest(mtime_ns=123, atime_ns=456), None)
        assert (await fs.tree.inode(inode.ino)).mtime_ns == 123
        await fs.release(handle)
        await rig.cache.checkpoint()
        assert (await fs.tree.inode(inode.ino)).mtime_ns == 123
    async with opened(tmp_path) as rig:
        found = await rig.filesystem.tree.lookup(ROOT_INODE, b"f")
        assert (found.mtime_ns, found.atime_ns, found.size_bytes) == (123, 456, 1)


async def test_more_than_a_hundred_chunks_come_back_in_order(tmp_path: Path) -> None:
    """The first CuckooDrive sorted its parts by name: 0, 1, 10, 100, 101, 11, ….  After eviction, from packs."""
    count = 103
    async with opened(tmp_path) as rig:
        fs = rig.filesystem
        handle, inode = await fs.create(ROOT_INODE, b"f", 0o644, ROOT)
        for index in range(count):
            await fs.write(handle, index * CHUNK_SIZE_BYTES, b"chunk %d" % index)
        await fs.release(handle)
        with trio.fail_after(60):
            await rig.cache.send_all()
        await rig.cache.evict(1 << 40)
        handle = await fs.open(inode.ino, os.O_RDONLY)
        for index in range(count):
            with trio.fail_after(30):
                got = await fs.read(handle, index * CHUNK_SIZE_BYTES, 16)
            assert got.rstrip(b"\0") == b"chunk %d" % index
        await fs.release(handle)
        statistics = rig.cache.statistics()
        assert statistics.misses + statistics.prefetched >= count


async def test_a_lost_pack_is_an_error_of_the_read_only(tmp_path: Path) -> None:
    async with opened(tmp_path) as rig:
        fs = rig.filesystem
        lost = await put(fs, b"lost", b"x" * 5000)
        with trio.fail_after(30):
            await rig.cache.send_all()
        await rig.cache.evict(1 << 40)
        for share in rig_packs(tmp_path):
            share.unlink()
        with pytest.raises((DataUnavailable, DataTimeout)):
            await content(fs, lost)
        here = await put(fs, b"here", b"y")
        assert await content(fs, here) == b"y"
        await fs.set_attributes(lost, AttributeRequest(), 0)
        assert await content(fs, lost) == b""


def rig_packs(root: Path) -> list[Path]:
    return [path for path in (root / "cloud").glob("cuckoo/*/packs/*/*") if path.is_file()]


async def test_a_read_that_timed_out_is_not_waited_for_twice(
    tmp_path: Path, mock_clock: trio.testing.MockClock
) -> None:
    """The kernel repeats a read-ahead that failed before it tells the program: twice the deadline would be too long."""
    mock_clock.rate = 1
    async with opened(tmp_path) as rig:
        fs = rig.filesystem
        ino = await put(fs, b"f", b"x" * 5000)
        await rig.cache.send_all()
        await rig.cache.evict(1 << 40)
        handle = await fs.open(ino, os.O_RDONLY)
        rig.pool.hold()
        mock_clock.rate = 0
        for waits_s in (DEADLINE_S + 1, AGAIN_S + 0.1):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(expect_timeout, fs, handle)
                await trio.testing.wait_all_tasks_blocked()
                mock_clock.jump(waits_s)
        mock_clock.jump(IMPATIENT_S)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect_content, fs, handle, b"x" * 5000)
            await trio.testing.wait_all_tasks_blocked()
            mock_clock.jump(AGAIN_S + 0.1)  # now it has its patience back
            await trio.testing.wait_all_tasks_blocked()
            mock_clock.rate = 1
            rig.pool.let_go()
        await fs.release(handle)


async def expect_timeout(fs: PartedFS, handle: int) -> None:
    with pytest.raises(DataTimeout):
        await fs.read(handle, 0, 5000)


async def expect_content(fs: PartedFS, handle: int, data: bytes) -> None:
    assert await fs.read(handle, 0, len(data)) == data

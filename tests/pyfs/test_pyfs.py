"""What PyFilesystem's own tests leave out: names, links, modes, moving, errors."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cuckoo_mount.cache.pressure import CacheLimits
from cuckoo_mount.clouds.fsimport import errors, stand_in
from cuckoo_mount.pyfs.filesystem import CuckooFS
from cuckoo_mount.testing.rig import Rig
from cuckoo_mount.types import ROOT_INODE
from tests.pyfs.serving import OWNER, DriveFolder, file, folder, symlink

with stand_in():
    from fs.permissions import Permissions


@pytest.fixture
def drive(tmp_path: Path) -> DriveFolder:
    return DriveFolder(tmp_path / "drive")


@pytest.fixture
def fs(drive: DriveFolder) -> Iterator[CuckooFS]:
    with drive.open() as opened:
        yield opened


def mode_of(fs: CuckooFS, path: str) -> int:
    permissions = fs.getinfo(path, ["access"]).permissions
    assert permissions is not None
    return permissions.mode


async def make_links(rig: Rig) -> None:
    """Make a folder with a file, and links of every kind."""
    inner = await folder(rig, b"folder")
    await file(rig, b"file", b"content", inner)
    await symlink(rig, b"to-file", b"folder/file")
    await symlink(rig, b"to-folder", b"./folder")
    await symlink(rig, b"circle", b"circle")
    await symlink(rig, b"nowhere", b"folder/new")
    await symlink(rig, b"absolute", b"/folder/file")
    await symlink(rig, b"out", b"../folder/file")
    await symlink(rig, b"up", b"..", inner)
    await symlink(rig, b"around", b"../to-folder/up/folder/file", inner)


@pytest.fixture
def links(drive: DriveFolder) -> Iterator[CuckooFS]:
    drive.prepare = make_links
    with drive.open() as opened:
        yield opened


def test_paths_go_through_links(links: CuckooFS) -> None:
    for path in ("to-file", "to-folder/file", "folder/around", "folder/up/to-file"):
        assert links.readtext(path) == "content", path
    assert links.isdir("to-folder")
    assert links.getinfo("to-file", ["details", "link"]).raw["details"]["size"] == len("content")
    assert links.getinfo("to-file", ["link"]).target == "folder/file"
    assert links.getinfo("to-file", ["lstat"]).raw["lstat"]["st_mode"] == stat.S_IFLNK | 0o777
    assert links.opendir("to-folder").listdir("/") == links.listdir("folder")
    links.writetext("nowhere", "made through a link")
    assert links.readtext("folder/new") == "made through a link"


def test_links_that_lead_nowhere(links: CuckooFS) -> None:
    for path in ("circle", "nowhere", "absolute", "out"):
        assert links.islink(path), path
        assert not links.exists(path), path
        with pytest.raises(errors.ResourceNotFound):
            links.readbytes(path)
    assert not links.islink("folder")


def test_who_walks_does_not_follow_links(links: CuckooFS) -> None:
    walked = set(links.walk.files("/"))
    assert {"/folder/file", "/to-folder", "/folder/up", "/circle"} <= walked
    assert set(links.walk.dirs("/")) == {"/folder"}
    (info,) = (found for found in links.scandir("/", ["details", "link"]) if found.name == "to-folder")
    assert not info.is_dir
    assert info.target == "./folder"


def test_removing_a_tree_leaves_what_its_links_point_to(links: CuckooFS) -> None:
    links.makedir("other")
    links.move("to-folder", "other/to-folder")  # the link itself; it now leads nowhere
    assert links.islink("other/to-folder")
    links.makedirs("other/folder/deep")
    links.removetree("other")
    assert not links.exists("other")
    assert links.readtext("folder/file") == "content"
    with pytest.raises(errors.DirectoryExpected):
        links.removetree("to-file")


def test_names_that_are_no_utf8(drive: DriveFolder) -> None:
    async def prepare(rig: Rig) -> None:
        if not await rig.filesystem.tree.entries(ROOT_INODE, 2, 1):
            await file(rig, b"\xff\xfe", b"bytes")

    drive.prepare = prepare
    with drive.open() as fs:
        (name,) = fs.listdir("/")
        assert os.fsencode(name) == b"\xff\xfe"
        assert fs.readbytes(name) == b"bytes"
        fs.move(name, f"{name}2")
        assert [os.fsencode(info.name) for info in fs.scandir("/")] == [b"\xff\xfe2"]
        with pytest.raises(errors.InvalidCharsInPath):
            fs.exists("\ud800")  # never was a byte


def test_names_that_cannot_be(fs: CuckooFS) -> None:
    long = "n" * 256
    assert not fs.exists(long)
    assert not fs.exists(f"{long}/below")
    for act in (fs.makedir, lambda path: fs.writebytes(path, b"")):
        with pytest.raises(errors.InvalidPath, match="at most 255 bytes"):
            act(long)
    fs.writebytes("{braces}", b"")
    with pytest.raises(errors.FileExists, match=r"\{braces\}"):
        fs.openbin("{braces}", "x")


def test_modes_owner_and_times_are_kept(drive: DriveFolder) -> None:
    os.umask(0o027)
    with drive.open() as fs:
        fs.makedir("folder", Permissions(mode=0o775))
        fs.create("file")
        fs.setinfo("file", {"details": {"accessed": 1.5, "modified": 1_234_567_890}})
        assert fs.getinfo("file", ["stat"]).raw["stat"]["st_mtime_ns"] == 1_234_567_890 * 10**9
        assert fs.getinfo("file", ["details"]).raw["details"]["accessed"] == 1.5
        assert mode_of(fs, "file") == 0o640
        fs.setinfo("file", {"access": {"permissions": Permissions(mode=0o4751).dump(), "uid": 12345}})
    with drive.open() as fs:
        assert mode_of(fs, "folder") == 0o750
        info = fs.getinfo("file", ["access"])
        assert (mode_of(fs, "file"), info.uid, info.gid) == (0o4751, 12345, os.getgid())


def test_move_between_two_names_of_one_file(drive: DriveFolder) -> None:
    async def prepare(rig: Rig) -> None:
        ino = await file(rig, b"one", b"same")
        await rig.filesystem.tree.link(ino, ROOT_INODE, b"two")

    drive.prepare = prepare
    with drive.open() as fs:
        fs.move("one", "one", overwrite=True)
        fs.move("one", "two", overwrite=True)
        assert fs.listdir("/") == ["two"]
        assert fs.readtext("two") == "same"
        with pytest.raises(errors.FileExpected):
            fs.move("two", "/", overwrite=True)


def test_movedir_renames_or_merges(fs: CuckooFS) -> None:
    fs.makedirs("a/b/c")
    fs.writetext("a/b/c/file", "moved")
    number = fs.getinfo("a/b", ["stat"]).raw["stat"]["st_ino"]
    fs.movedir("a/b", "new", create=True)
    assert fs.getinfo("new", ["stat"]).raw["stat"]["st_ino"] == number
    fs.makedirs("full/c/more")
    fs.writetext("full/c/file", "replaced")
    fs.writetext("full/c/other", "stays")
    fs.movedir("new", "full")
    assert not fs.exists("new")
    assert sorted(fs.listdir("full/c")) == ["file", "more", "other"]
    assert fs.readtext("full/c/file") == "moved"
    with pytest.raises(errors.ResourceInvalid):
        fs.movedir("full", "full/c/below", create=True)
    fs.makedir("sub")
    fs.movedir("full", "/")
    assert sorted(fs.listdir("/")) == ["a", "c", "sub"]


def test_copy(fs: CuckooFS) -> None:
    with fs.openbin("sparse", "w") as sparse:
        sparse.seek(5 << 20)
        sparse.write(b"end")
        sparse.truncate((8 << 20) + 3)
    fs.setinfo("sparse", {"access": {"permissions": Permissions(mode=0o755).dump()}, "details": {"modified": 7}})
    fs.copy("sparse", "copy", preserve_time=True)
    info = fs.getinfo("copy", ["details"])
    assert (info.size, mode_of(fs, "copy"), info.raw["details"]["modified"]) == ((8 << 20) + 3, 0o755, 7)
    assert fs.hash("copy", "sha256") == fs.hash("sparse", "sha256")
    fs.copy("copy", "copy", overwrite=True)
    assert fs.getsize("copy") == (8 << 20) + 3
    fs.writebytes("short", b"123")
    fs.copy("short", "copy", overwrite=True)
    assert fs.readbytes("copy") == b"123"


def test_unbuffered_files_and_large_pieces(fs: CuckooFS) -> None:
    content = os.urandom(1000) * 9000
    with fs.openbin("big", "w+", buffering=0) as raw:
        assert raw.write(memoryview(content)) == len(content)
        assert raw.seek(-10, os.SEEK_END) == len(content) - 10
        assert raw.read(100) == content[-10:]
        assert raw.read(1) == b""
        with pytest.raises(ValueError, match="would be -1"):
            raw.seek(-1)
    with fs.open("big", "rb") as file:
        assert file.read() == content
    with fs.openbin("big", "a+") as appended:
        assert appended.tell() == len(content)
        appended.seek(0)
        appended.write(b"end")
        appended.seek(0)
        assert appended.read() == content + b"end"
    fs.make_durable("big")
    fs.make_durable("/")
    with pytest.raises(OSError, match="at most") as refused, fs.openbin("big", "r+", buffering=0) as raw:
        raw.truncate(1 << 63)
    assert refused.value.errno == 27


def test_special_files_are_not_opened(drive: DriveFolder) -> None:
    async def prepare(rig: Rig) -> None:
        await rig.filesystem.tree.make(ROOT_INODE, b"pipe", stat.S_IFIFO | 0o600, OWNER)

    drive.prepare = prepare
    with drive.open() as fs:
        assert fs.gettype("pipe").name == "fifo"
        with pytest.raises(errors.ResourceInvalid):
            fs.openbin("pipe")
        fs.remove("pipe")


@pytest.mark.slow  # a writer is held up for 5 s before it is refused
def test_a_full_disk(drive: DriveFolder) -> None:
    drive.limits = CacheLimits(limit_bytes=256 << 20, floor_bytes=1 << 60)
    with drive.open() as fs, pytest.raises(errors.InsufficientStorage):
        fs.writebytes("file", b"x")


def test_a_drive_that_another_machine_took(drive: DriveFolder) -> None:
    """The one that syncs says here when that happens."""

    async def take(rig: Rig) -> None:
        rig.filesystem.refuse_writes("machine {other} took it")

    drive.prepare, drive.at_sync = make_links, take
    with drive.open() as fs:
        late = fs.openbin("folder/file", "r+")
        late.write(b"late")
        fs.sync()
        refused: list[Callable[[], object]] = [
            lambda: fs.writebytes("folder/file", b"x"),
            lambda: fs.writetext("new", "x"),
            lambda: fs.appendbytes("folder/file", b"x"),
            lambda: fs.makedir("new"),
            lambda: fs.remove("to-file"),
            lambda: fs.removetree("folder"),
            lambda: fs.move("folder/file", "moved"),
            lambda: fs.movedir("folder", "moved", create=True),
            lambda: fs.copy("folder/file", "copied"),
            lambda: fs.settimes("folder/file"),
            lambda: fs.openbin("folder/file", "r+"),
        ]
        before = list(fs.walk.info("/", namespaces=["basic", "stat"]))
        for call in refused:
            with pytest.raises(errors.ResourceReadOnly, match=r"cannot be changed: machine \{other\} took it"):
                call()
        with pytest.raises(OSError, match="took it") as lost:
            late.close()
        assert lost.value.errno == errno.EROFS
        assert list(fs.walk.info("/", namespaces=["basic", "stat"])) == before
        assert fs.readtext("to-file") == "content"
        assert not fs.create("folder/file")
        fs.makedir("folder", recreate=True)
        fs.make_durable("folder/file")


def test_urls_of_its_own(fs: CuckooFS) -> None:
    assert fs.geturl("a b/ä?", purpose="fs") == "cuckoo://test/a%20b/%C3%A4%3F"
    with pytest.raises(errors.NoURL):
        fs.geturl("a")
    assert repr(fs) == "CuckooFS('test')"

"""Names that are replaced while they are read, `.` and `..`, handles of an NFS server, and what files cost."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar, Final

import pytest

from tests.mount.mounting import Mount, mounted

pytestmark = [pytest.mark.mount, pytest.mark.slow, pytest.mark.timeout(240)]

CHUNK: Final = 1 << 20
_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_AT_FDCWD: Final = -100

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may open by handle")


@pytest.fixture(scope="module")
def drive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """One mount for all tests of this module."""
    with mounted(tmp_path_factory.mktemp("nodes") / "drive", deadline_s=600) as found:
        yield found


@pytest.fixture
def here(drive: Mount, request: pytest.FixtureRequest) -> Path:
    """A folder for the test, on the mount."""
    folder = drive.path / str(request.node.name)
    folder.mkdir()
    return folder


def remount(drive: Mount) -> None:
    drive.umount(wait=False)
    drive.start()


def test_names_lead_to_whole_content_while_a_file_is_replaced(here: Path) -> None:
    """rename over a file is atomic: who opens the name finds the old file or the new one, whole, at any moment."""
    target, size = here / "target", 3 * CHUNK + 5
    target.write_bytes(bytes([0]) * size)
    stop = threading.Event()
    seen: set[int] = set()

    def read() -> None:
        while not stop.is_set():
            content = target.read_bytes()
            assert len(content) == size
            assert content.count(content[:1]) == size
            seen.add(content[0])

    with ThreadPoolExecutor(2) as threads:
        readers = [threads.submit(read) for _ in range(2)]
        try:
            for number in range(1, 40):
                (here / "new").write_bytes(bytes([number]) * size)
                os.rename(here / "new", target)
        finally:
            stop.set()
        for reader in readers:
            reader.result(timeout=60)
    print(f"the readers saw {len(seen)} of 40")
    assert len(seen) > 1
    assert os.listdir(here) == ["target"]


class _Handle(ctypes.Structure):
    """struct file_handle of name_to_handle_at(2)."""

    _fields_: ClassVar = [("size", ctypes.c_uint), ("kind", ctypes.c_int), ("bytes", ctypes.c_ubyte * 128)]


def handle_of(path: Path) -> _Handle:
    handle = _Handle(size=128)
    mount_id = ctypes.c_int()
    found = _LIBC.name_to_handle_at(_AT_FDCWD, os.fsencode(path), ctypes.byref(handle), ctypes.byref(mount_id), 0)
    if found != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return handle


@needs_root
def test_dot_and_dot_dot_lead_to_nodes_that_the_kernel_has_forgotten(drive: Mount, here: Path) -> None:
    """As an NFS server does: a handle kept over a remount; the kernel looks `.` up, and `..` for the way up."""
    folder = here / "a" / "b" / "c"
    folder.mkdir(parents=True)
    (folder / "file").write_bytes(b"content")
    expected = [path.stat().st_ino for path in (folder, folder / "..", folder / ".." / "..", folder / "." / "file")]
    assert expected[1:3] == [(here / "a" / "b").stat().st_ino, (here / "a").stat().st_ino]
    handles = handle_of(folder), handle_of(folder / "file")
    gone = handle_of(here / "a")
    remount(drive)
    root = os.open(drive.path, os.O_RDONLY)
    try:
        before = drive.upcalls()["lookup"]
        opened = [_LIBC.open_by_handle_at(root, ctypes.byref(handle), os.O_RDONLY) for handle in handles]
        assert min(opened) >= 0, os.strerror(ctypes.get_errno())
        assert drive.upcalls()["lookup"] > before
        assert [os.fstat(fd).st_ino for fd in opened] == [expected[0], expected[3]]
        assert os.read(opened[1], 100) == b"content"
        assert os.stat("..", dir_fd=opened[0]).st_ino == expected[1]
        assert os.readlink(f"/proc/self/fd/{opened[0]}") == str(folder)
        for fd in opened:
            os.close(fd)
    finally:
        os.close(root)
    shutil.rmtree(here / "a")
    remount(drive)
    root = os.open(drive.path, os.O_RDONLY)
    try:
        assert _LIBC.open_by_handle_at(root, ctypes.byref(gone), os.O_RDONLY) < 0
        assert ctypes.get_errno() == errno.ESTALE
    finally:
        os.close(root)


def test_a_listing_starts_with_dot_and_dot_dot(drive: Mount, here: Path) -> None:
    (here / "folder" / "below").mkdir(parents=True)
    remount(drive)
    listed = drive.run("ls", "-ai1U", cwd=here / "folder").stdout.decode().split()
    found = dict(zip(listed[1::2], (int(number) for number in listed[::2]), strict=True))
    names = {".": here / "folder", "..": here, "below": here / "folder" / "below"}
    assert found == {name: path.stat().st_ino for name, path in names.items()}


def test_blocks_of_a_sparse_file(drive: Mount, here: Path) -> None:
    """What du shows: chunks that hold something; a hole and a cut-off end cost nothing."""
    file = here / "file"
    with file.open("wb") as opened:
        opened.truncate(100 * CHUNK)
        for index in (3, 50, 99):
            os.pwrite(opened.fileno(), b"x" * 100, index * CHUNK)
    assert file.stat().st_blocks * 512 == 3 * CHUNK
    remount(drive)
    assert file.stat().st_blocks * 512 == 3 * CHUNK
    os.truncate(file, 50 * CHUNK)
    assert file.stat().st_blocks * 512 == CHUNK
    file.write_bytes(b"short")
    assert file.stat().st_blocks * 512 == 4096
    file.write_bytes(b"")
    remount(drive)
    assert file.stat().st_blocks == 0
    assert here.stat().st_blocks > 0


PRECIOUS: Final = b"precious" * 4096
WRITER: Final = """
import os, sys
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | (os.O_TRUNC if sys.argv[2] == "cut to nothing" else 0), 0o644)
os.write(fd, b"precious" * 4096)
if sys.argv[3] == "True":
    os.fsync(fd)
print("written", flush=True)
input()
"""


@pytest.mark.parametrize("before", ["absent", "empty", "a hole", "cut to nothing", "somebody writes"])
@pytest.mark.parametrize("is_synced", [False, True], ids=["unsaved", "fsync"])
def test_tar_finds_the_bytes_of_a_file_that_is_being_written(
    drive: Mount, here: Path, tmp_path: Path, before: str, is_synced: bool
) -> None:
    """With --sparse it does not read a file that has no blocks: the archive would hold zeros."""
    file = here / "file"
    if before == "cut to nothing":
        file.write_bytes(PRECIOUS)
    elif before != "absent":
        with file.open("wb") as opened:
            opened.truncate(CHUNK if before == "a hole" else 0)
        file.stat()  # the kernel keeps what it was told
    # A process of its own: with each child that this one made, the kernel would see a close, and ask anew.
    writers = [
        subprocess.Popen(
            [sys.executable, "-I", "-c", WRITER, file, before, str(is_synced)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for _ in range(1 + (before == "somebody writes"))
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"written\n"
    drive.run("tar", "--create", "--sparse", f"--directory={here}", f"--file={tmp_path / 'tar'}", "file")
    for writer in writers:
        writer.communicate(b"\n", timeout=60)
    drive.run("tar", "--extract", f"--file={tmp_path / 'tar'}", cwd=tmp_path)
    assert (tmp_path / "file").read_bytes()[: len(PRECIOUS)] == PRECIOUS

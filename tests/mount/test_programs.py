"""Programs that people run on a disk: git, SQLite, rsync, tar, cp.  The mount has to be a disk to them."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import sqlite3
import stat
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

import pytest

from tests.mount.mounting import Mount

pytestmark = [pytest.mark.mount, pytest.mark.slow, pytest.mark.timeout(240)]

PROGRAM_S: Final = 200.0
BLOCK: Final = 1 << 20
STANDARD_LIBRARY: Final = Path("/usr/lib/python3.11")
FEW_FOLDERS: Final = ("asyncio", "collections", "concurrent", "ctypes", "email", "encodings", "http", "json", "xml")

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root makes devices and gives files away")


def need(*programs: str) -> None:
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")


# -- git --

GIT: Final = ("git", "-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "init.defaultBranch=main")


def make_repository(mount: Mount, folder: Path, *, commits: int, files: int) -> None:
    """A repository with loose objects, a pack, a branch and a tag, made on the local disk."""
    dice = random.Random(1)
    mount.run(*GIT, "init", "-q", folder)
    for number in range(commits):
        for _ in range(files // commits + 1):
            name = folder / f"d{dice.randrange(20)}" / f"f{dice.randrange(files)}"
            name.parent.mkdir(exist_ok=True)
            name.write_bytes(dice.randbytes(dice.randrange(2000)))
        mount.run(*GIT, "add", "-A", cwd=folder)
        mount.run(*GIT, "commit", "-qm", f"number {number}", cwd=folder)
    mount.run(*GIT, "tag", "v1", cwd=folder)


def fsck(mount: Mount, folder: Path) -> None:
    done = mount.run(*GIT, "fsck", "--full", "--strict", cwd=folder, timeout_s=PROGRAM_S)
    assert b"error" not in done.stdout + done.stderr


def test_git_clone_fsck_gc_fsck(mount: Mount, tmp_path: Path) -> None:
    need("git")
    source = tmp_path / "source"
    make_repository(mount, source, commits=15, files=300)
    mount.start()
    clone = mount.path / "clone"
    mount.run(*GIT, "clone", "-q", "--no-local", source, clone, timeout_s=PROGRAM_S)
    fsck(mount, clone)
    mount.run(*GIT, "checkout", "-q", "-b", "other", "HEAD~5", cwd=clone)
    (clone / "new").write_text("new")
    mount.run(*GIT, "add", "new", cwd=clone)
    mount.run(*GIT, "commit", "-qm", "ours", cwd=clone)
    mount.run(*GIT, "rebase", "-q", "main", cwd=clone)
    mount.run(*GIT, "gc", "-q", "--prune=now", cwd=clone, timeout_s=PROGRAM_S)
    fsck(mount, clone)
    head = mount.run(*GIT, "rev-parse", "HEAD", cwd=clone).stdout
    mount.umount()
    mount.start()
    mount.evict()
    fsck(mount, clone)
    assert mount.run(*GIT, "rev-parse", "HEAD", cwd=clone).stdout == head
    assert mount.run(*GIT, "status", "--porcelain", cwd=clone).stdout == b""


# -- SQLite --


def connect(path: Path, mode: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=60)
    ((found,),) = connection.execute(f"PRAGMA journal_mode = {mode}").fetchall()
    assert found == mode
    return connection


def assert_whole(path: Path, rows: int) -> None:
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("SELECT count(*) FROM t").fetchone() == (rows,)


@pytest.mark.parametrize("mode", ["wal", "delete"])
def test_sqlite(mount: Mount, mode: str) -> None:
    mount.start()
    path = mount.path / "db"
    dice = random.Random(2)
    with closing(connect(path, mode)) as connection:
        connection.execute("CREATE TABLE t (a INTEGER PRIMARY KEY, b BLOB, c TEXT)")
        connection.execute("CREATE INDEX i ON t (c)")
        for _ in range(10):
            with connection:
                rows = [(dice.randbytes(dice.randrange(3000)), dice.randbytes(8).hex()) for _ in range(200)]
                connection.executemany("INSERT INTO t (b, c) VALUES (?, ?)", rows)
        with connection:
            connection.execute("DELETE FROM t WHERE a % 3 = 0")
        connection.execute("VACUUM")
        left = 2000 - 2000 // 3
        mount.sync()
        with connection:
            connection.execute("UPDATE t SET c = c || 'x' WHERE a % 2 = 0")
    assert_whole(path, left)
    mount.umount()
    mount.start()
    mount.evict()
    assert_whole(path, left)


WRITER: Final = textwrap.dedent(
    """
    import sqlite3, sys
    path, mode, who, count = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    connection = sqlite3.connect(path, timeout=120)
    connection.execute(f"PRAGMA journal_mode = {mode}")
    for number in range(count):
        with connection:
            connection.execute("BEGIN IMMEDIATE")
            (total,) = connection.execute("SELECT count(*) FROM t").fetchone()
            connection.execute("INSERT INTO t VALUES (?, ?, ?)", (who, number, total))
    """
)


@pytest.mark.parametrize("mode", ["wal", "delete"])
def test_two_processes_share_a_database(mount: Mount, mode: str) -> None:
    """Locks, and in WAL mode shared memory, between processes: every insert has seen all that came before it."""
    mount.start()
    path, count = mount.path / "db", 15
    with closing(connect(path, mode)) as connection:
        connection.execute("CREATE TABLE t (who INTEGER, number INTEGER, seen INTEGER UNIQUE)")
    command = [sys.executable, "-c", WRITER, str(path), mode]
    writers = [subprocess.Popen([*command, str(who), str(count)], stderr=subprocess.PIPE) for who in range(2)]
    said = [writer.communicate(timeout=PROGRAM_S)[1] for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0], said
    assert_whole(path, 2 * count)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT max(seen) FROM t").fetchone() == (2 * count - 1,)


# -- whole trees --


def decorate(folder: Path) -> None:
    """Add what -H, -A and -X are for, and what else a tree may have: to be kept by every copy."""
    files = sorted(file for file in folder.rglob("*.py") if file.is_file())[:20]
    os.link(files[0], folder / "hard link")
    os.link(files[0], folder / "another hard link")
    (folder / "symbolic link").symlink_to("nowhere")
    (folder / "link to a folder").symlink_to(files[0].parent.name)
    os.setxattr(files[1], "user.comment", b"\x00binary\xff")
    os.setxattr(folder, "user.folder", b"")
    subprocess.run(["setfacl", "-m", "u:1234:rw,g:4321:x", files[2]], check=True, timeout=60)
    subprocess.run(["setfacl", "-d", "-m", "u:1234:rwx", files[3].parent], check=True, timeout=60)
    os.mkfifo(folder / "fifo", 0o640)
    os.utime(files[4], ns=(1, 1_234_567_890_987_654_321))
    files[5].chmod(0o6711)
    (folder / "empty").mkdir(0o1777)
    (folder / "empty").chmod(0o1777)
    os.truncate(files[6], 3 * BLOCK)  # a hole
    (folder / "new\nline \udcff").write_bytes(b"x")
    if os.geteuid() == 0:
        os.mknod(folder / "device", stat.S_IFBLK | 0o600, os.makedev(7, 99))
        os.mknod(folder / "character", stat.S_IFCHR | 0o600, os.makedev(1, 3))
        os.chown(files[7], 1234, 4321)
        os.chown(folder / "symbolic link", 1234, 4321, follow_symlinks=False)


def same(mount: Mount, source: Path, target: Path) -> None:
    """Nothing is listed by rsync: same types, sizes, times, owners, modes, links, ACLs and attributes, same content."""
    done = mount.run("rsync", "-aHAXnic", "--delete", f"{source}/", f"{target}/", timeout_s=PROGRAM_S)
    assert done.stdout.decode("utf-8", "replace") == ""


def without_cache(mount: Mount) -> None:
    """Unmount, delete the cache folder, mount: everything comes from the cloud now."""
    mount.umount()
    held = list((mount.paths.state / "files").glob("*/*"))
    assert not held, "not everything was sent"
    shutil.rmtree(mount.paths.cache)
    mount.start()


def rsync_there_and_compare(mount: Mount, source: Path) -> None:
    target = mount.path / "target"
    mount.run("rsync", "-aHAX", f"{source}/", f"{target}/", timeout_s=PROGRAM_S)
    same(mount, source, target)
    mount.sync()
    without_cache(mount)
    before = mount.status()["cache"]["misses"]
    same(mount, source, target)
    assert mount.status()["cache"]["misses"] > before
    # A second run has nothing to do.
    done = mount.run("rsync", "-aHAXi", "--delete", f"{source}/", f"{target}/", timeout_s=PROGRAM_S)
    assert done.stdout == b""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """About 300 files of the standard library, with everything that a tree can have."""
    need("rsync", "setfacl")
    source = tmp_path / "tree"
    home = Path(os.__file__).parent
    for name in FEW_FOLDERS:
        shutil.copytree(home / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    decorate(source)
    return source


def test_rsync_of_a_tree(mount: Mount, tree: Path) -> None:
    print(f"{sum(1 for _ in tree.rglob('*'))} nodes")
    mount.start()
    rsync_there_and_compare(mount, tree)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_rsync_of_the_whole_standard_library(mount: Mount) -> None:
    need("rsync")
    if not STANDARD_LIBRARY.is_dir():
        pytest.skip(f"{STANDARD_LIBRARY} is not there")
    mount.deadline_s = 900
    mount.start()
    rsync_there_and_compare(mount, STANDARD_LIBRARY)


def test_tar_round_trip(mount: Mount, tree: Path, tmp_path: Path) -> None:
    need("tar")
    options = ["--acls", "--xattrs", "--xattrs-include=*", "--numeric-owner", "-p"]
    mount.start()
    (mount.path / "target").mkdir()
    mount.run("tar", *options, "-C", tree, "-cf", mount.path / "archive.tar", ".", timeout_s=PROGRAM_S)
    mount.run("tar", *options, "-C", mount.path / "target", "-xf", mount.path / "archive.tar", timeout_s=PROGRAM_S)
    same(mount, tree, mount.path / "target")
    (tmp_path / "back").mkdir()
    mount.run("tar", *options, "-C", mount.path / "target", "-cf", tmp_path / "back.tar", ".", timeout_s=PROGRAM_S)
    mount.run("tar", *options, "-C", tmp_path / "back", "-xf", tmp_path / "back.tar", timeout_s=PROGRAM_S)
    same(mount, tree, tmp_path / "back")


@needs_root
def test_every_kind_of_node_survives_a_mount(mount: Mount, tree: Path) -> None:
    mount.start()
    target = mount.path / "target"
    mount.run("cp", "-a", tree, target, timeout_s=PROGRAM_S)
    same(mount, tree, target)
    before = described(target)
    without_cache(mount)
    assert described(target) == before
    of_target, of_tree = (
        mount.run("getfacl", "-Rn", ".", cwd=folder).stdout.split(b"\n\n") for folder in (target, tree)
    )
    assert sorted(of_target) == sorted(of_tree)


def described(folder: Path) -> dict[str, tuple[object, ...]]:
    """Everything about the nodes but their content."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted([folder, *folder.rglob("*")]):
        status = path.lstat()
        names = os.listxattr(path, follow_symlinks=False)
        found[os.fspath(path.relative_to(folder))] = (
            (oct(status.st_mode), status.st_nlink, status.st_uid, status.st_gid, status.st_rdev, status.st_size),
            (status.st_mtime_ns, status.st_ctime_ns, status.st_ino),
            {name: os.getxattr(path, name, follow_symlinks=False) for name in names},
            os.readlink(path) if path.is_symlink() else None,
        )
    return found


# -- big files --


def blocks(count: int) -> Iterator[bytes]:
    """`count` different blocks of 1 MiB, quick to make."""
    base = random.Random(3).randbytes(BLOCK)
    for number in range(count):
        yield number.to_bytes(8, "big") + base[8:]


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def copy_and_compare(mount: Mount, folder: Path, count: int, disturb: Callable[[], object]) -> None:
    source, target = folder / "source", mount.path / "target"
    with source.open("wb") as file:
        file.writelines(blocks(count))
    mount.run("cp", source, target, timeout_s=PROGRAM_S * 4)
    mount.run("cmp", source, target, timeout_s=PROGRAM_S * 4)
    disturb()
    assert digest(target) == digest(source)


def test_a_copy_of_128_mib(mount: Mount, tmp_path: Path) -> None:
    mount.start()
    copy_and_compare(mount, tmp_path, 128, lambda: without_cache(mount))


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_copy_of_1_gib(mount: Mount, tmp_path: Path) -> None:
    mount.deadline_s = 1800
    mount.start()
    copy_and_compare(mount, tmp_path, 1024, lambda: without_cache(mount))

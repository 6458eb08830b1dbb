"""A folder with everything that a tree can have, and the questions whether two are the same.

Used by the tests of programs that copy.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Final

from tests.mount.mounting import Mount
from tests.programs.running import PROGRAM_S

BLOCK: Final = 1 << 20
FEW_FOLDERS: Final = ("asyncio", "collections", "concurrent", "ctypes", "email", "encodings", "http", "json", "xml")


def copy_and_decorate(library: Path, folder: Path) -> None:
    """Copy some 300 files of Python's standard library, and add what a tree may have besides."""
    for name in FEW_FOLDERS:
        shutil.copytree(library / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    decorate(folder)


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

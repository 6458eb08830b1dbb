"""`fs.open_fs("cuckoo://…")` on real drives: by URL, in a plain interpreter, beside a mount."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.machinery import PathFinder
from pathlib import Path

import pytest
from attrs import evolve

from cuckoo_mount.cli.lock import read_holder
from cuckoo_mount.clouds.fsimport import FS, errors, open_fs, stand_in
from cuckoo_mount.config import DrivePaths, create_default_drive, drive_paths, write_config
from cuckoo_mount.pyfs.filesystem import CuckooFS
from tests.clouds.test_fsimport import _HIDE
from tests.mount.mounting import Mount

with stand_in():
    import fs.opener

pytestmark = pytest.mark.slow
CONTENT = bytes(range(256)) * 5000


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DrivePaths:
    """The paths of drive `default`, which exists, in folders of its own."""
    for name in ("CONFIG", "STATE", "CACHE", "DATA"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name.lower()))
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    paths = drive_paths("default")
    create_default_drive(paths)
    return paths


def open_url(url: str, *, create: bool = False) -> FS:
    with stand_in():
        opened: FS = fs.opener.open_fs(url, create=create)
    return opened


def run(program: str) -> str:
    """Return what a program prints that has nothing to complain of, at its end neither."""
    # `import fs` itself warns of the pkg_resources of an old setuptools.
    command = [sys.executable, "-W", "error", "-W", "ignore::UserWarning", "-W", "ignore::DeprecationWarning"]
    done = subprocess.run([*command, "-c", program], check=False, text=True, capture_output=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


def test_what_is_written_goes_to_the_clouds_and_is_there_again(paths: DrivePaths) -> None:
    umask = os.umask(0o022)
    with open_fs("cuckoo://default") as drive:
        assert isinstance(drive, CuckooFS)
        drive.makedirs("a/b")
        drive.writebytes("a/b/file", CONTENT)
        drive.sync()
        objects = [path for path in (paths.data / "local").rglob("*") if path.is_file()]
        assert any("packs" in path.parts for path in objects)
        assert CONTENT not in b"".join(path.read_bytes() for path in objects)
        url = drive.geturl("a/b", purpose="fs")
    assert os.umask(umask) == 0o022
    with open_url(url) as folder:
        assert folder.readbytes("file") == CONTENT
        assert folder.listdir("/") == ["file"]
    with open_url("cuckoo://") as drive:
        assert drive.getsize("a/b/file") == len(CONTENT)


def test_folders_in_the_url(paths: DrivePaths) -> None:
    with pytest.raises(errors.ResourceNotFound):
        open_url("cuckoo://default/new/folder")
    with open_url("cuckoo://default/new/folder", create=True) as folder:
        folder.writetext("file", "text")
    with open_url("cuckoo://default/new") as folder:
        assert folder.readtext("folder/file") == "text"
    with pytest.raises(errors.DirectoryExpected):
        open_url("cuckoo://default/new/folder/file")
    holder = read_holder(paths.lock)
    assert holder is not None
    assert not holder.alive


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("cuckoo://unknown", "there is no drive 'unknown' here; there are: default"),
        ("cuckoo://un known", "cannot name a drive"),
        ("cuckoo://me@default", "neither user nor"),
        ("cuckoo://default?epoch=3", "'epoch' means nothing"),
    ],
)
@pytest.mark.usefixtures("paths")
def test_mistakes_are_answered_in_a_line(url: str, expected: str) -> None:
    with pytest.raises(errors.CreateFailed, match=expected):
        open_url(url, create=True)


def test_a_drive_without_clouds_or_key(paths: DrivePaths) -> None:
    config = create_default_drive(drive_paths("other"))
    write_config(evolve(config, clouds=()), drive_paths("other"))
    with pytest.raises(errors.CreateFailed, match="cuckoo cloud add NAME URL --drive other"):
        open_url("cuckoo://other")
    paths.key_file.unlink()
    with pytest.raises(errors.CreateFailed, match="the drive's key is in none of them"):
        open_url("cuckoo://default")


def test_only_one_at_a_time(paths: DrivePaths) -> None:
    with open_url("cuckoo://default") as drive:
        with pytest.raises(errors.CreateFailed, match=rf"at work on drive 'default' \(pid {os.getpid()}\)"):
            open_url("cuckoo://default")
        drive.writetext("file", "text")
    # Without close(), as many programs do it.
    assert open_url("cuckoo://default").readtext("file") == "text"
    assert open_url("cuckoo://default").readtext("file") == "text"


_PLAIN = """
import sys
import fs
drive = fs.open_fs("cuckoo://default")
drive.writetext("from-a-program", "that never closes")
file = drive.open("open", "w")
file.write("in a buffer")
assert not {"pyfuse3", "cuckoo_mount.fuse.operations"} & set(sys.modules)
print("done")
"""


@pytest.mark.skipif(
    PathFinder.find_spec("pkg_resources") is None, reason="`import fs` alone needs a setuptools below 82"
)
@pytest.mark.usefixtures("paths")
def test_a_plain_program_that_closes_nothing() -> None:
    assert run(_PLAIN) == "done"
    with open_url("cuckoo://default") as drive:
        assert drive.readtext("from-a-program") == "that never closes"
        assert drive.readtext("open") == "in a buffer"


@pytest.mark.usefixtures("paths")
def test_a_program_without_setuptools() -> None:
    assert run(f"{_HIDE}\nimport cuckoo_mount.pyfs{_PLAIN}") == "done"


_FORKING = """
import os, sys
from cuckoo_mount.clouds.fsimport import errors, open_fs
drive = open_fs("cuckoo://default")
drive.writetext("file", "text")
reading = drive.open("file")
child = os.fork()
if not child:
    try:
        drive.listdir("/")
    except errors.FilesystemClosed:
        sys.exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), reading.read(), drive.listdir("/"))
"""


@pytest.mark.usefixtures("paths")
def test_the_copy_that_a_fork_makes_is_closed() -> None:
    assert run(_FORKING) == "7 text ['file']"


@pytest.mark.mount
def test_beside_a_mount(mount: Mount, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in mount.environment.items():
        monkeypatch.setenv(name, value)
    mount.start()
    (mount.path / "folder").mkdir(0o750)
    (mount.path / "folder" / "mounted").write_bytes(CONTENT)
    (mount.path / "link").symlink_to("folder/mounted")
    os.setxattr(mount.path / "folder", "user.kept", b"value")
    with pytest.raises(errors.CreateFailed, match=r"already mounted at .*; unmount it first: cuckoo umount"):
        open_url("cuckoo://default")
    mount.umount()

    with open_url("cuckoo://default") as drive:
        assert drive.readbytes("link") == CONTENT
        drive.move("folder/mounted", "folder/moved")
        drive.writetext("folder/\udcff", "written without a mount")
        drive.makedir("new")
        info = drive.getinfo("folder/moved", ["stat"]).raw["stat"]
        refused = mount.cuckoo("status", check=False)
        assert b"at work on drive 'default'" in refused.stderr

    mount.start()
    status = os.stat(mount.path / "folder" / "moved")
    assert (status.st_mtime_ns, status.st_ino, status.st_mode) == (info["st_mtime_ns"], info["st_ino"], info["st_mode"])
    assert (mount.path / "folder" / "moved").read_bytes() == CONTENT
    assert Path(os.fsdecode(os.fsencode(mount.path) + b"/folder/\xff")).read_text() == "written without a mount"
    assert os.getxattr(mount.path / "folder", "user.kept") == b"value"
    assert (mount.path / "new").is_dir()

"""`cuckoo import` from servers as people have them, into a mounted drive."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest
from attrs import frozen

from cuckoo_mount.testing.fileservers import file_server
from cuckoo_mount.testing.servers import s3_server
from tests.mount.mounting import Mount, mounted

pytestmark = [pytest.mark.mount, pytest.mark.slow]

KINDS: Final = ["rclone", "wsgidav", "rclone-sftp", "pyftpdlib"]
LONG_KINDS: Final = [
    pytest.param(kind, marks=pytest.mark.long) for kind in ("moto", "weed", "openssh", "rclone-webdav")
]
SOME_TIME_S: Final = 1_600_000_000


@pytest.fixture(scope="module")
def drive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    with mounted(tmp_path_factory.mktemp("import"), deadline_s=240) as mount:
        yield mount


@pytest.fixture
def here(drive: Mount, request: pytest.FixtureRequest) -> Path:
    folder: Path = drive.path / request.node.name
    folder.mkdir()
    return folder / "imported"


def make_tree(root: Path) -> dict[str, bytes]:
    """Make files with names and sizes of all kinds, and return them."""
    dice = random.Random(7)
    contents = {
        "a file": dice.randbytes(1000),
        "empty": b"",
        "deep/er/still/ö ü.txt": b"content",
        "deep/hash#and?percent%41": b"odd",
        "deep/more than one part": dice.randbytes((8 << 20) + 17),
    }
    for name, data in contents.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        os.utime(path, (SOME_TIME_S, SOME_TIME_S))
    return contents


def contents_of(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@frozen
class Storage:
    """A server with the tree `files` in it.  `data`: where they are on this machine, with their times; None on S3."""

    url: str
    secrets: tuple[tuple[str, str], ...]
    files: dict[str, bytes]
    data: Path | None

    def arguments(self, folder: Path) -> list[str]:
        """Return what names it on a command line; secrets are put into files in `folder`."""
        found = [self.url]
        for key, value in self.secrets:
            (folder / key).write_text(value)
            found += ["--secret", f"{key}=file:{folder / key}"]
        return found


@pytest.fixture
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    with ExitStack() as stack:
        yield _storage(request.param, tmp_path, stack)


def _storage(kind: str, folder: Path, stack: ExitStack) -> Storage:
    if kind in ("rclone", "moto", "weed"):
        s3 = stack.enter_context(s3_server(kind, folder / "server"))
        files = make_tree(folder / "tree")
        s3.rclone("copy", str(folder / "tree"), f":s3:{s3.bucket}/in/here")
        return Storage(f"{s3.url('in')}:/here", s3.secrets(), files, None)
    server = stack.enter_context(file_server(kind, folder / "server"))
    name = server.fresh_folder()
    files = make_tree(server.data / name / "here")
    server.notice()
    url, mark, query = server.url(name).partition("?")
    return Storage(f"{url}{mark}{query}:/here", server.secrets(), files, server.data / name / "here")


@pytest.mark.parametrize("storage", [*KINDS, *LONG_KINDS], indirect=True)
def test_a_tree_comes_over_and_comes_once(drive: Mount, here: Path, storage: Storage, tmp_path: Path) -> None:
    source = storage.arguments(tmp_path)
    dry = drive.cuckoo("import", *source, here, "--dry-run")
    assert f"{len(storage.files)} files, 8.0 MiB in 3 folders would be copied" in dry.stdout.decode()
    assert not here.exists()

    told = drive.cuckoo("import", *source, here).stdout.decode()
    assert contents_of(here) == storage.files
    assert f"{len(storage.files)} files, 8.0 MiB in 3 folders copied" in told
    if storage.data is not None:
        assert {path.stat().st_mtime for path in here.rglob("*") if path.is_file()} == {SOME_TIME_S}

    again = drive.cuckoo("import", *source, here).stdout.decode()
    assert f"0 files, 0 B in 3 folders copied; {len(storage.files)} files there already" in again

    (here / "a file").write_bytes(b"mine")
    kept = drive.cuckoo("import", *source, here).stdout.decode()
    assert "1 file of DIR" in kept
    assert "a file" in kept
    assert (here / "a file").read_bytes() == b"mine"
    drive.cuckoo("import", *source, here, "--overwrite")
    assert contents_of(here) == storage.files


def test_an_archive(drive: Mount, here: Path, tmp_path: Path) -> None:
    files = make_tree(tmp_path / "tree")
    with zipfile.ZipFile(tmp_path / "some.zip", "w") as archive:
        for name in files:
            archive.write(tmp_path / "tree" / name, name)
    drive.cuckoo("import", f"zip://{tmp_path / 'some.zip'}", here)
    assert contents_of(here) == files


@pytest.mark.parametrize("storage", ["wsgidav"], indirect=True)
def test_what_is_wrong_is_said_in_a_line(drive: Mount, here: Path, storage: Storage, tmp_path: Path) -> None:
    def refused(*arguments: str | Path) -> tuple[int, str]:
        result = drive.cuckoo("import", *arguments, check=False)
        assert result.stdout == b""
        return result.returncode, result.stderr.decode()

    url, *secrets = storage.arguments(tmp_path)
    assert refused(url, tmp_path) == (2, f"cuckoo: {tmp_path} lies in no mounted drive; see: cuckoo drives\n")
    status, said = refused(tmp_path, here)
    assert (status, "rsync -aHAX" in said) == (2, True)
    status, said = refused("nosuch://host", here)
    assert (status, "nosuch:// is not known" in said) == (2, True)
    status, said = refused(url.replace(":/here", ":/not there"), here, *secrets)
    assert (status, "not there" in said, said.count("\n")) == (1, True, 1)
    (tmp_path / "password").write_text("wrong")
    status, said = refused(url, here, *secrets)
    assert (status, "password" in said, said.count("\n")) == (1, True, 1), said
    assert not here.exists() or not list(here.iterdir())


@pytest.mark.parametrize("storage", ["wsgidav"], indirect=True)
def test_interrupted_it_leaves_whole_files_only_and_goes_on(
    drive: Mount, here: Path, storage: Storage, tmp_path: Path
) -> None:
    assert storage.data is not None
    for number in range(300):
        shutil.copyfile(storage.data / "a file", storage.data / f"a file {number}")
    command = [*storage.arguments(tmp_path), str(here)]
    program = [sys.executable, "-m", "cuckoo_mount.cli.main", "import", *command]
    process = subprocess.Popen(program, env=drive.environment, cwd="/", stderr=subprocess.DEVNULL)
    end = len(storage.files)
    while len(list(here.glob("a file*")) if here.exists() else []) < end:
        assert process.poll() is None, "it ended before it was interrupted"
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    names = {path.name for path in here.rglob("*") if path.is_file()}
    assert 0 < len(names) < 305, "nothing was left to do"
    assert not [name for name in names if name.startswith(".cuckoo-import-")]
    drive.cuckoo("import", *command)
    assert contents_of(here) == contents_of(storage.data)

"""How often the kernel has to ask: what it knows already is answered by itself.  Counts, no times."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.mount.mounting import Mount
from tests.mount.pagecache import undisturbed

pytestmark = [pytest.mark.mount]

FILES = 120
FOLDERS = 6
GIVEN_BACK_S = 30.0


@contextmanager
def counted(mount: Mount) -> Iterator[Counter[str]]:
    """Yield a counter that has the upcalls of the block when it ends; forgets are not waited for and not counted."""
    found: Counter[str] = Counter()
    before = mount.upcalls()
    yield found
    found.update(mount.upcalls() - before)
    del found["forget"]
    print(dict(found))


def wait_until_given_back(mount: Mount) -> None:
    """Return when the kernel has given back every folder that was opened; it does so some time after the close."""
    end_s = time.monotonic() + GIVEN_BACK_S
    while (calls := mount.upcalls())["opendir"] != calls["releasedir"]:
        assert time.monotonic() < end_s, "a folder is still open"
        time.sleep(0.01)


def make_tree(mount: Mount) -> Path:
    tree = mount.path / "tree"
    for folder in range(FOLDERS):
        (tree / f"d{folder}").mkdir(parents=True)
        for number in range(FILES // FOLDERS):
            (tree / f"d{folder}" / f"f{number}").write_bytes(b"x" * 5000)
    return tree


def test_what_was_asked_once_is_known(mount: Mount) -> None:
    mount.start()
    (mount.path / "file").write_bytes(b"x" * 300_000)

    def attempt() -> None:
        (mount.path / "file").read_bytes()
        os.stat(mount.path / "file")  # after a close the kernel asks for st_blocks once
        assert not (mount.path / "missing").exists()
        with counted(mount) as calls:
            os.stat(mount.path / "file")
            assert not (mount.path / "missing").exists()
        assert not calls
        with counted(mount) as calls:
            (mount.path / "file").read_bytes()
        assert calls == Counter(open=1, release=1)

    undisturbed(attempt)


@pytest.mark.parametrize(
    ("command", "options", "roots"),
    [
        (("find", "tree", "-ls"), (), 1),
        # ls asks for the ACL of each file, and readdirplus makes the kernel forget those.
        (("ls", "-lR", "tree"), ("-o", "noxattr"), 1),
        (("rsync", "-an", "tree/", "copy/"), (), 2),
    ],
    ids=["find", "ls", "rsync"],
)
def test_a_second_look_at_a_tree_asks_for_directories_only(
    mount: Mount, command: tuple[str, ...], options: tuple[str, ...], roots: int
) -> None:
    """But for the directories named on the command line: readdir moves their atime, and nobody lists them."""
    mount.start(*options)
    make_tree(mount)
    mount.run("cp", "-a", "tree", "copy", cwd=mount.path)
    directories, entries = roots * (1 + FOLDERS), roots * (FILES + FOLDERS)

    def attempt() -> None:
        mount.run(*command, cwd=mount.path)
        wait_until_given_back(mount)
        with counted(mount) as calls:
            mount.run(*command, cwd=mount.path)
        assert calls.pop("getattr", 0) <= roots
        assert calls.pop("statfs", 0) <= 1, "find asks what kind of file system it is"
        assert set(calls) == {"opendir", "readdir", "releasedir"}
        assert calls.total() <= 4 * directories + entries // 50

    undisturbed(attempt)


@pytest.mark.parametrize(("options", "most"), [((), 7), (("-o", "noxattr"), 6)], ids=["plain", "noxattr"])
def test_a_new_small_file(mount: Mount, options: tuple[str, ...], most: int) -> None:
    mount.start(*options)
    (mount.path / "warm").write_bytes(b"x")  # what the kernel asks only once

    def write(name: str) -> None:
        fd = os.open(mount.path / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        os.write(fd, b"x" * 4096)
        os.close(fd)

    with counted(mount) as calls:
        write("new")
    assert calls.total() <= most


@pytest.mark.parametrize(("options", "most"), [((), 1020), (("-o", "noxattr"), 20)], ids=["plain", "noxattr"])
def test_1000_small_writes(mount: Mount, options: tuple[str, ...], most: int) -> None:
    mount.start(*options)
    (mount.path / "warm").write_bytes(b"x")
    with counted(mount) as calls, (mount.path / "file").open("wb", buffering=0) as file:
        for _ in range(1000):
            file.write(b"y" * 4096)
    print(calls.total())
    assert calls.total() <= most
    assert (mount.path / "file").read_bytes() == b"y" * 4_096_000

"""Programs that copy: rsync, tar, cp.  What they bring there and back is the same, from an empty cache, too."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.mount.mounting import Mount
from tests.programs.running import PROGRAM_S, need, needs_root, without_cache
from tests.programs.trees import BLOCK, described, same

pytestmark = [pytest.mark.mount, pytest.mark.slow, pytest.mark.timeout(240)]

STANDARD_LIBRARY: Final = Path("/usr/lib/python3.11")


def rsync_there_and_back(mount: Mount, source: Path, back: Path) -> None:
    """Bring a tree to the mount, and back from an empty cache."""
    target = mount.path / "target"
    mount.run("rsync", "-aHAX", f"{source}/", f"{target}/", timeout_s=PROGRAM_S)
    same(mount, source, target)
    without_cache(mount)
    before = mount.status()["cache"]["misses"]
    mount.run("rsync", "-aHAX", f"{target}/", f"{back}/", timeout_s=PROGRAM_S)
    same(mount, source, back)
    assert mount.status()["cache"]["misses"] > before
    # A second run has nothing to do.
    done = mount.run("rsync", "-aHAXi", "--delete", f"{source}/", f"{target}/", timeout_s=PROGRAM_S)
    assert done.stdout == b""


def test_rsync_of_a_tree(mount: Mount, tree: Path, tmp_path: Path) -> None:
    print(f"{sum(1 for _ in tree.rglob('*'))} nodes")
    mount.start()
    rsync_there_and_back(mount, tree, tmp_path / "back")


@pytest.mark.long
@pytest.mark.timeout(900)
def test_rsync_of_the_whole_standard_library(mount: Mount, tmp_path: Path) -> None:
    need("rsync")
    if not STANDARD_LIBRARY.is_dir():
        pytest.skip(f"{STANDARD_LIBRARY} is not there")
    mount.deadline_s = 900
    mount.start()
    rsync_there_and_back(mount, STANDARD_LIBRARY, tmp_path / "back")


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

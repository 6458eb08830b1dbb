"""git: clone, fsck, gc, rebase, and the same after a mount without cache."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Final

import pytest

from tests.mount.mounting import Mount
from tests.programs.running import PROGRAM_S, need

pytestmark = [pytest.mark.mount, pytest.mark.slow, pytest.mark.timeout(240)]

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

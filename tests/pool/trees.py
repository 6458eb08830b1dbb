"""Trees to store: real source files, and what else a tree has; made outside the mount, compared by rsync.

Used by the tests with servers.  Files are Python's own sources, each with a first line of its own, so that no two are
alike; sizes and compressibility are those of real ones.
"""

from __future__ import annotations

import os
import random
import subprocess
import sysconfig
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Final

FILES_PER_FOLDER: Final = 40
OLD_NS: Final = 1_500_000_000 * 10**9
SEED: Final = 20_261_122
MIB: Final = 1 << 20


def _sources() -> Iterator[bytes]:
    """Yield the sources of Python's library, over and over."""
    names: list[Path] = []
    for folder, folders, files in os.walk(sysconfig.get_paths()["stdlib"]):
        folders[:] = sorted(set(folders) - {"site-packages", "__pycache__"})
        names += [Path(folder, name) for name in sorted(files) if name.endswith(".py")]
    while True:
        for name in names:
            yield name.read_bytes()


def make_source_tree(folder: Path, files: int) -> int:
    """Write `files` regular files and some of everything else; return how many bytes the files have."""
    total_bytes = 0
    dice = random.Random(SEED)
    for number, source in enumerate(islice(_sources(), files)):
        below = folder / f"part{number // FILES_PER_FOLDER // 10}" / f"module{number // FILES_PER_FOLDER % 10}"
        if number % FILES_PER_FOLDER == 0:
            below.mkdir(parents=True)
        path = below / f"file{number}.py"
        data = f"# {number}\n".encode() + source
        path.write_bytes(data)
        path.chmod(dice.choice((0o644, 0o600, 0o755, 0o444)))
        moment_ns = OLD_NS + dice.randrange(10**17)
        os.utime(path, ns=(moment_ns, moment_ns))
        total_bytes += len(data)
    _add_oddities(folder)
    return total_bytes


def _add_oddities(folder: Path) -> None:
    odd = folder / "odd"
    odd.mkdir()
    (odd / "empty").touch()
    (odd / "empty folder").mkdir(mode=0o711)
    (odd / "Übergröße \n\t*").write_text("a name")
    Path(os.fsdecode(os.fsencode(odd) + b"/not \xff utf-8")).write_text("bytes")
    (odd / "link").symlink_to("../part0")
    (odd / "dangling").symlink_to("nowhere/" * 100)
    (odd / "one name").write_text("of two")
    os.link(odd / "one name", odd / "other name")
    os.setxattr(odd / "one name", "user.colour", b"blue")
    with (odd / "sparse").open("wb") as sparse:
        sparse.seek(5 * MIB)
        sparse.write(b"end")
    os.mkfifo(odd / "fifo")


def make_random_file(path: Path, mib: int) -> None:
    """Write a file of random bytes, the same every time."""
    dice = random.Random(SEED)
    with path.open("wb") as file:
        for _ in range(mib):
            file.write(dice.randbytes(MIB))


def run(*command: str | Path, timeout_s: float = 600.0) -> str:
    """Run a program and return what it printed; it has to succeed."""
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s, check=False, cwd="/"
    )
    said = (done.stdout + done.stderr).decode("utf-8", "replace")
    assert done.returncode == 0, f"{command[0]} ended with {done.returncode}:\n{said[-3000:]}"
    return said


def copy(source: Path, target: Path) -> None:
    """Copy a tree with everything it has."""
    run("rsync", "-aHAX", f"{source}/", f"{target}/")


def assert_same(source: Path, target: Path) -> None:
    """Fail unless rsync, which reads every byte of both, finds no difference."""
    assert run("rsync", "-aHAXnic", "--delete", f"{source}/", f"{target}/") == ""


def make_repository(folder: Path, source: Path, *, commits: int) -> None:
    """Make a git repository of the Python files in the first parts of `source`, in so many commits."""
    git = ("git", "-C", folder, "-c", "user.name=Test", "-c", "user.email=test@localhost")
    run("git", "init", "--quiet", "--initial-branch", "main", folder)
    parts = sorted(path for path in source.glob("part*/module*") if path.is_dir())
    for number in range(commits):
        for part in parts[number::commits]:
            run("cp", "-r", part, folder / f"{part.parent.name}-{part.name}")
        run(*git, "add", "--all")
        run(*git, "commit", "--quiet", "--allow-empty", "--message", f"commit {number}")


def clone(repository: Path, target: Path) -> None:
    """Clone, without links into the repository, and let git check every object."""
    run("git", "clone", "--quiet", "--no-local", repository, target)
    check_clone(target)


def check_clone(target: Path) -> None:
    """Fail unless git finds every object whole and the files as committed."""
    run("git", "-C", target, "fsck", "--full", "--strict")
    assert run("git", "-C", target, "status", "--porcelain") == ""

"""A tree with everything that a POSIX tree can have, and a survey that misses nothing of it.

Used by the tests that recover a drive.  `make_varied_tree` builds outside the mount; `survey` reads a tree and returns
all that a program could notice, to be compared with what another machine shows.
"""

from __future__ import annotations

import hashlib
import os
import random
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from attrs import evolve, frozen

SEED: Final = 20_261_122
FILES: Final = 400
PER_FOLDER: Final = 25
MIB: Final = 1 << 20
OLD_NS: Final = 1_400_000_000 * 10**9
FUTURE_NS: Final = 4_200_000_000 * 10**9
_XATTRS_HELD: Final = ("user.", "system.posix_acl_")


@frozen
class Seen:
    """One name.  `same_as`: the first name, in order, of the same file.

    `ino`, `ctime_ns`: the same on every machine, but not those of the tree that was copied.
    """

    mode: int
    uid: int
    gid: int
    rdev: int
    nlink: int
    size: int
    mtime_ns: int
    digest: str
    xattrs: tuple[tuple[str, bytes], ...]
    same_as: bytes
    ino: int
    ctime_ns: int
    atime_ns: int


Survey = dict[bytes, Seen]


def survey(root: Path) -> Survey:
    """Return everything below `root` (itself is b"").  Access times stay if they are in the future, as ours are."""
    found: Survey = {}
    first: dict[int, bytes] = {}
    for name, path in _names(os.fsencode(root)):
        status = os.lstat(path)
        is_folder = stat.S_ISDIR(status.st_mode)
        found[name] = Seen(
            mode=status.st_mode,
            uid=status.st_uid,
            gid=status.st_gid,
            rdev=status.st_rdev,
            nlink=status.st_nlink,
            size=0 if is_folder else status.st_size,
            mtime_ns=status.st_mtime_ns,
            digest=_digest(path, status.st_mode),
            xattrs=_xattrs(path),
            same_as=first.setdefault(status.st_ino, name),
            ino=status.st_ino,
            ctime_ns=status.st_ctime_ns,
            # Listing a folder moves it, whoever looks.
            atime_ns=0 if is_folder else status.st_atime_ns,
        )
    return found


def as_copied(found: Survey) -> Survey:
    """Return a survey without what a copy does not take along."""
    return {
        name: evolve(seen, ino=0, ctime_ns=0, nlink=0 if stat.S_ISDIR(seen.mode) else seen.nlink)
        for name, seen in found.items()
    }


def assert_same_survey(found: Survey, wanted: Survey) -> None:
    """Fail, with the first few names, unless both are the same."""
    missing, added = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    assert (missing, added) == ([], []), f"missing: {missing[:5]}, added: {added[:5]}"
    different = [
        f"{name!r}: {found[name]} is not {wanted[name]}" for name in sorted(wanted) if found[name] != wanted[name]
    ]
    assert not different, f"{len(different)} differ:\n" + "\n".join(different[:5])


def _names(root: bytes) -> Iterator[tuple[bytes, bytes]]:
    yield b"", root
    waiting = [b""]
    while waiting:
        folder = waiting.pop()
        with os.scandir(os.path.join(root, folder)) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
        for entry in entries:
            name = os.path.join(folder, entry.name)
            yield name, os.path.join(root, name)
            if entry.is_dir(follow_symlinks=False):
                waiting.append(name)


def _digest(path: bytes, mode: int) -> str:
    if stat.S_ISLNK(mode):
        return repr(os.readlink(path))
    if not stat.S_ISREG(mode):
        return ""
    digest = hashlib.blake2b()
    fd = os.open(path, os.O_RDONLY)
    try:
        while part := os.read(fd, MIB):
            digest.update(part)
    finally:
        os.close(fd)
    return digest.hexdigest()


def _xattrs(path: bytes) -> tuple[tuple[str, bytes], ...]:
    names = sorted(os.listxattr(path, follow_symlinks=False))
    return tuple(
        (name, os.getxattr(path, name, follow_symlinks=False)) for name in names if name.startswith(_XATTRS_HELD)
    )


# -- the tree --


def make_varied_tree(folder: Path, *, files: int = FILES, random_mib: int = 64) -> None:
    """Write several hundred small files, a big one of `random_mib`, and some of everything else."""
    dice = random.Random(SEED)
    for number in range(files):
        below = folder / f"d{number // PER_FOLDER}"
        below.mkdir(parents=True, exist_ok=True)
        path = below / f"f{number}"
        # Empty ones, small ones, text, and some with more than one chunk.
        size = dice.choice((0, 1, 100, 4096, 9000, 60_000)) if number % 100 else 1_200_000
        path.write_bytes(dice.randbytes(size) if number % 3 else b"text " * (size // 5))
        path.chmod(dice.choice((0o644, 0o600, 0o755, 0o444, 0o640)))
        if number % 10 == 0:
            os.link(path, below / f"hard{number}")
        if number % 10 == 1:
            (below / f"soft{number}").symlink_to(f"../d{number % 7}/f{number}")
        if number % 10 == 2:
            os.setxattr(path, "user.number", str(number).encode())
    make_random_file(folder / "big", random_mib)
    _add_names(folder / "names")
    _add_kinds(folder / "kinds")
    _add_acls(folder / "acls")
    _set_times(os.fsencode(folder), dice)


def make_random_file(path: Path, mib: int) -> None:
    """Write random bytes, quickly and the same every time."""
    dice = random.Random(SEED)
    with path.open("wb") as file:
        for _ in range(mib):
            file.write(dice.randbytes(MIB))


def _add_names(folder: Path) -> None:
    folder.mkdir()
    base = os.fsencode(folder)
    for name in (
        b"new\nline",
        b"not \xff\xfe utf-8",
        b"x" * 255,
        "ü".encode() * 127,
        b" ",
        b"*",
        b"-rf",
        b"\\",
        b"'\"",
    ):
        Path(os.fsdecode(os.path.join(base, name))).write_bytes(name)
    os.link(os.path.join(base, b"new\nline"), os.path.join(base, b"hard \xff\n"))
    os.symlink(b"to \xff\n", os.path.join(base, b"link \xff"))
    deep = folder.joinpath(*["deep" * 20] * 20)
    deep.mkdir(parents=True)
    (deep / "leaf").write_text("leaf")


def _add_kinds(folder: Path) -> None:
    folder.mkdir()
    os.mkfifo(folder / "fifo", 0o620)
    (folder / "dangling").symlink_to("nowhere/" * 200)
    with (folder / "sparse").open("wb") as sparse:
        for at in (0, 3 * MIB + 17, 40 * MIB):
            sparse.seek(at)
            sparse.write(f"data at {at}".encode())
        sparse.truncate(50 * MIB)
    for name, mode in (("setuid", 0o4755), ("setgid", 0o2711), ("all", 0o7777), ("none", 0o000)):
        (folder / name).write_text(name)
        (folder / name).chmod(mode)
    for name, mode in (("sticky", 0o1777), ("setgid folder", 0o2775), ("closed", 0o700)):
        (folder / name).mkdir()
        (folder / name / "inside").write_text(name)
        (folder / name).chmod(mode)
    (folder / "xattrs").write_text("xattrs")
    os.setxattr(folder / "xattrs", "user.empty", b"")
    os.setxattr(folder / "xattrs", "user.bytes", bytes(range(256)))
    os.setxattr(folder / "xattrs", "user.long" + "g" * 200, b"long" * 500)
    os.setxattr(folder / "sticky", "user.of a folder", b"\xff")
    if os.getuid() == 0:
        (folder / "owned").write_text("owned")
        os.lchown(folder / "owned", 1234, 5678)
        os.symlink("owned", folder / "owned link")
        os.lchown(folder / "owned link", 4321, 8765)


def _add_acls(folder: Path) -> None:
    folder.mkdir()
    (folder / "file").write_text("file")
    (folder / "inherits").mkdir()
    _setfacl("-m", "u:1234:rw,g:5678:r,m::rw", folder / "file")
    _setfacl("-d", "-m", "u:4321:rwx,g::rx,o::-", folder / "inherits")
    (folder / "inherits" / "child").write_text("child")


def _setfacl(*arguments: str | Path) -> None:
    subprocess.run(("setfacl", *arguments), check=True, capture_output=True, timeout=60)


def _set_times(root: bytes, dice: random.Random) -> None:
    """Give everything times of its own; folders last, as what is made in them moves theirs."""
    for _, path in reversed(list(_names(root))):
        times_ns = (start + dice.randrange(10**17) for start in (FUTURE_NS, OLD_NS))
        os.utime(path, ns=(next(times_ns), next(times_ns)), follow_symlinks=False)
    for name, moment_ns in ((b"names/-rf", 1), (b"names/*", FUTURE_NS - 1)):
        os.utime(os.path.join(root, name), ns=(FUTURE_NS, moment_ns))


def write_settled(path: Path, data: bytes) -> None:
    """Write a file and give it times: the access time does not move when it is read; and where a file was made and
    written in one tick of the clock, the kernel shows another time, until it forgets the file, than the daemon has."""
    path.write_bytes(data)
    os.utime(path, ns=(FUTURE_NS, OLD_NS + len(data)))


# -- copying --


def copy_exactly(source: Path, target: Path) -> None:
    """Copy a tree with rsync, with everything it has; access times, which rsync cuts to seconds, afterwards."""
    command = ("rsync", "-aHAXS", "--modify-window=-1", f"{source}/", f"{target}/")
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=600, check=False, cwd="/")
    assert done.returncode == 0, done.stderr.decode("utf-8", "replace")[-3000:]
    names = [name for name, _ in _names(os.fsencode(source))]
    for name in reversed(names):
        status = os.lstat(os.path.join(os.fsencode(source), name))
        times_ns = (status.st_atime_ns, status.st_mtime_ns)
        os.utime(os.path.join(os.fsencode(target), name), ns=times_ns, follow_symlinks=False)

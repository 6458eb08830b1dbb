"""What is written to the peers: a tree of files as tarball and unpacked, and one big file.

The tree is made from the standard library of the running Python, so it needs no download and looks like what people
keep: a few large files, many small ones.
"""

from __future__ import annotations

import os
import sysconfig
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from attrs import frozen

from benchmarks.processes import Failed, run

_SIZE_MAX: Final = 1 << 20
_SKIPPED: Final = frozenset({"__pycache__", "site-packages", "dist-packages"})


@frozen(slots=True)
class Source:
    """`reference`: the tree, unpacked; `tarball`: the same; `blob`: random bytes."""

    reference: Path
    tarball: Path
    blob: Path
    files: int
    tree_bytes: int
    blob_bytes: int


def make_source(folder: Path, *, files: int, blob_mib: int) -> Source:
    """Make everything in `folder`, which exists.  Raises: Failed, OSError."""
    reference, tarball, blob = folder / "reference", folder / "tree.tar", folder / "blob"
    tree_bytes = _fill(reference, files)
    with tarfile.open(tarball, "w") as archive:
        archive.add(reference, ".")
    with open(blob, "wb") as writer:
        for _ in range(blob_mib):
            writer.write(os.urandom(1 << 20))
    # Else its way to the disk is part of the first peer's times.
    run(["sync", "-f", folder], timeout_s=600)
    return Source(reference, tarball, blob, files, tree_bytes, blob_mib << 20)


def _fill(reference: Path, files: int) -> int:
    """Copy files, round after round with another last line each, until there are enough; return their bytes."""
    library = Path(sysconfig.get_path("stdlib"))
    names = sorted(_names(library))
    if not names:
        raise Failed(f"there are no files in {library}")
    total = 0
    for number in range(files):
        turn, position = divmod(number, len(names))
        target = reference / f"{turn}" / names[position]
        target.parent.mkdir(parents=True, exist_ok=True)
        total += target.write_bytes((library / names[position]).read_bytes() + b"# %d\n" % turn)
    return total


def _names(library: Path) -> Iterator[Path]:
    for folder, below, names in os.walk(library):
        below[:] = [name for name in below if name not in _SKIPPED]
        for name in names:
            path = Path(folder, name)
            if path.is_file() and not path.is_symlink() and path.stat().st_size <= _SIZE_MAX:
                yield path.relative_to(library)

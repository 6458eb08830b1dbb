"""Small private files written so that a crash leaves the old one or the new one, never a part.

Used by config/ only.  Blocks for the disk.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from pathlib import Path
from typing import Final

PRIVATE_FILE: Final = 0o600
PRIVATE_FOLDER: Final = 0o700


def make_private_folder(folder: Path) -> None:
    """Make `folder`, 0700, and its parents where they are missing.  Raises: OSError."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        folder.mkdir(mode=PRIVATE_FOLDER)
    except FileExistsError:
        if not folder.is_dir():
            raise


def write_private_file(path: Path, data: bytes, *, replace: bool) -> None:
    """Write `path`, 0600, atomically and durably.  Raises: FileExistsError if there and not to be replaced; OSError.

    What is a symbolic link (dotfiles under version control) stays one: its target is replaced.
    """
    make_private_folder(path.parent)
    target = Path(os.path.realpath(path))
    # Not by a hard link, which some file systems lack: whoever makes a drive holds its lock.
    if not replace and target.exists():
        raise FileExistsError(f"{target} exists")
    fd, temporary = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), PRIVATE_FILE)
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    folder_fd = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder_fd)
    finally:
        os.close(folder_fd)


def make_private(path: Path) -> bool:
    """Take a file's rights from group and others; return whether they had any.  Raises: OSError."""
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077 == 0:
        return False
    path.chmod(mode & 0o700)
    return True

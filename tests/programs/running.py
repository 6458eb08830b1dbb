"""What the tests of programs share: is the program there, run it on the mount, and have everything come from the cloud.

Used by the tests in this folder only.
"""

from __future__ import annotations

import os
import shutil
from typing import Final

import pytest

from tests.mount.mounting import Mount

PROGRAM_S: Final = 200.0
"""No program of an ordinary run takes longer, in seconds."""
OPEN: Final = ("-o", "allow_other") if os.geteuid() == 0 else ()
"""Options of a mount that a program uses as another user; who is not root starts it as himself."""

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root makes devices and gives files away")


def need(*programs: str) -> None:
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")


def without_cache(mount: Mount, *options: str) -> None:
    """Unmount, delete the cache folder, mount: everything comes from the cloud now."""
    mount.umount()
    held = list((mount.paths.state / "files").glob("*/*"))
    assert not held, "not everything was sent"
    shutil.rmtree(mount.paths.cache)
    mount.start(*options)

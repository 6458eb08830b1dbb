"""What all tests share: the option --long, and the condition for tests that mount.

Used by pytest alone.  Fixtures that only one folder of tests needs belong into that folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

TESTS: Final = Path(__file__).parent
SLOWEST_FIRST: Final = ("pool", "mount", "cli", "programs", "cancel", "clouds")
"""Folders whose files take longest; all others come after them."""


@pytest.fixture(autouse=True)
def own_umask() -> Iterator[None]:
    """Give every test the usual umask: commands that are run in this process set the daemon's, which is stricter."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --long: also run the tests marked `long`, which take minutes."""
    parser.addoption("--long", action="store_true", default=False, help="also run the tests that take minutes")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out `long` tests unless asked for, skip `mount` tests where nothing can be mounted, and sort.

    What takes long comes first: a file goes to one process (`--dist loadfile`), and at the end none should be left
    alone with a long one.
    """
    _deselect_long(config, items)
    items.sort(key=_turn)
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        no_fuse = pytest.mark.skip(reason="/dev/fuse is missing or may not be opened")
        for item in items:
            if item.get_closest_marker("mount") is not None:
                item.add_marker(no_fuse)


def _turn(item: pytest.Item) -> int:
    folder = item.path.relative_to(TESTS).parts[0]
    return SLOWEST_FIRST.index(folder) if folder in SLOWEST_FIRST else len(SLOWEST_FIRST)


def _deselect_long(config: pytest.Config, items: list[pytest.Item]) -> None:
    # Deselected and not skipped: a skip in the closing line should mean that something is missing on this machine.
    # A test named on the command line (file::test) was asked for.
    if config.getoption("--long") or any("::" in argument for argument in config.args):
        return
    kept = [item for item in items if item.get_closest_marker("long") is None]
    if len(kept) < len(items):
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("long") is not None])
        items[:] = kept

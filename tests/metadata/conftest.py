"""The store that most tests of this folder use: new, empty, and checked when the test is over."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cuckoo_mount.metadata.store import SqliteMetadata
from tests.metadata.helpers import new_store


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteMetadata]:
    """An empty store; every invariant holds when the test ends."""
    async with await new_store(tmp_path / "metadata") as opened:
        yield opened
        assert await opened.check_invariants() == []

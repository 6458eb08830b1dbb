"""kill -9 of a real process that changes a store: everything it promised is there, and everything there is whole."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cuckoo_mount.metadata.store import open_store
from tests.metadata.helpers import names_in, new_store, only_row

REPOSITORY = Path(__file__).parent.parent.parent


def _run_and_kill(path: Path, start: int, promises: int) -> int:
    """Let the writer promise `promises` times, kill it, and return the last number that it promised."""
    command = [sys.executable, "-m", "tests.metadata.killed_writer", str(path), str(start)]
    last = start
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(promises):
            last = int(process.stdout.readline())
        process.kill()
        for line in process.stdout.read().splitlines():
            last = int(line)
    return last


@pytest.mark.slow
async def test_promises_hold_after_kill(tmp_path: Path) -> None:
    path = tmp_path / "metadata"
    await (await new_store(path)).aclose()
    start, promised = 1, 0
    for promises in (1, 40, 300):
        last = _run_and_kill(path, start, promises)
        promised += last - start
        async with await open_store(path) as store:
            assert await store.check_invariants() == []
            names = await names_in(store)
            for number in range(start, last + 1):
                name = b"renamed-%d" % number if number % 5 == 0 else b"%d" % number
                assert (await only_row(store, names[name].ino)).version > 0
                assert names[name].size_bytes == number
            # What was not promised may be there, up to a point; numbers go on behind it.
            start = 1 + max(int(name.removeprefix(b"renamed-")) for name in names)
            assert len(names) == start - 1
    assert promised > 300, "nothing was at risk"

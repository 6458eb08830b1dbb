"""One process writes a file through a mapping and by pwrite, others read it: nobody ever sees old bytes again.

Meanwhile the bytes go to the cloud, leave this machine and come back, and the kernel's pages are dropped.  The writer
closes the file again and again: between two writes there are times in which nobody has it open for writing, and
whatever is done for mere readers (bytes that are pushed into the kernel's cache, say) must not outlast them.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from cuckoo_mount.config.records import CACHE_LIMIT_MIN_BYTES
from tests.mount.blockstress import BLOCK, BLOCKS, BOARD_BYTES, READERS, Board, block
from tests.mount.disturbing import Disturber
from tests.mount.mounting import Mount

pytestmark = [pytest.mark.mount, pytest.mark.slow, pytest.mark.timeout(240)]

REPOSITORY: Final = Path(__file__).parents[2]
LIMIT: Final = str(CACHE_LIMIT_MIN_BYTES)


def assert_is_what_was_written_last(path: Path, board: Board) -> None:
    with path.open("rb") as file:
        for index in range(BLOCKS):
            assert board.started(index) == board.finished(index)
            assert file.read(BLOCK) == block(index, board.finished(index)), f"block {index}"
        assert file.read() == b""


def run_processes(path: Path, board: Path, seed: int, rounds: int, timeout_s: float) -> None:
    roles = [("writer", 0)] + [("reader", number) for number in range(READERS)]
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.mount.blockstress", role, path, board, str(seed), str(rounds), str(number)],
            cwd=REPOSITORY,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for role, number in roles
    ]
    try:
        said = [process.communicate(timeout=timeout_s)[0].decode("utf-8", "replace") for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()
    failed = [
        f"{role} {number} ended with {process.returncode}:\n{text[-3000:]}"
        for (role, number), process, text in zip(roles, running, said, strict=True)
        if process.returncode != 0
    ]
    assert not failed, "\n".join(failed)


def stress(mount: Mount, tmp_path: Path, seed: int, rounds: int, timeout_s: float) -> None:
    print(f"seed {seed}, {rounds} rounds")
    mount.start(cache_limit=LIMIT)
    path, board_file = mount.path / "blocks", tmp_path / "board"
    board_file.write_bytes(bytes(BOARD_BYTES))
    board = Board(board_file)
    with path.open("wb") as file:
        for index in range(BLOCKS):
            file.write(block(index, board.start(index)))
            board.finish(index)
    with Disturber(mount, seed, pause_s=0.15) as disturber:
        run_processes(path, board_file, seed, rounds, timeout_s)
    print(f"{sum(map(board.started, range(BLOCKS)))} blocks written, {[board.reads(n) for n in range(READERS)]} read")
    print(f"{disturber.counts}, cache: {mount.status()['cache']}")
    assert disturber.evicted_bytes > 0
    assert_is_what_was_written_last(path, board)
    mount.umount()
    shutil.rmtree(mount.paths.cache)
    mount.start()
    assert_is_what_was_written_last(path, board)


def test_nobody_sees_older_bytes_than_before(mount: Mount, tmp_path: Path) -> None:
    stress(mount, tmp_path, 1, 10, 200)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_nobody_ever_sees_older_bytes_than_before(mount: Mount, tmp_path: Path) -> None:
    mount.deadline_s = 1700
    stress(mount, tmp_path, random.randrange(1 << 32), 5000, 1600)

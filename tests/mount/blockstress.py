"""The processes of test_mmap_stress.py: one writes numbered blocks of a file, the others read some and check them.

    python -m tests.mount.blockstress writer|reader FILE BOARD SEED ROUNDS NUMBER

A block is its index and its generation, again and again.  The board is a local file that all have mapped: the writer
notes there which generation of a block it begins, and which it has finished.  So a reader knows, of each read, what
it may see: nothing older than what was finished before, nothing newer than what was begun when it ended.  In between
a block may be a mixture, as reads do not wait for writes; but no word of it ever goes back.
"""

from __future__ import annotations

import mmap
import os
import random
import struct
import sys
import time
from pathlib import Path
from typing import Final

BLOCK: Final = 4096
BLOCKS: Final = 24 * 256
"""24 MiB, half as much again as the smallest cache."""
READERS: Final = 2
PATIENCE_S: Final = 120.0
_WORDS: Final = BLOCK // 16
_RECORD: Final = struct.Struct("<QQ")
_HOT: Final = 700
"""So many blocks from here on are read and written more than the others; they span four chunks."""
_RUN_MAX: Final = 80
_DONE, _READS = 0, 1
_STARTED: Final = _READS + READERS
_FINISHED: Final = _STARTED + BLOCKS
BOARD_BYTES: Final = 8 * (_FINISHED + BLOCKS)


class Board:
    """What the processes tell each other.  Generations start at 0: never written, a block of zeros."""

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._words = memoryview(mmap.mmap(file.fileno(), BOARD_BYTES)).cast("Q")

    @property
    def is_done(self) -> bool:
        """Whether readers are to end: the writer has, or somebody failed."""
        return self._words[_DONE] != 0

    def end(self) -> None:
        """Let all readers end."""
        self._words[_DONE] = 1

    def count_read(self, reader: int) -> None:
        """One more block was read and checked."""
        self._words[_READS + reader] += 1

    def reads(self, reader: int) -> int:
        """How many blocks a reader has checked."""
        return self._words[_READS + reader]

    def started(self, index: int) -> int:
        """The newest generation of a block that may be in the file."""
        return self._words[_STARTED + index]

    def finished(self, index: int) -> int:
        """The oldest generation of a block that may be in the file."""
        return self._words[_FINISHED + index]

    def start(self, index: int) -> int:
        """Return the next generation of a block, which is about to be written."""
        self._words[_STARTED + index] += 1
        return self._words[_STARTED + index]

    def finish(self, index: int) -> None:
        """The generation started last has been written."""
        self._words[_FINISHED + index] = self._words[_STARTED + index]


def block(index: int, generation: int) -> bytes:
    """Return a block's content."""
    return _RECORD.pack(index, generation) * _WORDS if generation else bytes(BLOCK)


def pick(dice: random.Random) -> int:
    """Return the index of a block to work on."""
    return 100 + dice.randrange(_HOT) if dice.random() < 0.7 else dice.randrange(BLOCKS)


def write(path: Path, board: Board, dice: random.Random, rounds: int) -> None:
    """Open, write, close, wait for some reads by those who only read; again and again."""
    for number in range(rounds):
        fd = os.open(path, os.O_RDWR)
        with mmap.mmap(fd, BLOCKS * BLOCK) as mapping:
            for _ in range(dice.choice([1, 3, 20, 150])):
                _write_some(fd, mapping, board, dice)
        if dice.random() < 0.3:
            os.fsync(fd)
        os.close(fd)
        _wait_for_reads(board, dice.choice([0, 10, 100, 300]), number)


def _write_some(fd: int, mapping: mmap.mmap, board: Board, dice: random.Random) -> None:
    index = pick(dice)
    count = min(dice.choice([1, 1, 1, 2, _RUN_MAX]), BLOCKS - index)
    data = b"".join(block(i, board.start(i)) for i in range(index, index + count))
    if dice.random() < 0.5:
        mapping[index * BLOCK : index * BLOCK + len(data)] = data
    else:
        assert os.pwrite(fd, data, index * BLOCK) == len(data)
    for i in range(index, index + count):
        board.finish(i)
    how = dice.random()
    if how < 0.02:
        mapping.flush()
    elif how < 0.04:
        os.fdatasync(fd)
    elif how < 0.08:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def _wait_for_reads(board: Board, count: int, number: int) -> None:
    wanted = [board.reads(reader) + count for reader in range(READERS)]
    end = time.monotonic() + PATIENCE_S
    while any(board.reads(reader) < wanted[reader] for reader in range(READERS)):
        assert not board.is_done, "a reader failed"
        assert time.monotonic() < end, f"round {number}: the readers do not get on"
        time.sleep(0.0005)


def read(path: Path, board: Board, dice: random.Random, number: int) -> None:
    """Read blocks and check them until the writer has ended."""
    seen: dict[int, tuple[int, ...]] = {}
    fd = os.open(path, os.O_RDONLY)
    while not board.is_done:
        index = pick(dice)
        least = board.finished(index)
        data = _read_block(fd, index, maps=dice.random() < 0.4)
        most = board.started(index)
        found = generations(data, index)
        before = seen.get(index, (0,) * _WORDS)
        if not least <= min(found) <= max(found) <= most:
            raise AssertionError(f"block {index}: {min(found)} to {max(found)}, not {least} to {most}")
        if any(new < old for new, old in zip(found, before, strict=True)):
            raise AssertionError(f"block {index}: {max(before)} was seen before {min(found)}")
        seen[index] = found
        board.count_read(number)
        how = dice.random()
        if how < 0.05:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        elif how < 0.10:
            os.posix_fadvise(fd, (index - 64) * BLOCK if index > 64 else 0, 128 * BLOCK, os.POSIX_FADV_DONTNEED)
        elif how < 0.12:
            os.close(fd)
            fd = os.open(path, os.O_RDONLY)
            os.posix_fadvise(fd, 0, 0, dice.choice([os.POSIX_FADV_RANDOM, os.POSIX_FADV_NORMAL]))
    os.close(fd)


def _read_block(fd: int, index: int, *, maps: bool) -> bytes:
    if not maps:
        return os.pread(fd, BLOCK, index * BLOCK)
    with mmap.mmap(fd, BLOCK, access=mmap.ACCESS_READ, offset=index * BLOCK) as mapping:
        return mapping[:]


def generations(data: bytes, index: int) -> tuple[int, ...]:
    """Return the generation of each word of a block.  Raises: AssertionError if it is not that block."""
    assert len(data) == BLOCK, f"block {index}: {len(data)} bytes"
    words = struct.unpack(f"<{2 * _WORDS}Q", data)
    pairs = zip(words[::2], words[1::2], strict=True)
    wrong = {where for where, generation in pairs if where != (index if generation else 0)}
    assert not wrong, f"block {index}: it has words of {wrong}"
    return words[1::2]


def main(role: str, file: str, board_file: str, seed: str, rounds: str, number: str) -> None:
    """Be the writer or a reader."""
    board = Board(Path(board_file))
    dice = random.Random(f"{seed} {role} {number}")
    try:
        if role == "writer":
            write(Path(file), board, dice, int(rounds))
        else:
            read(Path(file), board, dice, int(number))
    finally:
        board.end()


if __name__ == "__main__":
    main(*sys.argv[1:])

"""One file exercised at random, and compared with a bytearray: no tool is needed for it.

Used by test_fsx.py.  Everything follows from the seed, so that a failure comes again; it tells the seed and the last
operations.  Reads and writes go through file descriptors, short-lived mappings, and one that stays; the file is closed
and opened for reading only, so that what the kernel keeps of it has to survive that; what is here goes to the cloud,
leaves this machine and comes back.
"""

from __future__ import annotations

import mmap
import os
import random
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from tests.mount.mounting import Mount

CHUNK: Final = 1 << 20
PAGE: Final = mmap.PAGESIZE
LAST_OPERATIONS: Final = 60
_EDGE: Final = 3
"""Distance from the ends of pages and chunks at which offsets are often chosen."""

WEIGHTS: Final = {
    "write": 16,
    "append": 6,
    "map_write": 12,
    "write_kept_map": 6,
    "read": 14,
    "map_read": 10,
    "read_kept_map": 4,
    "read_all": 1,
    "only_readers": 5,
    "truncate_up": 4,
    "truncate_down": 4,
    "truncate_path": 2,
    "keep_map": 3,
    "drop_map": 2,
    "close": 6,
    "sync": 3,
    "drop_pages": 6,
    "evict": 2,
    "drop_caches": 1,
}


class Exerciser:
    """Does `steps(count)`, then `finish`.  `size_max`: bytes the file may grow to; `most`: bytes of one operation."""

    def __init__(self, mount: Mount, path: Path, seed: int, *, size_max: int, most: int = 3 * CHUNK // 2) -> None:
        self.expected = bytearray()
        self._mount = mount
        self._path = path
        self._seed = seed
        self._size_max = size_max
        self._most = most
        self._dice = random.Random(seed)
        self._fd: int | None = None
        self._reader: int | None = None
        self._map: mmap.mmap | None = None
        self._done: deque[str] = deque(maxlen=LAST_OPERATIONS)
        self.counts: dict[str, int] = {}
        path.touch()

    def steps(self, count: int) -> None:
        """Do so many operations.  Fails at the first byte or size that is not what was written."""
        names = self._dice.choices(list(WEIGHTS), list(WEIGHTS.values()), k=count)
        for number, name in enumerate(names, 1):
            operation: Callable[[], str] = getattr(self, f"_{name}")
            with self._told(f"operation {number}, {name}"):
                self._done.append(f"{number} {name} {operation()}")
                self.counts[name] = self.counts.get(name, 0) + 1

    def compare(self, when: str) -> None:
        """Fail unless the file has the content and the size that it should."""
        with self._told(when):
            assert self._path.stat().st_size == len(self.expected), f"size {self._path.stat().st_size}"
            with self._path.open("rb") as file:
                self._same(file.read(), 0, len(self.expected))

    def close(self) -> None:
        """Close whatever is open."""
        self._close()

    @contextmanager
    def _told(self, when: str) -> Iterator[None]:
        try:
            yield
        except (AssertionError, OSError, ValueError) as error:
            with suppress(OSError):
                self._close()
            last = "\n".join(self._done)
            raise AssertionError(f"seed {self._seed}, {when}: {error}\nlast operations:\n{last}") from error

    def _same(self, found: bytes, offset: int, length: int) -> None:
        expected = self.expected[offset : offset + length]
        if found == expected:
            return
        assert len(found) == len(expected), f"{len(found)} bytes from {offset}, not {len(expected)}"
        wrong = [index for index in range(len(expected)) if found[index] != expected[index]]
        first = wrong[0]
        raise AssertionError(
            f"{len(wrong)} bytes from {offset + first} to {offset + wrong[-1]} differ: "
            f"{bytes(found[first : first + 16]).hex()} instead of {bytes(expected[first : first + 16]).hex()}"
        )

    # -- where --

    def _offset(self, below: int) -> int:
        """Somewhere in 0 … below - 1, often near the end of a page, of a chunk or of the file."""
        edge = self._dice.choice([0, 0, PAGE, CHUNK, below])
        offset = self._dice.randrange(below)
        if edge:
            offset = offset // edge * edge + self._dice.randint(-_EDGE, _EDGE)
        return min(max(offset, 0), below - 1)

    def _length(self) -> int:
        return max(1, int(self._most * self._dice.random() ** 6))

    def _piece(self) -> tuple[int, int]:
        """Offset and length of a piece within the file, (0, 0) if it is empty."""
        if not self.expected:
            return 0, 0
        offset = self._offset(len(self.expected))
        return offset, min(self._length(), len(self.expected) - offset)

    def _put(self, offset: int, data: bytes) -> None:
        if offset > len(self.expected):
            self.expected.extend(bytes(offset - len(self.expected)))
        self.expected[offset : offset + len(data)] = data

    # -- how it is open --

    def _writer(self) -> int:
        if self._fd is None:
            self._fd = os.open(self._path, os.O_RDWR)
        return self._fd

    def _any_fd(self) -> int:
        """A descriptor to read with: the writer if there is one, else one that is open for reading only."""
        if self._fd is not None:
            return self._fd
        if self._reader is None:
            self._reader = os.open(self._path, os.O_RDONLY)
        return self._reader

    def _close(self) -> str:
        self._drop_map()
        for fd in (self._fd, self._reader):
            if fd is not None:
                os.close(fd)
        self._fd = self._reader = None
        return ""

    @contextmanager
    def _mapped(self, offset: int, length: int, access: int) -> Iterator[tuple[mmap.mmap, int]]:
        """Map just what is needed; yield the mapping and where in it `offset` is."""
        start = offset // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
        fd = self._writer() if access == mmap.ACCESS_WRITE else self._any_fd()
        with mmap.mmap(fd, offset - start + length, access=access, offset=start) as mapping:
            yield mapping, offset - start

    # -- operations: each returns what it did --

    def _write(self) -> str:
        offset = self._offset(self._size_max if self._dice.random() < 0.1 else len(self.expected) + CHUNK // 2)
        data = self._dice.randbytes(min(self._length(), self._size_max - offset) if offset < self._size_max else 0)
        assert os.pwrite(self._writer(), data, offset) == len(data)
        if data:
            self._put(offset, data)
        return f"{len(data)} at {offset}"

    def _append(self) -> str:
        data = self._dice.randbytes(min(self._length(), max(0, self._size_max - len(self.expected))))
        fd = os.open(self._path, os.O_WRONLY | os.O_APPEND)
        try:
            assert os.write(fd, data) == len(data)
        finally:
            os.close(fd)
        self.expected += data
        return f"{len(data)}"

    def _map_write(self) -> str:
        offset, length = self._piece()
        if not length:
            return "nothing"
        data = self._dice.randbytes(length)
        flushes = self._dice.random() < 0.2
        with self._mapped(offset, length, mmap.ACCESS_WRITE) as (mapping, start):
            mapping[start : start + length] = data
            if flushes:
                mapping.flush()
        self._put(offset, data)
        return f"{length} at {offset}{', msync' if flushes else ''}"

    def _keep_map(self) -> str:
        self._drop_map()
        if self.expected:
            self._map = mmap.mmap(self._writer(), len(self.expected))
        return f"{len(self.expected)}"

    def _drop_map(self) -> str:
        if self._map is not None:
            self._map.close()
            self._map = None
        return ""

    def _kept_piece(self) -> tuple[int, int]:
        """As `_piece`, within the mapping that stays: touching it behind the file's end would kill us."""
        offset, length = self._piece()
        return offset, 0 if self._map is None else max(0, min(length, len(self._map) - offset))

    def _write_kept_map(self) -> str:
        offset, length = self._kept_piece()
        if self._map is None or not length:
            return "nothing"
        data = self._dice.randbytes(length)
        self._map[offset : offset + length] = data
        self._put(offset, data)
        return f"{length} at {offset}"

    def _read_kept_map(self) -> str:
        offset, length = self._kept_piece()
        if self._map is None or not length:
            return "nothing"
        self._same(self._map[offset : offset + length], offset, length)
        return f"{length} at {offset}"

    def _map_read(self) -> str:
        offset, length = self._piece()
        if not length:
            return "nothing"
        with self._mapped(offset, length, mmap.ACCESS_READ) as (mapping, start):
            self._same(mapping[start : start + length], offset, length)
        return f"{length} at {offset}"

    def _read(self) -> str:
        offset, length = self._offset(len(self.expected) + PAGE), self._length()
        self._same(os.pread(self._any_fd(), length, offset), offset, length)
        return f"{length} at {offset}"

    def _read_all(self) -> str:
        self._same(os.pread(self._any_fd(), len(self.expected) + 1, 0), 0, len(self.expected) + 1)
        return f"{len(self.expected)}"

    def _only_readers(self) -> str:
        """Close it, and read here and there while nobody has it open for writing."""
        self._close()
        count = self._dice.randint(1, 20)
        for _ in range(count):
            if self._dice.random() < 0.3:
                self._map_read()
            else:
                self._read()
        return f"{count} reads"

    def _truncate_up(self) -> str:
        size = min(self._size_max, self._offset(len(self.expected) + 2 * CHUNK) + 1)
        return self._truncate(max(size, len(self.expected)))

    def _truncate_down(self) -> str:
        if self._dice.random() < 0.1:
            return self._truncate(self._offset(len(self.expected) + 1))
        return self._truncate(max(0, len(self.expected) - self._dice.randrange(2 * CHUNK)))

    def _truncate(self, size: int) -> str:
        os.ftruncate(self._writer(), size)
        self._resized(size)
        assert os.fstat(self._writer()).st_size == size
        return f"to {size}"

    def _truncate_path(self) -> str:
        """By name, and mostly by little, so that the file does not stay small."""
        size = max(0, len(self.expected) - self._dice.randrange(2 * PAGE))
        os.truncate(self._path, size)
        self._resized(size)
        assert self._path.stat().st_size == size
        return f"to {size}"

    def _resized(self, size: int) -> None:
        del self.expected[size:]
        self.expected.extend(bytes(size - len(self.expected)))

    def _sync(self) -> str:
        os.fsync(self._any_fd())
        return ""

    def _drop_pages(self) -> str:
        """Have the kernel forget its pages of the file, also those that are dirty once they are written."""
        fd = self._any_fd()
        if self._dice.random() < 0.5:
            os.fdatasync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        return ""

    def _evict(self) -> str:
        """Bring all of it to the cloud, and give back what is here."""
        self._mount.sync()
        if self._dice.random() < 0.7:
            os.posix_fadvise(self._any_fd(), 0, 0, os.POSIX_FADV_DONTNEED)
        return f"{self._mount.evict()}"

    def _drop_caches(self) -> str:
        return f"{self._mount.drop_caches()}"

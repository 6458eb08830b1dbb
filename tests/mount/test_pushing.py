"""Whole chunks in the kernel's page cache after two small reads at random places, and never old bytes."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.mount.mounting import Mount
from tests.mount.pagecache import forget_pages, undisturbed

pytestmark = [pytest.mark.mount]

MIB: Final = 1 << 20
PAGE: Final = 4096
PAGES: Final = MIB // PAGE
PATIENCE_S: Final = 30.0


@contextmanager
def reading(path: Path) -> Iterator[int]:
    """Open for reading, with the kernel told that it need not read ahead."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        yield fd
    finally:
        os.close(fd)


def make(mount: Mount, name: str, size_bytes: int) -> bytes:
    """A file that is on the cloud, and of which the kernel has no page."""
    content = random.Random(name).randbytes(size_bytes)
    (mount.path / name).write_bytes(content)
    mount.sync()
    forget_pages(mount.path / name)
    return content


def read_pages(fd: int, content: bytes, *pages: int) -> None:
    for page in pages:
        expected = content[page * PAGE : (page + 1) * PAGE]
        assert os.pread(fd, PAGE, page * PAGE) == expected, f"page {page}"


def wait_for_pushes(mount: Mount, count: int) -> None:
    end = time.monotonic() + PATIENCE_S
    while (found := mount.pushes()) < count:
        assert time.monotonic() < end, f"{found} pushes instead of {count}"
        time.sleep(0.01)


def test_two_random_reads_bring_the_chunk(mount: Mount) -> None:
    mount.start()
    chunks = 3
    content = make(mount, "file", chunks * MIB + 1000)

    def attempt() -> None:
        pushes, before = mount.pushes(), mount.upcalls()["read"]
        with reading(mount.path / "file") as fd:
            for index in (1, 0, 2):
                read_pages(fd, content, index * PAGES + 77, index * PAGES + 33)
            wait_for_pushes(mount, pushes + chunks)
            assert mount.upcalls()["read"] - before == 2 * chunks
            pages = list(range(chunks * PAGES))
            random.Random(1).shuffle(pages)
            read_pages(fd, content, *pages)
            assert mount.upcalls()["read"] - before == 2 * chunks
        assert mount.status()["fuse"]["pushed_bytes"] == mount.pushes() * MIB

    def again() -> None:
        forget_pages(mount.path / "file")
        mount.umount()
        mount.start()
        attempt()

    undisturbed(again)


def test_the_end_of_the_file_stays_where_it_is(mount: Mount) -> None:
    mount.start()
    content = make(mount, "file", MIB + 10_000)
    path = mount.path / "file"
    with reading(path) as fd:
        read_pages(fd, content, PAGES + 2, PAGES + 1)
        wait_for_pushes(mount, 1)
        assert os.fstat(fd).st_size == len(content)
        assert os.pread(fd, 2 * PAGE, MIB) == content[MIB : MIB + 2 * PAGE]
    with path.open("ab") as file:
        file.write(b"more")
    assert path.read_bytes() == content + b"more"
    os.truncate(path, MIB + 5000)
    os.truncate(path, MIB + 20_000)
    assert path.read_bytes() == content[: MIB + 5000] + bytes(15_000)


def test_nothing_is_pushed_while_somebody_may_write(mount: Mount) -> None:
    mount.start()
    content = make(mount, "file", 2 * MIB)
    path = mount.path / "file"
    with reading(path) as fd:
        with path.open("r+b"):
            read_pages(fd, content, 5, 50, 7, 70)
        # Chunk 0 would have been pushed before chunk 1.
        read_pages(fd, content, PAGES + 5, PAGES + 50)
        wait_for_pushes(mount, 1)
        before = mount.upcalls()["read"]
        read_pages(fd, content, 100)
        assert mount.upcalls()["read"] == before + 1
    assert mount.pushes() == 1


def test_what_is_written_after_a_push_is_read(mount: Mount) -> None:
    mount.start()
    content = bytearray(make(mount, "file", 2 * MIB))
    path = mount.path / "file"
    dice = random.Random(3)
    with reading(path) as fd:
        for number in range(1, 20):
            first, second = dice.sample(range(PAGES), 2)
            read_pages(fd, bytes(content), first, second)  # a push may be under way now
            page = dice.choice([first, second, dice.randrange(PAGES)])
            new = bytes([number]) * PAGE
            with path.open("r+b", buffering=0) as file:
                file.seek(page * PAGE)
                file.write(new)
                content[page * PAGE : (page + 1) * PAGE] = new
                read_pages(fd, bytes(content), page, first, second)
            if number % 5 == 0:
                forget_pages(path)
    assert path.read_bytes() == content
    assert mount.pushes() > 0
    mount.umount()
    mount.start()
    assert path.read_bytes() == content


def test_nopush(mount: Mount) -> None:
    mount.start("-o", "nopush")
    content = make(mount, "file", MIB)
    with reading(mount.path / "file") as fd:
        read_pages(fd, content, *range(0, PAGES, 7))
    assert mount.pushes() == 0
    assert mount.upcalls()["read"] == len(range(0, PAGES, 7))

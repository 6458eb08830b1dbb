"""The local files: what is removed is gone at once, and its room is given back without holding up the loop."""

from __future__ import annotations

import os
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trio
import trio.testing

from cuckoo_mount.cache.files import LARGE_BYTES, LocalFiles
from cuckoo_mount.types import InodeNo


def removed_but_open(folder: Path) -> list[str]:
    """Return what this process has open below `folder` that has no name any more."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:
            continue
        if target.startswith(f"{folder}/") and target.endswith(" (deleted)"):
            found.append(target)
    return found


@pytest.mark.parametrize("is_open", [True, False])
async def test_a_large_file_is_freed_in_a_thread(tmp_path: Path, is_open: bool) -> None:
    files = LocalFiles(tmp_path / "state", tmp_path / "cache")
    large, small = InodeNo(7), InodeNo(8)
    for ino, size_bytes in ((large, 2 * LARGE_BYTES), (small, 100)):
        os.pwrite(files.create(ino, in_state=True).fd, os.urandom(size_bytes), 0)
    if not is_open:
        files.close()
        files = LocalFiles(tmp_path / "state", tmp_path / "cache")
    for ino in (large, small):
        files.remove(ino)
        assert files.get(ino) is None
    assert len(removed_but_open(tmp_path)) == 1
    limiter = trio.to_thread.current_default_thread_limiter()
    async with trio.open_nursery() as nursery, AsyncExitStack() as stack:
        for _ in range(int(limiter.available_tokens)):
            borrower = object()
            await limiter.acquire_on_behalf_of(borrower)
            stack.callback(limiter.release_on_behalf_of, borrower)
        nursery.start_soon(files.free_removed)
        await trio.testing.wait_all_tasks_blocked()
        # No thread is to be had, and the loop does not do it.
        assert len(removed_but_open(tmp_path)) == 1
    assert removed_but_open(tmp_path) == []
    files.close()


async def test_what_was_not_freed_is_closed(tmp_path: Path) -> None:
    files = LocalFiles(tmp_path / "state", tmp_path / "cache")
    os.pwrite(files.create(InodeNo(7), in_state=False).fd, os.urandom(2 * LARGE_BYTES), 0)
    files.remove(InodeNo(7))
    files.close()
    assert removed_but_open(tmp_path) == []


def test_copies_that_a_crash_left_go(tmp_path: Path) -> None:
    """Of moves between two file systems; what is in the state folder is the newer one."""
    files = LocalFiles(tmp_path / "state", tmp_path / "cache")
    for in_state, ino, data in ((True, 7, b"new"), (False, 7, b"old"), (False, 8, b"clean")):
        os.pwrite(files.create(InodeNo(ino), in_state=in_state).fd, data, 0)
        Path(f"{files.path(InodeNo(9), in_state=in_state)}.copying").write_bytes(b"half")
    files.close()
    files = LocalFiles(tmp_path / "state", tmp_path / "cache")
    files.remove_copies()
    left = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {Path("state/07/7"): b"new", Path("cache/08/8"): b"clean"}
    files.close()

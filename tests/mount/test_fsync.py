"""What fsync promises, asked of a real mount and of its daemon's system calls; what late writes may not break.

The kill test (test_kill.py) is about any moment; here are the cases by name.  With the write-back cache the kernel
sends what was written late and in pieces, reads pages on handles that may only write, and flushes times by itself.
"""

from __future__ import annotations

import mmap
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Final

import pytest
from attrs import define, field, frozen

from cuckoo_mount.fuse.controlsocket import connect, encode_line
from tests.mount.mounting import Mount

pytestmark = [pytest.mark.mount, pytest.mark.slow]

CHUNK: Final = 1 << 20
LONG_AGO_NS: Final = 1_000_000_000 * 10**9
STEPS: Final = 8
ATTACH_TIMEOUT_S: Final = 30


# -- the daemon's system calls --


@frozen
class Sync:
    """One fdatasync, fsync or syncfs of the daemon; times as time.time()."""

    path: str
    start: float
    end: float


_CALL: Final = re.compile(r"^(\d+) +(\d+\.\d+) (fdatasync|fsync|syncfs)\(\d+<([^>]*)>\) += 0 <(\d+\.\d+)>$")
_BEGUN: Final = re.compile(r"^(\d+) +(\d+\.\d+) (fdatasync|fsync|syncfs)\(\d+<([^>]*)> *<unfinished \.\.\.>$")
_RESUMED: Final = re.compile(r"^(\d+) +(\d+\.\d+) <\.\.\. (fdatasync|fsync|syncfs) resumed>\) += 0 <(\d+\.\d+)>$")


def parse_trace(text: str) -> list[Sync]:
    """Return the calls that succeeded, from `strace -f -y -ttt -T`."""
    begun: dict[str, tuple[str, float]] = {}
    calls = []
    for line in text.splitlines():
        if match := _CALL.match(line):
            start = float(match[2])
            calls.append(Sync(match[4], start, start + float(match[5])))
        elif match := _BEGUN.match(line):
            begun[match[1]] = (match[4], float(match[2]))
        elif match := _RESUMED.match(line):
            calls.append(Sync(*begun.pop(match[1]), float(match[2])))
    return calls


@contextmanager
def traced(mount: Mount, calls: list[Sync]) -> Iterator[None]:
    """Add to `calls`, at the end, what the daemon synced inside the `with`."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    output = mount.folder / "trace"
    options = ["-f", "-y", "-ttt", "-T", "-e", "trace=fdatasync,fsync,syncfs"]
    command = ["strace", *options, "-o", str(output), "-p", str(mount.pid)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as tracer:
        assert tracer.stderr is not None
        said = tracer.stderr.readline()
        if "attached" not in said:
            tracer.wait(ATTACH_TIMEOUT_S)
            pytest.skip(f"strace may not attach: {said.strip()}")
        try:
            yield
        finally:
            tracer.send_signal(signal.SIGINT)
            tracer.stderr.read()
    calls += parse_trace(output.read_text())


@define
class Timed:
    """When programs asked for a sync, and when they got it."""

    moments: list[tuple[float, float]] = field(factory=list)

    def sync(self, fd: int, call: Callable[[int], None] = os.fsync) -> None:
        start = time.time()
        call(fd)
        self.moments.append((start, time.time()))


def test_fsync_is_a_sync_of_the_bytes_and_then_of_the_metadata(mount: Mount) -> None:
    """For each fsync of a program the daemon syncs the local file, and after that the log that has its rows."""
    mount.start()
    calls: list[Sync] = []
    timed = Timed()
    with traced(mount, calls):
        fd = os.open(mount.path / "file", os.O_RDWR | os.O_CREAT)
        for number in range(10):
            os.pwrite(fd, b"x" * 5000, number * 3000)
            timed.sync(fd, os.fdatasync if number % 2 else os.fsync)
        os.close(fd)
    assert len(timed.moments) == 10
    for start, end in timed.moments:
        inside = [call for call in calls if start <= call.start and call.end <= end]
        bytes_done = [call.end for call in inside if "/files" in call.path]
        log_begun = [call.start for call in inside if call.path.endswith("-wal")]
        assert bytes_done, f"no bytes were synced within {end - start:.3f} s: {calls}"
        assert log_begun, f"no rows were synced within {end - start:.3f} s: {calls}"
        assert min(bytes_done) <= max(log_begun)


def test_fsync_of_a_directory_is_a_sync_of_the_metadata(mount: Mount) -> None:
    mount.start()
    calls: list[Sync] = []
    timed = Timed()
    with traced(mount, calls):
        for number in range(5):
            os.close(os.open(mount.path / f"{number}", os.O_RDWR | os.O_CREAT))
            fd = os.open(mount.path, os.O_RDONLY | os.O_DIRECTORY)
            timed.sync(fd)
            os.close(fd)
    for start, end in timed.moments:
        assert any(start <= call.start and call.end <= end and call.path.endswith("-wal") for call in calls)


# -- under stress --


@define(eq=False)
class Copy:
    """A file on the mount, and the bytes it has to have."""

    path: Path
    choose: random.Random
    data: bytearray = field(factory=bytearray)

    def write_and_sync(self) -> None:
        """Write here and there, each time until it is on the disk."""
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT)
        try:
            for _ in range(4):
                offset = self.choose.choice((0, len(self.data), self.choose.randrange(3 * CHUNK)))
                new = self.choose.randbytes(self.choose.choice((1, 5000, 70_000, CHUNK + 1)))
                self.data.extend(bytes(max(0, offset + len(new) - len(self.data))))
                self.data[offset : offset + len(new)] = new
                os.pwrite(fd, new, offset)
                os.fsync(fd)
        finally:
            os.close(fd)

    def truncate_and_sync(self) -> None:
        """Cut, lengthen, write behind the end, each time until it is on the disk."""
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT)
        try:
            for _ in range(4):
                size = self.choose.choice((0, 2000, CHUNK, self.choose.randrange(3 * CHUNK)))
                new = self.choose.randbytes(self.choose.randrange(1, 100_000))
                os.ftruncate(fd, size)
                os.fsync(fd)
                os.pwrite(fd, new, size + 10)
                os.fdatasync(fd)
                self.data = bytearray(self.data[:size].ljust(size + 10, b"\0") + new)
        finally:
            os.close(fd)

    def compare(self) -> None:
        found = self.path.read_bytes()
        assert len(found) == len(self.data)
        assert found == self.data


def test_stress_of_fsync_while_packing_truncating_and_evicting(mount: Mount) -> None:
    """All at once, the invariants checked in the midst of every step and after it; then a kill, and all is there."""
    mount.start(cache_limit="16MiB")
    seed = random.SystemRandom().randrange(10**9)
    print(f"seed {seed}")
    written = [Copy(mount.path / f"written {n}", random.Random(f"{seed} {n}")) for n in range(3)]
    cut = [Copy(mount.path / f"cut {n}", random.Random(f"{seed} cut {n}")) for n in range(2)]
    with ThreadPoolExecutor(9) as pool:
        for _ in range(STEPS):
            work: list[Callable[[], object]] = [copy.write_and_sync for copy in written]
            work += [copy.truncate_and_sync for copy in cut]
            work += [mount.sync, mount.evict, mount.check, mount.evict]
            for future in [pool.submit(action) for action in work]:
                future.result()
            mount.check()
            mount.drop_caches()
            for copy in written + cut:
                copy.compare()
            mount.check()
        assert mount.status()["cache"]["packs_sent"] > 0
    mount.kill()
    mount.start()
    mount.check()
    for copy in written + cut:
        copy.compare()
    assert mount.sync()["bytes"] == 0
    mount.evict()
    mount.drop_caches()
    for copy in written + cut:
        copy.compare()


def test_a_chunk_that_grows_while_it_is_packed(mount: Mount) -> None:
    """Appends with fsync, while the same chunk is being sent again and again in shorter lengths."""
    mount.start(cache_limit="16MiB")
    data = random.Random(1).randbytes(CHUNK)
    fd = os.open(mount.path / "file", os.O_RDWR | os.O_CREAT | os.O_APPEND)
    with ThreadPoolExecutor(2) as pool:
        for start in range(0, CHUNK, 16384):
            sending = pool.submit(mount.sync)
            os.write(fd, data[start : start + 16384])
            os.fsync(fd)
            if start % (8 * 16384) == 0:
                sending.result()
    os.close(fd)
    mount.kill()
    mount.start()
    assert (mount.path / "file").read_bytes() == data


def test_kill_while_the_kernel_is_asked_to_write_everything_out(mount: Mount) -> None:
    """A thread of the daemon that waits in the kernel for its own mount could never be killed, nor who waits too."""
    mount.start()
    for number in range(2):
        fd = os.open(mount.path / "file", os.O_RDWR | os.O_CREAT)
        for offset in range(0, 32 * CHUNK, CHUNK):
            os.pwrite(fd, bytes([number + 1]) * CHUNK, offset)
        with connect(mount.paths.socket, 30) as connection:
            connection.sendall(encode_line({"command": "sync", "arguments": {}}))
            assert connection.recv(1)  # it has begun
            mount.kill()
        with pytest.raises(OSError, match=r"."):
            os.fsync(fd)
        with pytest.raises(OSError, match=r"."):
            os.close(fd)
        mount.start()


# -- names --


def sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def test_fsync_of_a_directory_makes_names_durable(mount: Mount) -> None:
    mount.start()
    top = mount.path
    for name in ("unlinked", "moved", "replacing", "replaced", "linked", "removed/"):
        (top / name).mkdir() if name.endswith("/") else (top / name).write_text(name)
    mount.run("sync", top / "linked", top)  # fsync of each
    (top / "made").touch()
    (top / "unlinked").unlink()
    (top / "moved").rename(top / "moved here")
    (top / "replacing").rename(top / "replaced")
    (top / "link").hardlink_to(top / "linked")
    (top / "symlink").symlink_to("linked")
    (top / "folder").mkdir()
    (top / "removed").rmdir()
    os.mkfifo(top / "fifo")
    sync_directory(top)
    mount.kill()
    mount.start()
    wanted = {"made", "moved here", "replaced", "linked", "link", "symlink", "folder", "fifo"}
    assert set(os.listdir(top)) == wanted
    assert (top / "replaced").read_text() == "replacing"
    assert (top / "link").read_text() == "linked"
    assert (top / "linked").stat().st_nlink == 2


def test_fsync_of_a_new_file_is_enough_for_its_name(mount: Mount) -> None:
    """docs/semantics.md promises this, for the many programs that sync the file only."""
    mount.start()
    (mount.path / "folder").mkdir()
    fd = os.open(mount.path / "folder" / "file", os.O_WRONLY | os.O_CREAT)
    os.write(fd, b"bytes")
    os.fsync(fd)
    mount.kill()
    with pytest.raises(OSError, match=r"."):
        os.close(fd)
    mount.start()
    assert (mount.path / "folder" / "file").read_bytes() == b"bytes"


# -- handles that are never flushed --

_MMAP_AFTER_CLOSE = """
import mmap, os, sys, time
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
os.ftruncate(fd, 3 << 20)
memory = mmap.mmap(fd, 3 << 20)
os.close(fd)  # the only flush, before the bytes; mmap has a copy of the descriptor
memory[:] = b"m" * (3 << 20)
print("ready", flush=True)
time.sleep(600)
"""
_WRITE = """
import os, sys, time
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
os.write(fd, b"w" * (3 << 20))
print("ready", flush=True)
time.sleep(600)
"""


def test_bytes_of_a_program_that_was_killed_are_kept(mount: Mount) -> None:
    mount.start()
    for name, program in (("write", _WRITE), ("mmap", _MMAP_AFTER_CLOSE)):
        with subprocess.Popen([sys.executable, "-c", program, mount.path / name], stdout=subprocess.PIPE) as killed:
            assert killed.stdout is not None
            assert killed.stdout.readline() == b"ready\n"
            killed.kill()
    mount.umount(wait=False)
    mount.start()
    assert (mount.path / "write").read_bytes() == b"w" * (3 << 20)
    assert (mount.path / "mmap").read_bytes() == b"m" * (3 << 20)


def test_bytes_of_a_handle_whose_flush_failed_are_kept(mount: Mount) -> None:
    mount.start()
    fd = os.open(mount.path / "file", os.O_WRONLY | os.O_CREAT)
    os.write(fd, b"x" * 100_000)
    mount.fault("flush", "ValueError")
    with pytest.raises(OSError, match="Input/output error"):
        os.close(fd)
    mount.umount(wait=False)
    mount.start()
    assert (mount.path / "file").read_bytes() == b"x" * 100_000


# -- size and times --


def stamps(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def test_late_writes_do_not_move_size_and_times_back(mount: Mount) -> None:
    """What programs saw while the kernel had it is what is there after a new mount, or later."""
    mount.start()
    path = mount.path / "file"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    seen = [stamps(path)]
    for number in range(8):
        os.pwrite(fd, b"x" * 50_000, number * 40_000)
        seen.append(stamps(path))
        if number % 3 == 0:
            mount.write_out()
            seen.append(stamps(path))
        os.fchmod(fd, 0o600 + number % 2)
        seen.append(stamps(path))
    os.close(fd)
    seen.append(stamps(path))
    mount.umount(wait=False)
    mount.start()
    seen.append(stamps(path))
    for earlier, later in pairwise(seen):
        assert earlier[0] <= later[0]
        assert earlier[1] <= later[1]
        assert earlier[2] <= later[2]
    assert seen[-1][:2] == seen[-2][:2]


def times_of(status: os.stat_result) -> tuple[int, int]:
    return status.st_mtime_ns, status.st_ctime_ns


def write_twice_within_a_tick(fd: int) -> tuple[int, int]:
    """Write, let the kernel send bytes and times, write again while its clock stands still; return mtime and ctime."""
    for number in range(1000):
        os.pwrite(fd, b"x", 10 * number)
        os.fchmod(fd, 0o600 + number % 2)
        before = times_of(os.fstat(fd))
        os.pwrite(fd, b"y", 10 * number + 5)
        if times_of(os.fstat(fd)) == before:
            return before
    pytest.fail("a thousand times the clock went on between two writes")


@pytest.mark.parametrize("last", ["close", "fsync"])
def test_a_late_write_of_the_same_tick_gets_no_later_times(mount: Mount, last: str) -> None:
    """The kernel tells no time that did not move; what it shows programs is what a new mount shows."""
    mount.start()
    path = mount.path / "file"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    times = write_twice_within_a_tick(fd)
    while time.clock_gettime_ns(time.CLOCK_REALTIME) < max(times) + 30_000_000:
        pass
    if last == "fsync":
        os.fsync(fd)
        mount.kill()
        with suppress(OSError):
            os.close(fd)
    else:
        os.close(fd)
        mount.umount(wait=False)
    mount.start()
    assert times_of(path.stat()) == times


def test_times_that_were_set_stay_over_the_write_back(mount: Mount) -> None:
    """utimes after write, as cp and rsync do; and after a store into a mapping that nothing has flushed."""
    mount.start()
    written, mapped = mount.path / "written", mount.path / "mapped"
    fd = os.open(written, os.O_RDWR | os.O_CREAT)
    os.write(fd, b"x" * 300_000)
    os.utime(fd, ns=(LONG_AGO_NS, LONG_AGO_NS + 123))
    os.close(fd)
    fd = os.open(mapped, os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, 300_000)
    with mmap.mmap(fd, 300_000) as memory:
        memory[:] = b"y" * 300_000
        os.utime(fd, ns=(LONG_AGO_NS, LONG_AGO_NS + 456))
    os.close(fd)
    for remount in (mount.write_out, mount.umount):
        remount()
        if not mount.is_running:
            mount.start()
        assert stamps(written)[:2] == (300_000, LONG_AGO_NS + 123)
        assert stamps(mapped)[:2] == (300_000, LONG_AGO_NS + 456)
    assert written.read_bytes() == b"x" * 300_000
    assert mapped.read_bytes() == b"y" * 300_000


def close_after_kill(fd: int) -> None:
    """Of a daemon that is gone fsync tells; close may not, because the kernel has nobody to ask there any more."""
    with pytest.raises(OSError, match=r"."):
        os.fsync(fd)
    with suppress(OSError):
        os.close(fd)


def test_a_cut_is_not_undone_by_bytes_written_before(mount: Mount) -> None:
    mount.start()
    path = mount.path / "file"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    os.write(fd, b"x" * 3 * CHUNK)
    os.ftruncate(fd, 10)
    mount.write_out()
    assert path.stat().st_size == 10
    os.pwrite(fd, b"end", CHUNK)
    os.fsync(fd)
    mount.kill()
    close_after_kill(fd)
    mount.start()
    assert path.read_bytes() == b"x" * 10 + bytes(CHUNK - 10) + b"end"


# -- flags of open --


def put_on_cloud(mount: Mount, name: str, data: bytes) -> Path:
    """Make a file of which nothing is on this machine any more."""
    path = mount.path / name
    path.write_bytes(data)
    assert mount.sync()["bytes"] == 0
    assert mount.evict() >= len(data)
    mount.drop_caches()
    return path


def test_part_of_a_page_is_written_through_a_handle_that_may_only_write(mount: Mount) -> None:
    """The kernel reads the page through it first, and from the cloud."""
    mount.start()
    old = random.Random(2).randbytes(2 * CHUNK)
    path = put_on_cloud(mount, "file", old)
    fd = os.open(path, os.O_WRONLY)
    os.pwrite(fd, b"new", 5000)
    os.pwrite(fd, b"new", CHUNK - 1)
    os.fsync(fd)
    mount.kill()
    close_after_kill(fd)
    mount.start()
    assert path.read_bytes() == old[:5000] + b"new" + old[5003 : CHUNK - 1] + b"new" + old[CHUNK + 2 :]


def test_two_handles_append(mount: Mount) -> None:
    mount.start()
    path = put_on_cloud(mount, "log", b"first line\n")
    lines = [f"{number} {'x' * (number % 700)}\n".encode() for number in range(1000)]
    handles = [os.open(path, os.O_WRONLY | os.O_APPEND) for _ in range(2)]
    for number, line in enumerate(lines):
        os.write(handles[number % 2], line)
        if number % 300 == 0:
            mount.write_out()
    os.fsync(handles[0])
    mount.kill()
    for fd in handles:
        close_after_kill(fd)
    mount.start()
    assert path.read_bytes() == b"first line\n" + b"".join(lines)


def test_open_cuts_to_nothing(mount: Mount) -> None:
    """O_TRUNC, of what is on the cloud only: there is nothing left of it after fsync, and no cloud was asked."""
    mount.start()
    paths = [put_on_cloud(mount, name, b"x" * 2 * CHUNK) for name in ("first", "second")]
    misses = mount.status()["cache"]["misses"]
    handles = [os.open(path, flags | os.O_TRUNC) for path, flags in zip(paths, (os.O_WRONLY, os.O_RDWR), strict=True)]
    for path, fd in zip(paths, handles, strict=True):
        assert path.stat().st_size == 0
        os.fsync(fd)
        os.pwrite(fd, b"shorter", 3)
    assert mount.status()["cache"]["misses"] == misses
    mount.kill()
    for fd in handles:
        close_after_kill(fd)
    mount.start()
    for path in paths:
        assert path.read_bytes() in (b"", b"\0\0\0shorter")

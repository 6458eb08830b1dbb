"""Every handler that pyfuse3 offers fails once in every way: the program gets EIO, and the mount answers afterwards.

Then the faults of the world: a cloud that goes away, one that hangs, and many reads that wait for it.
"""

from __future__ import annotations

import errno
import inspect
import mmap
import os
import select
import signal
import stat
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final, get_args

import pyfuse3
import pytest
from attrs import evolve, frozen

from cuckoo_mount.cache.pressure import CacheLimits
from cuckoo_mount.config import write_config
from cuckoo_mount.fuse.guard import Fault
from cuckoo_mount.fuse.operations import Operations
from cuckoo_mount.fuse.options import MountOptions
from cuckoo_mount.testing.rig import RigPlace
from cuckoo_mount.types import ROOT_INODE
from tests.mount.mounting import Mount

pytestmark = [pytest.mark.mount, pytest.mark.slow, pytest.mark.timeout(240)]

HANDLERS: Final = {name for name, member in vars(pyfuse3.Operations).items() if inspect.iscoroutinefunction(member)}
KINDS: Final = get_args(Fault)
NEVER_ASKED: Final = {"access": "with default_permissions the kernel checks permissions itself"}
SILENT: Final = frozenset({"forget", "release", "releasedir"})
"""The kernel does not wait for their outcome, so no program can be told."""
PATIENCE_S: Final = 60.0
CONNECTIONS: Final = Path("/sys/fs/fuse/connections")

Program = Callable[[Path], Iterator[None]]
PROGRAMS: dict[str, Program] = {}


def program(action: Program) -> Program:
    """Register a program that makes the kernel call the handler of its name: before its `yield` it only prepares."""
    PROGRAMS[action.__name__.removeprefix("ask_")] = action
    return action


def opened(path: Path, flags: int = os.O_RDWR | os.O_CREAT) -> int:
    return os.open(path, flags, 0o644)


@program
def ask_lookup(folder: Path) -> Iterator[None]:
    (folder / "known").touch()
    yield
    with suppress(FileNotFoundError):
        (folder / "never asked for").lstat()


@program
def ask_forget(folder: Path) -> Iterator[None]:
    (folder / "file").touch()
    yield
    (folder / "file").unlink()


@program
def ask_getattr(folder: Path) -> Iterator[None]:
    (folder / "new").touch()  # now the kernel has to ask for the folder's times
    yield
    folder.stat()


@program
def ask_setattr(folder: Path) -> Iterator[None]:
    (folder / "file").touch()
    yield
    (folder / "file").chmod(0o600)


@program
def ask_readlink(folder: Path) -> Iterator[None]:
    (folder / "link").symlink_to("target")
    yield
    assert os.readlink(folder / "link") == "target"


@program
def ask_mknod(folder: Path) -> Iterator[None]:
    yield
    os.mkfifo(folder / "fifo")


@program
def ask_mkdir(folder: Path) -> Iterator[None]:
    yield
    (folder / "below").mkdir()


@program
def ask_unlink(folder: Path) -> Iterator[None]:
    (folder / "file").touch()
    yield
    (folder / "file").unlink()


@program
def ask_rmdir(folder: Path) -> Iterator[None]:
    (folder / "below").mkdir()
    yield
    (folder / "below").rmdir()


@program
def ask_symlink(folder: Path) -> Iterator[None]:
    yield
    (folder / "link").symlink_to("target")


@program
def ask_rename(folder: Path) -> Iterator[None]:
    (folder / "old").touch()
    yield
    (folder / "old").rename(folder / "new")


@program
def ask_link(folder: Path) -> Iterator[None]:
    (folder / "old").touch()
    yield
    os.link(folder / "old", folder / "new")


@program
def ask_open(folder: Path) -> Iterator[None]:
    (folder / "file").touch()
    yield
    os.close(os.open(folder / "file", os.O_RDONLY))


@program
def ask_create(folder: Path) -> Iterator[None]:
    yield
    os.close(opened(folder / "file"))


@program
def ask_read(folder: Path) -> Iterator[None]:
    (folder / "file").write_bytes(b"r" * 4096)
    # Past the page cache: a failed read-ahead is tried once more by the kernel, and the fault would be gone.
    fd = opened(folder / "file", os.O_RDONLY | os.O_DIRECT)
    with mmap.mmap(-1, 4096) as buffer:
        try:
            yield
            assert os.preadv(fd, [buffer], 0) == 4096
            assert buffer[:] == b"r" * 4096
        finally:
            os.close(fd)


@program
def ask_write(folder: Path) -> Iterator[None]:
    fd = opened(folder / "file")
    try:
        yield
        os.write(fd, b"w" * 4096)
        os.fsync(fd)
    finally:
        os.close(fd)


@program
def ask_flush(folder: Path) -> Iterator[None]:
    fd = opened(folder / "file")
    yield
    os.close(fd)


@program
def ask_release(folder: Path) -> Iterator[None]:
    fd = opened(folder / "file")
    yield
    os.close(fd)


@program
def ask_fsync(folder: Path) -> Iterator[None]:
    fd = opened(folder / "file")
    try:
        os.write(fd, b"x")
        yield
        os.fsync(fd)
    finally:
        os.close(fd)


@program
def ask_poll(folder: Path) -> Iterator[None]:
    fd = opened(folder / "file")
    try:
        yield
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        ((_, events),) = poller.poll(0)
        if events & select.POLLERR:
            raise OSError(errno.EIO, "poll(2) can only say POLLERR")
    finally:
        os.close(fd)


@program
def ask_opendir(folder: Path) -> Iterator[None]:
    yield
    os.close(os.open(folder, os.O_RDONLY | os.O_DIRECTORY))


@program
def ask_readdir(folder: Path) -> Iterator[None]:
    (folder / "file").touch()
    yield
    assert os.listdir(folder) == ["file"]


@program
def ask_releasedir(folder: Path) -> Iterator[None]:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    yield
    os.close(fd)


@program
def ask_fsyncdir(folder: Path) -> Iterator[None]:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield
        os.fsync(fd)
    finally:
        os.close(fd)


@program
def ask_statfs(folder: Path) -> Iterator[None]:
    yield
    assert os.statvfs(folder).f_namemax == 255


@program
def ask_setxattr(folder: Path) -> Iterator[None]:
    yield
    os.setxattr(folder, "user.x", b"value")


@program
def ask_getxattr(folder: Path) -> Iterator[None]:
    os.setxattr(folder, "user.x", b"value")
    yield
    assert os.getxattr(folder, "user.x") == b"value"


@program
def ask_listxattr(folder: Path) -> Iterator[None]:
    os.setxattr(folder, "user.x", b"value")
    yield
    assert os.listxattr(folder) == ["user.x"]


@program
def ask_removexattr(folder: Path) -> Iterator[None]:
    os.setxattr(folder, "user.x", b"value")
    yield
    os.removexattr(folder, "user.x")


def wait_until(what: str, true: Callable[[], bool]) -> None:
    """Return when `true()`; for what happens on its own after a call returned."""
    end = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < end, f"not within {PATIENCE_S:.0f} s: {what}"
        time.sleep(0.01)


def calls(mount: Mount, operation: str) -> int:
    return mount.upcalls()[operation]


def outcome(running: Iterator[None]) -> int:
    """Let a prepared program go on to its end; return the errno it met, 0 for none."""
    try:
        with pytest.raises(StopIteration):
            next(running)
    except OSError as error:
        return error.errno or -1
    finally:
        if isinstance(running, Generator):
            running.close()
    return 0


def test_every_handler_has_a_program_or_a_reason() -> None:
    print(f"{len(HANDLERS)} handlers, {len(PROGRAMS)} of them asked by programs, {len(NEVER_ASKED)} directly")
    assert set(PROGRAMS) | set(NEVER_ASKED) == HANDLERS
    for name in HANDLERS:
        assert name in vars(Operations), f"{name} is left to pyfuse3's default"


@pytest.mark.parametrize("kind", KINDS)
def test_a_failure_of_any_handler_is_an_error_of_the_call_only(mount: Mount, kind: str) -> None:
    # These come first: one answer without fault, and the kernel never asks again.
    mount.start()
    for operation in sorted(PROGRAMS, key=lambda name: (name not in ("flush", "poll"), name)):
        first, second = mount.path / operation, mount.path / f"{operation} again"
        first.mkdir()
        second.mkdir()
        running = PROGRAMS[operation](first)
        next(running)
        before = calls(mount, operation)
        mount.fault(operation, kind)
        found = outcome(running)
        wait_until(f"{operation} is called", lambda name=operation, count=before: calls(mount, name) > count)  # type: ignore[misc]
        assert found == (0 if operation in SILENT else errno.EIO), f"{operation} with {kind}: {found}"
        again = PROGRAMS[operation](second)
        next(again)
        assert outcome(again) == 0, f"{operation} after {kind}"
        (second / "probe").write_bytes(b"alive")
        assert (second / "probe").read_bytes() == b"alive"
    mount.check()
    assert logged_failures(mount.paths.log, kind) == set(PROGRAMS)


def logged_failures(path: Path, kind: str) -> set[str]:
    """Return which handlers the log says failed, each with a traceback that ends in what was injected."""
    injected = "RuntimeError: the handler was cancelled" if kind == "Cancelled" else f"{kind}: injected"
    found = set()
    before, *reports = path.read_text("utf-8").split(" failed; this is a bug in cuckoo-mount, please report it\n")
    for report in reports:
        assert report.startswith("Traceback"), report[:200]
        assert injected in report, report[:2000]
        found.add(before.rpartition(" ")[2])
        before = report
    return found


@pytest.mark.parametrize("kind", KINDS)
async def test_handlers_that_the_kernel_never_calls(tmp_path: Path, kind: Fault) -> None:
    limits = CacheLimits(limit_bytes=16 << 20)
    async with RigPlace(tmp_path).opened(limits) as rig:
        operations = Operations(rig.filesystem, MountOptions())
        context = pyfuse3.RequestContext.__new__(pyfuse3.RequestContext)
        for name, reason in NEVER_ASKED.items():
            print(f"{name} is never called: {reason}")
            operations.upcalls.faults[name] = kind
            for expected in (errno.EIO, errno.ENOSYS):
                with pytest.raises(pyfuse3.FUSEError) as caught:
                    await operations.access(ROOT_INODE, os.R_OK, context)
                assert caught.value.errno == expected


# -- faults of the world --


@frozen
class Gone:
    """A drive with bytes that are only on the cloud, and where the cloud is to be moved."""

    mount: Mount
    files: tuple[Path, ...]
    content: bytes

    @property
    def away(self) -> Path:
        return self.mount.cloud.with_name("away")

    def leave(self) -> None:
        self.mount.cloud.rename(self.away)

    def come_back(self) -> None:
        self.away.rename(self.mount.cloud)


def only_on_the_cloud(mount: Mount, count: int, *, deadline_s: float) -> Gone:
    write_config(evolve(mount.configure(), deadline_s=deadline_s), mount.paths)
    mount.start()
    content = os.urandom(300_000)
    files = tuple(mount.path / f"file{number}" for number in range(count))
    for number, file in enumerate(files):
        file.write_bytes(content + b"%d" % number)
    mount.sync()
    assert mount.evict() >= count * len(content)
    if not mount.drop_caches():
        pytest.skip("only root can empty the kernel's page cache")
    return Gone(mount, files, content)


def read_errno(path: Path) -> int:
    try:
        path.read_bytes()
    except OSError as error:
        return error.errno or -1
    return 0


def test_a_cloud_that_is_gone_is_an_error_of_reads_and_heals(mount: Mount) -> None:
    gone = only_on_the_cloud(mount, 3, deadline_s=1.0)
    here = mount.path / "here"
    gone.leave()
    assert read_errno(gone.files[0]) in (errno.EIO, errno.ETIMEDOUT)
    assert [file.stat().st_size for file in gone.files] == [len(gone.content) + 1] * 3
    here.write_bytes(b"written meanwhile")
    # Whole pages: for a part of one the kernel reads the rest of it first, which is a read like any other.
    fd = opened(gone.files[1], os.O_WRONLY)
    os.pwrite(fd, b"w" * 8192, 4096)
    os.fsync(fd)
    with pytest.raises(OSError) as caught:  # noqa: PT011  the errno is compared below
        os.pwrite(fd, b"w", 100_000)
    os.close(fd)
    assert caught.value.errno in (errno.EIO, errno.ETIMEDOUT)
    os.truncate(gone.files[2], 100_000)
    gone.files[2].rename(mount.path / "moved")
    assert here.read_bytes() == b"written meanwhile"
    status = mount.status()
    assert status["state"] == "offline"
    assert status["pending"]["bytes"] > 0
    assert status["clouds"][0]["last_error"]
    gone.come_back()
    mount.sync()
    assert mount.status()["state"] == "ok"
    assert {key: mount.pending()[key] for key in ("files", "chunks", "bytes")} == {"files": 0, "chunks": 0, "bytes": 0}
    mount.evict()
    mount.drop_caches()
    expected = bytearray(gone.content + b"1")
    expected[4096:12288] = b"w" * 8192
    assert gone.files[0].read_bytes() == gone.content + b"0"
    assert gone.files[1].read_bytes() == expected
    assert (mount.path / "moved").read_bytes() == gone.content[:100_000]
    assert here.read_bytes() == b"written meanwhile"


def test_a_cloud_that_is_empty_is_not_taken_for_ours(mount: Mount) -> None:
    """A disk that is not mounted leaves an empty folder: nothing may be written there, nothing counts as lost."""
    gone = only_on_the_cloud(mount, 1, deadline_s=1.0)
    gone.leave()
    mount.cloud.mkdir()
    assert read_errno(gone.files[0]) in (errno.EIO, errno.ETIMEDOUT)
    (mount.path / "here").write_bytes(b"written meanwhile")
    mount.write_out()
    wait_until("it is noticed", lambda: mount.status()["state"] == "offline")
    assert list(mount.cloud.iterdir()) == []
    mount.cloud.rmdir()
    gone.come_back()
    mount.sync()
    mount.evict()
    mount.drop_caches()
    assert gone.files[0].read_bytes() == gone.content + b"0"
    assert (mount.path / "here").read_bytes() == b"written meanwhile"


def test_a_cloud_that_hangs_is_an_error_of_reads_and_heals(mount: Mount) -> None:
    """Worker processes that do not go on are what a hanging driver looks like."""
    gone = only_on_the_cloud(mount, 2, deadline_s=2.0)
    assert gone.files[0].read_bytes() == gone.content + b"0"
    with ExitStack() as stack:
        for pid in children(mount.pid):
            stack.callback(send_if_alive, pid, signal.SIGCONT)
            os.kill(pid, signal.SIGSTOP)
        assert read_errno(gone.files[1]) in (0, errno.EIO, errno.ETIMEDOUT)
        (mount.path / "here").write_bytes(b"x")
        mount.write_out()
    wait_until("it heals", lambda: read_errno(gone.files[1]) == 0)
    assert gone.files[1].read_bytes() == gone.content + b"1"
    mount.sync()


def children(pid: int) -> list[int]:
    """Return the processes that `pid` and its children started, the deepest last."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text("ascii").split():
            found += [int(child), *children(int(child))]
    return found


def send_if_alive(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


@pytest.mark.skipif(
    os.geteuid() != 0 and not any(CONNECTIONS.glob("*")), reason="fusectl is not mounted, and only root may do that"
)
def test_many_reads_that_wait_do_not_hold_back_writes(mount: Mount) -> None:
    """The kernel has at most 12 reads and late writes under way unless told otherwise (fuse/limits.py)."""
    gone = only_on_the_cloud(mount, 40, deadline_s=20.0)
    gone.leave()
    outcomes: list[int] = []
    readers = [threading.Thread(target=lambda path=file: outcomes.append(read_errno(path))) for file in gone.files]
    for reader in readers:
        reader.start()
    try:
        wait_until("many reads wait", lambda: calls(mount, "read") >= len(readers))
        fd = opened(mount.path / "here")
        os.write(fd, bytes(1 << 20))
        os.fsync(fd)
        os.close(fd)
        assert not outcomes, "the write came back after a read had given up"
    finally:
        gone.come_back()
        for reader in readers:
            reader.join()


def test_a_lost_worker_is_nothing_a_program_sees(mount: Mount) -> None:
    gone = only_on_the_cloud(mount, 2, deadline_s=30.0)
    assert gone.files[0].read_bytes() == gone.content + b"0"
    for pid in children(mount.pid):
        send_if_alive(pid, signal.SIGKILL)
    assert gone.files[1].read_bytes() == gone.content + b"1"
    assert stat.S_ISREG(gone.files[0].stat().st_mode)

"""The daemon on a real mount: going to the background, the ways to end, and what whoever started it is told."""

from __future__ import annotations

import fcntl
import io
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from cuckoo_mount.cli.lock import read_holder
from cuckoo_mount.cli.mounts import is_dead, mount_at, unmount
from cuckoo_mount.config import DrivePaths, drive_paths, read_config

pytestmark = [pytest.mark.mount, pytest.mark.slow]
ROOT = Path(__file__).resolve().parents[2]
STATUS_KEYS = {
    "schema": None,
    "version": None,
    "drive": None,
    "pid": None,
    "redundancy": None,
    "mountpoint": None,
    "state": None,
    "pending": {"files", "chunks", "bytes"},
    "epoch": {"local", "cloud", "age_s"},
    "cache": {"bytes", "limit_bytes", "dirty_bytes", "hits", "misses"},
    "fuse": {"upcalls"},
    "clouds": None,
    "packs": {"count", "live_bytes", "stored_bytes", "degraded", "healing", "repacking"},
    "space": {"total_bytes", "free_bytes"},
}
CLOUD_KEYS = {
    *("name", "url", "state", "used_bytes", "capacity_bytes", "packs"),
    *("requests", "errors", "bytes_up", "bytes_down", "last_error"),
}


class Machine:
    """Runs commands as a shell would, with the drive's folders of this test."""

    def __init__(self, base: Path) -> None:
        self.mountpoint = base / "mnt"
        self.mountpoint.mkdir()
        self.paths: DrivePaths = drive_paths("default")

    def program(self, module: str, *, before: str = "") -> list[str]:
        run = f"import sys\n{before}\nfrom cuckoo_mount.cli.{module} import main\nsys.exit(main())"
        return [sys.executable, "-bb", "-c", run]

    def run(self, module: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.program(module), *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
        )

    def mount(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        done = self.run("mount", *(arguments or [self.mountpoint]))
        assert done.returncode == 0, done.stderr
        assert os.path.ismount(self.mountpoint)
        return done

    def cuckoo(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return self.run("main", *arguments)

    @property
    def pid(self) -> int:
        holder = read_holder(self.paths.lock)
        assert holder is not None
        assert holder.alive
        return holder.pid

    def end(self, number: int) -> None:
        """Send the daemon a signal and wait until it has ended."""
        pid = self.pid
        pidfd = os.pidfd_open(pid)
        os.kill(pid, number)
        self.wait_for(pidfd)

    def wait_for(self, pidfd: int) -> None:
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        assert poller.poll(60_000), "the daemon has not ended"
        os.close(pidfd)

    def block_sending(self) -> None:
        """Make every upload fail from now on: the drive's cloud is renamed away."""
        (self.paths.data / "local").rename(self.paths.data / "away")

    @property
    def log(self) -> str:
        return self.paths.log.read_text()


@pytest.fixture
def machine(base: Path) -> Iterator[Machine]:
    machine = Machine(base)
    yield machine
    holder = read_holder(machine.paths.lock)
    if holder is not None and holder.alive:
        machine.end(signal.SIGKILL)
    if mount_at(machine.mountpoint) is not None:
        unmount(machine.mountpoint, lazy=True)


def test_the_first_mount_makes_a_drive_and_says_so(machine: Machine) -> None:
    said = [line for line in machine.mount().stdout.splitlines() if line]
    assert len(said) == 5
    assert str(machine.paths.data / "local") in said[0]
    assert str(machine.paths.key_file) in said[1]
    assert "is no backup" in said[3]
    assert said[4] == f"Drive 'default' is mounted at {machine.mountpoint}"
    config = read_config(machine.paths)
    assert config is not None
    assert config.mountpoint == machine.mountpoint


def test_status_has_every_key_of_the_contract(machine: Machine) -> None:
    machine.mount()
    (machine.mountpoint / "a").write_bytes(b"x" * 1000)
    status = json.loads(machine.cuckoo("status", "--json").stdout)
    for key, parts in STATUS_KEYS.items():
        assert key in status
        assert not parts or parts <= status[key].keys()
    assert status["schema"] == 1
    assert status["pid"] == machine.pid
    assert status["mountpoint"] == str(machine.mountpoint)
    assert status["state"] == "ok"
    assert status["fuse"]["upcalls"]["write"] >= 1
    assert all(cloud.keys() >= CLOUD_KEYS for cloud in status["clouds"])
    shown = machine.cuckoo("status")
    assert "is no backup" in shown.stdout
    assert (shown.returncode, shown.stderr) == (0, "")


def test_data_goes_from_mount_to_mount(machine: Machine) -> None:
    machine.mount()
    (machine.mountpoint / "a").write_bytes(b"first")
    assert machine.cuckoo("status", "--check").returncode == 3
    synced = machine.cuckoo("sync", machine.mountpoint)
    assert (synced.returncode, synced.stderr) == (0, "")
    assert machine.cuckoo("status", "--check").returncode == 0
    done = machine.cuckoo("umount", machine.mountpoint)
    assert (done.returncode, done.stdout) == (0, "Unmounted.  Everything is on the clouds.\n")
    assert not os.path.ismount(machine.mountpoint)
    assert not machine.paths.socket.exists()
    assert machine.mount("--drive", "default").stdout == f"Drive 'default' is mounted at {machine.mountpoint}\n"
    assert (machine.mountpoint / "a").read_bytes() == b"first"


def test_sync_covers_what_only_the_kernel_has(machine: Machine) -> None:
    machine.mount()
    with (machine.mountpoint / "a").open("wb", buffering=0) as file:
        file.write(b"x" * 100_000)  # and not closed: it is in the page cache
        result = json.loads(machine.cuckoo("sync", "--json").stdout)
        assert result["pending"] == {"files": 0, "chunks": 0, "bytes": 0, "changes": 0}
        assert sum(cloud["bytes_up"] for cloud in json.loads(machine.cuckoo("status", "--json").stdout)["clouds"]) > 0


def test_a_second_mount_is_refused(machine: Machine, base: Path) -> None:
    machine.mount()
    (base / "other").mkdir()
    for place in (machine.mountpoint, base / "other"):
        done = machine.run("mount", place)
        assert done.returncode == 1
        assert f"already mounted at {machine.mountpoint} (pid {machine.pid})" in done.stderr
    done = machine.run("mount", machine.mountpoint, "--drive", "second")
    assert done.returncode == 1
    assert "drive 'default' is already mounted at" in done.stderr
    assert not drive_paths("second").config_file.exists()


def test_a_busy_mount_stays(machine: Machine) -> None:
    machine.mount()
    with (machine.mountpoint / "a").open("wb"):
        done = machine.cuckoo("umount", machine.mountpoint)
        assert done.returncode == 1
        assert "is in use" in done.stderr
        assert machine.cuckoo("status").returncode == 0
    assert machine.cuckoo("umount").returncode == 0


def test_umount_without_waiting(machine: Machine) -> None:
    machine.mount()
    (machine.mountpoint / "a").write_bytes(b"x" * 1000)
    done = machine.cuckoo("umount", "--no-wait", machine.mountpoint)
    assert done.returncode == 3
    assert "safe on the local disk" in done.stdout
    machine.mount()
    assert (machine.mountpoint / "a").read_bytes() == b"x" * 1000


def test_a_signal_unmounts_and_the_log_says_where_everything_is(machine: Machine) -> None:
    machine.mount()
    (machine.mountpoint / "a").write_bytes(b"x")
    machine.end(signal.SIGTERM)
    assert not os.path.ismount(machine.mountpoint)
    assert machine.log.splitlines()[-1].endswith("unmounted; everything is on the clouds")


def test_hangup_is_ignored(machine: Machine) -> None:
    machine.mount()
    os.kill(machine.pid, signal.SIGHUP)
    assert machine.cuckoo("status").returncode == 0


def test_somebody_elses_umount_ends_the_daemon(machine: Machine) -> None:
    machine.mount()
    pidfd = os.pidfd_open(machine.pid)
    unmount(machine.mountpoint)
    machine.wait_for(pidfd)
    assert "unmounted; " in machine.log.splitlines()[-1]


def test_a_new_mount_takes_over_from_a_daemon_that_still_sends(machine: Machine) -> None:
    machine.mount()
    (machine.mountpoint / "a").write_bytes(b"x" * 1000)
    machine.block_sending()
    first = machine.pid
    unmount(machine.mountpoint)
    assert f"pid {first} is still sending what was written before; taking over" in machine.mount().stdout
    assert machine.pid != first
    assert (machine.mountpoint / "a").read_bytes() == b"x" * 1000


def test_after_a_crash_the_mountpoint_is_cleared_first(machine: Machine) -> None:
    machine.mount()
    (machine.mountpoint / "a").write_bytes(b"x")
    fd = os.open(machine.mountpoint / "a", os.O_RDWR)
    os.fsync(fd)
    machine.end(signal.SIGKILL)
    with suppress(OSError):
        os.close(fd)
    assert os.path.ismount(machine.mountpoint) or mount_at(machine.mountpoint) is not None
    said = machine.mount().stdout
    assert "had died; it is unmounted now" in said
    assert (machine.mountpoint / "a").read_bytes() == b"x"


@pytest.mark.parametrize("named", [True, False])
def test_after_a_crash_umount_clears_the_mountpoint(named: bool, machine: Machine) -> None:
    machine.mount()
    machine.end(signal.SIGKILL)
    done = machine.cuckoo("umount", *([machine.mountpoint] if named else []))
    assert done.returncode == 3
    assert "daemon had died" in done.stdout
    assert not os.path.ismount(machine.mountpoint)


@pytest.mark.parametrize("command", ["sync", "umount"])
def test_who_waits_sees_progress_and_may_stop_waiting(command: str, machine: Machine) -> None:
    machine.mount()
    (machine.mountpoint / "a").write_bytes(b"x" * 1000)
    machine.block_sending()
    terminal, other_end = os.openpty()
    process = subprocess.Popen(
        [*machine.program("main"), command],
        cwd=ROOT,
        stdout=other_end,
        stderr=other_end,
        env=os.environ | {"TERM": "xterm"},
    )
    os.close(other_end)
    with os.fdopen(terminal, "rb", buffering=0) as shown:
        seen = read_until(shown, b"sending: 1000 B in 1 file left")
        process.send_signal(signal.SIGINT)
        seen += read_until(shown, None)
    assert process.wait(60) == 3
    assert b"1000 B in 1 file not yet" in seen.replace(b"\r\n", b" ").split(b"cuckoo ", 1)[1]
    assert os.path.ismount(machine.mountpoint)


def read_until(terminal: io.FileIO, words: bytes | None) -> bytes:
    """Read from a terminal until `words` were shown, or until nobody writes to it any more."""
    seen = b""
    with suppress(OSError):  # EIO: the other end was closed
        while words is None or words not in seen:
            seen += terminal.read(1000) or b""
    return seen


def test_read_only(machine: Machine) -> None:
    machine.mount(machine.mountpoint, "-o", "ro")
    with pytest.raises(OSError, match="Read-only"):
        (machine.mountpoint / "a").touch()
    assert json.loads(machine.cuckoo("status", "--json").stdout)["state"] == "read-only"


def test_the_mount_helper(machine: Machine) -> None:
    done = machine.run("mount_helper", "default", machine.mountpoint, "-o", "rw,noauto,user,x-systemd.automount")
    assert (done.returncode, done.stderr) == (0, "")
    assert os.path.ismount(machine.mountpoint)
    assert machine.run("mount_helper", "default", machine.mountpoint).returncode == 32


def test_no_descriptor_of_the_caller_is_kept(machine: Machine) -> None:
    # As with bats or `$(…)`: whoever waits for the end of a pipe must not wait for the daemon.
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    done = subprocess.run([*machine.program("mount"), machine.mountpoint], cwd=ROOT, pass_fds=(writing,), check=False)
    os.close(writing)
    assert done.returncode == 0
    fcntl.fcntl(reading, fcntl.F_SETFL, os.O_NONBLOCK)
    assert os.read(reading, 1) == b""
    os.close(reading)


def test_what_fails_after_the_fork_is_said_by_the_parent(machine: Machine) -> None:
    machine.mount()
    machine.cuckoo("umount")
    database = machine.paths.state / "metadata.sqlite"
    for file in database.parent.glob("metadata.sqlite*"):
        file.write_bytes(b"no database" * 1000)
    done = machine.run("mount", machine.mountpoint)
    assert done.returncode == 1
    assert 1 <= len(done.stderr.splitlines()) <= 2
    assert done.stderr.startswith("cuckoo-mount: ")
    assert not os.path.ismount(machine.mountpoint)


def test_in_the_foreground(machine: Machine) -> None:
    process = subprocess.Popen(
        [*machine.program("mount"), machine.mountpoint, "-f"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    while b"is mounted at" not in process.stdout.readline():
        assert process.poll() is None
    assert machine.pid == process.pid
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0
    assert b"unmounted; everything is on the clouds" in said
    assert not os.path.ismount(machine.mountpoint)


def replace_announcement(how: str) -> str:
    """A start of the daemon's program that replaces what says that the drive is mounted."""
    return f"""
import trio
from cuckoo_mount.cli import serving
announce = serving._announce
async def other(*arguments):
{how}
serving._announce = other
"""


def test_a_bug_leaves_the_mountpoint_attached(machine: Machine) -> None:
    # An empty folder in its place would make a mirror job delete its copy.
    program = machine.program("mount", before=replace_announcement("    await announce(*arguments)\n    1 / 0"))
    done = subprocess.run(
        [*program, machine.mountpoint, "-f"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "ZeroDivisionError: a bug in cuckoo-mount" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Traceback" in machine.log
    mount = mount_at(machine.mountpoint)
    assert mount is not None
    assert is_dead(mount)


def test_a_signal_before_the_mount_answers_leaves_nothing(machine: Machine) -> None:
    how = "    print('soon', flush=True)\n    await trio.sleep_forever()"
    process = subprocess.Popen(
        [*machine.program("mount", before=replace_announcement(how)), machine.mountpoint, "-f"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    while b"soon" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert b"ended by a signal before the drive was mounted" in said
    assert mount_at(machine.mountpoint) is None

"""The systemd unit: what it says, what its command line does, and that ready means ready."""

from __future__ import annotations

import configparser
import os
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cuckoo_mount.cli.mounts import is_dead, mount_at
from cuckoo_mount.cli.session import GRACE_S
from cuckoo_mount.config import DrivePaths
from tests.cli.test_daemon import ROOT, Machine
from tests.cli.test_daemon import machine as machine

UNIT = ROOT / "systemd" / "cuckoo-mount@.service"
RUN = "import sys; from cuckoo_mount.cli.{} import main; sys.exit(main())"
READY_TIMEOUT_S = 60.0


def program_in(folder: Path, name: str, module: str) -> Path:
    """Make a program that runs a command's module of this checkout."""
    folder.mkdir(parents=True, exist_ok=True)
    words = [sys.executable, "-bb", "-c", RUN.format(module)]
    path = f"PYTHONPATH={shlex.quote(str(ROOT))}"
    (folder / name).write_text(f'#!/bin/sh\n{path} exec {shlex.join(words)} "$@"\n')
    (folder / name).chmod(0o755)
    return folder / name


def settings_of(unit: Path) -> configparser.SectionProxy:
    """Return the section [Service] of a unit."""
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # as its documentation says
    parser.read(unit)
    return parser["Service"]


def verified(unit: Path, base: Path) -> str:
    """Return what systemd finds wrong with an instance of the unit; empty: nothing."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    instance = unit.with_name("cuckoo-mount@default.service")
    done = subprocess.run(
        ["systemd-analyze", "--user", "verify", instance],
        env=os.environ | {"XDG_RUNTIME_DIR": str(base / "run")},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stderr if done.returncode == 0 else f"status {done.returncode}: {done.stderr}"


def test_the_unit_says_what_it_has_to() -> None:
    service = settings_of(UNIT)
    assert service["Type"] == "notify"
    assert service["Restart"] == "on-failure"
    assert service["KillMode"] == "mixed"  # the workers are needed to send the rest
    assert int(service["TimeoutStopSec"]) >= 2 * GRACE_S
    assert int(service["TimeoutStartSec"]) > READY_TIMEOUT_S


@pytest.mark.slow
def test_systemd_accepts_the_unit(base: Path) -> None:
    shutil.copy(UNIT, base / UNIT.name)
    assert verified(base / UNIT.name, base) == ""
    (base / UNIT.name).write_text(UNIT.read_text().replace("on-failure", "maybe"))
    assert "maybe" in verified(base / UNIT.name, base)  # it does look


@pytest.mark.slow
def test_systemd_accepts_what_bootstrap_makes_of_it(base: Path) -> None:
    venv = base / "my venv 100%"
    program_in(venv / "bin", "cuckoo-mount", "mount")
    (venv / "bin" / "python").symlink_to(sys.executable)
    (venv / "pyvenv.cfg").write_text("")
    stamp = 'cat "$1/pyproject.toml" "$2/pyvenv.cfg" | cksum; printf "%s\\n%s\\n" "$1" "$2"'
    made = subprocess.run(["sh", "-c", stamp, "-", ROOT, venv], capture_output=True, check=True)
    (venv / ".cuckoo-stamp-runtime").write_bytes(made.stdout)  # as after an installation
    subprocess.run(
        [ROOT / "bootstrap", "service"],
        env=os.environ | {"CUCKOO_VENV": str(venv), "CUCKOO_APT": "0"},
        capture_output=True,
        check=True,
        timeout=60,
    )
    unit = base / "config" / "systemd" / "user" / UNIT.name
    assert verified(unit, base) == ""
    program, *arguments = started_by(unit)
    assert Path(program) == venv / "bin" / "cuckoo-mount"
    assert arguments == ["--drive", "default", "--foreground"]


def started_by(unit: Path) -> list[str]:
    """Return the command of the unit's ExecStart for drive `default`, as systemd runs it."""
    words = shlex.split(settings_of(unit)["ExecStart"])
    return [word.replace("%%", "\0").replace("%i", "default").replace("\0", "%") for word in words]


class Manager:
    """Stands in for systemd: starts a command and hears what it notifies."""

    def __init__(self, base: Path) -> None:
        self._place = base / "notify"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self._place))
        self._socket.settimeout(READY_TIMEOUT_S)

    def start(self, command: list[str], **environment: str) -> subprocess.Popen[bytes]:
        """Start a service; it ends with the test."""
        return subprocess.Popen(
            command,
            env=os.environ | {"NOTIFY_SOCKET": str(self._place)} | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
        )

    def heard(self) -> str:
        """Return the next notification."""
        return self._socket.recv(4096).decode()

    def has_heard_nothing(self) -> bool:
        """Return whether nothing was notified that `heard` has not returned."""
        return not select.select([self._socket], [], [], 0)[0]

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(base: Path) -> Iterator[Manager]:
    manager = Manager(base)
    yield manager
    manager.close()


@contextmanager
def ended(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """Kill a service at the end, if it still runs."""
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.mount
@pytest.mark.slow
def test_after_a_crash_the_units_command_mounts_again(machine: Machine, manager: Manager, base: Path) -> None:
    machine.mount()  # once by hand: this writes the mountpoint into the configuration file
    assert machine.cuckoo("umount").returncode == 0
    path = f"{program_in(base / 'bin', 'cuckoo-mount', 'mount').parent}:{os.environ['PATH']}"
    command = started_by(UNIT)
    with ended(manager.start(command, PATH=path)) as first:
        assert manager.heard() == "READY=1"
        fd = os.open(machine.mountpoint / "a", os.O_CREAT | os.O_WRONLY)
        os.write(fd, b"precious")
        os.fsync(fd)
        first.kill()
        first.wait(60)
        mount = mount_at(machine.mountpoint)
        assert mount is not None, "an empty folder would make a mirror job delete the data"
        assert is_dead(mount)
    with ended(manager.start(command, PATH=path)) as second:
        # The file is still open; its program gets an error, and does not keep us from mounting.
        assert manager.heard() == "READY=1"
        assert (machine.mountpoint / "a").read_bytes() == b"precious"
        with pytest.raises(OSError, match="not connected"):
            os.close(fd)
        second.send_signal(signal.SIGTERM)
        assert manager.heard() == "STOPPING=1"
        said, _ = second.communicate(timeout=60)
        assert second.returncode == 0
    assert b"unmounted; everything is on the clouds" in said
    assert [manager.heard(), manager.heard()] == [
        "STOPPING=1",
        "STATUS=unmounted; everything is on the clouds",
    ]
    assert mount_at(machine.mountpoint) is None


@pytest.mark.mount
@pytest.mark.slow
def test_ready_means_that_the_mount_answers(machine: Machine, manager: Manager, base: Path) -> None:
    slow = f"""
import os, trio
from cuckoo_mount.cli import serving
from cuckoo_mount.fuse.operations import Operations
serving.ANSWER_DEADLINE_S = 0.05
answer = Operations.getattr
async def getattr_(self, *arguments):
    print("asked", flush=True)
    while not os.path.exists({str(base / "gate")!r}):
        await trio.sleep(0.01)
    return await answer(self, *arguments)
Operations.getattr = getattr_
"""
    command = [*machine.program("mount", before=slow), str(machine.mountpoint), "--foreground"]
    with ended(manager.start(command)) as process:
        assert process.stdout is not None
        while b"asked" not in (line := process.stdout.readline()):
            assert line, "it ended"
        assert os.path.exists(machine.paths.socket)
        while b"has not answered" not in (line := process.stdout.readline()):
            assert line, "it ended"
        assert manager.has_heard_nothing()
        (base / "gate").touch()
        assert manager.heard() == "READY=1"
        assert machine.mountpoint.stat().st_ino == 1
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
        assert process.returncode == 0


# -- stopped while programs write --

WRITER = """
import hashlib, os, sys
os.chdir(sys.argv[1])
folder = os.open(".", os.O_RDONLY)
number = 0
while True:
    data = hashlib.shake_256(str(number).encode()).digest(1000 + number * 997 % 200_000)
    fd = os.open(f"{number}.part", os.O_CREAT | os.O_WRONLY)
    os.write(fd, data)
    os.fsync(fd)
    os.close(fd)
    os.rename(f"{number}.part", str(number))
    os.fsync(folder)
    os.write(1, b"%d\\n" % number)  # promised
    number += 1
"""


def check_promises(machine: Machine, promised: int) -> None:
    """Fail unless every file that the writer was promised is there, whole."""
    import hashlib

    for number in range(promised):
        data = hashlib.shake_256(str(number).encode()).digest(1000 + number * 997 % 200_000)
        assert (machine.mountpoint / "writer" / str(number)).read_bytes() == data, number


@pytest.mark.mount
@pytest.mark.slow
@pytest.mark.parametrize("cloud", [pytest.param("answers", marks=pytest.mark.long), "is-away"])
def test_a_stop_while_programs_write_loses_nothing(cloud: str, machine: Machine, manager: Manager, base: Path) -> None:
    source = base / "source"
    for number in range(600):
        (source / str(number % 30)).mkdir(parents=True, exist_ok=True)
        (source / str(number % 30) / str(number)).write_bytes(b"%d" % number * (number % 977))
    # The half minute that is allowed need not be spent.
    command = machine.program("mount", before="from cuckoo_mount.cli import session\nsession.GRACE_S = 3.0")
    with ended(manager.start([*command, str(machine.mountpoint), "--foreground"])) as daemon:
        assert manager.heard() == "READY=1"
        (machine.mountpoint / "writer").mkdir()
        (machine.mountpoint / "copy").mkdir()
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, machine.mountpoint / "writer"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        copy = ["rsync", "-a", f"{source}/", f"{machine.mountpoint}/copy/"]
        slowly = [*copy, "--bwlimit=100"]  # KiB/s: ten seconds of work
        rsync = subprocess.Popen(slowly, cwd=base, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        assert writer.stdout is not None
        promised = [writer.stdout.readline() for _ in range(10)]
        if cloud == "is-away":
            machine.block_sending()
        assert rsync.poll() is None, "it was to be at work"
        daemon.send_signal(signal.SIGTERM)
        said, _ = daemon.communicate(timeout=60)
        assert daemon.returncode == 0
        promised += writer.communicate(timeout=60)[0].splitlines()
        rsync.wait(60)
    last = said.decode().splitlines()[-1]
    assert "unmounted; " in last
    assert "everything is on the clouds" in last or "safely on the local disk" in last
    if cloud == "is-away":
        assert "not yet on the clouds but safely on the local disk" in last
        assert "cloud local is down" in last
        (machine.paths.data / "away").rename(machine.paths.data / "local")
    machine.mount()
    check_promises(machine, len(promised))
    # What rsync had not finished it repairs, and believes nothing that is not so.
    subprocess.run(copy, cwd=base, check=True, timeout=120)
    assert not differences(source, machine.mountpoint / "copy")
    assert machine.cuckoo("umount").returncode == 0
    shutil.rmtree(machine.paths.cache)
    machine.mount()
    check_promises(machine, len(promised))


def differences(source: Path, copy: Path) -> str:
    """Return what `rsync --checksum` would change, one line each."""
    command = ["rsync", "-a", "--checksum", "--dry-run", "--itemize-changes", f"{source}/", f"{copy}/"]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


# -- mount(8) --

MOUNT_8 = """
set -eu
base=$1 mountpoint=$2 sbin=$(readlink -f /sbin)
mkdir "$base/sbin" "$base/real"
mount --bind "$sbin" "$base/real"
for program in "$base/real/"*; do ln -s "$program" "$base/sbin/"; done
ln -sf "$base/bin/mount.cuckoo" "$base/sbin/mount.cuckoo"
mount --bind "$base/sbin" "$sbin"

mount -t cuckoo default "$mountpoint" -o noatime,nodev
grep -F " $mountpoint " /proc/self/mountinfo
echo kept > "$mountpoint/a"
umount "$mountpoint"
flock "$base/state/cuckoo/default/lock" true   # until the daemon has ended

printf 'default %s cuckoo ro,noauto,user,x-gvfs-hide 0 0\\n' "$mountpoint" > "$base/fstab"
mount -T "$base/fstab" "$mountpoint"
cat "$mountpoint/a"
if (echo > "$mountpoint/b") 2>/dev/null; then echo writable; fi
umount "$mountpoint"
flock "$base/state/cuckoo/default/lock" true
"""


@pytest.mark.mount
@pytest.mark.slow
def test_mount_8(machine: Machine, base: Path, paths: DrivePaths) -> None:
    """In a mount namespace of its own: only there /sbin has the helper."""
    private = ["unshare", "--mount", "--propagation", "private"]
    if os.getuid() != 0 or subprocess.run([*private, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("needs root, and the right to make a mount namespace")
    before = sorted(os.listdir("/sbin"))
    program_in(base / "bin", "mount.cuckoo", "mount_helper")
    done = subprocess.run(
        [*private, "sh", "-c", MOUNT_8, "-", base, machine.mountpoint],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    (mounted,) = [line for line in lines if " - fuse.cuckoo cuckoo:default " in line]
    assert "noatime" in mounted
    assert lines[-1] == "kept"
    assert "writable" not in lines
    assert sorted(os.listdir("/sbin")) == before
    assert mount_at(machine.mountpoint) is None

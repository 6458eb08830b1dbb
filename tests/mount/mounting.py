"""A drive mounted for a test: its own folders, its daemon as a subprocess, and what a test asks of it.

Used by all tests in tests/mount through the fixture `mount` (conftest.py), which hands it out not yet mounted:
    def test_it(mount: Mount) -> None:
        mount.start(cache_limit="64MiB")
        (mount.path / "a").write_bytes(b"x")
        mount.sync()
At the end of a test the invariants are checked, the drive is unmounted, and the log must speak of no bug of ours.

Nothing here can hang: whatever the test itself does in the mount ends at `deadline_s`, when the daemon is killed and
the kernel answers for it (ENOTCONN); commands and requests have their own timeouts.
Only processes that were started here are ever killed.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import select
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from attrs import evolve

from cuckoo_mount.cli.mounts import mount_at
from cuckoo_mount.config import DriveConfig, DrivePaths, create_default_drive, parse_size, read_config, write_config
from cuckoo_mount.fuse.controlsocket import connect, encode_line

READY_TIMEOUT_S: Final = 60.0
COMMAND_TIMEOUT_S: Final = 120.0
KILL_TIMEOUT_S: Final = 30.0
DEADLINE_S: Final = 240.0
_BUG: Final = re.compile(r"a bug in cuckoo-mount|this is a bug|Traceback|\bCRITICAL\b")
_AROUND_A_BUG_LINES: Final = 40
_DROP_CACHES: Final = Path("/proc/sys/vm/drop_caches")


class ControlError(AssertionError):
    """The daemon answered a request with an error."""


class MountError(AssertionError):
    """The daemon did not do what it has to."""


class Mount:
    """One drive with one cloud (a folder), mounted when `start` was called.

    `path`: the mountpoint.  `folder`: holds everything of the drive; nothing of it lies elsewhere.
    `expects_bugs`: set by tests that inject faults: then the log may speak of bugs.
    """

    def __init__(self, folder: Path, *, drive: str = "default", deadline_s: float = DEADLINE_S) -> None:
        self.folder: Final = folder
        self.drive: Final = drive
        self.path: Final = folder / "mnt"
        self.deadline_s = deadline_s
        self.expects_bugs = False
        self.kills = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._watchdog: threading.Timer | None = None
        self._gave_up = False
        base = folder / "xdg"
        self.paths: Final = DrivePaths(
            name=drive,
            config_file=base / "config" / "cuckoo" / f"{drive}.toml",
            key_file=base / "config" / "cuckoo" / f"{drive}.key",
            state=base / "state" / "cuckoo" / drive,
            cache=base / "cache" / "cuckoo" / drive,
            data=base / "data" / "cuckoo" / drive,
            socket=base / "run" / "cuckoo" / f"{drive}.sock",
            log=base / "state" / "cuckoo" / drive / "log" / "cuckoo.log",
            lock=base / "state" / "cuckoo" / drive / "lock",
        )
        self.path.mkdir(parents=True)
        for name in ("config", "state", "cache", "data", "run"):
            (base / name).mkdir(mode=0o700, parents=True)

    # -- what surrounds the drive --

    @property
    def environment(self) -> dict[str, str]:
        """The environment for the daemon and every command: this drive's folders, test commands allowed."""
        base = self.folder / "xdg"
        folders = {f"XDG_{name.upper()}_HOME": str(base / name) for name in ("config", "state", "cache", "data")}
        folders |= {"HOME": str(self.folder), "XDG_RUNTIME_DIR": str(base / "run")}
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("XDG_", "CUCKOO_", "NOTIFY_"))}
        return kept | folders | {"CUCKOO_TESTING": "1", "LC_ALL": "C.UTF-8"}

    @property
    def cloud(self) -> Path:
        """The folder that is the drive's cloud."""
        return self.paths.data / "local"

    def configure(self, *, cache_limit: str | None = None) -> DriveConfig:
        """Make the drive if there is none, and set its limits (at least 16MiB); valid from the next `start`."""
        config = read_config(self.paths) or create_default_drive(self.paths)
        if cache_limit is not None:
            config = evolve(config, cache_limit_bytes=parse_size(cache_limit))
            write_config(config, self.paths)
        return config

    # -- the daemon --

    @property
    def _command(self) -> list[str]:
        program = [sys.executable, "-bb", "-m", "cuckoo_mount.cli.mount"]
        return [*program, str(self.path), "--foreground", "--drive", self.drive]

    @property
    def is_running(self) -> bool:
        """Whether the daemon that `start` started lives."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Process id of the daemon."""
        assert self._process is not None, "not started"
        return self._process.pid

    def start(self, *options: str, cache_limit: str | None = None) -> None:
        """Mount, and return when the mount answers.  `options`: more for cuckoo-mount's command line."""
        assert not self.is_running, "it is mounted already"
        self.configure(cache_limit=cache_limit)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready, (self.folder / "output").open("ab") as output:
            address = f"cuckoo-test-{secrets.token_hex(8)}"
            ready.bind(f"\0{address}")
            process = self._process = subprocess.Popen(
                [*self._command, *options],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self.environment | {"NOTIFY_SOCKET": f"@{address}"},
                cwd="/",
            )
            self._watchdog = threading.Timer(self.deadline_s, self._give_up, (process,))
            self._watchdog.daemon = True
            self._watchdog.start()
            self._wait_until_ready(process, ready)
        assert mount_at(self.path) is not None, "it is ready but not in /proc/self/mountinfo"

    def _wait_until_ready(self, process: subprocess.Popen[bytes], ready: socket.socket) -> None:
        pidfd = os.pidfd_open(process.pid)
        try:
            poller = select.poll()
            poller.register(pidfd, select.POLLIN)
            poller.register(ready, select.POLLIN)
            end = time.monotonic() + READY_TIMEOUT_S
            while (left_s := end - time.monotonic()) > 0:
                for fd, _ in poller.poll(left_s * 1000):
                    if fd == pidfd:
                        raise MountError(f"cuckoo-mount ended with {process.wait()}:\n{self._last_lines()}")
                    if ready.recv(1024) == b"READY=1":
                        return
        finally:
            os.close(pidfd)
        raise MountError(f"not mounted after {READY_TIMEOUT_S:.0f} s:\n{self._last_lines()}")

    def _give_up(self, process: subprocess.Popen[bytes]) -> None:
        self._gave_up = True
        process.kill()

    def _ended(self) -> None:
        self._process = None
        if self._watchdog is not None:
            self._watchdog.cancel()
            self._watchdog = None
        if self._gave_up:
            raise MountError(f"the test did not end within {self.deadline_s:.0f} s; the daemon was killed")

    def umount(self, *, wait: bool = True) -> None:
        """Unmount as `cuckoo umount` does; return when the daemon has ended.  `wait` False: as `--no-wait`."""
        assert self._process is not None, "not started"
        self.control("umount", wait=wait)
        status = self._process.wait(COMMAND_TIMEOUT_S)
        self._ended()
        if status != 0:
            raise MountError(f"cuckoo-mount ended with {status}:\n{self._last_lines()}")

    def kill(self, *, detach: bool = True) -> None:
        """kill -9, as a crash; the kernel's cache of the mount goes with it.

        `detach`: unmount what is left, lazily; else the next `start` finds the dead mount and has to deal with it.
        """
        assert self._process is not None, "not started"
        self._process.kill()
        self._wait_until_dead(self._process)
        self.kills += 1
        if detach:
            self.detach()
        self._ended()

    def forget_ended(self) -> None:
        """After a `start` that failed: the daemon has ended by itself, another one may be started."""
        assert self._process is not None, "not started"
        self._process.wait(KILL_TIMEOUT_S)
        self._ended()

    def _started_for(self, after_s: float) -> subprocess.Popen[bytes]:
        """Start the daemon and return it so long afterwards, or when it has ended."""
        with (self.folder / "output").open("ab") as output:
            process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self.environment,
                cwd="/",
            )
        with suppress(subprocess.TimeoutExpired):
            process.wait(after_s)
        return process

    def start_and_kill(self, after_s: float) -> None:
        """Start the daemon and kill -9 it so long afterwards, most likely while it repairs what the last kill left."""
        process = self._started_for(after_s)
        process.kill()
        self._wait_until_dead(process)
        self.detach()

    def _wait_until_dead(self, process: subprocess.Popen[bytes]) -> None:
        try:
            process.wait(KILL_TIMEOUT_S)
        except subprocess.TimeoutExpired as error:
            # One of its threads waits in the kernel for the mount, and with it for its own process.
            self._abort()
            process.wait(KILL_TIMEOUT_S)
            raise MountError("kill -9 did not end the daemon before the kernel gave the mount up") from error

    def _abort(self) -> None:
        """Have the kernel give the mount up: whatever waits for an answer from the daemon gets an error."""
        with suppress(subprocess.TimeoutExpired):
            subprocess.run(["umount", "-f", "--", self.path], cwd="/", capture_output=True, check=False, timeout=60)

    def detach(self) -> None:
        """Unmount what a daemon that died left, lazily."""
        while mount_at(self.path) is not None:
            command: list[str | Path] = ["fusermount3", "-uz", "--", self.path]
            subprocess.run(command, cwd="/", check=True, capture_output=True, timeout=COMMAND_TIMEOUT_S)

    # -- questions --

    def control(self, command: str, *, timeout_s: float = COMMAND_TIMEOUT_S, **arguments: object) -> dict[str, Any]:
        """Return the result of a command of the control socket.  Raises: ControlError with what it says."""
        end = time.monotonic() + timeout_s
        received = b""
        with connect(self.paths.socket, timeout_s) as connection:
            connection.sendall(encode_line({"command": command, "arguments": arguments}))
            while True:
                connection.settimeout(max(0.001, end - time.monotonic()))
                data = connection.recv(1 << 16)
                if not data:
                    raise MountError(f"the daemon ended before it answered {command}:\n{self._last_lines()}")
                *lines, received = (received + data).split(b"\n")
                for line in lines:
                    reply: dict[str, Any] = json.loads(line)
                    if "error" in reply:
                        raise ControlError(reply["error"])
                    if "result" in reply:
                        result: dict[str, Any] = reply["result"]
                        return result

    def status(self) -> dict[str, Any]:
        """Return what `cuckoo status --json` shows."""
        return self.control("status")

    def upcalls(self) -> Counter[str]:
        """Return how often the kernel asked, by handler."""
        return Counter(self.status()["fuse"]["upcalls"])

    def pushes(self) -> int:
        """Return how many chunks went to the kernel's page cache unasked."""
        return int(self.status()["fuse"]["pushes"])

    def pending(self) -> Mapping[str, int]:
        """Return what the daemon knows and has not sent yet: `files`, `chunks`, `bytes`."""
        pending: Mapping[str, int] = self.status()["pending"]
        return pending

    def sync(self, *, timeout_s: float = COMMAND_TIMEOUT_S) -> Mapping[str, int]:
        """Return when everything written before is on the cloud; what came since then is `files`, `chunks`, `bytes`."""
        pending: Mapping[str, int] = self.control("sync", timeout_s=timeout_s)["pending"]
        return pending

    def evict(self) -> int:
        """Give back everything clean; return how many bytes.  The kernel's page cache stays: see `drop_caches`."""
        return int(self.control("evict")["bytes"])

    def check(self) -> None:
        """Fail if an invariant is violated."""
        violated = self.control("check")["violated"]
        assert violated == [], "\n".join(violated)

    def fault(self, operation: str, kind: str) -> None:
        """Let the next call of a handler raise ValueError or MemoryError, or be Cancelled."""
        self.expects_bugs = True
        self.control("fault", operation=operation, kind=kind)

    def rss_kib(self) -> int:
        """Return the daemon's resident memory, without its workers."""
        return self._process_status("VmRSS")

    def peak_rss_kib(self) -> int:
        """Return the most that `rss_kib` ever was."""
        return self._process_status("VmHWM")

    def _process_status(self, key: str) -> int:
        text = Path(f"/proc/{self.pid}/status").read_text("ascii")
        found = re.search(rf"^{key}:\s+(\d+) kB$", text, re.MULTILINE)
        assert found is not None
        return int(found[1])

    def log_text(self) -> str:
        """Return all of the log and of what the daemon printed."""
        older = sorted(self.paths.log.parent.glob("cuckoo.log.*"), reverse=True)
        files = [file for file in (*older, self.paths.log, self.folder / "output") if file.exists()]
        return "".join(file.read_text("utf-8", "replace") for file in files)

    def _last_lines(self, count: int = 30) -> str:
        return "\n".join(self.log_text().splitlines()[-count:])

    # -- actions --

    def run(
        self, *command: str | Path, cwd: Path | None = None, check: bool = True, timeout_s: float = COMMAND_TIMEOUT_S
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a program, in `cwd` (default: /), and return what it printed.  `check`: it has to succeed."""
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=self.environment,
            cwd=cwd or "/",
            timeout=timeout_s,
            check=False,
        )
        if check and done.returncode != 0:
            said = (done.stdout[-2000:] + done.stderr[-2000:]).decode("utf-8", "replace")
            raise AssertionError(f"{command[0]} ended with {done.returncode}:\n{said}")
        return done

    def cuckoo(self, *arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[bytes]:
        """Run the command `cuckoo`."""
        return self.run(sys.executable, "-m", "cuckoo_mount.cli.main", *arguments, check=check)

    def write_out(self) -> None:
        """Have the kernel hand over to the daemon what programs wrote and it still keeps."""
        self.run("sync", "-f", self.path)

    def drop_caches(self) -> bool:
        """Empty the kernel's page cache, so that reads reach the daemon; return False where that needs other rights."""
        self.write_out()
        try:
            _DROP_CACHES.write_text("3\n")
        except PermissionError:
            return False
        return True

    # -- the end --

    def finish(self) -> None:
        """Check what has to be true at the end of every test, and unmount."""
        if self._process is not None:
            if not self.is_running:
                status = self._process.wait()
                self._ended()
                raise MountError(f"the daemon had ended with {status}:\n{self._last_lines()}")
            self.check()
            self.umount(wait=False)
        self.check_log()

    def check_log(self) -> None:
        """Fail if the log speaks of a bug of ours."""
        if self.expects_bugs:
            return
        lines = self.log_text().splitlines()
        for number, line in enumerate(lines):
            if _BUG.search(line):
                raise MountError("the log speaks of a bug:\n" + "\n".join(lines[number : number + _AROUND_A_BUG_LINES]))

    def clear_away(self) -> None:
        """End whatever still runs and detach the mount; for a teardown after anything."""
        if self._process is not None:
            self._process.kill()
            with suppress(MountError):
                self._wait_until_dead(self._process)
        with suppress(MountError):
            self._ended()
        self.detach()

    def delete(self) -> None:
        """Give back the disk space; after `clear_away`."""
        assert mount_at(self.path) is None
        shutil.rmtree(self.folder)


@contextmanager
def mounted(folder: Path, *options: str, deadline_s: float) -> Iterator[Mount]:
    """Mount a drive in `folder` for all tests of a module; afterwards check, unmount and delete it.

    `options`: as `Mount.start`.
    """
    drive = Mount(folder, deadline_s=deadline_s)
    try:
        drive.start(*options)
        yield drive
        drive.finish()
    finally:
        drive.clear_away()
    drive.delete()

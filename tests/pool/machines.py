"""Machines that take turns with one drive: each has its own XDG folders, all have the same clouds.

Used through the fixture `make_machine`:
    laptop, desktop = make_machine(places), make_machine(places)
    laptop.make()                       # `cuckoo init`; its clouds are `places`
    laptop.start()                      # and all else that a Mount can do
    laptop.umount()
    desktop.recover(places[1])          # `cuckoo recover` with the passphrase, from one of the clouds
    desktop.start()
A machine without a drive never makes one by mounting, unlike other Mounts.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from attrs import evolve

from cuckoo_mount.config import DriveConfig, read_config, write_config
from cuckoo_mount.config.secrets import VALUE
from tests.mount.mounting import DEADLINE_S, Mount
from tests.pool.pooling import Place, PoolMount, folder_place
from tests.pool.surveys import Survey, as_copied, assert_same_survey, copy_exactly, make_varied_tree, survey

CLOUDS: Final = ("a", "b", "c")
PASSPHRASE: Final = "correct horse battery"
REFUSAL_TIMEOUT_S: Final = 60.0
WAIT_S: Final = 60.0
_FILE_OPTIONS: Final = ("--passphrase-file", "--recovery-key-file")
_POLL_S: Final = 0.05


class Machine(PoolMount):
    """One machine.  `passphrase_file`: what its user knows by heart; `wipe` does not take that away."""

    def __init__(
        self, folder: Path, places: Sequence[Place], *, redundancy: str = "2", deadline_s: float = DEADLINE_S
    ) -> None:
        super().__init__(folder, places, redundancy=redundancy, deadline_s=deadline_s)
        self.passphrase_file: Final = self.secret_file("passphrase", PASSPHRASE)
        self.is_encrypted = True

    def secret_file(self, name: str, text: str) -> Path:
        """Write a file of one line that only its owner may read."""
        file = self.folder / name
        file.touch(mode=0o600)
        file.write_text(f"{text}\n", "utf-8")
        return file

    # -- the drive on this machine --

    @property
    def has_drive(self) -> bool:
        """Whether this machine knows the drive."""
        return self.paths.config_file.exists()

    def make(self, *options: str) -> None:
        """Make the drive with `cuckoo init` and enter the clouds.  `options`: more for init's command line."""
        self.is_encrypted = "--no-encryption" not in options
        passphrase = ["--passphrase-file", str(self.passphrase_file)] if self.is_encrypted else []
        self.cuckoo("init", "--redundancy", self.redundancy, *passphrase, *options)
        config = read_config(self.paths)
        assert config is not None
        write_config(evolve(config, clouds=tuple(place.config for place in self.places)), self.paths)

    def configure(self, *, cache_limit: str | None = None) -> DriveConfig:
        """As `Mount.configure`, for a drive that was made or recovered."""
        assert self.has_drive, "there is no drive on this machine; make() or recover() it"
        return super().configure(cache_limit=cache_limit)

    def recover(
        self, place: Place | Path | str, *extra: str | Path, check: bool = True
    ) -> subprocess.CompletedProcess[bytes]:
        """Run `cuckoo recover` through one cloud.  `extra`: more options; one that names a file with a secret replaces
        the passphrase, and an unencrypted drive (`is_encrypted`) needs none."""
        door = self.door(place) if isinstance(place, Place) else [str(place)]
        given = any(option in _FILE_OPTIONS for option in extra)
        secret = [] if given or not self.is_encrypted else ["--passphrase-file", str(self.passphrase_file)]
        return self.cuckoo("recover", *door, *secret, *extra, check=check)

    def door(self, place: Place) -> list[str]:
        """Return the URL of a cloud, and the options with which its user opens it."""
        arguments = [place.config.url]
        for key, reference in place.config.secrets:
            file = self.secret_file(f"{place.name}.{key}", reference.removeprefix(VALUE))
            arguments += ["--secret", f"{key}=file:{file}"]
        for key, value in place.config.options:
            arguments += ["--option", f"{key}={value}"]
        return arguments

    def recovery_key(self) -> str:
        """Return what `cuckoo key show-recovery` prints."""
        return self.cuckoo("key", "show-recovery").stdout.decode().strip()

    def wipe(self) -> None:
        """Delete config, state, cache and data, as if the disk had been replaced; the drive is not mounted."""
        assert not self.is_running
        for name in ("config", "state", "cache", "data"):
            folder = self.folder / "xdg" / name
            shutil.rmtree(folder)
            folder.mkdir(mode=0o700)

    def leftovers(self) -> list[str]:
        """Return the files below config, state, cache and data; the lock and the log, which stay, are left out."""
        base = self.folder / "xdg"
        found = [
            file for name in ("config", "state", "cache", "data") for file in (base / name).rglob("*") if file.is_file()
        ]
        ours = (self.paths.lock, *self.paths.log.parent.glob("*"))
        return sorted(str(file.relative_to(base)) for file in found if file not in ours)

    # -- what is refused --

    def refused(self, status: int, *arguments: str | Path) -> str:
        """Run a `cuckoo` command that has to fail with `status` and one line on stderr; return that line."""
        return one_line(self.cuckoo(*arguments, check=False), status)

    def recovery_refused(self, status: int, place: Place | Path | str, *extra: str | Path) -> str:
        """As `refused`, for `recover`."""
        return one_line(self.recover(place, *extra, check=False), status)

    def start_refused(self, *options: str) -> str:
        """Mount, which has to fail with exit status 1 and one line; return that line."""
        return _start_refused(self, [*self._command, *options], 1)

    # -- the end --

    def ended(self) -> None:
        """Return when the daemon, which was asked to end by another way than `umount`, has."""
        assert self._process is not None, "not started"
        assert self._process.wait(WAIT_S) == 0
        self._ended()

    # -- a machine that sleeps --

    @contextmanager
    def asleep(self) -> Iterator[None]:
        """Stop the daemon inside the `with`, as a laptop whose lid is closed.  Nothing may touch the mount meanwhile.

        Its workers go on: what was given to them before is still put.
        """
        os.kill(self.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.pid, signal.SIGCONT)


class View(Mount):
    """The same drive mounted a second time on a machine, beside or instead of its own mount.

    Started with what makes it one: `view.start("--epoch", "3")`.  `epoch` is needed for the control socket.
    """

    def __init__(self, machine: Machine, epoch: int, *, deadline_s: float = DEADLINE_S) -> None:
        super().__init__(machine.folder / f"view{epoch}", drive=f"{machine.drive}.epoch{epoch}", deadline_s=deadline_s)
        self._machine: Final = machine
        self.epoch: Final = epoch

    @property
    def environment(self) -> dict[str, str]:
        """That of the machine, but for the folder of the socket, which this object expects below its own."""
        return self._machine.environment | {"XDG_RUNTIME_DIR": super().environment["XDG_RUNTIME_DIR"]}

    @property
    def _command(self) -> list[str]:
        program = [sys.executable, "-bb", "-m", "cuckoo_mount.cli.mount", str(self.path), "--foreground"]
        return [*program, "--drive", self._machine.drive, "--epoch", str(self.epoch)]

    def configure(self, *, cache_limit: str | None = None) -> DriveConfig:
        """Return the machine's configuration: a view has none of its own."""
        return self._machine.configure(cache_limit=cache_limit)

    def start_refused(self, status: int) -> str:
        """As `Machine.start_refused`."""
        return _start_refused(self, self._command, status)


def _start_refused(mount: Mount, command: Sequence[str], status: int) -> str:
    assert not mount.is_running
    try:
        done = mount.run(*command, "--log-level", "error", check=False, timeout_s=REFUSAL_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        mount.detach()
        raise AssertionError("it was mounted, or waits for something") from None
    assert done.returncode == status, done
    # In the foreground the log goes to the terminal, too.
    said = [line for line in done.stderr.decode().splitlines() if line.startswith("cuckoo-mount: ")]
    assert len(said) == 1, done
    return said[0]


def three_folders(root: Path) -> list[Place]:
    """Make three folders that are to be clouds, `CLOUDS`."""
    return [folder_place(root / "clouds", name) for name in CLOUDS]


def fill(machine: Machine, source: Path, *, files: int = 100, random_mib: int = 4) -> Survey:
    """Make a varied tree outside, copy it into the mounted drive, and `cuckoo sync`; return what the drive shows."""
    make_varied_tree(source, files=files, random_mib=random_mib)
    copy_exactly(source, machine.path)
    assert_same_survey(as_copied(survey(machine.path)), as_copied(survey(source)))
    machine.cuckoo("sync")
    return survey(machine.path)


def one_line(done: subprocess.CompletedProcess[bytes], status: int) -> str:
    """Return what a command that failed with `status` said, in one line."""
    said = done.stderr.decode()
    assert done.returncode == status, f"{done.returncode}: {done.stdout.decode()}{said}"
    assert done.stdout == b"", done.stdout
    assert said.startswith("cuckoo: "), said
    assert said.count("\n") == 1, said
    return said


def wait_until(holds: Callable[[], bool], what: str, *, timeout_s: float = WAIT_S) -> None:
    """Return when `holds()`.  Fails after `timeout_s`."""
    end = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < end, f"after {timeout_s:.0f} s still not: {what}"
        time.sleep(_POLL_S)

"""What is compared: something that is mounted at `mnt`, and how its cache is emptied.  The rivals are in rivals.py."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Final

from benchmarks.processes import cpu_seconds, detach, end, run, start, wait_for_mount

HERE: Final = Path(__file__).resolve().parent
SEND_TIMEOUT_S: Final = 900.0


class Peer(ABC):
    """One file system in a folder of its own.  `log`: what its daemon says.

    `keeps_content`: whether it can be mounted anew with an empty cache.
    """

    name: ClassVar[str]
    keeps_content: ClassVar[bool] = True

    def __init__(self, folder: Path) -> None:
        self.folder: Final = folder
        self.mnt: Final = folder / "mnt"
        self.mnt.mkdir(parents=True)
        self.log: Final = open(folder / "log", "ab")  # noqa: SIM115 - open as long as the peer; see give_up
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def prepare(self) -> None:
        """Make what is mounted later.  Raises: Failed."""

    @abstractmethod
    def mount(self) -> None:
        """Return when the mountpoint answers.  Raises: Failed."""

    @abstractmethod
    def send(self) -> None:
        """Return when everything written is where it stays.  Raises: Failed."""

    @abstractmethod
    def unmount(self) -> None:
        """Return when the daemon has ended.  Raises: Failed."""

    @abstractmethod
    def empty_cache(self) -> None:
        """Throw away what can be got again; not mounted."""

    @property
    def is_running(self) -> bool:
        """Whether there is a daemon that can be asked."""
        return self._process is not None

    def upcalls(self) -> Counter[str]:
        """Return how often the kernel asked so far, by operation; empty if the peer does not count."""
        return Counter()

    def cpu_seconds(self) -> float:
        """Return the CPU time of the daemon and its helpers so far."""
        return 0.0 if self._process is None else cpu_seconds(self._process.pid)

    def give_up(self) -> None:
        """Take away mount and daemon, whatever state they are in."""
        detach(self.mnt)
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait(60)
        self.log.close()

    def _start(self, command: Sequence[str | Path], environment: dict[str, str] | None = None) -> None:
        self._process = start(command, log=self.log, environment=environment)
        wait_for_mount(self.mnt, self._process)

    def _ended(self) -> None:
        if self._process is not None:
            end(self._process)
            self._process = None


class Folder(Peer):
    """A folder of the disk: what all others are compared with."""

    name = "folder"

    def prepare(self) -> None: ...

    def mount(self) -> None: ...

    def send(self) -> None:
        run(["sync", "-f", self.mnt], timeout_s=SEND_TIMEOUT_S)

    def unmount(self) -> None:
        self.send()

    def empty_cache(self) -> None:
        """Have the kernel forget the files' pages."""
        for path in self.mnt.rglob("*"):
            if path.is_file():
                with open(path, "rb") as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class Floor(Peer):
    """floor.py: what pyfuse3 and trio allow."""

    name = "floor"
    keeps_content = False

    def prepare(self) -> None: ...

    def mount(self) -> None:
        self._start([sys.executable, HERE / "floor.py", self.mnt])

    def send(self) -> None: ...

    def unmount(self) -> None:
        run(["fusermount3", "-u", self.mnt], timeout_s=60, log=self.log)
        self._ended()

    def empty_cache(self) -> None: ...


class Cuckoo(Peer):
    """cuckoo-mount over a folder as its one cloud, which `cuckoo-mount` itself makes."""

    name = "cuckoo"
    drive: ClassVar[str] = "bench"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.mount_options: tuple[str, ...] = ()
        self._cache = folder / "cache"
        places = {"CONFIG_HOME": "config", "STATE_HOME": "state", "DATA_HOME": "data", "CACHE_HOME": "cache"}
        self._environment = {f"XDG_{key}": str(folder / name) for key, name in places.items()}
        # In the user's own runtime folder a drive of the same name could be meant.
        self._environment["XDG_RUNTIME_DIR"] = str(folder / "run")

    def prepare(self) -> None:
        (self.folder / "run").mkdir(mode=0o700)

    def mount(self) -> None:
        command: list[str | Path] = ["cuckoo-mount", self.mnt, "--drive", self.drive, "--foreground"]
        self._start([*command, *self.mount_options], self._environment)

    def send(self) -> None:
        self._ask("sync")

    def unmount(self) -> None:
        self._ask("umount")
        self._ended()

    def empty_cache(self) -> None:
        shutil.rmtree(self._cache, ignore_errors=True)

    def upcalls(self) -> Counter[str]:
        if not self.is_running:
            return Counter()
        return Counter(json.loads(self._ask("status", "--json"))["fuse"]["upcalls"])

    def _ask(self, command: str, *arguments: str) -> str:
        return run(
            ["cuckoo", command, "--drive", self.drive, *arguments],
            timeout_s=SEND_TIMEOUT_S,
            log=self.log,
            environment=self._environment,
        )

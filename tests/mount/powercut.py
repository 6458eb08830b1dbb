"""A drive whose state, cache and configuration lie on disks that lose power when it is "killed".

Used by the power-cut test in place of `Mount`: `kill` cuts the power of the machine, as far as the daemon can tell.
The cloud is another machine and the programs' journals are outside, so neither loses anything.
"""

from __future__ import annotations

import os
import random
import secrets
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from tests.mount.disks import ROOT, Disk, Flusher, Losses
from tests.mount.mounting import READY_TIMEOUT_S, Mount


class PoweredMount(Mount):
    """As `Mount`.  `kinds`: file systems of the disk for state and configuration, and of one for the cache.

    With one kind only the cache lies on the same file system as the state.  `cache_losses`: how often the cache folder
    was deleted after a cut, as anybody may.  `deletes_cache`, `is_flushing`: whether that is done, and whether parts
    of files are written out by dice.
    """

    def __init__(self, folder: Path, kinds: tuple[str, ...], seed: int) -> None:
        super().__init__(folder)
        self._choose: Final = random.Random(seed)
        self._boot_id: Final = folder / "boot_id"
        self._flusher: Flusher | None = None
        self._ending: list[int] = []
        self.cache_losses = 0
        self.deletes_cache = self.is_flushing = True
        self.disks: Final = [
            Disk(folder / f"disk {number}", kind, random.Random(self._choose.random()))
            for number, kind in enumerate(kinds)
        ]
        self._boot()
        for name, disk in (("config", self.disks[0]), ("state", self.disks[0]), ("cache", self.disks[-1])):
            (folder / "xdg" / name).rmdir()
            (disk.path / name).mkdir(mode=0o700)
            (folder / "xdg" / name).symlink_to(disk.path / name)
        for disk in self.disks:
            disk.power_off()
        self._boot()

    @property
    def losses(self) -> Losses:
        """Of all disks together."""
        found = [disk.losses for disk in self.disks]
        return Losses(
            max(losses.cuts for losses in found),
            sum(losses.flushes for losses in found),
            sum(losses.writes for losses in found),
            sum(losses.dropped for losses in found),
            sum(losses.torn for losses in found),
        )

    @property
    def environment(self) -> dict[str, str]:
        return super().environment | {"PYTHONPATH": str(ROOT)}

    @property
    def _command(self) -> list[str]:
        program = [sys.executable, "-bb", "-m", "tests.mount.booting", str(self._boot_id)]
        return [*program, str(self.path), "--foreground", "--drive", self.drive]

    def start(self, *options: str, cache_limit: str | None = None) -> None:
        super().start(*options, cache_limit=cache_limit)
        if self.is_flushing:
            self._flusher = Flusher([self.paths.state, self.paths.cache], self._choose.random())

    def umount(self, *, wait: bool = True) -> None:
        super().umount(wait=wait)
        self._stop_flusher()

    def kill(self, *, detach: bool = True) -> None:
        """Cut the power, and boot again."""
        self._cut(self.pid)
        super().kill(detach=detach)
        self._boot_after_cut()

    def start_and_kill(self, after_s: float) -> None:
        """Start the daemon and cut the power so long afterwards."""
        process = self._started_for(after_s)
        self._cut(process.pid)
        process.kill()
        process.wait(READY_TIMEOUT_S)
        self.detach()
        self._boot_after_cut()

    def cut_while_unmounted(self) -> None:
        """Cut the power of a machine on which the drive is not mounted."""
        assert not self.is_running
        for disk in self.disks:
            disk.hold()
        for disk in self.disks:
            disk.cut()
        self._boot_after_cut()

    def delete_cache(self) -> None:
        """Delete the cache folder, while the drive is not mounted."""
        shutil.rmtree(self.paths.cache, ignore_errors=True)
        self.cache_losses += 1

    def clear_away(self) -> None:
        super().clear_away()
        self._stop_flusher()
        for disk in self.disks:
            disk.clear_away()

    def _cut(self, pid: int) -> None:
        """The moment.  From here on no process of the daemon does anything."""
        for disk in self.disks:
            disk.hold()
        pids: list[int] = []
        end = time.monotonic() + 1.0
        # The daemon may just be starting a worker.
        while found := [one for one in (pid, *_descendants(pid)) if one not in pids]:
            pids += found
            for one in found:
                _signal(one, signal.SIGSTOP)
            while not all(_is_stopped(one) for one in found) and time.monotonic() < end:
                time.sleep(0.001)
        for disk in self.disks:
            disk.cut()
        self._ending = pids[1:]
        for one in self._ending:
            _signal(one, signal.SIGKILL)
        self._stop_flusher()

    def _stop_flusher(self) -> None:
        if self._flusher is not None:
            self._flusher.stop()
            self._flusher = None

    def _boot_after_cut(self) -> None:
        end = time.monotonic() + READY_TIMEOUT_S
        while any(_is_alive(pid) for pid in self._ending):
            assert time.monotonic() < end, "a worker does not end"
            time.sleep(0.005)
        for disk in self.disks:
            disk.unplug()
        self._boot()
        if self.deletes_cache and self._choose.random() < 0.3:
            self.delete_cache()

    def _boot(self) -> None:
        self._boot_id.write_text(secrets.token_hex(16), "ascii")
        for disk in self.disks:
            disk.power_on()


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _is_alive(pid: int) -> bool:
    try:
        return _field(Path(f"/proc/{pid}"), 2) not in "ZX"
    except OSError:
        return False


def _is_stopped(pid: int) -> bool:
    """Return whether no thread of a process will do anything: it is stopped, or waits for a disk and will be then."""
    try:
        return all(_field(task, 2) in "TtDZX" for task in Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return True


def _descendants(pid: int) -> Iterator[int]:
    parents = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            with suppress(OSError):
                parents[int(folder.name)] = int(_field(folder, 3))
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    yield from found[1:]


def _field(folder: Path, number: int) -> str:
    """Return a field of /proc/…/stat, after the name; see proc(5)."""
    return (folder / "stat").read_text("ascii", "replace").rpartition(")")[2].split()[number - 2]

"""A drive on which is worked and which crashes, again and again; what is found each time is judged.

Used by the kill test and the power-cut test, which differ in how `Mount.kill` ends the daemon.  Three kinds of work run
on the mount (cuckoo_mount/testing/killing.py: new files; overwriting in place what is on the cloud; truncate, rename
over, unlink), and an rsync, with a small cache, so that packing and eviction go on meanwhile.
After each crash the mount is made anew, and what is found is compared with the journals (`Expected`), then taken
as the state that the next one may not change.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from attrs import define

from cuckoo_mount.testing.killing import KINDS, OLD_TIME_S, THREADS, thread_name
from tests.mount import committing
from tests.mount.mounting import ControlError, Mount, MountError
from tests.mount.promises import Expected, Tree, look, read_journal

SEED_VARIABLE: Final = "CUCKOO_KILL_SEED"
SOURCE_FILES: Final = 40


class Source:
    """A tree that rsync copies to the mount; a file that changes keeps its size and gets another mtime."""

    def __init__(self, folder: Path, choose: random.Random) -> None:
        self.folder: Final = folder
        self._choose = choose
        self._clock_s = OLD_TIME_S
        (folder / "deep" / "er").mkdir(parents=True)
        for number in range(SOURCE_FILES):
            size = choose.choice((choose.randrange(3000), choose.randrange(200_000), choose.randrange(600_000)))
            self._write(self._path(number), size + (number == 0) * 1_500_000)

    def _path(self, number: int) -> Path:
        return self.folder.joinpath(*("deep", "er")[: number % 3], f"file {number}")

    def _write(self, path: Path, size: int) -> None:
        self._clock_s += 2  # rsync compares whole seconds
        path.write_bytes(self._choose.randbytes(size))
        os.utime(path, (self._clock_s, self._clock_s))

    def change(self) -> None:
        """Give a quarter of the files other bytes."""
        for number in self._choose.sample(range(SOURCE_FILES), SOURCE_FILES // 4):
            self._write(self._path(number), self._path(number).stat().st_size)

    def problems(self, copy: Path) -> Iterator[str]:
        """Yield a line for each file of the copy that rsync's quick check would believe, and that has other bytes."""
        for number in range(SOURCE_FILES):
            path = self._path(number)
            other = copy / path.relative_to(self.folder)
            with suppress(FileNotFoundError):
                here, there = path.stat(), other.stat()
                same = (here.st_size, int(here.st_mtime)) == (there.st_size, int(there.st_mtime))
                if same and path.read_bytes() != other.read_bytes():
                    yield f"{other}: size and mtime as in the source, but other bytes"


def end_all(workers: list[subprocess.Popen[bytes]]) -> None:
    """Return when all have ended by themselves, as the mount did; what has not is killed, and that is a failure."""
    late = []
    for worker in workers:
        try:
            worker.wait(30)
        except subprocess.TimeoutExpired:
            late.append(worker.args)
            worker.kill()
            worker.wait(30)
    assert not late, "they did not notice that the mount ended"


def _wait_a_little(worker: subprocess.Popen[bytes]) -> None:
    with suppress(subprocess.TimeoutExpired):
        worker.wait(0.01)


class Disturber:
    """Sends and evicts everything, again and again, while the work goes on."""

    def __init__(self, mount: Mount, seed: int, ending: Path) -> None:
        self._mount = mount
        self._choose = random.Random(seed)
        self._ending = ending
        self._over = threading.Event()
        self._failures: list[Exception] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._over.wait(self._choose.uniform(0.05, 0.5)):
            try:
                if self._choose.random() < 0.5:
                    self._mount.sync()
                else:
                    self._mount.evict()
            except (OSError, MountError, ControlError) as error:
                if not self._ending.exists():
                    self._failures.append(error)
                return

    def stop(self) -> None:
        """Return when nothing is asked any more.  Raises: what failed before the kill."""
        self._over.set()
        self._thread.join()
        for failure in self._failures:
            raise failure


@define
class Tally:
    """What was seen, over all kills."""

    kills: int = 0
    kills_with_pending: int = 0
    kills_with_loss: int = 0
    kills_while_packing: int = 0
    promises: int = 0
    commits: int = 0
    at_risk: int = 0
    lost: int = 0
    packs: int = 0
    evicted_bytes: int = 0


class Trial:
    """A drive, what is known to be on it, and the work that is done on it.  `programs`: kinds of committing.py."""

    def __init__(self, mount: Mount, seed: int, *, programs: tuple[str, ...] = ()) -> None:
        self.mount: Final = mount
        self.programs: Final = programs
        self.choose: Final = random.Random(seed)
        self.tally: Final = Tally()
        self.source: Final = Source(mount.folder / "source", self.choose)
        self.known: dict[str, Tree] = {}
        self._copy = mount.path / "copy"

    @property
    def threads(self) -> list[str]:
        return [thread_name(kind, number) for kind in KINDS for number in range(THREADS)]

    def seed(self) -> None:
        """Fill the drive, and send everything to the cloud."""
        for name in self.threads:
            folder = self.mount.path / name
            folder.mkdir()
            count, most = {"new": (0, 0), "overwrite": (3, 2_500_000), "names": (8, 900_000)}[name.split("-")[0]]
            for number in range(count):
                (folder / f"seeded {number}").write_bytes(self.choose.randbytes(self.choose.randrange(most // 2, most)))
        assert self.mount.sync()["bytes"] == 0
        assert self.mount.evict() > 0
        self.known = {name: look(self.mount.path / name) for name in self.threads}
        self.mount.evict()
        self.mount.drop_caches()

    def work_and_kill(self, number: int) -> None:
        """Let everything work, kill the daemon at a random moment, mount again, compare."""
        journals = self.mount.folder / f"journals {number}"
        journals.mkdir()
        ending = journals / "ending"
        self.source.change()
        workers = [self._start_worker(kind, journals, ending, f"{self.choose.random()}") for kind in KINDS]
        workers.append(self._start_rsync(in_place=number % 2 == 0))
        workers += [committing.start(kind, self.mount.path / kind, journals / kind) for kind in self.programs]
        disturber = Disturber(self.mount, number, ending)
        try:
            self._wait_for_work(journals, workers)
            ending_moment = time.monotonic() + self.choose.uniform(0.0, 1.0)
            status = self.mount.status()
            while time.monotonic() < ending_moment:
                status = self.mount.status()
            ending.touch()
            # Not detached before everybody has noticed: they would go on in the empty folder below.
            self.mount.kill(detach=False)
        finally:
            disturber.stop()
            end_all(workers)
        self._count(status)
        self.mount.detach()
        if self.choose.random() < 0.2:
            self.mount.start_and_kill(self.choose.uniform(0.1, 1.0))
        self.mount.start(cache_limit=self.choose.choice(("16MiB", "16MiB", "64MiB")))
        self._compare(journals)
        shutil.rmtree(journals)

    def _start_worker(self, kind: str, journals: Path, ending: Path, seed: str) -> subprocess.Popen[bytes]:
        program = [sys.executable, "-m", "cuckoo_mount.testing.killing", kind]
        return subprocess.Popen([*program, *map(str, (self.mount.path, journals, ending)), seed], cwd="/")

    def _start_rsync(self, *, in_place: bool) -> subprocess.Popen[bytes]:
        options = ["--inplace"] if in_place else []
        program = ["rsync", "-a", *options, f"{self.source.folder}/", f"{self._copy}/"]
        return subprocess.Popen(program, cwd="/", stderr=subprocess.DEVNULL)

    def _wait_for_work(self, journals: Path, workers: list[subprocess.Popen[bytes]]) -> None:
        """Return when every thread has done something."""
        end = time.monotonic() + 60
        while not all((journals / name).exists() and (journals / name).stat().st_size > 500 for name in self.threads):
            assert time.monotonic() < end, "the work does not begin"
            assert all(worker.poll() is None for worker in workers[: len(KINDS)]), "the work ended before the kill"
            _wait_a_little(workers[0])
        while not all(committing.promised(journals / kind) for kind in self.programs):
            assert time.monotonic() < end, "no program commits"
            _wait_a_little(workers[0])

    def _count(self, status: dict[str, dict[str, int]]) -> None:
        tally = self.tally
        tally.kills += 1
        tally.kills_with_pending += status["pending"]["bytes"] > 0
        tally.kills_while_packing += any((self.mount.paths.state / "staging").iterdir())
        tally.packs += status["cache"]["packs_sent"]
        tally.evicted_bytes += status["cache"]["evicted_bytes"]

    def _compare(self, journals: Path) -> None:
        """Fail if a promise is broken; then take what is there as promised."""
        self.mount.check()
        problems, at_risk, lost = [], 0, 0
        for name in self.threads:
            expected = Expected(self.known[name])
            expected.replay(read_journal(journals / name))
            self.known[name] = after = look(self.mount.path / name)
            problems += [f"{name}/{line}" for line in expected.problems(after)]
            at_risk += expected.at_risk
            lost += expected.lost(after)
            self.tally.promises += expected.promises
        self.tally.at_risk += at_risk
        self.tally.lost += lost
        self.tally.kills_with_loss += lost > 0
        for kind in self.programs:
            self.tally.commits += committing.promised(journals / kind)
            problems += committing.problems(kind, self.mount.path / kind, journals / kind)
        problems += self.source.problems(self._copy)
        assert not problems, "\n".join(problems)
        self._repair_copy()
        self.mount.check()

    def _repair_copy(self) -> None:
        self.mount.run("rsync", "-a", "--delete", f"{self.source.folder}/", f"{self._copy}/")
        self.compare_copy()

    def compare_copy(self) -> None:
        """The copy is what rsync made of it the second time."""
        assert self.mount.run("rsync", "-nia", "--delete", f"{self.source.folder}/", f"{self._copy}/").stdout == b""
        here, there = look(self.source.folder), look(self._copy)
        assert here.keys() == there.keys()
        assert [path for path in here if here[path].data != there[path].data] == []

    def compare_all(self) -> None:
        """Nothing has changed since the last comparison."""
        for name in self.threads:
            after = look(self.mount.path / name)
            assert after.keys() == self.known[name].keys()
            assert [path for path in after if after[path].data != self.known[name][path].data] == []
        self.compare_copy()

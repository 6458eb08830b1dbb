"""A drive on which is worked and which crashes, again and again; what is found each time is judged.

Used by the kill test and the power-cut test, which differ in how `Mount.kill` ends the daemon.  Three kinds of work run
on the mount (cuckoo_mount/testing/killing.py: new files; overwriting in place what is on the cloud; truncate, rename
over, unlink), taking turns, and an rsync, with a small cache, so that packing and eviction go on meanwhile.
After each crash the mount is made anew, and what is found is compared with the journals (`Expected`), then taken
as the state that the next one may not change.
"""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Final

from attrs import define, field

from cuckoo_mount.drive import METADATA_FILE
from cuckoo_mount.testing.killing import KINDS, OLD_TIME_S, THREADS, thread_name
from tests.mount import committing
from tests.mount.flaky import FlakyClouds
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
    """Sends and evicts everything, again and again, while the work goes on.

    With flaky clouds: collects, too, first of all, and what a command then says about the clouds is no failure.
    """

    def __init__(self, mount: Mount, seed: int, ending: Path, *, is_flaky: bool) -> None:
        self.collected: Final[Counter[str]] = Counter()
        self.done = self.refused = 0
        self._mount = mount
        self._choose = random.Random(seed)
        self._ending = ending
        self._is_flaky = is_flaky
        self._doing = ""
        self._over = threading.Event()
        self._failures: list[Exception] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    @property
    def is_collecting(self) -> bool:
        """Whether packs are compacted and deleted just now."""
        return self._doing == "gc"

    def _run(self) -> None:
        kinds = ("gc", "gc", "sync", "evict") if self._is_flaky else ("sync", "evict")
        while not self._over.wait(self._choose.uniform(0.05, 0.5)):
            self._doing = self._choose.choice(kinds) if self.done else kinds[0]
            try:
                self._disturb()
            except (OSError, MountError, ControlError) as error:
                if self._ending.exists():
                    return  # with what it was doing
                if not (self._is_flaky and isinstance(error, ControlError)):
                    self._failures.append(error)
                    return
                self.refused += 1
            self.done += 1
            self._doing = ""

    def _disturb(self) -> None:
        if self._doing == "sync":
            self._mount.sync()
        elif self._doing == "evict":
            self._mount.evict()
        else:
            keep = self._choose.choice((None, 3, 1)) if self.done else 1
            self.collected.update(self._mount.control("gc", keep=keep))

    def stop(self) -> None:
        """Return when nothing is asked any more.  Raises: what failed before the kill."""
        self._over.set()
        self._thread.join()
        for failure in self._failures:
            raise failure


@define
class Tally:
    """What was seen, over all kills.

    By kind of work: `turns`, how much was done; `promises`; `kills_at_risk`, kills that met changes no fsync had
    returned for.  `overwritten`: times a chunk was overwritten in place that had been on the clouds before.
    """

    kills: int = 0
    kills_with_pending: int = 0
    kills_with_loss: int = 0
    kills_while_packing: int = 0
    kills_while_collecting: int = 0
    turns: Counter[str] = field(factory=Counter)
    promises: Counter[str] = field(factory=Counter)
    kills_at_risk: Counter[str] = field(factory=Counter)
    overwritten: int = 0
    commits: int = 0
    at_risk: int = 0
    lost: int = 0
    packs: int = 0
    packs_compacted: int = 0
    packs_deleted: int = 0
    refused: int = 0
    evicted_bytes: int = 0


class Trial:
    """A drive, what is known to be on it, and the work that is done on it.

    `programs`: kinds of committing.py.  `clouds`: they are troubled until the mount after the crash is made.
    """

    def __init__(
        self, mount: Mount, seed: int, *, programs: tuple[str, ...] = (), clouds: FlakyClouds | None = None
    ) -> None:
        self.mount: Final = mount
        self.programs: Final = programs
        self.choose: Final = random.Random(seed)
        self.tally: Final = Tally()
        self.source: Final = Source(mount.folder / "source", self.choose)
        self.known: dict[str, Tree] = {}
        self.commits: Final = dict.fromkeys(programs, 0)
        self._clouds: Final = clouds
        # Where sending may take long, the cache has room for all of it: else programs are told that there is none.
        self._cache_limits: Final = ("16MiB", "16MiB", "64MiB") if clouds is None else ("96MiB", "192MiB")
        self._copy = mount.path / "copy"

    @property
    def threads(self) -> list[str]:
        return [thread_name(kind, number) for kind in KINDS for number in range(THREADS)]

    def seed(self) -> None:
        """Fill the drive, and send everything to the cloud."""
        for name in self.threads:
            folder = self.mount.path / name
            folder.mkdir()
            count, most = {"new": (0, 0), "overwrite": (3, 2_500_000), "names": (8, 900_000)}[_kind(name)]
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
        stored = self._stored_chunks()
        if self._clouds is not None:
            if self._clouds.is_next_lying:
                self._heal()
            self._clouds.trouble()
        workers = [self._start_worker(journals, ending, f"{self.choose.random()}")]
        workers.append(self._start_rsync(in_place=number % 2 == 0))
        workers += [committing.start(kind, self.mount.path / kind, journals / kind) for kind in self.programs]
        disturber = Disturber(self.mount, number, ending, is_flaky=self._clouds is not None)
        try:
            self._wait_for_work(journals, workers, disturber)
            ending_moment = time.monotonic() + self.choose.uniform(0.0, 1.0)
            status = self.mount.status()
            while time.monotonic() < ending_moment:
                _wait_a_little(workers[0])
                status = self.mount.status()
            self.tally.kills_while_collecting += disturber.is_collecting
            ending.touch()
            # Not detached before everybody has noticed: they would go on in the empty folder below.
            self.mount.kill(detach=False)
        finally:
            if self.mount.is_running:  # it has failed, and nobody is to go on
                ending.touch()
                self.mount.kill(detach=False)
            disturber.stop()
            end_all(workers)
        self._count(status, disturber)
        if number % 2 == 0:  # else it is mounted over
            self.mount.detach()
            if self.choose.random() < 0.4:
                self.mount.start_and_kill(self.choose.uniform(0.1, 1.0))
        self.mount.start(cache_limit=self.choose.choice(self._cache_limits))
        if self._clouds is not None:
            self._clouds.work()
        self._compare(journals, stored)
        shutil.rmtree(journals)

    def _heal(self) -> None:
        """Return when everything has two copies."""
        end = time.monotonic() + 120
        while self.mount.status()["packs"]["degraded"]:
            assert time.monotonic() < end, "packs are not healed"
            time.sleep(0.05)

    def _stored_chunks(self) -> Mapping[str, Collection[int]]:
        """Return which chunks of the files that are overwritten in place are on the clouds, by path."""
        folders = [self.mount.path / name for name in self.threads if _kind(name) == "overwrite"]
        files = {f"{folder.name}/{path}": folder / path for folder in folders for path in self.known[folder.name]}
        with closing(sqlite3.connect(f"file:{self.mount.paths.state / METADATA_FILE}?mode=ro", uri=True)) as database:
            sql = "SELECT idx FROM chunk JOIN version USING (version) WHERE ino = ? AND pack > 0"
            return {
                path: {index for (index,) in database.execute(sql, (file.stat().st_ino,))}
                for path, file in files.items()
            }

    def _start_worker(self, journals: Path, ending: Path, seed: str) -> subprocess.Popen[bytes]:
        program = [sys.executable, "-m", "cuckoo_mount.testing.killing"]
        return subprocess.Popen([*program, *map(str, (self.mount.path, journals, ending)), seed], cwd="/")

    def _start_rsync(self, *, in_place: bool) -> subprocess.Popen[bytes]:
        options = ["--inplace"] if in_place else []
        program = ["rsync", "-a", *options, f"{self.source.folder}/", f"{self._copy}/"]
        return subprocess.Popen(program, cwd="/", stderr=subprocess.DEVNULL)

    def _wait_for_work(self, journals: Path, workers: list[subprocess.Popen[bytes]], disturber: Disturber) -> None:
        """Return when every thread and program has done something."""
        end = time.monotonic() + 120
        while not all((journals / name).exists() and (journals / name).stat().st_size > 500 for name in self.threads):
            assert time.monotonic() < end, "the work does not begin"
            assert workers[0].poll() is None, "the work ended before the kill"
            _wait_a_little(workers[0])
        while not all(committing.promised(journals / kind) for kind in self.programs):
            said = [path.read_text("utf-8", "replace") for path in journals.glob("*.errors")]
            assert not any(said), f"a program failed before the kill: {said}"
            assert time.monotonic() < end, "no program commits"
            _wait_a_little(workers[0])
        while self._clouds is not None and self.tally.kills and not self._has_collected(disturber):
            assert time.monotonic() < end, "nothing is compacted or deleted"
            _wait_a_little(workers[0])

    def _has_collected(self, disturber: Disturber) -> bool:
        """Whether packs were compacted and deleted until now; once is enough."""
        compacted = self.tally.packs_compacted + disturber.collected["packs_compacted"]
        deleted = self.tally.packs_deleted + disturber.collected["packs_deleted"]
        return compacted > 0 and deleted > 0

    def _count(self, status: dict[str, dict[str, int]], disturber: Disturber) -> None:
        tally = self.tally
        tally.kills += 1
        tally.kills_with_pending += status["pending"]["bytes"] > 0
        tally.kills_while_packing += any((self.mount.paths.state / "staging").iterdir())
        tally.packs += status["cache"]["packs_sent"]
        tally.packs_compacted += disturber.collected["packs_compacted"]
        tally.packs_deleted += disturber.collected["packs_deleted"]
        tally.refused += disturber.refused
        tally.evicted_bytes += status["cache"]["evicted_bytes"]

    def _compare(self, journals: Path, stored: Mapping[str, Collection[int]]) -> None:
        """Fail if a promise is broken; then take what is there as promised."""
        self.mount.check()
        problems, at_risk, lost = [], Counter[str](), 0
        for name in self.threads:
            expected = Expected(self.known[name])
            expected.replay(read_journal(journals / name))
            self.known[name] = after = look(self.mount.path / name)
            problems += [f"{name}/{line}" for line in expected.problems(after)]
            lost += expected.lost(after)
            at_risk[_kind(name)] += expected.at_risk
            self.tally.turns[_kind(name)] += expected.turns
            self.tally.promises[_kind(name)] += expected.promises
            self.tally.overwritten += sum(
                index in stored[f"{name}/{path}"] for path, index in expected.overwritten if f"{name}/{path}" in stored
            )
        self.tally.at_risk += at_risk.total()
        self.tally.kills_at_risk.update(kind for kind in KINDS if at_risk[kind])
        self.tally.lost += lost
        self.tally.kills_with_loss += lost > 0
        for kind in self.programs:
            self.commits[kind] = max(self.commits[kind], committing.promised(journals / kind))
            self.tally.commits += len(committing.numbers(journals / kind))
        problems += self._problems_of_programs()
        problems += self.source.problems(self._copy)
        assert not problems, "\n".join(problems)
        self._repair_copy()
        self.mount.check()

    def _problems_of_programs(self) -> Iterator[str]:
        for kind in self.programs:
            yield from committing.problems(kind, self.mount.path / kind, self.commits[kind])

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
        assert list(self._problems_of_programs()) == []


def _kind(name: str) -> str:
    """Return the kind of work of a thread."""
    return name.partition("-")[0]

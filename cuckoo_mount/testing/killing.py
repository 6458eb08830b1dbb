"""Work for crash tests: threads that create, overwrite, cut, rename and remove, and note what fsync promised them.

A program of its own, `python -m cuckoo_mount.testing.killing FOLDER JOURNALS ENDING SEED`, run by
tests/mount/test_kill.py on a mount whose daemon it kills.  Standard library only, so that it starts quickly.
Every thread works in a folder of its own and has a journal of its own, outside the mount: JSON lines, a `Step` before
an operation, {"done": number} after it, {"turn": number} after some that belong together.  An fsync that is done is a
promise; what was begun may have happened.  The kinds of work take turns, so that each is a third of all.
The bytes of a write are `content(…)`, so that the journal need not hold them.  ENDING is a file that the test makes
before it kills: an error before that is the daemon's fault and goes into the journal as {"error": …}.
"""

from __future__ import annotations

import json
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypedDict

KINDS: Final = ("new", "overwrite", "names")
THREADS: Final = 2
SMALL_BYTES: Final = 5_000
MEDIUM_BYTES: Final = 300_000
LARGE_BYTES: Final = 2_000_000
FILES_PER_FOLDER: Final = 12
FILES_MAX: Final = 40
LEAD: Final = 2
"""So many turns a kind may be ahead of another one."""
PAUSE_S: Final = 0.1
"""Each thread waits so long between two turns: others have to get on, too."""
OLD_TIME_S: Final = 1_000_000_000
"""What is stamped with times of its own gets them from here on, long before now."""


class Step(TypedDict, total=False):
    """An operation that begins.  Paths are relative to the thread's folder; `file` names an inode in the journal."""

    number: int
    what: str
    """create, write, truncate, utime, fsync, rename, unlink, mkdir, rmdir or fsyncdir."""
    file: str
    path: str
    target: str
    offset: int
    size: int
    mtime_ns: int


class Line(Step, total=False):
    """A line of a journal: a step that begins, or one of these."""

    done: int
    turn: int
    error: str


def content(file: str, number: int, size: int) -> bytes:
    """Return the bytes that step `number` writes to a file."""
    return random.Random(f"{file} {number}").randbytes(size)


def base_file(path: str) -> str:
    """Return how a journal names the file that was called `path` when the thread began."""
    return f"base {path}"


class Turns:
    """Keeps the kinds abreast.  For any number of threads."""

    def __init__(self, kinds: tuple[str, ...]) -> None:
        self._counts = dict.fromkeys(kinds, 0)
        self._changed = threading.Condition()
        self._is_over = False

    def take(self, kind: str) -> int:
        """Return the number of the next turn, when it has come; or at once when it is over."""
        with self._changed:
            while self._counts[kind] >= min(self._counts.values()) + LEAD and not self._is_over:
                self._changed.wait()
            self._counts[kind] += 1
            self._changed.notify_all()
            return self._counts[kind]

    def end(self) -> None:
        """Keep nobody waiting: one does not go on, and the others are to notice that by themselves."""
        with self._changed:
            self._is_over = True
            self._changed.notify_all()


class Worker:
    """One thread: a folder, a journal, and its operations.  `files`: what each name stands for, and how long it is."""

    def __init__(self, folder: str, journal: str, seed: str) -> None:
        self.random: Final = random.Random(seed)
        self.files: dict[str, str] = {}
        self.sizes: dict[str, int] = {}
        self.folders: list[str] = []
        self._folder = folder
        self._journal = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._number = 0

    def look(self) -> None:
        """Take what is in the folder as it is."""
        for place, folders, files in os.walk(self._folder):
            self.folders += [os.path.relpath(os.path.join(place, name), self._folder) for name in folders]
            for name in files:
                path = os.path.relpath(os.path.join(place, name), self._folder)
                self.files[path] = base_file(path)
                self.sizes[base_file(path)] = os.stat(self.at(path)).st_size
        self.folders.sort()

    def at(self, path: str) -> str:
        """Return where a path of the journal lies."""
        return os.path.join(self._folder, path)

    def note(self, line: Step | Line) -> None:
        """Append to the journal."""
        os.write(self._journal, json.dumps(line).encode() + b"\n")

    @contextmanager
    def step(self, step: Step) -> Iterator[int]:
        """Note that an operation begins, and, if nothing is raised, that it is done; give its number."""
        self._number += 1
        number = self._number
        step["number"] = number
        self.note(step)
        yield number
        self.note({"done": number})

    # -- operations --

    def create(self, path: str) -> int:
        file = f"{path} {self._number + 1}"
        with self.step(Step(what="create", file=file, path=path)):
            fd = os.open(self.at(path), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        self.files[path] = file
        self.sizes[file] = 0
        return fd

    def open(self, path: str, flags: int = os.O_RDWR) -> int:
        return os.open(self.at(path), flags)

    def rewrite(self, path: str) -> int:
        """open(2) with O_TRUNC."""
        file = self.files[path]
        with self.step(Step(what="truncate", file=file, size=0)):
            fd = self.open(path, os.O_WRONLY | os.O_TRUNC)
        self.sizes[file] = 0
        return fd

    def write(self, fd: int, file: str, offset: int, size: int) -> None:
        with self.step(Step(what="write", file=file, offset=offset, size=size)) as number:
            data = memoryview(content(file, number, size))
            while data:
                written = os.pwrite(fd, data, offset)
                data, offset = data[written:], offset + written
        self.sizes[file] = max(self.sizes[file], offset)

    def truncate(self, fd: int, file: str, size: int) -> None:
        with self.step(Step(what="truncate", file=file, size=size)):
            os.ftruncate(fd, size)
        self.sizes[file] = size

    def utime(self, fd: int, file: str) -> None:
        mtime_ns = (OLD_TIME_S + self._number) * 10**9
        with self.step(Step(what="utime", file=file, mtime_ns=mtime_ns)):
            os.utime(fd, ns=(mtime_ns, mtime_ns))

    def fsync(self, fd: int, file: str) -> None:
        with self.step(Step(what="fsync", file=file)):
            (os.fdatasync if self.random.random() < 0.3 else os.fsync)(fd)

    def sync_folder(self, path: str) -> None:
        with self.step(Step(what="fsyncdir", path=path)):
            fd = os.open(self.at(path), os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

    def rename(self, path: str, target: str) -> None:
        with self.step(Step(what="rename", path=path, target=target)):
            os.rename(self.at(path), self.at(target))
        self.files[target] = self.files.pop(path)

    def unlink(self, path: str) -> None:
        with self.step(Step(what="unlink", path=path)):
            os.unlink(self.at(path))
        del self.files[path]

    def mkdir(self, path: str) -> None:
        with self.step(Step(what="mkdir", path=path)):
            os.mkdir(self.at(path))
        self.folders.append(path)

    def rmdir(self, path: str) -> None:
        with self.step(Step(what="rmdir", path=path)):
            os.rmdir(self.at(path))
        self.folders.remove(path)

    # -- choices --

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def some_size(self) -> int:
        most = self.random.choices((SMALL_BYTES, MEDIUM_BYTES, LARGE_BYTES), (6, 3, 1))[0]
        return self.random.randrange(most)

    def fill(self, fd: int, file: str, size: int) -> None:
        """Write `size` bytes in up to three parts."""
        cuts = sorted(self.random.randrange(size + 1) for _ in range(self.random.randrange(3)))
        for start, end in zip([0, *cuts], [*cuts, size], strict=True):
            if end > start:
                self.write(fd, file, start, end - start)


def make_new_files(worker: Worker) -> None:
    """New files in new folders; what is old goes."""
    choose = worker.random
    if (
        not worker.folders
        or sum(os.path.dirname(path) == worker.folders[-1] for path in worker.files) >= FILES_PER_FOLDER
    ):
        worker.mkdir(f"{len(worker.folders)}-{choose.randrange(10**9)}")
        worker.sync_folder(".")
    folder = worker.folders[-1]
    path = f"{folder}/{choose.randrange(10**12)}"
    fd = worker.create(path)
    try:
        file = worker.files[path]
        worker.fill(fd, file, worker.some_size())
        durable = choose.choice(("nothing", "times", "file", "both", "both"))
        if durable == "times":
            worker.utime(fd, file)
        elif durable != "nothing":
            worker.fsync(fd, file)
    finally:
        os.close(fd)
    if durable == "both":
        worker.sync_folder(folder)
    if len(worker.files) > FILES_MAX:
        old = min(worker.files, key=lambda path: (worker.folders.index(os.path.dirname(path)), path))
        worker.unlink(old)
        if worker.chance(0.3):
            worker.sync_folder(os.path.dirname(old))
        elif not any(os.path.dirname(path) == os.path.dirname(old) for path in worker.files):
            worker.rmdir(os.path.dirname(old))


def overwrite_in_place(worker: Worker) -> None:
    """Parts of files that were there before, of some bytes or of whole chunks, at any offset."""
    path = worker.random.choice(sorted(worker.files))
    file = worker.files[path]
    fd = worker.open(path, worker.random.choice((os.O_RDWR, os.O_WRONLY)))
    try:
        for _ in range(worker.random.randrange(1, 5)):
            size = 1 + worker.random.choice((worker.some_size(), 1 << 20, 4095))
            offset = worker.random.randrange(worker.sizes[file])
            if worker.chance(0.3):
                offset = offset >> 20 << 20
            size = min(size, worker.sizes[file] - offset)
            worker.write(fd, file, offset, size)
            if worker.chance(0.3):
                worker.fsync(fd, file)
    finally:
        os.close(fd)


def change_names(worker: Worker) -> None:
    """Truncate, rename over, remove and make again."""
    paths = sorted(worker.files)
    path = worker.random.choice(paths)
    action = worker.random.choice(("truncate", "truncate", "rewrite", "replace", "replace", "unlink", "move"))
    if len(paths) > 2 * FILES_PER_FOLDER:
        action = "unlink"
    if action == "truncate":
        _truncate(worker, path)
    elif action == "unlink":
        if len(paths) > FILES_PER_FOLDER // 2:
            worker.unlink(path)
    elif action == "move":
        worker.rename(path, f"moved {worker.random.randrange(10**12)}")
    elif action == "rewrite":
        _fill_and_close(worker, worker.rewrite(path), worker.files[path])
    else:
        temporary = f"temporary {worker.random.randrange(10**12)}"
        fd = worker.create(temporary)
        _fill_and_close(worker, fd, worker.files[temporary])
        if worker.chance(0.8):
            worker.rename(temporary, path)
    if worker.chance(0.4):
        worker.sync_folder(".")


def _truncate(worker: Worker, path: str) -> None:
    file = worker.files[path]
    fd = worker.open(path)
    try:
        size = worker.random.choice((0, 1 << 20, worker.sizes[file] // 2, worker.some_size()))
        worker.truncate(fd, file, size)
        if worker.chance(0.5):
            worker.write(fd, file, worker.random.randrange(size + 1), worker.random.randrange(1, MEDIUM_BYTES))
        if worker.chance(0.5):
            worker.fsync(fd, file)
    finally:
        os.close(fd)


def _fill_and_close(worker: Worker, fd: int, file: str) -> None:
    try:
        worker.fill(fd, file, worker.some_size())
        if worker.chance(0.5):
            worker.fsync(fd, file)
    finally:
        os.close(fd)


STEPS: Final[dict[str, Callable[[Worker], None]]] = {
    "new": make_new_files,
    "overwrite": overwrite_in_place,
    "names": change_names,
}


def work(kind: str, turns: Turns, folder: str, journal: str, ending: str, seed: str) -> None:
    """Work until the mount is gone.  An error before `ending` exists is noted; later ones are what a kill brings."""
    worker = Worker(folder, journal, seed)
    try:
        worker.look()
        while True:
            time.sleep(PAUSE_S)
            turn = turns.take(kind)
            STEPS[kind](worker)
            worker.note({"turn": turn})
    except OSError as error:
        if not os.path.exists(ending):
            worker.note({"error": f"{error!r}"})
    except BaseException as error:
        worker.note({"error": f"{error!r}"})
        raise
    finally:
        turns.end()


def thread_name(kind: str, number: int) -> str:
    """Return the name of a thread's folder and journal."""
    return f"{kind}-{number}"


def main() -> None:
    """Run the threads of all kinds."""
    folder, journals, ending, seed = sys.argv[1:]
    turns = Turns(KINDS)
    threads = []
    for kind in KINDS:
        for number in range(THREADS):
            name = thread_name(kind, number)
            places = (os.path.join(folder, name), os.path.join(journals, name), ending)
            threads.append(threading.Thread(target=work, args=(kind, turns, *places, f"{seed} {name}"), name=name))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()

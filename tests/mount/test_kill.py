"""kill -9 at random moments: what fsync returned for is there afterwards, everything else is old, new or shorter.

Three kinds of work run on the mount (cuckoo_mount/testing/killing.py: new files; overwriting in place what is on the
cloud; truncate, rename over, unlink), and an rsync, with a small cache, so that packing and eviction go on meanwhile.
After each kill the mount is made anew, and what is found is compared with the journals (`Expected`), then taken
as the state that the next kill may not change.  The contract: docs/concurrency.md, "Crash table"; design §6.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import pytest
from attrs import define, field, frozen

from cuckoo_mount.testing.killing import KINDS, OLD_TIME_S, THREADS, Line, Step, base_file, content, thread_name
from tests.mount.mounting import ControlError, Mount, MountError

pytestmark = [pytest.mark.mount, pytest.mark.slow]

KILLS: Final = 12
KILLS_LONG: Final = 150
SEED_VARIABLE: Final = "CUCKOO_KILL_SEED"
BLOCK: Final = 4096
SOURCE_FILES: Final = 40
Tree = dict[str, "Found"]


@frozen
class Found:
    """What lies under a path of the mount; `data` None: a directory."""

    data: bytes | None
    mtime_ns: int


def look(folder: Path) -> Tree:
    """Return everything below a folder of the mount, read in full."""
    tree: Tree = {}
    for place, folders, files in os.walk(folder, onerror=_fail):
        for name in folders:
            tree[os.path.relpath(os.path.join(place, name), folder)] = Found(None, 0)
        for name in files:
            path = os.path.join(place, name)
            status = os.stat(path)
            with open(path, "rb") as file:
                data = file.read()
            assert len(data) == status.st_size, f"{path}: {status.st_size} bytes long, {len(data)} can be read"
            tree[os.path.relpath(path, folder)] = Found(data, status.st_mtime_ns)
    return tree


def _fail(error: OSError) -> None:
    raise error


@define(eq=False)
class Node:
    """What an inode may be: `contents[0]` is promised, each one after it may have replaced it, wholly or in part.

    `stamps`: content by the mtime that the program gave it then.  `is_whole_at`: under this name it was put over
    another file, and there it shows at least so much of `contents` (an index).
    """

    contents: list[bytes] = field(factory=lambda: [b""])
    is_folder: bool = False
    stamps: dict[int, bytes] = field(factory=dict)
    is_whole_at: dict[str, int] = field(factory=dict)

    def change(self, data: bytes) -> None:
        self.contents.append(data)

    def promise(self) -> None:
        del self.contents[:-1]
        self.is_whole_at = dict.fromkeys(self.is_whole_at, 0)

    def fits(self, path: str, found: Found | None) -> bool:
        """Return whether this may be what was found."""
        if found is None or found.data is None or self.is_folder:
            return found is not None and found.data is None and self.is_folder
        stamped = self.stamps.get(found.mtime_ns)
        if stamped is not None and len(stamped) == len(found.data) and stamped != found.data:
            return False  # rsync would not look again
        return is_mixture(found.data, self.contents[self.is_whole_at.get(path, 0) :])


def is_mixture(data: bytes, contents: list[bytes]) -> bool:
    """Return whether every byte is one that the file had at that place, and the length is between those it had.

    Zeros may be where one of the contents had ended: what a program or the kernel wrote there first was further behind.
    """
    if data in contents:
        return True
    lengths = [len(one) for one in contents]
    if len(contents) == 1 or not min(lengths) <= len(data) <= max(lengths):
        return False
    padded = [*contents, b"\0" * len(data)] if min(lengths) < len(data) else contents
    for start in range(0, len(data), BLOCK):
        block = data[start : start + BLOCK]
        blocks = [one[start : start + len(block)] for one in padded]
        if block in blocks:
            continue
        for position, byte in enumerate(block):
            if not any(position < len(one) and one[position] == byte for one in blocks):
                return False
    return True


@define(eq=False)
class Expected:
    """What one thread's folder may hold.  `names`: for each path what it may stand for; the first is promised."""

    before: Tree
    names: dict[str, list[Node | None]] = field(factory=dict)
    nodes: dict[str, Node] = field(factory=dict)
    promises: int = 0

    def __attrs_post_init__(self) -> None:
        for path, found in self.before.items():
            node = Node([found.data or b""], is_folder=found.data is None)
            self.nodes[base_file(path)] = node
            self.names[path] = [node]

    def bind(self, path: str, node: Node | None) -> None:
        self.names.setdefault(path, [None]).append(node)

    def replay(self, lines: Iterable[Line]) -> None:
        """Follow a journal: what was begun may be, what fsync was done for must be."""
        begun: Step = {}
        for line in lines:
            if "error" in line:
                raise AssertionError(f"the mount failed before the kill, at {begun}: {line['error']}")
            if "done" not in line:
                begun = line
                self._begin(line)
            elif begun["what"] == "fsync":
                self.promises += 1
                node = self.nodes[begun["file"]]
                node.promise()
                # Its names too (docs/semantics.md).
                self._promise_names(path for path, nodes in self.names.items() if nodes[-1] is node)
            elif begun["what"] == "fsyncdir":
                self.promises += 1
                self._promise_names(path for path in self.names if (os.path.dirname(path) or ".") == begun["path"])

    def _promise_names(self, paths: Iterable[str]) -> None:
        for path in paths:
            del self.names[path][:-1]

    def _begin(self, step: Step) -> None:
        what = step["what"]
        if what in ("create", "mkdir"):
            node = Node(is_folder=what == "mkdir")
            self.bind(step["path"], node)
            if "file" in step:
                self.nodes[step["file"]] = node
        elif what in ("unlink", "rmdir"):
            self.bind(step["path"], None)
        elif what == "rename":
            self._rename(step["path"], step["target"])
        elif what in ("write", "truncate"):
            node = self.nodes[step["file"]]
            node.change(_changed(node.contents[-1], step))
        elif what == "utime":
            node = self.nodes[step["file"]]
            node.stamps[step["mtime_ns"]] = node.contents[-1]

    def _rename(self, path: str, target: str) -> None:
        node = self.names[path][-1]
        assert node is not None
        if self.names.get(target, [None])[-1] is not None:
            node.is_whole_at[target] = len(node.contents) - 1
        self.bind(target, node)
        self.bind(path, None)

    @property
    def at_risk(self) -> int:
        """How many paths had something that no fsync had returned for."""
        return sum(
            len(nodes) > 1 or any(n is not None and len(n.contents) > 1 for n in nodes) for nodes in self.names.values()
        )

    def lost(self, after: Tree) -> int:
        """Return how many paths are not as the last operation left them."""
        newest = {
            path: None if (node := nodes[-1]) is None else node.contents[-1] for path, nodes in self.names.items()
        }
        return sum(data != ((found := after.get(path)) and (found.data or b"")) for path, data in newest.items())

    def problems(self, after: Tree) -> Iterator[str]:
        """Yield one line for each path that is not what it may be."""
        for path in sorted(self.names.keys() | after.keys()):
            found = after.get(path)
            nodes = self.names.get(path, [None])
            if found is None and None in nodes:
                continue
            if not any(node is not None and node.fits(path, found) for node in nodes):
                yield f"{path}: {_described(path, found, nodes)}"


def _changed(data: bytes, step: Step) -> bytes:
    if step["what"] == "truncate":
        return data[: step["size"]].ljust(step["size"], b"\0")
    offset, size = step["offset"], step["size"]
    return data[:offset].ljust(offset, b"\0") + content(step["file"], step["number"], size) + data[offset + size :]


def _described(path: str, found: Found | None, nodes: list[Node | None]) -> str:
    allowed = "; ".join("nothing" if node is None else _node_described(path, found, node) for node in nodes)
    if found is None:
        return f"is gone, may be: {allowed}"
    return (
        f"{'a folder' if found.data is None else f'{len(found.data)} bytes'}, mtime {found.mtime_ns}, may be: {allowed}"
    )


def _node_described(path: str, found: Found | None, node: Node) -> str:
    parts = [f"{len(one)} bytes{_difference(found, one)}" for one in node.contents]
    return f"a folder: {node.is_folder}, whole from {node.is_whole_at.get(path, 0)}, contents [{', '.join(parts)}]"


def _difference(found: Found | None, data: bytes) -> str:
    if found is None or found.data is None:
        return ""
    wrong = [
        start
        for start in range(0, len(found.data), BLOCK)
        if found.data[start : start + BLOCK] != data[start : start + BLOCK]
    ]
    zeros = sum(not any(found.data[start : start + BLOCK]) for start in wrong)
    return f" ({len(wrong)} blocks differ, {zeros} of them zeros: {wrong[:3]}…{wrong[-1:]})"


def read_journal(path: Path) -> Iterator[Line]:
    """Yield the lines of a journal."""
    if path.exists():
        for text in path.read_text("ascii").splitlines():
            line: Line = json.loads(text)
            yield line


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
    at_risk: int = 0
    lost: int = 0
    packs: int = 0
    evicted_bytes: int = 0


class Trial:
    """A drive, what is known to be on it, and the work that is done on it."""

    def __init__(self, mount: Mount, seed: int) -> None:
        self.mount: Final = mount
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
            with suppress(subprocess.TimeoutExpired):
                workers[0].wait(0.01)

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


@pytest.fixture
def trial(mount: Mount, request: pytest.FixtureRequest) -> Trial:
    """A drive with files on its cloud, mounted, and a seed that is printed."""
    seed = int(os.environ.get(SEED_VARIABLE, random.SystemRandom().randrange(10**9)))
    print(f"{SEED_VARIABLE}={seed}")
    mount.deadline_s = 120.0
    mount.start(cache_limit="16MiB")
    trial = Trial(mount, seed)
    trial.seed()
    return trial


def test_what_fsync_returned_for_survives_kills(trial: Trial) -> None:
    kill_many(trial, KILLS)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_what_fsync_returned_for_survives_many_kills(trial: Trial) -> None:
    kill_many(trial, KILLS_LONG)


def kill_many(trial: Trial, kills: int) -> None:
    """Kill, then send everything, forget everything that is here, and compare again with what the cloud has."""
    mount, tally = trial.mount, trial.tally
    for number in range(kills):
        trial.work_and_kill(number)
    print(tally)
    assert mount.sync()["bytes"] == 0
    mount.evict()
    mount.drop_caches()
    trial.compare_all()
    mount.umount()
    shutil.rmtree(mount.paths.cache)
    mount.start()
    trial.compare_all()
    # Without these nothing was shown.
    assert tally.kills_with_pending > kills // 2
    assert tally.at_risk > 0
    assert tally.kills_with_loss > 0
    assert tally.kills_while_packing > 0
    assert tally.packs > kills // 2
    assert tally.evicted_bytes > 0


def test_a_mount_whose_daemon_died_is_mounted_over(mount: Mount) -> None:
    mount.start()
    (mount.path / "file").write_bytes(b"bytes")
    os.stat(mount.path)  # the kernel may go on answering this for a dead mount, out of its cache
    mount.kill(detach=False)
    mount.start()
    assert "died" in mount.log_text()


def test_is_mixture() -> None:
    """What the kill test believes of files that were not synced."""
    old, new = b"a" * 10_000, b"b" * 10_000
    assert is_mixture(old, [old])
    assert not is_mixture(new, [old])
    assert is_mixture(old[:5000] + new[5000:], [old, new])
    assert not is_mixture(old[:5000] + b"c" + new[5001:], [old, new])
    assert not is_mixture(old[:5000] + b"\0" * 5000, [old, new])
    assert not is_mixture(old[:9999], [old, new])
    assert is_mixture(b"\0" * 4096 + new[4096:], [b"", new])
    assert is_mixture(new[:77], [b"", new])


def test_broken_promises_are_seen() -> None:
    """The kill test's own judgement, by cases."""
    lines: list[Line] = [
        {"number": 1, "what": "create", "file": "a 1", "path": "a"},
        {"done": 1},
        {"number": 2, "what": "write", "file": "a 1", "offset": 0, "size": 9000},
        {"done": 2},
        {"number": 3, "what": "fsync", "file": "a 1"},
        {"done": 3},
        {"number": 4, "what": "utime", "file": "a 1", "mtime_ns": 5},
        {"done": 4},
        {"number": 5, "what": "unlink", "path": "old"},
    ]
    data, old = content("a 1", 2, 9000), Found(b"old", 1)

    def problems(after: Tree, count: int) -> int:
        expected = Expected({"old": old})
        expected.replay(lines[:count])
        return len(list(expected.problems(after)))

    assert problems({"old": old}, 4) == 0  # nothing was promised yet
    assert problems({"old": old, "a": Found(data[:4096], 1)}, 4) == 0
    assert problems({"old": old, "a": Found(data, 1)}, 6) == 0
    assert problems({"old": old}, 6) == 1  # fsync returned: it is gone
    assert problems({"old": old, "a": Found(data[:4096], 1)}, 6) == 1  # shorter
    assert problems({"a": Found(data, 1)}, 6) == 1  # another file is gone
    assert problems({"a": Found(data, 1)}, 9) == 0  # its unlink had begun
    assert problems({"old": old, "a": Found(data, 1), "b": old}, 9) == 1  # came from nowhere
    with pytest.raises(AssertionError, match="before the kill"):
        Expected({}).replay([{"error": "EIO"}])


def test_size_and_time_mean_the_bytes() -> None:
    """What rsync's quick check would believe has to be there."""
    node = Node([b"", b"half", b"whole"], stamps={7: b"whole"})
    assert node.fits("a", Found(b"whole", 7))
    assert node.fits("a", Found(b"half", 7))
    assert node.fits("a", Found(b"half\0", 6))
    assert not node.fits("a", Found(b"half\0", 7))

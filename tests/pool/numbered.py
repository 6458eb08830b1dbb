"""What a drive on which numbering.py worked may look like, and which of its states one is.

Used by burning.py.  Pure but for `look`, which reads a mounted drive in full.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from attrs import define, field, frozen

from tests.mount.committing import fail
from tests.mount.mounting import Mount
from tests.pool.numbering import DATABASES, MODES, Step, all_steps

ROOT: Final = Path(__file__).resolve().parents[2]
BLOCK: Final = 4096
SHOWN: Final = 20


@frozen
class Seen:
    """A drive as it was found.  `names`: each file's inode; `contents`: the bytes of each inode."""

    folders: frozenset[str]
    names: Mapping[str, int]
    contents: Mapping[int, bytes]
    rows: Mapping[str, int]


def look(mount: Mount) -> Seen:
    """Read everything.  Raises: OSError, AssertionError (a database is damaged)."""
    folders: set[str] = set()
    names: dict[str, int] = {}
    contents: dict[int, bytes] = {}
    links: dict[int, int] = {}
    for place, below, files in os.walk(mount.path, onerror=fail):
        if place == str(mount.path):
            below.remove(DATABASES)
        folders.update(os.path.relpath(os.path.join(place, name), mount.path) for name in below)
        for name in files:
            path = os.path.join(place, name)
            status = os.stat(path)
            names[os.path.relpath(path, mount.path)] = status.st_ino
            links[status.st_ino] = status.st_nlink
            data = contents[status.st_ino] = Path(path).read_bytes()
            assert len(data) == status.st_size, f"{path}: {status.st_size} bytes long, {len(data)} can be read"
    for ino, count in links.items():
        assert list(names.values()).count(ino) == count, f"inode {ino} has {count} links: {names}"
    # Elsewhere: SQLite maps a file of the mount, and whoever does that dies with the daemon.
    rows = mount.run(sys.executable, "-m", "tests.pool.numbering", "rows", mount.path, cwd=ROOT)
    return Seen(frozenset(folders), names, contents, json.loads(rows.stdout))


@define(eq=False)
class State:
    """What is there after step `number`.  `names`: the step that created the file."""

    number: int = 0
    folders: set[str] = field(factory=set)
    names: dict[str, int] = field(factory=dict)
    contents: dict[int, bytes] = field(factory=dict)
    rows: dict[str, int] = field(factory=lambda: dict.fromkeys(MODES, 0))

    def apply(self, step: Step) -> None:
        """Go on to the next state."""
        assert step.number == self.number + 1
        self.number = step.number
        if step.what == "commit":
            self.rows[step.path] += 1
        elif step.what == "mkdir":
            self.folders.add(step.path)
        elif step.what == "rmdir":
            self.folders.remove(step.path)
        elif step.what == "create":
            self.names[step.path] = step.number
            self.contents[step.number] = b""
        elif step.what == "link":
            self.names[step.target] = self.names[step.path]
        elif step.what == "rename":
            self.folders = {_moved(path, step) for path in self.folders}
            moved = {_moved(path, step): file for path, file in self.names.items() if _moved(path, step) != path}
            kept = {path: file for path, file in self.names.items() if _moved(path, step) == path}
            self.names = kept | moved  # moved over what was kept
        elif step.what == "unlink":
            del self.names[step.path]
        else:
            file = self.names[step.path]
            self.contents[file] = changed(self.contents[file], step)

    def difference(self, seen: Seen, following: Step) -> str:
        """Return what is not as this state has it, with the `following` step perhaps begun; empty: all is."""
        if self.folders != seen.folders or self.names.keys() != seen.names.keys():
            return f"names {sorted((self.folders | self.names.keys()) ^ (seen.folders | seen.names.keys()))}"
        if self.rows != seen.rows:
            return f"databases {self.rows}, found {dict(seen.rows)}"
        pairs = {(file, seen.names[path]) for path, file in self.names.items()}
        if not len(pairs) == len({file for file, _ in pairs}) == len({ino for _, ino in pairs}):
            return "hard links"
        for path, file in self.names.items():
            data, found = self.contents[file], seen.contents[seen.names[path]]
            if data == found:
                continue
            under_way = following.what == "write" and self.names[following.path] == file
            if not under_way or not is_part(found, data, changed(data, following)):
                return f"{path}: {len(data)} bytes, found {len(found)}{_where(data, found)}"
        return ""


def _moved(path: str, step: Step) -> str:
    if path == step.path or path.startswith(f"{step.path}/"):
        return step.target + path[len(step.path) :]
    return path


def changed(data: bytes, step: Step) -> bytes:
    """Return what a file's bytes are after a `write` or `truncate`."""
    if step.what == "truncate":
        return data[: step.size].ljust(step.size, b"\0")
    return data[: step.offset].ljust(step.offset, b"\0") + step.data + data[step.offset + step.size :]


def is_part(found: bytes, before: bytes, after: bytes) -> bool:
    """Return whether a write from `before` to `after`, which is not shorter, may have come so far.

    Each block that the kernel hands down is old or new; what is not written yet reads as zeros where nothing was.
    """
    if not len(before) <= len(found) <= len(after):
        return False
    before = before.ljust(len(found), b"\0")
    for start in range(0, len(found), BLOCK):
        block = found[start : start + BLOCK]
        end = start + len(block)
        if block not in (before[start:end], after[start:end]):
            return False
    return True


def _where(data: bytes, found: bytes) -> str:
    place = next((at for at, (one, other) in enumerate(zip(data, found, strict=False)) if one != other), None)
    return "" if place is None else f", first other byte at {place}"


def find_state(seed: str, seen: Seen, first: int, last: int) -> int:
    """Return the number of the newest state up to `last` that was seen.  Fails if it is none, or one before `first`."""
    state = State()
    steps = all_steps(seed)
    following = next(steps)
    fitting: list[int] = []
    differences: list[str] = []
    while state.number <= last:
        difference = state.difference(seen, following)
        differences.append(difference)
        if not difference:
            fitting.append(state.number)
        state.apply(following)
        following = next(steps)
    if not fitting or fitting[-1] < first:
        near = sorted(range(len(differences)), key=lambda number: (differences[number].startswith("names"), -number))
        said = "\n".join(f"after step {number}: {differences[number]}" for number in sorted(near[:SHOWN]))
        raise AssertionError(f"not a state from {first} to {last}, but {fitting}:\n{said}")
    return fitting[-1]

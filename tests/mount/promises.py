"""What a crash may leave of files, by the journals of those who worked on them (cuckoo_mount/testing/killing.py).

Used by the kill test and the power-cut test.  `Expected` follows the journals of one folder and judges what is found
there afterwards.  The contract: docs/concurrency.md, "Crash table"; design §6.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from attrs import define, field, frozen

from cuckoo_mount.testing.killing import Line, Step, base_file, content
from cuckoo_mount.types import CHUNK_SIZE_BYTES
from tests.mount.committing import fail

BLOCK: Final = 4096
CHUNK: Final = CHUNK_SIZE_BYTES
Tree = dict[str, "Found"]


@frozen
class Found:
    """What lies under a path of the mount; `data` None: a directory."""

    data: bytes | None
    mtime_ns: int


def look(folder: Path) -> Tree:
    """Return everything below a folder of the mount, read in full."""
    tree: Tree = {}
    for place, folders, files in os.walk(folder, onerror=fail):
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
    """What one thread's folder may hold.  `names`: for each path what it may stand for; the first is promised.

    `overwritten`: chunks written to in files that were there before, by path and index.
    """

    before: Tree
    names: dict[str, list[Node | None]] = field(factory=dict)
    nodes: dict[str, Node] = field(factory=dict)
    promises: int = 0
    turns: int = 0
    overwritten: set[tuple[str, int]] = field(factory=set)

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
            if "turn" in line:
                self.turns += 1
            elif "done" not in line:
                begun = line
                self._begin(line)
            elif begun["what"] == "write":
                self._note_overwritten(begun)
            elif begun["what"] == "fsync":
                self.promises += 1
                node = self.nodes[begun["file"]]
                node.promise()
                # Its names too (docs/semantics.md).
                self._promise_names(path for path, nodes in self.names.items() if nodes[-1] is node)
            elif begun["what"] == "fsyncdir":
                self.promises += 1
                self._promise_names(path for path in self.names if (os.path.dirname(path) or ".") == begun["path"])

    def _note_overwritten(self, step: Step) -> None:
        if step["file"] in map(base_file, self.before):
            indexes = range(step["offset"] // CHUNK, (step["offset"] + step["size"] - 1) // CHUNK + 1)
            self.overwritten.update((step["file"].removeprefix(base_file("")), index) for index in indexes)

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

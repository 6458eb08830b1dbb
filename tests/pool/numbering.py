"""Numbered work for tests that look at a drive as of one moment: what is there after step n follows from n alone.

A program of its own, run by tests/pool/burning.py on a mount whose daemon it kills:
    python -m tests.pool.numbering write FOLDER JOURNAL ENDING SEED FIRST     steps FIRST, FIRST + 1, … until it is gone
    python -m tests.pool.numbering rows FOLDER                                what the databases hold, as JSON
Every step is one change that is either done or not: a name that comes, goes or moves, a size, a transaction.  Only a
`write` takes several, and may be found done in part.  One step ends before the next one begins, so that a drive as of
one moment is as some step left it, with the next one's `write` perhaps begun.
JOURNAL lies outside the mount: "b NUMBER TIME_NS" before a step, "d NUMBER" when it is done, "e ERROR".  ENDING is a
file that the test makes before it kills: an error before that is the daemon's fault.
Standard library only, so that it starts quickly.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Final, NamedTuple

DATABASES: Final = "databases"
"""Folder of the databases, of which the state is how many transactions they had, not their files."""
MODES: Final = ("wal", "delete")
NUMBER: Final = "number"
CUT: Final = "cut"
CUT_BYTES_MAX: Final = 2_500_000
LINKS_MAX: Final = 3
CHECKPOINT_PAGES: Final = 50
PAUSE_S: Final = 0.005
"""Between two steps: the drive has to get on with its epochs and collections, too."""


class Step(NamedTuple):
    """One change.  `what`: mkdir, rmdir, create, write, truncate, rename, link, unlink, or commit (in `path`)."""

    number: int
    what: str
    path: str
    target: str = ""
    offset: int = 0
    size: int = 0

    @property
    def data(self) -> bytes:
        """What a `write` writes."""
        return random.Random(f"bytes {self.number}").randbytes(self.size)


class _Numbered:
    """Gives steps their numbers."""

    def __init__(self) -> None:
        self._last = 0

    def __call__(self, what: str, path: str, target: str = "", *, offset: int = 0, size: int = 0) -> Step:
        self._last += 1
        return Step(self._last, what, path, target, offset, size)


def all_steps(seed: str) -> Iterator[Step]:
    """Yield all steps there are, for ever; the same ones for the same seed."""
    step = _Numbered()
    for folder in ("chain", "chain/deep", "links", "folders", "folders/0"):
        yield step("mkdir", folder)
    yield step("create", "chain/0")
    yield step("write", "chain/0", size=500)
    yield step("create", "folders/0/file")
    yield step("create", CUT)
    chain, links, folder, cut_bytes, number = "chain/0", list[str](), "folders/0", 0, 0
    while True:
        number += 1
        choose = random.Random(f"{seed} {number}")
        # A small file that is replaced whole.
        yield step("create", f"{NUMBER}.new")
        yield step("write", f"{NUMBER}.new", size=choose.choice((20, 3000, choose.randrange(200_000))))
        yield step("rename", f"{NUMBER}.new", NUMBER)
        # A chain of renames.
        place = choose.choice(("chain", "chain/deep"))
        yield step("rename", chain, f"{place}/{number}")
        chain = f"{place}/{number}"
        yield step("commit", "wal")
        if choose.random() < 0.3:
            yield step("commit", "delete")
        if choose.random() < 0.3:
            links.append(f"links/{number}")
            yield step("link", chain, links[-1])
            if len(links) > LINKS_MAX:
                yield step("unlink", links.pop(0))
        if choose.random() < 0.15:
            # In place, under all of its names.
            yield step("write", chain, offset=choose.randrange(500), size=choose.randrange(1, 5000))
        if choose.random() < 0.3:
            cut_bytes = choose.choice((0, 1 << 20, cut_bytes // 2, choose.randrange(CUT_BYTES_MAX)))
            yield step("truncate", CUT, size=cut_bytes)
        elif choose.random() < 0.4:
            offset, size = choose.randrange(cut_bytes + 1), choose.choice((5000, 5000, 1 + choose.randrange(700_000)))
            cut_bytes = max(cut_bytes, offset + size)
            yield step("write", CUT, offset=offset, size=size)
        if choose.random() < 0.15:
            yield step("rename", folder, f"folders/{number}")
            folder = f"folders/{number}"
            yield step("write", f"{folder}/file", size=1000)
        if choose.random() < 0.1:
            yield step("mkdir", f"{folder}/empty")
            yield step("rmdir", f"{folder}/empty")


# -- databases --


def _open(folder: str, mode: str) -> sqlite3.Connection:
    database = sqlite3.connect(os.path.join(folder, DATABASES, f"{mode}.db"), isolation_level=None)
    database.execute(f"PRAGMA journal_mode = {mode}")
    database.execute("PRAGMA synchronous = FULL")
    database.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
    return database


def _row(mode: str, number: int, before: bytes) -> tuple[int, bytes, bytes]:
    choose = random.Random(f"row {mode} {number}")
    filler = choose.randbytes(choose.randrange(3000))
    return number, filler, hashlib.blake2b(before + filler + str(number).encode()).digest()


def commit(database: sqlite3.Connection, mode: str) -> None:
    """One transaction: the next row, and the same number and checksum in a second table."""
    database.execute("BEGIN IMMEDIATE")
    database.execute("CREATE TABLE IF NOT EXISTS entry (number INTEGER PRIMARY KEY, filler BLOB, checksum BLOB)")
    database.execute("CREATE TABLE IF NOT EXISTS tally (one INTEGER PRIMARY KEY, number INTEGER, checksum BLOB)")
    found = database.execute("SELECT number, checksum FROM tally").fetchall()
    number, before = found[0] if found else (0, b"")
    row = _row(mode, number + 1, before)
    database.execute("INSERT INTO entry VALUES (?, ?, ?)", row)
    database.execute("REPLACE INTO tally VALUES (1, ?, ?)", (row[0], row[2]))
    database.execute("COMMIT")


def count_rows(folder: str, mode: str) -> int:
    """Return how many transactions a database had.  Raises: ValueError when it holds anything else."""
    with closing(_open(folder, mode)) as database:
        said = database.execute("PRAGMA integrity_check").fetchall()
        if said != [("ok",)]:
            raise ValueError(f"{mode}: integrity_check: {said}")
        if not database.execute("SELECT * FROM sqlite_schema").fetchall():
            return 0
        before, count = b"", 0
        for row in database.execute("SELECT number, filler, checksum FROM entry ORDER BY number"):
            count += 1
            if row != _row(mode, count, before):
                raise ValueError(f"{mode}: row {count} is not what was written")
            before = row[2]
        tally = database.execute("SELECT number, checksum FROM tally").fetchall()
        if tally != [(count, before)]:
            raise ValueError(f"{mode}: {count} rows, but the last transaction wrote {tally}")
        return count


# -- the writer --


def do(step: Step, folder: str, databases: dict[str, sqlite3.Connection]) -> None:
    """Make a step.  What `write` returns from is on the local disk."""
    path, target = os.path.join(folder, step.path), os.path.join(folder, step.target)
    if step.what == "commit":
        commit(databases[step.path], step.path)
    elif step.what == "write":
        _write(path, step)
    elif step.what == "create":
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
    elif step.what == "truncate":
        os.truncate(path, step.size)
    elif step.what == "rename":
        os.rename(path, target)
    elif step.what == "link":
        os.link(path, target)
    elif step.what == "unlink":
        os.unlink(path)
    elif step.what == "mkdir":
        os.mkdir(path)
    else:
        os.rmdir(path)


def _write(path: str, step: Step) -> None:
    fd = os.open(path, os.O_RDWR)
    try:
        data, offset = memoryview(step.data), step.offset
        while data:
            written = os.pwrite(fd, data, offset)
            data, offset = data[written:], offset + written
        os.fsync(fd)
    finally:
        os.close(fd)


def write(folder: str, journal: str, ending: str, seed: str, first: int) -> None:
    """Make all steps from `first` on, until the mount is gone."""
    fd = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        os.makedirs(os.path.join(folder, DATABASES), exist_ok=True)
        databases = {mode: _open(folder, mode) for mode in MODES}
        for step in all_steps(seed):
            if step.number >= first:
                os.write(fd, f"b {step.number} {time.time_ns()}\n".encode())
                do(step, folder, databases)
                os.write(fd, f"d {step.number}\n".encode())
                time.sleep(PAUSE_S)
    except (OSError, sqlite3.Error) as error:
        if not os.path.exists(ending):
            os.write(fd, f"e {error!r}\n".encode())
    except BaseException as error:
        os.write(fd, f"e {error!r}\n".encode())
        raise


def main() -> None:
    """Write, or print what the databases hold."""
    if sys.argv[1] == "write":
        folder, journal, ending, seed, first = sys.argv[2:]
        write(folder, journal, ending, seed, int(first))
    else:
        print(json.dumps({mode: count_rows(sys.argv[2], mode) for mode in MODES}))


if __name__ == "__main__":
    main()

"""Work for crash tests by programs that commit: SQLite with both kinds of journal, and git.

`start` runs it as a program of its own, `python committing.py KIND FOLDER JOURNAL`, until the mount is gone; after each
commit that returned, and for git an fsync of the folders with the new names, its number goes into the journal, outside
the mount.  `problems` judges what is there after a crash: whole, and nothing promised is missing.
"""

from __future__ import annotations

import os
import random
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

KINDS: Final = ("git", "delete", "wal")
KEPT: Final = 300
"""Each transaction of SQLite removes what was inserted so many before it: databases do not grow for ever."""
PAUSE_S: Final = 0.05
"""Between two transactions of SQLite, so that git gets on, too."""
_SYNCHRONOUS: Final = {"wal": "FULL", "delete": "EXTRA"}
"""What makes a transaction durable when COMMIT returns, according to SQLite."""
_GIT_SETTINGS: Final = {
    "user.name": "n",
    "user.email": "e@x",
    "core.fsync": "all",
    "core.fsyncMethod": "fsync",
    "core.logAllRefUpdates": "false",  # it is never synced
    "gc.auto": "0",
    "init.defaultBranch": "main",
    "safe.directory": "*",
}
_LOCKS: Final = ("index.lock", "HEAD.lock", "refs/heads/main.lock")


def start(kind: str, folder: Path, journal: Path) -> subprocess.Popen[bytes]:
    """Run one kind of work in a folder."""
    command = [sys.executable, __file__, kind, str(folder), str(journal)]
    with journal.with_name(f"{journal.name}.errors").open("wb") as errors:
        return subprocess.Popen(command, cwd="/", stderr=errors)


def promised(journal: Path) -> int:
    """Return how many commits a journal promises to be there."""
    return max(numbers(journal), default=0)


def numbers(journal: Path) -> list[int]:
    """Return the numbers of the commits that returned while the journal was kept."""
    return [int(number) for number in journal.read_text("ascii").split()] if journal.exists() else []


def problems(kind: str, folder: Path, wanted: int) -> Iterator[str]:
    """Yield what is wrong with what is found in the folder after a crash; `wanted`: how many commits were promised."""
    if not folder.exists():
        if wanted:
            yield f"{folder.name}: is gone, {wanted} commits were promised"
        return
    files = {path.name: path.stat().st_size for path in folder.iterdir()}  # a journal is gone once SQLite has looked
    try:
        count = _commits(folder) if kind == "git" else _transactions(folder / "db", kind)
    except (sqlite3.Error, subprocess.CalledProcessError, AssertionError) as error:
        said = error.stderr if isinstance(error, subprocess.CalledProcessError) else b""
        yield f"{folder.name}: {error} {said.decode('utf-8', 'replace')}; {wanted} commits were promised; {files}"
    else:
        if count < wanted:
            yield f"{folder.name}: {count} commits, {wanted} were promised; {files}"


def _connect(path: Path, kind: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, timeout=60)
    connection.execute(f"PRAGMA journal_mode = {kind}")
    connection.execute(f"PRAGMA synchronous = {_SYNCHRONOUS[kind]}")
    connection.execute(
        "CREATE TABLE IF NOT EXISTS t (number INTEGER, row INTEGER, data BLOB, PRIMARY KEY (number, row))"
    )
    return connection


def _rows(number: int) -> list[tuple[int, int, bytes]]:
    choose = random.Random(number)
    return [(number, row, choose.randbytes(choose.randrange(9000))) for row in range(1 + choose.randrange(6))]


def _transactions(path: Path, kind: str) -> int:
    with closing(_connect(path, kind)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        (count,) = connection.execute("SELECT coalesce(max(number), 0) FROM t").fetchone()
        assert connection.execute("SELECT min(number) FROM t").fetchone()[0] in (None, max(1, count - KEPT))
        for number in range(max(1, count - KEPT), count + 1):
            found = connection.execute("SELECT * FROM t WHERE number = ? ORDER BY row", (number,)).fetchall()
            assert found == _rows(number), f"transaction {number} of {count} is not whole"
    return int(count)


def _commits(folder: Path) -> int:
    for name in _LOCKS:  # what git says to do after a crash
        (folder / ".git" / name).unlink(missing_ok=True)
    if not (folder / ".git" / "refs" / "heads" / "main").exists():
        return 0
    _git(folder, "fsck", "--full", "--strict", "--no-dangling")
    return int(_git(folder, "rev-list", "--count", "HEAD"))


def _git(folder: Path, *arguments: str) -> bytes:
    environment = os.environ | {"GIT_CONFIG_GLOBAL": os.devnull, "HOME": os.devnull}
    settings = [word for key, value in _GIT_SETTINGS.items() for word in ("-c", f"{key}={value}")]
    command = ["git", *settings, "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, env=environment).stdout


def fail(error: OSError) -> None:
    """Raise what os.walk would leave out without a word."""
    raise error


def sync_folders(folder: Path) -> None:
    """Make the names in a folder and all below it durable.  Raises: OSError if any of them cannot be listed, too."""
    # By itself walk leaves out what it cannot list: as the mount goes, nothing would be synced and all promised.
    for place, _, _ in os.walk(folder, onerror=fail):
        _sync(place, os.O_RDONLY | os.O_DIRECTORY)


def _sync(place: str | Path, flags: int) -> None:
    fd = os.open(place, flags)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _insert_for_ever(path: Path, kind: str, journal: int) -> None:
    number = _transactions(path, kind)
    with closing(_connect(path, kind)) as connection:
        while True:
            number += 1
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany("INSERT INTO t VALUES (?, ?, ?)", _rows(number))
            connection.execute("DELETE FROM t WHERE number < ?", (number - KEPT,))
            connection.execute("COMMIT")
            # SQLite takes a folder that it cannot open for one that need not be synced: as the mount goes, it would
            # promise what it never asked for.
            _sync(path.parent, os.O_RDONLY | os.O_DIRECTORY)
            os.write(journal, b"%d\n" % number)
            time.sleep(PAUSE_S)


def _commit_for_ever(folder: Path, journal: int) -> None:
    _git(folder, "init", "--quiet")
    for name in ("HEAD", "config"):  # whatever core.fsync says, these are not synced by it
        _sync(folder / ".git" / name, os.O_RDONLY)
    number = _commits(folder)
    if number:
        _git(folder, "reset", "--quiet", "--hard")
    while True:
        number += 1
        (folder / f"file {number % 20}").write_bytes(
            random.Random(number).randbytes(number % 7 * 20_000) + b"%d" % number
        )
        _git(folder, "add", "--all")
        _git(folder, "commit", "--quiet", "--message", f"{number}")
        sync_folders(folder / ".git")
        os.write(journal, b"%d\n" % number)


def main() -> None:
    """Work until something fails, as everything does when the mount is gone."""
    kind, folder, journal = sys.argv[1:]
    fd = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    Path(folder).mkdir(exist_ok=True)
    try:
        if kind == "git":
            _commit_for_ever(Path(folder), fd)
        _insert_for_ever(Path(folder) / "db", kind, fd)
    except (OSError, sqlite3.Error, subprocess.CalledProcessError) as error:
        said = error.stderr if isinstance(error, subprocess.CalledProcessError) else b""
        print(repr(error), said.decode("utf-8", "replace"), file=sys.stderr)


if __name__ == "__main__":
    main()

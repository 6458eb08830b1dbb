"""SQLite in its three ways to keep a journal, alone and with four processes that write at once."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
import textwrap
from contextlib import closing
from pathlib import Path
from typing import Final

import pytest

from tests.mount.mounting import Mount
from tests.programs.running import PROGRAM_S, without_cache

pytestmark = [pytest.mark.mount, pytest.mark.slow, pytest.mark.timeout(240)]

MODES: Final = ("wal", "delete", "truncate")
WRITERS: Final = 4


def connect(path: Path, mode: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=60)
    ((found,),) = connection.execute(f"PRAGMA journal_mode = {mode}").fetchall()
    assert found == mode
    return connection


def assert_whole(path: Path, rows: int) -> None:
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("SELECT count(*) FROM t").fetchone() == (rows,)


def fill_and_change(mount: Mount, path: Path, mode: str) -> int:
    """Insert, delete, vacuum, and update after everything was sent; return how many rows are left."""
    dice = random.Random(2)
    with closing(connect(path, mode)) as connection:
        connection.execute("CREATE TABLE t (a INTEGER PRIMARY KEY, b BLOB, c TEXT)")
        connection.execute("CREATE INDEX i ON t (c)")
        for _ in range(10):
            with connection:
                rows = [(dice.randbytes(dice.randrange(3000)), dice.randbytes(8).hex()) for _ in range(200)]
                connection.executemany("INSERT INTO t (b, c) VALUES (?, ?)", rows)
        with connection:
            connection.execute("DELETE FROM t WHERE a % 3 = 0")
        connection.execute("VACUUM")
        mount.sync()
        with connection:
            connection.execute("UPDATE t SET c = c || 'x' WHERE a % 2 = 0")
    return 2000 - 2000 // 3


def test_a_database_in_every_mode(mount: Mount) -> None:
    mount.start()
    rows = {mode: fill_and_change(mount, mount.path / mode, mode) for mode in MODES}
    for mode, count in rows.items():
        assert_whole(mount.path / mode, count)
    without_cache(mount)
    for mode, count in rows.items():
        assert_whole(mount.path / mode, count)


WRITER: Final = textwrap.dedent(
    """
    import sqlite3, sys
    path, mode, who, count = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    connection = sqlite3.connect(path, timeout=120)
    connection.execute(f"PRAGMA journal_mode = {mode}")
    for number in range(count):
        with connection:
            connection.execute("BEGIN IMMEDIATE")
            (total,) = connection.execute("SELECT count(*) FROM t").fetchone()
            connection.execute("INSERT INTO t VALUES (?, ?, ?)", (who, number, total))
    """
)


def write_at_once(mount: Mount, mode: str, count: int) -> None:
    """WRITERS processes insert `count` rows each; every insert has seen all that came before it, none is lost."""
    path = mount.path / mode
    with closing(connect(path, mode)) as connection:
        connection.execute("CREATE TABLE t (who INTEGER, number INTEGER, seen INTEGER UNIQUE)")
    command = [sys.executable, "-c", WRITER, str(path), mode]
    writers = [subprocess.Popen([*command, str(who), str(count)], stderr=subprocess.PIPE) for who in range(WRITERS)]
    said = [writer.communicate(timeout=PROGRAM_S)[1] for writer in writers]
    assert [writer.returncode for writer in writers] == [0] * WRITERS, said
    assert_all_inserted(path, count)


def assert_all_inserted(path: Path, count: int) -> None:
    assert_whole(path, WRITERS * count)
    with closing(sqlite3.connect(path)) as connection:
        found = connection.execute("SELECT who, number FROM t ORDER BY who, number").fetchall()
        assert found == [(who, number) for who in range(WRITERS) for number in range(count)]
        assert connection.execute("SELECT max(seen) FROM t").fetchone() == (WRITERS * count - 1,)


def test_four_processes_write_to_one_database(mount: Mount) -> None:
    """Locks, and in WAL mode shared memory, between processes."""
    mount.start()
    for mode in MODES:
        write_at_once(mount, mode, 8)
    without_cache(mount)
    for mode in MODES:
        assert_all_inserted(mount.path / mode, 8)


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("mode", MODES)
def test_four_processes_write_for_long(mount: Mount, mode: str) -> None:
    mount.deadline_s = 900
    mount.start()
    write_at_once(mount, mode, 250)
    without_cache(mount)
    assert_all_inserted(mount.path / mode, 250)

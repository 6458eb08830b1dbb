"""What is wrong in the tables is found, named and repaired; afterwards every invariant holds."""

from __future__ import annotations

import stat
from contextlib import closing
from pathlib import Path

import apsw
import pytest

from cuckoo_mount.metadata.lostfound import readable_name
from cuckoo_mount.metadata.problems import Kind
from cuckoo_mount.metadata.records import DamagedName, Repaired
from cuckoo_mount.metadata.store import SqliteMetadata, open_store
from cuckoo_mount.types import LOST_PACK, ChunkIndex, InodeChanges, InodeNo
from tests.metadata.helpers import (
    ROOT,
    make_directory,
    make_file,
    names_in,
    new_store,
    only_row,
    pack_all,
    write,
)

MIB = 1 << 20


async def fill(store: SqliteMetadata) -> dict[str, InodeNo]:
    """Directories a/b/c; in b a file of one chunk with two names, in the root one of three chunks and a dirty one."""
    a = await make_directory(store, b"a")
    b = await make_directory(store, b"b", a)
    c = await make_directory(store, b"c", b)
    linked, large, dirty = (
        await make_file(store, b"linked", b),
        await make_file(store, b"large"),
        await make_file(store, b"d"),
    )
    await store.add_link(linked, ROOT, b"again", 5)
    await write(store, linked, 0)
    for index in range(3):
        await write(store, large, index, MIB)
    await store.change_inode(large, InodeChanges(size_bytes=3 * MIB))
    await pack_all(store)
    await write(store, dirty, 0, 50)
    return {"a": a, "b": b, "c": c, "linked": linked, "large": large, "dirty": dirty}


async def repair_all(store: SqliteMetadata) -> set[Kind]:
    """As fsck does; return what was found first."""
    problems = await store.find_problems()
    first = {problem.kind for problem in problems}
    for _ in range(9):
        for problem in problems:
            await store.repair(problem.kind, problem.rows, now_ns=99)
        problems = await store.find_problems()
        if not problems:
            return first
    raise AssertionError(f"it never ends: {problems}")


async def damaged(path: Path, *statements: str) -> tuple[dict[str, InodeNo], SqliteMetadata]:
    """Make a store, close it, damage it, open it."""
    async with await new_store(path) as store:
        nodes = await fill(store)
        assert await store.find_problems() == []
    with closing(apsw.Connection(str(path))) as connection:
        for statement in statements:
            connection.execute(statement.format(**nodes))
    return nodes, await open_store(path)


VERSION_OF = "(SELECT version FROM chunk WHERE ino = {large} AND idx = 1)"


@pytest.mark.parametrize(
    ("kind", "statement"),
    [
        (Kind.REFERENCES, "UPDATE version SET refs = 7 WHERE version = " + VERSION_OF),
        (Kind.REFERENCES, "INSERT INTO version SELECT 900, pack, offset, 5, 5, digest, 0 FROM version LIMIT 1"),
        (Kind.PACK_BYTES, "UPDATE pack SET live = live + 1, used = 3"),
        (Kind.CHUNKS, "UPDATE inode SET chunks = 77 WHERE ino = {large}"),
        (Kind.LINKS, "UPDATE inode SET nlink = 5 WHERE ino = {linked}"),
        (Kind.LINKS, "UPDATE inode SET nlink = 0 WHERE ino = {linked}"),
        (Kind.SUBDIRECTORIES, "UPDATE inode SET nlink = 9 WHERE ino = {a}"),
        (Kind.PARENT, "UPDATE inode SET parent = 1 WHERE ino = {c}"),
        (Kind.PARENT, "INSERT INTO dentry VALUES (1, 'c again', {c}, 500)"),
        (Kind.COOKIE, "UPDATE dentry SET cookie = 3 WHERE parent = 1"),
        (Kind.NAME, "INSERT INTO dentry VALUES (1, CAST('ghost' AS BLOB), 4711, 500)"),
        (Kind.NAME, "INSERT INTO dentry VALUES ({linked}, CAST('below' AS BLOB), {dirty}, 500)"),
        (Kind.ATTRIBUTE, "INSERT INTO xattr VALUES (4711, CAST('user.x' AS BLOB), x'00')"),
        (Kind.SEQUENCE, "UPDATE sequence SET next = 2 WHERE name = 'inode'"),
        (Kind.EMPTY, "INSERT INTO pack VALUES (400, randomblob(16), '1', 9, 0, 0, 0, NULL)"),
        (Kind.SHARE, "INSERT INTO share VALUES (500, 0, 'a', zeroblob(32), 7)"),
        (Kind.HELD, "UPDATE held SET version = 888 WHERE ino = {large} AND idx = 0"),
    ],
)
async def test_nothing_is_lost_by_the_repair_of(kind: Kind, statement: str, tmp_path: Path) -> None:
    nodes, store = await damaged(tmp_path / "m", statement.replace("'c again'", "CAST('c again' AS BLOB)"))
    async with store:
        before = [await store.chunk_rows(ino, ChunkIndex(0), ChunkIndex(9)) for ino in nodes.values()]
        assert kind in await repair_all(store)
        assert await store.check_invariants() == []
        after = [await store.chunk_rows(ino, ChunkIndex(0), ChunkIndex(9)) for ino in nodes.values()]
        if kind is not Kind.HELD:
            assert after == before
        names = await names_in(store)
        assert set(names) == {b"a", b"again", b"d", b"large"}
        assert {row.index for row in after[list(nodes).index("large")]} == {0, 1, 2}
        assert set(await names_in(store, nodes["b"])) == {b"c", b"linked"}


@pytest.mark.parametrize(
    ("statements", "kinds", "found"),
    [
        (["DELETE FROM dentry WHERE ino = {linked}"], {Kind.LINKS}, {b"#linked"}),
        (["DELETE FROM dentry WHERE ino = {b}"], {Kind.PARENT, Kind.SUBDIRECTORIES, Kind.REACH}, {b"#b"}),
        (["DELETE FROM inode WHERE ino = {b}"], {Kind.NAME, Kind.PARENT}, set()),
        (["DELETE FROM inode WHERE ino = {b}", "DELETE FROM dentry WHERE ino = {b}"], {Kind.NAME}, {b"#b"}),
        (
            ["UPDATE inode SET parent = {c} WHERE ino = {a}", "UPDATE dentry SET parent = {c} WHERE ino = {a}"],
            {Kind.REACH},
            {b"#a"},
        ),
        (
            ["DELETE FROM inode WHERE ino = {large}", "DELETE FROM dentry WHERE ino = {large}"],
            {Kind.CONTENT},
            {b"#large"},
        ),
    ],
)
async def test_what_has_no_name_gets_one(
    statements: list[str], kinds: set[Kind], found: set[bytes], tmp_path: Path
) -> None:
    nodes, store = await damaged(tmp_path / "m", *statements)
    async with store:
        assert await repair_all(store) >= kinds
        assert await store.check_invariants() == []
        names = await names_in(store)
        wanted = {b"#%d" % nodes[name[1:].decode()] for name in found}
        if wanted:
            folder = names[b"lost+found"]
            assert stat.S_IMODE(folder.mode) == 0o700
            assert set(await names_in(store, folder.ino)) == wanted
        for name, ino in nodes.items():
            assert (await store.get_inode(ino)).nlink >= 1, name
        assert (await store.get_inode(nodes["large"])).size_bytes == 3 * MIB
        assert set(await names_in(store, nodes["b"])) >= {b"c"}


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE dentry SET parent = 0 WHERE ino = {c}",
        "UPDATE dentry SET parent = {linked} WHERE ino = {c}",
        "UPDATE inode SET mode = 33188 WHERE ino = {b}",
        "UPDATE chunk SET ino = {c} WHERE ino = {large} AND idx = 2",
    ],
)
async def test_what_lies_where_it_cannot_is_repaired(statement: str, tmp_path: Path) -> None:
    nodes, store = await damaged(tmp_path / "m", statement, "DELETE FROM held", "DELETE FROM share")
    async with store:
        await repair_all(store)
        await store.set_aside(await store.damaged_names(()), 9)
        assert await store.check_invariants() == []
        assert stat.S_ISDIR((await store.get_inode(nodes["c"])).mode)


async def test_chunks_that_are_nowhere_are_unreadable(tmp_path: Path) -> None:
    nodes, store = await damaged(
        tmp_path / "m",
        "DELETE FROM version WHERE version = " + VERSION_OF,
        "DELETE FROM held WHERE ino = {large}",
    )
    async with store:
        problems = await store.find_problems()
        (dangling,) = (problem for problem in problems if problem.kind is Kind.DANGLING)
        assert [name.path for name in await store.damaged_names(())] == [b"/large"]
        assert (await store.repair(Kind.DANGLING, dangling.rows, now_ns=9, is_used=lambda ino: True)).rows == 0
        await repair_all(store)
        assert await store.check_invariants() == []
        location = (await only_row(store, nodes["large"], 1)).location
        assert location is not None
        assert (location.pack, location.plain_bytes) == (LOST_PACK, MIB)
        assert (await only_row(store, nodes["large"], 0)).location is not None
        (name,) = await store.damaged_names(())
        moved = await store.set_aside([name], 9)
        assert moved.moved == ((b"/large", b"/lost+found/large"),)
        # Removed, the pack of what is lost goes with it; and comes back when there is something again.
        folder = (await store.lookup(ROOT, b"lost+found")).ino
        await store.remove_link(folder, b"large", 9)
        await store.purge_inode(nodes["large"])
        assert await store.check_invariants() == []
        assert (await store.get_pack(LOST_PACK)).dead
        assert await store.damaged_names(()) == []
    with closing(apsw.Connection(str(tmp_path / "m"))) as connection:
        connection.execute("DELETE FROM version; DELETE FROM held WHERE dirty = 0")
    async with await open_store(tmp_path / "m") as store:
        await repair_all(store)
        assert not (await store.get_pack(LOST_PACK)).dead
        assert {name.path for name in await store.damaged_names(())} == {b"/again", b"/a/b/linked"}
        assert await store.check_invariants() == []


@pytest.mark.parametrize("statement", ["DELETE FROM pack", "DELETE FROM share"])
async def test_versions_without_pack_are_unreadable(statement: str, tmp_path: Path) -> None:
    _, store = await damaged(tmp_path / "m", statement)
    async with store:
        await repair_all(store)
        assert await store.check_invariants() == []
        names = await store.damaged_names(())
        assert [name.path for name in names] == [b"/again", b"/a/b/linked", b"/large"]
        assert (await store.set_aside(names, 5)).rows == 3
        assert await store.check_invariants() == []
        folder = (await store.lookup(ROOT, b"lost+found")).ino
        assert set(await names_in(store, folder)) == {b"again", b"a_b_linked", b"large"}


async def test_lost_and_found_gives_every_file_a_name_of_its_own(store: SqliteMetadata) -> None:
    await make_file(store, b"lost+found")
    directory = await make_directory(store, b"x")
    first, second = await make_file(store, b"y", directory), await make_file(store, b"x_y")
    names = [
        DamagedName(directory, b"y", first, b"/x/y"),
        DamagedName(ROOT, b"x_y", second, b"/x_y"),
        DamagedName(ROOT, b"gone meanwhile", second, b"/gone meanwhile"),
    ]
    assert (await store.set_aside(names, 5)).moved == (
        (b"/x/y", b"/lost+found~1/x_y"),
        (b"/x_y", b"/lost+found~1/x_y~1"),
    )
    assert set(await names_in(store)) == {b"lost+found", b"lost+found~1", b"x"}
    assert (await store.set_aside(names, 5)).rows == 0
    assert len(readable_name(b"/" + b"long/" * 100)) < 255


async def test_what_is_right_by_now_stays(store: SqliteMetadata) -> None:
    """Rows of problems that were found, and are none any more when it comes to their repair."""
    nodes = await fill(store)
    widths = dict.fromkeys((Kind.SHARE, Kind.PACK), 2) | dict.fromkeys((Kind.EMPTY, Kind.REACH, Kind.ATTRIBUTE), 1)
    for kind in set(Kind) - {Kind.SEQUENCE, Kind.COOKIE, Kind.CHUNKS}:
        rows = [(ino, 1, 2)[: widths.get(kind, 3)] for ino in nodes.values()]
        assert await store.repair(kind, rows, now_ns=5) == Repaired(0), kind
    assert await store.find_problems() == []

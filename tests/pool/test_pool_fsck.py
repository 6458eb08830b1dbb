"""`cuckoo fsck`: what is wrong is named, what can be is repaired, and nothing else is touched."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import pytest

from cuckoo_mount.cli.fsck import describe, whole_result
from cuckoo_mount.drive import METADATA_FILE
from cuckoo_mount.errors import ReadOnly
from cuckoo_mount.fuse.controlsocket import LINE_MAX_BYTES
from cuckoo_mount.types import ROOT_INODE
from tests.pool.conftest import MakePool
from tests.pool.packing import KIB
from tests.pool.pooling import Place, PoolMount, bring_back, folder_place, hide

pytestmark = [pytest.mark.slow]

MIB: Final = 1 << 20


def places_of(tmp_path: Path, count: int) -> list[Place]:
    return [folder_place(tmp_path / "clouds", name) for name in "abc"[:count]]


def content(number: int, size: int = 20 * KIB) -> bytes:
    return random.Random(number).randbytes(size)


def fsck(mount: PoolMount, *options: str) -> tuple[int, dict[str, Any]]:
    done = mount.cuckoo("fsck", "--json", *options, check=False)
    assert done.returncode in (0, 3), done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["clean"] is (done.returncode == 0)
    return done.returncode, found


def kinds(found: dict[str, Any]) -> set[str]:
    return {problem["kind"] for problem in found["problems"]}


def edit(mount: PoolMount, *statements: str) -> None:
    """Change the metadata of a drive that is not mounted, behind everybody's back."""
    assert not mount.is_running
    with closing(sqlite3.connect(mount.paths.state / METADATA_FILE)) as database, database:
        for statement in statements:
            database.execute(statement)


def packs_of(place: Place) -> frozenset[str]:
    return frozenset(place.packs())


@pytest.mark.mount
def test_lost_files_are_named_and_moved_on_a_mounted_drive(tmp_path: Path, make_pool: MakePool) -> None:
    """All shares of two packs of three are deleted; a program goes on reading and writing meanwhile."""
    mount = make_pool(places_of(tmp_path, 2), redundancy="2")
    mount.start()
    folder = mount.path / "Photos" / "2024"
    folder.mkdir(parents=True)
    wanted = {}
    lost_packs: set[str] = set()
    for number, name in enumerate(("a.jpg", "b.jpg", "large")):
        before = packs_of(mount.places[0])
        size = 20 * KIB if number < 2 else 18 * MIB
        (folder / name).write_bytes(content(number, size))
        mount.sync()
        if name == "a.jpg":
            lost_packs |= {pack.rpartition(".")[0] for pack in packs_of(mount.places[0]) - before}
        elif name == "large":
            packs = mount.places[0].packs()
            lost_packs.add(max(packs.keys() - before, key=lambda pack: packs[pack]).rpartition(".")[0])
        wanted[name] = content(number, size)
    (folder / "a.jpg").chmod(0o640)
    (folder / "again").hardlink_to(folder / "a.jpg")
    assert mount.cuckoo("fsck").stdout == b"The drive is as it should be.\n"
    for place in mount.places:
        for name in packs_of(place):
            if name.rpartition(".")[0] in lost_packs:
                place.delete(name)
    mount.evict()
    mount.drop_caches()

    status, found = fsck(mount)
    damaged = ["/Photos/2024/a.jpg", "/Photos/2024/again", "/Photos/2024/large"]
    assert (status, sorted(found["damaged"]), found["moved"]) == (3, damaged, [])
    said = mount.cuckoo("fsck", "--dry-run", "--repair", check=False).stdout.decode()
    assert "3 files cannot be read whole" in said
    assert "\n    /Photos/2024/a.jpg\n" in said
    assert sorted(path.name for path in folder.iterdir()) == ["a.jpg", "again", "b.jpg", "large"]
    assert not (mount.path / "lost+found").exists()  # and the kernel remembers that there is none

    stop = threading.Event()
    rounds = 0

    def use() -> None:
        nonlocal rounds
        while not stop.is_set():
            (mount.path / "busy").write_bytes(content(rounds, 3 * KIB))
            assert (mount.path / "busy").read_bytes() == content(rounds, 3 * KIB)
            assert (folder / "b.jpg").read_bytes() == wanted["b.jpg"]
            rounds += 1

    user = threading.Thread(target=use)
    user.start()
    try:
        status, found = fsck(mount, "--repair", "--yes")
    finally:
        stop.set()
        user.join()
    assert rounds > 3
    names = ["Photos_2024_a.jpg", "Photos_2024_again", "Photos_2024_large"]
    assert status == 3
    assert sorted(found["damaged"]) == [f"/lost+found/{name}" for name in names]
    assert sorted(pair["from"] for pair in found["moved"]) == damaged
    lost = mount.path / "lost+found"
    assert sorted(path.name for path in lost.iterdir()) == names
    assert lost.stat().st_mode & 0o777 == 0o700
    assert [path.name for path in folder.iterdir()] == ["b.jpg"]
    assert not (folder / "a.jpg").exists()
    assert (folder / "b.jpg").read_bytes() == wanted["b.jpg"]
    assert (lost / names[0]).stat().st_mode & 0o777 == 0o640
    assert (lost / names[0]).stat().st_nlink == 2
    with pytest.raises(OSError, match="Input/output error"):
        (lost / names[0]).read_bytes()
    readable, failed = read_chunks(lost / names[2], wanted["large"])
    assert readable
    assert failed
    print(f"{rounds} rounds of use; of the large file {readable} chunks are readable, {failed} are not")

    again = fsck(mount, "--repair")[1]
    assert (again["moved"], again["problems"], len(again["damaged"])) == ([], [], 3)
    for name in names:
        (lost / name).unlink()
    mount.sync()
    status, found = fsck(mount)
    assert (status, found["problems"], found["damaged"], found["orphans"]["objects"]) == (0, [], [], 0)
    assert (folder / "b.jpg").read_bytes() == wanted["b.jpg"]


def read_chunks(path: Path, wanted: bytes) -> tuple[int, int]:
    """Return how many chunks can be read and how many cannot; those that can are right."""
    readable = failed = 0
    with path.open("rb", buffering=0) as file:
        for offset in range(0, len(wanted), MIB):
            file.seek(offset)
            try:
                data = file.read(MIB)
            except OSError:
                failed += 1
            else:
                # A read that fails behind its beginning returns what came before.
                assert data
                assert wanted[offset : offset + len(data)] == data
                readable += len(data) == MIB
                failed += len(data) != MIB
    return readable, failed


@pytest.mark.mount
def test_metadata_that_contradict_themselves_are_repaired(tmp_path: Path, make_pool: MakePool) -> None:
    mount = make_pool(places_of(tmp_path, 1))
    mount.start()
    for number in range(3):
        (mount.path / f"f{number}").write_bytes(content(number))
    (mount.path / "large").write_bytes(content(9, 3 * MIB))
    (mount.path / "folder" / "below").mkdir(parents=True)
    (mount.path / "folder" / "file").write_bytes(content(7))
    inos = {name: (mount.path / name).stat().st_ino for name in ("f0", "f1", "large", "folder", "folder/below")}
    mount.sync()
    mount.umount()
    edit(
        mount,
        "UPDATE version SET refs = refs + 3 WHERE version IN (SELECT version FROM version LIMIT 1)",
        f"UPDATE inode SET nlink = 0 WHERE ino = {inos['f0']}",
        f"DELETE FROM dentry WHERE ino = {inos['f1']}",
        "INSERT INTO dentry (parent, name, ino, cookie) VALUES (1, CAST('ghost' AS BLOB), 999999, 888888)",
        f"DELETE FROM version WHERE version IN (SELECT version FROM chunk WHERE ino = {inos['large']} AND idx = 1)",
        "DELETE FROM held",
        f"DELETE FROM dentry WHERE ino = {inos['folder']}",
        "UPDATE pack SET live = live + 1000",
    )
    status, found = fsck(mount, "--repair")
    assert status == 3, "a chunk is lost"
    assert kinds(found) >= {
        *("wrong-reference-count", "wrong-link-count", "name-of-nothing", "dangling-chunk"),
        *("misplaced-directory", "wrong-pack-counter"),
    }
    assert sum(problem["left"] for problem in found["problems"]) == 0
    assert found["moved"] == [{"from": "/large", "to": "/lost+found/large"}]
    said = "\n".join(describe(found))
    assert "name-of-nothing: 1, 0 left.  I-15: name (directory, name, inode)" in said
    assert "(1, ghost, 999999)" in said
    # It reaches the clouds as any change does: whoever has nothing of the drive gets it repaired.
    mount.start()
    mount.sync()
    mount.umount()
    shutil.rmtree(mount.paths.state)
    mount.start()
    status, found = fsck(mount)
    assert (status, found["problems"], found["damaged"]) == (3, [], ["/lost+found/large"])
    lost = mount.path / "lost+found"
    assert {path.name for path in lost.iterdir()} == {f"#{inos['f1']}", f"#{inos['folder']}", "large"}
    assert {path.name for path in mount.path.iterdir()} == {"f0", "f2", "lost+found"}
    assert (mount.path / "f0").stat().st_nlink == 1
    assert (lost / f"#{inos['f1']}").read_bytes() == content(1)
    assert (lost / f"#{inos['folder']}" / "file").read_bytes() == content(7)
    assert (lost / f"#{inos['folder']}" / "below").stat().st_ino == inos["folder/below"]
    assert read_chunks(lost / "large", content(9, 3 * MIB)) == (2, 1)
    (lost / "large").unlink()
    mount.sync()
    status, found = fsck(mount)
    assert (status, found["problems"], found["damaged"]) == (0, [], [])


@pytest.mark.mount
def test_rm_of_a_damaged_file_works_before_any_repair(tmp_path: Path, make_pool: MakePool) -> None:
    mount = make_pool(places_of(tmp_path, 1))
    mount.start()
    for name in ("dangling", "shareless", "whole"):
        (mount.path / name).write_bytes(content(len(name)))
        mount.sync()
    inos = {path.name: path.stat().st_ino for path in mount.path.iterdir()}
    mount.umount()
    edit(
        mount,
        "DELETE FROM held",
        f"DELETE FROM version WHERE version IN (SELECT version FROM chunk WHERE ino = {inos['dangling']})",
        "DELETE FROM share WHERE pack IN (SELECT v.pack FROM chunk c JOIN version v ON v.version = c.version"
        f" WHERE c.ino = {inos['shareless']})",
    )
    mount.start()
    for name in ("dangling", "shareless"):
        with pytest.raises(OSError, match="Input/output error"):
            (mount.path / name).read_bytes()
    for name in ("dangling", "shareless"):
        (mount.path / name).unlink()
    mount.sync()
    # The version went without its pack's knowing: counters only.
    status, found = fsck(mount, "--repair")
    assert (status, found["damaged"]) == (0, [])
    assert (mount.path / "whole").read_bytes() == content(5)


async def test_what_is_young_and_what_is_silent(tmp_path: Path, make_pool: MakePool) -> None:
    """Unknown objects are counted and no problem; a cloud that does not answer is one, and proves nothing."""
    mount = make_pool(places_of(tmp_path, 2), redundancy="2")
    async with mount.opened() as opened:
        check = opened.drive.checker.check
        await opened.write("f", content(1))
        await opened.sync()
        (name,) = mount.places[0].packs()
        mount.places[0].write(f"{name.rpartition('/')[0]}/{'0' * 32}.0", b"nobody's")
        found = await check(repair=False)
        assert (found.is_clean, found.orphans, found.orphan_bytes) == (True, 1, 8)
        mount.places[0].delete(name)
        found = await check(repair=False)
        assert (found.is_clean, found.damaged, found.scrubbed.packs.missing) == (False, (), 1)
        assert name not in mount.places[0].packs(), "nothing was to be repaired"
        found = await check(repair=True)
        assert (found.is_clean, found.damaged, found.scrubbed.packs.healed_packs) == (True, (), 1)
        hide(mount.places)
        found = await check(repair=True)
        assert (found.is_clean, found.damaged, found.moved, found.not_listed) == (False, (), (), ("a", "b"))
        assert set(found.scrubbed.packs.silent) == {"a", "b"}
        assert await opened.read("f") == content(1)
        opened.drive.filesystem.refuse_writes("it is a test")
        with pytest.raises(ReadOnly, match="it is a test"):
            await check(repair=True)
        bring_back(mount.places)


async def test_many_damaged_files_are_in_a_file(tmp_path: Path, make_pool: MakePool) -> None:
    """An answer of the daemon has an end."""
    mount = make_pool(places_of(tmp_path, 1))
    async with mount.opened() as opened:
        await opened.write("f", content(1))
        await opened.sync()
        tree = opened.drive.filesystem.tree
        ino = (await tree.lookup(ROOT_INODE, b"f")).ino
        names = [f"{number:04d}{'x' * 200}" for number in range(1200)]
        for name in names:
            await tree.link(ino, ROOT_INODE, name.encode())
        (pack,) = mount.places[0].packs()
        mount.places[0].delete(pack)
        checked = await opened.drive.checker.check(repair=True)
        assert len(checked.moved) == len(names) + 1
        document = await opened.drive.checker.as_document(checked)
        assert len(json.dumps(document)) < LINE_MAX_BYTES
        damaged = whole_result(document)["damaged"]
        assert isinstance(damaged, list)
        assert sorted(damaged) == sorted(f"/lost+found/{name}" for name in ("f", *names))
        assert len(describe(document)) < 30
        assert await opened.names() == ["lost+found"]
        assert await opened.drive.check_invariants() == []

"""Each file as redundant as its folder, it itself or the drive was told; what is stored already follows a change."""

from __future__ import annotations

import os
import random
import sqlite3
from contextlib import closing
from errno import EINVAL
from pathlib import Path
from typing import Final

import pytest

from cuckoo_mount.drive import METADATA_FILE
from cuckoo_mount.multi.policies import Policies
from cuckoo_mount.packs.repacking import POSITION_SETTING
from cuckoo_mount.types import ROOT_INODE
from tests.pool.conftest import MakeMachine, MakePool
from tests.pool.packing import KIB, MIB, SEED
from tests.pool.pooling import OpenedDrive, PoolMount, bring_back, folder_place, hide
from tests.pool.test_pool_erasure import assert_reads, five_folders

pytestmark = [pytest.mark.mount, pytest.mark.slow]

ATTRIBUTE: Final = "user.cuckoo.redundancy"
_STORED: Final = """
    SELECT DISTINCT c.ino, p.policy FROM chunk c JOIN version v ON v.version = c.version
    JOIN pack p ON p.number = v.pack"""


def stored_as(mount: PoolMount) -> dict[int, set[str]]:
    """Return the policies of the packs that each file's chunks lie in, by inode number."""
    found: dict[int, set[str]] = {}
    with closing(sqlite3.connect(f"file:{mount.paths.state / METADATA_FILE}?mode=ro", uri=True)) as database:
        for ino, policy in database.execute(_STORED):
            found.setdefault(ino, set()).add(policy)
    return found


def settled(mount: PoolMount, *paths: Path) -> list[set[str]]:
    """Unmount, and return how each of these files is stored."""
    numbers = [path.stat().st_ino for path in paths]
    mount.umount()
    found = stored_as(mount)
    return [found[number] for number in numbers]


def fill(path: Path, seed: int, size_bytes: int = 30 * KIB) -> Path:
    path.write_bytes(random.Random(seed).randbytes(size_bytes))
    return path


def test_what_is_made_in_a_folder_has_the_folders_redundancy(tmp_path: Path, make_pool: MakePool) -> None:
    mount = make_pool(five_folders(tmp_path), redundancy="none")
    mount.start()
    photos = mount.path / "photos"
    photos.mkdir()
    os.setxattr(photos, ATTRIBUTE, b"3+2")
    (photos / "deep").mkdir()
    plain = [fill(mount.path / f"p{number}", number) for number in range(12)]
    safe = [fill(photos / "a", 100), fill(photos / "deep" / "b", 101, 3 * MIB), fill(photos / "c", 102)]
    same = fill(photos / "same", 0)  # the bytes of p0, which lie on one cloud only
    moved_in = fill(mount.path / "in", 103).rename(photos / "in")
    moved_out = safe.pop().rename(mount.path / "out")
    (photos / "link").symlink_to("a")
    assert os.getxattr(photos / "deep" / "b", ATTRIBUTE) == b"3+2"
    assert ATTRIBUTE not in os.listxattr(moved_in)
    mount.sync()
    tree = {str(path.relative_to(mount.path)): path.read_bytes() for path in (*safe, same, moved_out)}
    for lost in (mount.places[:2], mount.places[3:]):
        hide(list(lost))
        mount.evict()
        mount.drop_caches()
        for name, data in tree.items():
            assert (mount.path / name).read_bytes() == data
        bring_back(list(lost))
    assert settled(mount, *safe, same, moved_out) == [{"3+2"}] * 4
    mount.start()
    assert settled(mount, *plain, moved_in) == [{"1"}] * 13


def test_values_that_are_none(tmp_path: Path, make_pool: MakePool) -> None:
    mount = make_pool(five_folders(tmp_path), redundancy="2")
    mount.start()
    path = fill(mount.path / "f", 1)
    for value in (b"", b"0", b"2+", b"4+0", b"nonsense", b"\xff", b"2+3" * 10, b"6+1"):
        with pytest.raises(OSError, match="Invalid argument") as refused:
            os.setxattr(path, ATTRIBUTE, value)
        assert refused.value.errno == EINVAL
    assert ATTRIBUTE not in os.listxattr(path)
    for value, kept in ((b"none", b"1"), (b"1+1", b"2"), (b"3\n", b"3"), (b"4+1", b"4+1"), (b"1", b"1")):
        os.setxattr(path, ATTRIBUTE, value)
        assert os.getxattr(path, ATTRIBUTE) == kept
    # Not the root: there pyfuse3 compares the attribute's name with a str, which ends a daemon run with -bb.
    (mount.path / "folder").mkdir()
    said = mount.cuckoo("set", mount.path / "folder", "--redundancy", "6+1", check=False)
    assert said.returncode == 2
    assert b"too few clouds" in said.stderr
    said = mount.cuckoo("set", "--redundancy", "6+1", check=False)
    assert said.returncode == 2
    assert b"at least 6 clouds" in said.stderr
    assert mount.cuckoo("set", tmp_path, "--redundancy", "2", check=False).returncode == 2


def test_stored_packs_follow_a_change_also_over_a_kill(tmp_path: Path, make_pool: MakePool) -> None:
    mount = make_pool(five_folders(tmp_path), redundancy="none")
    mount.start()
    folder = mount.path / "folder"
    folder.mkdir()
    inside = [fill(folder / f"i{number}", number) for number in range(10)]
    inside.append(fill(folder / "big", 50, 5 * MIB))
    outside = [fill(mount.path / f"o{number}", 200 + number) for number in range(3)]
    twin = fill(mount.path / "twin", 3)  # shares its only version with folder/i3
    mount.sync()
    tree = {str(path.relative_to(mount.path)): path.read_bytes() for path in (*inside, *outside, twin)}
    said = mount.cuckoo("set", folder, "--redundancy", "3+2", "--dry-run").stdout
    assert b"11 files, 1 folder" in said
    assert ATTRIBUTE not in os.listxattr(folder)
    said = mount.cuckoo("set", folder, "--redundancy", "3+2").stdout
    assert b"11 files, 1 folder: 3+2 shares" in said
    os.fsync(os.open(folder / "i0", os.O_RDONLY))
    mount.kill()
    mount.start()
    assert {os.getxattr(path, ATTRIBUTE) for path in inside} == {b"3+2"}
    assert "repacked" in mount.cuckoo("gc").stdout.decode()
    mount.sync()
    hide(list(mount.places[:2]))
    mount.evict()
    mount.drop_caches()
    for path in inside:
        assert path.read_bytes() == tree[str(path.relative_to(mount.path))]
    bring_back(list(mount.places[:2]))
    assert settled(mount, *inside, twin, *outside) == [{"3+2"}] * 12 + [{"1"}] * 3
    mount.start()
    mount.cuckoo("set", folder, "--redundancy", "default")
    assert not any(ATTRIBUTE in os.listxattr(path) for path in (folder, *inside))
    mount.cuckoo("gc")
    assert_reads(mount, tree)
    assert settled(mount, *inside, *outside, twin) == [{"1"}] * 15


def test_the_drives_own_redundancy_changes(tmp_path: Path, make_machine: MakeMachine) -> None:
    """Files with one of their own keep it; a new machine knows of both."""
    machine = make_machine(five_folders(tmp_path), redundancy="none")
    machine.make()
    machine.start()
    plain = [fill(machine.path / f"p{number}", number) for number in range(5)]
    special = fill(machine.path / "s", 10)
    os.setxattr(special, ATTRIBUTE, b"2")
    machine.sync()
    machine.cuckoo("set", "--redundancy", "3")
    assert machine.status()["redundancy"] == "3"
    later = fill(machine.path / "later", 11)
    machine.cuckoo("gc")
    tree = {path.name: path.read_bytes() for path in (*plain, special, later)}
    assert 'redundancy = "3"' in machine.paths.config_file.read_text()
    assert settled(machine, *plain, later, special) == [{"3"}] * 6 + [{"2"}]
    machine.wipe()
    lost = list(machine.places[:2])
    hide(lost)
    machine.recover(machine.places[3])
    machine.start()
    for path in (*plain, later):
        assert path.read_bytes() == tree[path.name]
    bring_back(lost)
    machine.cuckoo("set", special, "--redundancy", "2+1")
    machine.cuckoo("gc")
    assert machine.status()["redundancy"] == "3"
    assert settled(machine, special, *plain, later) == [{"2+1"}] + [{"3"}] * 6


def test_packs_on_a_cloud_that_is_away_do_not_hold_up_others(tmp_path: Path, make_pool: MakePool) -> None:
    places = [folder_place(tmp_path / "clouds", name) for name in ("a", "b", "c")]
    mount = make_pool(places, redundancy="none")
    mount.start()
    for number in range(9):
        fill(mount.path / f"f{number}", number)
        mount.sync()
    alone = len(places[0].packs())
    assert 0 < alone < 9
    hide(places[:1])
    mount.cuckoo("set", "--redundancy", "2")
    mount.cuckoo("gc")
    assert mount.status()["packs"]["repacking"] is True
    assert sorted(policy for found in stored_as(mount).values() for policy in found) == ["1"] * alone + ["2"] * (
        9 - alone
    )
    bring_back(places[:1])
    mount.cuckoo("gc")
    assert mount.status()["packs"]["repacking"] is False
    assert settled(mount, *[mount.path / f"f{number}" for number in range(9)]) == [{"2"}] * 9


async def test_any_order_of_changes_ends_with_what_was_asked_for_last(tmp_path: Path, make_pool: MakePool) -> None:
    """Random changes, writes, equal contents, removals, with packs sent and collected in between."""
    policies = Policies("1")
    places = [folder_place(tmp_path / "clouds", name) for name in ("a", "b", "c")]
    mount = make_pool(places, redundancy="none")
    dice = random.Random(SEED)
    wanted: dict[str, str | None] = {}
    contents: dict[str, bytes] = {}
    async with mount.opened() as opened:
        for _ in range(120):
            name = f"f{dice.randrange(8)}"
            step = dice.random()
            if step < 0.4 or name not in contents:
                contents[name] = random.Random(dice.randrange(5)).randbytes(20 * KIB)
                await opened.write(name, contents[name])
                wanted.setdefault(name, None)
            elif step < 0.75:
                wanted[name] = dice.choice((None, "1", "2", "3", "2+1"))
                await change(opened, name, wanted[name])
            elif step < 0.8:
                await opened.unlink(name)
                del contents[name], wanted[name]
            elif step < 0.85:
                default = dice.choice(("none", "2", "2+1"))
                await opened.drive.rules.set_redundancy(default)
                policies.set_default(default)
            elif step < 0.95:
                await opened.sync()
            else:
                await opened.drive.collect(thorough=dice.random() < 0.5)
        await opened.sync()
        # Of a version that several name the strongest counts, and one that was removed may still have counted.
        for name in contents:
            text = wanted[name]
            await change(opened, name, "1" if text != "1" else "2")
            await change(opened, name, text)
        await opened.drive.collect()
        await opened.evict()
        for name, data in contents.items():
            assert await opened.read(name) == data
        inos = {name: (await opened.drive.filesystem.tree.lookup(ROOT_INODE, name.encode())).ino for name in contents}
    assert contents
    stored = stored_as(mount)
    for name, ino in inos.items():
        twins = [wanted[other] for other in contents if contents[other] == contents[name]]
        options = {policies.strongest([text]) for text in twins}
        assert len(stored[ino]) == 1
        found = stored[ino].pop()
        assert found in options, f"{name}: {found}"
        assert policies.strongest([found, policies.strongest([wanted[name]])]) == found, f"{name} is less safe: {found}"
    with closing(sqlite3.connect(mount.paths.state / METADATA_FILE)) as database:
        assert database.execute("SELECT value FROM setting WHERE key = ?", (POSITION_SETTING,)).fetchall() == []


async def change(opened: OpenedDrive, name: str, policy: str | None) -> None:
    tree = opened.drive.filesystem.tree
    ino = (await tree.lookup(ROOT_INODE, name.encode())).ino
    if policy is not None:
        await tree.set_xattr(ino, ATTRIBUTE.encode(), policy.encode())
    elif ATTRIBUTE.encode() in await tree.list_xattrs(ino):
        await tree.remove_xattr(ino, ATTRIBUTE.encode())

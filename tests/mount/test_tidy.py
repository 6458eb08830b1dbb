"""What lies on the cloud: copies cost nothing, dead bytes go, and no kill leaves an object that nothing refers to."""

from __future__ import annotations

import hashlib
import os
import random
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

import pytest
import trio

from cuckoo_mount.drive import METADATA_FILE
from cuckoo_mount.metadata.store import open_store
from tests.mount.mounting import ControlError, Mount, MountError
from tests.mount.stored import objects, unexplained

pytestmark = [pytest.mark.mount, pytest.mark.slow]

KILLS: Final = 8
TURNS: Final = 10
SEED: Final = 20_261_123


def write_durably(path: Path, data: bytes) -> None:
    """Replace a file, and return when no kill can undo that."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def fingerprints(folder: Path) -> dict[str, str]:
    """Return a hash of each file below a folder, by path."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_copied_tree_costs_no_pack(mount: Mount) -> None:
    mount.start()
    dice = random.Random(SEED)
    tree = mount.path / "tree"
    for number in range(300):
        path = tree / f"d{number % 7}" / f"f{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(dice.randbytes(dice.randrange(20_000)))
    (tree / "big").write_bytes(dice.randbytes(5_000_000))
    (tree / "zeros").write_bytes(bytes(20_000_000))
    mount.sync()
    before, wanted = objects(mount), fingerprints(tree)
    assert sum(before.values()) < 10_000_000, "zeros are stored once"
    mount.run("cp", "-r", tree, mount.path / "copy")
    mount.sync()
    assert objects(mount) == before
    mount.check()
    mount.run("rm", "-r", tree)
    assert mount.control("gc", keep=1)["packs_deleted"] == 0
    mount.evict()
    mount.umount()
    mount.start()
    assert fingerprints(mount.path / "copy") == wanted
    mount.run("rm", "-r", mount.path / "copy")
    mount.control("gc", keep=1)
    assert objects(mount) == {}


def churn(mount: Mount, dice: random.Random, files: dict[str, bytes]) -> None:
    """Write some files anew, overwrite parts of some, remove some; all sizes up to 300 KB."""
    for _ in range(60):
        name = f"f{dice.randrange(150)}"
        path = mount.path / name
        kind = dice.random()
        if name not in files or kind < 0.4:
            files[name] = dice.randbytes(dice.choice([300, 3_000, 30_000, 300_000]))
            write_durably(path, files[name])
        elif kind < 0.7:
            start = dice.randrange(len(files[name]))
            part = dice.randbytes(min(2_000, len(files[name]) - start))
            with path.open("r+b") as file:
                file.seek(start)
                file.write(part)
                file.flush()
                os.fsync(file.fileno())
            files[name] = files[name][:start] + part + files[name][start + len(part) :]
        else:
            path.unlink()
            del files[name]
    folder = os.open(mount.path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def assert_same(mount: Mount, files: dict[str, bytes]) -> None:
    found = {path.name: path.read_bytes() for path in mount.path.iterdir()}
    assert found.keys() == files.keys()
    assert [name for name in files if found[name] != files[name]] == []


def test_little_more_is_stored_than_lives_after_gc(mount: Mount) -> None:
    mount.start()
    dice, files = random.Random(SEED), dict[str, bytes]()
    for _ in range(TURNS):
        churn(mount, dice, files)
        mount.sync()
    before = sum(objects(mount).values())
    done = mount.control("gc", keep=1)
    assert done["packs_compacted"] > 0
    stored, live = sum(objects(mount).values()), sum(map(len, files.values()))
    assert stored <= 1.3 * live < before, f"{before} bytes were stored, {stored} are, {live} live"
    print(f"{before / live:.2f} × what lives was stored, then {stored / live:.2f} ×: {done}")
    mount.check()
    mount.evict()
    mount.umount()
    assert unexplained(mount) == set()
    mount.start()
    assert_same(mount, files)


def _ask(mount: Mount, command: str, said: list[str]) -> None:
    with suppress(MountError, OSError):
        try:
            mount.control(command, **({"keep": 1} if command == "gc" else {}))
        except ControlError as error:
            said.append(str(error))


def kill_while_packing(mount: Mount, asking: threading.Thread, after_s: float) -> bool:
    """Kill the daemon `after_s` after a pack began, or when nothing is asked any more; return whether one was begun."""
    staging = mount.paths.state / "staging"
    while asking.is_alive() and not any(staging.iterdir()):
        time.sleep(0.001)
    time.sleep(after_s)
    mount.kill()
    asking.join()
    return any(staging.iterdir()) or bool(trio.run(_intents, mount))


@pytest.mark.long
def test_kills_while_packs_are_made_leave_nothing_behind(mount: Mount) -> None:
    dice, files, said = random.Random(SEED), dict[str, bytes](), list[str]()
    at_risk = 0
    mount.start()
    for number in range(KILLS):
        churn(mount, dice, files)
        if number % 2:
            mount.sync()
        asking = threading.Thread(target=_ask, args=(mount, ("sync", "gc")[number % 2], said))
        asking.start()
        at_risk += kill_while_packing(mount, asking, dice.uniform(0, 0.15))
        mount.start()
        assert_same(mount, files)
        mount.check()
    assert said == []
    assert at_risk, "no kill came while a pack was on its way"
    mount.sync()
    mount.control("gc", keep=1)
    mount.evict()
    mount.umount()
    assert unexplained(mount) == set()
    mount.start()
    assert_same(mount, files)


async def _intents(mount: Mount) -> list[bytes]:
    async with await open_store(mount.paths.state / METADATA_FILE) as store:
        return await store.pack_intents()

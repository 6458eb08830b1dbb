"""With durability `cloud` what fsync returned for survives the loss of the machine, names included."""

from __future__ import annotations

import os
import random
from errno import EINVAL, ETIMEDOUT
from pathlib import Path
from typing import Final

import pytest
from attrs import evolve

from cuckoo_mount.config import write_config
from cuckoo_mount.testing.faulty import write_plan
from tests.pool.conftest import MakeMachine, MakePool
from tests.pool.machines import Machine
from tests.pool.packing import KIB, SEED
from tests.pool.pooling import bring_back, folder_place, hide

pytestmark = [pytest.mark.mount, pytest.mark.slow]

ATTRIBUTE: Final = "user.cuckoo.durability"


def synced(path: Path, data: bytes) -> None:
    """Write a file, fsync it and its folder."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def three_machines_worth(tmp_path: Path, make_machine: MakeMachine) -> Machine:
    machine = make_machine([folder_place(tmp_path / "clouds", name) for name in ("a", "b", "c")], redundancy="2")
    machine.make()
    machine.start()
    return machine


def test_a_file_that_fsync_returned_for_survives_the_machine(tmp_path: Path, make_machine: MakeMachine) -> None:
    """Writers one after the other, each killed and its machine emptied right after an fsync returned."""
    machine = three_machines_worth(tmp_path, make_machine)
    safe = machine.path / "safe"
    safe.mkdir()
    said = machine.cuckoo("set", safe, "--durability", "cloud").stdout
    assert b"0 files, 1 folder: fsync waits for the clouds" in said
    (safe / "deep").mkdir()
    assert os.getxattr(safe / "deep", ATTRIBUTE) == b"cloud"
    dice = random.Random(SEED)
    promised: dict[str, bytes] = {}
    for number in range(4):
        name = f"safe/deep/{dice.randrange(3)}" if number else "safe/first"
        (machine.path / f"unsynced{number}").write_bytes(b"x" * 100)
        data = dice.randbytes(dice.randrange(1, 90 * KIB))
        synced(machine.path / name, data)
        promised[name] = data
        machine.kill()
        machine.wipe()
        hide(machine.places[number % 3 :][:1])
        machine.recover(machine.places[(number + 1) % 3])
        machine.start("--take-over")
        for promise, wanted in promised.items():
            assert (machine.path / promise).read_bytes() == wanted, promise
        bring_back(machine.places[number % 3 :][:1])
        machine.sync()


def test_without_it_fsync_asks_no_cloud(tmp_path: Path, make_pool: MakePool) -> None:
    mount = make_pool([folder_place(tmp_path / "clouds", "a")])
    mount.start()
    mount.sync()
    (mount.path / "safe").mkdir()
    os.setxattr(mount.path / "safe", ATTRIBUTE, b"cloud")
    hide(mount.places)
    for number in range(20):
        synced(mount.path / f"f{number}", b"y" * number)
    bring_back(mount.places)
    assert not mount.places[0].packs()
    synced(mount.path / "safe" / "f", b"z")
    assert mount.places[0].packs()
    for value in (b"", b"both", b"\xff"):
        with pytest.raises(OSError, match="Invalid argument") as refused:
            os.setxattr(mount.path / "f1", ATTRIBUTE, value)
        assert refused.value.errno == EINVAL


@pytest.mark.long
def test_at_the_deadline_fsync_says_so_and_the_file_stays_queued(tmp_path: Path, make_pool: MakePool) -> None:
    mount = make_pool([folder_place(tmp_path / "clouds", "a")])
    write_config(evolve(mount.configure(), deadline_s=10.0), mount.paths)
    mount.start()
    mount.sync()
    mount.cuckoo("set", "--durability", "cloud")
    assert mount.status()["durability"] == "cloud"
    write_plan(mount.places[0].plan, {"calls": ["put"], "action": "fail"}, seed=SEED)
    with pytest.raises(OSError, match="timed out") as late:
        synced(mount.path / "f", b"kept")
    assert late.value.errno == ETIMEDOUT
    assert mount.status()["pending"]["files"] == 1
    mount.kill()
    mount.start()
    assert (mount.path / "f").read_bytes() == b"kept", "it was safe on this machine"
    write_plan(mount.places[0].plan)
    synced(mount.path / "g", b"after")
    assert mount.status()["pending"]["files"] == 0
    assert mount.status()["durability"] == "cloud"

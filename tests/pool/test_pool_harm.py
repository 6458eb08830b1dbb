"""The damage test: every object that a small drive has on its clouds, harmed in every way, on one cloud and on all.

(Packs on one cloud, and what a mounted drive sees of them: test_pool_damage.py.)

Never wrong data to a program: a read gives the right bytes or an error; a mount and a recovery show one whole state,
the newest one as long as one cloud has it, or say in a line what is wrong; `scrub --deep` finds it and repairs it.
Objects and cases are derived from what really lies there; the short form does all cases of recovery with one cloud
harmed and of reading, and some of the rest.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any, Final

import pytest
import trio
from attrs import frozen

from cuckoo_mount.cli.common import innermost
from cuckoo_mount.clouds.registry import TESTING_VARIABLE
from cuckoo_mount.config import DrivePaths, read_drive_key
from cuckoo_mount.errors import CuckooError, DataTimeout, DataUnavailable
from cuckoo_mount.layers.keyslots import open_slots
from cuckoo_mount.layers.recoverykey import recovery_key_of
from cuckoo_mount.metadata.schema import JOURNALED
from cuckoo_mount.packs.scrubbing import ScrubRequest
from cuckoo_mount.preparing import Terms
from cuckoo_mount.recovery import Found, Recovery, Wishes, give_up, open_door
from cuckoo_mount.workers import WorkerPool, open_worker_pool
from tests.pool.damaging import (
    KINDS,
    Case,
    Stock,
    all_clouds,
    contents,
    copy_folder,
    kind_of,
    make_stock,
    one_cloud,
    rounds,
    sample,
    set_place,
)
from tests.pool.machines import three_folders
from tests.pool.pooling import OpenedDrive, Place, PoolMount

pytestmark = [pytest.mark.slow]

READING: Final = Terms(writing=False)
Dump = dict[str, list[tuple[Any, ...]]]


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stock]:
    """The drive, made once; each test begins with its clouds and its machine as they were left."""
    folder = tmp_path_factory.mktemp("damage")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(TESTING_VARIABLE, "1")
        mount = PoolMount(folder / "drive", three_folders(folder), redundancy="2")
        made = trio.run(make_stock, mount)
        copy_folder(mount.paths.state, folder / "state")
        yield made
        mount.clear_away()


@pytest.fixture
def drive(stock: Stock) -> Stock:
    """The drive as it was left."""
    reset(stock)
    return stock


def reset(stock: Stock) -> None:
    stock.restore()
    copy_folder(stock.mount.folder.parent / "state", stock.mount.paths.state)


def count_of(request: pytest.FixtureRequest, short: int) -> int | None:
    return None if request.config.getoption("--long") else short


# -- what a program sees --


async def read_all(opened: OpenedDrive, stock: Stock) -> dict[str, str]:
    """Read every file, of which nothing is here; return the errors.  Fails when one has other bytes."""
    await opened.evict()
    errors: dict[str, str] = {}
    names = sorted(stock.files)
    assert sorted(await opened.names()) == sorted((*names, "soft"))
    for name, data in stock.files.items():
        try:
            found = await opened.read(name)
        except (DataUnavailable, DataTimeout) as error:
            errors[name] = f"{type(error).__name__}: {error}"
        else:
            is_right = found == data  # pytest would compare a MiB by signs
            assert is_right, f"{name} has wrong bytes"
    return errors


async def test_reads_with_every_pack_harmed_on_all_clouds(drive: Stock) -> None:
    """The bytes, or an error; what lies in packs that are whole can be read."""
    cases = all_clouds(drive, "packs")
    failed: set[str] = set()
    files = len(drive.files)
    async with drive.mount.opened(READING) as opened:
        for turn in rounds(cases):
            drive.do(*turn)
            failed |= (await read_all(opened, drive)).keys()
            drive.restore()
        assert await read_all(opened, drive) == {}
        for case in sample(cases, 6):
            drive.do(case)
            errors = await read_all(opened, drive)
            assert len(errors) < files - 1, case
            assert all(case.what.rpartition("/")[2] in why for why in errors.values()), (case, errors)
            drive.restore()
    print(f"{len(cases)} cases")
    assert len(cases) >= 50
    assert len(failed) == files, "harm that hurts nothing proves nothing"


# -- a new mount --


async def mounted_state(stock: Stock) -> dict[str, str] | str:
    """Open the drive for writing and read everything; return the errors of reading, or why it could not be opened."""
    try:
        async with stock.mount.opened() as opened:
            errors = await read_all(opened, stock)
            assert await opened.drive.check_invariants() == []
            return errors
    except CuckooError as error:
        return one_line(error)


def one_line(error: BaseException) -> str:
    """Return what a user is told.  Fails for what no user is meant to see."""
    root = innermost(error)
    assert isinstance(root, CuckooError), repr(root)
    said = str(root)
    assert said.count("\n") == 0, said
    assert len(said) > 20, said
    return said


async def test_a_mount_with_one_cloud_harmed(drive: Stock, request: pytest.FixtureRequest) -> None:
    """Everything of the drive that is not a pack, on one cloud: the machine shows its newest state, and it is whole."""
    turns = [
        (place, turn)
        for place in drive.mount.places
        for kinds in (("keys", "lease", "meta"), ("drive.json",))
        for turn in rounds(one_cloud(drive, *kinds, place=place))
    ]
    step = 1 if request.config.getoption("--long") else 29
    for place, cases in turns[::step]:
        reset(drive)
        drive.do(*cases)
        assert await mounted_state(drive) == {}, [str(case) for case in cases]
        for other in drive.mount.places:
            assert other == place or drive.objects[other.name].keys() - contents(other).keys() <= old_claims(drive)
    print(f"{sum(len(cases) for _, cases in turns[::step])} cases in {len(turns[::step])} mounts")


def old_claims(stock: Stock) -> set[str]:
    """Return the claims: a new mount removes them."""
    return {name for there in stock.objects.values() for name in there if kind_of(name) == "lease"}


async def test_a_mount_with_all_clouds_harmed(drive: Stock, request: pytest.FixtureRequest) -> None:
    """One object on all clouds: the newest state, which this machine has, or one line."""
    cases = sample(all_clouds(drive, *KINDS[:-1]), count_of(request, 3))
    refused = 0
    for case in cases:
        reset(drive)
        drive.do(case)
        outcome = await mounted_state(drive)
        if case.kind == "drive.json":
            assert isinstance(outcome, str) or all(name in drive.files for name in outcome), case
        elif isinstance(outcome, str):
            refused += 1
            assert case.kind == "meta", (case, outcome)
        else:
            assert outcome == {}, case
    print(f"{len(cases)} cases, {refused} of them refused")


# -- a machine that has nothing --


@frozen
class Burnt:
    """A machine without the drive.  `states`: what the drive is at each epoch, as its metadata have it."""

    stock: Stock
    paths: DrivePaths
    key: bytes
    pool: WorkerPool
    states: dict[int, Dump]

    @property
    def newest(self) -> int:
        """The drive's newest epoch."""
        return max(epochs_of(self.stock))

    async def recover(self, place: Place, *, accept_stale: bool = False) -> tuple[Found, Dump] | str:
        """Recover through a cloud with the recovery key; return it with the state, or what the user is told."""
        try:
            door = await open_door(self.pool, place.outside)
            key = open_slots(door.slots, recovery_key_of(self.key))
            assert key == self.key
            recovery = Recovery(self.pool, door, key, self.paths, Wishes(name="default", accept_stale=accept_stale))
            found = await recovery.find()
            await recovery.keep(found)
            return found, dump(self.paths)
        except Exception as error:
            give_up(self.paths)
            assert not self.paths.metadata.exists()
            return one_line(error)
        finally:
            for path in (self.paths.config_file, self.paths.key_file, *self.paths.state.rglob("*")):
                if path.is_file():
                    path.unlink()


def dump(paths: DrivePaths) -> Dump:
    """Return all rows that epochs carry."""
    with closing(sqlite3.connect(paths.metadata)) as database:
        return {table.name: sorted(database.execute(f"SELECT * FROM {table.name}"), key=repr) for table in JOURNALED}


def epochs_of(stock: Stock) -> dict[int, str]:
    """Return the names of the epochs' objects, by number."""
    return {int(name.rpartition("/")[2].split("-")[1], 16): name for name in stock.targets("meta")}


@asynccontextmanager
async def burnt(stock: Stock, tmp_path: Path) -> AsyncIterator[Burnt]:
    """Make that machine, and find out what its drive is at each epoch."""
    paths = PoolMount(tmp_path / "other", ()).paths
    key = read_drive_key(stock.mount.paths.key_file)
    async with open_worker_pool() as pool:
        machine = Burnt(stock, paths, key, pool, {})
        names = epochs_of(stock)
        for epoch in sorted(names):
            for place in stock.mount.places:
                later = {name for number, name in names.items() if number > epoch}
                set_place(place, {name: data for name, data in contents_of(stock, place).items() if name not in later})
            outcome = await machine.recover(stock.mount.places[0])
            assert not isinstance(outcome, str), outcome
            machine.states[epoch] = outcome[1]
        different = len({repr(state) for state in machine.states.values()})
        assert different == len(names) >= 4
        is_same = machine.states[machine.newest] == dump(stock.mount.paths)
        assert is_same, "the clouds do not have what this machine has"
        stock.restore()
        yield machine


def contents_of(stock: Stock, place: Place) -> Mapping[str, bytes]:
    return stock.objects[place.name]


async def test_recovery_with_one_cloud_harmed(drive: Stock, tmp_path: Path) -> None:
    """Through another cloud it gives the newest state, without a word; through that cloud at least nothing else."""
    count = through = 0
    async with burnt(drive, tmp_path) as machine:
        for number, place in enumerate(drive.mount.places):
            other = drive.mount.places[number - 1]
            for kinds in (("keys", "lease", "meta"), ("drive.json",)):
                for cases in rounds(one_cloud(drive, *kinds, place=place)):
                    drive.do(*cases)
                    told = [str(case) for case in cases]
                    outcome = await machine.recover(other)
                    assert not isinstance(outcome, str), (told, outcome)
                    assert outcome[1] == machine.states[machine.newest], told
                    assert outcome[0].newer == (), told
                    outcome = await machine.recover(place)
                    if not isinstance(outcome, str):
                        through += 1
                        assert outcome[1] == machine.states[machine.newest], told
                    count += len(cases)
                    drive.restore()
    print(f"{count} cases; {through} recoveries through the cloud itself worked")
    assert count >= 200
    assert through


async def test_recovery_through_a_harmed_cloud(drive: Stock, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """One object of the door alone: what is damaged there of the epochs comes from other clouds."""
    cases = sample(one_cloud(drive, *KINDS[:-1], place=drive.mount.places[0]), count_of(request, 20))
    refused: list[Case] = []
    async with burnt(drive, tmp_path) as machine:
        for case in cases:
            drive.do(case)
            outcome = await machine.recover(drive.mount.places[0])
            if isinstance(outcome, str):
                refused.append(case)
            else:
                assert outcome[1] == machine.states[machine.newest], case
            drive.restore()
    print(f"{len(cases)} cases, {len(refused)} of them refused")
    assert all(case.kind in ("keys", "drive.json", "meta") for case in refused)


async def test_recovery_with_all_clouds_harmed(drive: Stock, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """The newest state, an error, or with --accept-stale an older one: whole, and said to be older."""
    cases = sample(all_clouds(drive, *KINDS[:-1]), count_of(request, 40))
    outcomes = {"newest": 0, "hidden": 0, "refused": 0, "stale": 0}
    async with burnt(drive, tmp_path) as machine:
        names = epochs_of(drive)
        for case in cases:
            drive.do(case)
            outcome = await machine.recover(drive.mount.places[1])
            if isinstance(outcome, str):
                outcomes["refused"] += 1
                assert case.kind != "lease", (case, outcome)
                stale = await machine.recover(drive.mount.places[1], accept_stale=True)
                if not isinstance(stale, str):
                    outcomes["stale"] += 1
                    assert "--accept-stale" in outcome, (case, outcome)
                    assert stale[1] == machine.states[stale[0].tip.name.epoch], case
                    assert stale[0].newer, case
            elif outcome[1] == machine.states[machine.newest]:
                outcomes["newest"] += 1
            else:
                # Nobody can know what is hidden everywhere.
                outcomes["hidden"] += 1
                assert (case.harm.name, case.what) == ("deleted", names[machine.newest]), case
                assert outcome[1] == machine.states[machine.newest - 1], case
            drive.restore()
    print(f"{len(cases)} cases: {outcomes}")
    assert min(outcomes["newest"], outcomes["refused"], outcomes["stale"]) > 0


# -- whole clouds --


def older_clouds(stock: Stock) -> Mapping[str, Mapping[str, bytes]]:
    """Return the clouds as they were two epochs ago: with the packs of now, which does not matter here."""
    names = epochs_of(stock)
    gone = {names[max(names)], names[max(names) - 1]}
    return {
        place: {name: data for name, data in there.items() if name not in gone}
        for place, there in stock.objects.items()
    }


async def test_clouds_that_serve_an_old_state(drive: Stock, tmp_path: Path) -> None:
    """One or two of three are found out; all three only by who was told, or has the drive."""
    older = older_clouds(drive)
    async with burnt(drive, tmp_path) as machine:
        for count in (1, 2):
            for place in drive.mount.places[:count]:
                set_place(place, older[place.name])
            for door in (drive.mount.places[0], drive.mount.places[2]):
                outcome = await machine.recover(door)
                assert not isinstance(outcome, str), outcome
                assert outcome[1] == machine.states[machine.newest]
        set_place(drive.mount.places[2], older["c"])
        outcome = await machine.recover(drive.mount.places[0])
        assert not isinstance(outcome, str), outcome
        assert outcome[1] == machine.states[machine.newest - 2]
        # The machine that has the drive knows better, and afterwards so do the clouds.
        assert await mounted_state(drive) == {}
        for place in drive.mount.places:
            outcome = await machine.recover(place)
            assert not isinstance(outcome, str), outcome
            assert outcome[0].tip.name.epoch >= machine.newest
            assert outcome[1]["dentry"] == machine.states[machine.newest]["dentry"]


async def test_clouds_that_were_interchanged(drive: Stock, tmp_path: Path) -> None:
    """Each shows what belongs to the other: neither is believed, and the third one has the newest state."""
    first, second, third = drive.mount.places
    async with burnt(drive, tmp_path) as machine:
        set_place(first, drive.objects[second.name])
        set_place(second, drive.objects[first.name])
        outcome = await machine.recover(third)
        said = outcome if isinstance(outcome, str) else ""
        assert "only 1 of 3 clouds answer" in said
        stale = await machine.recover(third, accept_stale=True)
        assert not isinstance(stale, str), stale
        assert stale[1] == machine.states[machine.newest]
    async with drive.mount.opened(READING) as opened:
        assert all(name in drive.files for name in await read_all(opened, drive))
        states = {cloud["name"]: cloud["state"] for cloud in await clouds_of(opened)}
        assert states == {"a": "not-ours", "b": "not-ours", "c": "ok"}


def as_records(found: object) -> Sequence[Mapping[str, Any]]:
    assert isinstance(found, list)
    return found


async def clouds_of(opened: OpenedDrive) -> Sequence[Mapping[str, Any]]:
    clouds = (await opened.drive.status())["clouds"]
    assert isinstance(clouds, list)
    return clouds


# -- finding and repairing --


async def test_scrub_repairs_a_cloud_of_which_everything_is_harmed(
    drive: Stock, request: pytest.FixtureRequest
) -> None:
    """But its drive.json, without which it is no cloud of the drive, and the claim, which its holder puts anew."""
    turns = [
        (place, turn)
        for place in drive.mount.places
        for turn in rounds(one_cloud(drive, "keys", "meta", "packs", place=place))
    ]
    step = 1 if request.config.getoption("--long") else 16
    count = 0
    for place, cases in turns[::step]:
        reset(drive)
        async with drive.mount.opened() as opened:
            drive.do(*cases)
            told = [str(case) for case in cases]
            dry = (await opened.drive.scrubber.scrub(ScrubRequest(deep=True, dry_run=True))).as_document()
            assert dry["whole"] is False, told
            found = (await opened.drive.scrubber.scrub(ScrubRequest(deep=True))).as_document()
            assert found["whole"] is True, (told, found)
            assert bad_ones(found) == bad_ones(dry) == len(cases), (told, found)
            there = contents(place)
            for case in cases:
                if case.kind != "packs":  # a pack is written anew, under another name
                    assert there[case.what] == drive.objects[place.name][case.what], case
            again = (await opened.drive.scrubber.scrub(ScrubRequest(deep=True))).as_document()
            assert (again["whole"], bad_ones(again)) == (True, 0), told
            assert await read_all(opened, drive) == {}
            assert await opened.drive.check_invariants() == []
        count += len(cases)
    print(f"{count} cases in {len(turns[::step])} scrubs")
    assert count >= 15


def bad_ones(document: Mapping[str, Any]) -> int:
    """Return how many objects a scrub found to be missing or damaged."""
    return sum(found["missing"] + found["damaged"] for found in (document, document["epochs"], document["keys"]))


async def test_a_harmed_drive_json_is_named(drive: Stock, request: pytest.FixtureRequest) -> None:
    """That cloud is none of the drive's until somebody looks after it; nothing there is taken for lost."""
    place, count = drive.mount.places[0], 0
    for case in sample(one_cloud(drive, "drive.json", place=place), count_of(request, 4)):
        reset(drive)
        drive.do(case)
        async with drive.mount.opened() as opened:
            (state,) = [cloud for cloud in await clouds_of(opened) if cloud["name"] == place.name]
            if says_the_same(drive.change(case.harm, *case.targets[0][::-1]), drive.objects[place.name][case.what]):
                assert state["state"] == "ok", case
                continue
            count += 1
            assert state["state"] == "not-ours", case
            assert "drive.json" in state["last_error"] or "expected" in state["last_error"], (case, state)
            found = (await opened.drive.scrubber.scrub(ScrubRequest(deep=True))).as_document()
            assert [silent["name"] for silent in as_records(found["silent"])] == [place.name], case
            assert (found["missing"], found["damaged"], found["whole"]) == (0, 0, False), case
    print(f"{count} cases")
    assert count >= 2


def says_the_same(left: bytes | None, whole: bytes) -> bool:
    """Return whether this drive.json is none the worse for it: without its last newline, for example."""
    try:
        return bool(json.loads(left or b"") == json.loads(whole))
    except ValueError:
        return False

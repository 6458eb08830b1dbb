"""`cuckoo scrub`: whatever is missing or damaged on a cloud is found, repaired, and never taken for more than it is."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from itertools import cycle
from pathlib import Path
from typing import Any, Final

import pytest
import trio

from cuckoo_mount.format import parse_pack_share_name
from cuckoo_mount.packs.healing import Healer
from cuckoo_mount.packs.scrubbing import DEEP_PAGE, ScrubRequest
from cuckoo_mount.preparing import EPOCHS_FOLDER
from cuckoo_mount.testing.faulty import read_counts, write_plan
from tests.pool.conftest import MakePool
from tests.pool.packing import KIB, SEED
from tests.pool.pooling import OpenedDrive, Place, PoolMount, bring_back, folder_place, hide, take_inventory
from tests.pool.threeservers import ThreeServers

pytestmark = [pytest.mark.slow]


@pytest.fixture(autouse=True)
def nobody_heals_in_the_background(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that what a scrub finds is not gone before it looks.  Drives that are mounted, as daemons, do heal."""

    async def never(*_: object) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr(Healer, "run", never)


FILES: Final = 6
OTHER_REQUESTS: Final = 9
"""Of one cloud: drive.json before and after its listing, once for the epochs, theirs with the claims, its key slot."""
DEEP: Final = ScrubRequest(deep=True)
LISTING: Final = ScrubRequest()


def places_of(tmp_path: Path, count: int) -> list[Place]:
    return [folder_place(tmp_path / "clouds", name) for name in "abcdef"[:count]]


def content(number: int) -> bytes:
    return random.Random(number).randbytes(20 * KIB + number)


async def write_files(opened: OpenedDrive, first: int = 0, count: int = FILES) -> None:
    """One pack for each file."""
    for number in range(first, first + count):
        await opened.write(f"f{number}", content(number))
        await opened.sync()


async def assert_reads(opened: OpenedDrive, count: int = FILES) -> None:
    await opened.evict()
    for number in range(count):
        assert await opened.read(f"f{number}") == content(number), number


async def scrub(opened: OpenedDrive, request: ScrubRequest) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(json.dumps((await opened.drive.scrubber.scrub(request)).as_document()))
    assert await opened.drive.check_invariants() == []
    return document


def flip(data: bytes, at: int) -> bytes:
    at %= len(data)
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def pack_of(mount: PoolMount, name: str) -> bytes:
    return parse_pack_share_name(mount.configure().drive_id, name)[0]


def damage_one_share_of_each_pack(mount: PoolMount, change: Callable[[bytes], bytes | None]) -> int:
    """Change one share of every pack there is, on one cloud or another; return how many."""
    dice = random.Random(SEED)
    shares: dict[bytes, list[tuple[Place, str]]] = {}
    for place in mount.places:
        for name in place.packs():
            shares.setdefault(pack_of(mount, name), []).append((place, name))
    for _, there in sorted(shares.items()):
        place, name = dice.choice(there)
        changed = change(place.read(name))
        if changed is None:
            place.delete(name)
        else:
            place.write(name, changed)
    return len(shares)


WHOLE: Final[Mapping[str, object]] = {"missing": 0, "damaged": 0, "left": 0, "lost": 0, "degraded": 0, "whole": True}


def part(document: Mapping[str, Any], wanted: Mapping[str, object]) -> dict[str, object]:
    return {key: document[key] for key in wanted}


def packs_of(places: Iterable[Place]) -> dict[str, frozenset[str]]:
    return {place.name: frozenset(place.packs()) for place in places}


# -- what is found and repaired --


@pytest.mark.parametrize(("clouds", "redundancy"), [(3, "2"), (5, "3+2")])
async def test_a_bit_in_a_share_of_every_pack_is_found_and_repaired(
    tmp_path: Path, make_pool: MakePool, clouds: int, redundancy: str
) -> None:
    mount = make_pool(places_of(tmp_path, clouds), redundancy=redundancy)
    dice = random.Random(SEED)
    shares = 2 if redundancy == "2" else 5
    async with mount.opened() as opened:
        await write_files(opened)
        packs = damage_one_share_of_each_pack(mount, lambda data: flip(data, dice.randrange(len(data))))
        assert packs == FILES
        assert part(await scrub(opened, LISTING), WHOLE) == WHOLE, "the sizes are right"
        await assert_reads(opened)
        wanted = {**WHOLE, "damaged": packs, "repaired": packs, "checked": packs * shares}
        assert part(await scrub(opened, DEEP), wanted) == wanted
        assert part(await scrub(opened, DEEP), WHOLE) == WHOLE
        await assert_reads(opened)
        await opened.drive.collect(keep=1)
    for place in mount.places[: shares - (1 if redundancy == "2" else 3)]:
        place.wipe()
    async with mount.opened() as opened:
        await assert_reads(opened)


CHANGES: Final[tuple[Callable[[bytes], bytes | None], ...]] = (
    lambda data: None,
    lambda data: data[: len(data) // 2],
    lambda data: b"",
    lambda data: data + b"\0",
)
"""Deleted, cut, emptied, longer."""


async def test_a_listing_finds_what_has_not_its_size(tmp_path: Path, make_pool: MakePool) -> None:
    mount = make_pool(places_of(tmp_path, 3), redundancy="2")
    packs = 2 * len(CHANGES)
    async with mount.opened() as opened:
        await write_files(opened, count=packs)
        changes = cycle(CHANGES)
        assert damage_one_share_of_each_pack(mount, lambda data: next(changes)(data)) == packs
        wanted = {"missing": 2, "damaged": 6, "left": packs, "lost": 0, "degraded": 0, "whole": False}
        assert part(await scrub(opened, ScrubRequest(dry_run=True)), wanted) == wanted
        wanted["degraded"] = packs
        assert part(await scrub(opened, ScrubRequest(heal=False)), wanted) == wanted
        repaired = await scrub(opened, LISTING)
        assert part(repaired, WHOLE) == WHOLE, "their rows are gone, and so the packs were healed as degraded"
        assert repaired["healed_packs"] == packs
        await assert_reads(opened, packs)
        await opened.drive.collect(keep=1)
    inventory = take_inventory(mount)
    assert (inventory.orphans, inventory.dangling, inventory.strays, inventory.single) == ([], [], 0, 0)


async def test_all_shares_of_a_pack_may_be_damaged_each_in_another_chunk(tmp_path: Path, make_pool: MakePool) -> None:
    """Their rows stay until what is right in one or the other has become a pack of its own."""
    mount = make_pool(places_of(tmp_path, 2), redundancy="2")
    async with mount.opened() as opened:
        await opened.write("big", random.Random(SEED).randbytes(3 << 20))
        await opened.sync()
        for place, at in zip(mount.places, (1000, -300_000), strict=True):
            (name,) = place.packs()
            place.write(name, flip(place.read(name), at))
        found = await scrub(opened, ScrubRequest(deep=True, heal=False))
        assert (found["damaged"], found["left"], found["lost"], found["paths"]) == (2, 2, 1, [])
        found = await scrub(opened, DEEP)
        assert part(found, {**WHOLE, "damaged": 2}) == {**WHOLE, "damaged": 2}
        assert found["repaired"] == 2
        await opened.evict()
        assert await opened.read("big") == random.Random(SEED).randbytes(3 << 20)


async def test_what_is_lost_is_named(tmp_path: Path, make_pool: MakePool) -> None:
    mount = make_pool(places_of(tmp_path, 1))
    async with mount.opened() as opened:
        for number in range(3):
            await opened.write(f"together{number}", content(number))
        await opened.sync()
        (together,) = mount.places[0].packs()
        await opened.write("alone", content(9))
        await opened.sync()
        (alone,) = mount.places[0].packs().keys() - {together}
        whole = {name: mount.places[0].read(name) for name in (together, alone)}
        mount.places[0].delete(alone)
        mount.places[0].write(together, flip(whole[together], 100))
        found = await scrub(opened, DEEP)
        assert (found["missing"], found["damaged"], found["lost"], found["left"]) == (1, 1, 2, 2)
        assert found["whole"] is False
        assert len(found["paths"]) == 2
        assert "/alone" in found["paths"]
        # Nothing was given up: what comes back is there again.
        for name, data in whole.items():
            mount.places[0].write(name, data)
        assert part(await scrub(opened, DEEP), WHOLE) == WHOLE
        await opened.evict()
        assert await opened.read("alone") == content(9)


async def test_epoch_objects_are_put_again(tmp_path: Path, make_pool: MakePool) -> None:
    mount = make_pool(places_of(tmp_path, 3), redundancy="2")
    async with mount.opened() as opened:
        await write_files(opened, count=3)
        await scrub(opened, LISTING)
        sick, healthy = mount.places[0], mount.places[1]
        metas = sorted(name for name in sick.sizes() if "/meta/" in name)
        assert metas == sorted(name for name in healthy.sizes() if "/meta/" in name)
        whole = {name: sick.read(name) for name in metas}
        sick.delete(metas[0])
        sick.write(metas[1], whole[metas[1]][:-5])
        sick.write(metas[2], flip(whole[metas[2]], 300))
        found = await scrub(opened, ScrubRequest(deep=True, dry_run=True))
        assert (found["epochs"]["missing"], found["epochs"]["damaged"], found["epochs"]["left"]) == (1, 2, 3)
        found = await scrub(opened, LISTING)
        assert (found["epochs"]["missing"], found["epochs"]["damaged"], found["epochs"]["repaired"]) == (1, 1, 2)
        # This machine has lost its copy of the last one: another cloud's is taken.
        os.unlink(mount.paths.state / EPOCHS_FOLDER / metas[2].rpartition("/")[2])
        found = await scrub(opened, DEEP)
        assert (found["epochs"]["missing"], found["epochs"]["damaged"], found["epochs"]["repaired"]) == (0, 1, 1)
        assert found["epochs"]["checked"] == sum("/meta/" in name for place in mount.places for name in place.sizes())
        assert found["whole"] is True
        assert {name: sick.read(name) for name in metas} == whole


# -- what proves nothing --


async def test_clouds_that_do_not_answer_prove_nothing(tmp_path: Path, make_pool: MakePool) -> None:
    mount = make_pool(places_of(tmp_path, 3), redundancy="2")
    async with mount.opened() as opened:
        await write_files(opened)
        gone, emptied, refusing = mount.places
        hide([gone])
        hide([emptied])
        os.mkdir(emptied.config.url)
        write_plan(refusing.plan, {"calls": ["list", "get", "get_range"], "action": "refuse"}, seed=SEED)
        for request in (LISTING, DEEP):
            found = await scrub(opened, request)
            assert (found["missing"], found["damaged"], found["lost"], found["degraded"]) == (0, 0, 0, 0)
            assert found["checked"] == 0
            assert found["unchecked"] == 2 * FILES
            assert [silent["name"] for silent in found["silent"]] == ["a", "b", "c"]
            assert found["whole"] is False
        bring_back([gone])
        os.rmdir(emptied.config.url)
        bring_back([emptied])
        write_plan(refusing.plan)
        assert part(await scrub(opened, DEEP), WHOLE) == WHOLE


async def test_a_listing_that_is_late_proves_nothing(tmp_path: Path, make_pool: MakePool) -> None:
    mount = make_pool(places_of(tmp_path, 2), redundancy="2")
    async with mount.opened() as opened:
        await write_files(opened)
        write_plan(mount.places[0].plan, {"calls": ["list"], "match": "/packs/", "action": "cut"}, seed=SEED)
        assert part(await scrub(opened, LISTING), WHOLE) == WHOLE
        assert read_counts(mount.places[0].plan)["acted 0"] == 1
        write_plan(mount.places[0].plan)


async def test_bytes_that_are_wrong_once_prove_nothing(tmp_path: Path, make_pool: MakePool) -> None:
    mount = make_pool(places_of(tmp_path, 2), redundancy="2")
    async with mount.opened() as opened:
        await write_files(opened, count=2)
        rule = {"calls": ["get_range"], "match": "/packs/", "action": "corrupt", "nth": 2}
        write_plan(mount.places[0].plan, rule, seed=SEED)
        assert part(await scrub(opened, DEEP), WHOLE) == WHOLE
        assert read_counts(mount.places[0].plan)["acted 0"] == 1
        write_plan(mount.places[0].plan)


async def test_nothing_is_dropped_while_packs_come_and_go(
    tmp_path: Path, make_pool: MakePool, request: pytest.FixtureRequest
) -> None:
    """Written, overwritten, compacted and collected while scrubs follow one another."""
    rounds = 60 if request.config.getoption("--long") else 8
    mount = make_pool(places_of(tmp_path, 3), redundancy="2")
    dice = random.Random(SEED)
    async with mount.opened() as opened:
        await write_files(opened)
        scrubs = 0

        ended = trio.Event()

        async def disturb() -> None:
            for number in range(rounds):
                await write_files(opened, dice.randrange(FILES), dice.randrange(1, 4))
                await opened.unlink(dice.choice(await opened.names()))
                await opened.drive.collect(keep=1, thorough=number % 2 == 0)
            ended.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(disturb)
            while not ended.is_set():
                found = await scrub(opened, dice.choice((LISTING, DEEP)))
                assert (found["missing"], found["damaged"], found["lost"]) == (0, 0, 0)
                scrubs += 1
        print(f"{scrubs} scrubs beside {rounds} rounds of changes")
        assert scrubs
        await scrub(opened, DEEP)
        for name in await opened.names():
            await opened.evict()
            assert await opened.read(name) == content(int(name[1:]))


# -- the command --


def test_a_deep_scrub_that_was_killed_goes_on(tmp_path: Path, make_pool: MakePool) -> None:
    files = 24
    mount = make_pool(places_of(tmp_path, 2), redundancy="2")
    trio.run(store, mount, files)
    damaged = mount.places[0]
    (first, *_) = sorted(damaged.packs(), key=lambda name: damaged.read(name))
    damaged.write(first, flip(damaged.read(first), 50))
    slow = {"calls": ["get_range"], "match": "/packs/", "action": "delay", "seconds": 0.03}
    for place in mount.places:
        write_plan(place.plan, slow, seed=SEED)
    process = subprocess.Popen(
        [sys.executable, "-m", "cuckoo_mount.cli.main", "scrub", "--deep"],
        env=mount.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while reads(mount) < 2 * DEEP_PAGE + 6:
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    before = reads(mount)
    result = json.loads(mount.cuckoo("scrub", "--deep", "--json").stdout)
    after = reads(mount) - before
    print(f"{before} and then {after} reads of {2 * files} shares")
    assert before < 2 * files
    assert result["resumed"] is True
    assert result["checked"] == 2 * files
    assert (result["damaged"], result["repaired"], result["left"]) == (1, 1, 0)
    # A page that was not finished is read again, and the damaged share twice; healing reads the pack.
    assert after <= 2 * files - before + 2 * DEEP_PAGE + 8


async def store(mount: PoolMount, files: int) -> None:
    async with mount.opened() as opened:
        await write_files(opened, count=files)


def reads(mount: PoolMount) -> int:
    return sum(read_counts(place.plan).get("matched 0", 0) for place in mount.places)


@pytest.mark.mount
def test_on_a_mounted_drive(tmp_path: Path, make_pool: MakePool) -> None:
    mount = make_pool(places_of(tmp_path, 3), redundancy="2")
    mount.start()
    for number in range(3):
        (mount.path / f"f{number}").write_bytes(content(number))
        mount.sync()
    assert mount.cuckoo("scrub").stdout.endswith(b": 0 missing, 0 damaged.\nEverything is there.\n")
    damage_one_share_of_each_pack(mount, lambda data: flip(data, 70))
    dry = mount.cuckoo("scrub", "--deep", "--dry-run", check=False)
    assert dry.returncode == 3
    assert b" 3 damaged." in dry.stdout
    assert b"3 of them repaired, 0 left." in mount.cuckoo("scrub", "--deep").stdout
    damage_one_share_of_each_pack(mount, lambda data: None)
    hide(mount.places[:1])
    degraded = mount.cuckoo("scrub", check=False)
    assert degraded.returncode == 3
    assert b"cloud a was not looked at" in degraded.stdout
    bring_back(mount.places[:1])
    assert mount.cuckoo("scrub").returncode == 0
    assert mount.status()["packs"]["degraded"] == 0
    assert mount.cuckoo("scrub", "--restart", check=False).returncode == 2
    mount.evict()
    mount.drop_caches()
    for number in range(3):
        assert (mount.path / f"f{number}").read_bytes() == content(number)
    mount.umount()
    mount.start("-o", "ro")
    refused = mount.cuckoo("scrub", check=False)
    assert refused.returncode == 1
    assert b"reading only" in refused.stderr


# -- requests --


async def test_what_it_costs_on_servers(make_pool: MakePool, three_servers: ThreeServers) -> None:
    """Of packs: one listing per cloud, and with `deep` one GET per share."""
    mount = make_pool((three_servers.weed, three_servers.rclone), redundancy="2")
    async with mount.opened() as opened:
        await write_files(opened, count=3)
        assert (await scrub(opened, LISTING))["whole"] is True
        three_servers.reset()
        assert (await scrub(opened, LISTING))["whole"] is True
        print(f"listing: {three_servers.requests()}")
        for name, proxy in three_servers.proxies.items():
            about_packs = [method for method, target in proxy.requests() if "packs" in target]
            assert about_packs == ["GET"], name
            assert len(proxy.requests()) <= OTHER_REQUESTS
        three_servers.reset()
        assert (await scrub(opened, DEEP))["whole"] is True
        print(f"deep: {three_servers.requests()}")
        epochs = sum("/meta/" in name for place in mount.places for name in place.sizes())
        assert three_servers.total() <= 2 * OTHER_REQUESTS + 2 * 3 + epochs
        gone = next(iter(three_servers.weed.packs()))
        three_servers.weed.delete(gone)
        spoilt = next(name for name in three_servers.rclone.packs() if pack_of(mount, name) != pack_of(mount, gone))
        three_servers.rclone.write(spoilt, flip(three_servers.rclone.read(spoilt), -1))
        found = await scrub(opened, DEEP)
        assert (found["missing"], found["damaged"], found["left"], found["lost"]) == (1, 1, 0, 0)
        assert found["whole"] is True

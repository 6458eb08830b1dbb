"""Damage to every object of a small drive: never wrong data, and with two copies never an error either.

Each object on each cloud is damaged in each way, one at a time, and everything is read from the clouds anew.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

import pytest
from attrs import field, frozen

from cuckoo_mount.errors import DataUnavailable
from tests.pool.conftest import MakePool
from tests.pool.pooling import OpenedDrive, Place, PoolMount, folder_place

pytestmark = [pytest.mark.slow]

KIB: Final = 1 << 10
SEED: Final = 20_261_122
CLOUDS: Final = ("a", "b", "c")


@frozen
class Damage:
    """One way to damage an object: `change` gets its bytes and those of another object of its kind."""

    name: str
    change: Callable[[bytes, bytes], bytes | None] = field(repr=False)


def flip(data: bytes, at: int) -> bytes:
    """Return `data` with the lowest bit of one byte changed."""
    at %= len(data)
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


DAMAGES: Final = (
    Damage("first bit", lambda data, _: flip(data, 0)),
    Damage("first body's bit", lambda data, _: flip(data, 64)),
    Damage("bit in the middle", lambda data, _: flip(data, len(data) // 2)),
    Damage("last bit", lambda data, _: flip(data, -1)),
    Damage("every byte", lambda data, _: bytes(byte ^ 0xFF for byte in data)),
    Damage("zeros", lambda data, _: bytes(len(data))),
    Damage("cut in half", lambda data, _: data[: len(data) // 2]),
    Damage("last byte gone", lambda data, _: data[:-1]),
    Damage("one byte more", lambda data, _: data + b"\0"),
    Damage("first byte gone", lambda data, _: data[1:]),
    Damage("empty", lambda data, _: b""),
    Damage("swapped with another valid one", lambda _, other: other),
    Damage("deleted", lambda _, __: None),
)


def contents() -> dict[str, bytes]:
    """Return files whose chunks are small, big, compressible and alike, in a few packs."""
    dice = random.Random(SEED)
    files = {f"small{number}": dice.randbytes(dice.randrange(1, 3000)) for number in range(6)}
    files["text"] = b"compressible " * 9000
    files["two chunks"] = dice.randbytes(1100 * KIB)
    files["twin"] = files["small0"]
    return files


async def store(mount: PoolMount, files: Mapping[str, bytes]) -> None:
    """Store the files in three packs or more, so that there are others to swap with."""
    async with mount.opened() as opened:
        for number, (name, data) in enumerate(files.items()):
            await opened.write(name, data)
            if number % 3 == 2:
                await opened.sync()
        await opened.sync()


def cases(mount: PoolMount) -> Iterator[tuple[Place, str, Damage]]:
    """Yield every object below packs/ with every damage."""
    for place in mount.places:
        for name in sorted(place.packs()):
            for damage in DAMAGES:
                yield place, name, damage


def another(place: Place, name: str, places: tuple[Place, ...]) -> bytes:
    """Return the bytes of another pack: one of the same cloud, or else of any."""
    for where in (place, *places):
        for other in sorted(where.packs()):
            if other.rpartition("/")[2][:32] != name.rpartition("/")[2][:32]:
                return where.read(other)
    raise AssertionError("there is only one pack")


async def read_all(opened: OpenedDrive, files: Mapping[str, bytes], what: str) -> int:
    """Return how many files could not be read.  Fails for a single wrong byte."""
    await opened.evict()
    refused = 0
    for name, data in files.items():
        try:
            found = await opened.read(name)
        except DataUnavailable:
            refused += 1
        else:
            assert found == data, f"{name} is wrong: {what}"
    return refused


async def damage_one_by_one(mount: PoolMount, files: Mapping[str, bytes]) -> dict[str, int]:
    """Damage every pack object in every way; return, per kind of damage, how many reads ended with an error."""
    refused = dict.fromkeys((damage.name for damage in DAMAGES), 0)
    done = 0
    async with mount.opened() as opened:
        assert await read_all(opened, files, "undamaged") == 0
        for place, name, damage in cases(mount):
            whole = place.read(name)
            broken = damage.change(whole, another(place, name, mount.places))
            if broken is None:
                place.delete(name)
            else:
                assert broken != whole
                place.write(name, broken)
            refused[damage.name] += await read_all(opened, files, f"{damage.name}, {name} on {place.name}")
            place.write(name, whole)
            done += 1
        assert await read_all(opened, files, "whole again") == 0
        assert await opened.drive.check_invariants() == []
    print(f"{done} damages, reads refused: {refused}")
    return refused


async def test_with_one_copy_there_is_an_error_but_no_wrong_byte(tmp_path: Path, make_pool: MakePool) -> None:
    mount = make_pool([folder_place(tmp_path, name) for name in CLOUDS])
    files = contents()
    await store(mount, files)
    assert len({name for place in mount.places for name in place.packs()}) >= 3
    refused = await damage_one_by_one(mount, files)
    harmless = {"first bit", "last bit", "last byte gone", "one byte more"}
    assert all(refused[name] for name in refused.keys() - harmless), refused


async def test_with_two_copies_nobody_notices(tmp_path: Path, make_pool: MakePool) -> None:
    mount = make_pool([folder_place(tmp_path, name) for name in CLOUDS], redundancy="2")
    files = contents()
    await store(mount, files)
    assert set((await damage_one_by_one(mount, files)).values()) == {0}


# -- drive.json --


IDENTITY_DAMAGES: Final = ("bit in the middle", "cut in half", "empty", "swapped with another valid one", "deleted")


@pytest.mark.parametrize("name", IDENTITY_DAMAGES)
async def test_drive_json_is_damaged(tmp_path: Path, make_pool: MakePool, name: str) -> None:
    """While open, and at the next opening: two copies are read, new packs go elsewhere, and nobody writes there."""
    mount = make_pool([folder_place(tmp_path, name) for name in CLOUDS], redundancy="2")
    files = contents()
    await store(mount, files)
    identity = mount.identity()
    sick, other = mount.places[0], mount.places[1]
    damage = next(damage for damage in DAMAGES if damage.name == name)
    whole = sick.read(identity)
    broken = damage.change(whole, other.read(identity))
    async with mount.opened() as opened:
        _replace(sick, identity, broken)
        assert await read_all(opened, files, f"{damage.name} while open") == 0
    before = sick.sizes()
    async with mount.opened() as opened:
        assert await read_all(opened, files, f"{damage.name} before it was opened") == 0
        status = await opened.drive.status()
        assert status["state"] == "degraded"
        assert await opened.last_error(sick.name)
        await opened.write("new", b"new")
        await opened.sync()
        assert await opened.read("new") == b"new"
    assert sick.sizes() == before
    if broken is not None:
        assert sick.read(identity) == broken
    _replace(sick, identity, whole)
    async with mount.opened() as opened:
        assert (await opened.drive.status())["state"] == "ok"
        assert await read_all(opened, {**files, "new": b"new"}, "whole again") == 0


def _replace(place: Place, name: str, data: bytes | None) -> None:
    if data is None:
        place.delete(name)
    else:
        place.write(name, data)


# -- with the kernel --


@pytest.mark.mount
@pytest.mark.parametrize("redundancy", ["none", "2"])
def test_programs_see_no_wrong_byte(tmp_path: Path, make_pool: MakePool, redundancy: str) -> None:
    """Every object of one cloud after the other is damaged while mounted; the kernel's cache is emptied between."""
    mount = make_pool([folder_place(tmp_path / "clouds", name) for name in CLOUDS], redundancy=redundancy)
    files = contents()
    mount.start()
    for number, (name, data) in enumerate(files.items()):
        (mount.path / name).write_bytes(data)
        if number % 3 == 2:
            mount.sync()
    mount.sync()
    refused = 0
    for place in mount.places:
        saved = {name: place.read(name) for name in place.packs()}
        for name, whole in saved.items():
            place.write(name, flip(whole, len(whole) // 2))
        mount.evict()
        assert mount.drop_caches() or pytest.skip("the page cache cannot be emptied here")
        for name, data in files.items():
            try:
                assert (mount.path / name).read_bytes() == data, f"{name}, {place.name} is damaged"
            except OSError:
                refused += 1
        for name, whole in saved.items():
            place.write(name, whole)
    print(f"redundancy {redundancy}: {refused} reads refused")
    assert (refused == 0) == (redundancy == "2")

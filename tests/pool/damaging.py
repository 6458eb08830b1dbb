"""A small drive with everything in it, every object of it by name, and every way to harm one.

Used by test_pool_harm.py.  `make_stock` fills a drive over three folders and returns a `Stock`: what its clouds had
when it was left, what every object that ever lay there had in it (also objects that are gone, and leases before they
were renewed), and what its files have.  `Stock.restore` brings the clouds back to that; `cases_of` derives the cases.
"""

from __future__ import annotations

import os
import random
import shutil
import stat
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final

from attrs import field, frozen

from cuckoo_mount.layers.keyslots import Passphrase
from cuckoo_mount.preparing import EPOCHS_FOLDER
from cuckoo_mount.slots import proof_of
from cuckoo_mount.types import ROOT_INODE
from tests.pool.pooling import ME, OpenedDrive, Place, PoolMount

SEED: Final = 20_261_130
KIB: Final = 1 << 10
MIB: Final = 1 << 20
KINDS: Final = ("drive.json", "keys", "lease", "meta", "packs")
SPARSE_AT: Final = 2 * MIB + 77
OLD_PASSPHRASE: Final = Passphrase("the one before")
PASSPHRASE: Final = Passphrase("correct horse battery")


@frozen
class Harm:
    """One way to harm an object.  `change` gets its bytes and those of another object; None: it is deleted.

    `other`: which that is: another of its kind that is `valid` now, or an `old` one.
    """

    name: str
    change: Callable[[bytes, bytes], bytes | None] = field(repr=False)
    other: str = "valid"


def flip(data: bytes, at: int) -> bytes:
    """Return `data` with one bit changed."""
    at %= len(data)
    return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]


HARMS: Final = (
    Harm("bit at the begin", lambda data, _: flip(data, 3)),
    Harm("bit in the middle", lambda data, _: flip(data, len(data) // 2)),
    Harm("bit at the end", lambda data, _: flip(data, -2)),
    Harm("cut in half", lambda data, _: data[: len(data) // 2]),
    Harm("cut by a byte", lambda data, _: data[:-1]),
    Harm("longer", lambda data, _: data + b"\0"),
    Harm("emptied", lambda data, _: b""),
    Harm("deleted", lambda data, _: None),
    Harm("another", lambda _, other: other),
    Harm("an old one", lambda _, other: other, "old"),
)


@frozen
class Case:
    """One harm to the same object on some clouds; of a pack each of them has another share."""

    harm: Harm
    targets: tuple[tuple[Place, str], ...]

    @property
    def kind(self) -> str:
        """What sort of object it is."""
        return kind_of(self.targets[0][1])

    @property
    def what(self) -> str:
        """The object's name, of a pack without the share."""
        return whole_of(self.targets[0][1])

    def __str__(self) -> str:
        places = " ".join(place.name for place, _ in self.targets)
        return f"{self.harm.name}: {'/'.join(self.what.split('/')[2:])} on {places}"


def whole_of(name: str) -> str:
    """Return what an object is a copy or a share of."""
    return name.rpartition(".")[0] if kind_of(name) == "packs" else name


def kind_of(name: str) -> str:
    """Return which of `KINDS` an object is."""
    kind = name.split("/")[2]
    assert kind in KINDS, name
    return kind


@frozen
class Stock:
    """The drive.  `objects`: of each cloud, name → bytes; `past`: of every object that was there once, also if it is
    not any more, all bytes that it ever had; `files`: name → content."""

    mount: PoolMount
    objects: Mapping[str, Mapping[str, bytes]] = field(repr=False)
    past: Mapping[str, tuple[bytes, ...]] = field(repr=False)
    files: Mapping[str, bytes] = field(repr=False)

    def targets(self, *kinds: str) -> dict[str, list[tuple[Place, str]]]:
        """Return every object of these kinds, by `whole_of`, with where it lies under what name."""
        found: dict[str, list[tuple[Place, str]]] = {}
        for place in self.mount.places:
            for name in sorted(self.objects[place.name]):
                if kind_of(name) in kinds:
                    found.setdefault(whole_of(name), []).append((place, name))
        return found

    def change(self, harm: Harm, name: str, place: Place) -> bytes | None:
        """Return what is left of an object after a harm."""
        data = self.objects[place.name][name]
        return harm.change(data, self._another(harm.other, name, data))

    def _another(self, which: str, name: str, data: bytes) -> bytes:
        """Return other bytes of the same kind of object: of another one, or old ones, of the same one if it has any."""
        kind = kind_of(name)
        valid = [there[other] for there in self.objects.values() for other in sorted(there) if kind_of(other) == kind]
        mine = [old for old in self.past[name] if old != data]
        older = [
            old for other in sorted(self.past) if other < name and kind_of(other) == kind for old in self.past[other]
        ]
        others = [*older, *mine] if which == "old" else valid
        found = [other for other in others if other != data] or [other for other in valid if other != data]
        found = found or [old for past in self.past.values() for old in past if old != data]
        return found[-1]

    def do(self, *cases: Case) -> None:
        """Do the harm.  A case that would change nothing is a mistake of this file."""
        for case in cases:
            for place, name in case.targets:
                left = self.change(case.harm, name, place)
                is_changed = left != self.objects[place.name][name]
                assert is_changed, case
                write(place, name, left)

    def restore(self) -> None:
        """Bring all clouds back to what they were."""
        for place in self.mount.places:
            set_place(place, self.objects[place.name])


def write(place: Place, name: str, data: bytes | None) -> None:
    """Put an object into a folder cloud from outside, or None: take it away.  Never changes a file in place."""
    path = Path(place.config.url, name)
    path.unlink(missing_ok=True)
    if data is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def contents(place: Place) -> dict[str, bytes]:
    """Return every object of a folder cloud."""
    return {name: Path(place.config.url, name).read_bytes() for name in place.sizes()}


def set_place(place: Place, objects: Mapping[str, bytes]) -> None:
    """Let a folder cloud have these objects, and no other."""
    there = place.sizes()
    for name in there.keys() | objects.keys():
        if name not in there or name not in objects or Path(place.config.url, name).read_bytes() != objects[name]:
            write(place, name, objects.get(name))


def one_cloud(stock: Stock, *kinds: str, place: Place | None = None) -> list[Case]:
    """Return every harm to every object of these kinds, on each cloud that has it (or on `place` alone)."""
    return [
        Case(harm, (target,))
        for targets in stock.targets(*kinds).values()
        for target in targets
        if place is None or target[0] == place
        for harm in HARMS
    ]


def all_clouds(stock: Stock, *kinds: str) -> list[Case]:
    """Return every harm to every object of these kinds, on all clouds that have it."""
    return [Case(harm, tuple(targets)) for targets in stock.targets(*kinds).values() for harm in HARMS]


def rounds(cases: Iterable[Case]) -> list[list[Case]]:
    """Return the cases in as few rounds as can be: in each of them no object is harmed twice, and harms are mixed."""
    by_object: dict[str, list[Case]] = {}
    for case in cases:
        by_object.setdefault(case.what, []).append(case)
    most = max(len(found) for found in by_object.values())
    turns: list[list[Case]] = [[] for _ in range(most)]
    for start, (_, found) in enumerate(sorted(by_object.items())):
        for at, case in enumerate(found):
            turns[(start + at) % most].append(case)
    return turns


def sample(cases: Iterable[Case], count: int | None) -> list[Case]:
    """Return `count` of the cases (None: all), of each kind of object and each harm at least one if there is room."""
    found = list(cases)
    if count is None or count >= len(found):
        return found
    random.Random(SEED).shuffle(found)
    first: dict[tuple[str, str], Case] = {}
    for case in found:
        first.setdefault((case.kind, case.harm.name), case)
    rest = [case for case in found if first[case.kind, case.harm.name] is not case]
    return [*first.values(), *rest][:count]


# -- making it --


class _Past:
    """Collects all bytes that an object ever had."""

    def __init__(self, mount: PoolMount) -> None:
        self._mount = mount
        self.found: dict[str, tuple[bytes, ...]] = {}

    def look(self) -> None:
        for place in self._mount.places:
            for name, data in contents(place).items():
                known = self.found.get(name, ())
                if data not in known:
                    self.found[name] = (*known, data)


async def make_stock(mount: PoolMount) -> Stock:
    """Fill a drive in three sessions: two snapshots, journals, packs of one and of many chunks, two passphrases."""
    dice = random.Random(SEED)
    files: dict[str, bytes] = {}
    past = _Past(mount)

    async def write_file(opened: OpenedDrive, name: str, data: bytes) -> None:
        await opened.write(name, data)
        files[name] = data

    async with mount.opened() as opened:
        await _set_passphrase(opened, OLD_PASSPHRASE)
        for number in range(4):
            await write_file(opened, f"small{number}", dice.randbytes(3000 + number))
        await opened.sync()
        past.look()
        await write_file(opened, "big", dice.randbytes(MIB + 5000))
        await opened.sync()
        past.look()
    past.look()
    for path in (mount.paths.state / EPOCHS_FOLDER).iterdir():
        path.unlink()  # so that the next epoch is a snapshot
    async with mount.opened() as opened:
        await _set_passphrase(opened, PASSPHRASE)
        await write_file(opened, "small1", dice.randbytes(5000))
        await _add_kinds(opened, files, dice)
        await opened.sync()
        past.look()
    past.look()
    async with mount.opened() as opened:
        await write_file(opened, "text", b"the same line again and again\n" * 3000)
        await opened.unlink("small2")
        del files["small2"]
        await opened.sync()
        past.look()
        await write_file(opened, "last", dice.randbytes(70 * KIB))
        await write_file(opened, "small0", dice.randbytes(4000))
        await opened.sync()
        past.look()
    past.look()
    files["hard"] = files["small3"]
    return Stock(mount, {place.name: contents(place) for place in mount.places}, past.found, dict(files))


async def _set_passphrase(opened: OpenedDrive, passphrase: Passphrase) -> None:
    slots = opened.drive.slots
    await slots.change_passphrase(passphrase, proof_of(slots.drive_key))


async def _add_kinds(opened: OpenedDrive, files: dict[str, bytes], dice: random.Random) -> None:
    """Make a hard link, a symbolic link, attributes, and a file with a hole in it."""
    tree, filesystem = opened.drive.filesystem.tree, opened.drive.filesystem
    ino = (await tree.lookup(ROOT_INODE, b"small3")).ino
    await tree.link(ino, ROOT_INODE, b"hard")
    await tree.set_xattr(ino, b"user.colour", b"\xffgreen")
    await tree.make(ROOT_INODE, b"soft", stat.S_IFLNK | 0o777, ME, target=b"small3")
    handle, _ = await filesystem.create(ROOT_INODE, b"sparse", 0o600, ME)
    data = dice.randbytes(200)
    await filesystem.write(handle, SPARSE_AT, data)
    await filesystem.release(handle)
    files["sparse"] = bytes(SPARSE_AT) + data


def copy_folder(source: Path, target: Path) -> None:
    """Make `target` an exact copy."""
    if target.exists():
        shutil.rmtree(target)
    shutil.copytree(source, target, symlinks=True, ignore=lambda folder, _: _sockets(folder))


def _sockets(folder: str) -> set[str]:
    return {entry.name for entry in os.scandir(folder) if stat.S_ISSOCK(entry.stat(follow_symlinks=False).st_mode)}

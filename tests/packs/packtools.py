"""What the tests of packs and multi share: keys, sources, clouds in folders, an in-process pool, a small catalogue."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TypeVar

import trio
from attrs import evolve

from cuckoo_mount.clouds import jobs
from cuckoo_mount.clouds.base import CloudSettings
from cuckoo_mount.errors import CuckooError, MetadataError
from cuckoo_mount.layers.keys import DriveKeys
from cuckoo_mount.multi.records import CloudEntry
from cuckoo_mount.multi.redundancy import parse_policy
from cuckoo_mount.packs.builder import BuildSpec, BuiltPack, ChunkSource, build_pack
from cuckoo_mount.packs.writer import StoredPack
from cuckoo_mount.types import (
    ChunkIndex,
    CloudName,
    DirtyChunk,
    InodeNo,
    Location,
    PackNo,
    PackRow,
    VersionNo,
)

T = TypeVar("T")
KEYS = DriveKeys(bytes(range(32)))
DRIVE = b"drive-id-16bytes"
FIRST = PackNo(1)
PACK = b"pack-id-16-bytes"


def make_sources(folder: Path, contents: Sequence[bytes]) -> tuple[ChunkSource, ...]:
    """Write each content into a file of its own and return them as sources, versions 1, 2, …"""
    sources = []
    for number, content in enumerate(contents, start=1):
        path = folder / f"file-{number}"
        path.write_bytes(content)
        chunk = DirtyChunk(InodeNo(100 + number), ChunkIndex(number % 3), VersionNo(number), len(content))
        sources.append(ChunkSource(chunk, str(path), 0))
    return tuple(sources)


def build(
    folder: Path, contents: Sequence[bytes], *, encrypted: bool = True, pack_id: bytes = PACK
) -> tuple[BuiltPack, bytes]:
    """Build a pack in this process; return it and its bytes."""
    spec = BuildSpec(
        drive_id=DRIVE,
        pack_id=pack_id,
        keys=KEYS,
        encrypted=encrypted,
        sources=make_sources(folder, contents),
        target=str(folder / "target.pack"),
    )
    built = build_pack(spec)
    return built, Path(built.path).read_bytes()


def locations(built: BuiltPack, number: PackNo = FIRST) -> list[Location]:
    """Return where the chunks of a pack are, as the metadata would say."""
    return [
        Location(number, sealed.offset, sealed.length_bytes, sealed.chunk.length_bytes, sealed.digest)
        for sealed in built.sealed
    ]


def make_cloud(root: Path, name: str, *, group: str = "", capacity_bytes: int | None = None) -> CloudEntry:
    """Make a folder below `root` a cloud of the drive."""
    folder = root / name
    folder.mkdir()
    settings = CloudSettings(name=name, url=str(folder))
    cloud_id = name.encode().ljust(16, b"-")
    jobs.write_identity(settings, DRIVE, cloud_id)
    return CloudEntry(settings=settings, cloud_id=cloud_id, group=group, capacity_bytes=capacity_bytes)


def make_clouds(root: Path, *names: str) -> dict[CloudName, CloudEntry]:
    """Make several folders clouds."""
    return {CloudName(name): make_cloud(root, name) for name in names}


def stored_objects(entry: CloudEntry) -> list[Path]:
    """Return the files of a folder cloud, without drive.json."""
    return sorted(path for path in Path(entry.settings.url).rglob("*") if path.is_file() and path.name != "drive.json")


class InlinePool:
    """Runs jobs in this process; fails for a cloud as told; calls `on_step` at every checkpoint.

    `late`: by name of a job, what it raises, once, after it did its work.
    """

    def __init__(self) -> None:
        self.failures: dict[str, list[CuckooError | None]] = {}
        self.always: dict[str, CuckooError] = {}
        self.late: dict[str, CuckooError] = {}
        self.calls: list[tuple[str, str]] = []
        self.on_step: Callable[[], None] = lambda: None

    async def run(
        self,
        function: Callable[..., T],
        *args: object,
        deadline_s: float,
        started: Callable[[], object] = lambda: None,
    ) -> T:
        assert deadline_s > 0
        await self._step()
        started()
        cloud = args[0].name if args and isinstance(args[0], CloudSettings) else ""
        self.calls.append((function.__name__, cloud))
        planned = self.failures.get(cloud)
        error = planned.pop(0) if planned else self.always.get(cloud)
        if error is not None:
            raise error
        result = function(*args)
        await self._step()
        if function.__name__ in self.late:
            raise self.late.pop(function.__name__)
        return result

    async def _step(self) -> None:
        self.on_step()
        await trio.lowlevel.checkpoint()


class SmallCatalogue:
    """The metadata that packs asks for, in a dict; `durable_intents` is what would survive a power cut."""

    def __init__(self) -> None:
        self.intents: list[bytes] = []
        self.durable_intents: list[bytes] = []
        self.packs: dict[PackNo, PackRow] = {}
        self.log: list[str] = []
        self.on_step: Callable[[], None] = lambda: None
        self._numbers = itertools.count(1)

    async def begin_pack(self, pack_id: bytes) -> None:
        if pack_id not in self.intents:
            self.intents.append(pack_id)
        await self._step("begin_pack")

    async def pack_intents(self) -> list[bytes]:
        await self._step("pack_intents")
        return list(self.intents)

    async def cloud_usage(self) -> dict[CloudName, tuple[int, int]]:
        usage: dict[CloudName, tuple[int, int]] = {}
        for pack in self.packs.values():
            size_bytes = parse_policy(pack.policy).share_bytes(pack.size_bytes)
            for share in pack.shares:
                packs, used = usage.get(share.cloud, (0, 0))
                usage[share.cloud] = (packs + 1, used + size_bytes)
        return usage

    async def abandon_pack(self, pack_id: bytes) -> None:
        self.intents.remove(pack_id)
        await self._step("abandon_pack")

    async def get_pack(self, number: PackNo) -> PackRow:
        await self._step("get_pack")
        if number not in self.packs:
            raise MetadataError(f"no pack {number}")
        return self.packs[number]

    async def dead_packs(
        self, limit: int, *, after: PackNo | None = None, oldest_kept_epoch: int | None = None
    ) -> list[PackRow]:
        assert oldest_kept_epoch is None
        await self._step("dead_packs")
        return [pack for pack in self.packs.values() if pack.dead and pack.number > (after or 0)][:limit]

    async def forget_shares(self, number: PackNo, clouds: Collection[CloudName]) -> None:
        pack = self.packs[number]
        self.packs[number] = evolve(pack, shares=tuple(share for share in pack.shares if share.cloud not in clouds))
        await self._step("forget_shares")

    async def forget_pack(self, number: PackNo) -> None:
        del self.packs[number]
        await self._step("forget_pack")

    async def make_durable(self) -> None:
        await self._step("make_durable")
        self.durable_intents = list(self.intents)

    def finish(self, stored: StoredPack, *, dead: bool = False) -> PackNo:
        """Enter a stored pack, as finish_pack would."""
        self.intents.remove(stored.pack_id)
        number = PackNo(next(self._numbers))
        self.packs[number] = PackRow(
            number, stored.pack_id, stored.policy, stored.size_bytes, 0 if dead else 1, dead, stored.shares
        )
        return number

    async def _step(self, what: str) -> None:
        self.log.append(what)
        self.on_step()
        await trio.lowlevel.checkpoint()

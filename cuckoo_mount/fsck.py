"""One fsck of a drive: the metadata against itself and against what lies on the clouds, and what is done about it.

Used by drive.py.  For one trio loop, beside everything else that happens: the metadata are read in threads, clouds are
asked by workers, and what is repaired is repaired in small steps, each whole by itself.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import trio
from attrs import define, field, frozen

from cuckoo_mount.cache.chunkcache import ChunkCache
from cuckoo_mount.clock import now_ns
from cuckoo_mount.errors import Busy, ReadOnly
from cuckoo_mount.metadata.base import Metadata
from cuckoo_mount.metadata.problems import Kind, Problem
from cuckoo_mount.metadata.records import DamagedName, Repaired
from cuckoo_mount.multi.multifs import MultiFS
from cuckoo_mount.packs.garbage import find_orphans, load_known
from cuckoo_mount.packs.scrubbing import ScrubRequest
from cuckoo_mount.parted.partedfs import PartedFS
from cuckoo_mount.scrubbing import DriveScrubber, ScrubbedDrive

T = TypeVar("T")
log = logging.getLogger(__name__)
BATCH: Final = 200
"""Rows repaired in one step of the loop."""
ROUNDS_MAX: Final = 20
"""One repair may show the next one; so often all is looked at again."""
EXAMPLES: Final = 5
PATHS_BYTES: Final = 200_000
"""Longer lists of paths do not fit into an answer of the daemon: a file has them."""
LIST_FILE: Final = "fsck-damaged.json"
_LOST_FOUND: Final = b"/lost+found"


@frozen(slots=True)
class Found:
    """One kind of problem of the metadata.  `count`: rows that were wrong; `left`: that still are.

    `examples`: the first columns of some of them, in the words of `text`.
    """

    kind: str
    text: str
    count: int
    left: int
    examples: tuple[str, ...]


@frozen(slots=True, kw_only=True)
class CheckedDrive:
    """What came of it.  `damaged`: paths of all files that cannot be read whole, as they are in the end;
    `moved`: (old, new path) of those set aside.  `orphans`: objects that nothing explains, and their bytes;
    `not_listed`: clouds that were not asked for these."""

    repair: bool
    problems: tuple[Found, ...]
    damaged: tuple[str, ...]
    moved: tuple[tuple[str, str], ...]
    orphans: int
    orphan_bytes: int
    not_listed: tuple[str, ...]
    scrubbed: ScrubbedDrive

    @property
    def is_clean(self) -> bool:
        """Whether nothing is wrong (any more); orphans are not: `gc` deletes them."""
        left = sum(problem.left for problem in self.problems)
        return not left and not self.damaged and self.scrubbed.is_whole


@define(slots=True, eq=False)
class _Tally:
    """Rows found wrong in the first round, and in later ones what the repair of others showed; by kind."""

    texts: dict[Kind, str] = field(factory=dict)
    counts: dict[Kind, int] = field(factory=dict)
    examples: dict[Kind, list[str]] = field(factory=dict)
    left: dict[Kind, int] = field(factory=dict)

    def add(self, problems: Sequence[Problem]) -> None:
        """Take in what a round found: it is also what is left of the rounds before."""
        now: dict[Kind, int] = {}
        for problem in problems:
            kind = problem.kind
            now[kind] = now.get(kind, 0) + problem.count
            self.texts.setdefault(kind, problem.text)
            if kind not in self.counts or kind not in self.examples:
                self.examples.setdefault(kind, []).extend(_shown(row) for row in problem.rows[:EXAMPLES])
        for kind, count in now.items():
            self.counts[kind] = max(self.counts.get(kind, 0), count)
        self.left = now

    def found(self) -> tuple[Found, ...]:
        """Return it all."""
        return tuple(
            Found(kind.value, self.texts[kind], count, self.left.get(kind, 0), tuple(self.examples.get(kind, ())))
            for kind, count in self.counts.items()
        )


class DriveChecker:
    """Checks one drive."""

    def __init__(
        self,
        metadata: Metadata,
        multifs: MultiFS,
        cache: ChunkCache,
        filesystem: PartedFS,
        scrubber: DriveScrubber,
        drive_id: bytes,
        state_folder: Path,
    ) -> None:
        self._metadata = metadata
        self._multifs = multifs
        self._cache = cache
        self._filesystem = filesystem
        self._scrubber = scrubber
        self._drive_id = drive_id
        self._list = state_folder / LIST_FILE
        self._lock = trio.Lock()
        self._phase = ""

    def progress(self) -> dict[str, object]:
        """Return how far the check is that runs now: `phase`, and of the clouds what a scrub says."""
        if self._phase == "clouds":
            return self._scrubber.progress()
        return {"phase": self._phase}

    async def check(self, *, repair: bool) -> CheckedDrive:
        """Look at everything, and repair what can be if asked for.  Checkpoint; may be cancelled anywhere.

        Raises: Busy (another one, or a scrub, is running), ReadOnly, MetadataError.
        """
        try:
            self._lock.acquire_nowait()
        except trio.WouldBlock:
            raise Busy("an fsck of this drive is running already; wait until it has ended") from None
        try:
            return await self._check(repair=repair)
        finally:
            self._phase = ""
            self._lock.release()

    async def _check(self, *, repair: bool) -> CheckedDrive:
        self._check_right()
        self._phase = "metadata"
        tally = _Tally()
        await self._look(tally, repair=repair)
        if repair and not await self._metadata.pack_intents():
            # Counters were repaired, and rows of shares (I-34).
            self._multifs.rooms.set_usage(await self._metadata.cloud_usage())
        self._phase = "clouds"
        scrubbed = await self._scrubber.scrub(ScrubRequest(dry_run=not repair, heal=repair, thorough=True))
        search = await find_orphans(self._multifs, self._drive_id, partial(load_known, self._metadata))
        self._phase = "files"
        unreadable = scrubbed.packs.unreadable
        damaged = await self._metadata.damaged_names(unreadable)
        moved: list[tuple[bytes, bytes]] = []
        if repair:
            moved = await self._set_aside(damaged)
            damaged = await self._metadata.damaged_names(unreadable) if moved else damaged
            await self._look(tally, repair=False)
            await self._metadata.make_durable()
        checked = CheckedDrive(
            repair=repair,
            problems=tally.found(),
            damaged=tuple(_text(name.path) for name in damaged),
            moved=tuple((_text(old), _text(new)) for old, new in moved),
            orphans=len(search.orphans),
            orphan_bytes=sum(orphan.size_bytes for orphan in search.orphans),
            not_listed=tuple(cloud for cloud, _ in search.not_listed),
            scrubbed=scrubbed,
        )
        log.info("checked: %d problems, %d damaged files", len(checked.problems), len(checked.damaged))
        return checked

    def _check_right(self) -> None:
        if reason := self._filesystem.writes_refused:
            raise ReadOnly(reason)

    async def _look(self, tally: _Tally, *, repair: bool) -> None:
        """Enter what is wrong in the metadata, and repair it until nothing is left or nothing helps."""
        for _ in range(ROUNDS_MAX):
            problems = await self._metadata.find_problems()
            tally.add(problems)
            if not problems or not repair:
                return
            done = 0
            for problem in problems:
                for start in range(0, len(problem.rows), BATCH):
                    self._check_right()
                    rows = problem.rows[start : start + BATCH]
                    repaired = await self._metadata.repair(
                        problem.kind, rows, now_ns=now_ns(), is_used=self._cache.is_known
                    )
                    done += repaired.rows
                    self._tell(repaired)
                    await trio.lowlevel.checkpoint()
            if not done:
                return
        tally.add(await self._metadata.find_problems())

    async def _set_aside(self, damaged: Sequence[DamagedName]) -> list[tuple[bytes, bytes]]:
        moved: list[tuple[bytes, bytes]] = []
        names = [name for name in damaged if not name.path.startswith(_LOST_FOUND)]
        for start in range(0, len(names), BATCH):
            self._check_right()
            done = await self._metadata.set_aside(names[start : start + BATCH], now_ns())
            moved += done.moved
            self._tell(done)
            await trio.lowlevel.checkpoint()
        return moved

    def _tell(self, repaired: Repaired) -> None:
        """Let the kernel forget what it knows of names and nodes that were changed without it."""
        for parent, name in repaired.names:
            self._filesystem.on_name_stale(parent, name)
        for ino in repaired.nodes:
            self._filesystem.on_attributes_stale(ino)

    async def as_document(self, checked: CheckedDrive) -> dict[str, object]:
        """Return it for `fsck --json` (docs/operations.md); a long list of files is in a file, `damaged_list`."""
        damaged, moved = _fitting(checked.damaged, len), _fitting(checked.moved, lambda pair: len(pair[0] + pair[1]))
        long = len(damaged) < len(checked.damaged)
        if long:
            await trio.to_thread.run_sync(self._list.write_text, json.dumps(checked.damaged), "ascii")
        problems = [
            {"kind": p.kind, "text": p.text, "count": p.count, "left": p.left, "examples": list(p.examples)}
            for p in checked.problems
        ]
        return {
            "repair": checked.repair,
            "clean": checked.is_clean,
            "problems": problems,
            "damaged_count": len(checked.damaged),
            "damaged": damaged,
            "damaged_list": str(self._list) if long else None,
            "moved_count": len(checked.moved),
            "moved": [{"from": old, "to": new} for old, new in moved],
            "orphans": {
                "objects": checked.orphans,
                "bytes": checked.orphan_bytes,
                "not_listed": list(checked.not_listed),
            },
            "scrub": checked.scrubbed.as_document(),
        }


def _fitting(items: Sequence[T], length: Callable[[T], int]) -> list[T]:
    """Return the first ones, as many as an answer has room for; in JSON a character may take six bytes."""
    room, taken = PATHS_BYTES, []
    for item in items:
        room -= length(item) + 20
        if room < 0:
            break
        taken.append(item)
    return taken


def _text(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace")


def _shown(row: Sequence[object]) -> str:
    return ", ".join(_text(value) if isinstance(value, bytes) else str(value) for value in row)

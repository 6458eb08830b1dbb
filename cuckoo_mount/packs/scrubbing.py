"""Scrubbing packs: do the clouds have what the share rows say?  By their listings, and, deep, by reading every share.

Used by the drive for `cuckoo scrub`.  For one trio loop; one scrub at a time, beside everything else that happens.
A share that is lost or damaged loses its row, so that its pack counts as degraded; healing (healing.py) does the rest.

Why no share is dropped because something happened meanwhile: only packs are looked at that were entered before the
first listing began, so all their shares were stored before it.  What is missing was asked for by name, between two
readings of the cloud's drive.json.  The pack's row is read after that: `gc` deletes shares only of packs that are dead
by then, death is final, and a dead pack is no concern.  `drop_shares` looks once more, in its transaction.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import Final

import trio
from attrs import evolve, frozen

from cuckoo_mount.catalogue import ScrubbedCatalogue
from cuckoo_mount.clock import now_ns
from cuckoo_mount.errors import Busy, DataTimeout, DataUnavailable, MetadataError, ReadOnly
from cuckoo_mount.layers.keys import DriveKeys
from cuckoo_mount.multi.multifs import MultiFS
from cuckoo_mount.multi.redundancy import parse_policy
from cuckoo_mount.packs.collecting import Collector
from cuckoo_mount.packs.comparing import BAD, Consequence, Verdict, compare, decide
from cuckoo_mount.packs.examining import Examiner, Place
from cuckoo_mount.packs.findings import (
    LAST,
    SCRUB_PREFIX,
    Finding,
    Position,
    as_settings,
    last_setting,
    read_findings,
    read_last,
)
from cuckoo_mount.packs.reader import PackReader
from cuckoo_mount.types import CloudName, PackNo, PackRow, ShareRow, StoredVersion, VersionNo

log = logging.getLogger(__name__)
PAGE: Final = 256
"""Packs compared with the listings in one step of the loop."""
DEEP_PAGE: Final = 16
"""Packs read between two times that the position is kept: so much is read again after a kill."""
LOST_LOOK_S: Final = 30.0
"""How long lost packs are searched for what can be read in them all the same."""
LOST_PATHS: Final = 20
LOST_VERSIONS: Final = 500


@frozen(slots=True, kw_only=True)
class ScrubRequest:
    """What is asked for.  `restart`: not from where a deep one ended; `dry_run`: change nothing, heal nothing.

    `thorough`: name all versions that cannot be read, however long it takes to try (`Scrubbed.unreadable`).
    """

    deep: bool = False
    restart: bool = False
    dry_run: bool = False
    heal: bool = True
    thorough: bool = False


@frozen(slots=True, kw_only=True)
class Scrubbed:
    """What a scrub found and did; shares, unless it says packs.

    `checked`: listed, or read if deep; `unchecked`: on clouds that did not answer (`silent`, with the reason).
    `repaired` of those `missing` or `damaged`: their pack was written anew; `left`: the others.  `degraded`: packs with
    too few shares in the end.  `lost`: packs of which something cannot be read from any cloud now, and `paths` (some
    of) the files that this is about.  `resumed`: a deep one went on where the last one ended.  `unreadable`: the
    versions in lost packs that cannot be read; all of them only when asked for.
    """

    checked: int
    unchecked: int
    missing: int
    damaged: int
    repaired: int
    left: int
    healed_packs: int
    degraded: int
    lost: int
    paths: tuple[str, ...]
    silent: dict[CloudName, str]
    resumed: bool
    unreadable: tuple[VersionNo, ...] = ()


@frozen(slots=True)
class ScrubProgress:
    """How far a scrub is.  `total`: shares in all; `bad`: found so far."""

    phase: str = ""
    checked: int = 0
    total: int = 0
    bad: int = 0


class Scrubber:
    """Scrubs the packs of one drive.  `refusal`: returns why nothing may be changed (any more), or nothing."""

    def __init__(
        self,
        metadata: ScrubbedCatalogue,
        multifs: MultiFS,
        reader: PackReader,
        collector: Collector,
        keys: DriveKeys,
        drive_id: bytes,
        *,
        refusal: Callable[[], str] = str,
    ) -> None:
        self._metadata = metadata
        self._multifs = multifs
        self._reader = reader
        self._collector = collector
        self._refusal = refusal
        self._keys = keys
        self._drive_id = drive_id
        self._lock = trio.Lock()
        self._run: _Run | None = None

    @property
    def progress(self) -> ScrubProgress:
        """How far the scrub is that runs now."""
        return self._run.progress() if self._run is not None else ScrubProgress()

    async def last(self) -> dict[str, object] | None:
        """Return when the last scrub ended and what it left: `time_ns`, `deep`, `left`, `lost`; None: never one."""
        return read_last((await self._metadata.local_settings(LAST)).get(LAST))

    async def scrub(self, request: ScrubRequest) -> Scrubbed:
        """Scrub all packs that there are now.  Checkpoint; may be cancelled anywhere, a deep one goes on next time.

        A cloud that does not answer is a reason in the result, not an error.
        Raises: Busy (one is running), ReadOnly (see `refusal`), MetadataError.
        """
        try:
            self._lock.acquire_nowait()
        except trio.WouldBlock:
            raise Busy("a scrub of this drive is running already; wait until it has ended") from None
        try:
            examiner = Examiner(self._multifs, self._keys, self._drive_id)
            self._run = _Run(self._metadata, self._multifs, self._reader, examiner, request, self._refusal)
            await self._run.look()
            self._run.check_right()
            healed = 0
            if request.heal and not request.dry_run:
                self._run.phase = "healing"
                healed = await self._collector.heal_all()
            return await self._run.finish(healed)
        finally:
            self._run = None
            self._lock.release()


class _Run:
    """One scrub under way."""

    def __init__(
        self,
        metadata: ScrubbedCatalogue,
        multifs: MultiFS,
        reader: PackReader,
        examiner: Examiner,
        request: ScrubRequest,
        refusal: Callable[[], str],
    ) -> None:
        self.phase = "listing"
        self._metadata = metadata
        self._multifs = multifs
        self._reader = reader
        self._request = request
        self._examiner = examiner
        self._refusal = refusal
        self._found: dict[PackNo, Finding] = {}
        self._checked = self._unchecked = self._total = 0
        self._resumed = False

    def progress(self) -> ScrubProgress:
        return ScrubProgress(self.phase, self._checked, self._total, self._bad())

    def _bad(self) -> int:
        return sum(finding.bad for finding in self._found.values())

    def check_right(self) -> None:
        """Return if something may be changed: another machine may have taken the drive over.  Raises: ReadOnly."""
        if reason := self._refusal():
            raise ReadOnly(reason)

    async def look(self) -> None:
        """Find what is bad, and drop the rows that can go.  Raises: ReadOnly."""
        self.check_right()
        newest = await self._metadata.newest_pack()  # before the first listing
        position = Position(PackNo(0), newest, now_ns())
        if self._request.deep and not self._request.dry_run:
            position = await self._begin(position)
        self._total, _ = await self._metadata.count_shares(PackNo(0), newest)
        await self._compare_all(newest)
        if self._request.deep:
            left, _ = await self._metadata.count_shares(position.after, position.last)
            self.phase, self._unchecked, self._checked = "reading", 0, position.checked
            self._total = position.checked + left
            await self._read_all(position)

    async def _begin(self, fresh: Position) -> Position:
        """Return where to go on: behind what an earlier scrub has read, if it was interrupted."""
        settings = await self._metadata.local_settings(SCRUB_PREFIX)
        position, found = read_findings(settings, now_ns())
        if position is not None and not self._request.restart:
            self._found, self._resumed = found, True
            return position
        await self._metadata.set_locals(dict.fromkeys(settings))
        return fresh

    # -- by listing --

    async def _compare_all(self, newest: PackNo) -> None:
        listings = await self._examiner.list_all()
        after = PackNo(0)
        while page := await self._metadata.packs(PAGE, after=after):
            after = page[-1].number
            packs = [pack for pack in page if not pack.dead and pack.number <= newest]
            verdicts = {
                (pack, share): verdict
                for pack in packs
                for share, verdict in compare(pack, listings, self._multifs.names).items()
            }
            await self._examiner.confirm(verdicts)
            await self._read_beside_damaged(packs, verdicts)
            self._count(verdicts)
            await self._conclude(packs, verdicts)
            if after >= newest:
                break
            await trio.lowlevel.checkpoint()

    async def _read_beside_damaged(self, packs: Sequence[PackRow], verdicts: dict[Place, Verdict]) -> None:
        """Read the other shares of packs that have one of a wrong size: dropping it must not leave us with worse ones.

        That is for objects that were cut; one that is not there has nothing to lose.
        """
        hurt = {pack for (pack, _), verdict in verdicts.items() if verdict is Verdict.DAMAGED}
        doubtful = [place for place, verdict in verdicts.items() if place[0] in hurt and verdict is Verdict.WHOLE]
        await self._examiner.read_all(doubtful, verdicts)

    def _count(self, verdicts: dict[Place, Verdict]) -> None:
        self._unchecked += sum(verdict is Verdict.UNKNOWN for verdict in verdicts.values())
        self._checked += sum(verdict is Verdict.WHOLE or verdict in BAD for verdict in verdicts.values())

    # -- by reading --

    async def _read_all(self, position: Position) -> None:
        after = position.after
        while after < position.last and (page := await self._metadata.packs(DEEP_PAGE, after=after)):
            after = page[-1].number
            packs = [pack for pack in page if not pack.dead and pack.number <= position.last]
            verdicts = {(pack, share): self._known(pack, share) for pack in packs for share in pack.shares}
            unread = [place for place, verdict in verdicts.items() if verdict is Verdict.UNKNOWN]
            await self._examiner.read_all(unread, verdicts)
            self._count(verdicts)
            await self._conclude(packs, verdicts)
            if not self._request.dry_run:
                numbers = {pack.number for pack in packs} & self._found.keys()
                found = {number: self._found[number] for number in numbers}
                await self._metadata.set_locals(
                    as_settings(evolve(position, after=after, checked=self._checked), found)
                )
                await self._metadata.commit()

    def _known(self, pack: PackRow, share: ShareRow) -> Verdict:
        """Return what the listings said already of a share that is bad; UNKNOWN for one that is to be read."""
        finding = self._found.get(pack.number, Finding())
        if share.share in finding.missing:
            return Verdict.MISSING
        if share.share in finding.damaged:
            return Verdict.DAMAGED
        return Verdict.UNKNOWN if share.cloud in self._multifs.names else Verdict.ELSEWHERE

    # -- what follows --

    async def _conclude(self, packs: Sequence[PackRow], verdicts: dict[Place, Verdict]) -> None:
        """Note what is bad in these packs, and drop what can be dropped."""
        by_pack: dict[PackNo, dict[ShareRow, Verdict]] = {pack.number: {} for pack in packs}
        for (pack, share), verdict in verdicts.items():
            by_pack[pack.number][share] = verdict
        for pack in packs:
            found = by_pack[pack.number]
            consequence = decide(pack.policy, found)
            if not consequence.drop and not consequence.keep and not consequence.is_lost:
                continue
            current = await self._metadata.find_pack(pack.pack_id)
            if current is None or current.dead:
                continue  # what was deleted of it is missing for good reason
            if found.keys() != set(current.shares):
                continue  # somebody moved or dropped a share meanwhile; what is wrong then, the next scrub says
            self._found.setdefault(pack.number, Finding()).add(found, is_lost=consequence.is_lost)
            if not self._request.dry_run:
                await self._act(current, consequence, found)

    async def _act(self, pack: PackRow, consequence: Consequence, found: dict[ShareRow, Verdict]) -> None:
        self.check_right()
        left_over = {share.cloud for share in consequence.drop if found[share] is Verdict.DAMAGED}
        if await self._metadata.drop_shares(pack.number, consequence.drop, left_over=left_over):
            self._reader.forget(pack.number)
            share_bytes = parse_policy(pack.policy).share_bytes(pack.size_bytes)
            self._multifs.rooms.note_deleted([share.cloud for share in consequence.drop], share_bytes)
            clouds = ", ".join(share.cloud for share in consequence.drop)
            log.warning("pack %s: shares on %s are lost or damaged", pack.pack_id.hex(), clouds)
        if consequence.keep:
            # Perhaps each chunk is right in one share or another; then healing makes a pack of them.
            self._multifs.note_damaged(pack.pack_id)
        if consequence.is_lost:
            log.error("pack %s has too few whole shares to read all of it", pack.pack_id.hex())

    async def finish(self, healed_packs: int) -> Scrubbed:
        """Return what came of it, and forget the position of a deep scrub, which has ended."""
        lost: list[PackRow] = []
        repaired = 0
        for number, finding in self._found.items():
            pack = await self._living(number)
            if pack is None:
                repaired += finding.bad
            elif finding.is_lost:
                lost.append(pack)
        unreadable = await self._unreadable(lost)
        found = await self._metadata.paths_of(unreadable[:LOST_VERSIONS], LOST_PATHS)
        left = self._bad() - repaired
        if not self._request.dry_run:
            gone = await self._metadata.local_settings(SCRUB_PREFIX) if self._request.deep else ()
            last = last_setting(now_ns(), deep=self._request.deep, left=left, lost=len(lost))
            await self._metadata.set_locals(dict.fromkeys(gone) | last)
            await self._metadata.commit()
        return Scrubbed(
            checked=self._checked,
            unchecked=self._unchecked,
            missing=sum(len(finding.missing) for finding in self._found.values()),
            damaged=sum(len(finding.damaged) for finding in self._found.values()),
            repaired=repaired,
            left=left,
            healed_packs=healed_packs,
            degraded=await self._metadata.degraded_packs(),
            lost=len(lost),
            paths=tuple(path.decode("utf-8", "backslashreplace") for path in found),
            silent=dict(self._examiner.silent),
            resumed=self._resumed,
            unreadable=tuple(unreadable),
        )

    async def _living(self, number: PackNo) -> PackRow | None:
        (pack,) = await self._metadata.packs(1, after=PackNo(number - 1)) or (None,)
        return pack if pack is not None and pack.number == number and not pack.dead else None

    async def _unreadable(self, lost: Sequence[PackRow]) -> list[VersionNo]:
        """Return the versions in these packs that cannot be read any more; some of them, if not asked for all."""
        gone: list[VersionNo] = []
        thorough = self._request.thorough
        readable_until_s = math.inf if thorough else trio.current_time() + LOST_LOOK_S
        for pack in lost:
            missing = self._found[pack.number].missing >= {share.share for share in pack.shares}
            for version in await self._metadata.versions_in(pack.number):
                if (thorough or len(gone) < LOST_VERSIONS) and (
                    missing or not await self._is_readable(version, readable_until_s)
                ):
                    gone.append(version.chunk.version)
            await trio.lowlevel.checkpoint()
        return gone

    async def _is_readable(self, version: StoredVersion, until_s: float) -> bool:
        """Return whether a chunk of a lost pack can be read; after `until_s` it is taken for lost like its pack."""
        with trio.move_on_at(until_s):
            try:
                await self._reader.read(version.location)
            except (DataUnavailable, DataTimeout):
                return False
            except MetadataError:
                return True  # overwritten meanwhile, and its pack is gone
            return True
        return False

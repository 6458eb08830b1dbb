"""Asks clouds for shares: all of them by listing, single ones by name, or one whole against its digest.

Used by scrubbing.py.  For one trio loop.  Owns: no share is called missing or damaged because a cloud was away, listed
late, or once gave other bytes; trouble of a cloud is a reason in `silent`, never an error.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Final

import trio

from cuckoo_mount.errors import CloudCorrupt, CloudError, CloudMissing, CuckooError
from cuckoo_mount.format import pack_share_name
from cuckoo_mount.layers.keys import DriveKeys
from cuckoo_mount.multi.multifs import LIST_DEADLINE_S, MultiFS
from cuckoo_mount.multi.records import TRANSFER_BASE_S, transfer_deadline_s
from cuckoo_mount.multi.redundancy import parse_policy
from cuckoo_mount.multi.requests import gather
from cuckoo_mount.packs.comparing import BAD, Listing, Verdict
from cuckoo_mount.packs.scrubjobs import list_shares, look_at_shares, read_share
from cuckoo_mount.types import CloudName, PackRow, ShareRow

log = logging.getLogger(__name__)
ASKED_AT_ONCE: Final = 100
"""Shares that one job asks for by name."""
READERS: Final = 2
"""Shares read at the same time, out of the 8 jobs that workers do: the user's own reads come first."""
TRIES: Final = 2
TRY_AGAIN_S: Final = 2.0
SILENT_S: Final = 60.0
"""A cloud that did not answer is left alone for so long; what lies there is not looked at meanwhile."""

Place = tuple[PackRow, ShareRow]
"""A share and its pack."""


class Examiner:
    """Looks at shares for one scrub.  `silent`: the clouds that did not answer at some time, with the reason."""

    def __init__(self, multifs: MultiFS, keys: DriveKeys, drive_id: bytes) -> None:
        self.silent: dict[CloudName, str] = {}
        self._multifs = multifs
        self._keys = keys
        self._drive_id = drive_id
        self._ask_again_at_s: dict[CloudName, float] = {}

    async def list_all(self) -> dict[CloudName, Listing]:
        """Return what lies on every cloud that answers.  Checkpoint."""
        names = self._multifs.names
        calls = [
            partial(self._multifs.examine, name, list_shares, self._drive_id, deadline_s=LIST_DEADLINE_S)
            for name in names
        ]
        listings: dict[CloudName, Listing] = {}
        for name, answer in zip(names, await gather(calls), strict=True):
            if isinstance(answer, CuckooError):
                self._note_silent(name, answer)
            else:
                listings[name] = answer
        return listings

    async def confirm(self, verdicts: dict[Place, Verdict]) -> None:
        """Ask for every share that is MISSING or DAMAGED by its name, and correct what is said of it.  Checkpoint."""
        doubtful: dict[CloudName, list[Place]] = {}
        for place, verdict in verdicts.items():
            if verdict in BAD:
                doubtful.setdefault(place[1].cloud, []).append(place)
        for cloud, places in doubtful.items():
            for start in range(0, len(places), ASKED_AT_ONCE):
                batch = places[start : start + ASKED_AT_ONCE]
                verdicts.update(zip(batch, await self._look_at(cloud, batch), strict=True))

    async def _look_at(self, cloud: CloudName, places: Sequence[Place]) -> list[Verdict]:
        if not self._may_ask(cloud):
            return [Verdict.UNKNOWN] * len(places)
        wanted = [(self._name(pack, share), _length_bytes(pack)) for pack, share in places]
        try:
            return await self._multifs.examine(
                cloud, look_at_shares, wanted, deadline_s=TRANSFER_BASE_S + 2 * len(wanted)
            )
        except CloudError as error:
            self._note_silent(cloud, error)
            return [Verdict.UNKNOWN] * len(places)

    async def read_all(self, places: Iterable[Place], verdicts: dict[Place, Verdict]) -> None:
        """Read these shares, a few at a time, and enter the verdict on each as soon as it is known.  Checkpoint."""
        waiting = iter(places)

        async def read_on() -> None:
            for place in waiting:
                verdicts[place] = await self._read(place)

        async with trio.open_nursery() as nursery:
            for _ in range(READERS):
                nursery.start_soon(read_on)

    async def _read(self, place: Place) -> Verdict:
        """Return the verdict on one share, read once, or twice where something was wrong the first time."""
        pack, share = place
        verdict = Verdict.UNKNOWN
        for _ in range(TRIES):
            if not self._may_ask(share.cloud):
                return Verdict.UNKNOWN
            try:
                await self._multifs.read_object(
                    share.cloud,
                    read_share,
                    self._name(pack, share),
                    _length_bytes(pack),
                    share.digest,
                    self._keys,
                    deadline_s=transfer_deadline_s(_length_bytes(pack)),
                    bytes_down=_length_bytes(pack),
                )
            except CloudMissing:
                (verdict,) = await self._look_at(share.cloud, [place])
                if verdict is not Verdict.WHOLE:
                    return verdict
            except CloudCorrupt as error:
                log.warning("a share is damaged: %s", error)
                verdict = Verdict.DAMAGED
            except CloudError as error:
                verdict = Verdict.UNKNOWN
                await trio.sleep(TRY_AGAIN_S)
                await self._see_whether_it_answers(share.cloud, error)
            else:
                return Verdict.WHOLE
        return Verdict.UNKNOWN if verdict is Verdict.WHOLE else verdict

    async def _see_whether_it_answers(self, cloud: CloudName, error: CloudError) -> None:
        await self._multifs.probe([cloud])
        if not self._multifs.is_up(cloud):
            self._note_silent(cloud, error)

    def _may_ask(self, cloud: CloudName) -> bool:
        return trio.current_time() >= self._ask_again_at_s.get(cloud, 0.0)

    def _note_silent(self, cloud: CloudName, error: CuckooError) -> None:
        log.warning("what lies on one cloud is not looked at now: %s", error)
        self.silent[cloud] = str(error).removeprefix(f"cloud {cloud}: ")
        self._ask_again_at_s[cloud] = trio.current_time() + SILENT_S

    def _name(self, pack: PackRow, share: ShareRow) -> str:
        return pack_share_name(self._drive_id, pack.pack_id, share.share)


def _length_bytes(pack: PackRow) -> int:
    return parse_policy(pack.policy).share_bytes(pack.size_bytes)

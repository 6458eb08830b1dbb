"""Reads chunks back: location → share → one range → verified plain bytes.

Used by the cache, which asks once per chunk version at a time (cache/fetching.py).  For one trio loop.  Owns I-11: what
is returned was compared with its keyed hash, in the worker that fetched it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeVar

from cuckoo_mount.catalogue import PackCatalogue
from cuckoo_mount.errors import DataUnavailable
from cuckoo_mount.layers.keys import DriveKeys
from cuckoo_mount.multi.multifs import MultiFS
from cuckoo_mount.multi.redundancy import parse_policy
from cuckoo_mount.multi.stripes import Wanted
from cuckoo_mount.packs.compactjobs import SaveRun, save_run
from cuckoo_mount.packs.jobs import OpenSpec, fetch_ahead, fetch_chunk, fetch_run
from cuckoo_mount.types import Location, PackNo, PackRow

T = TypeVar("T")
READ_DEADLINE_S: Final = 60.0
ROWS_MAX: Final = 512
RUN_GAP_BYTES: Final = 64 << 10
"""Bytes of no use that a run transfers rather than making one more request for what follows them."""
RUN_MAX_BYTES: Final = 4 << 20
"""Sealed bytes that one request of a run transfers at most, so that memory stays bounded and others get their turn."""


class PackReader:
    """Reads chunks of one drive.  `encrypted`: whether the drive is."""

    def __init__(
        self,
        metadata: PackCatalogue,
        multifs: MultiFS,
        keys: DriveKeys,
        drive_id: bytes,
        *,
        encrypted: bool,
        deadline_s: float = READ_DEADLINE_S,
    ) -> None:
        self._metadata = metadata
        self._multifs = multifs
        self._keys = keys
        self._drive_id = drive_id
        self._encrypted = encrypted
        self._deadline_s = deadline_s
        self._rows: OrderedDict[PackNo, PackRow] = OrderedDict()

    async def read(self, location: Location) -> bytes:
        """Return the `plain_bytes` bytes stored at `location`.  Checkpoint; cancelling leaves nothing behind.

        Raises: DataUnavailable (no share is whole; names every cloud and object), DataTimeout (the clouds did not
        answer before the deadline), MetadataError (no such pack; its chunks were overwritten or deleted).
        """
        return await self._fetch((location,), fetch_chunk, location)

    async def read_run(self, locations: Sequence[Location]) -> list[bytes]:
        """Return the bytes at each of several locations of one pack, in the order given; neighbours in one request.

        Fails as a whole when one of them cannot be read: read them one by one then.  Otherwise as `read`; the deadline
        counts for each request.
        """
        if len({location.pack for location in locations}) > 1:
            raise ValueError("a run lies in one pack")
        found: dict[Location, bytes] = {}
        for run in runs(locations):
            plain = await self._fetch(run, fetch_run, run)
            found.update(zip(run, plain, strict=True))
        return [found[location] for location in locations]

    async def read_ahead(self, locations: Sequence[Location]) -> list[bytes | None]:
        """Return the bytes at several locations of one pack, in order, with one request; the first one is certain.

        None stands for another chunk that is damaged on the cloud that gave the first one whole.  `locations`: at
        least one; together they should be one of the groups of `runs`.  Raises: as `read`, for the first one, and also
        where a share is so short that the request as a whole fails: then read that one alone.
        """
        return await self._fetch(locations, fetch_ahead, tuple(locations))

    async def save_run(self, run: SaveRun) -> None:
        """Write chunks of one pack, verified, into the local file that `run` names (packs/compactjobs.py).

        Raises: as `read`; DataUnavailable also when the local disk refused.
        """
        await self._fetch(run.locations, save_run, run, urgent=False)

    def forget(self, pack: PackNo) -> None:
        """Drop what is remembered of a pack, after its shares changed (repair, drain) or it was forgotten."""
        self._rows.pop(pack, None)

    async def _fetch(
        self, locations: Sequence[Location], job: Callable[..., T], what: object, *, urgent: bool = True
    ) -> T:
        pack = locations[0].pack
        span = (min(item.offset for item in locations), max(item.offset + item.length_bytes for item in locations))
        remembered = pack in self._rows
        row = await self._row(pack)
        try:
            return await self._ask(row, job, what, span, urgent=urgent)
        except DataUnavailable:
            if not remembered:
                raise
            self.forget(pack)
            newer = await self._row(pack)
            if newer.shares == row.shares and newer.pack_id == row.pack_id:
                raise
        return await self._ask(newer, job, what, span, urgent=urgent)

    async def _ask(
        self, row: PackRow, job: Callable[..., T], what: object, span: tuple[int, int], *, urgent: bool
    ) -> T:
        spec = OpenSpec(drive_id=self._drive_id, pack_id=row.pack_id, keys=self._keys, encrypted=self._encrypted)
        policy = parse_policy(row.policy)
        if not policy.is_copies:
            wanted = Wanted(row.pack_id, row.shares, policy, row.size_bytes, *span)
            return await self._multifs.read_stripe(wanted, job, spec, what, deadline_s=self._deadline_s, urgent=urgent)
        length_bytes = span[1] - span[0]
        return await self._multifs.first_whole(
            row.pack_id,
            row.shares,
            job,
            spec,
            what,
            length_bytes=length_bytes,
            deadline_s=self._deadline_s,
            urgent=urgent,
        )

    async def _row(self, pack: PackNo) -> PackRow:
        row = self._rows.get(pack)
        if row is None:
            row = await self._metadata.get_pack(pack)
            self._rows[pack] = row
        self._rows.move_to_end(pack)
        while len(self._rows) > ROWS_MAX:
            self._rows.popitem(last=False)
        return row


def runs(locations: Sequence[Location]) -> Iterator[tuple[Location, ...]]:
    """Yield groups of neighbours, each for one request: gaps ≤ RUN_GAP_BYTES, ≤ RUN_MAX_BYTES unless one alone is more.

    Sorted by offset; a location given twice is in one group once.
    """
    group: list[Location] = []
    for location in sorted(set(locations), key=lambda location: location.offset):
        if group:
            gap_bytes = location.offset - (group[-1].offset + group[-1].length_bytes)
            length_bytes = location.offset + location.length_bytes - group[0].offset
            if gap_bytes > RUN_GAP_BYTES or length_bytes > RUN_MAX_BYTES:
                yield tuple(group)
                group = []
        group.append(location)
    if group:
        yield tuple(group)

"""Packs that are to lie elsewhere are written anew, a round at a time.

Used by draining.py and rebalancing.py.  For one trio loop; by compaction, so that at every moment what lives is in a
stored pack, and a kill or a cancellation leaves everything as it was.  Where a new pack goes, placement decides.  The
old ones are dead then and take room until they are deleted, so a round is bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

import trio
from attrs import frozen

from cuckoo_mount.catalogue import CollectedCatalogue
from cuckoo_mount.errors import CuckooError, MetadataError
from cuckoo_mount.packs.choosing import Batch, fill_batches, fill_of
from cuckoo_mount.packs.collecting import Collector
from cuckoo_mount.packs.compaction import Compactor
from cuckoo_mount.packs.writer import PackWriter
from cuckoo_mount.types import PackNo, PackRow

ROUND_BYTES: Final = 256 << 20
"""Living bytes that one round writes anew, …"""
ROUND_S: Final = 60.0
"""… but for no longer than this: others wait for their turn."""

Note = Callable[[int, int], None]
"""Told after each batch how many packs were replaced, and their living bytes."""


@frozen(slots=True)
class Round:
    """What one round did: packs replaced, those left out, and why, or nothing.

    `stopped`: the rest was not tried, as none could be stored now.
    """

    replaced: int
    trouble: str = ""
    left_out: frozenset[PackNo] = frozenset()
    stopped: bool = False


class Mover:
    """Writes packs of one drive anew; one round at a time, and nothing is collected meanwhile."""

    def __init__(self, metadata: CollectedCatalogue, writer: PackWriter, collector: Collector) -> None:
        self._metadata = metadata
        self._writer = writer
        self._collector = collector

    async def move(
        self, numbers: Sequence[PackNo], note: Note, *, merge: bool, round_bytes: int = ROUND_BYTES
    ) -> Round:
        """Write these packs anew, in this order, about `round_bytes` of them.  Checkpoint, may be cancelled anywhere.

        `merge`: small ones become one, which is fewer requests, and coarser to place.
        Those that cannot be read, or not be stored as well as they are, are left out; so are packs that have died.
        Raises: MetadataError.
        """
        replaced = moved_bytes = 0
        left_out: set[PackNo] = set()
        trouble = ""
        async with self._collector.alone() as compactor:
            end_s = trio.current_time() + ROUND_S
            packs = [await self._metadata.get_pack(number) for number in numbers]
            for batch in self._batches(packs) if merge else [(fill_of(pack),) for pack in packs]:
                if moved_bytes >= round_bytes or (replaced and trio.current_time() > end_s):
                    break
                if not (living := await self._living(batch)):
                    continue
                try:
                    is_done = await compactor.compact(living)
                except (CuckooError, OSError) as error:
                    if isinstance(error, MetadataError):
                        raise
                    return Round(replaced, str(error), frozenset(left_out), stopped=True)
                if is_done:
                    size_bytes = sum(pack.live_bytes for pack in living)
                    replaced, moved_bytes = replaced + len(living), moved_bytes + size_bytes
                    note(len(living), size_bytes)
                else:
                    left_out |= {pack.number for pack in living}
                    trouble = _why(compactor, living)
        trouble = f"{_packs(len(left_out))} cannot be moved: {trouble}" if left_out else ""
        return Round(replaced, trouble, frozenset(left_out))

    def _batches(self, packs: Iterable[PackRow]) -> Iterable[Batch]:
        by_policy: dict[str, list[PackRow]] = {}
        for pack in packs:
            by_policy.setdefault(pack.policy, []).append(pack)
        for members in by_policy.values():
            yield from fill_batches([fill_of(pack) for pack in members], self._writer.pack_size_bytes)

    async def _living(self, batch: Batch) -> Batch:
        rows = [await self._metadata.get_pack(pack.number) for pack in batch]
        return tuple(fill_of(row) for row in rows if row.used_bytes)


def _why(compactor: Compactor, batch: Batch) -> str:
    numbers = {pack.number for pack in batch}
    if numbers & compactor.failed:
        return "not enough of their shares can be read"
    if numbers & compactor.unreachable:
        return "the clouds that have their shares do not answer"
    return "too few clouds take a share now"


def _packs(count: int) -> str:
    return "1 pack" if count == 1 else f"{count} packs"

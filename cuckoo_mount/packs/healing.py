"""Packs with too few shares, or with a damaged one, are written anew with all their shares.

Used by packs/collecting.py.  For one trio loop; by compaction, so that at every moment what lives is in a stored pack,
and a kill or a cancellation leaves everything as it was.  That sends a pack's content once for each of its shares,
where the missing share alone would do; in return dead bytes go, small packs are merged, and one mechanism does it all.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from itertools import count, islice
from typing import Final

from cuckoo_mount.catalogue import CollectedCatalogue
from cuckoo_mount.multi.multifs import MultiFS
from cuckoo_mount.multi.redundancy import parse_policy
from cuckoo_mount.packs.choosing import batches_of
from cuckoo_mount.packs.compaction import Compactor
from cuckoo_mount.packs.writer import PackWriter
from cuckoo_mount.types import PackRow

log = logging.getLogger(__name__)
LOOKED_AT: Final = 256
"""Degraded packs that one run looks at, those with the fewest shares first."""
BATCHES_AT_ONCE: Final = 8
"""Packs written in one run, so that it lets others go on; a drive that is busy gets one."""


class Healer:
    """Heals the packs of one drive.  `is_idle`: whether nothing waits to be sent."""

    def __init__(
        self,
        metadata: CollectedCatalogue,
        multifs: MultiFS,
        writer: PackWriter,
        compactor: Compactor,
        is_idle: Callable[[], bool],
    ) -> None:
        self._metadata = metadata
        self._multifs = multifs
        self._writer = writer
        self._compactor = compactor
        self._is_idle = is_idle

    async def heal_some(self) -> int:
        """Write a few packs anew, where more shares than they have can be stored now; return how many were replaced.

        Checkpoint, may be cancelled anywhere.  What cannot be read or stored is left for later.  Raises: MetadataError.
        """
        hurt = [pack for pack_id in self._multifs.take_damaged() if (pack := await self._living(pack_id)) is not None]
        degraded = [await self._metadata.get_pack(number) for number in await self._metadata.degraded(LOOKED_AT)]
        wanted = [*hurt, *(pack for pack in degraded if pack not in hurt and self._can_improve(pack))]
        begun = count()
        out = self._compactor.failed | self._compactor.unreachable
        readable = [pack for pack in wanted if pack.number not in out]
        batches = islice(batches_of(readable, self._writer.pack_size_bytes), BATCHES_AT_ONCE)
        healed = await self._compactor.compact_batches(batches, lambda: next(begun) > 0 and not self._is_idle())
        if healed:
            log.info("%d packs that had too few shares, or a damaged one, were written anew", healed)
        return healed

    async def _living(self, pack_id: bytes) -> PackRow | None:
        pack = await self._metadata.find_pack(pack_id)
        return pack if pack is not None and pack.used_bytes else None

    def _can_improve(self, pack: PackRow) -> bool:
        """Return whether a new pack would get more shares than this one has on the drive's clouds."""
        have = sum(share.cloud in self._multifs.names for share in pack.shares)
        needed = parse_policy(pack.policy).data
        return have >= needed and self._multifs.shares_possible(pack.size_bytes, pack.policy) > have

"""Lets stored packs follow a change of redundancy: they are written anew as their files want it now.

Used by packs/collecting.py; PartedFS and the drive ask for it when a redundancy changes.  For one trio loop.
What is to be done is one setting of the drive, so that another mount, also on another machine, goes on with it: the
number of the last pack that was looked at.  New packs have higher numbers; a change while it is under way begins anew.
By compaction, so that at every moment what lives is in a stored pack.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from itertools import count
from typing import Final, Protocol

import trio

from cuckoo_mount.catalogue import CollectedCatalogue
from cuckoo_mount.multi.policies import Policies
from cuckoo_mount.packs.choosing import Batch, batches_of
from cuckoo_mount.packs.compaction import Compactor
from cuckoo_mount.packs.writer import PackWriter
from cuckoo_mount.types import CloudName, PackNo, PackRow

log = logging.getLogger(__name__)
LOOKED_AT: Final = 64
"""Packs that are looked at between two checkpoints: about 10 ms."""
BATCHES_AT_ONCE: Final = 8
"""Packs written in one run, so that it lets others go on; a drive that is busy gets one."""
REST_S: Final = 600.0
"""So long what lies on clouds that are away is not looked for again, unless one comes back."""
POSITION_SETTING: Final = "repack"
POLICIES_SETTING: Final = "redundancies"
"""Settings of the drive: the last pack that was looked at, and `Policies.others`, joined by blanks."""


class Settings(Protocol):
    """What of the metadata is needed to ask for it."""

    async def get_setting(self, key: str) -> str | None:
        """Return a setting of the drive."""

    async def set_setting(self, key: str, value: str) -> None:
        """Set a setting of the drive."""


async def load_policies(metadata: Settings, policies: Policies) -> None:
    """Add the redundancies that files may have besides the drive's own.  Raises: UsageError, MetadataError."""
    for text in (await metadata.get_setting(POLICIES_SETTING) or "").split():
        policies.add(text)


async def note_policy(metadata: Settings, policies: Policies, text: str) -> None:
    """Before a file is given the redundancy `text`: count it among the drive's.  Raises: UsageError, MetadataError."""
    if policies.add(text):
        await metadata.set_setting(POLICIES_SETTING, " ".join(sorted(policies.others)))


async def ask_for_repacking(metadata: Settings) -> None:
    """Before a redundancy changes of which packs may be stored already: have all packs looked at.

    No checkpoint between this and the change, or it could be over before.
    """
    if await metadata.get_setting(POSITION_SETTING) != "0":
        await metadata.set_setting(POSITION_SETTING, "0")


async def is_repacking(metadata: Settings) -> bool:
    """Return whether packs are still to be looked at.  Raises: MetadataError."""
    return await metadata.get_setting(POSITION_SETTING) is not None


class Repacker:
    """Repacks for one drive.  `is_idle`: whether nothing waits to be sent."""

    def __init__(
        self,
        metadata: CollectedCatalogue,
        writer: PackWriter,
        compactor: Compactor,
        is_idle: Callable[[], bool],
    ) -> None:
        self._metadata = metadata
        self._writer = writer
        self._policies = writer.policies
        self._compactor = compactor
        self._is_idle = is_idle
        self._noted: str | None = None
        self._at = PackNo(0)
        self._skipped: PackNo | None = None
        self._rests_until = -math.inf
        self._rests_with: frozenset[CloudName] = frozenset()

    async def repack_some(self) -> int:
        """Go on with what was asked for, as far as it can be done now; return how many packs were replaced.

        0: nothing is left, or the clouds would have to be up for it.  Checkpoint, may be cancelled anywhere.
        Raises: MetadataError.
        """
        replaced = 0
        begun = count()
        while await self._goes_on():
            packs = await self._metadata.packs(LOOKED_AT, after=self._at)
            wanted = [pack for pack in packs if not pack.dead and await self._is_other(pack)]
            for batch in batches_of(wanted, self._writer.pack_size_bytes):
                if next(begun) >= BATCHES_AT_ONCE or (replaced and not self._is_idle()):
                    return replaced
                done = await self._repack(batch)
                if done is None:
                    return replaced
                replaced += done
            # Not over a change that was asked for meanwhile: that begins anew.
            if await self._metadata.get_setting(POSITION_SETTING) == self._noted:
                await self._advance(packs[-1].number if packs else None)
            await trio.lowlevel.checkpoint()
        return replaced

    async def _repack(self, batch: Batch) -> int | None:
        """Return how many of these packs were replaced: all but those that cannot be read; None: it is not the time."""
        while batch:
            if done := await self._compactor.compact_batches([batch], lambda: False):
                return done
            if not self._pass_over(batch):
                return None
            out = self._compactor.failed | self._compactor.unreachable
            batch = tuple(pack for pack in batch if pack.number not in out)
        return 0

    async def _goes_on(self) -> bool:
        """Return whether something is to be looked at; begin where the setting says if that is news."""
        position = await self._metadata.get_setting(POSITION_SETTING)
        if position is None:
            return False
        if position != self._noted:
            self._noted, self._at, self._skipped = position, PackNo(int(position)), None
        elif trio.current_time() < self._rests_until and self._writer.clouds_up == self._rests_with:
            return False
        return True

    def _pass_over(self, batch: Batch) -> bool:
        """Return whether others can be repacked although this batch could not; take note of what is to be tried again.

        What is damaged stays as it is; what lies on clouds that are away is looked at again later.
        """
        numbers = {pack.number for pack in batch}
        if away := numbers & self._compactor.unreachable:
            self._skipped = min([*away, *([] if self._skipped is None else [self._skipped])])
        return bool(away or numbers & self._compactor.failed)

    async def _advance(self, last: PackNo | None) -> None:
        if last is not None:
            self._at = last
            if self._skipped is None:
                self._noted = str(last)
                await self._metadata.set_setting(POSITION_SETTING, self._noted)
        elif self._skipped is None:
            self._noted = None
            await self._metadata.delete_setting(POSITION_SETTING)
            log.info("every pack has the redundancy that its files want")
        else:
            self._noted, self._at = str(self._skipped - 1), PackNo(self._skipped - 1)
            self._skipped, self._rests_until = None, trio.current_time() + REST_S
            self._rests_with = self._writer.clouds_up
            await self._metadata.set_setting(POSITION_SETTING, self._noted)

    async def _is_other(self, pack: PackRow) -> bool:
        """Return whether a pack has another policy than what lives in it should have."""
        if pack.number in self._compactor.failed:
            return False
        if self._policies.is_uniform:
            return pack.policy != self._policies.default
        return any(policy != pack.policy for policy in (await self._compactor.wanted(pack)).values())

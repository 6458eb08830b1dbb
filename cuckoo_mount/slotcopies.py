"""The key slots on the clouds: every cloud has a copy of each, and of none that no longer counts.

Used by roster.py.  Loop only.  What was put where is noted on this machine, so that a mount asks nobody.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from cuckoo_mount.clouds import jobs
from cuckoo_mount.errors import CloudError
from cuckoo_mount.metadata.base import Metadata
from cuckoo_mount.multi.multifs import MultiFS
from cuckoo_mount.types import CloudName

log = logging.getLogger(__name__)
SIGNED_PREFIX: Final = "signed."
"""Local settings `signed.<cloud>`: the key slots that were put there, as their names joined by blanks."""
SWEPT_PREFIX: Final = "swept."
"""Local settings `swept.<cloud>`: "1" once all that is there, drive.json too, is being deleted, or is gone."""
SLOT_DEADLINE_S: Final = 30.0

LoadSlots = Callable[[], Awaitable[Mapping[str, bytes]]]
"""Returns what belongs below keys/ on every cloud: object name → bytes."""


class SlotCopies:
    """Brings the slots to the clouds; one call at a time for each cloud."""

    def __init__(self, metadata: Metadata, multifs: MultiFS, load_slots: LoadSlots) -> None:
        self._metadata = metadata
        self._multifs = multifs
        self._load_slots = load_slots

    async def put(self, name: CloudName) -> None:
        """Put the key slots that are not there yet, then delete those that no longer count.  Raises: CloudError."""
        wanted = await self._load_slots()
        noted = await self._metadata.get_local(f"{SIGNED_PREFIX}{name}")
        there = set((noted or "").split())
        if there == wanted.keys():
            return
        for slot in sorted(wanted.keys() - there):
            await self._multifs.ask(name, jobs.put, slot, wanted[slot], deadline_s=SLOT_DEADLINE_S)
        old = sorted(there - wanted.keys())
        if old:
            await self._multifs.ask(name, jobs.delete_many, old, deadline_s=SLOT_DEADLINE_S)
        await self._metadata.set_local(f"{SIGNED_PREFIX}{name}", " ".join(sorted(wanted)))

    async def put_quietly(self, name: CloudName) -> None:
        """As `put`; what a cloud does not take is tried again later."""
        try:
            await self.put(name)
        except CloudError as error:
            log.info("the key slots are not on every cloud yet: %s", error)

    async def was_listed(self, name: str) -> bool:
        """Return whether this machine has seen the cloud on the drive's list."""
        notes = [await self._metadata.get_local(f"{prefix}{name}") for prefix in (SIGNED_PREFIX, SWEPT_PREFIX)]
        return any(notes)

    async def note_swept(self, name: CloudName) -> None:
        """Note, durably, that from now on the slots, drive.json and all else may be gone there."""
        await self._metadata.set_local(f"{SIGNED_PREFIX}{name}", "")
        await self._metadata.set_local(f"{SWEPT_PREFIX}{name}", "1")
        await self._metadata.make_durable()

    async def is_swept(self, name: str) -> bool:
        """Return whether that was noted, here."""
        return bool(await self._metadata.get_local(f"{SWEPT_PREFIX}{name}"))

    async def forget(self, name: str) -> None:
        """Drop the notes on a cloud that left, or is signed anew; the caller makes that durable."""
        for prefix in (SIGNED_PREFIX, SWEPT_PREFIX):
            await self._metadata.set_local(f"{prefix}{name}", "")

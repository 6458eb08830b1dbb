"""The key slots on the clouds: every cloud has a copy of each, and of none that no longer counts.

Used by roster.py, and by the drive's scrub.  Loop only.  What was put where is noted on this machine, so that a mount
asks nobody.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Final

from cuckoo_mount.clouds import jobs
from cuckoo_mount.epochs.scrubbing import ScrubbedObjects
from cuckoo_mount.errors import CloudCorrupt, CloudError, CloudMissing
from cuckoo_mount.metadata.base import Metadata
from cuckoo_mount.multi.multifs import MultiFS
from cuckoo_mount.multi.requests import gather
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

    async def scrub(self, *, dry_run: bool) -> ScrubbedObjects:
        """Read every slot on every cloud, and put again what is missing or not what was stored.

        One request for each, whatever it finds; they have some 100 bytes.  Checkpoint.  Raises: MetadataError.
        """
        wanted = await self._load_slots()
        pairs = [(cloud, slot) for cloud in self._multifs.names for slot in sorted(wanted)]
        answers = await gather([partial(self._read, cloud, slot, wanted[slot]) for cloud, slot in pairs])
        failed = [(pair, answer) for pair, answer in zip(pairs, answers, strict=True) if answer is not None]
        # It may also be drive.json that is damaged: then nothing is known of the slots there.
        bad = [
            ((cloud, slot), error)
            for (cloud, slot), error in failed
            if isinstance(error, CloudMissing | CloudCorrupt) and error.name == slot
        ]
        unchecked = len(failed) - len(bad)
        repaired = 0
        for (cloud, slot), error in bad:
            log.warning("a key slot is missing or damaged: %s", error)
            if not dry_run and self._multifs.loses_objects(cloud):
                repaired += await self._put_again(cloud, slot, wanted[slot])
        missing = sum(isinstance(error, CloudMissing) for _, error in bad)
        return ScrubbedObjects(
            checked=len(pairs) - unchecked,
            unchecked=unchecked,
            missing=missing,
            damaged=len(bad) - missing,
            repaired=repaired,
            left=len(bad) - repaired,
        )

    async def _read(self, cloud: CloudName, slot: str, data: bytes) -> None:
        """Raises: CloudMissing, CloudCorrupt when it is not there, or not as it should be; other CloudErrors."""
        found = await self._multifs.read_object(cloud, jobs.get, slot, deadline_s=SLOT_DEADLINE_S, bytes_down=len(data))
        if found != data:
            raise CloudCorrupt("its bytes are not those that were stored", cloud=cloud, name=slot)

    async def _put_again(self, cloud: CloudName, slot: str, data: bytes) -> bool:
        """Put a slot in the place of a bad one; return whether the cloud took it."""
        try:
            # Not every storage replaces one that is there.
            await self._multifs.ask(cloud, jobs.delete_many, [slot], deadline_s=SLOT_DEADLINE_S)
            await self._multifs.ask(cloud, jobs.put, slot, data, deadline_s=SLOT_DEADLINE_S)
        except CloudError as error:
            # A slot that is not there any more is put by the next mount at the latest.
            await self._metadata.set_local(f"{SIGNED_PREFIX}{cloud}", "")
            log.warning("a key slot is not put again: %s", error)
            return False
        return True

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

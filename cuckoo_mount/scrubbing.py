"""One scrub of a drive: its packs, healing, its epochs, its key slots, and what is left in the end.

Used by drive.py.  For one trio loop.
"""

from __future__ import annotations

import logging

from attrs import asdict, evolve, frozen

from cuckoo_mount.epochs.engine import EpochEngine
from cuckoo_mount.epochs.joining import Joining
from cuckoo_mount.epochs.scrubbing import EpochScrubber, ScrubbedObjects
from cuckoo_mount.metadata.base import Metadata
from cuckoo_mount.multi.multifs import MultiFS
from cuckoo_mount.packs.collecting import Collector
from cuckoo_mount.packs.reader import PackReader
from cuckoo_mount.packs.scrubbing import Scrubbed, Scrubber, ScrubRequest
from cuckoo_mount.slotcopies import SlotCopies

log = logging.getLogger(__name__)


@frozen(slots=True)
class ScrubbedDrive:
    """What came of it."""

    request: ScrubRequest
    packs: Scrubbed
    epochs: ScrubbedObjects
    keys: ScrubbedObjects

    @property
    def is_whole(self) -> bool:
        """Whether every cloud was looked at, and all that the drive wants to be there is there now."""
        packs, epochs, keys = self.packs, self.epochs, self.keys
        left = packs.unchecked + packs.left + packs.degraded + packs.lost + epochs.unchecked + epochs.left
        return not left and not packs.silent and not keys.unchecked and not keys.left

    def as_document(self) -> dict[str, object]:
        """Return it for `scrub --json` (docs/operations.md)."""
        found = asdict(self.packs)
        del found["unreadable"]  # numbers that say nothing to anybody outside
        silent = [{"name": name, "error": error} for name, error in found.pop("silent").items()]
        return {
            "deep": self.request.deep,
            "dry_run": self.request.dry_run,
            "whole": self.is_whole,
            **found,
            "silent": silent,
            "epochs": asdict(self.epochs),
            "keys": asdict(self.keys),
        }


class DriveScrubber:
    """Scrubs one drive."""

    def __init__(self, packs: Scrubber, epochs: EpochScrubber, slots: SlotCopies) -> None:
        self._packs = packs
        self._epochs = epochs
        self._slots = slots

    def progress(self) -> dict[str, object]:
        """Return how far the scrub is that runs now: `phase`, `checked`, `total`, `bad`."""
        return asdict(self._packs.progress)

    async def last(self) -> dict[str, object] | None:
        """Return `scrub` of `status --json`; see `Scrubber.last`."""
        return await self._packs.last()

    async def scrub(self, request: ScrubRequest) -> ScrubbedDrive:
        """Scrub everything; see `Scrubber.scrub`, `EpochScrubber.scrub` and `SlotCopies.scrub`."""
        packs = await self._packs.scrub(request)
        epochs = await self._epochs.scrub(deep=request.deep, dry_run=request.dry_run)
        keys = await self._slots.scrub(dry_run=request.dry_run)
        log.info("scrubbed: %s, %s, %s", evolve(packs, unreadable=()), epochs, keys)
        return ScrubbedDrive(request, packs, epochs, keys)


def open_scrubber(
    metadata: Metadata,
    multifs: MultiFS,
    reader: PackReader,
    collector: Collector,
    joining: Joining,
    engine: EpochEngine,
    slots: SlotCopies,
    *,
    writing: bool,
) -> DriveScrubber:
    """Return what scrubs a drive that is open.  `writing`: whether it is for writing; else it refuses."""
    read_only = "" if writing else "the drive is open for reading only; nothing is scrubbed"
    packs = Scrubber(
        *(metadata, multifs, reader, collector, joining.keys, joining.drive_id),
        refusal=lambda: read_only or engine.refused,
    )
    return DriveScrubber(packs, EpochScrubber(engine, joining, multifs), slots)

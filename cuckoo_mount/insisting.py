"""Sending for somebody who waits: clouds in trouble are asked again and again, whatever pause they were given.

Used by the session (`cuckoo sync`, unmounting) and for files whose fsync waits for the clouds.  Loop only.
"""

from __future__ import annotations

from typing import Final, Protocol

import trio

RETRY_S: Final = 5.0
"""While something is unsent and somebody waits, clouds that are not well are asked this often."""


class PendingCounts(Protocol):
    """What is not yet on the clouds."""

    @property
    def files(self) -> int:
        """Files with such chunks."""

    @property
    def chunks(self) -> int:
        """Chunks."""

    @property
    def bytes(self) -> int:
        """Their plain bytes."""

    @property
    def changes(self) -> int:
        """Changes of names, attributes and content that are in no durable epoch."""


class SendingDrive(Protocol):
    """What is needed of a drive."""

    async def send_all(self) -> None:
        """Return when everything written before is on the clouds."""

    def pending(self) -> PendingCounts:
        """Return what is not."""

    def troubles(self) -> list[dict[str, str]]:
        """Return the clouds that are not well."""

    async def retry_clouds(self) -> None:
        """Ask those clouds now, and send at once to the ones that are back."""


def is_unsent(pending: PendingCounts) -> bool:
    """Return whether anything is not on the clouds."""
    return bool(pending.chunks or pending.bytes or pending.changes)


async def send_all_insisting(drive: SendingDrive) -> None:
    """Return when everything written before is on the clouds.  Checkpoint.  Raises: as `drive.send_all`."""
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_retry_clouds, drive)
        try:
            await drive.send_all()
        except Exception as error:
            failure = error  # raised in here the nursery would wrap it, and it would look like a bug
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


async def _retry_clouds(drive: SendingDrive) -> None:
    while True:
        if is_unsent(drive.pending()) and drive.troubles():
            await drive.retry_clouds()
        await trio.sleep(RETRY_S)

"""What `cuckoo scrub` asks of an open drive: a line in the table of commands.py.

Used by commands.py.  Loop only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from cuckoo_mount.errors import UsageError
from cuckoo_mount.fuse.control import Arguments
from cuckoo_mount.packs.scrubbing import ScrubRequest

if TYPE_CHECKING:
    from cuckoo_mount.drive import Drive


async def scrub(drive: Drive, arguments: Arguments) -> Mapping[str, object]:
    """Scrub the drive; the arguments are the fields of `ScrubRequest`, the result is `ScrubbedDrive.as_document`."""
    request = ScrubRequest(
        deep=_flag(arguments, "deep", default=False),
        restart=_flag(arguments, "restart", default=False),
        dry_run=_flag(arguments, "dry_run", default=False),
        heal=_flag(arguments, "heal", default=True),
    )
    return (await drive.scrubber.scrub(request)).as_document()


def progress(drive: Drive, arguments: Arguments) -> Mapping[str, object]:
    """Return how far the scrub is."""
    return drive.scrubber.progress()


def _flag(arguments: Arguments, name: str, *, default: bool) -> bool:
    value = arguments.get(name, default)
    if not isinstance(value, bool):
        raise UsageError(f"{name} has to be true or false")
    return value

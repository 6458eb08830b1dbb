"""What `cuckoo fsck` asks of an open drive: a line in the table of commands.py.

Used by commands.py.  Loop only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from cuckoo_mount.errors import UsageError
from cuckoo_mount.fuse.control import Arguments

if TYPE_CHECKING:
    from cuckoo_mount.drive import Drive


async def fsck(drive: Drive, arguments: Arguments) -> Mapping[str, object]:
    """Check the drive, and `repair` it; the result is `DriveChecker.as_document`."""
    repair = arguments.get("repair", False)
    if not isinstance(repair, bool):
        raise UsageError("repair has to be true or false")
    return await drive.checker.as_document(await drive.checker.check(repair=repair))


def progress(drive: Drive, arguments: Arguments) -> Mapping[str, object]:
    """Return how far it is."""
    return drive.checker.progress()

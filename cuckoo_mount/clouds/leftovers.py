"""What is left of a drive in a folder when all of its objects are deleted.

Used by whoever empties a cloud.  Blocks.
"""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

from cuckoo_mount.clouds.base import CloudSettings
from cuckoo_mount.clouds.registry import parse_place
from cuckoo_mount.format import ROOT_PREFIX, drive_prefix


def remove_leftovers(settings: CloudSettings, drive_id: bytes) -> str:
    """Remove what deleting objects leaves in a folder: empty folders, and parts of objects that were never finished.

    Returns why that failed, or nothing.
    """
    place = parse_place(settings.url)
    if not place.driver.folder:
        return ""
    below = Path(place.place) / drive_prefix(drive_id)
    try:
        shutil.rmtree(below)
    except FileNotFoundError:
        return ""
    except OSError as error:
        return f"{below}: {error.strerror}"
    with suppress(OSError):  # other drives are there
        (Path(place.place) / ROOT_PREFIX).rmdir()
    return ""

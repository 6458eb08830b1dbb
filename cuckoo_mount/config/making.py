"""A new drive with one local cloud, and the check that a mountpoint keeps away from the drive's own folders.

Used by the daemon, which holds the drive's lock meanwhile.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from cuckoo_mount.config.atomic import make_private_folder
from cuckoo_mount.config.files import write_config
from cuckoo_mount.config.keys import DRIVE_KEY_BYTES, read_drive_key, write_drive_key
from cuckoo_mount.config.paths import DrivePaths, shown
from cuckoo_mount.config.records import CloudConfig, DriveConfig
from cuckoo_mount.errors import ConfigurationError, UsageError
from cuckoo_mount.format import ID_BYTES

DEFAULT_CLOUD: Final = "local"
METADATA_FILES: Final = "metadata.sqlite*"


def create_default_drive(paths: DrivePaths) -> DriveConfig:
    """Make a drive with one cloud `local` in `paths.data`: its key file, folder and, last, its TOML file.

    A key file without anything else is what an interrupted creation left; it is used.
    Raises: ConfigurationError when something of an earlier drive is here: a new one would hide it; OSError.
    """
    folder = paths.data / DEFAULT_CLOUD
    for remains in (paths.state.glob(METADATA_FILES), folder.glob("cuckoo/*/drive.json")):
        if found := next(remains, None):
            raise ConfigurationError(
                f"{shown(paths.config_file)} is missing, but {shown(found)} of an earlier drive {paths.name!r} is "
                "here; put the file and its key back from a backup, or choose another name with --drive"
            )
    if paths.key_file.exists():
        read_drive_key(paths.key_file)
    else:
        write_drive_key(paths.key_file, secrets.token_bytes(DRIVE_KEY_BYTES))
    make_private_folder(paths.data)
    make_private_folder(folder)
    cloud = CloudConfig(name=DEFAULT_CLOUD, url=str(folder), cloud_id=secrets.token_bytes(ID_BYTES))
    config = DriveConfig(name=paths.name, drive_id=secrets.token_bytes(ID_BYTES), clouds=(cloud,))
    write_config(config, paths)
    return config


def local_cloud_folders(config: DriveConfig) -> Iterator[tuple[str, Path]]:
    """Yield (name, folder) of every cloud that is a folder of this machine.  Raises: UsageError for a URL not known."""
    from cuckoo_mount.clouds.registry import parse_place

    for cloud in config.clouds:
        place = parse_place(cloud.url)
        if place.driver.folder:
            yield cloud.name, Path(place.place)


def check_mountpoint_place(mountpoint: Path, paths: DrivePaths, config: DriveConfig | None) -> None:
    """Return if the mountpoint neither contains nor lies inside a folder that the drive itself needs.

    Mounted over its own files a drive would wait for itself for ever.  Raises: UsageError.
    """
    here = Path(os.path.realpath(mountpoint))
    needed = [("cuckoo-mount's own folder", folder) for folder in paths.folders]
    if config is not None:
        needed += [(f"cloud {name!r}", folder) for name, folder in local_cloud_folders(config)]
    for what, folder in needed:
        place = Path(os.path.realpath(folder))
        if here == place or here in place.parents or place in here.parents:
            relation = "is" if here == place else "contains" if here in place.parents else "lies inside"
            raise UsageError(
                f"the mountpoint {shown(mountpoint)} {relation} {what} {shown(folder)}; choose a folder of its own"
            )

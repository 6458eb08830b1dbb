"""A new drive, with one local cloud or none, and the check that a mountpoint keeps away from the drive's own folders.

Used by the daemon and by `cuckoo init`, which hold the drive's lock meanwhile.
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
RECOVERING: Final = "recovering"
"""A file in the state folder that says: what is here was made by a recovery that did not end."""


def create_default_drive(paths: DrivePaths) -> DriveConfig:
    """Make a drive with one cloud `local` in `paths.data`: its key file, folder and, last, its TOML file.

    A key file without anything else is what an interrupted creation left; it is used.
    Raises: ConfigurationError when something of an earlier drive is here: a new one would hide it; OSError.
    """
    check_no_drive(paths)
    _keep_key(paths)
    folder = paths.data / DEFAULT_CLOUD
    make_private_folder(paths.data)
    make_private_folder(folder)
    cloud = CloudConfig(name=DEFAULT_CLOUD, url=str(folder), cloud_id=secrets.token_bytes(ID_BYTES))
    config = DriveConfig(name=paths.name, drive_id=secrets.token_bytes(ID_BYTES), clouds=(cloud,))
    write_config(config, paths)
    return config


def create_empty_drive(
    paths: DrivePaths, *, redundancy: str, pack_size_bytes: int, encrypted: bool, ask: bool
) -> tuple[DriveConfig, bytes]:
    """Make a drive without clouds, its TOML file last, and return it with its drive key.

    `ask`: the key is in no file; whoever calls puts it into a key slot before anything else is done with the drive.
    Raises: as `create_default_drive`, and UsageError for a bad redundancy or pack size.
    """
    config = DriveConfig(
        name=paths.name,
        drive_id=secrets.token_bytes(ID_BYTES),
        redundancy=redundancy,
        pack_size_bytes=pack_size_bytes,
        encrypted=encrypted,
        ask=ask,
        clouds=(),
    )
    check_no_drive(paths)
    if ask and paths.key_file.exists():
        raise ConfigurationError(
            f"{shown(paths.key_file)} is there already; it may be the only copy of a drive's key, move it away first"
        )
    key = secrets.token_bytes(DRIVE_KEY_BYTES) if ask else _keep_key(paths)
    write_config(config, paths)
    return config, key


def withdraw_empty_drive(paths: DrivePaths) -> None:
    """Take back what `create_empty_drive` made and a first open added to it, but for the key file.  Raises: OSError."""
    paths.config_file.unlink(missing_ok=True)
    for file in paths.state.glob(METADATA_FILES):
        file.unlink()


def check_no_drive(paths: DrivePaths) -> None:
    """Raises: ConfigurationError when there is a drive of that name, or something of an earlier one."""
    if paths.config_file.exists():
        raise ConfigurationError(
            f"there is a drive {paths.name!r} already ({shown(paths.config_file)}); mount that one, or choose another "
            "name with --drive"
        )
    if (paths.state / RECOVERING).exists():
        raise ConfigurationError(f"a recovery of drive {paths.name!r} did not end; run it again: cuckoo recover URL")
    for remains in (paths.state.glob(METADATA_FILES), paths.data.glob(f"{DEFAULT_CLOUD}/cuckoo/*/drive.json")):
        if found := next(remains, None):
            raise ConfigurationError(
                f"{shown(paths.config_file)} is missing, but {shown(found)} of an earlier drive {paths.name!r} is "
                "here; put the file and its key back from a backup, or choose another name with --drive"
            )


def _keep_key(paths: DrivePaths) -> bytes:
    """Return the drive key of the key file, made if there is none."""
    if not paths.key_file.exists():
        write_drive_key(paths.key_file, secrets.token_bytes(DRIVE_KEY_BYTES))
    return read_drive_key(paths.key_file)


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

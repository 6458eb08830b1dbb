"""Where a cloud may be: what can be said of a URL before anything is asked of the storage itself.

Used by cloud.py.  Blocks for the local machine only: file names are looked up, nothing is opened.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from cuckoo_mount.cli.common import drive_argument, say_error
from cuckoo_mount.cli.mounts import cuckoo_mounts, real_path
from cuckoo_mount.clouds.registry import parse_place
from cuckoo_mount.config import DriveConfig, DrivePaths, shown
from cuckoo_mount.config.secrets import secrets_in_url
from cuckoo_mount.errors import UsageError
from cuckoo_mount.format import ROOT_PREFIX


def full_url(url: str) -> str:
    """Return `url`, a plain path as an absolute one: it is to mean the same place from every folder.

    Raises: UsageError for what cannot stand in a configuration file.
    """
    if not url or not url.isprintable():
        raise UsageError(f"{url!r} cannot be the place of a cloud; write a path such as /srv/cloud, or a URL")
    return url if "://" in url else os.path.abspath(os.path.expanduser(url))


def check_place(url: str, paths: DrivePaths, config: DriveConfig, *, read_only: bool) -> None:
    """Return if a cloud can be at `url` as far as this machine knows; secrets in it are warned of.

    Raises: UsageError: unknown scheme, no such folder, or one that belongs to a drive's own files or mount.
    """
    place = parse_place(url)
    warn_of_secrets(url)
    if not place.driver.folder:
        return
    folder = Path(place.place)
    # Before the look into it: in a mount of our own that could wait for the drive itself.
    _check_apart(folder, paths, config)
    _check_folder(folder, read_only=read_only)


def warn_of_secrets(url: str) -> None:
    """Say it if there are secrets in `url`."""
    keys = secrets_in_url(url)
    if keys:
        options = " ".join(f"--secret {key}=prompt" for key in keys)
        say_error(
            "cuckoo",
            "warning: secrets in a URL are seen by everyone on this machine while the command runs, and stay in the "
            f"shell's history; leave them out and write: {options}",
        )


def _check_folder(folder: Path, *, read_only: bool) -> None:
    name = shown(folder)
    if not folder.exists():
        raise UsageError(f"the folder {name} does not exist; make it with: mkdir -p {name}")
    if not folder.is_dir():
        raise UsageError(f"{name} is no folder; choose a folder for the cloud")
    wanted = os.R_OK | os.X_OK | (0 if read_only else os.W_OK)
    if not os.access(folder, wanted):
        raise UsageError(f"you may not write to {name}; choose a folder of your own, or change its rights")


def _check_apart(folder: Path, paths: DrivePaths, config: DriveConfig) -> None:
    here = real_path(folder)
    for drive, mountpoint in _mountpoints(config):
        if _is_in(here, mountpoint):
            raise UsageError(
                f"{shown(folder)} lies inside the mountpoint {shown(mountpoint)} of drive {drive!r}; "
                "a cloud has to be outside of it, choose another folder"
            )
        if drive == config.name and _is_in(mountpoint, here):
            raise UsageError(
                f"the drive's mountpoint {shown(mountpoint)} lies inside {shown(folder)}; choose another folder, "
                f"or mount elsewhere first: cuckoo-mount MOUNTPOINT{drive_argument(drive)}"
            )
    objects = here / ROOT_PREFIX
    for own in paths.folders:
        # Below our data folder are clouds; below the others nothing of a cloud may be.
        if objects == real_path(own) or (own != paths.data.parent and _is_in(here, real_path(own))):
            raise UsageError(
                f"in {shown(folder)} a cloud would mix with cuckoo-mount's own folder {shown(own)}; choose another one"
            )


def _mountpoints(config: DriveConfig) -> Iterator[tuple[str, Path]]:
    """Yield (drive, place) of every mounted drive of this machine, and where this drive will be mounted again."""
    for mount in cuckoo_mounts():
        yield mount.drive, mount.mountpoint
    if config.mountpoint is not None:
        yield config.name, real_path(config.mountpoint)


def _is_in(inner: Path, outer: Path) -> bool:
    return inner == outer or outer in inner.parents

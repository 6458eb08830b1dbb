"""The kernel's table of mounts, and unmounting through fusermount3, which needs no rights of root.

Used by the daemon and by `cuckoo umount`.  `unmount` and `is_dead` block.  Source: proc(5), mountinfo.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Final

from attrs import frozen

from cuckoo_mount.config.paths import shown
from cuckoo_mount.errors import ConfigurationError

SOURCE_PREFIX: Final = b"cuckoo:"
_MOUNTINFO: Final = "/proc/self/mountinfo"
_OCTAL: Final = re.compile(rb"\\([0-7]{3})")


@frozen(slots=True)
class CuckooMount:
    """A drive's entry in the table of mounts."""

    drive: str
    mountpoint: Path


class MountBusy(ConfigurationError):
    """Some program still has a file or folder of the mount open."""


def parse_mountinfo(table: bytes) -> list[CuckooMount]:
    """Return the cuckoo drives that are the topmost mount at their mountpoint."""
    topmost: dict[bytes, bytes] = {}
    for line in table.splitlines():
        before, _, after = line.partition(b" - ")
        place, source = before.split(b" ")[4:5], after.split(b" ")[1:2]
        if place and source:
            topmost[_unescape(place[0])] = _unescape(source[0])
    return [
        CuckooMount(source.removeprefix(SOURCE_PREFIX).decode("ascii", "replace"), Path(os.fsdecode(place)))
        for place, source in topmost.items()
        if source.startswith(SOURCE_PREFIX)
    ]


def _unescape(text: bytes) -> bytes:
    return _OCTAL.sub(lambda match: bytes([int(match.group(1), 8)]), text)


def cuckoo_mounts() -> list[CuckooMount]:
    """Return the drives mounted on this machine, those of other users included."""
    with open(_MOUNTINFO, "rb") as file:
        return parse_mountinfo(file.read())


def mount_at(mountpoint: Path) -> CuckooMount | None:
    """Return the drive mounted exactly at `mountpoint`."""
    place = real_path(mountpoint)
    return next((mount for mount in cuckoo_mounts() if mount.mountpoint == place), None)


def mount_around(path: Path) -> CuckooMount | None:
    """Return the drive that `path` lies in."""
    place = real_path(path)
    around = [mount for mount in cuckoo_mounts() if mount.mountpoint == place or mount.mountpoint in place.parents]
    return max(around, key=lambda mount: len(mount.mountpoint.parts), default=None)


def real_path(path: Path) -> Path:
    """Return the path without symbolic links; a mountpoint whose daemon died is no hindrance."""
    return Path(os.path.realpath(path))


def is_dead(mount: CuckooMount) -> bool:
    """Return whether the daemon of a mount has died ("Transport endpoint is not connected")."""
    try:
        # Not stat: the kernel answers that from what it remembers.
        os.statvfs(mount.mountpoint)
    except PermissionError:
        return False  # it answers, to others
    except OSError:
        return True
    return False


def unmount(mountpoint: Path, *, lazy: bool = False) -> None:
    """Unmount a FUSE file system.  `lazy`: it disappears now, and for those who are still in it when they leave.

    Raises: MountBusy, ConfigurationError with what the system said.
    """
    options = ["-u", "-z"] if lazy else ["-u"]
    commands = [["fusermount3", *options], ["fusermount", *options], ["umount", *(["-l"] if lazy else [])]]
    said = "neither fusermount3 nor umount is installed"
    for command in commands:
        try:
            done = subprocess.run(
                [*command, "--", mountpoint], stdin=subprocess.DEVNULL, capture_output=True, check=False, cwd="/"
            )
        except FileNotFoundError:
            continue
        if done.returncode == 0:
            return
        said = done.stderr.decode("utf-8", "replace").strip().replace("\n", "; ")
        break
    if "busy" in said:
        raise MountBusy(
            f"{shown(mountpoint)} is in use: close the programs and shells that are in it "
            f"(`fuser -vm {shown(mountpoint)}` lists them) and try again"
        )
    raise ConfigurationError(f"{shown(mountpoint)} cannot be unmounted: {said}")

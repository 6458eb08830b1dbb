"""`mount.cuckoo DRIVE MOUNTPOINT -o …`: what mount(8) and /etc/fstab call for the type `cuckoo`.

A line of fstab:  default  /home/me/Cuckoo  cuckoo  noauto,user  0 0
Source: mount(8), "External helpers" and "Exit status".
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click

from cuckoo_mount.cli import common
from cuckoo_mount.config.paths import drive_paths

PROGRAM: Final = "mount.cuckoo"
WRONG_USE: Final = 1
SYSTEM_ERROR: Final = 2
INTERRUPTED: Final = 8
MOUNT_FAILED: Final = 32
_STATUS: Final = {
    common.DONE: 0,
    common.USAGE: WRONG_USE,
    common.FAILED: MOUNT_FAILED,
    common.UNSENT: 0,
    common.INTERRUPTED: INTERRUPTED,
}


@click.command(PROGRAM, epilog="Example:  mount -t cuckoo default ~/Cuckoo -o ro")
@click.argument("drive")
@click.argument("mountpoint", type=click.Path(path_type=Path))
@click.option("-o", "options", multiple=True, metavar="OPT[,OPT…]", help="Mount options, as in fstab.")
@click.option("-f", "fake", is_flag=True, help="Do everything but mount.")
@click.option("-s", "sloppy", is_flag=True, help="Accepted, as mount(8) asks; options not known stay an error.")
@click.option("-n", "no_mtab", is_flag=True, help="Accepted; no file is written.")
@click.option("-v", "verbose", is_flag=True, help="Log more.")
@click.option("-N", "namespace", metavar="NAMESPACE", hidden=True)
@click.option("-t", "kind", metavar="TYPE", hidden=True)
def command(
    drive: str,
    mountpoint: Path,
    options: tuple[str, ...],
    fake: bool,
    sloppy: bool,
    no_mtab: bool,
    verbose: bool,
    namespace: str | None,
    kind: str | None,
) -> int:
    """Mount DRIVE at MOUNTPOINT for mount(8).

    Exit status as mount(8) has it: 0 mounted, 1 wrong use, 2 a bug or the system, 8 interrupted, 32 not mounted.
    """
    paths = drive_paths(drive.removeprefix("cuckoo:"))
    if fake:
        return common.DONE
    from cuckoo_mount.cli.daemon import MountRequest, mount_drive

    level = "debug" if verbose else "info"
    return mount_drive(
        MountRequest(paths=paths, mountpoint=mountpoint, options=options, foreground=False, log_level=level)
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `mount.cuckoo`; returns one of mount(8)'s exit statuses."""
    return _STATUS.get(common.run(command, PROGRAM, arguments), SYSTEM_ERROR)


if __name__ == "__main__":
    sys.exit(main())

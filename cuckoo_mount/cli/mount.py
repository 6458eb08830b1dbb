"""`cuckoo-mount MOUNTPOINT`, also called `cuckoo mount`.

The entry point of the command `cuckoo-mount`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from cuckoo_mount.cli import common
from cuckoo_mount.cli.logs import LEVELS
from cuckoo_mount.config.paths import drive_paths
from cuckoo_mount.errors import UsageError

PROGRAM = "cuckoo-mount"


@click.command("mount", epilog="Example:  cuckoo-mount ~/Cuckoo")
@click.argument("mountpoint", required=False, type=click.Path(path_type=Path))
@common.drive_option
@click.option("--foreground", "-f", is_flag=True, help="Stay in the foreground; end with Ctrl-C.")
@click.option(
    "-o", "options", multiple=True, metavar="OPT[,OPT…]", help="Mount options, for example -o ro or -o allow_other."
)
@click.option(
    "--passphrase-file",
    metavar="FILE",
    help="Where the passphrase is, if the drive has no key file; - is standard input.",
)
@click.option(
    "--take-over",
    is_flag=True,
    help="Also if another machine has the drive, or changed it meanwhile: what is here counts from now on.",
)
@click.option(
    "--epoch", type=click.IntRange(1), metavar="N", help="Show the drive as it was then, read-only, beside its mount."
)
@click.option(
    "--log-level",
    type=click.Choice(LEVELS, case_sensitive=False),
    default="info",
    show_default=True,
    help="What the daemon logs.",
)
@click.option(
    "--json", "as_json", is_flag=True, hidden=True, help="Accepted, as by every command; changes nothing here."
)
def command(
    mountpoint: Path | None,
    drive: str,
    foreground: bool,
    options: tuple[str, ...],
    passphrase_file: str | None,
    take_over: bool,
    epoch: int | None,
    log_level: str,
    as_json: bool,
) -> int:
    """Mount a drive at MOUNTPOINT, an empty folder; make the drive if there is none.

    Returns to the shell once the drive answers.  Without MOUNTPOINT it is mounted where it was last time.
    """
    if take_over and epoch is not None:
        raise UsageError(
            "--epoch shows an old state and writes nothing, so there is nothing to take over; leave one out"
        )
    # What follows costs a few 100 ms to import, and --help should not wait for it.
    from cuckoo_mount.cli.daemon import MountRequest, mount_drive

    request = MountRequest(
        paths=drive_paths(drive),
        mountpoint=mountpoint,
        options=options,
        foreground=foreground,
        log_level=log_level,
        passphrase_file=passphrase_file,
        take_over=take_over,
        epoch=epoch,
    )
    return mount_drive(request)


def main() -> int:
    """Run `cuckoo-mount`."""
    return common.run(command, PROGRAM)


if __name__ == "__main__":
    sys.exit(main())

"""`cuckoo sync`: wait until everything that was written before is on the clouds."""

from __future__ import annotations

from pathlib import Path

import click

from cuckoo_mount.cli import client, common, sending
from cuckoo_mount.cli.mounts import mount_around
from cuckoo_mount.config.paths import shown
from cuckoo_mount.errors import UsageError


@click.command("sync", epilog="Example:  cp -r Photos ~/Cuckoo/ && cuckoo sync")
@click.argument("path", required=False, type=click.Path(path_type=Path))
@common.common_options
@click.pass_context
def command(context: click.Context, path: Path | None, drive: str, as_json: bool) -> int:
    """Wait until everything written so far is on the clouds.

    With PATH, which lies in a mounted drive, that drive is meant; all of it is sent.  Ctrl-C ends the waiting only:
    the drive goes on sending.
    """
    if path is not None:
        given = context.get_parameter_source("drive") is click.core.ParameterSource.COMMANDLINE
        drive = _drive_of(path, drive if given else None)
    try:
        with sending.SendingLine(quiet=as_json) as line:
            result = client.ask(drive, "sync", line.update)
    except KeyboardInterrupt:
        return _interrupted(drive, as_json=as_json)
    if as_json:
        common.print_json({"drive": drive, **result})
    if result.get("sent") is False:
        common.say_error("cuckoo sync", "the drive was unmounted meanwhile; the rest is sent after the next mount")
        return common.UNSENT
    if not as_json:
        click.echo("Everything written before is on the clouds.")
    return common.DONE


def _drive_of(path: Path, named: str | None) -> str:
    mount = mount_around(path)
    if mount is None:
        raise UsageError(f"{shown(path)} lies in no mounted drive; see: cuckoo drives")
    if named not in (None, mount.drive):
        raise UsageError(f"{shown(path)} lies in drive {mount.drive!r}, not in {named!r}; leave --drive out")
    return mount.drive


def _interrupted(drive: str, *, as_json: bool) -> int:
    pending = sending.pending_now(drive)
    if as_json:
        common.print_json({"drive": drive, "pending": pending, "sent": not sending.unsent(pending)})
    if pending is not None and not sending.unsent(pending):
        return common.DONE
    left = sending.describe(pending) if pending is not None else "an unknown amount"
    common.say_error("cuckoo sync", f"not waited for: {left} not yet on the clouds; the drive goes on sending")
    return common.UNSENT

"""`cuckoo sync`: wait until everything that was written before is on the clouds."""

from __future__ import annotations

from pathlib import Path

import click

from cuckoo_mount.cli import client, common, sending
from cuckoo_mount.cli.mounts import mount_around
from cuckoo_mount.config.paths import shown
from cuckoo_mount.errors import UsageError

PROGRAM = "cuckoo sync"


@click.command("sync", epilog="Example:  cp -r Photos ~/Cuckoo/ && cuckoo sync")
@click.argument("path", required=False, type=click.Path(path_type=Path))
@common.common_options
@click.pass_context
def command(context: click.Context, path: Path | None, drive: str, as_json: bool) -> int:
    """Wait until everything written so far is on the clouds.

    With PATH, which lies in a mounted drive, that drive is meant; all of it is sent.  Clouds that did not answer are
    asked again at once.  Ctrl-C ends the waiting only: the drive goes on sending.

    Exit status 3: something is not on the clouds yet, or has fewer copies than the drive's redundancy asks for.
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
        common.say_error(PROGRAM, "the drive was unmounted meanwhile; the rest is sent after the next mount")
        return common.UNSENT
    if degraded := sending.why_degraded(result):
        common.say_error(PROGRAM, f"everything written before is on the clouds, but {degraded}")
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
    left = sending.left_now(drive)
    sent = left is not None and not sending.unsent(left["pending"])
    if as_json:
        common.print_json({"drive": drive, **(left or {"pending": None}), "sent": sent})
    if left is not None and sent:
        degraded = sending.why_degraded(left)
        if degraded:
            common.say_error(PROGRAM, degraded)
        return common.UNSENT if degraded else common.DONE
    rest = sending.describe(left["pending"]) if left is not None else "an unknown amount"
    reasons = sending.because(left["troubles"]) if left is not None else ""
    common.say_error(PROGRAM, f"not waited for: {rest} not yet on the clouds; the drive goes on sending{reasons}")
    return common.UNSENT

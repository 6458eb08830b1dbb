"""`cuckoo cloud drain`: empty a cloud."""

from __future__ import annotations

import click

from cuckoo_mount.cli import client, common, sending
from cuckoo_mount.cli.completing import complete_clouds
from cuckoo_mount.cli.operate import Result, known_config, run_on_drive
from cuckoo_mount.config.sizes import human_size

PROGRAM = "cuckoo cloud drain"
_DRAINED = "drained"


@click.command("drain", epilog="Example:  cuckoo cloud drain usb && cuckoo cloud remove usb")
@click.argument("name", shell_complete=complete_clouds)
@click.option("--dry-run", is_flag=True, help="Only say what there is to do, and whether it can be done.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@common.common_options
def command(name: str, dry_run: bool, yes: bool, drive: str, as_json: bool) -> int:
    """Bring all that is on the cloud NAME to the others, and delete what is there.

    It gets nothing new from then on.  At the end nothing of the drive is left there, which a listing shows; the cloud
    stays on the drive's list as `drained`, until `cuckoo cloud remove NAME`, or `cuckoo cloud set NAME --new`, which
    uses it again.  Older states of the drive (cuckoo-mount --epoch) are forgotten, as by `cuckoo gc --keep 1`.

    Refused if the other clouds could not hold everything with the drive's redundancy.  Ctrl-C ends the waiting: a
    mounted drive goes on by itself, also after a restart; one that is not mounted when it is mounted again, or when
    this is run again.  `cuckoo cloud set NAME --new` ends it.
    """
    known_config(drive)
    if dry_run or not yes:
        plan = run_on_drive(drive, "cloud-drain", name=name, dry_run=True)
        if dry_run:
            return _show_plan(plan, as_json=as_json)
        if plan.get("use") == "normal":
            common.confirm(f"{_plan(plan)}  Older states of the drive are forgotten.  Go on?", yes=yes)
    try:
        with sending.SendingLine(quiet=as_json) as line:
            result = run_on_drive(drive, "cloud-drain", progress=line.moving, name=name)
    except KeyboardInterrupt:
        return _interrupted(drive, name)
    if as_json:
        common.print_json({**result, "use": _DRAINED, "objects_left": 0})
    else:
        click.echo(f"Cloud {name!r} is drained: nothing of the drive is left there.")
    return common.DONE


def _show_plan(plan: Result, *, as_json: bool) -> int:
    if as_json:
        common.print_json(plan)
    else:
        click.echo(_plan(plan))
    return common.DONE


def _plan(plan: Result) -> str:
    name, packs, size_bytes = plan.get("name"), plan.get("packs"), plan.get("bytes")
    if plan.get("use") == _DRAINED:
        return f"Cloud {name!r} is drained already."
    size = human_size(size_bytes) if isinstance(size_bytes, int) else "?"
    what = "1 pack" if packs == 1 else f"{packs} packs"
    return f"Cloud {name!r} has {size} of {what} that the other clouds get, with all of their shares."


def _interrupted(drive: str, name: str) -> int:
    """Say who goes on."""
    option = common.drive_argument(drive)
    try:
        with client.Connection(drive):
            who = "the drive goes on by itself"
    except client.NotMounted:
        who = "it goes on when the drive is mounted, or this is run again"
    common.say_error(PROGRAM, f"not waited for; {who}.  To end it: cuckoo cloud set {name} --new{option}")
    return common.UNSENT

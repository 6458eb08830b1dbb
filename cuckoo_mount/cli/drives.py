"""`cuckoo drives`: the drives of this machine, and where they are mounted."""

from __future__ import annotations

import click
from attrs import asdict, frozen

from cuckoo_mount.cli import common
from cuckoo_mount.cli.lock import read_holder
from cuckoo_mount.config.files import read_config
from cuckoo_mount.config.paths import drive_paths, list_drives, shown
from cuckoo_mount.errors import ConfigurationError


@frozen(slots=True)
class DriveLine:
    """A drive in the list; `state` is mounted, ending, "not mounted" or broken."""

    name: str
    state: str
    mountpoint: str | None
    pid: int | None
    clouds: int
    config: str


@click.command("drives", epilog="Example:  cuckoo drives --json")
@common.common_options
@click.pass_context
def command(context: click.Context, drive: str, as_json: bool) -> int:
    """List the drives of this machine (with --drive, that one only)."""
    named = context.get_parameter_source("drive") is click.core.ParameterSource.COMMANDLINE
    lines = [_line(name) for name in list_drives() if not named or name == drive]
    if as_json:
        common.print_json([asdict(line) for line in lines])
    elif not lines:
        click.echo("No drives yet.  This makes one and mounts it:  cuckoo-mount ~/Cuckoo")
    for line in () if as_json else lines:
        where = f" at {shown(line.mountpoint)}" if line.mountpoint else ""
        pid = f" (pid {line.pid})" if line.pid else ""
        click.echo(f"{line.name}: {line.state}{where}{pid}, {line.clouds} cloud{'' if line.clouds == 1 else 's'}")
    return common.DONE


def _line(name: str) -> DriveLine:
    paths = drive_paths(name)
    try:
        config = read_config(paths)
    except ConfigurationError as error:
        common.say_error("cuckoo drives", str(error))
        return DriveLine(name, "broken", None, None, 0, str(paths.config_file))
    clouds = len(config.clouds) if config is not None else 0
    holder = read_holder(paths.lock)
    if holder is None or not holder.alive or holder.command:
        return DriveLine(name, "not mounted", None, None, clouds, str(paths.config_file))
    place = str(holder.mountpoint) if holder.mountpoint is not None else None
    return DriveLine(name, "ending" if holder.ending else "mounted", place, holder.pid, clouds, str(paths.config_file))

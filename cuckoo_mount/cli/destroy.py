"""`cuckoo destroy`: delete a drive for good, here and on its clouds.

What is done and in which order stands in clearing.py; here it is shown, asked for, and told.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from cuckoo_mount.cli import common
from cuckoo_mount.cli.common import drive_argument
from cuckoo_mount.cli.lock import read_holder
from cuckoo_mount.cli.mounts import is_dead, mount_at, unmount
from cuckoo_mount.cli.operate import hold_for_command, known_config
from cuckoo_mount.config import DriveConfig, DrivePaths, drive_paths, shown
from cuckoo_mount.config.sizes import human_size
from cuckoo_mount.errors import ConfigurationError, UsageError
from cuckoo_mount.format import drive_prefix

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cuckoo_mount.cli.clearing import CloudContent

PROGRAM: Final = "cuckoo destroy"


@click.command("destroy", epilog="Example:  cuckoo destroy --drive old --dry-run")
@click.option("--dry-run", is_flag=True, help="Only show what would be deleted.")
@click.option("--yes", is_flag=True, help="Do not ask for the drive's name.")
@click.option("--keep-clouds", is_flag=True, help="Delete what is on this machine only.")
@common.common_options
def command(dry_run: bool, yes: bool, keep_clouds: bool, drive: str, as_json: bool) -> int:
    """Delete a drive: its objects on every cloud that answers, then its files, cache, key and settings here.

    It has to be unmounted, on every machine.  What is to go is shown first, and the drive's name asked for.  Other
    drives and files on the same clouds are not touched.  If it was interrupted, or a cloud failed on the way, run it
    again.

    Exit status 1: something is left, and said; a cloud that did not answer keeps its objects.
    """
    config, paths = known_config(drive), drive_paths(drive)
    _check_unmounted(config, paths)
    with hold_for_command(paths):
        clouds = [] if keep_clouds else _look(config, paths)
        places = _local_places(paths)
        if not as_json:
            _show_plan(config, clouds, places, keep_clouds=keep_clouds)
        if dry_run:
            return _report(config, clouds, places, [], dry_run=True, as_json=as_json)
        _ask(drive, yes=yes)
        try:
            left = _delete(config, paths, clouds)
        except KeyboardInterrupt:
            common.say_error(PROGRAM, f"interrupted; to delete the rest: cuckoo destroy{drive_argument(drive)}")
            return common.INTERRUPTED
        return _report(config, clouds, places, left, dry_run=False, as_json=as_json)


def _check_unmounted(config: DriveConfig, paths: DrivePaths) -> None:
    """Clear a mountpoint whose daemon has died.  Raises: ConfigurationError when the drive is mounted."""
    holder = read_holder(paths.lock)
    if holder is not None and holder.alive and holder.ending:
        # Taking over, as a mount does, would end it.
        raise ConfigurationError(
            f"drive {paths.name!r} still sends what was written to it (pid {holder.pid}); try again when that has ended"
        )
    mount = mount_at(config.mountpoint) if config.mountpoint is not None else None
    if mount is not None and mount.drive == paths.name and (holder is None or not holder.alive):
        if not is_dead(mount):
            raise ConfigurationError(
                f"drive {paths.name!r} is mounted at {shown(mount.mountpoint)}; unmount it first: "
                f"cuckoo umount {shown(mount.mountpoint)}"
            )
        unmount(mount.mountpoint, lazy=True)


def _look(config: DriveConfig, paths: DrivePaths) -> list[CloudContent]:
    from cuckoo_mount.cli.clearing import look_at_clouds

    return look_at_clouds(config, paths)


def _local_places(paths: DrivePaths) -> list[tuple[Path, int]]:
    from cuckoo_mount.cli.clearing import local_places

    return local_places(paths)


def _show_plan(
    config: DriveConfig, clouds: Sequence[CloudContent], places: Sequence[tuple[Path, int]], *, keep_clouds: bool
) -> None:
    """Say on stderr what is to go."""
    say = _say
    say(f"Drive {config.name!r} ({config.drive_id.hex()}):")
    for cloud in clouds:
        what = f"not deleted, {cloud.trouble}" if cloud.trouble else f"{_objects(cloud)} to be deleted"
        say(f"  cloud {cloud.name} ({shown(cloud.url)}): {what}")
    if keep_clouds:
        say("  what is on the clouds stays there")
    for place, size_bytes in places:
        say(f"  {shown(place)}: {human_size(size_bytes)} to be deleted")
    if keep_clouds:
        say("Nothing but a recovery key or passphrase of this drive opens what is on its clouds afterwards.")
    else:
        say("Nobody can read the drive again afterwards, on any machine.  To delete only what is here: --keep-clouds")


def _say(line: str) -> None:
    click.echo(line, err=True)


def _objects(cloud: CloudContent) -> str:
    count = len(cloud.objects)
    return f"{count} object{'' if count == 1 else 's'}, {human_size(cloud.size_bytes)},"


def _ask(drive: str, *, yes: bool) -> None:
    """Return if the drive's name was typed, or --yes said.  Raises: UsageError, ConfigurationError, click.Abort."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError("a drive is not destroyed unasked; there is no terminal to ask on, say --yes if it is meant")
    typed: str = click.prompt(f"Type the drive's name, {drive}, to destroy it", err=True)
    if typed.strip() != drive:
        raise ConfigurationError(f"{typed.strip()!r} is not the drive's name; nothing was deleted")


def _delete(config: DriveConfig, paths: DrivePaths, clouds: Sequence[CloudContent]) -> list[str]:
    """Delete; return what is left, one line each.  While a cloud that answered has some left, all stays here."""
    from cuckoo_mount.cli.clearing import delete_from_clouds, delete_local

    answering = [cloud for cloud in clouds if not cloud.trouble]
    if answering:
        with _progress(sum(len(cloud.objects) for cloud in answering)) as progress:
            delete_from_clouds(clouds, config, paths, progress)
    if failed := [cloud for cloud in answering if cloud.trouble]:
        again = f"cuckoo destroy{drive_argument(config.name)}"
        return [f"{_left_on(cloud, config)}; nothing was deleted here, try again: {again}" for cloud in failed]
    return [_left_on(cloud, config) for cloud in clouds if cloud.trouble] + delete_local(paths)


def _left_on(cloud: CloudContent, config: DriveConfig) -> str:
    prefix = drive_prefix(config.drive_id)
    return f"cloud {cloud.name}, {prefix} in {shown(cloud.url)}: {cloud.trouble}"


@contextmanager
def _progress(objects: int) -> Iterator[Callable[[int], None]]:
    """Show how many objects are deleted, where stderr is a terminal."""
    if not sys.stderr.isatty():
        yield lambda count: None
        return
    with click.progressbar(length=objects, label="deleting", file=sys.stderr) as bar:
        yield bar.update


def _report(
    config: DriveConfig,
    clouds: Sequence[CloudContent],
    places: Sequence[tuple[Path, int]],
    left: Sequence[str],
    *,
    dry_run: bool,
    as_json: bool,
) -> int:
    if as_json:
        common.print_json(
            {
                "drive": config.name,
                "drive_id": config.drive_id.hex(),
                "dry_run": dry_run,
                "clouds": [_record(cloud) for cloud in clouds],
                "local": [{"path": str(place), "bytes": size_bytes} for place, size_bytes in places],
                "left": list(left),
            }
        )
    for line in left:
        common.say_error(PROGRAM, f"left: {line}")
    if not as_json:
        done = "Nothing was deleted." if dry_run else f"Drive {config.name!r} is destroyed."
        click.echo("Not everything is deleted." if left else done)
    return common.FAILED if left else common.DONE


def _record(cloud: CloudContent) -> dict[str, object]:
    return {
        "name": cloud.name,
        "url": cloud.url,
        "objects": len(cloud.objects),
        "bytes": cloud.size_bytes,
        "deleted": cloud.deleted,
        "trouble": cloud.trouble or None,
    }

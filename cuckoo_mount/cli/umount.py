"""`cuckoo umount`: send what is left, unmount, and say where everything is."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

import click

from cuckoo_mount.cli import client, common, sending
from cuckoo_mount.cli.lock import read_holder
from cuckoo_mount.cli.mounts import CuckooMount, MountBusy, cuckoo_mounts, is_dead, mount_at, unmount
from cuckoo_mount.config.files import read_config
from cuckoo_mount.config.paths import drive_paths, shown
from cuckoo_mount.errors import ConfigurationError, UsageError

PROGRAM: Final = "cuckoo umount"
END_DEADLINE_S: Final = 120.0
"""How long the daemon may take to close its files after the last answer."""


@click.command("umount", epilog="Example:  cuckoo umount ~/Cuckoo")
@click.argument("mountpoint", required=False, type=click.Path(path_type=Path))
@click.option("--no-wait", is_flag=True, help="Do not send what is left: it is sent after the next mount.")
@common.common_options
@click.pass_context
def command(context: click.Context, mountpoint: Path | None, no_wait: bool, drive: str, as_json: bool) -> int:
    """Send what is not yet on the clouds, and unmount the drive at MOUNTPOINT (or the one named with --drive).

    Ctrl-C ends the waiting: the drive stays mounted and goes on sending.

    Exit status 3: unmounted, and something is on the local disk only (it is sent after the next mount) or has fewer
    copies than the drive's redundancy asks for; or interrupted, and still mounted.
    """
    given = context.get_parameter_source("drive") is click.core.ParameterSource.COMMANDLINE
    mount = _find(mountpoint, drive if given else None) if mountpoint is not None else None
    if mount is not None:
        drive = mount.drive
    try:
        result = _ask(drive, mount, wait=not no_wait, quiet=as_json)
    except client.NotMounted:
        return _clear_dead(mount or _noted(drive), as_json=as_json)
    except KeyboardInterrupt:
        return _interrupted(drive, mount, as_json=as_json)
    if as_json:
        common.print_json({"drive": drive, **result})
    return _say_unmounted(result, as_json=as_json)


def _say_unmounted(result: client.Result, *, as_json: bool) -> int:
    pending, degraded = result.get("pending"), sending.why_degraded(result)
    if sending.unsent(pending):
        reasons = sending.because(result.get("troubles"))
        said = f"{sending.describe(pending)} safe on the local disk, to be sent after the next mount{reasons}."
    else:
        said = f"Everything is on the clouds, but {degraded}." if degraded else "Everything is on the clouds."
    if not as_json:
        click.echo(f"Unmounted.  {said}")
    return common.UNSENT if sending.unsent(pending) or degraded else common.DONE


def _interrupted(drive: str, mount: CuckooMount | None, *, as_json: bool) -> int:
    left = sending.left_now(drive)
    if as_json:
        place = str(mount.mountpoint) if mount is not None else None
        common.print_json({"drive": drive, "mountpoint": place, **(left or {"pending": None}), "interrupted": True})
    holder = read_holder(drive_paths(drive).lock)
    if left is None or holder is None or holder.ending:
        common.say_error(PROGRAM, "interrupted; the drive is unmounted, its daemon still ends: see cuckoo drives")
        return common.UNSENT
    rest = f"{sending.describe(left['pending'])} not yet sent{sending.because(left['troubles'])}"
    common.say_error(PROGRAM, f"interrupted, still mounted; {rest}.  --no-wait unmounts without waiting for the clouds")
    return common.UNSENT


def _find(mountpoint: Path, drive: str | None) -> CuckooMount:
    mount = mount_at(mountpoint)
    if mount is None:
        places = ", ".join(shown(mount.mountpoint) for mount in cuckoo_mounts())
        hint = f"mounted are: {places}" if places else "no drive is mounted"
        raise ConfigurationError(f"no drive is mounted at {shown(mountpoint)}; {hint}")
    if drive not in (None, mount.drive):
        raise UsageError(f"at {shown(mountpoint)} drive {mount.drive!r} is mounted, not {drive!r}; leave --drive out")
    return mount


def _ask(drive: str, mount: CuckooMount | None, *, wait: bool, quiet: bool) -> client.Result:
    """Ask the daemon to unmount; return when its process has ended."""
    with client.Connection(drive) as connection:
        if mount is not None:
            _check_same(drive, mount)
        pid = connection.pid
        pidfd = -1
        with suppress(OSError):
            pidfd = os.pidfd_open(pid)
        try:
            with sending.SendingLine(quiet=quiet) as line:
                result = connection.ask("umount", line.update, wait=wait)
            if pidfd >= 0 and not client.wait_for_end(pidfd, END_DEADLINE_S):
                raise client.NoAnswer(
                    f"unmounted, but the daemon (pid {pid}) has not ended yet; see {shown(drive_paths(drive).log)}"
                )
        finally:
            if pidfd >= 0:
                os.close(pidfd)
    return result


def _check_same(drive: str, mount: CuckooMount) -> None:
    """A drive of the same name may be mounted by another user, or with other XDG folders."""
    place = client.ask(drive, "status").get("mountpoint")
    if place != str(mount.mountpoint):
        raise client.NotMounted(f"your drive {drive!r} is mounted at {place}, {shown(mount.mountpoint)} is another's")


def _noted(drive: str) -> CuckooMount | None:
    """Return where the drive was mounted when its daemon died."""
    config = read_config(drive_paths(drive))
    if config is None or config.mountpoint is None:
        return None
    return mount_at(config.mountpoint)


def _clear_dead(mount: CuckooMount | None, *, as_json: bool) -> int:
    """No daemon answers: unmount what it left behind, if it has died."""
    if mount is None:
        raise ConfigurationError("the drive is not mounted; see: cuckoo drives")
    if not is_dead(mount):
        raise ConfigurationError(
            f"the drive at {shown(mount.mountpoint)} is not yours or its daemon does not answer; "
            f"unmount it with: fusermount3 -u {shown(mount.mountpoint)}"
        )
    try:
        unmount(mount.mountpoint)
    except MountBusy:
        unmount(mount.mountpoint, lazy=True)
    if as_json:
        common.print_json({"drive": mount.drive, "mountpoint": str(mount.mountpoint), "pending": None})
    else:
        click.echo(
            "Its daemon had died; unmounted.  What it had not sent is on the local disk: mount again to send it."
        )
    return common.UNSENT

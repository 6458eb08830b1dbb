"""`cuckoo key`: what opens a drive: the recovery key and the passphrase."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

import click

from cuckoo_mount.cli import client, common
from cuckoo_mount.config import DriveConfig, DrivePaths, drive_paths, read_config
from cuckoo_mount.errors import CuckooError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

PROGRAM = "cuckoo key"
F = TypeVar("F", bound=Callable[..., object])


@click.group("key", epilog="Example:  cuckoo key show-recovery")
@common.log_level_option
def command() -> None:
    """Show the recovery key, change the passphrase."""


def passphrase_option(name: str, what: str) -> Callable[[F], F]:
    """Return what adds an option that names the file of a passphrase."""
    return click.option(name, metavar="FILE", help=f"Where {what} is, one line; - is standard input.")


@command.command("show-recovery", epilog="Example:  cuckoo key show-recovery > /media/usb/cuckoo-recovery.txt")
@passphrase_option("--passphrase-file", "the passphrase, if the drive has no key file,")
@common.common_options
def show_recovery(passphrase_file: str | None, drive: str, as_json: bool) -> int:
    """Print the recovery key, which opens the drive without its key file and passphrase.

    It is always the same one, and can be shown as often as you like.
    """
    from cuckoo_mount.cli.unlocking import find_drive_key
    from cuckoo_mount.layers.recoverykey import recovery_key_of

    config, paths = _known_drive(drive)
    recovery_key = recovery_key_of(find_drive_key(config, paths, passphrase_file)).shown()
    if as_json:
        common.print_json({"drive": drive, "recovery_key": recovery_key})
    else:
        click.echo(recovery_key)
        keep = "Keep it off this machine, on paper for example: whoever has it can open the drive."
        nobody = "Nobody needs it: the drive is not encrypted, each of its clouds is enough to open it."
        click.echo(keep if config.encrypted else nobody, err=True)
    _note_shown(drive, paths)
    return common.DONE


@command.command("change-passphrase", epilog="Example:  cuckoo key change-passphrase")
@passphrase_option("--passphrase-file", "the new passphrase")
@passphrase_option("--old-passphrase-file", "the old one, or the recovery key, if the drive has no key file,")
@common.common_options
def change_passphrase(passphrase_file: str | None, old_passphrase_file: str | None, drive: str, as_json: bool) -> int:
    """Set the passphrase that opens the drive; the one before opens it no more.

    Whoever has copied the drive's objects before may still use the old one with them.
    """
    from cuckoo_mount.cli.operate import run_on_drive
    from cuckoo_mount.cli.unlocking import find_drive_key
    from cuckoo_mount.config.passphrase import STANDARD_INPUT, read_new_passphrase
    from cuckoo_mount.slots import proof_of

    if passphrase_file == old_passphrase_file == STANDARD_INPUT:
        raise UsageError("only one of the two passphrases can come from standard input; put the other into a file")
    config, paths = _known_drive(drive)
    if not config.encrypted:
        raise UsageError(f"drive {drive!r} is not encrypted and has no passphrase; nobody needs one to read it")
    key = find_drive_key(config, paths, old_passphrase_file)
    new = read_new_passphrase(drive, passphrase_file)
    new.encoded()  # refused here if it is no text
    result = run_on_drive(drive, "change-passphrase", drive_key=key, passphrase=new.text, proof=proof_of(key))
    return _say_changed(drive, result.get("missing"), as_json=as_json)


@command.command("rotate")
@common.common_options
def rotate(drive: str, as_json: bool) -> int:
    """(Comes with a later release: everything encrypted anew under another key.)"""
    raise UsageError("key rotate comes with a later release; key change-passphrase changes the passphrase only")


def _say_changed(drive: str, missing: object, *, as_json: bool) -> int:
    troubles = [str(trouble) for trouble in missing] if isinstance(missing, list) else []
    if as_json:
        common.print_json({"drive": drive, "changed": True, "missing": troubles})
    else:
        click.echo("The passphrase is changed." if not troubles else "The passphrase is changed here, not everywhere:")
    for trouble in () if as_json else troubles:
        click.echo(f"  {trouble}; it is tried again every minute while the drive is mounted")
    return common.UNSENT if troubles else common.DONE


def _known_drive(drive: str) -> tuple[DriveConfig, DrivePaths]:
    paths = drive_paths(drive)
    config = read_config(paths)
    if config is None:
        raise UsageError(f"there is no drive {drive!r} here; see: cuckoo drives")
    return config, paths


def _note_shown(drive: str, paths: DrivePaths) -> None:
    """Have `cuckoo status` remind of the recovery key no more; that is not worth failing for."""
    try:
        client.ask(drive, "recovery-key-shown")
    except client.NotMounted:
        with suppress(CuckooError):
            _note_in_store(paths.metadata, paths)
    except CuckooError as error:
        common.say_error(PROGRAM, f"`cuckoo status` will go on reminding of it: {error}")


def _note_in_store(store: Path, paths: DrivePaths) -> None:
    import trio

    from cuckoo_mount.cli.operate import hold_for_command
    from cuckoo_mount.metadata.store import open_store
    from cuckoo_mount.slots import note_recovery_key_shown

    async def note() -> None:
        metadata = await open_store(store)
        try:
            await note_recovery_key_shown(metadata)
        finally:
            await metadata.aclose()

    if store.exists():
        with hold_for_command(paths):
            trio.run(note)

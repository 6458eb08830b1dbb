"""`cuckoo init`: make a drive that has no clouds yet."""

from __future__ import annotations

import getpass
import os
import sys
from typing import TYPE_CHECKING

import click

from cuckoo_mount.cli import common
from cuckoo_mount.config import DrivePaths, check_no_drive, drive_paths, parse_size, shown
from cuckoo_mount.config.records import check_pack_size
from cuckoo_mount.config.sizes import format_size
from cuckoo_mount.errors import UsageError
from cuckoo_mount.multi.redundancy import NO_REDUNDANCY, check_redundancy, describe_policy, parse_policy
from cuckoo_mount.types import PACK_SIZE_BYTES

if TYPE_CHECKING:
    from cuckoo_mount.layers.keyslots import Passphrase


@click.command("init", epilog="Example:  cuckoo init --redundancy 2 && cuckoo cloud add usb /media/usb/cuckoo")
@click.option(
    "--redundancy",
    default=NO_REDUNDANCY,
    show_default=True,
    metavar="none|N|K+M",
    help="N copies of everything, each on a cloud of its own; or K+M shares, of which any K are enough.",
)
@click.option(
    "--pack-size",
    default=format_size(PACK_SIZE_BYTES),
    show_default=True,
    metavar="SIZE",
    help="How big an object on a cloud gets.",
)
@click.option("--no-encryption", is_flag=True, help="Whoever sees a cloud can read what is there.")
@click.option("--passphrase-file", metavar="FILE", help="Where a passphrase is, one line; - is standard input.")
@click.option("--ask", is_flag=True, help="Keep no key file: mounting takes the passphrase.")
@common.common_options
def command(
    redundancy: str,
    pack_size: str,
    no_encryption: bool,
    passphrase_file: str | None,
    ask: bool,
    drive: str,
    as_json: bool,
) -> int:
    """Make a drive for clouds of your own; then add the clouds and mount it.

    Its key is kept in a file.  A passphrase, asked for here, opens the drive on another machine; with --ask there is
    no such file, and a passphrase has to be set.
    """
    redundancy, size_bytes = check_redundancy(redundancy), check_pack_size(parse_size(pack_size))
    if no_encryption and (ask or passphrase_file is not None):
        raise UsageError("a drive that is not encrypted has no passphrase; leave --ask and --passphrase-file out")
    paths = drive_paths(drive)
    check_no_drive(paths)
    passphrase = None if no_encryption else _passphrase(drive, passphrase_file, needed=ask)
    key = _make(
        paths, passphrase, redundancy=redundancy, pack_size_bytes=size_bytes, encrypted=not no_encryption, ask=ask
    )
    recovery_key = None if no_encryption else _recovery_key(key)
    if as_json:
        common.print_json(
            {
                "drive": drive,
                "config": str(paths.config_file),
                "key_file": None if ask else str(paths.key_file),
                "encrypted": not no_encryption,
                "redundancy": redundancy,
                "pack_size_bytes": size_bytes,
                "recovery_key": recovery_key,
            }
        )
    else:
        _say(paths, redundancy, recovery_key, ask=ask)
    return common.DONE


def _passphrase(drive: str, file: str | None, *, needed: bool) -> Passphrase | None:
    """Return the passphrase to be set, None for none.  Raises: UsageError, ConfigurationError."""
    from cuckoo_mount.config.passphrase import read_new_passphrase
    from cuckoo_mount.layers.keyslots import Passphrase

    if needed or file is not None:
        found = read_new_passphrase(drive, file)
    elif not sys.stdin.isatty():
        return None
    else:
        text = getpass.getpass(f"Passphrase of the new drive {drive} (empty: none, only the key file): ")
        if not text:
            return None
        if getpass.getpass("The same again: ") != text:
            raise UsageError("these were not the same; nothing was made, try again")
        found = Passphrase(text)
    found.encoded()  # refused before anything is made
    return found


def _make(
    paths: DrivePaths,
    passphrase: Passphrase | None,
    *,
    redundancy: str,
    pack_size_bytes: int,
    encrypted: bool,
    ask: bool,
) -> bytes:
    """Make the drive and open it once, which makes its metadata and key slots; return its key."""
    from cuckoo_mount.cli.operate import hold_for_command, run_opened
    from cuckoo_mount.config import create_empty_drive, withdraw_empty_drive
    from cuckoo_mount.slots import proof_of

    os.umask(0o077)
    with hold_for_command(paths):
        config, key = create_empty_drive(
            paths, redundancy=redundancy, pack_size_bytes=pack_size_bytes, encrypted=encrypted, ask=ask
        )
        try:
            if passphrase is None:
                run_opened(config, paths, key, "cloud-list", {})
            else:
                given = {"passphrase": passphrase.text, "proof": proof_of(key)}
                run_opened(config, paths, key, "change-passphrase", given)
        except BaseException:
            # Half a drive made with --ask could never be opened.
            withdraw_empty_drive(paths)
            raise
    return key


def _recovery_key(key: bytes) -> str:
    from cuckoo_mount.layers.recoverykey import recovery_key_of

    return recovery_key_of(key).shown()


def _say(paths: DrivePaths, redundancy: str, recovery_key: str | None, *, ask: bool) -> None:
    """Say what was made and what to do next."""
    copies = describe_policy(parse_policy(redundancy))
    secrecy = "encrypted" if recovery_key is not None else "NOT encrypted"
    click.echo(f"Made drive {paths.name!r}, {secrecy}, with {copies} of everything and no clouds yet.")
    if recovery_key is not None:
        where = "Its key is in no file" if ask else f"Its key is in {shown(paths.key_file)}"
        click.echo(
            f"{where}; write down its recovery key and keep it elsewhere, it opens the drive without the others:\n\n"
            f"    {recovery_key}\n"
        )
    option = common.drive_argument(paths.name)
    click.echo(f"Next:  cuckoo cloud add NAME URL{option}     (a folder, or s3://bucket?endpoint_url=…)")
    click.echo(f"Then:  cuckoo-mount ~/Cuckoo{option}")

"""`cuckoo recover`: make a drive on this machine from one of its clouds and the passphrase or recovery key."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

import click

from cuckoo_mount.cli import common
from cuckoo_mount.cli.common import drive_argument
from cuckoo_mount.config import DrivePaths, check_no_drive, drive_paths, shown
from cuckoo_mount.config.passphrase import TRIES, read_passphrase
from cuckoo_mount.config.records import check_cloud_name
from cuckoo_mount.errors import ConfigurationError, UsageError, WrongKey

if TYPE_CHECKING:
    from cuckoo_mount.clouds.base import CloudSettings
    from cuckoo_mount.layers.keyslots import KeySlot, Passphrase
    from cuckoo_mount.recovery import Door, Found, Wishes

PROGRAM: Final = "cuckoo recover"
_GROUPS: Final = re.compile(r"\s*(\w{3,5}[\s-]+){7}\w{3,5}\s*")
"""What was meant as a recovery key: eight groups of about four signs."""


@click.command(
    "recover",
    epilog="Example:  cuckoo recover 's3://bucket/drive?endpoint_url=https://s3.example.net' "
    "--secret user=prompt --secret password=prompt",
)
@click.argument("url")
@click.option("--passphrase-file", metavar="FILE", help="Where the passphrase is, one line; - is standard input.")
@click.option("--recovery-key-file", metavar="FILE", help="Where the recovery key is, in place of the passphrase.")
@click.option("--accept-stale", is_flag=True, help="Also if something newer may lie on clouds that do not answer.")
@click.option("--at-least-epoch", type=click.IntRange(1), metavar="N", help="Refuse anything older than this epoch.")
@click.option("--cloud", "moved", multiple=True, metavar="NAME=URL", help="Where another of its clouds is now.")
@click.option(
    "--secret",
    "secret_specs",
    multiple=True,
    metavar="K=SOURCE",
    help="A secret for URL, e.g. user or password; SOURCE: file:PATH, env:VARIABLE, prompt or keyring.  "
    "NAME/K=SOURCE is one for the cloud NAME, in place of the one that the drive remembers.",
)
@click.option("--option", "options", multiple=True, metavar="K=V", help="An option of the driver for URL.")
@click.option("--id", "drive_id", default="", metavar="ID", help="Which of several drives: how its id begins.")
@click.option("--ask", is_flag=True, help="Keep no key file: mounting takes the passphrase.")
@common.common_options
def command(
    url: str,
    passphrase_file: str | None,
    recovery_key_file: str | None,
    accept_stale: bool,
    at_least_epoch: int | None,
    moved: tuple[str, ...],
    secret_specs: tuple[str, ...],
    options: tuple[str, ...],
    drive_id: str,
    ask: bool,
    drive: str,
    as_json: bool,
) -> int:
    """Make a drive that this machine has nothing of, from one of its clouds, at URL, and the passphrase.

    The other clouds are found through it, with their secrets, and asked for the newest state; then mount the drive.
    The recovery key may be typed in place of the passphrase.
    """
    if passphrase_file is not None and recovery_key_file is not None:
        raise UsageError("give --passphrase-file or --recovery-key-file: one opens the drive")
    paths = drive_paths(drive)
    # Asking clouds takes imports of 0.5 s, which a wrong option need not wait for.
    from cuckoo_mount.recovery import Wishes, clear_unfinished

    door, secrets = _door(url, options, secret_specs, drive)
    wishes = Wishes(
        name=drive,
        accept_stale=accept_stale,
        at_least_epoch=at_least_epoch or 0,
        ask=ask,
        urls=dict(_moved(spec) for spec in moved),
        secrets=secrets,
    )
    from cuckoo_mount.cli.operate import hold_for_command

    os.umask(0o077)
    with hold_for_command(paths):
        clear_unfinished(paths)
        check_no_drive(paths)
        if ask and paths.key_file.exists():
            raise ConfigurationError(f"{shown(paths.key_file)} is there already; move it away, or leave --ask out")
        found = _recover(door, drive_id, (passphrase_file, recovery_key_file), paths, wishes)
    _report(found, drive, paths, as_json=as_json)
    return common.DONE


def _door(
    url: str, options: Sequence[str], specs: Sequence[str], drive: str
) -> tuple[CloudSettings, dict[str, dict[str, str]]]:
    """Return how the door is opened, and secrets for other clouds.  May ask on the terminal.  Raises: UsageError."""
    from attrs import evolve

    from cuckoo_mount.cli.given import given_secret, given_settings, secret_values
    from cuckoo_mount.cli.login import lacks_login, log_in
    from cuckoo_mount.cli.places import full_url
    from cuckoo_mount.clouds.registry import parse_place

    url = full_url(url)
    parse_place(url)
    references: dict[str, dict[str, str]] = {}
    for spec in specs:
        cloud, slash, rest = spec.partition("/") if "/" in spec.partition("=")[0] else ("", "", spec)
        if slash:
            check_cloud_name(cloud)
        key, reference = given_secret(rest, cloud or shown(url))
        references.setdefault(cloud, {})[key] = reference
    values = {cloud: secret_values(drive, cloud or "URL", url, pairs) for cloud, pairs in references.items()}
    door = given_settings(url, options, values.pop("", {}))
    if lacks_login(url, door.secrets):
        door = evolve(door, secrets=tuple(sorted({**dict(door.secrets), **log_in(door)}.items())))
    return door, values


def _moved(text: str) -> tuple[str, str]:
    from cuckoo_mount.cli.places import full_url

    name, separator, url = text.partition("=")
    if not separator or not url:
        raise UsageError("--cloud is written NAME=URL, with the name of one of the drive's clouds")
    return check_cloud_name(name), full_url(url)


def _recover(
    settings: CloudSettings,
    drive_id: str,
    files: tuple[str | None, str | None],
    paths: DrivePaths,
    wishes: Wishes,
) -> Found:
    import trio

    from cuckoo_mount.cli.logs import log_to_file
    from cuckoo_mount.recovery import give_up

    try:
        door = trio.run(_open_door, settings, drive_id)
        key = _drive_key(door, files, wishes.name)
        _check_key_file(paths, key)
        # Trouble with one cloud or object is in the outcome, or in the one line of the error; the rest is for the log.
        log_to_file(paths.log, "info")
        return trio.run(_find_and_keep, door, key, paths, wishes)
    except BaseException as error:
        give_up(paths)
        if isinstance(error, BaseExceptionGroup):
            raise common.innermost(error) from error
        raise


def _check_key_file(paths: DrivePaths, key: bytes) -> None:
    """Raises: ConfigurationError when the key file that is there opens another drive, or none."""
    from cuckoo_mount.config import read_drive_key

    if paths.key_file.exists() and read_drive_key(paths.key_file) != key:
        raise ConfigurationError(
            f"{shown(paths.key_file)} is the key of another drive; move it away, or choose another name with --drive"
        )


async def _open_door(settings: CloudSettings, drive_id: str) -> Door:
    from cuckoo_mount.recovery import open_door
    from cuckoo_mount.workers import open_worker_pool

    async with open_worker_pool() as pool:
        return await open_door(pool, settings, drive_id)


async def _find_and_keep(door: Door, key: bytes, paths: DrivePaths, wishes: Wishes) -> Found:
    from cuckoo_mount.recovery import Recovery
    from cuckoo_mount.workers import open_worker_pool

    async with open_worker_pool() as pool:
        recovery = Recovery(pool, door, key, paths, wishes)
        found = await recovery.find()
        await recovery.keep(found)
        return found


def _drive_key(door: Door, files: tuple[str | None, str | None], name: str) -> bytes:
    """Return the drive key.  Raises: WrongKey, UsageError, ConfigurationError."""
    from cuckoo_mount.layers.keyslots import open_slots
    from cuckoo_mount.layers.recoverykey import parse_recovery_key
    from cuckoo_mount.slots import OPEN_PASSPHRASE

    passphrase_file, recovery_key_file = files
    cheap = [slot for slot in door.slots if slot.cost is not None and slot.cost.memory_kib <= 64]
    if cheap and recovery_key_file is None and passphrase_file is None:
        try:
            return open_slots(cheap, OPEN_PASSPHRASE)  # a drive that is not encrypted
        except WrongKey:
            pass
    if recovery_key_file is not None:
        return open_slots(door.slots, parse_recovery_key(read_passphrase(name, recovery_key_file).text))
    for _ in range(0 if passphrase_file is not None else TRIES - 1):
        try:
            return _unlock(door.slots, read_passphrase(name, None, prompt="Passphrase or recovery key"))
        except WrongKey as error:
            print(error, file=sys.stderr)
    return _unlock(door.slots, read_passphrase(name, passphrase_file, prompt="Passphrase or recovery key"))


def _unlock(slots: Sequence[KeySlot], typed: Passphrase) -> bytes:
    from cuckoo_mount.layers.keyslots import open_slots
    from cuckoo_mount.layers.recoverykey import parse_recovery_key

    try:
        recovery_key = parse_recovery_key(typed.text)
    except UsageError as mistyped:
        try:
            return open_slots(slots, typed)
        except WrongKey as error:
            if _GROUPS.fullmatch(typed.text):
                raise WrongKey(str(mistyped)) from error
            raise
    try:
        return open_slots(slots, recovery_key)
    except WrongKey:
        return open_slots(slots, typed)


def _report(found: Found, drive: str, paths: DrivePaths, *, as_json: bool) -> None:
    from cuckoo_mount.epochs.joining import describe_claim

    header, config = found.tip.header, found.config
    if as_json:
        common.print_json(_record(found))
        return
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(header.time_ns / 1e9))
    age = _age((time.time_ns() - header.time_ns) / 1e9)
    click.echo(f"Recovered drive {drive!r}: epoch {header.name.epoch}, the state of {when} ({age} ago).")
    names = [cloud.name for cloud in config.clouds]
    up = [name for name in names if name not in found.silent]
    click.echo(f"Clouds: {', '.join(names)}; {'all answer' if not found.silent else ', '.join(up) + ' answered'}.")
    for name, why in sorted(found.silent.items()):
        click.echo(f"  {name} does not: {why.removeprefix(f'cloud {name}: ')}")
        click.echo(f"  If it has moved or needs other secrets: cuckoo cloud set {name} --url … --secret …")
    for item in found.newer:
        click.echo(f"  Left out: {item.name}, {item.reason}")
    option = drive_argument(drive)
    if found.claim is not None and not found.claim.released:
        click.echo(
            f"It was in use by {describe_claim(found.claim, time.time_ns())}.  If that machine is gone, mount with: "
            f"cuckoo-mount ~/Cuckoo --take-over{option}"
        )
    else:
        click.echo(f"Now mount it: cuckoo-mount ~/Cuckoo{option}")
    if not config.ask:
        click.echo(f"Its key is in {shown(paths.key_file)}.")


def _record(found: Found) -> Mapping[str, object]:
    header = found.tip.header
    return {
        "drive": found.config.name,
        "drive_id": found.config.drive_id.hex(),
        "epoch": header.name.epoch,
        "time": header.time_ns / 1e9,
        "clouds": [cloud.name for cloud in found.config.clouds],
        "silent": dict(found.silent),
        "left_out": [{"name": str(item.name), "reason": item.reason} for item in found.newer],
        "in_use": found.claim is not None and not found.claim.released,
    }


def _age(seconds: float) -> str:
    from cuckoo_mount.cli.sending import human_time

    return human_time(max(0.0, seconds))

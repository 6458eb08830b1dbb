"""`cuckoo set`: how redundant and how durable a drive is, or the files below a folder of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click
from attrs import define

from cuckoo_mount.cli import common
from cuckoo_mount.cli.mounts import mount_around
from cuckoo_mount.cli.operate import run_on_drive
from cuckoo_mount.config.paths import shown
from cuckoo_mount.durabilities import CLOUD, DURABILITY_XATTR, LOCAL, check_durability
from cuckoo_mount.errors import InvalidArgument, NoAttribute, NotFound, NotSupported, UsageError
from cuckoo_mount.multi.redundancy import check_redundancy, describe_policy, format_policy, parse_policy
from cuckoo_mount.types import REDUNDANCY_XATTR

PROGRAM: Final = "cuckoo set"
DEFAULT: Final = "default"


@click.command("set", epilog="Example:  cuckoo set ~/Cuckoo/Photos --redundancy 3+2")
@click.argument("path", required=False, type=click.Path(path_type=Path))
@click.option(
    "--redundancy",
    metavar="none|N|K+M|default",
    help="How the chunks are stored: one copy, N copies, or K data and M parity shares, always on distinct clouds; "
    "`default`, with PATH: as the drive's own redundancy says.",
)
@click.option(
    "--durability",
    metavar="local|cloud|default",
    help="What fsync waits for: this disk, or the clouds, too (ETIMEDOUT if that takes longer than the deadline; then "
    "the data stay queued); `default`, with PATH: as the drive's own says.",
)
@click.option("--dry-run", is_flag=True, help="Only say how many files and folders it would be.")
@common.common_options
def command(
    path: Path | None, redundancy: str | None, durability: str | None, dry_run: bool, drive: str, as_json: bool
) -> int:
    """Change the redundancy or durability of a drive, or of PATH and everything below it.

    A folder passes both on to what is made in it later; moving a file changes neither.  The attributes
    user.cuckoo.redundancy and user.cuckoo.durability show them.  With another redundancy what is stored already is
    written anew in the background; `cuckoo gc` does all of that now.
    """
    if redundancy is None and durability is None:
        raise UsageError("nothing to set; give --redundancy or --durability")
    if path is None:
        if DEFAULT in (redundancy, durability):
            raise UsageError("without PATH it is the default that is changed; it cannot be `default` itself")
        return _set_drive(drive, redundancy, durability, dry_run=dry_run, as_json=as_json)
    if mount_around(path) is None:
        raise UsageError(f"{shown(path)} lies in no mounted drive; see: cuckoo drives")
    wanted: dict[bytes, str | None] = {}
    if redundancy is not None:
        policy = None if redundancy == DEFAULT else parse_policy(check_redundancy(redundancy))
        wanted[REDUNDANCY_XATTR] = None if policy is None else format_policy(policy)
    if durability is not None:
        wanted[DURABILITY_XATTR] = None if durability == DEFAULT else check_durability(durability)
    count = _Count()
    for name, is_directory in _walk(path):
        if not dry_run:
            for attribute, value in wanted.items():
                _set_attribute(name, attribute.decode("ascii"), value)
        count.add(is_directory=is_directory)
    if as_json:
        given = {"redundancy": redundancy, "durability": durability}
        common.print_json({"path": str(path), **given, "files": count.files, "folders": count.folders})
    else:
        click.echo(f"{count}: {_words(redundancy, durability)}{' (nothing was changed)' if dry_run else ''}.")
    return common.DONE


def _words(redundancy: str | None, durability: str | None) -> str:
    """Return what was set, as people say it."""
    words = []
    if redundancy is not None:
        policy = None if redundancy == DEFAULT else parse_policy(redundancy)
        words.append("the drive's own redundancy" if policy is None else describe_policy(policy))
    if durability is not None:
        what = {LOCAL: "fsync waits for this disk", CLOUD: "fsync waits for the clouds"}
        words.append(what.get(durability, "the drive's own durability"))
    return ", ".join(words)


@define(slots=True)
class _Count:
    files: int = 0
    folders: int = 0

    def add(self, *, is_directory: bool) -> None:
        self.folders += is_directory
        self.files += not is_directory

    def __str__(self) -> str:
        files = "1 file" if self.files == 1 else f"{self.files} files"
        folders = "1 folder" if self.folders == 1 else f"{self.folders} folders"
        return f"{files}, {folders}"


def _set_drive(drive: str, redundancy: str | None, durability: str | None, *, dry_run: bool, as_json: bool) -> int:
    redundancy = None if redundancy is None else check_redundancy(redundancy)
    durability = None if durability is None else check_durability(durability)
    what = _words(redundancy, durability)
    if dry_run:
        click.echo(f"Drive {drive!r} would have: {what}; nothing was changed.")
        return common.DONE
    result = run_on_drive(drive, "set", redundancy=redundancy, durability=durability)
    if as_json:
        common.print_json({"drive": drive, **result})
    else:
        follows = "; what is stored already follows in the background" if redundancy is not None else ""
        click.echo(f"Drive {drive!r} from now on: {what}{follows}.")
    return common.DONE


def _walk(path: Path) -> Iterator[tuple[Path, bool]]:
    """Yield (path, whether it is a folder) of regular files and folders, each folder before what is in it.

    So what is made meanwhile has the new redundancy, from its folder, or is found.  Raises: UsageError, OSError.
    """
    if path.is_symlink() or not path.exists():
        raise UsageError(f"{shown(path)} is no file or folder")
    if not path.is_dir():
        yield path, False
        return
    yield path, True
    for folder, folders, files in os.walk(path, onerror=_refuse):
        here = Path(folder)
        for name in folders:
            if not (here / name).is_symlink():
                yield here / name, True
        for name in files:
            if (here / name).is_file() and not (here / name).is_symlink():
                yield here / name, False


def _refuse(error: OSError) -> None:
    raise error


def _set_attribute(path: Path, name: str, value: str | None) -> None:
    """Set or remove the attribute of one node; one that vanished is no error.  Raises: UsageError, OSError."""
    try:
        if value is None:
            os.removexattr(path, name)
        else:
            os.setxattr(path, name, value.encode("ascii"))
    except OSError as error:
        if error.errno == NotFound.errno or (value is None and error.errno == NoAttribute.errno):
            return
        if error.errno == InvalidArgument.errno:
            raise UsageError(f"the drive has too few clouds for {value}; see: cuckoo cloud list") from error
        if error.errno == NotSupported.errno:
            raise UsageError(f"{shown(path)}: the drive is mounted with noxattr; mount it without") from error
        raise

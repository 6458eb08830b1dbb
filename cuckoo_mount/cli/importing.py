"""`cuckoo import`: copy files that lie in a cloud already into a drive."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
from attrs import asdict

from cuckoo_mount.cli import common
from cuckoo_mount.cli.common import count_of
from cuckoo_mount.cli.mounts import mount_around
from cuckoo_mount.cli.places import warn_of_secrets
from cuckoo_mount.cli.progressline import ProgressLine
from cuckoo_mount.config.paths import shown
from cuckoo_mount.config.sizes import human_size
from cuckoo_mount.errors import UsageError

if TYPE_CHECKING:
    from cuckoo_mount.clouds.base import CloudSettings
    from cuckoo_mount.sources.copying import Outcome

PROGRAM: Final = "cuckoo import"
SHOWN_MAX: Final = 20
"""Names that are listed; --json has more."""
_JOBS_MAX: Final = 64
_PATH: Final = re.compile(r"(?<!:):(?=/(?!/))")
"""The colon of URL:/PATH; that of `://` and of a port stand before something else."""


@click.command(
    "import",
    epilog="Example:  cuckoo import 's3://bucket?endpoint_url=https://s3.example.net:/photos' ~/Cuckoo/Photos "
    "--secret user=prompt --secret password=prompt",
)
@click.argument("url", metavar="URL[:/PATH]")
@click.argument("target", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--secret",
    "secret_specs",
    multiple=True,
    metavar="K=SOURCE",
    help="A secret for URL, e.g. user or password; SOURCE: file:PATH, env:VARIABLE or prompt.",
)
@click.option("--option", "options", multiple=True, metavar="K=V", help="An option of the driver for URL.")
@click.option("--jobs", type=click.IntRange(1, _JOBS_MAX), default=4, show_default=True, help="Files at a time.")
@click.option("--overwrite", is_flag=True, help="Replace files of DIR that differ; else they stay, and are named.")
@click.option("--dry-run", is_flag=True, help="Only say what would be copied.")
@common.common_options
def command(
    url: str,
    target: Path,
    secret_specs: tuple[str, ...],
    options: tuple[str, ...],
    jobs: int,
    overwrite: bool,
    dry_run: bool,
    drive: str,
    as_json: bool,
) -> int:
    """Copy the files at URL, or those below its folder PATH, into the folder DIR of a mounted drive.

    URL is what `cuckoo cloud add` takes, and archives (zip:///home/me/photos.zip).  Names, content and times are taken
    over; what is there already with the same size and time is left as it is, so that an import that was interrupted
    goes on when it is run again.  Nothing at URL is changed.  DIR is made if it is not there.
    """
    if mount_around(target) is None:
        raise UsageError(f"{shown(target)} lies in no mounted drive; see: cuckoo drives")
    from cuckoo_mount.sources.copying import Importer, Wishes
    from cuckoo_mount.sources.opening import open_source

    place, root = _parted(url)
    settings = _settings(place, options, secret_specs, drive)
    wishes = Wishes(jobs=jobs, overwrite=overwrite, dry_run=dry_run)
    with closing(open_source(settings)) as source:
        if not dry_run:
            target.mkdir(parents=True, exist_ok=True)
        with ProgressLine(quiet=as_json) as line:
            importer = Importer(source, target, wishes, root=root, tell=lambda outcome: line.show(_copied(outcome)))
            outcome = importer.run()
    if as_json:
        common.print_json({"target": str(target), "dry_run": dry_run, **asdict(outcome)})
    else:
        _report(outcome, dry_run=dry_run)
    return common.FAILED if outcome.failed else common.DONE


def _parted(url: str) -> tuple[str, str]:
    """Return the URL, and the path below it without `/` at its ends."""
    place, *more = _PATH.split(url, maxsplit=1)
    return place, more[0].strip("/") if more else ""


def _settings(url: str, options: Sequence[str], specs: Sequence[str], drive: str) -> CloudSettings:
    """Return how the source is opened.  May ask on the terminal.  Raises: UsageError, ConfigurationError."""
    from cuckoo_mount.cli.given import given_secret, given_settings, secret_values

    if not url.isprintable():
        raise UsageError(f"{url!r} cannot be a URL")
    warn_of_secrets(url)
    references = dict(given_secret(spec, shown(url)) for spec in specs)
    settings = given_settings(url, options, secret_values(drive, "URL", url, references))
    for key, _ in settings.options:
        if "." in key:
            raise UsageError(f"option {key!r} is for clouds of a drive; leave it out")
    return settings


def _copied(outcome: Outcome) -> str:
    return f"{count_of(outcome.files, 'file')}, {human_size(outcome.size_bytes)}"


def _report(outcome: Outcome, *, dry_run: bool) -> None:
    present = f"; {count_of(outcome.present, 'file')} there already" if outcome.present else ""
    click.echo(
        f"{_copied(outcome)} in {count_of(outcome.folders, 'folder')}"
        f"{' would be copied' if dry_run else ' copied'}{present}."
    )
    if outcome.differing:
        click.echo(
            f"{count_of(len(outcome.differing), 'file')} of DIR differ and stay as they are "
            "(--overwrite replaces them):"
        )
        _list(outcome.differing)
    if outcome.failed:
        common.say_error(
            PROGRAM, f"{count_of(outcome.failed, 'file or folder', 'files or folders')} could not be copied:"
        )
        for line in outcome.troubles[:SHOWN_MAX]:
            print(f"    {line}", file=sys.stderr)


def _list(names: Sequence[str]) -> None:
    for name in names[:SHOWN_MAX]:
        click.echo(f"    {shown(Path(name))}")
    if len(names) > SHOWN_MAX:
        click.echo(f"    … and {len(names) - SHOWN_MAX} more")

"""`cuckoo import`: copy files that lie in a cloud already into a drive."""

from __future__ import annotations

import getpass
import re
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
from attrs import asdict

from cuckoo_mount.cli import common
from cuckoo_mount.cli.mounts import mount_around
from cuckoo_mount.cli.places import warn_of_secrets
from cuckoo_mount.config.paths import shown
from cuckoo_mount.config.sizes import human_size
from cuckoo_mount.errors import UsageError

if TYPE_CHECKING:
    from cuckoo_mount.clouds.base import CloudSettings
    from cuckoo_mount.sources.copying import Outcome

PROGRAM: Final = "cuckoo import"
SHOWN_MAX: Final = 20
"""Names that are listed; --json has more."""
TOLD_EVERY_S: Final = 0.5
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
        with _Line(quiet=as_json) as line:
            outcome = Importer(source, target, wishes, root=root, tell=line.tell).run()
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
    from cuckoo_mount.clouds.base import CloudSettings
    from cuckoo_mount.config.records import CloudConfig
    from cuckoo_mount.config.secrets import PROMPT, parse_secret_spec, part_url, prompted, resolve_secrets
    from cuckoo_mount.format import ID_BYTES

    if not url.isprintable():
        raise UsageError(f"{url!r} cannot be a URL")
    warn_of_secrets(url)
    references = {}
    for spec in specs:
        key, reference = parse_secret_spec(spec)
        if reference == PROMPT:
            if not sys.stdin.isatty():
                raise UsageError(f"there is no terminal to ask for secret {key!r} on; write {key}=file:PATH")
            reference = prompted(getpass.getpass(f"{key}: "))
        references[key] = reference
    asked = CloudConfig(name="URL", url=url, cloud_id=bytes(ID_BYTES), secrets=tuple(sorted(references.items())))
    pairs = []
    for option in options:
        key, separator, value = option.partition("=")
        if not separator or not key or "." in key:
            raise UsageError(f"--option is written K=V, not {option!r}")
        pairs.append((key, value))
    name = part_url(url)[0] if "://" in url else url  # what errors call it, without secrets
    return CloudSettings(name=name, url=url, options=tuple(sorted(pairs)), secrets=resolve_secrets(drive, asked))


class _Line:
    """What was copied so far, on a terminal."""

    def __init__(self, *, quiet: bool) -> None:
        self._shows = not quiet and sys.stderr.isatty()
        self._told_at_s = time.monotonic()

    def __enter__(self) -> _Line:
        return self

    def __exit__(self, *_: object) -> None:
        if self._shows:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def tell(self, outcome: Outcome) -> None:
        """Show it, now and then."""
        if self._shows and time.monotonic() - self._told_at_s >= TOLD_EVERY_S:
            self._told_at_s = time.monotonic()
            print(f"\r\x1b[K{_copied(outcome)}", end="", file=sys.stderr, flush=True)


def _copied(outcome: Outcome) -> str:
    return f"{_count(outcome.files, 'file')}, {human_size(outcome.size_bytes)}"


def _report(outcome: Outcome, *, dry_run: bool) -> None:
    present = f"; {_count(outcome.present, 'file')} there already" if outcome.present else ""
    click.echo(
        f"{_copied(outcome)} in {_count(outcome.folders, 'folder')}"
        f"{' would be copied' if dry_run else ' copied'}{present}."
    )
    if outcome.differing:
        click.echo(
            f"{_count(len(outcome.differing), 'file')} of DIR differ and stay as they are (--overwrite replaces them):"
        )
        _list(outcome.differing)
    if outcome.failed:
        common.say_error(
            PROGRAM, f"{_count(outcome.failed, 'file or folder', 'files or folders')} could not be copied:"
        )
        for line in outcome.troubles[:SHOWN_MAX]:
            print(f"    {line}", file=sys.stderr)


def _list(names: Sequence[str]) -> None:
    for name in names[:SHOWN_MAX]:
        click.echo(f"    {shown(Path(name))}")
    if len(names) > SHOWN_MAX:
        click.echo(f"    … and {len(names) - SHOWN_MAX} more")


def _count(number: int, what: str, many: str = "") -> str:
    return f"1 {what}" if number == 1 else f"{number} {many or what + 's'}"

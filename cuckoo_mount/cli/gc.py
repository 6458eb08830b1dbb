"""`cuckoo gc`: give back the room of what nobody needs any more."""

from __future__ import annotations

import click

from cuckoo_mount.cli import common
from cuckoo_mount.cli.operate import Result, run_on_drive
from cuckoo_mount.config.sizes import human_size


@click.command("gc", epilog="Example:  cuckoo gc")
@click.option(
    "--keep",
    type=click.IntRange(min=1),
    metavar="N",
    help="How many older states of the drive are kept (there are none before a later release).",
)
@click.option("--dry-run", is_flag=True, help="Only say what there is to do.")
@click.option(
    "--yes", is_flag=True, help="Accepted for scripts: nothing that is needed is deleted, so nothing is asked."
)
@common.common_options
def command(keep: int | None, dry_run: bool, yes: bool, drive: str, as_json: bool) -> int:
    """Delete packs that hold nothing any more, and compact those that hold little.

    The drive does so by itself, a little each minute while it is mounted; this does all of it now.
    """
    result = run_on_drive(drive, "gc", keep=keep, dry_run=dry_run)
    if as_json:
        common.print_json(result)
    else:
        click.echo(_line(result, dry_run=dry_run))
    return common.DONE


def _line(result: Result, *, dry_run: bool) -> str:
    numbers = {key: value for key, value in result.items() if isinstance(value, int)}
    if dry_run:
        stored, live = numbers.get("stored_bytes", 0), numbers.get("live_bytes", 0)
        packs = numbers.get("packs", 0)
        return f"{_packs(packs)} with {human_size(stored)} are stored, {human_size(live)} of them are needed."
    freed = f"{_packs(numbers.get('packs_deleted', 0))} deleted, {_packs(numbers.get('packs_compacted', 0))} compacted"
    healed = numbers.get("packs_healed", 0)
    freed += f", {healed} healed" if healed else ""
    repacked = numbers.get("packs_repacked", 0)
    freed += f", {repacked} repacked for another redundancy" if repacked else ""
    objects = numbers.get("objects_deleted", 0)
    freed += f", {objects} {'object' if objects == 1 else 'objects'} of nobody deleted" if objects else ""
    kept = numbers.get("packs_kept", 0)
    rest = f"; {_packs(kept)} wait for a cloud that did not answer" if kept else ""
    return f"{freed}, {human_size(numbers.get('freed_bytes', 0))} given back{rest}."


def _packs(count: int) -> str:
    return "1 pack" if count == 1 else f"{count} packs"

"""`cuckoo rebalance`: even out how full the clouds are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import click

from cuckoo_mount.cli import common, sending
from cuckoo_mount.cli.operate import Result, run_on_drive
from cuckoo_mount.config.sizes import human_size
from cuckoo_mount.multi.balancing import SPREAD_MAX

PROGRAM: Final = "cuckoo rebalance"
_TITLES: Final = ("cloud", "used", "of", "full", "after")


@click.command("rebalance", epilog="Example:  cuckoo rebalance --dry-run")
@click.option("--dry-run", is_flag=True, help="Only show how full the clouds are, and how full they would be.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@common.common_options
def command(dry_run: bool, yes: bool, drive: str, as_json: bool) -> int:
    """Write packs of the fullest clouds anew, so that the emptiest get them, until all are about equally full.

    Equally means: the used parts of what they can have differ by at most 5 %, or as little as the drive's redundancy
    and the sizes of the clouds allow.  Clouds that are down, read-only or get nothing new are left as they are.
    Older states of the drive (cuckoo-mount --epoch) are forgotten, as by `cuckoo gc --keep 1`.

    Ctrl-C stops it; what was done stays done, and running it again goes on.
    """
    if dry_run or not yes:
        plan = run_on_drive(drive, "rebalance", dry_run=True)
        if dry_run or not plan.get("packs"):
            return _show(plan, as_json=as_json, done=False)
        common.confirm(f"{_summary(plan, done=False)}  Older states of the drive are forgotten.  Go on?", yes=yes)
    try:
        with sending.SendingLine(quiet=as_json) as line:
            result = run_on_drive(drive, "rebalance", progress=line.moving)
    except KeyboardInterrupt:
        common.say_error(PROGRAM, "stopped; what was done stays done, run it again to go on")
        return common.INTERRUPTED
    return _show(result, as_json=as_json, done=True)


def _show(result: Result, *, as_json: bool, done: bool) -> int:
    trouble = result.get("trouble")
    if as_json:
        common.print_json(result)
    else:
        _show_table(sending.records(result.get("clouds")))
        click.echo(_summary(result, done=done))
    if trouble and _percent(result.get("spread_after")) > 100 * SPREAD_MAX:
        common.say_error(PROGRAM, f"not all that was to be moved could be: {trouble}")
        return common.FAILED
    return common.DONE


def _summary(result: Result, *, done: bool) -> str:
    packs, size_bytes = result.get("packs"), result.get("bytes")
    before, after = _percent(result.get("spread")), _percent(result.get("spread_after"))
    if not packs:
        why = "no pack would make that better" if before > 100 * SPREAD_MAX else "that is even"
        return f"The levels differ by {before:.1f} %; {why}."
    what = "1 pack" if packs == 1 else f"{packs} packs"
    size = human_size(size_bytes) if isinstance(size_bytes, int) else "?"
    verb = f"{'was' if packs == 1 else 'were'} written anew" if done else "would be written anew"
    differ = "differ" if done else "would differ"
    return f"{what} with {size} {verb}; the levels {differ} by {after:.1f} %, before by {before:.1f} %."


def _show_table(clouds: Sequence[Result]) -> None:
    rows = [_TITLES, *map(_row, clouds)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [text.rjust(width) for text, width in zip(row, widths, strict=True)]
        cells[0] = row[0].ljust(widths[0])
        click.secho("  ".join(cells).rstrip(), bold=row is _TITLES)


def _row(cloud: Result) -> tuple[str, ...]:
    sizes = [cloud.get(key) for key in ("used_bytes", "total_bytes")]
    used, total = (human_size(size) if isinstance(size, int) else "?" for size in sizes)
    after = cloud.get("fill_after")
    later = f"{_percent(after):.1f} %" if after is not None else "as it is"
    return str(cloud.get("name")), used, total, f"{_percent(cloud.get('fill')):.1f} %", later


def _percent(value: object) -> float:
    return 100.0 * value if isinstance(value, int | float) else 0.0

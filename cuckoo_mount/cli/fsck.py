"""`cuckoo fsck`: is the drive as it should be, and which files are damaged?"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final, cast

import click

from cuckoo_mount.cli import common, sending
from cuckoo_mount.cli.operate import Result, run_on_drive
from cuckoo_mount.cli.progressline import ProgressLine
from cuckoo_mount.cli.scrub import progress_line

PROGRAM: Final = "cuckoo fsck"
SHOWN: Final = 20


@click.command("fsck", epilog="Example:  cuckoo fsck --repair")
@click.option("--repair", is_flag=True, help="Set right what can be; move files with lost parts to /lost+found.")
@click.option("--dry-run", is_flag=True, help="Only say what is wrong: as without --repair.")
@click.option("--yes", is_flag=True, help="Accepted for scripts: nothing that is needed is deleted.")
@common.common_options
def command(repair: bool, dry_run: bool, yes: bool, drive: str, as_json: bool) -> int:
    """Compare a drive's metadata with itself and with the listings of its clouds, and name damaged files.

    Works beside a mounted drive.  With --repair counts and names are set right; nodes without a name and files with
    lost parts go to /lost+found, where what is left of them can be read; missing shares are made anew.

    Exit status 0: all is well, or is again.
    Exit status 3: something is wrong, is left, or could not be looked at; also as long as there are files with lost
    parts in /lost+found.
    """
    try:
        with ProgressLine(quiet=as_json) as line:
            result = run_on_drive(
                drive, "fsck", progress=lambda told: line.show(progress_line(told)), repair=repair and not dry_run
            )
    except KeyboardInterrupt:
        common.say_error(PROGRAM, "interrupted; what was repaired so far stays")
        return common.INTERRUPTED
    if as_json:
        common.print_json(whole_result(result))
    else:
        for text in describe(result):
            click.echo(text)
    return common.DONE if result.get("clean") is True else common.UNSENT


def whole_result(result: Result) -> Result:
    """Return the result with all damaged files: where there are many, a file of the daemon's has them."""
    listed = result.get("damaged_list")
    if not isinstance(listed, str):
        return result
    return {**result, "damaged": json.loads(Path(listed).read_text("ascii"))}


def describe(result: Result) -> list[str]:
    """Return the result as lines for people."""
    repair = result.get("repair") is True
    lines = []
    for problem in sending.records(result.get("problems")):
        count, left = cast(int, problem["count"]), cast(int, problem["left"])
        state = f", {left} left" if repair else ""
        examples = ", ".join(f"({example})" for example in cast(list[str], problem["examples"]))
        lines.append(f"{problem['kind']}: {count}{state}.  {problem['text']}{': ' if examples else ''}{examples}")
    lines += _about_clouds(cast(Mapping[str, object], result.get("scrub") or {}))
    orphans = cast(Mapping[str, int], result.get("orphans") or {})
    if orphans.get("objects"):
        lines.append(
            f"{orphans['objects']} objects ({orphans['bytes']} bytes) on the clouds belong to nothing; "
            "`cuckoo gc` deletes them when they have been there for a day."
        )
    lines += _about_files(result)
    if result.get("clean") is True:
        lines.append("The drive is as it should be.")
    elif not repair:
        lines.append("`cuckoo fsck --repair` repairs what can be.")
    return lines


def _about_clouds(scrub: Mapping[str, object]) -> list[str]:
    epochs = cast(Mapping[str, int], scrub.get("epochs") or {})
    numbers = {key: value for key, value in scrub.items() if isinstance(value, int)}
    bad = numbers.get("missing", 0) + numbers.get("damaged", 0) + epochs.get("missing", 0) + epochs.get("damaged", 0)
    left = numbers.get("left", 0) + epochs.get("left", 0)
    lines = []
    if bad:
        lines.append(f"{bad} objects are missing on the clouds or have a wrong size, {left} of them are left.")
    if degraded := numbers.get("degraded", 0):
        has = "has" if degraded == 1 else "have"
        lines.append(f"{common.count_of(degraded, 'pack')} {has} fewer shares than the redundancy asks for.")
    if lost := numbers.get("lost", 0):
        lines.append(f"{lost} packs cannot be read whole from any cloud.")
    lines += [
        f"cloud {silent.get('name')} was not looked at, or not all of it: {silent.get('error')}"
        for silent in sending.records(scrub.get("silent"))
    ]
    return lines


def _about_files(result: Result) -> list[str]:
    lines = []
    count = cast(int, result.get("damaged_count", 0))
    paths = cast(list[str], result.get("damaged") or [])
    if moved := result.get("moved_count"):
        lines.append(
            f"{moved} files with lost parts were moved to /lost+found, where what is left of them can be read."
        )
    if count:
        lines.append(f"{count} files cannot be read whole; copy them again, or bring the missing objects back:")
        lines += [f"    {path}" for path in paths[:SHOWN]]
        if count > SHOWN:
            lines.append("    …  (`cuckoo fsck --json` names all)")
    return lines

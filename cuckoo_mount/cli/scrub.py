"""`cuckoo scrub`: is on the clouds what should be there?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, cast

import click

from cuckoo_mount.cli import common, sending
from cuckoo_mount.cli.common import count_of
from cuckoo_mount.cli.operate import Result, run_on_drive
from cuckoo_mount.cli.progressline import ProgressLine
from cuckoo_mount.errors import UsageError

PROGRAM: Final = "cuckoo scrub"


@click.command("scrub", epilog="Example:  cuckoo scrub --deep")
@click.option("--deep", is_flag=True, help="Also read everything, and compare it with the digests.")
@click.option("--restart", is_flag=True, help="With --deep: do not go on where an interrupted one ended.")
@click.option("--no-heal", is_flag=True, help="Leave the repair to the drive, which does it by itself while mounted.")
@click.option("--dry-run", is_flag=True, help="Only say what is wrong.")
@click.option("--yes", is_flag=True, help="Accepted for scripts: nothing that is needed is deleted.")
@common.common_options
def command(deep: bool, restart: bool, no_heal: bool, dry_run: bool, yes: bool, drive: str, as_json: bool) -> int:
    """Compare what is on the clouds with what should be there, and repair what is missing or damaged.

    Without --deep every cloud is listed: names and sizes.  With --deep everything is read once, two packs at a time;
    interrupted, the next one goes on where it ended.  Clouds that do not answer are named and prove nothing.

    Exit status 0: all is whole, or is again.  3: something is left, has too few copies, or could not be looked at;
    with --dry-run: something is wrong.
    """
    if restart and not deep:
        raise UsageError("--restart goes with --deep: without it there is nothing to go on with")
    try:
        with ProgressLine(quiet=as_json) as line:
            result = run_on_drive(
                drive,
                "scrub",
                progress=lambda told: line.show(progress_line(told)),
                deep=deep,
                restart=restart,
                dry_run=dry_run,
                heal=not no_heal,
            )
    except KeyboardInterrupt:
        goes_on = f"; goes on with: cuckoo scrub --deep{common.drive_argument(drive)}" if deep and not dry_run else ""
        common.say_error(PROGRAM, f"interrupted{goes_on}")
        return common.INTERRUPTED
    if as_json:
        common.print_json(result)
    else:
        for text in describe(result):
            click.echo(text)
    return common.DONE if result.get("whole") is True else common.UNSENT


def progress_line(progress: Mapping[str, object]) -> str:
    """Return a progress message in words; empty when it says nothing."""
    phase, checked, total, bad = (progress.get(key) for key in ("phase", "checked", "total", "bad"))
    if not isinstance(phase, str) or not phase:
        return ""
    found = f", {bad} bad" if bad else ""
    return f"{phase}: {checked} of {total} shares{found}"


def describe(result: Result) -> list[str]:
    """Return the result of a scrub as lines for people."""
    numbers = {key: value for key, value in result.items() if isinstance(value, int)}
    epochs = cast(Mapping[str, int], result.get("epochs") or {})
    keys = cast(Mapping[str, int], result.get("keys") or {})

    def total(key: str) -> int:
        return numbers[key] + epochs.get(key, 0) + keys.get(key, 0)

    verb = "read" if result.get("deep") else "listed"
    lines = [
        f"{count_of(numbers['checked'], 'share')} and {count_of(epochs.get('checked', 0), 'epoch object')} {verb}, "
        f"{count_of(keys.get('checked', 0), 'key slot')} read: {total('missing')} missing, {total('damaged')} damaged."
    ]
    if result.get("resumed"):
        lines[0] += "  (It went on where the last one ended; --restart reads everything.)"
    if total("missing") + total("damaged") and not result.get("dry_run"):
        lines.append(f"{total('repaired')} of them repaired, {total('left')} left.")
    lines += _what_is_left(result, numbers)
    if result.get("whole") is True:
        lines.append("Everything is there.")
    return lines


def _what_is_left(result: Result, numbers: Mapping[str, int]) -> list[str]:
    lines = []
    if degraded := numbers["degraded"]:
        has = "has" if degraded == 1 else "have"
        lines.append(
            f"{count_of(degraded, 'pack')} {has} fewer shares than the redundancy asks for; the drive repairs that "
            "while it is mounted, as soon as clouds enough are up"
        )
    if lost := numbers["lost"]:
        paths = result.get("paths")
        named = [str(path) for path in paths] if isinstance(paths, list | tuple) else []
        lines.append(
            f"{count_of(lost, 'pack')} cannot be read whole from any cloud; copy these files again, or bring the "
            "missing objects back:" + "".join(f"\n    {path}" for path in named)
        )
    lines += [
        f"cloud {silent.get('name')} was not looked at, or not all of it: {silent.get('error')}"
        for silent in sending.records(result.get("silent"))
    ]
    return lines

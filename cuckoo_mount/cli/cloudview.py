"""How `cuckoo cloud` shows clouds to people.

Used by cloud.py.  Prints to stdout.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, cast

import click

from cuckoo_mount.config.paths import shown
from cuckoo_mount.config.sizes import human_size

_TITLES: Final = ("cloud", "state", "used", "of", "packs", "group", "where")
_RIGHT: Final = frozenset({"used", "of", "packs"})
Record = Mapping[str, object]


def records(value: object) -> list[Record]:
    """Return a list of records out of an answer; empty if it is none."""
    return cast(list[Record], value) if isinstance(value, list) else []


def show_clouds(clouds: Sequence[Record]) -> None:
    """Print a table of clouds, then what is the matter with them, one line each."""
    rows = [list(_TITLES), *map(_row, clouds)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    # Not by rich: it cuts URLs to the terminal's width, or fills up each line to the longest one.
    for row in rows:
        cells = zip(_TITLES, row, widths, strict=True)
        line = "  ".join(text.rjust(width) if title in _RIGHT else text.ljust(width) for title, text, width in cells)
        click.secho(line.rstrip(), bold=row is rows[0])
    for cloud in clouds:
        if cloud.get("state") != "ok" and cloud.get("last_error"):
            click.echo(f"{cloud.get('name')}: {cloud['last_error']}")


def _row(cloud: Record) -> list[str]:
    states = [str(cloud.get("state")), describe_use(cloud), "read-only" if cloud.get("read_only") else ""]
    return [
        str(cloud.get("name")),
        ", ".join(filter(None, states)),
        _size(cloud.get("used_bytes")),
        _size(cloud.get("capacity_bytes")),
        str(cloud.get("packs", 0)),
        str(cloud.get("group") or ""),
        shown(str(cloud.get("url"))),
    ]


def describe_use(cloud: Record) -> str:
    """Return what the drive does with a cloud, besides what its state says: `draining, 5 packs left`; or nothing."""
    use = cloud.get("use")
    if use == "draining":
        packs = cloud.get("packs")
        return f"draining, {packs} pack{'' if packs == 1 else 's'} left"
    return str(use) if use == "no-new" else ""


def _size(value: object) -> str:
    return human_size(value) if isinstance(value, int) else "?"


def show_trial(trial: Record) -> None:
    """Print the steps of `cuckoo cloud test` that worked."""
    for step in records(trial.get("steps")):
        seconds = step.get("seconds")
        milliseconds = 1000 * seconds if isinstance(seconds, int | float) else 0.0
        click.echo(f"{step.get('step'):<14}{milliseconds:>10.1f} ms")
    capabilities = trial.get("capabilities")
    if isinstance(capabilities, dict):
        able = [name.replace("_", " ") for name, value in capabilities.items() if value is True]
        click.echo(f"can: {', '.join(able) or 'the least that is needed'}")
    if deleted := trial.get("deleted"):
        click.echo(f"deleted objects: {deleted}")

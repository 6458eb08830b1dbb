"""`cuckoo status`: what a mounted drive is doing, for people, or with --json for programs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, cast

import click

from cuckoo_mount.cli import client, common
from cuckoo_mount.config.paths import shown
from cuckoo_mount.config.sizes import human_size

if TYPE_CHECKING:
    from rich.console import RenderableType

WATCH_S: Final = 1.0
Status = Mapping[str, object]


@click.command("status", epilog="Example:  cuckoo status --watch")
@common.common_options
@click.option("--check", is_flag=True, help="Exit with 3 when something is degraded or not yet on the clouds.")
@click.option("--watch", is_flag=True, help="Show it anew every second, until Ctrl-C.")
def command(drive: str, as_json: bool, check: bool, watch: bool) -> int:
    """Show a mounted drive's clouds, what is not yet on them, and its cache."""
    if watch and (as_json or check):
        raise click.UsageError("--watch is for people; leave --json and --check out")
    if watch:
        _watch(drive)
        return common.DONE
    status = client.ask(drive, "status")
    if as_json:
        common.print_json(status)
    else:
        _show(status)
    return common.UNSENT if check and not is_fine(status) else common.DONE


def is_fine(status: Status) -> bool:
    """Return whether all clouds are there and everything is on them."""
    return status.get("state") in ("ok", "read-only") and not _number(_table(status, "pending"), "bytes")


def _watch(drive: str) -> None:
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(), auto_refresh=False) as live:
        while True:
            live.update(_render(client.ask(drive, "status")), refresh=True)
            time.sleep(WATCH_S)


def _show(status: Status) -> None:
    from rich.console import Console

    Console(soft_wrap=True).print(_render(status))


def _render(status: Status) -> RenderableType:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    for name, value in _lines(status):
        grid.add_row(Text(name, style="bold"), Text(value))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("cloud", "state", "used", "of", "packs", "requests", "errors", "up", "down"):
        table.add_column(column, justify="left" if column in ("cloud", "state") else "right", no_wrap=True)
    for cloud in _clouds(status):
        table.add_row(*(Text(cell) for cell in _cloud_row(cloud)))
    notes = [Text(note, style="yellow") for note in notes_on(status)]
    return Group(grid, Text(), table, *([Text(), *notes] if notes else []))


def _lines(status: Status) -> list[tuple[str, str]]:
    pending, cache, packs = (_table(status, key) for key in ("pending", "cache", "packs"))
    left = _number(pending, "bytes")
    files = _number(pending, "files")
    sending = f"{human_size(left)} in {files} file{'' if files == 1 else 's'}" if left or files else "nothing"
    held = f"{human_size(_number(cache, 'bytes'))} of {human_size(_number(cache, 'limit_bytes'))}"
    hits = f"{_number(cache, 'hits')} hits, {_number(cache, 'misses')} misses"
    stored = f"{_number(packs, 'count')}, {human_size(_number(packs, 'stored_bytes'))} stored"
    degraded = _number(packs, "degraded")
    return [
        ("drive", f"{status.get('drive')} (pid {status.get('pid')})"),
        ("mountpoint", shown(str(status.get("mountpoint")))),
        ("state", str(status.get("state"))),
        ("not yet sent", sending),
        ("cache", f"{held}, {hits}"),
        ("packs", f"{stored}, {degraded} degraded" if degraded else stored),
    ]


def _cloud_row(cloud: Status) -> list[str]:
    capacity = cloud.get("capacity_bytes")
    return [
        str(cloud.get("name")),
        str(cloud.get("state")),
        human_size(_number(cloud, "used_bytes")),
        human_size(capacity) if isinstance(capacity, int) else "?",
        *(str(_number(cloud, key)) for key in ("packs", "requests", "errors")),
        *(human_size(_number(cloud, key)) for key in ("bytes_up", "bytes_down")),
    ]


def notes_on(status: Status) -> list[str]:
    """Return what the user should know or do, one line each."""
    clouds = _clouds(status)
    notes = [
        f"cloud {cloud.get('name')} is {cloud.get('state')}: {cloud.get('last_error') or 'it has not answered yet'}"
        for cloud in clouds
        if cloud.get("state") != "ok"
    ]
    if error := _table(status, "cache").get("last_error"):
        notes.append(f"last trouble with sending: {error}")
    if len(clouds) == 1 and _is_folder(str(clouds[0].get("url", ""))):
        notes.append("One folder on the same disk is no backup: when this disk dies, the drive dies with it.")
    if status.get("recovery_key_shown") is False:
        notes.append("Keep the recovery key somewhere else than on this machine: cuckoo key show-recovery")
    if _table(status, "epoch").get("cloud") is None:
        notes.append(
            "Names and attributes are only on this machine yet; keeping them on the clouds comes with a later release."
        )
    return notes


def _is_folder(url: str) -> bool:
    scheme, separator, _ = url.partition("://")
    return not separator or scheme in ("osfs", "file")


def _clouds(status: Status) -> list[Status]:
    found = status.get("clouds")
    return cast(list[Status], found) if isinstance(found, list) else []


def _table(status: Status, key: str) -> Status:
    found = status.get(key)
    return cast(Status, found) if isinstance(found, dict) else {}


def _number(table: Status, key: str) -> int:
    value = table.get(key)
    return value if isinstance(value, int) else 0

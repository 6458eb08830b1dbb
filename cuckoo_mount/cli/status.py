"""`cuckoo status`: what a mounted drive is doing, for people, or with --json for programs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import click

from cuckoo_mount.cli import client, common
from cuckoo_mount.cli.sending import SendingRate
from cuckoo_mount.cli.statusview import UNBOUNDED_WIDTH, is_unsent, render

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

WATCH_S: Final = 1.0
Status = Mapping[str, object]


@click.command("status", epilog="Example:  cuckoo status --watch")
@common.common_options
@click.option("--check", is_flag=True, help="Exit with 3 when something is degraded or not yet on the clouds.")
@click.option("--watch", is_flag=True, help="Show it anew every second, until Ctrl-C.")
def command(drive: str, as_json: bool, check: bool, watch: bool) -> int:
    """Show a mounted drive's clouds, what is not yet on them, and its cache.

    Exit status 3, with --check only: something is degraded or not yet on the clouds.
    """
    if watch and (as_json or check):
        raise click.UsageError("--watch is for people; leave --json and --check out")
    if watch:
        _watch(drive)
        return common.DONE
    status = client.ask(drive, "status")
    if as_json:
        common.print_json(status)
    else:
        console = _console()
        console.print(render(status, width=console.width))
    return common.UNSENT if check and not is_fine(status) else common.DONE


def is_fine(status: Status) -> bool:
    """Return whether all clouds are there and everything is on them."""
    return status.get("state") in ("ok", "read-only") and not is_unsent(status)


def _console() -> Console:
    from rich.console import Console

    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=UNBOUNDED_WIDTH)


def _watch(drive: str) -> None:
    """Show the status every `WATCH_S` until Ctrl-C, with the rate at which what is unsent grows less."""
    from rich.live import Live

    console, rate = _console(), SendingRate()

    def look() -> RenderableType:
        status = client.ask(drive, "status")
        pending = status.get("pending")
        rate.note(time.monotonic(), int(pending["bytes"]) if isinstance(pending, dict) else 0)
        return render(status, width=console.width, rate=rate.bytes_per_s)

    try:
        if not console.is_terminal or console.is_dumb_terminal:
            while True:
                console.print(look(), end="\n\n")
                time.sleep(WATCH_S)
        with Live(look(), console=console, auto_refresh=False) as live:
            while True:
                time.sleep(WATCH_S)
                live.update(look(), refresh=True)
    except KeyboardInterrupt:
        return

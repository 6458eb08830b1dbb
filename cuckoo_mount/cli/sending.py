"""How far sending is: a live line on a terminal, plain lines elsewhere, and in words what is left and why.

Used by sync.py, umount.py and status.py, and by the daemon for its last words.  rich is imported when something is
shown on a terminal, for most of the time there is nothing left to send.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final, cast

from attrs import frozen

from cuckoo_mount.cli import client
from cuckoo_mount.config.sizes import human_size
from cuckoo_mount.errors import CuckooError

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

PLAIN_EVERY_S: Final = 10.0
RATE_WINDOW_S: Final = 30.0
"""Packs go one after the other, so what is left falls in steps: over a shorter time the rate would jump."""
RATE_LEAST_S: Final = 2.0
WELL: Final = frozenset({"ok", "draining", "drained"})
"""States of clouds that are no trouble: also what is set apart to be empty."""


class SendingRate:
    """How fast what is left grows less; what is written meanwhile does not count against it.  Times in seconds."""

    def __init__(self) -> None:
        self.sent_bytes = 0
        self._left_bytes: int | None = None
        self._samples: deque[tuple[float, int]] = deque()

    def note(self, now_s: float, left_bytes: int) -> None:
        """Take note that `left_bytes` are left."""
        if self._left_bytes is not None:
            self.sent_bytes += max(0, self._left_bytes - left_bytes)
        self._left_bytes = left_bytes
        self._samples.append((now_s, self.sent_bytes))
        while now_s - self._samples[0][0] > RATE_WINDOW_S:
            self._samples.popleft()

    @property
    def bytes_per_s(self) -> float:
        """The rate of the last `RATE_WINDOW_S`; 0 while it cannot be told."""
        if not self._samples:
            return 0.0
        (since_s, sent_before), (now_s, sent_now) = self._samples[0], self._samples[-1]
        return (sent_now - sent_before) / (now_s - since_s) if now_s - since_s >= RATE_LEAST_S else 0.0

    @property
    def time_left_s(self) -> float | None:
        """How long the rest takes at this rate; None if that cannot be told."""
        rate = self.bytes_per_s
        return self._left_bytes / rate if rate and self._left_bytes is not None else None


@frozen(slots=True)
class Progress:
    """What one progress message of the daemon says, with the rate: bytes per second, 0 for not known."""

    left: str
    rate: float
    time_left_s: float | None
    done: float
    troubles: tuple[str, ...]
    verb: str = "sending"

    @property
    def line(self) -> str:
        """It as one line, what matters most first."""
        parts = [f"{self.verb}: {self.left} left"]
        if self.rate:
            parts.append(f"{human_size(int(self.rate))}/s")
        if self.time_left_s is not None:
            parts.append(f"about {human_time(self.time_left_s)}")
        return ", ".join(parts)


class SendingLine:
    """Shows on stderr how far sending is: live on a terminal, else a line every `PLAIN_EVERY_S`.  A context manager.

    `quiet`: nothing.  `clock`: seconds.
    """

    def __init__(self, *, quiet: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._quiet = quiet
        self._clock = clock
        self._rate = SendingRate()
        self._live: Live | None = None
        self._is_plain = not sys.stderr.isatty()
        self._said_at_s = clock()

    def __enter__(self) -> SendingLine:
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, progress: Mapping[str, object]) -> None:
        """Take a progress message of the daemon, and show it."""
        left_bytes = progress.get("bytes")
        if self._quiet or not isinstance(left_bytes, int):
            return
        self._rate.note(self._clock(), left_bytes)
        if unsent(progress):
            troubles = tuple(describe_trouble(trouble) for trouble in records(progress.get("troubles")))
            self.show("sending", describe(progress), left_bytes, troubles)

    def moving(self, progress: Mapping[str, object]) -> None:
        """Take a progress message of a command that moves packs (`packs_left`, `bytes_left`, …), and show it."""
        left_bytes, packs = progress.get("bytes_left"), progress.get("packs_left")
        if self._quiet or not isinstance(left_bytes, int) or not isinstance(packs, int):
            return
        self._rate.note(self._clock(), left_bytes)
        trouble = progress.get("trouble")
        left = f"{human_size(left_bytes)} in {packs} pack{'' if packs == 1 else 's'}"
        self.show(str(progress.get("step") or "moving packs"), left, left_bytes, (str(trouble),) if trouble else ())

    def show(self, verb: str, left: str, left_bytes: int, troubles: tuple[str, ...]) -> None:
        """Show that `left` is left, if it is time to."""
        now_s = self._clock()
        in_all = self._rate.sent_bytes + left_bytes
        shown = Progress(
            left,
            self._rate.bytes_per_s,
            self._rate.time_left_s,
            self._rate.sent_bytes / in_all if in_all else 1.0,
            troubles,
            verb,
        )
        if not self._is_plain:
            self._show_live(shown)
        elif now_s - self._said_at_s >= PLAIN_EVERY_S:
            self._said_at_s = now_s
            print("; ".join((shown.line, *shown.troubles)), file=sys.stderr, flush=True)

    def _show_live(self, shown: Progress) -> None:
        if self._live is None:
            from rich.console import Console
            from rich.live import Live

            console = Console(stderr=True, highlight=False)
            if console.is_dumb_terminal:
                self._is_plain = True
                return
            self._live = Live(console=console, auto_refresh=False, transient=True, redirect_stdout=False)
            self._live.start()
        self._live.update(_rendered(shown), refresh=True)


def _rendered(shown: Progress) -> RenderableType:
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    bar = Table.grid(padding=(0, 1))
    bar.add_row(Text(shown.line, overflow="ellipsis", no_wrap=True), ProgressBar(1.0, shown.done, width=20))
    return Group(bar, *(Text(f"waiting: {trouble}", style="yellow") for trouble in shown.troubles))


def unsent(pending: object) -> bool:
    """Return whether a `pending` record names anything."""
    return isinstance(pending, dict) and any(pending.get(key) for key in ("files", "chunks", "bytes", "changes"))


def describe(pending: object) -> str:
    """Return a `pending` record in words: `1.5 GiB in 3 files`, or `12 changes of names and attributes`."""
    record = pending if isinstance(pending, dict) else {}
    changes = record.get("changes", 0)
    if changes and not record.get("bytes"):
        return f"{changes} change{'' if changes == 1 else 's'} of names and attributes"
    files = record.get("files", 0)
    return f"{human_size(int(record.get('bytes', 0)))} in {files} file{'' if files == 1 else 's'}"


def records(value: object) -> list[Mapping[str, object]]:
    """Return a list of records out of an answer; empty if it is none."""
    return cast("list[Mapping[str, object]]", value) if isinstance(value, list) else []


_SLOW: Final = "slow"
_HEALS: Final = "that heals by itself as soon as there are clouds enough"


def describe_trouble(trouble: Mapping[str, object]) -> str:
    """Return a cloud's trouble in words: `cloud usb is down: no such folder`."""
    name, error = str(trouble.get("name")), trouble.get("error") or trouble.get("last_error")
    if trouble.get("state") == _SLOW:  # its last error, if there was one, is another story
        return f"cloud {name} is slow"
    why = str(error or "it has not answered yet").removeprefix(f"cloud {name}: ")
    return f"cloud {name} is {trouble.get('state')}: {why}"


def why_degraded(outcome: Mapping[str, object]) -> str:
    """Return a line on what is on too few clouds and why that is; empty when nothing is."""
    reasons = (
        because(outcome.get("troubles"))
        or "; that heals by itself as soon as there are clouds enough; see: cuckoo status"
    )
    degraded = outcome.get("degraded")
    if isinstance(degraded, int) and degraded:
        what = "1 pack has" if degraded == 1 else f"{degraded} packs have"
        return f"{what} fewer copies than the drive's redundancy asks for{reasons}"
    epoch = outcome.get("epoch")
    if isinstance(epoch, dict) and epoch.get("local") and epoch.get("local") != epoch.get("cloud"):
        return f"names and attributes are on fewer clouds than keep them safe{reasons}"
    return ""


def because(troubles: object) -> str:
    """Return the clouds' troubles as the end of a line; empty when there are none."""
    return "".join(f"; {describe_trouble(trouble)}" for trouble in records(troubles))


def human_time(seconds: float) -> str:
    """Return a duration rounded for people: `40 s`, `3 min`, `2.5 h`, `4 days`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.0f} days"


def left_now(drive: str) -> dict[str, object] | None:
    """Return what `sync` reports: `pending`, `degraded`, …; None if nobody can be asked any more."""
    with suppress(CuckooError):
        return outcome_of(client.ask(drive, "status"))
    return None


def outcome_of(status: Mapping[str, object]) -> dict[str, object]:
    """Return the part of a `status` that `sync` and `umount` report, as the daemon does."""
    packs, clouds = status.get("packs"), records(status.get("clouds"))
    troubles: Sequence[object] = [
        {"name": cloud.get("name"), "state": cloud.get("state"), "error": cloud.get("last_error")}
        for cloud in clouds
        if cloud.get("state") not in WELL
    ]
    degraded = packs.get("degraded", 0) if isinstance(packs, dict) else 0
    return {
        "pending": status.get("pending"),
        "degraded": degraded,
        "epoch": status.get("epoch"),
        "troubles": troubles,
    }

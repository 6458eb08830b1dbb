"""How far a command is, in one line on stderr: live on a terminal, else said again now and then.

Used by commands that show no more than a line; sending.py has a bar.  Any thread, one at a time.
"""

from __future__ import annotations

import sys
import time
from typing import Final

LIVE_EVERY_S: Final = 0.1
"""A line that changes faster is of no use to anybody."""
PLAIN_EVERY_S: Final = 10.0
_LEFT_CLEAR: Final = "\r\x1b[K"


class ProgressLine:
    """Shows one line that changes on a terminal, else a line every `PLAIN_EVERY_S`.

    A context manager.  `quiet`: nothing.
    """

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._is_terminal = sys.stderr.isatty()
        self._said_at_s = time.monotonic()
        self._is_shown = False

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_shown:
            print(_LEFT_CLEAR, end="", file=sys.stderr, flush=True)

    def show(self, text: str) -> None:
        """Show how far it is now; an empty text says nothing."""
        now_s = time.monotonic()
        if self._quiet or not text or now_s - self._said_at_s < (LIVE_EVERY_S if self._is_terminal else PLAIN_EVERY_S):
            return
        self._said_at_s = now_s
        if self._is_terminal:
            print(f"{_LEFT_CLEAR}{text}", end="", file=sys.stderr, flush=True)
            self._is_shown = True
        else:
            print(text, file=sys.stderr, flush=True)

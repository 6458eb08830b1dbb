"""The line that shows how much is left to send, and where it stays when nobody waits any longer.

Used by sync.py and umount.py.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import suppress

from cuckoo_mount.cli import client
from cuckoo_mount.config.sizes import human_size
from cuckoo_mount.errors import CuckooError

_CLEAR = "\r\x1b[K"


class SendingLine:
    """A line on stderr that is written over while something is sent; nothing where stderr is no terminal."""

    def __init__(self, *, quiet: bool) -> None:
        self._shows = not quiet and sys.stderr.isatty()

    def __enter__(self) -> SendingLine:
        return self

    def __exit__(self, *_: object) -> None:
        self._write(_CLEAR)

    def update(self, progress: Mapping[str, object]) -> None:
        """Show a progress message of the daemon."""
        if unsent(progress):
            self._write(f"{_CLEAR}sending: {describe(progress)} left")

    def _write(self, text: str) -> None:
        if self._shows:
            sys.stderr.write(text)
            sys.stderr.flush()


def unsent(pending: object) -> bool:
    """Return whether a `pending` record names anything."""
    return isinstance(pending, dict) and any(pending.get(key) for key in ("files", "chunks", "bytes"))


def describe(pending: object) -> str:
    """Return a `pending` record in words: `1.5 GiB in 3 files`."""
    record = pending if isinstance(pending, dict) else {}
    files = record.get("files", 0)
    return f"{human_size(int(record.get('bytes', 0)))} in {files} file{'' if files == 1 else 's'}"


def pending_now(drive: str) -> object:
    """Return what is pending, None if it cannot be asked any more."""
    with suppress(CuckooError):
        return client.ask(drive, "status").get("pending")
    return None

"""Where log lines go: the drive's own file, and stderr for what runs in the foreground.

Used by the daemon and by every command's entry.
"""

from __future__ import annotations

import logging
import sys
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Final

LEVELS: Final = ("debug", "info", "warning", "error")
FILE_MAX_BYTES: Final = 5_000_000
FILES_MAX: Final = 5
_FILE_FORMAT: Final = "%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s"


class _TerminalFormatter(logging.Formatter):
    """`program: message` without traceback, which is for the file (and for --log-level debug)."""

    def __init__(self, *, with_traceback: bool) -> None:
        super().__init__("cuckoo-mount: %(levelname)s: %(message)s")
        self._with_traceback = with_traceback

    def format(self, record: logging.LogRecord) -> str:
        if self._with_traceback or record.exc_info is None:
            return super().format(record)
        plain = logging.makeLogRecord({**record.__dict__, "exc_info": None, "exc_text": None, "stack_info": None})
        return super().format(plain)


class _DriveLog(RotatingFileHandler):
    """The drive's log.  A line for which the disk has no room is lost: logging would print a traceback instead."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (its name is logging's)
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


def log_to_terminal(level: str) -> logging.Handler:
    """Send log lines to stderr, and return the handler that does so."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_TerminalFormatter(with_traceback=level == "debug"))
    _add(handler, level)
    return handler


def log_to_file(path: Path, level: str) -> None:
    """Send log lines to the drive's log, five files of 5 MB.  Raises: OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handler = _DriveLog(
        path, maxBytes=FILE_MAX_BYTES, backupCount=FILES_MAX - 1, encoding="utf-8", errors="backslashreplace"
    )
    handler.setFormatter(logging.Formatter(_FILE_FORMAT))
    _add(handler, level)


def stop_terminal(handler: logging.Handler) -> None:
    """Send nothing more through `handler`."""
    logging.getLogger().removeHandler(handler)


def _add(handler: logging.Handler, level: str) -> None:
    root = logging.getLogger()
    handler.setLevel(level.upper())
    root.addHandler(handler)
    root.setLevel(min(known.level for known in root.handlers if known.level) or logging.INFO)
    # Their debug lines are about themselves and may hold what was sent.
    for other in ("botocore", "boto3", "urllib3", "s3transfer", "dropbox", "asyncio"):
        logging.getLogger(other).setLevel(max(logging.WARNING, root.level))

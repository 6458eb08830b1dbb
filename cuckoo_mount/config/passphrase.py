"""Where a passphrase comes from: a file, standard input, a systemd credential, or the terminal.

Used by commands and the daemon before it goes to the background.  Blocks.  A passphrase is one line; blanks at its ends
belong to it.  It is never logged.
"""

from __future__ import annotations

import getpass
import logging
import os
import stat
import sys
from pathlib import Path
from typing import Final

from cuckoo_mount.config.paths import shown
from cuckoo_mount.errors import ConfigurationError, UsageError
from cuckoo_mount.layers.keyslots import Passphrase

log = logging.getLogger(__name__)
STANDARD_INPUT: Final = "-"
CREDENTIALS_VARIABLE: Final = "CREDENTIALS_DIRECTORY"
"""Set by systemd for a unit with LoadCredential= or LoadCredentialEncrypted=."""
TRIES: Final = 3
_MAX_BYTES: Final = 4096


def read_passphrase(drive: str, file: str | None, *, prompt: str = "Passphrase") -> Passphrase:
    """Return the passphrase of `drive`: from `file` ("-": standard input), else a credential, else the terminal.

    Raises: UsageError (empty, more than a line, no UTF-8), ConfigurationError (no such file, no terminal).
    """
    if file is not None:
        return _from_file(file)
    credential = credential_file(drive)
    if credential is not None:
        return _one_line(_read(credential), shown(credential))
    return _typed(f"{prompt} of drive {drive}: ")


def read_new_passphrase(drive: str, file: str | None) -> Passphrase:
    """Return a passphrase to be set: from `file`, else from the terminal, where it is typed twice.

    Raises: as `read_passphrase`.
    """
    if file is not None:
        return _from_file(file)
    for _ in range(TRIES):
        first = _typed(f"New passphrase of drive {drive}: ")
        if _typed("The same again: ") == first:
            return first
        print("These were not the same.", file=sys.stderr)
    raise UsageError("no passphrase was set: it was not typed twice the same")


def credential_file(drive: str) -> Path | None:
    """Return the systemd credential `cuckoo-<drive>`, else `cuckoo-passphrase`; None if there is none."""
    folder = os.environ.get(CREDENTIALS_VARIABLE, "")
    if not os.path.isabs(folder):
        return None
    files = (Path(folder) / name for name in (f"cuckoo-{drive}", "cuckoo-passphrase"))
    return next((file for file in files if file.is_file()), None)


def _from_file(file: str) -> Passphrase:
    if file == STANDARD_INPUT:
        return _one_line(sys.stdin.buffer.read(_MAX_BYTES + 1), "standard input")
    path = Path(file)
    data = _read(path)
    status = path.stat()
    if stat.S_ISREG(status.st_mode) and stat.S_IMODE(status.st_mode) & 0o077:
        log.warning("other users of this machine may read %s; chmod 600 it", shown(path))
    return _one_line(data, shown(path))


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(f"the passphrase file {shown(path)} cannot be read: {error.strerror}") from error


def _one_line(data: bytes, where: str) -> Passphrase:
    line = data.removesuffix(b"\n").removesuffix(b"\r")
    if not line:
        raise UsageError(f"{where} has no passphrase in it; write one line")
    if len(data) > _MAX_BYTES or b"\n" in line or b"\0" in line:
        raise UsageError(f"{where} has more than one line of up to {_MAX_BYTES} bytes; a passphrase is one line")
    try:
        return Passphrase(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UsageError(f"the passphrase in {where} is no text in UTF-8; write it anew") from error


def _typed(prompt: str) -> Passphrase:
    if not _has_terminal():
        raise ConfigurationError(
            "a passphrase is needed and there is no terminal to ask on; "
            "use --passphrase-file FILE (- is standard input) or a systemd credential cuckoo-passphrase"
        )
    for _ in range(TRIES):
        try:
            if text := getpass.getpass(prompt):
                return Passphrase(text)
        except EOFError:
            break
        print("A passphrase is not empty.", file=sys.stderr)
    raise UsageError("no passphrase was typed")


def _has_terminal() -> bool:
    """Return whether getpass can turn the echo off: it asks the controlling terminal, else standard input."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return sys.stdin is not None and sys.stdin.isatty()
    return True

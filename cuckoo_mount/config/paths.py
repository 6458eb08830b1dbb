"""Where the files of a drive are (design §4, contract; XDG Base Directory Specification 0.8).

Used by everything in config/ and cli/.  Pure but for the environment, `list_drives` and the look at XDG_RUNTIME_DIR.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Final

from attrs import frozen

from cuckoo_mount.errors import UsageError

FOLDER: Final = "cuckoo"
CONFIG_SUFFIX: Final = ".toml"
DRIVE_NAME_MAX: Final = 64
_DRIVE_NAME: Final = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{DRIVE_NAME_MAX - 1}}}", re.ASCII)


@frozen(slots=True, kw_only=True)
class DrivePaths:
    """Every path of one drive.  `state`, `cache`, `data`: folders; the others are files.  None of them need exist.

    `data`: what drives of ours use as clouds on this machine.  `lock`: held by the daemon; says who has it.
    """

    name: str
    config_file: Path
    key_file: Path
    state: Path
    cache: Path
    data: Path
    socket: Path
    log: Path
    lock: Path

    @property
    def metadata(self) -> Path:
        """The drive's metadata, an SQLite file."""
        return self.state / "metadata.sqlite"

    @property
    def folders(self) -> tuple[Path, ...]:
        """The folders that a mountpoint must keep away from; those of other drives included."""
        return (self.config_file.parent, self.state.parent, self.cache.parent, self.data.parent)


def check_drive_name(name: str) -> str:
    """Return `name` if a drive may be called so.  Raises: UsageError.

    It becomes part of file names, of a systemd unit's name and of the mount table.
    """
    if not _DRIVE_NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot name a drive; use up to {DRIVE_NAME_MAX} letters, digits, '.', '_' and '-', "
            "and begin with a letter or digit"
        )
    return name


def drive_paths(name: str) -> DrivePaths:
    """Return the paths of drive `name`.  Raises: UsageError if it cannot be a drive's name."""
    check_drive_name(name)
    config, state = _config_folder(), _base("XDG_STATE_HOME", ".local/state") / FOLDER / name
    return DrivePaths(
        name=name,
        config_file=config / f"{name}{CONFIG_SUFFIX}",
        key_file=config / f"{name}.key",
        state=state,
        cache=_base("XDG_CACHE_HOME", ".cache") / FOLDER / name,
        data=_base("XDG_DATA_HOME", ".local/share") / FOLDER / name,
        socket=_socket_folder(state) / f"{name}.sock",
        log=state / "log" / "cuckoo.log",
        lock=state / "lock",
    )


def list_drives() -> list[str]:
    """Return the names of the drives that have a configuration file here, sorted."""
    try:
        files = [entry.name for entry in _config_folder().iterdir() if entry.is_file()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    names = [file.removesuffix(CONFIG_SUFFIX) for file in files if file.endswith(CONFIG_SUFFIX)]
    return sorted(name for name in names if _DRIVE_NAME.fullmatch(name))


def shown(path: Path | str) -> str:
    """Return a path as it can be printed on one line of a terminal, whatever bytes it has."""
    text = os.fspath(path)
    return text if text.isprintable() else repr(text)


def _config_folder() -> Path:
    return _base("XDG_CONFIG_HOME", ".config") / FOLDER


def _base(variable: str, below_home: str) -> Path:
    # The specification: relative paths are to be ignored.
    value = os.environ.get(variable, "")
    return Path(value) if os.path.isabs(value) else Path.home() / below_home


def _socket_folder(state: Path) -> Path:
    """Return the folder for the control socket: the user's runtime folder if it can be trusted, else `state`.

    After `su` or `sudo` XDG_RUNTIME_DIR may still be the one of another user.
    """
    value = os.environ.get("XDG_RUNTIME_DIR", "")
    if os.path.isabs(value):
        try:
            status = os.stat(value)
        except OSError:
            return state
        if stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid():
            return Path(value) / FOLDER
    return state

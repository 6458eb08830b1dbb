"""Opens `cuckoo://DRIVE` for PyFilesystem, which finds this module through the entry point `fs.opener`.

    cuckoo://default                 the drive; `cuckoo://` is the same
    cuckoo://default/Photos/2026     a folder of it, made with create=True
    cuckoo://default?passphrase_file=/run/secrets/drive    for a drive that has no key file

Used by `fs.open_fs`.  Blocks, for clouds at most some seconds; see `drive.open_drive`.
The drive's lock is held from then on until the file system is closed, so it cannot be mounted meanwhile, nor opened by
another program.  Nothing of the process is changed for it: no umask, no limit, no handler of log lines.
A drive is never made here: somebody has to write its recovery key down, and a typing error must not make one.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Final

from cuckoo_mount.cli.common import drive_argument
from cuckoo_mount.cli.operate import hold_for_command, known_config
from cuckoo_mount.cli.unlocking import find_drive_key
from cuckoo_mount.clouds.fsimport import errors, stand_in
from cuckoo_mount.config import drive_paths
from cuckoo_mount.drive import Drive, open_drive
from cuckoo_mount.errors import ConfigurationError, CuckooError, UsageError
from cuckoo_mount.pyfs.filesystem import CuckooFS
from cuckoo_mount.pyfs.loopthread import wait_for_ending

with stand_in():
    from fs.opener.base import Opener
    from fs.subfs import ClosingSubFS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fs.base import FS
    from fs.opener.parse import ParseResult

DEFAULT_DRIVE: Final = "default"
PASSPHRASE_FILE: Final = "passphrase_file"
_log: Final = logging.getLogger(__name__)


class CuckooOpener(Opener):
    """The opener of drives."""

    protocols = ["cuckoo"]  # noqa: RUF012 (the base class has it so)

    def open_fs(self, fs_url: str, parse_result: ParseResult, writeable: bool, create: bool, cwd: str) -> FS:
        """Open what a URL names; `create`: make the folder in the drive if there is none.

        Raises: CreateFailed with a line that says what to do; ResourceNotFound, DirectoryExpected for the folder.
        """
        try:
            drive, _, folder = _resource(parse_result).partition("/")
            opened = open_drive_fs(drive or DEFAULT_DRIVE, _passphrase_file(parse_result.params))
        except (CuckooError, OSError) as error:
            raise errors.CreateFailed(exc=error) from error
        if not folder.strip("/"):
            return opened
        try:
            if create:
                opened.makedirs(folder, recreate=True)
            return opened.opendir(folder, factory=ClosingSubFS)
        except BaseException:
            opened.close()
            raise


def open_drive_fs(drive: str, passphrase_file: str | None = None) -> CuckooFS:
    """Open drive `drive` of this machine.  `passphrase_file`: for one without a key file.

    Raises: UsageError (no such drive), ConfigurationError (mounted, in use, no key, no clouds), WrongKey,
    MetadataError, OSError.
    """
    wait_for_ending()  # one that was just dropped without close() may be this drive
    paths = drive_paths(drive)
    with ExitStack() as holding:
        holding.enter_context(hold_for_command(paths, _LogReporter()))
        config = known_config(drive)
        if not config.clouds:
            option = drive_argument(drive)
            raise ConfigurationError(f"drive {drive!r} has no clouds; add one: cuckoo cloud add NAME URL{option}")
        key = find_drive_key(config, paths, passphrase_file)
        held = holding.pop_all()
    return CuckooFS(drive, _opening(held, lambda: open_drive(config, paths, key)))


def _opening(
    held: ExitStack, opening: Callable[[], AbstractAsyncContextManager[Drive]]
) -> Callable[[], AbstractAsyncContextManager[Drive]]:
    """Return what opens the drive, and gives the lock back when that is closed, in whatever thread."""

    @asynccontextmanager
    async def opened() -> AsyncIterator[Drive]:
        with held:
            async with opening() as drive:
                yield drive

    return opened


class _LogReporter:
    """Says in the log what commands say on the terminal."""

    def say(self, line: str) -> None:
        _log.info("%s", line)

    def ready(self) -> None:
        pass

    def fail(self, line: str, exit_status: int) -> None:
        pass  # it is raised


def _resource(parsed: ParseResult) -> str:
    if parsed.username is not None or parsed.path is not None:
        raise UsageError("a drive's URL has neither user nor `!`; write cuckoo://DRIVE or cuckoo://DRIVE/FOLDER")
    resource: str = parsed.resource
    return resource


def _passphrase_file(parameters: Mapping[str, str]) -> str | None:
    for name in parameters:
        if name != PASSPHRASE_FILE:
            raise UsageError(f"{name!r} means nothing for a drive; a URL may have ?{PASSPHRASE_FILE}=PATH")
    return parameters.get(PASSPHRASE_FILE)

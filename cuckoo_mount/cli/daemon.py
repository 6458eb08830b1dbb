"""The process behind a mounted drive: checks, going to the background, the loop, and the end.

Used by mount.py and mount_helper.py.  Order: everything that can be refused is refused before the fork, on the
terminal; trio and pyfuse3 start after it.  A bug of ours ends the process with status 1
and leaves the mountpoint attached.
"""

from __future__ import annotations

import logging
import os
import resource
import signal
from pathlib import Path

from attrs import evolve, frozen

from cuckoo_mount.cli.background import Reporter, TerminalReporter, fill_standard_streams, go_to_background
from cuckoo_mount.cli.checks import check_fuse, check_mountpoint, clear_dead_mount, hold_drive
from cuckoo_mount.cli.common import INTERRUPTED, drive_argument, innermost
from cuckoo_mount.cli.lock import DriveLock
from cuckoo_mount.cli.logs import log_to_file, log_to_terminal, stop_terminal
from cuckoo_mount.cli.mounts import real_path
from cuckoo_mount.cli.unlocking import find_drive_key
from cuckoo_mount.cli.views import clear_view, forget_view, view_paths
from cuckoo_mount.config import (
    DriveConfig,
    DrivePaths,
    check_mountpoint_place,
    create_default_drive,
    read_config,
    read_drive_key,
    shown,
    store_mountpoint,
)
from cuckoo_mount.errors import ConfigurationError, CuckooError, NoSpace, UsageError
from cuckoo_mount.layers.recoverykey import recovery_key_of

log = logging.getLogger(__name__)


@frozen(slots=True, kw_only=True)
class MountRequest:
    """What the command line asked for.  `mountpoint` None: the one in the configuration file.

    `passphrase_file`: for a drive without a key file; None: a systemd credential, or the terminal.
    `take_over`, `epoch`: see preparing.Terms.
    """

    paths: DrivePaths
    mountpoint: Path | None
    options: tuple[str, ...]
    foreground: bool
    log_level: str
    passphrase_file: str | None = None
    take_over: bool = False
    epoch: int | None = None


@frozen(slots=True, kw_only=True)
class Prepared:
    """Everything checked: what the loop starts from.  `paths`: of the drive, or of the view of an older epoch."""

    request: MountRequest
    paths: DrivePaths
    config: DriveConfig
    key: bytes
    mountpoint: Path
    lock: DriveLock


def mount_drive(request: MountRequest) -> int:
    """Mount a drive; return when its daemon is ready, or, in the foreground, when it has ended.

    Returns the exit status.  Raises: CuckooError, OSError, before anything was mounted.
    """
    # Before the fork, so that a wrong option is said on the terminal.
    from cuckoo_mount.fuse.options import parse_mount_options

    fill_standard_streams()
    parse_mount_options(request.options)
    reporter: Reporter = TerminalReporter()
    terminal = log_to_terminal(request.log_level if request.foreground else "warning")
    check_fuse()
    os.umask(0o077)
    # An older epoch has a lock, a socket and folders of its own: it can be looked at beside the mounted drive.
    paths = request.paths if request.epoch is None else view_paths(request.paths, request.epoch)
    with hold_drive(paths, reporter) as lock:
        prepared = _prepare(request, paths, lock, reporter)
        log_to_file(paths.log, request.log_level)
        if not request.foreground:
            stop_terminal(terminal)
            reporter = go_to_background(paths.log, keep=[lock.fd, *_log_files()])
        try:
            return _run(prepared, reporter)
        finally:
            if request.epoch is not None:
                clear_view(paths)


def _log_files() -> list[int]:
    handlers = logging.getLogger().handlers
    streams = [handler.stream for handler in handlers if isinstance(handler, logging.FileHandler)]
    return [stream.fileno() for stream in streams if stream is not None]


def _prepare(request: MountRequest, paths: DrivePaths, lock: DriveLock, reporter: Reporter) -> Prepared:
    config = read_config(request.paths)
    if config is None and request.epoch is not None:
        raise UsageError(f"there is no drive {request.paths.name!r} here whose epoch {request.epoch} could be shown")
    noted = config.mountpoint if config is not None and request.epoch is None else None
    asked = request.mountpoint or noted
    if asked is None:
        raise UsageError("where is the drive to be mounted? For example: cuckoo-mount ~/Cuckoo")
    mountpoint = real_path(asked)
    if noted not in (None, mountpoint):
        assert noted is not None
        clear_dead_mount(noted, reporter)
    clear_dead_mount(mountpoint, reporter)
    check_mountpoint_place(mountpoint, paths, config)
    check_mountpoint(mountpoint)
    if config is None:
        config = create_default_drive(paths)
        _introduce(config, paths, reporter)
    if not config.clouds:
        raise ConfigurationError(
            f"drive {paths.name!r} has no clouds; add one: cuckoo cloud add NAME URL{drive_argument(paths.name)}"
        )
    key = find_drive_key(config, request.paths, request.passphrase_file)
    if request.epoch is not None:
        forget_view(paths)
        config = evolve(config, name=paths.name, mountpoint=mountpoint)
    elif store_mountpoint(mountpoint, paths):
        config = evolve(config, mountpoint=mountpoint)
    return Prepared(request=request, paths=paths, config=config, key=key, mountpoint=mountpoint, lock=lock)


def _introduce(config: DriveConfig, paths: DrivePaths, reporter: Reporter) -> None:
    """Three lines on a drive that was just made."""
    cloud = config.clouds[0]
    reporter.say(
        f"Made drive {config.name!r}, encrypted, with one cloud {cloud.name!r}: the folder {shown(cloud.url)}."
    )
    reporter.say(_where_the_keys_are(paths))
    reporter.say("One folder on the same disk is no backup: when this disk dies, the drive dies with it.")


def _where_the_keys_are(paths: DrivePaths) -> str:
    if _is_journal(1):
        # What stands in the journal is read by others, and copied.
        return f"Its key is in {shown(paths.key_file)}; keep its recovery key elsewhere: cuckoo key show-recovery"
    recovery_key = recovery_key_of(read_drive_key(paths.key_file)).shown()
    return (
        f"Its key is in {shown(paths.key_file)}; write down its recovery key and keep it elsewhere, "
        f"without one of the two nothing can be read:\n\n    {recovery_key}\n"
    )


def _is_journal(fd: int) -> bool:
    """Return whether systemd's journal gets what is written to `fd` (systemd.exec(5), JOURNAL_STREAM)."""
    status = os.fstat(fd)
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def _run(prepared: Prepared, reporter: Reporter) -> int:
    """Run the loop to its end; every error becomes a line and an exit status."""
    try:
        # Inside, for nobody sees the stderr of a daemon any more.
        import trio

        from cuckoo_mount.cli.serving import serve

        _raise_file_limit()
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        return trio.run(serve, prepared, reporter)
    except KeyboardInterrupt:
        log.error("interrupted")
        reporter.fail("interrupted", INTERRUPTED)
        return INTERRUPTED
    except BaseException as error:
        inner = innermost(error)
        known = _known_error(inner)
        if known is not None:
            log.error("%s", known, exc_info=error if log.isEnabledFor(logging.DEBUG) else None)
            reporter.fail(str(known), known.exit_status)
            return known.exit_status
        where = shown(prepared.paths.log)
        log.critical("%s: a bug in cuckoo-mount, please report it with %s", type(inner).__name__, where, exc_info=error)
        reporter.fail(f"failed because of a bug ({type(inner).__name__}); see {where}", 1)
        return 1


def _known_error(error: BaseException) -> CuckooError | None:
    """Return an error of the world as one that has an exit status; None when it is a bug."""
    if isinstance(error, OSError):
        is_full = error.errno == NoSpace.errno
        return CuckooError(f"the local disk answered: {error}{'; make room there and try again' if is_full else ''}")
    return error if isinstance(error, CuckooError) else None


def _raise_file_limit() -> None:
    """One descriptor per open file adds up; the usual 1024 would be an EMFILE to programs."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

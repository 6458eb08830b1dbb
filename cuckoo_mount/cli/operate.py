"""One way to run a command on a drive: its daemon does it, or, where none runs, this process opens the drive for it.

Used by the commands that change or look into a drive (cloud, gc, key), after everything that can be refused without the
drive was.  Blocks.  Either way the same handler of commands.DRIVE_COMMANDS runs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from cuckoo_mount.cli import client, common
from cuckoo_mount.cli.background import Reporter, TerminalReporter
from cuckoo_mount.cli.checks import hold_drive
from cuckoo_mount.cli.lock import LockHolder, read_holder
from cuckoo_mount.cli.logs import log_to_file
from cuckoo_mount.config import CloudConfig, DriveConfig, DrivePaths, drive_paths, read_config
from cuckoo_mount.errors import UsageError

Arguments = Mapping[str, object]
Result = Mapping[str, object]


def run_on_drive(
    drive: str,
    command: str,
    *,
    drive_key: bytes | None = None,
    progress: client.Progress | None = None,
    **arguments: object,
) -> Result:
    """Run a command of `commands.DRIVE_COMMANDS` on drive `drive`, mounted or not, and return its result.

    `drive_key`: where the caller has it already; else it is looked for, where need be by asking for a passphrase.
    `progress` is told how far it is, with nothing where the command does not say.  `arguments` have to be JSON; over
    the control socket secrets among them are seen by this user only.
    Raises: UsageError (no such drive), client.DaemonRefused and client.NoAnswer of a mounted one, and of one that is
    not whatever its handler and `open_drive` raise.
    """
    try:
        return client.ask(drive, command, progress, **arguments)
    except client.NotMounted:
        paths = drive_paths(drive)
        with hold_for_command(paths):
            config = known_config(drive)
            key = drive_key if drive_key is not None else _find_key(config, paths)
            os.umask(0o077)
            log_to_file(paths.log, "info")
            return run_opened(config, paths, key, command, arguments, progress)


def known_config(drive: str) -> DriveConfig:
    """Return the configuration of a drive of this machine.  Raises: UsageError, ConfigurationError."""
    config = read_config(drive_paths(drive))
    if config is None:
        raise client.no_drive(drive)
    return config


def named_cloud(name: str, config: DriveConfig) -> CloudConfig:
    """Return the cloud `name` of a drive's configuration.  Raises: UsageError."""
    for cloud in config.clouds:
        if cloud.name == name:
            return cloud
    names = ", ".join(cloud.name for cloud in config.clouds) or "none yet"
    raise UsageError(f"drive {config.name!r} has no cloud {name!r}; its clouds: {names}")


def _find_key(config: DriveConfig, paths: DrivePaths) -> bytes:
    from cuckoo_mount.cli.unlocking import find_drive_key

    return find_drive_key(config, paths)


@contextmanager
def hold_for_command(paths: DrivePaths, reporter: Reporter | None = None) -> Iterator[None]:
    """Hold the drive's lock inside the `with`; whoever meets it is told that a command has it, for now.

    `reporter`: who is told what is waited for; None: the terminal.
    Raises: ConfigurationError that says who has the drive.
    """
    with hold_drive(paths, reporter or TerminalReporter()) as lock:
        before = read_holder(paths.lock)
        place = before.mountpoint if before is not None else None
        # The mountpoint stays: `cuckoo status` says where the drive was mounted last.
        lock.describe(LockHolder(pid=os.getpid(), mountpoint=place, command=True))
        try:
            yield
        finally:
            lock.describe(LockHolder(pid=0, mountpoint=place))


def run_opened(
    config: DriveConfig,
    paths: DrivePaths,
    key: bytes,
    command: str,
    arguments: Arguments,
    progress: client.Progress | None = None,
) -> Result:
    """Open a drive whose lock is held, run a command on it, and close it.  Raises: as `run_on_drive`."""
    # A few 100 ms of imports, which asking a daemon does not need.
    import trio

    try:
        return trio.run(_run_opened, config, paths, key, command, arguments, progress)
    except BaseExceptionGroup as group:
        raise common.innermost(group) from group


async def _run_opened(
    config: DriveConfig,
    paths: DrivePaths,
    key: bytes,
    command: str,
    arguments: Arguments,
    progress: client.Progress | None,
) -> Result:
    import trio

    from cuckoo_mount.cli.commands import caught, run_telling
    from cuckoo_mount.drive import open_drive

    async def tell(values: Result) -> None:
        await trio.lowlevel.checkpoint()
        if progress is not None:
            progress(values)

    async with open_drive(config, paths, key) as drive:
        outcome = await caught(run_telling(drive, command, arguments, tell))
    if isinstance(outcome, Exception):
        raise outcome
    return outcome

"""What commands ask of an open drive, as one table: the daemon answers from it, and so does a command that opens the
drive itself because it is not mounted (see operate.py).

Used by operate.py and serving.py.  Loop only.  Arguments and results are JSON.  Secret values come in as arguments and
go nowhere but to the roster; no error or log line shows one.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar, cast

import trio
from attrs import asdict

from cuckoo_mount.cli import fsckhandlers, keyhandlers, movehandlers, scrubhandlers
from cuckoo_mount.config.files import cloud_of_document
from cuckoo_mount.config.records import CloudConfig
from cuckoo_mount.errors import CloudError, UsageError
from cuckoo_mount.fuse.control import Arguments, Call, Command

if TYPE_CHECKING:
    from cuckoo_mount.drive import Drive

log = logging.getLogger(__name__)
T = TypeVar("T")
STILL_BUSY_S: Final = 2.0
PROGRESS_S: Final = 0.5
_REQUEST: Final = Path("the request")

Result = Mapping[str, object]
Handler = Callable[["Drive", Arguments], Awaitable[Result]]


async def _cloud_add(drive: Drive, arguments: Arguments) -> Result:
    cloud = _cloud(arguments)
    await drive.roster.add(cloud, _secrets(arguments), use=movehandlers.use_in(arguments))
    log.info("cloud %s added", cloud.name)
    return _listed(drive, cloud.name)


async def _cloud_set(drive: Drive, arguments: Arguments) -> Result:
    cloud = _cloud(arguments)
    if arguments.get("use") is not None:
        # First: a drained cloud is not changed before it is used again.
        await drive.roster.use_as(cloud.name, movehandlers.use_in(arguments))
    await drive.roster.change(cloud, _secrets(arguments))
    log.info("cloud %s changed", cloud.name)
    return _listed(drive, cloud.name)


async def _cloud_list(drive: Drive, arguments: Arguments) -> Result:
    await trio.lowlevel.checkpoint()
    return {"clouds": drive.roster.listing()}


async def _cloud_test(drive: Drive, arguments: Arguments) -> Result:
    name = _take(arguments, "name", str)
    try:
        trial = await drive.roster.test(name)
    except CloudError as error:
        return {"name": name, "steps": [], "capabilities": None, "deleted": None, "error": str(error)}
    return {
        "name": name,
        "steps": [asdict(step) for step in trial.steps],
        "capabilities": asdict(trial.capabilities) if trial.capabilities is not None else None,
        "deleted": trial.deleted or None,
        "error": trial.error or None,
    }


async def _cloud_remove(drive: Drive, arguments: Arguments) -> Result:
    name, lost = _take(arguments, "name", str), _take(arguments, "lost", bool)
    if arguments.get("dry_run"):
        return {"name": name, "dry_run": True, **await drive.roster.plan_removal(name)}
    figures = await drive.roster.remove(name, lost=lost)
    log.info("cloud %s removed: %s", name, figures)
    return {"name": name, **figures}


async def _set_drive(drive: Drive, arguments: Arguments) -> Result:
    drive.check_writable()
    if arguments.get("durability") is not None:
        await drive.rules.set_durability(_take(arguments, "durability", str))
    if arguments.get("redundancy") is not None:
        await drive.rules.set_redundancy(_take(arguments, "redundancy", str))
    return drive.rules.status()


async def _gc(drive: Drive, arguments: Arguments) -> Result:
    keep = _take(arguments, "keep", int) if arguments.get("keep") is not None else None
    if arguments.get("dry_run"):
        packs = cast(Mapping[str, int], (await drive.status())["packs"])
        return {"packs": packs["count"], "stored_bytes": packs["stored_bytes"], "live_bytes": packs["live_bytes"]}
    return asdict(await drive.collect(keep=keep))


DRIVE_COMMANDS: Final[dict[str, Handler]] = {
    "change-passphrase": keyhandlers.change_passphrase,
    "cloud-add": _cloud_add,
    "cloud-drain": movehandlers.drain,
    "cloud-list": _cloud_list,
    "cloud-remove": _cloud_remove,
    "cloud-set": _cloud_set,
    "cloud-test": _cloud_test,
    "fsck": fsckhandlers.fsck,
    "gc": _gc,
    "set": _set_drive,
    "rebalance": movehandlers.rebalance,
    "recovery-key-shown": keyhandlers.recovery_key_shown,
    "scrub": scrubhandlers.scrub,
}
PROGRESS: Final[dict[str, Callable[[Drive, Arguments], Result]]] = {
    "cloud-drain": movehandlers.drain_progress,
    "fsck": fsckhandlers.progress,
    "rebalance": movehandlers.rebalance_progress,
    "scrub": scrubhandlers.progress,
}
"""How far a handler of that name is, for those that tell."""


def control_commands(drive: Drive) -> dict[str, Command]:
    """Return the table for the control socket of a mounted drive."""
    return {name: partial(_answer, drive, name) for name in DRIVE_COMMANDS}


async def _answer(drive: Drive, name: str, call: Call) -> Result:
    """Run a handler, and tell the client how far it is, or now and then that it is not forgotten.

    Raises: what the handler does.
    """

    async def tell(progress: Result) -> None:
        await call.progress(**progress)

    return await run_telling(drive, name, call.arguments, tell)


async def run_telling(
    drive: Drive, name: str, arguments: Arguments, tell: Callable[[Result], Awaitable[None]]
) -> Result:
    """Run the handler `name`, and tell how far it is.  Raises: what the handler does."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_keep_telling, drive, name, arguments, tell)
        outcome = await caught(DRIVE_COMMANDS[name](drive, arguments))
        nursery.cancel_scope.cancel()
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


async def caught(work: Awaitable[Result]) -> Result | Exception:
    """Return what a handler returns or raises: a nursery around it would wrap the exception, and it look like a bug."""
    try:
        return await work
    except Exception as error:
        return error


async def _keep_telling(
    drive: Drive, name: str, arguments: Arguments, tell: Callable[[Result], Awaitable[None]]
) -> None:
    progress = PROGRESS.get(name)
    while True:
        await trio.sleep(STILL_BUSY_S if progress is None else PROGRESS_S)
        await tell(progress(drive, arguments) if progress is not None else {})


# -- arguments --


def _take(arguments: Arguments, name: str, kind: type[T]) -> T:
    value = arguments.get(name)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise UsageError(f"{name} has to be of type {kind.__name__}")
    return value


def _cloud(arguments: Arguments) -> CloudConfig:
    return cloud_of_document(cast(Arguments, _take(arguments, "cloud", dict)), _REQUEST)


def _secrets(arguments: Arguments) -> dict[str, str]:
    given = cast(dict[str, object], _take(arguments, "secrets", dict))
    if not all(isinstance(value, str) for value in given.values()):
        raise UsageError("secrets have to be texts")
    return cast(dict[str, str], given)


def _listed(drive: Drive, name: str) -> Result:
    return next((cloud for cloud in drive.roster.listing() if cloud.get("name") == name), {"name": name})

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

from cuckoo_mount.cli import keyhandlers, scrubhandlers
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
Tell = Callable[..., Awaitable[None]]
"""Takes what is to be told as keyword arguments."""


async def _cloud_add(drive: Drive, arguments: Arguments) -> Result:
    cloud = _cloud(arguments)
    await drive.roster.add(cloud, _secrets(arguments))
    log.info("cloud %s added", cloud.name)
    return _listed(drive, cloud.name)


async def _cloud_set(drive: Drive, arguments: Arguments) -> Result:
    cloud = _cloud(arguments)
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
        return {"name": name, "steps": [], "capabilities": None, "error": str(error)}
    return {
        "name": name,
        "steps": [asdict(step) for step in trial.steps],
        "capabilities": asdict(trial.capabilities) if trial.capabilities is not None else None,
        "error": trial.error or None,
    }


async def _cloud_remove(drive: Drive, arguments: Arguments) -> Result:
    name, lost = _take(arguments, "name", str), _take(arguments, "lost", bool)
    figures = await drive.roster.remove(name, lost=lost)
    log.info("cloud %s removed: %s", name, figures)
    return {"name": name, **figures}


async def _gc(drive: Drive, arguments: Arguments) -> Result:
    keep = _take(arguments, "keep", int) if arguments.get("keep") is not None else None
    if arguments.get("dry_run"):
        packs = cast(Mapping[str, int], (await drive.status())["packs"])
        return {"packs": packs["count"], "stored_bytes": packs["stored_bytes"], "live_bytes": packs["live_bytes"]}
    return asdict(await drive.collect(keep=keep))


DRIVE_COMMANDS: Final[dict[str, Handler]] = {
    "change-passphrase": keyhandlers.change_passphrase,
    "cloud-add": _cloud_add,
    "cloud-list": _cloud_list,
    "cloud-remove": _cloud_remove,
    "cloud-set": _cloud_set,
    "cloud-test": _cloud_test,
    "gc": _gc,
    "recovery-key-shown": keyhandlers.recovery_key_shown,
    "scrub": scrubhandlers.scrub,
}


PROGRESS: Final[dict[str, Callable[[Drive], Result]]] = {"scrub": scrubhandlers.progress}
"""Says how far a command is that takes long."""


def control_commands(drive: Drive) -> dict[str, Command]:
    """Return the table for the control socket of a mounted drive."""
    return {name: partial(_answer, name, handler, drive) for name, handler in DRIVE_COMMANDS.items()}


async def _answer(name: str, handler: Handler, drive: Drive, call: Call) -> Result:
    """Run a handler, and tell the client now and then that it is not forgotten.  Raises: what the handler does."""
    outcome = await told(name, handler, drive, call.arguments, call.progress)
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


async def told(name: str, handler: Handler, drive: Drive, arguments: Arguments, tell: Tell) -> Result | Exception:
    """Return what a handler returns or raises; `tell` hears now and then how far it is, where that is known."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_tell_busy, name, drive, tell)
        outcome = await caught(handler(drive, arguments))
        nursery.cancel_scope.cancel()
    return outcome


async def caught(work: Awaitable[Result]) -> Result | Exception:
    """Return what a handler returns or raises: a nursery around it would wrap the exception, and it look like a bug."""
    try:
        return await work
    except Exception as error:
        return error


async def _tell_busy(name: str, drive: Drive, tell: Tell) -> None:
    progress = PROGRESS.get(name)
    while True:
        await trio.sleep(STILL_BUSY_S if progress is None else PROGRESS_S)
        await tell(**(progress(drive) if progress is not None else {}))


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

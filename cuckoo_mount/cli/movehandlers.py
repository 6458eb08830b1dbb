"""What commands ask of an open drive about what its clouds are used for: emptying one, evening them out.

Used by commands.py.  Loop only; see there for arguments and results.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from attrs import asdict

from cuckoo_mount.errors import UsageError
from cuckoo_mount.fuse.control import Arguments
from cuckoo_mount.types import CloudName, CloudUse

if TYPE_CHECKING:
    from cuckoo_mount.drive import Drive

Result = Mapping[str, object]


def use_in(arguments: Arguments) -> CloudUse:
    """Return what a cloud is to be used for; drained is nothing that one can ask for.  Raises: UsageError."""
    value = arguments.get("use")
    for use in (CloudUse.NORMAL, CloudUse.NO_NEW):
        if value in (use.value, None):
            return use
    raise UsageError(f"use is one of normal, no-new, not {value!r}")


def _name(arguments: Arguments) -> str:
    name = arguments.get("name")
    if not isinstance(name, str):
        raise UsageError("name has to be a text")
    return name


async def drain(drive: Drive, arguments: Arguments) -> Result:
    """Say what emptying a cloud means; unless it is a dry run, have that done, and return when it is."""
    name = _name(arguments)
    plan = asdict(await drive.drainer.plan(name))
    if not arguments.get("dry_run"):
        await drive.drainer.begin(name)
        await drive.drainer.wait(name)
    return plan


def drain_progress(drive: Drive, arguments: Arguments) -> Result:
    """Return how far that is."""
    return drive.drainer.progress(CloudName(_name(arguments)))


async def rebalance(drive: Drive, arguments: Arguments) -> Result:
    """Say how full the clouds are and could be; unless it is a dry run, make it so."""
    return await (drive.rebalancer.plan() if arguments.get("dry_run") else drive.rebalancer.run())


def rebalance_progress(drive: Drive, arguments: Arguments) -> Result:
    """Return how far that is."""
    return drive.rebalancer.progress

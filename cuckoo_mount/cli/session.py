"""One mounted drive from the mount to the end: the commands of the control socket, and the orderly way out.

Used by daemon.py.  Loop only.  The ways to end: the command umount, a signal, or somebody else's umount(8); all of them
go through `serve_mount` returning, then `finish`.  What is not on the clouds then stays on the local disk.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Final, Protocol, get_args

import trio
from attrs import define, field

from cuckoo_mount.cli.mounts import MountBusy, mount_at, unmount
from cuckoo_mount.cli.outside import run_outside
from cuckoo_mount.cli.sending import describe_trouble
from cuckoo_mount.config.sizes import human_size
from cuckoo_mount.errors import ConfigurationError, CuckooError, UsageError
from cuckoo_mount.fuse.control import Call, Command
from cuckoo_mount.fuse.guard import Fault, Upcalls
from cuckoo_mount.insisting import PendingCounts, is_unsent, send_all_insisting

log = logging.getLogger(__name__)
GRACE_S: Final = 30.0
"""How long a signal or a foreign umount lets us send on."""
PROGRESS_S: Final = 0.5
STATUS_SCHEMA: Final = 1
TESTING_VARIABLE: Final = "CUCKOO_TESTING"


class ControlledDrive(Protocol):
    """What a session needs of a drive."""

    async def send_all(self) -> None:
        """Return when everything written before is on the clouds."""

    def pending(self) -> PendingCounts:
        """Return what is not."""

    def troubles(self) -> list[dict[str, str]]:
        """Return the clouds that are not well: `name`, `state`, `error`."""

    async def retry_clouds(self) -> None:
        """Ask those clouds now, and send at once to the ones that are back."""

    async def degraded_packs(self) -> int:
        """Return how many packs have too few shares."""

    def epoch(self) -> Mapping[str, object]:
        """Return `epoch` of `status --json`."""

    @property
    def read_only_reason(self) -> str:
        """Why nothing can be written or sent any more; empty: it can."""

    async def status(self) -> dict[str, object]:
        """Return the drive's part of `status --json`."""

    async def check_invariants(self) -> list[str]:
        """Return one line per violated invariant."""

    async def evict_all(self) -> int:
        """Give back all clean chunks; return how many bytes."""


def _detach(mountpoint: Path) -> None:
    """Unmount; that somebody else just did is as good.  Raises: MountBusy, ConfigurationError."""
    try:
        unmount(mountpoint)
    except MountBusy:
        raise
    except ConfigurationError:
        if mount_at(mountpoint) is not None:
            raise


@define(slots=True, eq=False, kw_only=True)
class Session:
    """A drive, where it is mounted, and how it is to end.

    `stop_serving`: ends serve_mount whoever is still in the mount.  `detach`: unmounts if nobody is; blocks.
    `read_only`: mounted with -o ro.
    """

    drive: ControlledDrive
    mountpoint: Path
    read_only: bool
    stop_serving: Callable[[], None]
    detach: Callable[[Path], None] = field(default=_detach)
    upcalls: Upcalls = field(factory=Upcalls)
    grace_s: float = GRACE_S
    ended: trio.Event = field(factory=trio.Event)
    _sending: trio.CancelScope = field(factory=trio.CancelScope)
    _stopping: bool = False
    _unmounted: bool = False

    def take_upcalls(self, upcalls: Upcalls) -> None:
        """Count and inject into these from now on."""
        self.upcalls = upcalls

    def commands(self) -> dict[str, Command]:
        """Return the table for the control socket."""
        table: dict[str, Command] = {"status": self._status, "sync": self._sync, "umount": self._umount}
        if os.environ.get(TESTING_VARIABLE) == "1":
            table |= {"fault": self._fault, "evict": self._evict, "check": self._check}
        return table

    # -- the way out --

    async def stop(self) -> None:
        """Send for at most `GRACE_S`, then unmount, lazily if need be.  A second call ends the sending."""
        if self._stopping or self._unmounted:
            self._sending.cancel()
            return
        self._stopping = True
        log.info("asked to end; sending what is not yet on the clouds, for at most %.0f s", GRACE_S)
        with trio.move_on_after(GRACE_S) as self._sending:
            await self._flush_kernel()
            await self._send_what_goes()
        self.grace_s = 0.0
        try:
            await trio.to_thread.run_sync(self.detach, self.mountpoint)
        except CuckooError as error:
            log.warning("%s; programs that still use it now get errors", error)
            self.stop_serving()

    async def finish(self) -> str:
        """After `serve_mount` returned: send for what is left of the time, and return a line on where everything is."""
        self._unmounted = True
        if is_unsent(self.drive.pending()) and self.grace_s:
            log.info("unmounted; sending what is left, for at most %.0f s", self.grace_s)
            with trio.move_on_after(self.grace_s) as self._sending:
                await self._send_what_goes()
        left = self.drive.pending()
        self.ended.set()
        if not is_unsent(left):
            return "unmounted; everything is on the clouds"
        why = "".join(f"; {describe_trouble(trouble)}" for trouble in self.drive.troubles())
        return f"unmounted; {describe_pending(left)} safely on the local disk, to be sent after the next mount{why}"

    # -- commands --

    async def _status(self, call: Call) -> Mapping[str, object]:
        drive = await self.drive.status()
        if self.read_only:
            drive["state"] = "read-only"
        return {
            "schema": STATUS_SCHEMA,
            "version": program_version(),
            "pid": os.getpid(),
            "mountpoint": str(self.mountpoint),
            **drive,
            "fuse": {
                "upcalls": dict(sorted(self.upcalls.counts.items())),
                "pushes": self.upcalls.pushes,
                "pushed_bytes": self.upcalls.pushed_bytes,
            },
        }

    async def _sync(self, call: Call) -> Mapping[str, object]:
        await self._send_telling(call)
        return {**await self._outcome(), "sent": not self.ended.is_set()}

    async def _umount(self, call: Call) -> Mapping[str, object]:
        wait = call.flag("wait", default=True)
        if wait and not self._unmounted and not self.drive.read_only_reason:
            await self._send_telling(call)
        if not self._unmounted:
            # Before the unmount: finish() comes right after it.
            self.grace_s = GRACE_S if wait else 0.0
            await trio.to_thread.run_sync(self.detach, self.mountpoint)
        elif not wait:
            self._sending.cancel()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tell, call)
            await self.ended.wait()
            nursery.cancel_scope.cancel()
        return {**await self._outcome(), "mountpoint": str(self.mountpoint)}

    async def _outcome(self) -> dict[str, object]:
        """Return what is left to do, and which clouds it waits for."""
        return {
            "pending": _counts(self.drive.pending()),
            "degraded": await self.drive.degraded_packs(),
            "epoch": self.drive.epoch(),
            "troubles": self.drive.troubles(),
        }

    async def _send_telling(self, call: Call) -> None:
        """Send everything, telling the client how far it is; return early when the drive is unmounted meanwhile."""
        failure: Exception | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tell, call)
            nursery.start_soon(self._cancel_at_end, nursery.cancel_scope)
            await self._flush_kernel()
            failure = await self._try_to_send()
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def _send_what_goes(self) -> None:
        """Send everything; clouds that are not well are asked anew meanwhile.  What cannot be sent stays here."""
        failure = await self._try_to_send()
        if isinstance(failure, CuckooError):
            log.warning("not everything was sent: %s", failure)
        elif failure is not None:
            raise failure

    async def _try_to_send(self) -> Exception | None:
        """Return what went wrong: raised here, the nursery around it would wrap it, and it would look like a bug."""
        try:
            await send_all_insisting(self.drive)
        except Exception as error:
            return error
        return None

    async def _cancel_at_end(self, scope: trio.CancelScope) -> None:
        await self.ended.wait()
        scope.cancel()

    async def _tell(self, call: Call) -> None:
        while True:
            await call.progress(**_counts(self.drive.pending()), troubles=self.drive.troubles())
            await trio.sleep(PROGRESS_S)

    async def _flush_kernel(self) -> None:
        """Have the kernel write out what programs wrote and it still keeps.  What fails, the program was or is told."""
        if not await run_outside("sync", "-f", str(self.mountpoint)):
            log.warning("%s: the kernel could not write everything out", self.mountpoint)

    async def _fault(self, call: Call) -> Mapping[str, object]:
        kinds: dict[str, Fault] = {kind: kind for kind in get_args(Fault)}
        kind = call.text("kind")
        if kind not in kinds:
            raise UsageError(f"kind is one of {', '.join(kinds)}")
        self.upcalls.faults[call.text("operation")] = kinds[kind]
        return {}

    async def _evict(self, call: Call) -> Mapping[str, object]:
        return {"bytes": await self.drive.evict_all()}

    async def _check(self, call: Call) -> Mapping[str, object]:
        return {"violated": await self.drive.check_invariants()}


def describe_pending(pending: PendingCounts) -> str:
    """Return what is unsent in words, with its verb."""
    if not pending.bytes:
        changes = "1 change" if pending.changes == 1 else f"{pending.changes} changes"
        return f"{changes} of names and attributes {'is' if pending.changes == 1 else 'are'} not yet on the clouds but"
    files = "1 file" if pending.files == 1 else f"{pending.files} files"
    verb = "is" if pending.files == 1 else "are"
    return f"{human_size(pending.bytes)} of {files} {verb} not yet on the clouds but"


def program_version() -> str:
    """Return the version that was installed."""
    try:
        return metadata.version("cuckoo-mount")
    except metadata.PackageNotFoundError:
        return "0+unknown"


def _counts(pending: PendingCounts) -> dict[str, int]:
    return {"files": pending.files, "chunks": pending.chunks, "bytes": pending.bytes, "changes": pending.changes}

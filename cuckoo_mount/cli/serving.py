"""The daemon's loop: drive, control socket, mount and signals under one nursery, in the order in which they must end.

Used by daemon.py, after the fork.  The mount ends first, then what is left is sent, then the last answers go out, then
the drive closes; whatever raises on the way leaves the mountpoint attached (see fuse/mount.py).
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import trio
from attrs import define, evolve

from cuckoo_mount.cli.background import Reporter, notify_systemd
from cuckoo_mount.cli.commands import control_commands
from cuckoo_mount.cli.daemon import Prepared
from cuckoo_mount.cli.lock import LockHolder
from cuckoo_mount.cli.mounts import mount_at, unmount
from cuckoo_mount.cli.outside import run_outside
from cuckoo_mount.cli.session import Session
from cuckoo_mount.config.paths import shown
from cuckoo_mount.drive import open_drive
from cuckoo_mount.errors import CuckooError
from cuckoo_mount.fuse.control import ControlServer
from cuckoo_mount.fuse.mount import request_stop, serve_mount
from cuckoo_mount.fuse.options import parse_mount_options
from cuckoo_mount.preparing import Terms

log = logging.getLogger(__name__)
ANSWER_DEADLINE_S: Final = 30.0
"""A mount that has not answered its first question for so long is warned of."""
FAREWELL_S: Final = 5.0
"""How long the last answers to commands may take."""


@define(slots=True, eq=False)
class _Ends:
    """What a signal does: before the mount answers it stops everything, afterwards it asks the session to end."""

    nursery: trio.Nursery
    session: Session | None = None

    async def watch(self, signals: AsyncIterator[int]) -> None:
        """Act on every signal, until cancelled."""
        async for number in signals:
            log.info("got %s", signal.Signals(number).name)
            if self.session is None:
                self.nursery.cancel_scope.cancel()
            else:
                notify_systemd("STOPPING=1")
                self.nursery.start_soon(self.session.stop)


async def serve(prepared: Prepared, reporter: Reporter) -> int:
    """Mount, serve until unmounted, and return the exit status.  Raises: whatever made the drive unusable."""
    said = ""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            ends = _Ends(nursery)
            nursery.start_soon(ends.watch, signals)
            said = await _serve_drive(prepared, reporter, ends)
            nursery.cancel_scope.cancel()
    if not said:
        await trio.to_thread.run_sync(_detach, prepared)
        log.error("ended by a signal before the drive was mounted")
        reporter.fail("ended by a signal before the drive was mounted", 1)
        return 1
    if log.isEnabledFor(logging.INFO):
        log.info("%s", said)
    else:
        reporter.say(said)
    return 0


def _detach(prepared: Prepared) -> None:
    """Nobody has seen this mount answer yet, so nobody is misled by the empty folder."""
    if mount_at(prepared.mountpoint) is not None:
        with suppress(CuckooError):
            unmount(prepared.mountpoint, lazy=True)


async def _serve_drive(prepared: Prepared, reporter: Reporter, ends: _Ends) -> str:
    paths, options = prepared.paths, parse_mount_options(prepared.request.options)
    terms = _terms(prepared, read_only=options.read_only)
    async with open_drive(prepared.config, paths, prepared.key, terms) as drive:
        session = Session(
            drive=drive, mountpoint=prepared.mountpoint, read_only=not terms.writing, stop_serving=request_stop
        )
        control = ControlServer(paths.socket, {**session.commands(), **control_commands(drive)})
        async with trio.open_nursery() as nursery:
            await nursery.start(control.run)
            prepared.lock.describe(_holder(prepared, ending=False))
            ready = trio.Event()
            nursery.start_soon(_announce, ready, session, prepared, reporter, ends)
            await serve_mount(
                drive.filesystem,
                prepared.mountpoint,
                drive_name=prepared.config.name,
                options=options if terms.writing else evolve(options, kernel=options.kernel | {"ro"}),
                upcalls_to=session.take_upcalls,
                ready=ready,
            )
            prepared.lock.describe(_holder(prepared, ending=True))
            notify_systemd("STOPPING=1")
            said = await session.finish()
            notify_systemd(f"STATUS={said}")
            with trio.move_on_after(FAREWELL_S):
                await control.wait_until_idle()
            nursery.cancel_scope.cancel()
    return said


def _terms(prepared: Prepared, *, read_only: bool) -> Terms:
    request = prepared.request
    writing = not read_only and request.epoch is None
    return Terms(writing=writing, take_over=request.take_over and writing, epoch=request.epoch)


async def _announce(ready: trio.Event, session: Session, prepared: Prepared, reporter: Reporter, ends: _Ends) -> None:
    """Say that the drive is mounted, once the mount has answered a first question."""
    await ready.wait()
    await _wait_for_answer(prepared.mountpoint)
    ends.session = session
    log.info("drive %s mounted at %s", prepared.config.name, prepared.mountpoint)
    reporter.say(f"Drive {prepared.config.name!r} is mounted at {shown(prepared.mountpoint)}")
    reporter.ready()


async def _wait_for_answer(mountpoint: Path) -> None:
    """Return when the mount has answered; for how long that may take, systemd and people have limits of their own."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_warn_of_silence, mountpoint)
        if not await run_outside("stat", str(mountpoint)):
            log.warning("%s: the first question was answered with an error", mountpoint)
        nursery.cancel_scope.cancel()


async def _warn_of_silence(mountpoint: Path) -> None:
    while True:
        await trio.sleep(ANSWER_DEADLINE_S)
        log.warning("%s has not answered for %.0f s", mountpoint, ANSWER_DEADLINE_S)


def _holder(prepared: Prepared, *, ending: bool) -> LockHolder:
    return LockHolder(pid=os.getpid(), mountpoint=prepared.mountpoint, socket=prepared.paths.socket, ending=ending)

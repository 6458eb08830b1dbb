"""The daemon's control socket: one request per connection, answered by a table of commands.

Used by the daemon; cli/client.py is the other end.  Loop only.  Lines of JSON: the request is
{"command": …, "arguments": {…}}; the replies are zero or more {"progress": {…}}, then one {"result": {…}} or
{"error": "…", "exit": n}.  A client that goes away cancels its command.  Nothing a client sends can harm the daemon:
every exception becomes an error reply.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final, cast

import trio
from attrs import define, field

from cuckoo_mount.errors import ConfigurationError, CuckooError, UsageError
from cuckoo_mount.fuse.controlsocket import LINE_MAX_BYTES, encode_line, listen

log = logging.getLogger(__name__)
REQUEST_DEADLINE_S: Final = 10.0
"""A connection that has not asked by then is closed."""
REPLY_DEADLINE_S: Final = 10.0
CONNECTIONS_MAX: Final = 64

Arguments = Mapping[str, object]


@define(slots=True, eq=False)
class Call:
    """One request: its arguments, and the way to say how far it is."""

    arguments: Arguments = field(repr=False)  # there may be secrets among them
    _stream: trio.SocketStream = field(repr=False)

    async def progress(self, **values: object) -> None:
        """Tell the client how far the command is.  A client that is gone is no error."""
        await _send(self._stream, {"progress": values})

    def flag(self, name: str, *, default: bool) -> bool:
        """Return a yes-or-no argument.  Raises: UsageError."""
        value = self.arguments.get(name, default)
        if not isinstance(value, bool):
            raise UsageError(f"{name} has to be true or false, not {value!r}")
        return value

    def text(self, name: str) -> str:
        """Return a text that has to be given.  Raises: UsageError."""
        value = self.arguments.get(name)
        if not isinstance(value, str):
            raise UsageError(f"{name} has to be a text, not {value!r}")
        return value


Command = Callable[[Call], Awaitable[Mapping[str, object]]]


class ControlServer:
    """The socket at `path` and the commands that it knows."""

    def __init__(self, path: Path, commands: Mapping[str, Command]) -> None:
        self.path: Final = path
        self._commands = commands
        self._open = 0
        self._none_open = trio.Event()
        self._none_open.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Answer until cancelled.  Started once the socket listens.  Raises: ConfigurationError if that fails."""
        try:
            bound = listen(self.path)
        except OSError as error:
            raise ConfigurationError(f"the control socket {self.path} cannot be made: {error}") from error
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(bound))
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(self._serve, listener, nursery)
                task_status.started()
        finally:
            # We hold the drive's lock, so it is ours; before the close, for the name must not outlive the listener.
            self.path.unlink(missing_ok=True)
            bound.close()

    async def wait_until_idle(self) -> None:
        """Return when no connection is open."""
        await self._none_open.wait()

    async def _serve(
        self,
        listener: trio.SocketListener,
        nursery: trio.Nursery,
        *,
        task_status: trio.TaskStatus[list[trio.SocketListener]] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        await trio.serve_listeners(self._serve_one, [listener], handler_nursery=nursery, task_status=task_status)

    async def _serve_one(self, stream: trio.SocketStream) -> None:
        self._open += 1
        self._none_open = trio.Event() if self._open == 1 else self._none_open
        try:
            async with stream:
                if self._open > CONNECTIONS_MAX:
                    await _send(stream, _failure("too many commands at once; try again later"))
                    return
                await self._talk(stream)
        except Exception:
            log.exception("a control connection failed; this is a bug in cuckoo-mount, please report it")
        finally:
            self._open -= 1
            if not self._open:
                self._none_open.set()

    async def _talk(self, stream: trio.SocketStream) -> None:
        line = None
        with trio.move_on_after(REQUEST_DEADLINE_S):
            line = await _receive_line(stream)
        if line is None:
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_when_gone, stream, nursery.cancel_scope)
            reply = await self._answer(line, stream)
            await _send(stream, reply)
            nursery.cancel_scope.cancel()

    async def _answer(self, line: bytes, stream: trio.SocketStream) -> Mapping[str, object]:
        name = "?"
        try:
            name, arguments = _parse(line)
            command = self._commands.get(name)
            if command is None:
                raise UsageError(
                    f"the daemon knows no command {name!r}; is it of another version? Mount the drive anew"
                )
            return {"result": await command(Call(arguments, stream))}
        except CuckooError as error:
            return _failure(str(error), error.exit_status)
        except OSError as error:
            log.error("%s: the local disk answered: %s", name, error)
            return _failure(f"{name} failed: {error}")
        except Exception as error:
            log.exception("command %s failed; this is a bug in cuckoo-mount, please report it", name)
            return _failure(f"{name} failed in the daemon ({type(error).__name__}); the log says more")


def _failure(message: str, exit_status: int = 1) -> dict[str, object]:
    return {"error": message, "exit": exit_status}


def _parse(line: bytes) -> tuple[str, Arguments]:
    try:
        request: object = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError("a request is one line of JSON") from error
    if not isinstance(request, dict):
        raise UsageError("a request is a JSON object")
    name, arguments = request.get("command"), request.get("arguments", {})
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise UsageError('a request has a text "command" and an object "arguments"')
    return name, cast(Arguments, arguments)


async def _receive_line(stream: trio.SocketStream) -> bytes | None:
    """Return the first line without its end; None when the client went away or sent too much."""
    received = bytearray()
    with suppress(trio.BrokenResourceError):
        while data := await stream.receive_some():
            received += data
            line, end, _ = received.partition(b"\n")
            if end:
                return bytes(line)
            if len(received) > LINE_MAX_BYTES:
                return None
    return None


async def _cancel_when_gone(stream: trio.SocketStream, scope: trio.CancelScope) -> None:
    with suppress(trio.BrokenResourceError):
        while await stream.receive_some():
            pass  # nothing may follow the request; what does is dropped
    scope.cancel()


async def _send(stream: trio.SocketStream, message: Mapping[str, object]) -> None:
    """Send one whole line, or none to a client that is gone.  Shielded: half a line would spoil the ones after it."""
    with trio.move_on_after(REPLY_DEADLINE_S, shield=True), suppress(trio.BrokenResourceError):
        await stream.send_all(encode_line(message))

"""The control socket: one request, any number of progress lines, one answer; nothing a client does harms the daemon."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from cuckoo_mount.errors import ConfigurationError, UsageError
from cuckoo_mount.fuse.control import CONNECTIONS_MAX, Call, ControlServer
from cuckoo_mount.fuse.controlsocket import LINE_MAX_BYTES, connect, listen, peer_pid, socket_address


class Commands:
    """Some commands, and what became of the one that waits."""

    def __init__(self) -> None:
        self.waiting = trio.Event()
        self.cancelled = trio.Event()
        self.for_ever = trio.Event()

    async def echo(self, call: Call) -> Mapping[str, object]:
        await call.progress(left=2)
        await call.progress(left=1)
        return dict(call.arguments)

    async def wait(self, call: Call) -> Mapping[str, object]:
        self.waiting.set()
        try:
            await self.for_ever.wait()
        finally:
            self.cancelled.set()
        return {}

    async def refuse(self, call: Call) -> Mapping[str, object]:
        raise UsageError("write it otherwise")

    async def disk(self, call: Call) -> Mapping[str, object]:
        raise OSError(28, "No space left on device")

    async def bug(self, call: Call) -> Mapping[str, object]:
        raise ZeroDivisionError

    async def needs(self, call: Call) -> Mapping[str, object]:
        return {"flag": call.flag("flag", default=True), "text": call.text("text")}


@asynccontextmanager
async def serving(path: Path, commands: Commands | None = None) -> AsyncIterator[ControlServer]:
    known = commands or Commands()
    names = ("echo", "wait", "refuse", "disk", "bug", "needs")
    server = ControlServer(path, {name: getattr(known, name) for name in names})
    async with trio.open_nursery() as nursery:
        await nursery.start(server.run)
        yield server
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def connected(path: Path) -> AsyncIterator[trio.SocketStream]:
    async with trio.SocketStream(trio.socket.from_stdlib_socket(connect(path, 5.0))) as stream:
        yield stream


async def all_of(stream: trio.SocketStream) -> list[dict[str, object]]:
    received = b""
    while data := await stream.receive_some():
        received += data
    return [json.loads(line) for line in received.splitlines()]


async def talk(path: Path, request: bytes) -> list[dict[str, object]]:
    async with connected(path) as stream:
        await stream.send_all(request)
        return await all_of(stream)


async def ask(path: Path, command: str, **arguments: object) -> dict[str, object]:
    request = json.dumps({"command": command, "arguments": arguments}).encode() + b"\n"
    return (await talk(path, request))[-1]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "cuckoo" / "default.sock"


async def test_progress_then_the_result(path: Path) -> None:
    async with serving(path):
        replies = await talk(path, b'{"command": "echo", "arguments": {"a": [1, "\\u00e4"]}}\n')
    assert replies == [{"progress": {"left": 2}}, {"progress": {"left": 1}}, {"result": {"a": [1, "ä"]}}]


async def test_a_request_may_come_in_pieces(path: Path) -> None:
    async with serving(path), connected(path) as stream:
        for piece in (b'{"command"', b': "echo"', b"}", b"\n"):
            await stream.send_all(piece)
            await trio.testing.wait_all_tasks_blocked()
        assert (await all_of(stream))[-1] == {"result": {}}


async def test_socket_is_private_and_goes_with_the_server(path: Path) -> None:
    async with serving(path):
        assert [stat.S_IMODE(os.stat(place).st_mode) for place in (path, path.parent)] == [0o600, 0o700]
    assert os.listdir(path.parent) == []


@pytest.mark.parametrize(
    ("request_line", "says"),
    [
        pytest.param(b"\n", "one line of JSON", id="empty"),
        pytest.param(b"hello\n", "one line of JSON", id="text"),
        pytest.param(b"\xff\xfe\n", "one line of JSON", id="bytes"),
        pytest.param(b"[" * 100_000 + b"\n", "one line of JSON", id="deep"),
        pytest.param(b"[]\n", "JSON object", id="list"),
        pytest.param(b"{}\n", 'text "command"', id="no-command"),
        pytest.param(b'{"command": 1}\n', 'text "command"', id="command-type"),
        pytest.param(b'{"command": "echo", "arguments": []}\n', '"arguments"', id="arguments-type"),
        pytest.param(b'{"command": "nix"}\n', "knows no command 'nix'", id="unknown"),
        pytest.param(b'{"command": "needs", "arguments": {"flag": 1, "text": ""}}\n', "true or false", id="flag"),
        pytest.param(b'{"command": "needs"}\n', "text has to be a text, not None", id="text-missing"),
    ],
)
async def test_a_bad_request_is_answered(request_line: bytes, says: str, path: Path) -> None:
    async with serving(path):
        (reply,) = await talk(path, request_line)
        assert says in str(reply["error"])
        assert reply["exit"] == 2
        assert await ask(path, "echo", still="there") == {"result": {"still": "there"}}


async def test_errors_keep_their_exit_status(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(path):
        assert await ask(path, "refuse") == {"error": "write it otherwise", "exit": 2}
        disk = await ask(path, "disk")
        assert "No space left" in str(disk["error"])
        assert disk["exit"] == 1
        assert not [record for record in caplog.records if record.exc_info]
        bug = await ask(path, "bug")
        assert "ZeroDivisionError" in str(bug["error"])
        assert bug["exit"] == 1
        assert [record.exc_info is not None for record in caplog.records if "bug in cuckoo-mount" in record.message]
        assert await ask(path, "echo") == {"result": {}}


async def test_a_client_that_goes_away_cancels_its_command_only(path: Path) -> None:
    commands = Commands()
    async with serving(path, commands) as server:
        async with connected(path) as stream:
            await stream.send_all(b'{"command": "wait"}\n')
            await commands.waiting.wait()
        await commands.cancelled.wait()
        await server.wait_until_idle()
        assert await ask(path, "echo") == {"result": {}}


async def test_the_server_is_idle_only_when_all_connections_are_closed(path: Path) -> None:
    async with serving(path) as server:
        await server.wait_until_idle()
        async with connected(path), connected(path) as second:
            await second.send_all(b'{"command": "echo"}\n')
            await all_of(second)
            with trio.move_on_after(0.01) as scope:
                await server.wait_until_idle()
            assert scope.cancelled_caught
        await server.wait_until_idle()


async def test_a_client_that_asks_nothing_is_closed(path: Path, autojump_clock: trio.testing.MockClock) -> None:
    async with serving(path), connected(path) as stream:
        assert await all_of(stream) == []


async def test_a_line_without_end_is_cut(path: Path) -> None:
    async with serving(path), connected(path) as stream:
        with pytest.raises(trio.BrokenResourceError):
            await stream.send_all(b"x" * (10 * LINE_MAX_BYTES))


async def test_too_many_at_once_are_told_so(path: Path) -> None:
    commands = Commands()
    async with serving(path, commands), AsyncExitStack() as streams:
        for _ in range(CONNECTIONS_MAX):
            commands.waiting = trio.Event()
            stream = await streams.enter_async_context(connected(path))
            await stream.send_all(b'{"command": "wait"}\n')
            await commands.waiting.wait()
        (reply,) = await talk(path, b"")
        assert "too many" in str(reply["error"])


# -- where the socket is --


def test_a_dead_daemons_socket_is_replaced_and_a_live_ones_is_not(path: Path) -> None:
    first = listen(path)
    with pytest.raises(FileExistsError, match="another program answers"):
        listen(path)
    first.close()
    assert path.exists()
    listen(path).close()


async def test_a_live_socket_is_a_line_and_not_a_bug(path: Path) -> None:
    async with serving(path):
        with pytest.RaisesGroup(ConfigurationError):
            async with serving(path):
                pass
        assert await ask(path, "echo") == {"result": {}}


@pytest.mark.parametrize("length", [90, 107, 108, 250])
def test_long_paths_work(length: int, tmp_path: Path) -> None:
    folder = tmp_path
    while len(str(folder)) < length:
        folder /= "f" * min(200, length - len(str(folder)))
    place = folder / "default.sock"
    with listen(place), connect(place, 5.0) as connection, socket_address(place) as address:
        assert len(address) <= 107
        assert peer_pid(connection) == os.getpid()


def test_the_folder_may_hold_more_than_utf8(tmp_path: Path) -> None:
    place = tmp_path / os.fsdecode(b"\xff") / "s"
    with listen(place), connect(place, 5.0):
        pass


def test_descriptors_are_given_back(tmp_path: Path) -> None:
    place = tmp_path / ("f" * 200) / "default.sock"
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        listen(place).close()
        with pytest.raises(ConnectionRefusedError):
            connect(place, 5.0)
        place.unlink()
        with pytest.raises(FileNotFoundError):
            connect(place, 5.0)
    assert len(os.listdir("/proc/self/fd")) == before

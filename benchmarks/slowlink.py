"""A TCP proxy on this machine that makes a near server behave like a far one.

    slowlink.py LISTEN_PORT TARGET_PORT [--rtt-ms 20] [--mbit 0]

The first byte of every response is held back for the round-trip time, counted from the last byte of the request: that
is what a client of a distant object store sees.  `--mbit` also caps each direction of the whole link.
On SIGUSR1 it prints its counters as one line of JSON: `requests`, `turnarounds` (round trips paid: two for a PUT with
Expect: 100-continue), bytes `up` and `down`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import socket
import time
from collections import Counter
from contextlib import suppress

_METHODS = (b"GET ", b"HEAD ", b"PUT ", b"POST ", b"DELETE ")
_BLOCK = 256 * 1024


class Throttle:
    """One direction of the whole link, in bytes per second; 0 means unlimited."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._free_at = 0.0

    async def take(self, count: int) -> None:
        """Return when the link has carried `count` bytes more."""
        if not self._rate:
            return
        now = time.monotonic()
        self._free_at = max(self._free_at, now) + count / self._rate
        await asyncio.sleep(self._free_at - now)


class Link:
    """All connections through the proxy, and what they have cost so far."""

    def __init__(self, target_port: int, rtt_s: float, rate: float) -> None:
        self.counts: Counter[str] = Counter(requests=0, turnarounds=0, up=0, down=0)
        self._target_port = target_port
        self._rtt_s = rtt_s
        self._up, self._down = Throttle(rate), Throttle(rate)

    async def serve(self, client: socket.socket) -> None:
        """Carry one connection to its end."""
        loop = asyncio.get_running_loop()
        server = socket.socket()
        server.setblocking(False)
        try:
            await loop.sock_connect(server, ("127.0.0.1", self._target_port))
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = _Connection(self, client, server)
            await asyncio.gather(connection.carry_up(self._up), connection.carry_down(self._down, self._rtt_s))
        finally:
            client.close()
            server.close()


class _Connection:
    """`_asked_at`: when the last byte of a request that has no answer yet went by."""

    def __init__(self, link: Link, client: socket.socket, server: socket.socket) -> None:
        self._counts = link.counts
        self._client, self._server = client, server
        self._asked_at: float | None = None

    async def carry_up(self, throttle: Throttle) -> None:
        loop = asyncio.get_running_loop()
        with suppress(OSError):
            while data := await loop.sock_recv(self._client, _BLOCK):
                # HTTP/1.1 without pipelining: a request begins a segment.
                self._counts["requests"] += data.startswith(_METHODS)
                self._counts["up"] += len(data)
                self._asked_at = time.monotonic()
                await throttle.take(len(data))
                await loop.sock_sendall(self._server, data)
        _close_half(self._server)

    async def carry_down(self, throttle: Throttle, rtt_s: float) -> None:
        loop = asyncio.get_running_loop()
        with suppress(OSError):
            while data := await loop.sock_recv(self._server, _BLOCK):
                if self._asked_at is not None:
                    left = self._asked_at + rtt_s - time.monotonic()
                    self._asked_at = None
                    self._counts["turnarounds"] += 1
                    await asyncio.sleep(max(left, 0.0))
                self._counts["down"] += len(data)
                await throttle.take(len(data))
                await loop.sock_sendall(self._client, data)
        _close_half(self._client)


def _close_half(end: socket.socket) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_WR)


async def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("listen_port", type=int)
    parser.add_argument("target_port", type=int)
    parser.add_argument("--rtt-ms", type=float, default=20)
    parser.add_argument("--mbit", type=float, default=0)
    options = parser.parse_args()
    link = Link(options.target_port, options.rtt_ms / 1e3, options.mbit * 125_000)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, lambda: print(json.dumps(link.counts), flush=True))
    listener = socket.create_server(("127.0.0.1", options.listen_port), backlog=512)
    listener.setblocking(False)
    carried: set[asyncio.Task[None]] = set()
    while True:
        client, _ = await loop.sock_accept(listener)
        client.setblocking(False)
        task = asyncio.create_task(link.serve(client))
        carried.add(task)
        task.add_done_callback(carried.discard)


if __name__ == "__main__":
    asyncio.run(_main())

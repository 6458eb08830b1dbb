"""A proxy on loopback for any protocol over TCP, which breaks connections when it is told to.

    with tcp_proxy(server.port) as proxy:
        cloud = open_cloud(server.settings(port=proxy.port))
        proxy.cut_after(up_bytes=100_000)

For tests; standard library only.  One thread per direction of a connection; methods may be called by any thread.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Final

_HOST: Final = "127.0.0.1"
_PIECE_BYTES: Final = 1 << 14
_RECEIVED_BYTES: Final = 1 << 16


class TcpProxy:
    """A running proxy in front of the server at `port`."""

    def __init__(self, port: int) -> None:
        """Listen on a free loopback port and begin to serve.  Raises: OSError."""
        self._upstream: Final = port
        self._listener: Final = socket.create_server((_HOST, 0))
        self._lock: Final = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._left: dict[str, int | None] = {"up": None, "down": None}
        self._closed: Final = threading.Event()
        self._up_bytes_per_s: float | None = None
        self._connections = 0
        self._start(self._accept)

    @property
    def port(self) -> int:
        """Where it listens."""
        found: int = self._listener.getsockname()[1]
        return found

    @property
    def connections(self) -> int:
        """Connections that were made since the start."""
        return self._connections

    def cut_after(self, *, up_bytes: int | None = None, down_bytes: int | None = None) -> None:
        """Break all connections once that many more bytes have come from clients, or from the server; None: never."""
        with self._lock:
            self._left = {"up": up_bytes, "down": down_bytes}

    def slow_down(self, up_bytes_per_s: float) -> None:
        """Take no more than that from clients, of connections that are made from now on."""
        # Else the kernel would take some MiB at once, whatever comes after.
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVED_BYTES)
        self._up_bytes_per_s = up_bytes_per_s

    def drop(self) -> None:
        """Break all connections there are."""
        with self._lock:
            for connection in self._sockets:
                with contextlib.suppress(OSError):  # not connected any more
                    connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End all connections and threads."""
        self._closed.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self.drop()
        for thread in list(self._threads):
            thread.join()
        self._listener.close()

    def _start(self, target: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # it was shut down
                return
            self._connections += 1
            try:
                server = socket.create_connection((_HOST, self._upstream))
            except OSError:  # the server is down: so is this
                client.close()
                continue
            with self._lock:
                self._sockets |= {client, server}
            self._start(self._pass_on, client, server, "up")
            self._start(self._pass_on, server, client, "down")

    def _pass_on(self, source: socket.socket, target: socket.socket, direction: str) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(_PIECE_BYTES):
                with self._lock:
                    left = self._left[direction]
                    if left is not None:
                        self._left[direction] = max(0, left - len(data))
                if left is not None and left <= len(data):
                    target.sendall(data[:left])
                    break
                target.sendall(data)
                if direction == "up" and self._up_bytes_per_s is not None:
                    self._closed.wait(len(data) / self._up_bytes_per_s)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        with self._lock:
            self._sockets.discard(source)
        source.close()  # each thread closes the one it reads; the other sees that as an OSError


@contextlib.contextmanager
def tcp_proxy(port: int) -> Iterator[TcpProxy]:
    """Give a running proxy, and close it afterwards; see `TcpProxy`."""
    with contextlib.closing(TcpProxy(port)) as proxy:
        yield proxy

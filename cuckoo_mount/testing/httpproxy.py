"""An HTTP proxy on loopback that counts what reaches a server, and breaks what it is told to break.

    with http_proxy(server.endpoint_url) as proxy:
        cloud = open_cloud(server.settings(endpoint_url=proxy.endpoint_url))
        proxy.break_requests(Fault("cut_reply", methods=("GET",), times=1))
        assert proxy.counts().requests == {"PUT": 1}

For tests; standard library only.  It passes bytes on unchanged, the `Host` header too, and reads just enough of
HTTP/1.1 to know where requests and replies end, so that signatures stay valid (seen with rclone, weed, juicefs gateway,
moto and boto3).  A client gets one connection to the server for each of its own, kept as long; when the server closes
it while nothing is asked, the client's is closed.  Clients that want TLS get it here; the server is asked without.  One
thread per connection; methods may be called by any thread.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Final
from urllib.parse import urlsplit

from attrs import define, field, frozen, validators

from cuckoo_mount.testing.httpwire import Head, HttpStream

_ACTIONS: Final = ("cut_request", "cut_reply", "delay", "drop", "hang", "stall_reply", "status")
_BACKLOG: Final = 128


@frozen(slots=True)
class Fault:
    """What is done to some requests.

    `action`: `cut_request` passes half of the body on and closes both connections; `cut_reply` gives the head and half
    of the body of the reply; `stall_reply` the same, and keeps the connection; `drop` closes without an answer and
    without asking the server; `hang` never answers; `delay` waits `seconds` before the server is asked; `status`
    answers with `status` and the S3 error `code`, or `body`, itself, and with `retry_after`, unless that is empty.
    `methods`: all if empty.  `match`: part of the target (path and query).  The first `skip` requests it matches go
    through, the next `times` (None: all) are broken.
    """

    action: str = field(validator=validators.in_(_ACTIONS))
    methods: tuple[str, ...] = field(default=(), kw_only=True)
    match: str = field(default="", kw_only=True)
    times: int | None = field(default=None, kw_only=True)
    skip: int = field(default=0, kw_only=True)
    status: int = field(default=503, kw_only=True)
    code: str = field(default="SlowDown", kw_only=True)
    retry_after: str = field(default="1", kw_only=True)
    body: str | None = field(default=None, kw_only=True)
    content_type: str = field(default="application/json", kw_only=True)
    seconds: float = field(default=0.0, kw_only=True)


@define
class _Limit:
    """A limit of requests per second: `stock` more are taken at once, `burst` at most."""

    per_s: float
    burst: float
    rejection: Fault
    stock: float
    filled_at_s: float

    def takes(self) -> bool:
        """Count a request; return whether it is within the limit."""
        now_s = time.monotonic()
        self.stock = min(self.burst, self.stock + (now_s - self.filled_at_s) * self.per_s)
        self.filled_at_s = now_s
        if self.stock < 1.0:
            return False
        self.stock -= 1.0
        return True


@frozen(slots=True)
class Counts:
    """What came by: requests by method, bytes from and to clients with heads, requests that were broken on purpose."""

    requests: dict[str, int]
    bytes_up: int
    bytes_down: int
    broken: int

    @property
    def total(self) -> int:
        """Requests of any method."""
        return sum(self.requests.values())


class HttpProxy:
    """A running proxy in front of the server at `upstream_url` (`http://host:port`); `tls`: what clients get."""

    def __init__(self, upstream_url: str, *, tls: ssl.SSLContext | None = None) -> None:
        """Listen on a free loopback port and begin to serve.  Raises: OSError."""
        parts = urlsplit(upstream_url)
        self._tls: Final = tls
        self._upstream: Final = (str(parts.hostname), int(parts.port or 80))
        self._listener: Final = socket.create_server(("127.0.0.1", 0), backlog=_BACKLOG)
        self._lock: Final = threading.Lock()
        self._closed: Final = threading.Event()
        self._sockets: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._faults: list[Fault] = []
        self._limit: _Limit | None = None
        self._matched: Counter[int] = Counter()
        self._log: list[Head] = []
        self._bytes_up = self._bytes_down = self._broken = 0
        self._start(self._accept, self._listener)

    @property
    def port(self) -> int:
        """Where it listens."""
        found: int = self._listener.getsockname()[1]
        return found

    @property
    def endpoint_url(self) -> str:
        """What a client is told instead of the server's URL."""
        return f"http{'s' if self._tls is not None else ''}://127.0.0.1:{self.port}"

    def break_requests(self, *faults: Fault) -> None:
        """Break requests from now on as `faults` say, instead of what was said before; the first that acts decides."""
        with self._lock:
            self._faults = list(faults)
            self._matched.clear()

    def limit_requests(self, per_s: float | None, *, burst: float = 1.0, status: int = 503, retry_after: str) -> None:
        """Reject what is more than `per_s` requests per second, and `burst` at once; None: nothing.

        Rejected requests count as broken.  `retry_after`: the header in these answers; empty: without.
        """
        with self._lock:
            rejection = Fault("status", status=status, retry_after=retry_after)
            self._limit = None if per_s is None else _Limit(per_s, burst, rejection, burst, time.monotonic())

    def counts(self) -> Counts:
        """Return what came by since the start or `reset`.  A request counts once its head has come."""
        with self._lock:
            methods = Counter(head.method for head in self._log)
            return Counts(dict(methods), self._bytes_up, self._bytes_down, self._broken)

    def requests(self) -> list[tuple[str, str]]:
        """Return (method, target) of every request since the start or `reset`, in order."""
        return [(head.method, head.target) for head in self.heads()]

    def heads(self) -> list[Head]:
        """Return the head of every request since the start or `reset`, in order."""
        with self._lock:
            return list(self._log)

    def reset(self) -> None:
        """Count from zero."""
        with self._lock:
            self._log.clear()
            self._bytes_up = self._bytes_down = self._broken = 0

    def close(self) -> None:
        """End all connections and threads.  May be called twice."""
        self._closed.set()
        with self._lock:
            for connection in (self._listener, *self._sockets):
                with contextlib.suppress(OSError):  # not connected any more
                    connection.shutdown(socket.SHUT_RDWR)
            threads = list(self._threads)
        for thread in threads:
            thread.join()
        self._listener.close()

    def _start(self, target: Callable[[socket.socket], None], connection: socket.socket) -> None:
        thread = threading.Thread(target=target, args=(connection,), daemon=True)
        with self._lock:
            self._threads = [*filter(threading.Thread.is_alive, self._threads), thread]
            thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while not self._closed.is_set():
            try:
                client, _ = listener.accept()
            except OSError:  # it was shut down
                return
            self._start(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        # A connection that breaks is what this is for; the client sees it close.
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            if self._tls is not None:
                client = self._tls.wrap_socket(client, server_side=True, do_handshake_on_connect=False)
            stream = stack.enter_context(self._streaming(client))
            _Connection(self, stream, lambda: stack.enter_context(self._streaming(self._connect()))).serve()

    def _connect(self) -> socket.socket:
        return socket.create_connection(self._upstream)

    @contextlib.contextmanager
    def _streaming(self, connection: socket.socket) -> Iterator[HttpStream]:
        with connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._sockets.add(connection)
            try:
                if self._closed.is_set():  # close() may not have known of it
                    raise ConnectionAbortedError
                if isinstance(connection, ssl.SSLSocket):
                    connection.do_handshake()
                yield HttpStream(connection)
            finally:
                with self._lock:
                    self._sockets.discard(connection)

    def note_request(self, head: Head) -> Fault | None:
        """Count a request, and return what is to be done to it.  For connections of this proxy."""
        with self._lock:
            self._log.append(head)
            self._bytes_up += len(head.raw)
            for number, fault in enumerate(self._faults):
                if (fault.methods and head.method not in fault.methods) or fault.match not in head.target:
                    continue
                self._matched[number] += 1
                nth = self._matched[number] - fault.skip
                if nth > 0 and (fault.times is None or nth <= fault.times):
                    self._broken += 1
                    return fault
            if self._limit is not None and not self._limit.takes():
                self._broken += 1
                return self._limit.rejection
        return None

    def note_bytes(self, *, up: int = 0, down: int = 0) -> None:
        """Count bytes.  For connections of this proxy."""
        with self._lock:
            self._bytes_up += up
            self._bytes_down += down

    def wait(self, seconds: float) -> None:
        """Return after `seconds`, or when the proxy is closed."""
        self._closed.wait(seconds)


@contextlib.contextmanager
def http_proxy(upstream_url: str) -> Iterator[HttpProxy]:
    """Give a running proxy, and close it afterwards; see `HttpProxy`."""
    with contextlib.closing(HttpProxy(upstream_url)) as proxy:
        yield proxy


class _Connection:
    """A client's connection, and, once it has asked for something that the server is to answer, one to the server."""

    def __init__(self, proxy: HttpProxy, client: HttpStream, connect: Callable[[], HttpStream]) -> None:
        self._proxy = proxy
        self._client = client
        self._connect = connect
        self._upstream: HttpStream | None = None

    def serve(self) -> None:
        """Pass requests on until either side closes.  Raises: OSError, to the same effect."""
        while (head := self._next_request()) is not None:
            if not self._handle(head, self._proxy.note_request(head)):
                return

    def _next_request(self) -> Head | None:
        if self._upstream is not None and not self._client.has_more:
            ready, _, _ = select.select([self._client.socket, self._upstream.socket], [], [])
            if self._client.socket not in ready:  # the server has closed: it has nothing to say unasked
                return None
        return self._client.read_head()

    def _handle(self, head: Head, fault: Fault | None) -> bool:
        """Answer a request.  Returns whether the connection can be used for another."""
        action = "" if fault is None else fault.action
        if fault is None or action in ("cut_reply", "delay", "stall_reply"):
            if fault is not None:
                self._proxy.wait(fault.seconds)
            goes_on = self._pass_on(head, cut=action in ("cut_reply", "stall_reply"))
            if action == "stall_reply":
                self._client.drain()
            return goes_on
        if action == "status":
            for piece in self._client.request_body(head):
                self._proxy.note_bytes(up=len(piece))
            self._to_client(_error_reply(fault))
            return not head.closes
        if action == "cut_request":
            self._cut_request(head)
        elif action == "hang":
            self._client.drain()
        return False

    def _pass_on(self, head: Head, *, cut: bool) -> bool:
        upstream = self._server()
        upstream.send(head.raw)
        reply = None
        if "expect" in head.headers:
            reply = upstream.read_head()
            if reply is None or reply.status != 100:
                self._reply(head, reply, cut=cut)
                return False
            self._to_client(reply.raw)
        taken = self._pass_body_on(head, upstream)
        reply = upstream.read_head()
        while reply is not None and reply.status < 200:
            self._to_client(reply.raw)
            reply = upstream.read_head()
        return self._reply(head, reply, cut=cut) and taken

    def _pass_body_on(self, head: Head, upstream: HttpStream) -> bool:
        """Return whether the server took it; one that refuses a request may answer and close before its end."""
        for piece in self._client.request_body(head):
            self._proxy.note_bytes(up=len(piece))
            try:
                upstream.send(piece)
            except OSError:
                return False
        return True

    def _reply(self, head: Head, reply: Head | None, *, cut: bool) -> bool:
        if reply is None:
            return False
        upstream = self._server()
        self._to_client(reply.raw)
        left = (reply.length_bytes or 0) // 2
        for piece in upstream.reply_body(reply, head.method):
            self._to_client(piece[:left] if cut else piece)
            left -= len(piece)
            if cut and left <= 0:
                return False
        return not (cut or reply.closes or head.closes or reply.reply_ends_with_connection(head.method))

    def _cut_request(self, head: Head) -> None:
        upstream = self._server()
        upstream.send(head.raw)
        left = (head.length_bytes or 0) // 2
        for piece in self._client.request_body(head):
            self._proxy.note_bytes(up=len(piece))
            upstream.send(piece[:left])
            left -= len(piece)
            if left <= 0:
                return

    def _server(self) -> HttpStream:
        if self._upstream is None:
            self._upstream = self._connect()
        return self._upstream

    def _to_client(self, data: bytes) -> None:
        self._proxy.note_bytes(down=len(data))
        self._client.send(data)


def _error_reply(fault: Fault) -> bytes:
    content_type = "application/xml" if fault.body is None else fault.content_type
    xml = (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{fault.code}</Code>'
        f"<Message>{fault.code} on purpose</Message></Error>"
    )
    body = (xml if fault.body is None else fault.body).encode()
    pause = f"Retry-After: {fault.retry_after}\r\n" if fault.retry_after else ""
    head = (
        f"HTTP/1.1 {fault.status} On Purpose\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(body)}\r\n{pause}\r\n"
    )
    return head.encode() + body

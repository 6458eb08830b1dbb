"""The proxy for tests passes everything on unchanged, counts it, and breaks what it is told to."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection, HTTPException, IncompleteRead
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from cuckoo_mount.testing.httpproxy import Fault, HttpProxy, http_proxy

BODY = bytes(range(256)) * 1000


class Echo(BaseHTTPRequestHandler):
    """Answers GET with BODY (in chunks for /chunked, without a length for /open), PUT with what it was given."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        if self.path == "/chunked":
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY))
        elif self.path == "/open":
            self.end_headers()
            self.wfile.write(BODY)
            self.close_connection = True
        else:
            self._answer(BODY)

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self._answer(data)

    def _answer(self, data: bytes) -> None:
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base class calls it so
        """Say nothing."""


@pytest.fixture
def proxy() -> Iterator[HttpProxy]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Echo) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        with http_proxy(f"http://127.0.0.1:{server.server_port}") as running:
            yield running
        server.shutdown()
        thread.join()


@pytest.fixture
def client(proxy: HttpProxy) -> Iterator[HTTPConnection]:
    with contextlib.closing(HTTPConnection("127.0.0.1", proxy.port, timeout=30)) as connection:
        yield connection


def ask(client: HTTPConnection, method: str, target: str, data: bytes | None = None) -> tuple[int, bytes]:
    client.request(method, target, data)
    with client.getresponse() as answer:
        return answer.status, answer.read()


@pytest.mark.parametrize("target", ["/", "/chunked", "/open"])
def test_answers_come_unchanged(client: HTTPConnection, target: str) -> None:
    for _ in range(3):
        assert ask(client, "GET", target) == (200, BODY)


def test_one_connection_serves_many_requests(proxy: HttpProxy, client: HTTPConnection) -> None:
    client.connect()
    kept = client.sock
    for _ in range(3):
        assert ask(client, "PUT", "/a", BODY) == (200, BODY)
        assert ask(client, "HEAD", "/a") == (200, b"")
    assert client.sock is kept
    counts = proxy.counts()
    assert (counts.requests, counts.total, counts.broken) == ({"PUT": 3, "HEAD": 3}, 6, 0)
    assert 3 * len(BODY) < counts.bytes_up < 3 * len(BODY) + 2000
    assert 3 * len(BODY) < counts.bytes_down < 3 * len(BODY) + 2000
    assert proxy.requests() == [("PUT", "/a"), ("HEAD", "/a")] * 3
    proxy.reset()
    assert (proxy.counts().total, proxy.counts().bytes_up, proxy.counts().bytes_down) == (0, 0, 0)


def test_many_connections_at_once(proxy: HttpProxy) -> None:
    def work(_: int) -> bool:
        with contextlib.closing(HTTPConnection("127.0.0.1", proxy.port, timeout=30)) as connection:
            return all(ask(connection, "PUT", "/", BODY) == (200, BODY) for _ in range(5))

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(work, range(16)))
    assert proxy.counts().requests == {"PUT": 80}


def test_a_status_of_its_own(proxy: HttpProxy, client: HTTPConnection) -> None:
    proxy.break_requests(Fault("status", status=429, code="SlowDown", times=1))
    status, body = ask(client, "PUT", "/", BODY)
    assert status == 429
    assert b"<Code>SlowDown</Code>" in body
    assert ask(client, "PUT", "/", b"x") == (200, b"x")
    assert proxy.counts().broken == 1


def test_which_requests_are_broken(proxy: HttpProxy, client: HTTPConnection) -> None:
    proxy.break_requests(Fault("status", methods=("PUT",), match="/p", skip=1, times=2))
    asked = [("PUT", "/p"), ("GET", "/p"), ("PUT", "/q"), ("PUT", "/p"), ("PUT", "/p"), ("PUT", "/p")]
    answers = [ask(client, method, target, b"x" if method == "PUT" else None)[0] for method, target in asked]
    assert answers == [200, 200, 200, 503, 503, 200]


def test_an_answer_is_cut(proxy: HttpProxy, client: HTTPConnection) -> None:
    proxy.break_requests(Fault("cut_reply", times=1))
    with pytest.raises(IncompleteRead) as caught:
        ask(client, "GET", "/")
    assert caught.value.partial == BODY[: len(BODY) // 2]
    client.close()
    assert ask(client, "GET", "/") == (200, BODY)


@pytest.mark.parametrize("action", ["drop", "cut_request"])
def test_the_connection_is_closed(proxy: HttpProxy, client: HTTPConnection, action: str) -> None:
    proxy.break_requests(Fault(action, times=1))
    with pytest.raises((HTTPException, OSError)):
        ask(client, "PUT", "/", BODY)
    client.close()
    assert ask(client, "PUT", "/", BODY) == (200, BODY)


def test_a_hang_ends_with_the_client_or_the_proxy(proxy: HttpProxy) -> None:
    proxy.break_requests(Fault("hang"))
    with contextlib.closing(HTTPConnection("127.0.0.1", proxy.port, timeout=0.05)) as client:
        with pytest.raises(TimeoutError):
            ask(client, "GET", "/")
        client.close()
        client.request("GET", "/")
        proxy.close()
        with pytest.raises((HTTPException, OSError)):
            client.getresponse()

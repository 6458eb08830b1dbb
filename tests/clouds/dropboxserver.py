"""A Dropbox on loopback: the HTTP API with TLS, as far as the driver asks for it, for the real SDK.

    with dropbox_server(tmp_path) as server:
        cloud = open_cloud(server.settings(server.fresh_folder()))
        server.logins.expire()
        assert server.asked("files/upload") == 1

Arguments, results and errors are read and written by the SDK's own serializers, so that their shapes are those of the
API; what the service does with them is in dropboxaccount.py and dropboxtokens.py, and an emulation.  In front of it is
a proxy that speaks TLS, counts and breaks requests.  One thread per connection; methods may be called by any thread.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import secrets
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import parse_qsl

from attrs import frozen
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from dropbox import auth, files, users
from stone.backends.python_rsrc import stone_serializers

from cuckoo_mount.clouds.base import CloudSettings
from cuckoo_mount.testing.httpproxy import HttpProxy
from tests.clouds.dropboxaccount import Account, BadRequest, Failure
from tests.clouds.dropboxtokens import Logins

HOST: Final = "127.0.0.1"
_JSON: Final = "application/json"
_encode: Final = cast(Callable[[object, object], str], stone_serializers.json_encode)
_decode: Final = cast(Callable[[object, str], Any], stone_serializers.json_decode)


@frozen
class _Answer:
    status: int
    body: bytes
    headers: Mapping[str, str]


_READ, _WRITE, _LOOK, _ACCOUNT = "files.content.read", "files.content.write", "files.metadata.read", "account_info.read"
# By the path below /2/: the SDK's route, the permission it takes, the method of Account.
_ROUTES: Final[dict[str, tuple[Any, str, str]]] = {
    "files/upload": (files.upload, _WRITE, "upload"),
    "files/download": (files.download, _READ, "download"),
    "files/get_metadata": (files.get_metadata, _LOOK, "get_metadata"),
    "files/create_folder_v2": (files.create_folder_v2, _WRITE, "create_folder_v2"),
    "files/delete_v2": (files.delete_v2, _WRITE, "delete_v2"),
    "files/delete_batch": (files.delete_batch, _WRITE, "delete_batch"),
    "files/delete_batch/check": (files.delete_batch_check, _WRITE, "delete_batch_check"),
    "files/list_folder": (files.list_folder, _LOOK, "list_folder"),
    "files/list_folder/continue": (files.list_folder_continue, _LOOK, "list_folder_continue"),
    "files/upload_session/start": (files.upload_session_start, _WRITE, "upload_session_start"),
    "files/upload_session/append_v2": (files.upload_session_append_v2, _WRITE, "upload_session_append_v2"),
    "files/upload_session/finish": (files.upload_session_finish, _WRITE, "upload_session_finish"),
    "users/get_space_usage": (users.get_space_usage, _ACCOUNT, "get_space_usage"),
}
_WRITES: Final = frozenset(path for path, (_, scope, _) in _ROUTES.items() if scope == _WRITE)


class DropboxServer:
    """A running emulation.  `account`, `logins`: what it has; `proxy`: through which it is asked."""

    def __init__(self, folder: Path) -> None:
        """Listen on free loopback ports, with a certificate of its own in `folder`."""
        self.account: Final = Account()
        self.logins: Final = Logins()
        self.refresh_token = self.logins.log_in()
        self.knows_ranges = True
        self.ca_file: Final = folder / "dropbox.pem"
        self._lock: Final = threading.Lock()
        self._asked: list[tuple[str, str]] = []
        self._rejections: list[_Answer] = []
        self._connections: set[socket.socket] = set()
        self._listen(0)
        self.proxy: Final = HttpProxy(f"http://{HOST}:{self._server.server_port}", tls=_new_certificate(self.ca_file))

    @property
    def options(self) -> str:
        """What stands in the URL of a cloud there, after the `?`."""
        return f"app_key={self.logins.app_key}&server={HOST}:{self.proxy.port}&ca_file={self.ca_file}"

    def url(self, folder: str) -> str:
        """Return the URL of a cloud, without a login."""
        return f"dropbox://{folder or '/'}?{self.options}"

    def settings(self, folder: str, *, name: str = "dropbox", timeout_s: float = 30.0) -> CloudSettings:
        """Return what opens a cloud there."""
        secrets_given = (("refresh_token", self.refresh_token),)
        return CloudSettings(name=name, url=self.url(folder), secrets=secrets_given, timeout_s=timeout_s)

    def fresh_folder(self) -> str:
        """Make a folder for one test."""
        folder = f"/Test-{secrets.token_hex(6)}"
        self.account.make_folder(folder)
        return folder

    def log_in(self) -> str:
        """Have a new login, and return its token."""
        self.refresh_token = self.logins.log_in()
        return self.refresh_token

    def asked(self, route: str, path: str = "") -> int:
        """Return how often a route was asked for, with `path` in its argument, since the start or `reset`."""
        with self._lock:
            return sum(asked == route and path in argument for asked, argument in self._asked)

    def requests(self) -> dict[str, int]:
        """Return how often each route was asked for."""
        with self._lock:
            return {
                route: sum(asked == route for asked, _ in self._asked) for route in {each for each, _ in self._asked}
            }

    def reset(self) -> None:
        """Count from zero."""
        with self._lock:
            self._asked.clear()
        self.proxy.reset()

    def reject_writes(self, times: int, retry_after_s: int) -> None:
        """Answer the next writes with "too many" as the service does."""
        reason = auth.RateLimitReason.too_many_write_operations
        error = _encode(auth.RateLimitError_validator, auth.RateLimitError(reason, retry_after_s))
        body = f'{{"error_summary": "too_many_write_operations/..", "error": {error}}}'.encode()
        headers = {"Content-Type": _JSON, "Retry-After": str(retry_after_s)}
        with self._lock:
            self._rejections = [_Answer(429, body, headers)] * times

    def restart(self) -> None:
        """End the server and all its connections, and start it again; the files stay."""
        port = self._server.server_port
        self._end()
        self._listen(port)

    def close(self) -> None:
        """End it."""
        self.proxy.close()
        self._end()

    def _listen(self, port: int) -> None:
        outer = self

        class Handler(_Handler):
            server_of = outer

        self._server = ThreadingHTTPServer((HOST, port), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def _end(self) -> None:
        self._server.shutdown()
        self._thread.join()
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            with contextlib.suppress(OSError):  # not connected any more
                connection.shutdown(socket.SHUT_RDWR)
        self._server.server_close()

    # --- for connections ----------------------------------------------------------------------------------------------

    def note_connection(self, connection: socket.socket, *, open_: bool) -> None:
        with self._lock:
            (self._connections.add if open_ else self._connections.discard)(connection)

    def answer(self, path: str, headers: Mapping[str, str], body: bytes) -> _Answer:
        """Answer one request."""
        if path == "/oauth2/token":
            self._note("oauth2/token", "")
            found = self.logins.answer(dict(parse_qsl(body.decode())))
            return _Answer(found.status, found.body, {"Content-Type": _JSON})
        route_path = path.removeprefix("/2/")
        if route_path not in _ROUTES:
            return _text(404, f"Unknown API function: {route_path!r}")
        route, scope, method = _ROUTES[route_path]
        style = route.attrs["style"]
        argument = body.decode() if style == "rpc" else headers.get("dropbox-api-arg", "")
        self._note(route_path, argument)
        if (refusal := self._refusal(headers.get("authorization", ""), scope)) is not None:
            return refusal
        with self._lock:
            if route_path in _WRITES and self._rejections:
                return self._rejections.pop()
        try:
            decoded = _decode(route.arg_type, argument)
            with self.account.lock:
                ask = getattr(self.account, method)
                given = [] if decoded is None else [decoded]
                result = ask(*given, body) if style == "upload" else ask(*given)
        except BadRequest as wrong:
            return _text(400, str(wrong))
        except Failure as failure:
            error = _encode(route.error_type, failure.error)
            summary = json.loads(error)[".tag"]
            return _Answer(
                409, f'{{"error_summary": "{summary}/..", "error": {error}}}'.encode(), {"Content-Type": _JSON}
            )
        if style != "download":
            return _Answer(200, _encode(route.result_type, result).encode(), {"Content-Type": _JSON})
        metadata, content = result
        described = {"Dropbox-API-Result": _encode(route.result_type, metadata)}
        return _content(content, headers.get("range", "") if self.knows_ranges else "", described)

    def _note(self, route: str, argument: str) -> None:
        with self._lock:
            self._asked.append((route, argument))

    def _refusal(self, authorization: str, scope: str) -> _Answer | None:
        allowed = self.logins.scopes_of(authorization.removeprefix("Bearer "))
        if isinstance(allowed, str):
            error = _encode(auth.AuthError_validator, getattr(auth.AuthError, allowed))
            summary = allowed
        elif scope not in allowed:
            missing = auth.AuthError.missing_scope(auth.TokenScopeError(scope))
            error, summary = _encode(auth.AuthError_validator, missing), "missing_scope"
        else:
            return None
        body = f'{{"error_summary": "{summary}/...", "error": {error}}}'
        return _Answer(401, body.encode(), {"Content-Type": _JSON})


def _text(status: int, text: str) -> _Answer:
    return _Answer(status, text.encode(), {"Content-Type": "text/plain; charset=utf-8"})


def _content(content: bytes, wanted: str, headers: Mapping[str, str]) -> _Answer:
    described = {**headers, "Content-Type": "application/octet-stream", "Accept-Ranges": "bytes"}
    if not wanted:
        return _Answer(200, content, described)
    first, last = (int(text) for text in wanted.removeprefix("bytes=").split("-"))
    if first >= len(content):
        return _text(416, "Requested range not satisfiable")
    part = content[first : last + 1]
    return _Answer(206, part, {**described, "Content-Range": f"bytes {first}-{first + len(part) - 1}/{len(content)}"})


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server_of: DropboxServer

    def setup(self) -> None:
        super().setup()
        self.server_of.note_connection(self.connection, open_=True)

    def finish(self) -> None:
        self.server_of.note_connection(self.connection, open_=False)
        with contextlib.suppress(OSError):  # it was broken on purpose
            super().finish()

    def handle(self) -> None:
        with contextlib.suppress(OSError):
            super().handle()

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(length)
        if len(body) < length:  # it was cut: nothing is stored
            self.close_connection = True
            return
        headers = {key.lower(): value for key, value in self.headers.items()}
        answer = self.server_of.answer(self.path, headers, body)
        self.send_response(answer.status)
        for key, value in answer.headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def _new_certificate(path: Path) -> ssl.SSLContext:
    """Return what a server with a new certificate for loopback needs; write the certificate to `path`."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a Dropbox on loopback")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=2))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(HOST))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    both = path.with_suffix(".key.pem")
    both.write_bytes(
        path.read_bytes()
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(both)
    return context


@contextlib.contextmanager
def dropbox_server(folder: Path) -> Iterator[DropboxServer]:
    """Give a running emulation, and end it afterwards; `folder`: for its certificate."""
    with contextlib.closing(DropboxServer(folder)) as server:
        yield server

"""As much of HTTP/1.1 as a proxy needs: heads, and where bodies end.  Used by httpproxy.py only.

Bytes are kept as they came.  A stream is used by one thread at a time; its calls block until the other end sends,
closes, or the socket is shut down.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Final

from attrs import frozen

_PIECE_BYTES: Final = 1 << 16
_HEAD_MAX_BYTES: Final = 1 << 16
_WITHOUT_BODY: Final = frozenset({204, 304})


@frozen(slots=True)
class Head:
    """First line and headers of a request or reply: `raw` as on the wire, `words` of the line, lower-case `headers`."""

    raw: bytes
    words: tuple[str, ...]
    headers: dict[str, str]

    @property
    def method(self) -> str:
        """Of a request."""
        return self.words[0]

    @property
    def target(self) -> str:
        """Of a request: path and query."""
        return self.words[1]

    @property
    def status(self) -> int:
        """Of a reply."""
        return int(self.words[1])

    @property
    def chunked(self) -> bool:
        return "chunked" in self.headers.get("transfer-encoding", "").lower()

    @property
    def length_bytes(self) -> int | None:
        """Size of the body, where the head says it."""
        text = self.headers.get("content-length")
        return None if self.chunked or text is None else int(text)

    @property
    def closes(self) -> bool:
        """Whether the connection ends after this."""
        return "close" in self.headers.get("connection", "").lower()

    def reply_ends_with_connection(self, method: str) -> bool:
        """Whether this reply to a request of `method` has a body whose end is that of the connection."""
        return self.reply_has_body(method) and not self.chunked and self.length_bytes is None

    def reply_has_body(self, method: str) -> bool:
        return method != "HEAD" and self.status >= 200 and self.status not in _WITHOUT_BODY


class HttpStream:
    """One end of a connection.  Raises: OSError (ConnectionError for an end in the middle of something)."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket: Final = connection
        self._buffer = b""

    @property
    def has_more(self) -> bool:
        """Whether bytes have been read from the socket that nobody has asked for yet."""
        return bool(self._buffer)

    def send(self, data: bytes) -> None:
        """Send all of `data`."""
        self.socket.sendall(data)

    def read_head(self) -> Head | None:
        """Return the next head, or None if the other end closed before it."""
        while b"\r\n\r\n" not in self._buffer:
            if not self._fill():
                if self._buffer:
                    raise ConnectionError("closed within a head")
                return None
            if len(self._buffer) > _HEAD_MAX_BYTES:
                raise ConnectionError("not HTTP")
        text, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        first, *lines = text.decode("latin-1").split("\r\n")
        pairs = (line.partition(":") for line in lines)
        return Head(
            text + b"\r\n\r\n", tuple(first.split(" ", 2)), {key.lower(): value.strip() for key, _, value in pairs}
        )

    def request_body(self, head: Head) -> Iterator[bytes]:
        """Yield the body of a request in pieces, with the marks of a chunked one."""
        return self._chunks() if head.chunked else self._exactly(head.length_bytes or 0)

    def reply_body(self, head: Head, method: str) -> Iterator[bytes]:
        """Yield the body of a reply to a request of `method`, in pieces."""
        if not head.reply_has_body(method):
            return iter(())
        if head.chunked:
            return self._chunks()
        return self._rest() if head.length_bytes is None else self._exactly(head.length_bytes)

    def drain(self) -> None:
        """Take what comes, until the other end closes."""
        while self._fill():
            self._buffer = b""

    def _chunks(self) -> Iterator[bytes]:
        while True:
            line = self._line()
            yield line
            size = int(line.partition(b";")[0], 16)
            if not size:
                break
            yield from self._exactly(size + 2)
        while line != b"\r\n":
            line = self._line()
            yield line

    def _exactly(self, size_bytes: int) -> Iterator[bytes]:
        while size_bytes:
            if not self._buffer and not self._fill():
                raise ConnectionError("closed within a body")
            piece, self._buffer = self._buffer[:size_bytes], self._buffer[size_bytes:]
            size_bytes -= len(piece)
            yield piece

    def _rest(self) -> Iterator[bytes]:
        while self._buffer or self._fill():
            piece, self._buffer = self._buffer, b""
            yield piece

    def _line(self) -> bytes:
        while b"\r\n" not in self._buffer:
            if not self._fill():
                raise ConnectionError("closed within a body")
        line, _, self._buffer = self._buffer.partition(b"\r\n")
        return line + b"\r\n"

    def _fill(self) -> bool:
        data = self.socket.recv(_PIECE_BYTES)
        self._buffer += data
        return bool(data)

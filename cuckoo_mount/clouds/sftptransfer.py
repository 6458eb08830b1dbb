"""Bytes through SFTP with many packets on their way, all answers looked at.  Used by sftp.py.

paramiko's own pipelined writing drops the server's errors, and its prefetching starts a thread for every read (its
source); so these two go one step below `SFTPFile`, by `_async_request` and `_read_response` of `SFTPClient`, which are
the same in paramiko 3 to 5.  A client is used by one thread at a time; calls block up to its channel's timeout for each
packet.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import paramiko

PACKET_BYTES: Final = 32 << 10
"""What every server takes."""
PACKETS_MAX: Final = 64
"""Packets on their way: 2 MiB, which is also the window of a channel."""


class _Answers:
    """Takes the place of a file in paramiko: is given every answer to the requests that were made for it."""

    def __init__(self, sftp: paramiko.SFTPClient) -> None:
        self._sftp = sftp
        self._waiting = 0
        self._come: deque[tuple[int, int, paramiko.Message]] = deque()

    def ask(self, kind: int, *arguments: object) -> int:
        """Send a request; return its number."""
        self._waiting += 1
        number: int = self._sftp._async_request(self, kind, *arguments)
        return number

    @property
    def waiting(self) -> int:
        """Requests without an answer."""
        return self._waiting

    def next(self) -> tuple[int, bytes | None]:
        """Return the number of an answer and its data, None where the server says end of file, b"" for success.

        Raises: OSError for what the server refused.
        """
        from paramiko.sftp import CMD_DATA, CMD_STATUS

        while not self._come:
            self._sftp._read_response()
        number, kind, message = self._come.popleft()
        self._waiting -= 1
        if kind == CMD_DATA:
            return number, message.get_string()
        if kind != CMD_STATUS:
            raise OSError(f"answer of an unexpected kind ({kind})")
        try:
            self._sftp._convert_status(message)
        except EOFError:
            return number, None
        return number, b""

    def _async_response(self, kind: int, message: paramiko.Message, number: int) -> None:
        """Called by paramiko."""
        self._come.append((number, kind, message))


def write_all(sftp: paramiko.SFTPClient, file: paramiko.SFTPFile, data: bytes) -> None:
    """Write `data` from the start of the open `file`, and close it.

    Raises: OSError if the server refused anything; EOFError, SSHException, TimeoutError when the connection broke.
    """
    from paramiko.sftp import CMD_CLOSE, CMD_WRITE, int64

    answers, view = _Answers(sftp), memoryview(data)
    for start in range(0, len(data), PACKET_BYTES):
        if answers.waiting >= PACKETS_MAX:
            answers.next()
        answers.ask(CMD_WRITE, file.handle, int64(start), bytes(view[start : start + PACKET_BYTES]))
    while answers.waiting:
        answers.next()
    # Not file.close(), which keeps to itself what the server says: a quota may be noticed here.
    file._closed = True
    answers.ask(CMD_CLOSE, file.handle)
    answers.next()


def read_part(sftp: paramiko.SFTPClient, file: paramiko.SFTPFile, offset: int, length_bytes: int) -> bytes:
    """Return `length_bytes` bytes of the open `file` from `offset`, fewer only if it ends before.

    Raises: as `write_all`.
    """
    from paramiko.sftp import CMD_READ, int64

    answers, found = _Answers(sftp), bytearray(length_bytes)
    asked: dict[int, tuple[int, int]] = {}
    wanted = deque((start, min(PACKET_BYTES, length_bytes - start)) for start in range(0, length_bytes, PACKET_BYTES))
    end = length_bytes
    while wanted or answers.waiting:
        while wanted and answers.waiting < PACKETS_MAX:
            start, size = wanted.popleft()
            asked[answers.ask(CMD_READ, file.handle, int64(offset + start), size)] = start, size
        number, data = answers.next()
        start, size = asked.pop(number)
        if not data:
            end = min(end, start)
            continue
        found[start : start + len(data)] = data
        if len(data) < size:  # a server may give less than was asked for, also before the end
            wanted.append((start + len(data), size - len(data)))
    return bytes(memoryview(found)[:end])

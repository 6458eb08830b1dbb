"""Where the daemon's control socket is bound and reached, however long its path is.

Used by control.py and by the client in cli/, which must start quickly: nothing big is imported here.
A socket's address has 107 bytes at most; a longer path is spoken to through its folder's /proc/self/fd entry.
Source: unix(7).
"""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

ADDRESS_MAX_BYTES: Final = 107
LINE_MAX_BYTES: Final = 1 << 20
"""A request or reply is one line of JSON, and no longer than this."""


@contextmanager
def socket_address(path: Path) -> Iterator[str]:
    """Give an address for `path` that fits into a sockaddr_un, valid inside the `with`.  Raises: OSError."""
    if len(os.fsencode(path)) <= ADDRESS_MAX_BYTES:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def connect(path: Path, timeout_s: float) -> socket.socket:
    """Return a connection to the daemon.  Raises: FileNotFoundError, ConnectionRefusedError and other OSError."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(timeout_s)
        with socket_address(path) as address:
            connection.connect(address)
    except BaseException:
        connection.close()
        raise
    return connection


def listen(path: Path) -> socket.socket:
    """Return a listening socket at `path`, 0600, in place of one that a dead daemon left.

    Raises: FileExistsError if somebody answers there; OSError.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        connect(path, timeout_s=1.0).close()
    except (FileNotFoundError, ConnectionRefusedError):
        path.unlink(missing_ok=True)
    else:
        raise FileExistsError(f"another program answers at {path}")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with socket_address(path) as address:
            listener.bind(address)
        # Nobody can connect before listen().
        os.chmod(path, 0o600)
        listener.listen()
    except BaseException:
        listener.close()
        raise
    return listener


def encode_line(message: Mapping[str, object]) -> bytes:
    """Return a message as it goes over the socket."""
    return json.dumps(message).encode("ascii") + b"\n"


def peer_pid(connection: socket.socket) -> int:
    """Return the process id of the daemon at the other end; 0 when it lies in a namespace that we cannot see."""
    size = struct.calcsize("3i")
    pid, _, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return int(pid)

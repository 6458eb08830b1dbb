"""One logged-in FTP connection, and what servers' replies mean.  Used by ftp.py.  One thread at a time; blocks."""

from __future__ import annotations

import ftplib
import socket
import ssl
from contextlib import closing, suppress
from io import BytesIO
from typing import Final

from cuckoo_mount.clouds.base import CloudSettings
from cuckoo_mount.clouds.remoteplace import RemotePlace
from cuckoo_mount.clouds.walking import Entry
from cuckoo_mount.errors import CloudError, CloudFull, CloudNeedsLogin, CloudRefused, CloudUnavailable, UsageError

CA_FILE: Final = "ca_file"
CONNECT_TIMEOUT_S: Final = 10.0
ANONYMOUS: Final = "anonymous"
_PORT: Final = 21
_BLOCK_BYTES: Final = 256 << 10
_REPLIES_MAX: Final = 4
_KINDS: Final[dict[int, type[CloudError]]] = {
    430: CloudNeedsLogin,
    452: CloudFull,
    530: CloudNeedsLogin,
    532: CloudNeedsLogin,
    534: CloudRefused,
    550: CloudRefused,
    552: CloudFull,
    553: CloudRefused,
}
_CLOSING: Final = 421
_UNKNOWN: Final = frozenset({500, 501, 502, 504})


class _SecureFtp(ftplib.FTP_TLS):
    """With encrypted data connections that continue the session of the first: many servers insist on it."""

    def ntransfercmd(self, cmd: str, rest: int | str | None = None) -> tuple[socket.socket, int | None]:
        connection, size = ftplib.FTP.ntransfercmd(self, cmd, rest)
        session = self.sock.session if isinstance(self.sock, ssl.SSLSocket) else None
        try:
            return self.context.wrap_socket(connection, server_hostname=self.host, session=session), size
        except BaseException:
            connection.close()
            raise


def reply_code(error: BaseException) -> int:
    """Return the code of a reply that refuses something, 0 for any other trouble, after which nothing can be asked."""
    if not isinstance(error, (ftplib.error_temp, ftplib.error_perm)):
        return 0
    text = str(error)[:3]
    code = int(text) if text.isdecimal() else 0
    return 0 if code == _CLOSING else code


def kind_of_reply(code: int) -> type[CloudError]:
    """Return the class of error that a reply stands for."""
    return _KINDS.get(code, CloudUnavailable)


class FtpSession:
    """A connection.  Methods raise ftplib's errors, EOFError and OSError."""

    def __init__(self, settings: CloudSettings, place: RemotePlace, context: ssl.SSLContext | None) -> None:
        """Connect and log in; `context`: encrypt everything.  Raises: the same."""
        timeout_s = min(settings.timeout_s, CONNECT_TIMEOUT_S)
        self._ftp = ftplib.FTP() if context is None else _SecureFtp(context=context)
        try:
            self._ftp.connect(place.host, place.port or _PORT, timeout_s)
            if self._ftp.sock is not None:
                self._ftp.sock.settimeout(settings.timeout_s)
            self._ftp.timeout = settings.timeout_s
            self._ftp.login(place.user or ANONYMOUS, place.password or "")
            if isinstance(self._ftp, _SecureFtp):
                self._ftp.prot_p()
            self._ftp.voidcmd("TYPE I")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End it, without a word to the server; may be called twice."""
        with suppress(OSError):
            self._ftp.close()

    def __del__(self) -> None:
        # Of a cloud that was forgotten without close(), as the registry does.
        self.close()

    def store(self, path: str, data: bytes) -> None:
        """Store `data` as file `path`, in place."""
        self._ftp.storbinary(f"STOR {path}", BytesIO(data), _BLOCK_BYTES)

    def read(self, path: str) -> bytes:
        """Return file `path`, of which a part may be missing."""
        parts: list[bytes] = []
        self._ftp.retrbinary(f"RETR {path}", parts.append, _BLOCK_BYTES)
        return b"".join(parts)

    def read_part(self, path: str, offset: int, length_bytes: int) -> bytes:
        """Return `length_bytes` bytes of file `path`, or fewer: it ended, or the connection did."""
        parts = []
        connection, _ = self._ftp.ntransfercmd(f"RETR {path}", offset)
        with closing(connection):
            while length_bytes and (data := connection.recv(min(length_bytes, _BLOCK_BYTES))):
                parts.append(data)
                length_bytes -= len(data)
        if length_bytes:
            self._ftp.voidresp()
        else:
            self._pass_over_replies()
        return b"".join(parts)

    def _pass_over_replies(self) -> None:
        """Read what the server says of a transfer that was ended by us: one reply or two, good or bad."""
        # The first one before anything is asked: some servers answer that while they are still sending.
        with suppress(ftplib.error_temp, ftplib.error_perm):
            self._ftp.getresp()
        self._ftp.putcmd("NOOP")
        for _ in range(_REPLIES_MAX):
            with suppress(ftplib.error_temp, ftplib.error_perm):
                if self._ftp.getresp().startswith("200"):
                    return
        raise EOFError("the server's replies do not match what was asked")

    def size(self, path: str) -> int | None:
        """Return the size of file `path` in bytes, None where the server does not know the question."""
        try:
            return self._ftp.size(path)
        except ftplib.error_perm as error:
            if reply_code(error) in _UNKNOWN:
                return None
            raise

    def is_folder(self, path: str) -> bool:
        """Return whether `path` is a folder that can be entered."""
        try:
            self._ftp.cwd(path)
        except (ftplib.error_temp, ftplib.error_perm) as error:
            if not reply_code(error):
                raise
            return False
        return True

    def make_folder(self, path: str) -> None:
        """Make folder `path`; one that exists is refused."""
        self._ftp.mkd(path)

    def remove(self, path: str) -> None:
        """Remove file `path`."""
        self._ftp.delete(path)

    def rename(self, old: str, new: str) -> None:
        """Rename a file over what is there, if anything is."""
        try:
            self._ftp.rename(old, new)
        except (ftplib.error_temp, ftplib.error_perm) as error:
            if not reply_code(error):
                raise
            with suppress(ftplib.error_temp, ftplib.error_perm):
                self._ftp.delete(new)  # there are servers that do not rename over a file
            self._ftp.rename(old, new)

    def entries(self, path: str) -> list[Entry]:
        """Return what lies directly in folder `path`."""
        try:
            listed = list(self._ftp.mlsd(path))
        finally:
            self._ftp.voidcmd("TYPE I")  # ftplib changes it to text, in which sizes and bytes are others
        found = []
        for name, facts in listed:
            kind = facts.get("type", "").lower()
            name = name.rstrip("/").rpartition("/")[2]
            if kind == "dir":
                found.append(Entry(name, None))
            elif kind == "file":
                found.append(Entry(name, int(facts.get("size", "")), _time(facts.get("modify", ""))))
        return found


def make_context(settings: CloudSettings, place: RemotePlace) -> ssl.SSLContext:
    """Return what certificates are checked with.  Raises: UsageError for a `ca_file` that cannot be read."""
    file = place.options.get(CA_FILE)
    try:
        return ssl.create_default_context(cafile=file)
    except OSError as error:  # an SSLError is one, too
        raise UsageError(f"cloud {settings.name}: {CA_FILE} {file!r} cannot be read: {error.strerror}") from error


def _time(text: str) -> float:
    from datetime import UTC, datetime

    try:
        return datetime.strptime(text[:14], "%Y%m%d%H%M%S").replace(tzinfo=UTC).timestamp()
    except ValueError:
        return 0.0

"""A folder on an SSH server as a cloud, by SFTP: `ssh://` or `sftp://`.

Used by registry.py.  paramiko (extra `sftp`) is imported when a cloud is opened; see sftplogin.py for how the server is
reached and why not by fs.sshfs.  Any number of threads: up to `CHANNELS_MAX` channels of one connection, each used by
one call at a time.

    ssh://[user@]host[:port]/folder[?key_file=…&known_hosts=…&ssh_config=…]       /~/folder: below the user's home

Rules it keeps:
* A put goes to a temporary name and is renamed, in one step where the server can (posix-rename): whole or absent.
* The folder has to exist and is never made; "not found" is believed after a look at it.
* A connection that broke while it was idle is made anew; nothing else is repeated.
"""

from __future__ import annotations

import errno
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

from cuckoo_mount.clouds.base import Capabilities, CloudSettings, ObjectInfo, Space
from cuckoo_mount.clouds.names import check_object_name, check_prefix, check_range
from cuckoo_mount.clouds.remoteplace import RemotePlace, parse_remote_place
from cuckoo_mount.clouds.sftplogin import OPTIONS, PASSPHRASE, log_in, require_paramiko
from cuckoo_mount.clouds.sftptransfer import read_part, write_all
from cuckoo_mount.clouds.translate import describe
from cuckoo_mount.clouds.walking import Entry, NameLocks, temporary_name, walk
from cuckoo_mount.errors import (
    CloudCorrupt,
    CloudError,
    CloudFull,
    CloudMissing,
    CloudRefused,
    CloudTimeout,
    CloudUnavailable,
    UsageError,
)

if TYPE_CHECKING:
    import paramiko

CHANNELS_MAX: Final = 8
"""OpenSSH allows 10 on a connection."""
_CLOSED: Final = "Socket is closed"  # says paramiko of a channel that ended before anything was asked
_ATTEMPTS: Final = 3  # a channel from the stock and a new one of the same connection may both turn out to be broken
_HOME: Final = "/~"
_STATVFS: Final = "statvfs@openssh.com"
_STATVFS_FIELDS: Final = 5
_NO_PLACE: Final = frozenset({errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH})

T = TypeVar("T")
_Entries = list[Entry]


class SftpCloud:
    """A Cloud in a folder of an SSH server.  See clouds/base.py for what each method promises."""

    def __init__(self, settings: CloudSettings, place: RemotePlace) -> None:
        """Remember where it is; the connection is made by the first call.  Raises: UsageError without paramiko."""
        require_paramiko(settings)
        self._settings = settings
        self._place = place
        home = place.path == _HOME or place.path.startswith(f"{_HOME}/")
        self._root = (place.path[len(_HOME) :].strip("/") or ".") if home else place.path
        self._lock = threading.Lock()
        self._names = NameLocks()
        self._channels = threading.BoundedSemaphore(CHANNELS_MAX)
        self._client: paramiko.SSHClient | None = None
        self._stock: list[paramiko.SFTPClient] = []
        self._renames = True
        self._tells_space: bool | None = None

    @property
    def settings(self) -> CloudSettings:
        return self._settings

    @property
    def capabilities(self) -> Capabilities:
        """What it can do; asks the server, once, whether it tells its room."""
        if self._tells_space is None:
            with suppress(CloudError):
                self.space()
        if self._tells_space is None:
            self._tells_space = False
        return Capabilities(reports_space=self._tells_space, durable_put=False)

    def put(self, name: str, data: bytes | memoryview) -> None:
        check_object_name(name)
        content = bytes(data)
        try:
            with self._names.of(name):
                self._call(name, lambda sftp: self._put(sftp, name, content))
        except CloudMissing as error:
            message = "its folder vanished while it was written; try again"
            raise CloudUnavailable(message, cloud=self._settings.name, name=name) from error

    def get(self, name: str) -> bytes:
        check_object_name(name)

        def read(sftp: paramiko.SFTPClient) -> bytes:
            with sftp.open(self._path(name), "rb") as file:
                size_bytes = file.stat().st_size or 0
                data = read_part(sftp, file, 0, size_bytes)
            if len(data) != size_bytes:
                message = f"{size_bytes} bytes announced, {len(data)} came; try again"
                raise CloudUnavailable(message, cloud=self._settings.name, name=name)
            return data

        return self._call(name, read)

    def get_range(self, name: str, offset: int, length_bytes: int) -> bytes:
        check_object_name(name)
        check_range(offset, length_bytes)
        return self._range(name, offset, length_bytes)

    def _range(self, name: str, offset: int, length_bytes: int) -> bytes:
        def read(sftp: paramiko.SFTPClient) -> bytes:
            with sftp.open(self._path(name), "rb") as file:
                return read_part(sftp, file, offset, length_bytes)

        data = self._call(name, read)
        if len(data) != length_bytes:
            message = f"{length_bytes} bytes wanted at {offset}, got {len(data)}"
            raise CloudCorrupt(message, cloud=self._settings.name, name=name)
        return data

    def delete(self, name: str) -> None:
        check_object_name(name)
        with suppress(CloudMissing):
            self._call(name, lambda sftp: sftp.remove(self._path(name)))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        check_prefix(prefix)
        return walk(prefix, self._list_folder, self._remove_quietly)

    def space(self) -> Space | None:
        found = self._call("", self._statvfs)
        if self._tells_space is None:
            self._tells_space = found is not None
        return found

    def close(self) -> None:
        with self._lock:
            client, self._client, self._stock = self._client, None, []
        if client is not None:
            client.close()

    # --- data -----------------------------------------------------------------------------------------------------

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}" if name else self._root

    def _put(self, sftp: paramiko.SFTPClient, name: str, content: bytes) -> None:
        temporary = self._path(temporary_name(name))
        try:
            file = sftp.open(temporary, "wb")
        except FileNotFoundError:
            self._make_folders(sftp, name)
            file = sftp.open(temporary, "wb")
        try:
            write_all(sftp, file, content)
            self._rename(sftp, temporary, self._path(name))
        except OSError as error:
            with suppress(OSError, EOFError):  # a connection that broke leaves it to the next listing but one
                sftp.remove(temporary)
            # The protocol has no word for it: a server says just "Failure".
            room = None if error.errno else self._room(sftp)
            if room is not None and room.free_bytes < len(content):
                raise CloudFull("no room there", cloud=self._settings.name, name=name) from error
            raise

    def _rename(self, sftp: paramiko.SFTPClient, old: str, new: str) -> None:
        """Rename over what is there, if anything is."""
        if self._renames:
            try:
                sftp.posix_rename(old, new)
                return
            except OSError as error:
                if error.errno:
                    raise
                # Not known there, or something is in the way of it.
        with suppress(FileNotFoundError):
            sftp.remove(new)
        sftp.rename(old, new)
        self._renames = False

    def _make_folders(self, sftp: paramiko.SFTPClient, name: str) -> None:
        """Make the folders of object `name`, but never the root.  Raises: CloudUnavailable, OSError."""
        self._see_root(sftp)
        path = ""
        for part in name.split("/")[:-1]:
            path = f"{path}/{part}".lstrip("/")
            try:
                sftp.mkdir(self._path(path), 0o700)
            except OSError:
                if not stat.S_ISDIR(sftp.stat(self._path(path)).st_mode or 0):
                    raise

    def _list_folder(self, prefix: str) -> _Entries:
        try:
            return self._call(prefix, partial(self._listed, prefix.rstrip("/")))
        except CloudMissing:
            return []

    def _listed(self, folder: str, sftp: paramiko.SFTPClient) -> _Entries:
        entries = []
        for item in sftp.listdir_attr(self._path(folder)):
            mode = item.st_mode or 0
            if stat.S_ISDIR(mode):
                entries.append(Entry(item.filename, None))
            elif stat.S_ISREG(mode) and item.st_size is not None:
                entries.append(Entry(item.filename, item.st_size, float(item.st_mtime or 0)))
        return entries

    def _remove_quietly(self, name: str) -> None:
        with suppress(CloudError):
            self._call(name, lambda sftp: sftp.remove(self._path(name)))

    def _statvfs(self, sftp: paramiko.SFTPClient) -> Space | None:
        """Return the room, None where the server does not know the question.  paramiko has no method for it."""
        from paramiko.sftp import CMD_EXTENDED, CMD_EXTENDED_REPLY

        try:
            kind, message = sftp._request(CMD_EXTENDED, _STATVFS, self._root)
        except FileNotFoundError:
            raise
        except OSError:
            return None
        if kind != CMD_EXTENDED_REPLY:
            return None
        _, unit, blocks, _, free = (message.get_int64() for _ in range(_STATVFS_FIELDS))
        return Space(blocks * unit, free * unit)

    def _room(self, sftp: paramiko.SFTPClient) -> Space | None:
        try:
            return self._statvfs(sftp)
        except (OSError, EOFError):
            return None

    # --- connections and errors -----------------------------------------------------------------------------------

    def _call(self, name: str, action: Callable[[paramiko.SFTPClient], T]) -> T:
        """Return what `action` returns, with the errors of the Cloud protocol."""
        with self._channels:
            try:
                return self._try(name, action)
            except CloudError:
                raise
            except Exception as error:
                raise self._translated(error, name) from error

    def _try(self, name: str, action: Callable[[paramiko.SFTPClient], T], attempts: int = _ATTEMPTS) -> T:
        sftp, is_fresh = self._take()
        try:
            result = action(sftp)
        except Exception as error:
            if _said_by_server(error):
                self._give_back(sftp)
                if isinstance(error, FileNotFoundError):
                    self._check_root(error)
                raise
            self._drop(sftp, error)
            if is_fresh or attempts == 1 or isinstance(error, (CloudError, TimeoutError)):
                raise
            return self._try(name, action, attempts - 1)
        self._give_back(sftp)
        return result

    def _check_root(self, error: OSError) -> None:
        sftp, _ = self._take()
        try:
            self._see_root(sftp)
        except BaseException as trouble:
            self._drop(sftp, trouble)
            raise
        self._give_back(sftp)

    def _see_root(self, sftp: paramiko.SFTPClient) -> None:
        """Return if the root is there.  Raises: CloudUnavailable."""
        try:
            if stat.S_ISDIR(sftp.stat(self._root).st_mode or 0):
                return
        except FileNotFoundError:
            pass
        raise CloudUnavailable(
            f"there is no folder {self._place.path} at {self._place.endpoint}; make it, or check the URL",
            cloud=self._settings.name,
        )

    def _take(self) -> tuple[paramiko.SFTPClient, bool]:
        """Return a channel for one call, and whether it is of a connection that was made just now."""
        import paramiko

        with self._lock:
            transport = self._transport()
            if transport is None:
                self._stock = []
            else:
                if self._stock:
                    return self._stock.pop(), False
                with suppress(OSError, EOFError, paramiko.SSHException):  # it broke, and has not noticed it yet
                    return self._new_channel(transport), False
            if self._client is not None:
                self._client.close()
            self._client = log_in(self._settings, self._place)
            transport = self._transport()
            if transport is None:
                raise EOFError("the server closed the connection")
            return self._new_channel(transport), True

    def _transport(self) -> paramiko.Transport | None:
        """Return the connection, if there is one that has not been found to be broken."""
        transport = self._client.get_transport() if self._client is not None else None
        return transport if transport is not None and transport.is_active() else None

    def _new_channel(self, transport: paramiko.Transport) -> paramiko.SFTPClient:
        import paramiko

        sftp = paramiko.SFTPClient.from_transport(transport)
        channel = None if sftp is None else sftp.get_channel()
        if sftp is None or channel is None:
            raise EOFError("the server gave no channel")
        channel.settimeout(self._settings.timeout_s)
        return sftp

    def _give_back(self, sftp: paramiko.SFTPClient) -> None:
        with self._lock:
            self._stock.append(sftp)

    def _drop(self, sftp: paramiko.SFTPClient, error: BaseException) -> None:
        """Give up a channel that may be in any state; the whole connection if nothing comes through it any more."""
        with suppress(Exception):  # why it does not close changes nothing
            sftp.close()
        if not isinstance(error, TimeoutError):
            return
        # A network that went away is noticed by TCP after a quarter of an hour.
        with self._lock, suppress(Exception):
            channel = sftp.get_channel()
            if channel is not None and channel.get_transport() is self._transport() and self._client is not None:
                self._client.close()

    def _translated(self, error: Exception, name: str) -> CloudError:
        make = partial(_KINDS.get(getattr(error, "errno", None) or 0, CloudUnavailable), cloud=self._settings.name)
        where = self._place.endpoint
        if isinstance(error, FileNotFoundError):
            return CloudMissing("no such object", cloud=self._settings.name, name=name)
        if isinstance(error, PermissionError):
            text = f"not allowed; let this user read, write and delete in folder {self._place.path}"
            return CloudRefused(text, cloud=self._settings.name, name=name)
        if isinstance(error, TimeoutError):
            return CloudTimeout(f"no answer in time from {where}", cloud=self._settings.name, name=name)
        if _nothing_there(error):
            return make(f"nothing answers at {where}; check the URL, and that the server runs", name=name)
        if _said_by_server(error):
            return make(f"the server says: {describe(error, self._settings)}", name=name)
        return make(f"the connection to {where} broke: {describe(error, self._settings)}", name=name)

    def __repr__(self) -> str:
        return f"SftpCloud({self._settings.name!r}, {self._place.endpoint!r})"


_KINDS: Final[dict[int, type[CloudError]]] = {errno.ENOSPC: CloudFull, errno.EDQUOT: CloudFull}


def open_sftp_cloud(settings: CloudSettings, place: str) -> SftpCloud:
    """Return the cloud at the URL `place`; sends nothing to it, so that it opens while the server is down.

    Raises: UsageError for a URL, options or secrets that cannot be, or if paramiko is not installed.
    """
    return SftpCloud(settings, parse_sftp_place(settings, place))


def parse_sftp_place(settings: CloudSettings, url: str) -> RemotePlace:
    """Return what `url` and `settings` say.  Raises: UsageError for what cannot be."""
    found = parse_remote_place(settings, url, options=OPTIONS, secrets=(PASSPHRASE,))
    if PASSPHRASE in found.secrets and found.password is not None:
        raise UsageError(f"cloud {settings.name}: give either the secret password or passphrase, not both")
    return found


def _said_by_server(error: Exception) -> bool:
    """Return whether an exception is the server's answer, after which the channel can be used on."""
    if not isinstance(error, OSError) or isinstance(error, (TimeoutError, ConnectionError)) or str(error) == _CLOSED:
        return False
    return error.errno in (None, errno.ENOENT, errno.EACCES) and not _nothing_there(error)


def _nothing_there(error: Exception) -> bool:
    # paramiko.NoValidConnectionsError and socket.gaierror
    names = {parent.__name__ for parent in type(error).__mro__}
    return bool(names & {"NoValidConnectionsError", "gaierror"}) or getattr(error, "errno", None) in _NO_PLACE

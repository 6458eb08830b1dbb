"""WebDAV (Nextcloud, ownCloud, Apache, …) as a cloud, by plain HTTP: one request per put, get, range and delete.

Used by registry.py for `webdav://` (http) and `webdavs://` (https).  PyFilesystem's driver is not used: it answers
listings from a stale cache, and overwriting with fewer bytes leaves the old tail (measured).  The client is urllib3,
which boto3 brings anyway: connections for any number of threads, timeouts, nothing repeated that is not asked for.

    webdavs://[user:password@]host[:port]/folder[?upload=move&ca_file=/path]

The folder has to exist and is never made: an account that is not mounted somewhere must not become an empty cloud.  The
folders below it are made as they are needed; which there are is asked once per process and parent.

What servers were seen to do, and the answer here (measured with rclone and wsgidav):
* a put whose connection breaks leaves a shorter file on both → `atomic_put` is promised only with
  `upload=move`: the object is put under a temporary name and moved, which is a second request;
* "not found" may mean that the whole folder is gone → believed after a look at the root (1 request more);
* a listing of any depth may be refused, or silently cut to depth 1 → folder by folder, several at a time;
* a put that broke, or another one, leaves the name locked for a moment (rclone, Nextcloud) → asked again for 3 s;
* a kept connection was closed by a server that restarted → the request is made once more, at once.
Nothing else is repeated: hanging and failing servers are the business of the layers above, which have other clouds.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import Final
from urllib.parse import quote

from cuckoo_mount.clouds import webdavxml
from cuckoo_mount.clouds.base import Capabilities, CloudSettings, ObjectInfo, Space
from cuckoo_mount.clouds.names import check_object_name, check_prefix, check_range
from cuckoo_mount.clouds.remoteplace import RemotePlace, parse_remote_place
from cuckoo_mount.clouds.walking import Entry, NameLocks, temporary_name, walk
from cuckoo_mount.clouds.webdaverrors import Answer, answered, broken
from cuckoo_mount.clouds.webdavhttp import CA_FILE, make_manager, standing_headers, twice_if_closed
from cuckoo_mount.errors import (
    CloudCorrupt,
    CloudError,
    CloudMissing,
    CloudUnavailable,
    UsageError,
)

_SCHEMES: Final = {"webdav": "http", "webdavs": "https"}
_UPLOAD: Final = "upload"
_UPLOADS: Final = ("direct", "move")
_CONTENT_RANGE: Final = re.compile(r"bytes (\d+)-(\d+)/")
_GOOD: Final = frozenset({200, 201, 204, 206, 207})
# What a server says to a put or move into a folder that is not there: RFC 4918 has 409.
_FOLDER_MISSING: Final = frozenset({404, 409})
_EXISTS: Final = 405
_LOCKED: Final = 423
_LOCKED_PAUSES_S: Final = (0.1, 0.2, 0.4, 0.8, 1.6)
"""What is waited before a locked object is asked for again."""


_Entries = list[Entry]
_Resources = list[webdavxml.Found]


class WebDavCloud:
    """A Cloud in a folder of a WebDAV server.  See clouds/base.py for what each method promises."""

    def __init__(self, settings: CloudSettings, place: RemotePlace) -> None:
        """Make the client; nothing is sent.  Raises: UsageError for settings that cannot be."""
        self._settings = settings
        self._place = place
        self._moves = _upload(settings, place) == "move"
        self._base = f"{_SCHEMES[place.scheme]}://{place.address}"
        self._headers = standing_headers(place)
        self._manager = make_manager(settings, place, self._base)
        self._lock = threading.Lock()
        self._names = NameLocks()
        self._folders: set[str] = {""}
        self._read_folders: set[str] = set()
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
        return Capabilities(atomic_put=self._moves, reports_space=self._tells_space, durable_put=False)

    def put(self, name: str, data: bytes | memoryview) -> None:
        check_object_name(name)
        content = bytes(data)  # no copy if it is bytes
        # rclone refuses all but one of several puts of the same name at a time.
        with self._names.of(name):
            self._put_into_folder(name, content)

    def get(self, name: str) -> bytes:
        check_object_name(name)
        return self._ask("GET", name).body

    def get_range(self, name: str, offset: int, length_bytes: int) -> bytes:
        check_object_name(name)
        check_range(offset, length_bytes)
        return self._range(name, offset, length_bytes)

    def _range(self, name: str, offset: int, length_bytes: int) -> bytes:
        if not length_bytes:  # HTTP has no words for an empty range
            return self._nothing(name, offset)
        wanted = f"bytes={offset}-{offset + length_bytes - 1}"
        answer = self._ask("GET", name, headers={"Range": wanted})
        data = answer.body
        found = _CONTENT_RANGE.match(answer.headers.get("content-range", ""))
        if answer.status != 206 or found is None:  # a server that does not know ranges gave the whole object
            data = data[offset : offset + length_bytes]
        elif int(found[1]) != offset:
            message = f"asked for {wanted}, the server gave {found[0]}"
            raise CloudUnavailable(message, cloud=self._settings.name, name=name)
        if len(data) != length_bytes:
            raise self._too_short(name, offset, length_bytes, len(data))
        return data

    def delete(self, name: str) -> None:
        check_object_name(name)
        with suppress(CloudMissing):
            self._ask("DELETE", name)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        check_prefix(prefix)
        return walk(prefix, self._list_folder, self._remove_quietly)

    def space(self) -> Space | None:
        answer = self._ask("PROPFIND", "", folder=True, headers={"Depth": "0"}, body=webdavxml.ABOUT_SPACE)
        found = self._read(answer, "")
        given = found[0].properties if found else {}
        free, used = (given.get(f"quota-{kind}-bytes", "") for kind in ("available", "used"))
        # Nextcloud has negative numbers for "not known" and "no limit".
        tells = free.isdecimal() and used.isdecimal()
        if self._tells_space is None:
            self._tells_space = tells
        return Space(int(used) + int(free), int(free)) if tells else None

    def close(self) -> None:
        self._manager.clear()

    # --- data -----------------------------------------------------------------------------------------------------

    def _put_into_folder(self, name: str, content: bytes) -> None:
        folder = name.rpartition("/")[0]
        self._make_folder(folder)
        try:
            self._put(name, content)
        except CloudMissing:  # made by us, or seen, and removed since
            self._forget_folders()
            self._make_folder(folder)
            try:
                self._put(name, content)
            except CloudMissing as error:
                raise CloudUnavailable("its folder vanished; try again", cloud=error.cloud, name=name) from error

    def _put(self, name: str, content: bytes) -> None:
        """Raises: CloudMissing if its folder is not there."""
        if not self._moves:
            self._send("PUT", name, content)
            return
        temporary = temporary_name(name)
        try:
            self._send("PUT", temporary, content)
            destination = {"Destination": self._base + self._target(name), "Overwrite": "T"}
            self._send("MOVE", temporary, headers=destination)
        except BaseException:
            self._remove_quietly(temporary)
            raise

    def _nothing(self, name: str, offset: int) -> bytes:
        """Return no bytes if the object reaches to `offset`."""
        found = self._read(self._ask("PROPFIND", name, headers={"Depth": "0"}, body=webdavxml.ABOUT_ENTRIES), name)
        size = found[0].properties.get("getcontentlength", "") if found else ""
        if size.isdecimal() and int(size) < offset:
            raise self._too_short(name, offset, 0, 0)
        return b""

    def _too_short(self, name: str, offset: int, wanted: int, had: int) -> CloudCorrupt:
        return CloudCorrupt(f"{wanted} bytes wanted at {offset}, got {had}", cloud=self._settings.name, name=name)

    def _remove_quietly(self, name: str) -> None:
        with suppress(CloudError):  # a leftover harms nobody, and a listing finds it again
            self._send("DELETE", name)

    # --- folders --------------------------------------------------------------------------------------------------

    def _list_folder(self, prefix: str) -> _Entries:
        try:
            return self._entries(prefix.rstrip("/"))
        except CloudMissing as error:
            self._see_root(error)
            return []

    def _entries(self, folder: str) -> _Entries:
        """Raises: CloudMissing, not to be believed yet."""
        answer = self._send("PROPFIND", folder, webdavxml.ABOUT_ENTRIES, folder=True, headers={"Depth": "1"})
        try:
            return webdavxml.entries_of(self._read(answer, folder), self._place.below(folder))
        except ValueError as error:
            raise CloudUnavailable(f"cannot be listed: {error}", cloud=self._settings.name, name=folder) from error

    def _read(self, answer: Answer, name: str) -> _Resources:
        """Raises: CloudUnavailable for what cannot be read."""
        try:
            if answer.status != 207:
                raise ValueError(f"HTTP status {answer.status} instead of 207")
            return webdavxml.parse_multistatus(answer.body)
        except ValueError as error:
            message = f"{self._place.endpoint} does not answer as a WebDAV server: {error}; check the URL"
            raise CloudUnavailable(message, cloud=self._settings.name, name=name) from error

    def _make_folder(self, folder: str) -> None:
        if folder not in self._folders:
            # One at a time: servers lock, or stumble over, the same folder made twice at once.
            with self._lock:
                self._ensure(folder)

    def _ensure(self, folder: str) -> None:
        """Make `folder` and those above it, unless they are known to be there.  Never the root."""
        if folder in self._folders:
            return
        parent = folder.rpartition("/")[0]
        if parent not in self._read_folders:
            try:
                entries = self._entries(parent)
            except CloudMissing as error:
                if not parent:
                    self._see_root(error)
                self._ensure(parent)
                entries = []
            start = f"{parent}/" if parent else ""
            self._folders |= {f"{start}{entry.name}" for entry in entries if entry.size_bytes is None}
            self._folders.add(parent)
            self._read_folders.add(parent)
        if folder in self._folders:
            return
        try:
            self._send("MKCOL", folder, folder=True)
        except CloudMissing as error:
            self._forget_folders()
            raise CloudUnavailable("a folder vanished; try again", cloud=error.cloud, name=folder) from error
        self._folders.add(folder)

    def _forget_folders(self) -> None:
        self._folders = {""}
        self._read_folders = set()

    # --- requests -------------------------------------------------------------------------------------------------

    def _target(self, name: str, *, folder: bool = False) -> str:
        path = quote(self._place.below(name))
        return f"{path.rstrip('/')}/" if folder else path

    def _ask(
        self,
        method: str,
        name: str,
        *,
        folder: bool = False,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> Answer:
        """Return the answer about `name`.  Raises: CloudMissing only if the root is there, …."""
        try:
            return self._send(method, name, body, folder=folder, headers=headers)
        except CloudMissing as error:
            self._see_root(error)
            raise

    def _see_root(self, missing: CloudMissing) -> None:
        """Return if the root is there.  Raises: CloudUnavailable."""
        try:
            if missing.name:
                self._send("PROPFIND", "", webdavxml.ABOUT_SPACE, folder=True, headers={"Depth": "0"})
                return
        except CloudMissing:
            self._forget_folders()
        raise CloudUnavailable(
            f"there is no folder {self._place.path} at {self._place.endpoint}; make it, or check the URL",
            cloud=self._settings.name,
        ) from missing

    def _send(
        self,
        method: str,
        name: str,
        body: bytes | None = None,
        *,
        folder: bool = False,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Make one request.  Raises: CloudMissing if the server says so, which is not to be believed yet."""
        target = self._target(name, folder=folder)
        answer = self._exchange(method, target, body, headers or {}, name)
        for pause_s in _LOCKED_PAUSES_S:
            if answer.status != _LOCKED:
                break
            time.sleep(pause_s)
            answer = self._exchange(method, target, body, headers or {}, name)
        if answer.status in _GOOD or (method == "MKCOL" and answer.status == _EXISTS):
            return answer
        if method in ("PUT", "MOVE", "MKCOL") and answer.status in _FOLDER_MISSING:
            raise CloudMissing("its folder is not there", cloud=self._settings.name, name=name)
        raise answered(answer, self._settings, self._place, name)

    def _exchange(self, method: str, target: str, body: bytes | None, headers: Mapping[str, str], name: str) -> Answer:
        request = partial(
            self._manager.urlopen,
            method,
            self._base + target,
            body=body,
            headers={**self._headers, **headers},
            redirect=False,
            retries=False,
            decode_content=False,
        )
        try:
            response = twice_if_closed(request)
        except Exception as error:
            raise broken(error, self._settings, self._place, name) from error
        return Answer(response.status, {key.lower(): value for key, value in response.headers.items()}, response.data)

    def __repr__(self) -> str:
        return f"WebDavCloud({self._settings.name!r}, {self._place.endpoint!r})"


def open_webdav_cloud(settings: CloudSettings, place: str) -> WebDavCloud:
    """Return the cloud at the URL `place`; sends nothing to it, so that it opens while the server is down.

    Raises: UsageError for a URL, options or secrets that cannot be.
    """
    return WebDavCloud(settings, parse_webdav_place(settings, place))


def parse_webdav_place(settings: CloudSettings, url: str) -> RemotePlace:
    """Return what `url` and `settings` say.  Raises: UsageError for what cannot be."""
    return parse_remote_place(settings, url, options=(_UPLOAD, CA_FILE))


def _upload(settings: CloudSettings, place: RemotePlace) -> str:
    upload = place.options.get(_UPLOAD, _UPLOADS[0])
    if upload not in _UPLOADS:
        raise UsageError(f"cloud {settings.name}: {_UPLOAD} {upload!r} is none of {', '.join(_UPLOADS)}")
    if (place.user is None) != (place.password is None):
        missing = "user" if place.user is None else "password"
        raise UsageError(
            f"cloud {settings.name}: secret {missing!r} is missing; give both --secret user=… and password=…"
        )
    return upload

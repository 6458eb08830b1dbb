"""Dropbox as a cloud: one request per put, get, range and delete, one per 2,000 names of a listing.

Opened as a PyFilesystem, `DropboxFS` of fs.dropboxfs, whose SDK client is taken over with a session of our own (see
dropboxsession.py).  Data go through that client: the PyFilesystem API downloads an object before it overwrites it, has
no ranges and no uploads above 150 MiB, reads one object at a time, and gives an empty one where a request failed.  Used
by registry.py for `dropbox://`; see dropboxplace.py for the URL.  The SDK costs 0.4 s of CPU and 30 MiB: nothing is
imported before a cloud is opened.

What the service does, and the answer here (its documentation, and the types of its SDK):
* an upload makes all folders above it, the cloud's own too, which must never be made → that one is looked at before the
  first put, once per opening (1 request), and again after it was found missing;
* "not found" may mean that the whole folder is gone → believed after a look at it (1 request more);
* a listing in pages goes on with what has changed meanwhile, deletions too → what comes later counts;
* writes at the same time may be refused as too many, as a 429 or inside a 409 → both are CloudBusy;
* access tokens last 4 hours → the SDK gets a new one by the refresh token, which stays the same for ever;
* a kept connection that was closed → the request is made once more, at once.
Nothing else is repeated: hanging and failing services are the business of the layers above, which have other clouds.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from functools import partial
from typing import Final, TypeVar, cast

from cuckoo_mount.clouds import fsimport
from cuckoo_mount.clouds.base import Capabilities, CloudSettings, ObjectInfo, Space
from cuckoo_mount.clouds.dropboxerrors import LOG_IN, Refusal, broken, refused
from cuckoo_mount.clouds.dropboxplace import DropboxPlace, parse_dropbox_place
from cuckoo_mount.clouds.dropboxsession import make_session, timeout_of, twice_if_closed
from cuckoo_mount.clouds.dropboxtypes import Job, OpenedFS, Page
from cuckoo_mount.clouds.names import check_object_name, check_prefix, check_range, is_object_name
from cuckoo_mount.errors import (
    CloudBusy,
    CloudCorrupt,
    CloudError,
    CloudMissing,
    CloudNeedsLogin,
    CloudTimeout,
    CloudUnavailable,
)

UPLOAD_MAX_BYTES: Final = 150 << 20
"""What one request may carry."""
PART_BYTES: Final = 128 << 20
"""What each request of an upload in parts carries: a multiple of the 4 MiB that Dropbox counts in."""
MAX_OBJECT_BYTES: Final = (1 << 41) - (1 << 22)
PAGE_NAMES: Final = 2000
DELETE_BATCH: Final = 1000
_CHECK_PAUSES_S: Final = (0.2, 0.4, 0.8, 1.6)
"""Between two looks at whether a batch of deletes is done; the last one again and again."""
_USER_AGENT: Final = "cuckoo-mount"
# An answer must not be packed: a range of it would be one of something else.
_PLAIN: Final = {"Accept-Encoding": "identity"}

T = TypeVar("T")


class DropboxCloud:
    """A Cloud in a folder of a Dropbox.  See clouds/base.py for what each method promises."""

    def __init__(self, settings: CloudSettings, place: DropboxPlace) -> None:
        """Make the client; nothing is sent.  Raises: CloudNeedsLogin without a login, UsageError."""
        self._settings = settings
        self._place = place
        if place.refresh_token is None and place.access_token is None:
            message = f"nobody is logged in; {LOG_IN.format(cloud=settings.name)}"
            raise CloudNeedsLogin(message, cloud=settings.name)
        self._fs = _open_dropboxfs(settings, place)
        self._client = self._fs.dropbox
        self._login_lock = threading.Lock()
        self._root_seen = not place.folder

    @property
    def settings(self) -> CloudSettings:
        return self._settings

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            max_object_bytes=MAX_OBJECT_BYTES, reports_space=True, delete_batch=DELETE_BATCH, tells_of_deleted=True
        )

    def of_deleted(self) -> str:
        """As Dropbox documents it; nothing is asked."""
        return "Dropbox keeps them for 30 days or longer, as the plan says; its site can delete them for good"

    def put(self, name: str, data: bytes | memoryview) -> None:
        path = self._path(name)
        content = bytes(data)  # no copy if it is bytes
        if not self._root_seen:
            self._see_root()
        if len(content) <= UPLOAD_MAX_BYTES:
            self._call(name, lambda: self._client.files_upload(content, path, mode=_overwrite(), mute=True))
        else:
            self._put_in_parts(name, path, content)

    def get(self, name: str) -> bytes:
        check_object_name(name)
        size_bytes, data = self._download(name, {})
        if len(data) != size_bytes:
            message = f"the answer was cut: {size_bytes} bytes announced, {len(data)} came; try again"
            raise CloudUnavailable(message, cloud=self._settings.name, name=name)
        return data

    def get_range(self, name: str, offset: int, length_bytes: int) -> bytes:
        check_object_name(name)
        check_range(offset, length_bytes)
        return self._range(name, offset, length_bytes)

    def _range(self, name: str, offset: int, length_bytes: int) -> bytes:
        path = self._location(name)
        if not length_bytes:  # HTTP has no words for an empty range
            size_bytes = self._call(name, lambda: self._client.files_get_metadata(path)).size
            if size_bytes < offset:
                raise self._too_short(name, offset, 0, 0)
            return b""
        size_bytes, data = self._download(name, {"Range": f"bytes={offset}-{offset + length_bytes - 1}"})
        if len(data) == size_bytes != length_bytes:  # the whole object, from something that knows no ranges
            data = data[offset : offset + length_bytes]
        if len(data) != length_bytes:
            raise self._too_short(name, offset, length_bytes, len(data))
        return data

    def delete(self, name: str) -> None:
        path = self._path(name)
        with suppress(CloudMissing):
            self._call(name, lambda: self._client.files_delete_v2(path))

    def delete_many(self, names: Sequence[str]) -> None:
        """As `delete` for each of 1 to DELETE_BATCH names, by one request and one more each time it is not done yet.

        Raises: CloudTimeout when it is not done within `timeout_s`; it may be later.
        """
        from dropbox.files import DeleteArg

        entries = [DeleteArg(self._path(name)) for name in names]
        job = self._call("", lambda: self._client.files_delete_batch(entries))
        if job.is_async_job_id():
            job = self._wait_for(job.get_async_job_id())
        if not job.is_complete():
            raise CloudBusy("a batch of deletes was given up; try again", cloud=self._settings.name)
        is_missing = False
        for name, outcome in zip(names, job.get_complete().entries, strict=True):
            if outcome.is_failure():
                error = self._meaning(Refusal(409, _as_json(outcome.get_failure())), name)
                if not isinstance(error, CloudMissing):
                    raise error
                is_missing = True
        if is_missing:
            self._see_root()

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        check_prefix(prefix)
        folder = f"{self._place.folder}/{prefix}".rstrip("/")
        found: dict[str, int] = {}
        try:
            page = self._call(prefix, lambda: self._client.files_list_folder(folder, recursive=True, limit=PAGE_NAMES))
        except CloudMissing:
            return
        self._note(page, found)
        while page.has_more:
            page = self._call(prefix, partial(self._client.files_list_folder_continue, page.cursor))
            self._note(page, found)
        for name, size_bytes in found.items():
            yield ObjectInfo(name, size_bytes)

    def space(self) -> Space | None:
        usage = self._call("", self._client.users_get_space_usage)
        if usage.allocation.is_individual():
            total_bytes, used_bytes = usage.allocation.get_individual().allocated, usage.used
        elif usage.allocation.is_team():
            team = usage.allocation.get_team()
            free_bytes = team.allocated - team.used
            if team.user_within_team_space_allocated:  # 0: this user may have as much as the team
                free_bytes = min(free_bytes, team.user_within_team_space_allocated - usage.used)
            total_bytes, used_bytes = usage.used + max(0, free_bytes), usage.used
        else:
            return None
        return Space(total_bytes, max(0, total_bytes - used_bytes))

    def close(self) -> None:
        self._client.close()
        self._fs.close()

    def _path(self, name: str) -> str:
        check_object_name(name)
        return self._location(name)

    def _location(self, name: str) -> str:
        return f"{self._place.folder}/{name}"

    def _too_short(self, name: str, offset: int, wanted: int, had: int) -> CloudCorrupt:
        return CloudCorrupt(f"{wanted} bytes wanted at {offset}, got {had}", cloud=self._settings.name, name=name)

    def _download(self, name: str, headers: dict[str, str]) -> tuple[int, bytes]:
        """Return the size of the whole object, and what came of it."""
        path = self._location(name)

        def request() -> tuple[int, bytes]:
            metadata, answer = self._client.files_download(path, extra_headers={**_PLAIN, **headers})
            with closing(answer):
                # Not `content`, which puts it together from pieces of 10 KiB.
                return metadata.size, answer.raw.read()

        return self._call(name, request)

    def _put_in_parts(self, name: str, path: str, content: bytes) -> None:
        from dropbox.files import CommitInfo, UploadSessionCursor

        parts = memoryview(content)
        session = self._call(name, lambda: self._client.files_upload_session_start(bytes(parts[:PART_BYTES])))
        for start in range(PART_BYTES, len(content), PART_BYTES):
            part = bytes(parts[start : start + PART_BYTES])
            cursor = UploadSessionCursor(session.session_id, start)
            if start + PART_BYTES < len(content):
                self._call(name, partial(self._client.files_upload_session_append_v2, part, cursor))
            else:
                commit = CommitInfo(path, mode=_overwrite(), mute=True)
                self._call(name, partial(self._client.files_upload_session_finish, part, cursor, commit))

    def _wait_for(self, job_id: str) -> Job:
        """Return the state of a batch of deletes that has ended.  Raises: CloudTimeout."""
        ends_at_s = time.monotonic() + self._settings.timeout_s
        pauses = iter(_CHECK_PAUSES_S)
        while True:
            job = self._call("", lambda: self._client.files_delete_batch_check(job_id))
            if not job.is_in_progress():
                return job
            if time.monotonic() >= ends_at_s:
                raise CloudTimeout("a batch of deletes takes too long; try again", cloud=self._settings.name)
            time.sleep(next(pauses, _CHECK_PAUSES_S[-1]))

    def _note(self, page: Page, found: dict[str, int]) -> None:
        """Have `found` be as a page says: name and size of every object."""
        from dropbox.files import DeletedMetadata, FileMetadata

        for entry in page.entries:
            # Counted in folders, because the service may write the upper ones in other letters than we do.
            name = "/".join((entry.path_lower or "").split("/")[1 + self._place.depth :])
            if isinstance(entry, FileMetadata):
                if is_object_name(name):
                    found[name] = entry.size
            elif isinstance(entry, DeletedMetadata) and found.pop(name, None) is None:
                for below in [known for known in found if known.startswith(f"{name}/")]:
                    del found[below]

    # --- requests and their errors ------------------------------------------------------------------------------------

    def _call(self, name: str, request: Callable[[], T]) -> T:
        """Return what `request` returns, with the errors of the Cloud protocol."""
        try:
            self._get_token()
            return twice_if_closed(request)
        except Exception as error:
            raise self._judge(error, name) from error

    def _get_token(self) -> None:
        """Have a token for some minutes.  One thread gets it, the others wait for that.  Raises: CloudTimeout, …"""
        if not self._login_lock.acquire(timeout=self._settings.timeout_s):
            raise CloudTimeout(f"no answer in time from {self._place.endpoint}", cloud=self._settings.name)
        try:
            twice_if_closed(self._client.check_and_refresh_access_token)
        finally:
            self._login_lock.release()

    def _judge(self, error: Exception, name: str) -> CloudError:
        """Return what `error` means; looks at the root where an answer may be about that."""
        found = self._meaning(error, name)
        if isinstance(found, CloudMissing):
            try:
                self._see_root()
            except CloudError as trouble:
                return trouble
        return found

    def _meaning(self, error: Exception, name: str) -> CloudError:
        if isinstance(error, CloudError):
            return error
        if isinstance(error, Refusal):
            return refused(error, self._settings, self._place, name)
        if type(error).__name__ == "AuthError":  # the SDK's, with the answer as it came
            return refused(Refusal(401, str(getattr(error, "body", ""))), self._settings, self._place, name)
        return broken(error, self._settings, self._place, name)

    def _see_root(self) -> None:
        """Return if the folder is there.  Raises: CloudUnavailable if it is not, or what prevents us from knowing."""
        if not self._place.folder:
            return
        self._root_seen = False
        try:
            self._get_token()
            found = twice_if_closed(lambda: self._client.files_get_metadata(self._place.folder))
            is_there = type(found).__name__ == "FolderMetadata"
        except Exception as error:
            trouble = self._meaning(error, "")
            if not isinstance(trouble, CloudMissing):
                raise trouble from error
            is_there = False
        if not is_there:
            message = f"there is no folder {self._place.folder} in this Dropbox, or that of the app; make it there"
            raise CloudUnavailable(f"{message}, or check the URL", cloud=self._settings.name)
        self._root_seen = True

    def __repr__(self) -> str:
        return f"DropboxCloud({self._settings.name!r}, {self._place.folder!r})"


def open_dropbox_cloud(settings: CloudSettings, place: str) -> DropboxCloud:
    """Return the cloud at the URL `place` (`dropbox:///…`); sends nothing, so that it opens without a network.

    Raises: UsageError for a URL, options or secrets that cannot be; CloudNeedsLogin before the first login.
    """
    return DropboxCloud(settings, parse_dropbox_place(settings, place))


def _open_dropboxfs(settings: CloudSettings, place: DropboxPlace) -> OpenedFS:
    """Return fs.dropboxfs's file system, its client with our session, and without repeating anything."""
    with fsimport.stand_in():
        from fs.dropboxfs.dropboxfs import DropboxFS

    session = make_session(settings, place)
    opened = cast(Callable[..., OpenedFS], DropboxFS)(
        access_token=None if place.refresh_token else place.access_token,
        refresh_token=place.refresh_token,
        app_key=place.app_key,
        app_secret=place.app_secret,
    )
    opened.dropbox = opened.dropbox.clone(
        session=session,
        user_agent=_USER_AGENT,
        timeout=timeout_of(settings),
        max_retries_on_error=0,
        max_retries_on_rate_limit=0,
    )
    return opened


def _overwrite() -> object:
    from dropbox.files import WriteMode

    return WriteMode.overwrite


def _as_json(error: object) -> str:
    """Return an error of one of several deletes as an answer would have it."""
    from dropbox.files import DeleteError_validator
    from stone.backends.python_rsrc import stone_serializers

    encode = cast(Callable[..., str], stone_serializers.json_encode)
    return f'{{"error": {encode(DeleteError_validator, error)}}}'

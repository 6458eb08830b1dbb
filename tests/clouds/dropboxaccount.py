"""The files of a Dropbox, as its API shows them: an emulation in the SDK's own types, for dropboxserver.py.

Written from the types and the documentation in the SDK, and what is generally known of the service; nobody compared it
with the service itself.  Names are kept as they were written and told apart without regard to case.  Every method is
called after its route, gets that route's argument, and returns its result, or raises `Failure` with its error.  Any
thread; one call at a time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from itertools import count
from typing import Final

from attrs import define, field, frozen
from dropbox import async_, files, users
from dropbox.content_hash import content_hash
from dropbox.team_common import MemberSpaceLimitType

UPLOAD_MAX_BYTES: Final = 150 << 20
PAGE_NAMES: Final = 500
_TIME: Final = datetime(2026, 12, 1)


class Failure(Exception):
    """An answer with status 409.  `error`: the route's error, of the SDK's type for it."""

    def __init__(self, error: object) -> None:
        super().__init__(error)
        self.error: Final = error


class BadRequest(Exception):
    """An answer with status 400 and a text."""


@frozen
class Node:
    """A file or, without content, a folder.  `path`: as it was written."""

    path: str
    content: bytes | None
    revision: int

    @property
    def metadata(self) -> files.Metadata:
        name, lower = self.path.rpartition("/")[2], self.path.lower()
        if self.content is None:
            return files.FolderMetadata(
                name=name, id=f"id:f{self.revision:020x}", path_lower=lower, path_display=self.path
            )
        return files.FileMetadata(
            name=name,
            id=f"id:{self.revision:021x}",
            client_modified=_TIME,
            server_modified=_TIME,
            rev=f"{self.revision:012x}",
            size=len(self.content),
            path_lower=lower,
            path_display=self.path,
            is_downloadable=True,
            content_hash=content_hash(self.content),
        )


@frozen
class _Change:
    """What happened to a path; what is below a folder that is gone is gone with it, and not told."""

    lower: str
    is_gone: bool = False


@define
class _Listing:
    """A cursor: what is still to be told of a folder, and from which change on."""

    folder: str
    recursive: bool
    limit: int
    pending: list[_Change]
    seen_changes: int


@define
class _Session:
    content: bytearray
    closed: bool = False


@define(eq=False)
class Account:
    """One user's files.  `upload_max_bytes`: of one request; `delete_checks`: how often a batch is not done yet.

    `free_bytes`: room that is left; None: no limit.  `team`: the room is a team's.
    """

    upload_max_bytes: int = UPLOAD_MAX_BYTES
    page_names: int = PAGE_NAMES
    delete_checks: int = 1
    quota_bytes: int = 2 << 40
    is_team: bool = False
    _nodes: dict[str, Node] = field(factory=dict)
    _changes: list[_Change] = field(factory=list)
    _listings: dict[str, _Listing] = field(factory=dict)
    _sessions: dict[str, _Session] = field(factory=dict)
    _jobs: dict[str, tuple[int, files.DeleteBatchResult]] = field(factory=dict)
    _numbers: Iterator[int] = field(factory=lambda: count(1))
    lock: AbstractContextManager[bool] = field(factory=threading.RLock)

    # --- for tests --------------------------------------------------------------------------------------------------

    def make_folder(self, path: str) -> None:
        """Make a folder and those above it."""
        with self.lock:
            self._make_parents(f"{path}/x", lambda _: AssertionError(path))

    def write(self, path: str, content: bytes) -> None:
        """Store a file, as another program would."""
        with self.lock:
            self._make_parents(path, lambda _: AssertionError(path))
            self._set(Node(path, content, next(self._numbers)))

    def remove(self, path: str) -> None:
        """Remove a file or a folder with all that is in it."""
        with self.lock:
            self._remove(path.lower())

    def paths(self) -> dict[str, int]:
        """Return path, as it was written, and size of every file."""
        with self.lock:
            return {node.path: len(node.content) for node in self._nodes.values() if node.content is not None}

    def change_listings(self) -> None:
        """Let every listing that is under way be invalid."""
        with self.lock:
            self._listings.clear()

    @property
    def used_bytes(self) -> int:
        return sum(self.paths().values())

    # --- routes -----------------------------------------------------------------------------------------------------

    def upload(self, argument: files.UploadArg, body: bytes) -> files.FileMetadata:
        self._check_size(body, files.UploadError)
        if argument.content_hash not in (None, content_hash(body)):
            raise Failure(files.UploadError.content_hash_mismatch)

        def error(reason: files.WriteError) -> files.UploadError:
            return files.UploadError.path(files.UploadWriteFailed(reason, "pid_upload_session:none"))

        return self._commit(argument, body, error)

    def download(self, argument: files.DownloadArg) -> tuple[files.FileMetadata, bytes]:
        node = self._find(argument.path, files.DownloadError.path)
        if node.content is None:
            raise Failure(files.DownloadError.path(files.LookupError.not_file))
        return node.metadata, node.content

    def get_metadata(self, argument: files.GetMetadataArg) -> files.Metadata:
        if not argument.path.strip("/"):
            raise BadRequest('Error in call to API function "files/get_metadata": the root folder is unsupported.')
        return self._find(argument.path, files.GetMetadataError.path).metadata

    def create_folder_v2(self, argument: files.CreateFolderArg) -> files.CreateFolderResult:
        path = argument.path
        if path.lower() in self._nodes:
            taken = files.WriteConflictError.folder
            raise Failure(files.CreateFolderError.path(files.WriteError.conflict(taken)))
        self._make_parents(f"{path}/x", files.CreateFolderError.path)
        return files.CreateFolderResult(self._nodes[path.lower()].metadata)

    def delete_v2(self, argument: files.DeleteArg) -> files.DeleteResult:
        node = self._find(argument.path, files.DeleteError.path_lookup)
        self._remove(node.path.lower())
        return files.DeleteResult(node.metadata)

    def delete_batch(self, argument: files.DeleteBatchArg) -> files.DeleteBatchLaunch:
        entries = []
        for each in argument.entries:
            try:
                entries.append(
                    files.DeleteBatchResultEntry.success(files.DeleteBatchResultData(self.delete_v2(each).metadata))
                )
            except Failure as failure:
                entries.append(files.DeleteBatchResultEntry.failure(failure.error))
        job_id = f"dbjid:{next(self._numbers)}"
        self._jobs[job_id] = (self.delete_checks, files.DeleteBatchResult(entries))
        return files.DeleteBatchLaunch.async_job_id(job_id)

    def delete_batch_check(self, argument: async_.PollArg) -> files.DeleteBatchJobStatus:
        checks, result = self._jobs[argument.async_job_id]
        if checks > 0:
            self._jobs[argument.async_job_id] = (checks - 1, result)
            return files.DeleteBatchJobStatus.in_progress
        return files.DeleteBatchJobStatus.complete(result)

    def list_folder(self, argument: files.ListFolderArg) -> files.ListFolderResult:
        path = argument.path.lower()
        if path == "/" or path.endswith("/"):
            raise BadRequest(
                'Error in call to API function "files/list_folder": Specify the root folder as an empty '
                'string rather than as "/".'
            )
        if path and self._find(path, files.ListFolderError.path).content is not None:
            raise Failure(files.ListFolderError.path(files.LookupError.not_folder))
        recursive = bool(argument.recursive)
        pending = [_Change(lower) for lower in sorted(self._nodes) if self._is_listed(lower, path, recursive=recursive)]
        limit = argument.limit or self.page_names
        return self._page(_Listing(path, recursive, limit, pending, len(self._changes)))

    def list_folder_continue(self, argument: files.ListFolderContinueArg) -> files.ListFolderResult:
        listing = self._listings.pop(argument.cursor, None)
        if listing is None:
            raise Failure(files.ListFolderContinueError.reset)
        return self._page(listing)

    def upload_session_start(
        self, argument: files.UploadSessionStartArg, body: bytes
    ) -> files.UploadSessionStartResult:
        self._check_size(body, files.UploadSessionStartError)
        session_id = f"pid_upload_session:{next(self._numbers)}"
        self._sessions[session_id] = _Session(bytearray(body), bool(argument.close))
        return files.UploadSessionStartResult(session_id)

    def upload_session_append_v2(self, argument: files.UploadSessionAppendArg, body: bytes) -> None:
        self._check_size(body, files.UploadSessionAppendError)
        self._append(argument.cursor, body, files.UploadSessionAppendError, lambda error: error)

    def upload_session_finish(self, argument: files.UploadSessionFinishArg, body: bytes) -> files.FileMetadata:
        self._check_size(body, files.UploadSessionFinishError)
        session = self._append(
            argument.cursor, body, files.UploadSessionLookupError, files.UploadSessionFinishError.lookup_failed
        )
        found = self._commit(argument.commit, bytes(session.content), files.UploadSessionFinishError.path)
        del self._sessions[argument.cursor.session_id]
        return found

    def get_space_usage(self) -> users.SpaceUsage:
        if self.is_team:
            team = users.TeamSpaceAllocation(
                used=self.used_bytes + 1000,
                allocated=self.quota_bytes,
                user_within_team_space_allocated=0,
                user_within_team_space_limit_type=MemberSpaceLimitType.off,
                user_within_team_space_used_cached=self.used_bytes,
            )
            return users.SpaceUsage(self.used_bytes, users.SpaceAllocation.team(team))
        allocation = users.IndividualSpaceAllocation(self.quota_bytes)
        return users.SpaceUsage(self.used_bytes, users.SpaceAllocation.individual(allocation))

    # --- the tree ---------------------------------------------------------------------------------------------------

    def _find(self, path: str, error: Callable[[object], object]) -> Node:
        node = self._nodes.get(path.lower())
        if node is None:
            raise Failure(error(files.LookupError.not_found))
        return node

    def _commit(
        self, commit: files.CommitInfo, content: bytes, error: Callable[[object], object]
    ) -> files.FileMetadata:
        lower = commit.path.lower()
        there = self._nodes.get(lower)
        if there is not None and there.content is None:
            raise Failure(error(files.WriteError.conflict(files.WriteConflictError.folder)))
        if there is not None and not commit.mode.is_overwrite() and there.content != content:
            raise Failure(error(files.WriteError.conflict(files.WriteConflictError.file)))
        before = len(there.content or b"") if there is not None else 0
        if self.used_bytes - before + len(content) > self.quota_bytes:
            raise Failure(error(files.WriteError.insufficient_space))
        self._make_parents(commit.path, error)
        # Kept as it was first written.
        node = Node(commit.path if there is None else there.path, content, next(self._numbers))
        self._set(node)
        return node.metadata

    def _make_parents(self, path: str, error: Callable[[object], object]) -> None:
        parts = path.split("/")[1:-1]
        for depth in range(1, len(parts) + 1):
            folder = "/" + "/".join(parts[:depth])
            node = self._nodes.get(folder.lower())
            if node is None:
                self._set(Node(folder, None, next(self._numbers)))
            elif node.content is not None:
                raise Failure(error(files.WriteError.conflict(files.WriteConflictError.file_ancestor)))

    def _set(self, node: Node) -> None:
        self._nodes[node.path.lower()] = node
        self._changes.append(_Change(node.path.lower()))

    def _remove(self, lower: str) -> None:
        self._changes.append(_Change(lower, is_gone=True))
        for path in [path for path in self._nodes if path == lower or path.startswith(f"{lower}/")]:
            del self._nodes[path]

    def _check_size(self, body: bytes, errors: type[files.UploadError]) -> None:
        if len(body) > self.upload_max_bytes:
            raise Failure(errors.payload_too_large)

    def _append(
        self,
        cursor: files.UploadSessionCursor,
        body: bytes,
        errors: type[files.UploadError],
        wrapped: Callable[[object], object],
    ) -> _Session:
        session = self._sessions.get(cursor.session_id)
        if session is None:
            raise Failure(wrapped(errors.not_found))
        if cursor.offset != len(session.content):
            raise Failure(wrapped(errors.incorrect_offset(files.UploadSessionOffsetError(len(session.content)))))
        session.content += body
        return session

    # --- listings ---------------------------------------------------------------------------------------------------

    @staticmethod
    def _is_listed(lower: str, folder: str, *, recursive: bool) -> bool:
        if recursive and lower == folder:
            return True
        below = lower.removeprefix(f"{folder}/")
        return below != lower and (recursive or "/" not in below)

    def _page(self, listing: _Listing) -> files.ListFolderResult:
        """Tell the next entries; at the end also what has changed since the beginning."""
        if not listing.pending:
            changed, listing.seen_changes = self._changes[listing.seen_changes :], len(self._changes)
            listing.pending = [
                change
                for change in changed
                if self._is_listed(change.lower, listing.folder, recursive=listing.recursive)
            ]
        told, listing.pending = listing.pending[: listing.limit], listing.pending[listing.limit :]
        cursor = f"cursor-{next(self._numbers)}"
        self._listings[cursor] = listing
        has_more = bool(listing.pending) or listing.seen_changes < len(self._changes)
        return files.ListFolderResult(entries=[*self._entries(told)], cursor=cursor, has_more=has_more)

    def _entries(self, changes: Sequence[_Change]) -> Sequence[files.Metadata]:
        found = []
        for change in changes:
            node = None if change.is_gone else self._nodes.get(change.lower)
            name = change.lower.rpartition("/")[2]
            gone = files.DeletedMetadata(name=name, path_lower=change.lower, path_display=change.lower)
            found.append(gone if node is None else node.metadata)
        return found

"""What is used of Dropbox's SDK and of fs.dropboxfs, as types: they have none.

Used by dropbox.py.  The names are those of the SDK's own classes where it has one for each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import IO, Protocol


class Metadata(Protocol):
    """What is looked at in FileMetadata, FolderMetadata and DeletedMetadata."""

    path_lower: str | None
    size: int


class Page(Protocol):
    entries: Sequence[Metadata]
    cursor: str
    has_more: bool


class Answer(Protocol):
    """The part of requests' Response that is used."""

    raw: IO[bytes]

    def close(self) -> None: ...


class Allocation(Protocol):
    def is_individual(self) -> bool: ...
    def is_team(self) -> bool: ...
    def get_individual(self) -> Individual: ...
    def get_team(self) -> Team: ...


class Individual(Protocol):
    allocated: int


class Team(Protocol):
    used: int
    allocated: int
    user_within_team_space_allocated: int


class Usage(Protocol):
    used: int
    allocation: Allocation


class Client(Protocol):
    """The part of the SDK's Dropbox that is used; it has no types."""

    def clone(self, **arguments: object) -> Client: ...
    def check_and_refresh_access_token(self) -> None: ...
    def close(self) -> None: ...
    def files_upload(self, data: bytes, path: str, **arguments: object) -> Metadata: ...
    def files_upload_session_start(self, data: bytes) -> Session: ...
    def files_upload_session_append_v2(self, data: bytes, cursor: object) -> None: ...
    def files_upload_session_finish(self, data: bytes, cursor: object, commit: object) -> Metadata: ...
    def files_download(self, path: str, *, extra_headers: dict[str, str]) -> tuple[Metadata, Answer]: ...
    def files_get_metadata(self, path: str) -> Metadata: ...
    def files_delete_v2(self, path: str) -> object: ...
    def files_delete_batch(self, entries: Sequence[object]) -> Job: ...
    def files_delete_batch_check(self, job_id: str) -> Job: ...
    def files_list_folder(self, path: str, **arguments: object) -> Page: ...
    def files_list_folder_continue(self, cursor: str) -> Page: ...
    def users_get_space_usage(self) -> Usage: ...


class Session(Protocol):
    session_id: str


class Job(Protocol):
    """DeleteBatchLaunch, and DeleteBatchJobStatus, which has two states more."""

    def is_async_job_id(self) -> bool: ...
    def get_async_job_id(self) -> str: ...
    def is_in_progress(self) -> bool: ...
    def is_complete(self) -> bool: ...
    def get_complete(self) -> Deleted: ...


class Deleted(Protocol):
    entries: Sequence[Outcome]


class Outcome(Protocol):
    def is_failure(self) -> bool: ...
    def get_failure(self) -> object: ...


class OpenedFS(Protocol):
    """The part of fs.dropboxfs's DropboxFS that is used."""

    dropbox: Client

    def close(self) -> None: ...

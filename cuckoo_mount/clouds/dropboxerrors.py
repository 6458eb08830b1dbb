"""What Dropbox's refusals, and a broken connection to it, are as errors of ours, each with what to do next.

Used by dropbox.py, dropboxsession.py and dropboxlogin.py.  Pure functions, any thread.  An answer of Dropbox names what
is wrong by tags, one in the other: `path`, in it `reason`, in it `insufficient_space`.  They are read from the answer
itself, so that tags that are newer than the SDK do not get lost in it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final

from cuckoo_mount.clouds.base import CloudSettings
from cuckoo_mount.clouds.dropboxplace import DropboxPlace
from cuckoo_mount.clouds.translate import busy, describe, hide_secrets
from cuckoo_mount.errors import (
    CloudBusy,
    CloudCorrupt,
    CloudError,
    CloudFull,
    CloudMissing,
    CloudNeedsLogin,
    CloudRefused,
    CloudTimeout,
    CloudUnavailable,
)

LOG_IN: Final = "log in again: cuckoo cloud login {cloud}"
NOT_JSON: Final = "something else than {endpoint} answered; is there a proxy or a login page of the network in between?"
_TEXT_MAX_CHARACTERS: Final = 200
# By the innermost tag.
_BY_TAG: Final[dict[str, tuple[type[CloudError], str]]] = {
    "not_found": (CloudMissing, "no such object"),
    "not_file": (CloudMissing, "no such object: a folder is there"),
    "not_folder": (CloudMissing, "no such folder: a file is there"),
    "insufficient_space": (CloudFull, "no room there"),
    "too_many_requests": (CloudBusy, "too many requests"),
    "too_many_write_operations": (CloudBusy, "too many writes at a time"),
    "content_hash_mismatch": (CloudUnavailable, "it arrived damaged; try again"),
    "file_ancestor": (CloudRefused, "a file lies where a folder has to be; move it away"),
    "folder": (CloudRefused, "a folder lies where the object has to be; move it away"),
    "no_write_permission": (CloudRefused, "this login may not write there; check the permissions of the folder"),
    "reset": (CloudUnavailable, "the listing has to begin anew; try again"),
    "incorrect_offset": (CloudUnavailable, "the upload in parts got out of step; try again"),
    "invalid_access_token": (CloudNeedsLogin, f"the login is not valid (any more); {LOG_IN}"),
    "expired_access_token": (CloudNeedsLogin, f"the login has expired; {LOG_IN}"),
    "missing_scope": (
        CloudNeedsLogin,
        f"the app lacks the permission {{scope}}; tick it in Dropbox's App Console, then {LOG_IN}",
    ),
    "user_suspended": (CloudRefused, "Dropbox has suspended this account; ask Dropbox"),
}
_BY_STATUS: Final[dict[int, tuple[type[CloudError], str]]] = {
    401: (CloudNeedsLogin, f"the login was refused; {LOG_IN}"),
    403: (CloudRefused, "not allowed for this account or app"),
    408: (CloudTimeout, "the service waited too long for the request"),
    416: (CloudCorrupt, "the object ends before the range that was asked for"),
    429: (CloudBusy, "too many requests"),
    503: (CloudBusy, "busy"),
    507: (CloudFull, "no room there"),
}
_ABOUT_OBJECTS: Final = frozenset({"path", "path_lookup"})
"""The outermost tags where "not found" is about an object; elsewhere it is about an upload in parts or a job."""
_TLS: Final = frozenset({"SSLError", "CertificateError"})
_NOTHING_THERE: Final = frozenset({"NewConnectionError", "NameResolutionError", "ConnectTimeoutError"})
_NO_API: Final = frozenset({"AssertionError", "JSONDecodeError", "KeyError", "ValidationError"})
"""What the SDK raises for answers that are not of the API."""


class Refusal(Exception):
    """An answer that is not what was asked for, as it came.

    `tags`: what is wrong, from the outside to the inside; `scope`: the permission that is missing; `text`: for people.
    `is_login`: it is about the login, not about what is done with it.
    """

    def __init__(self, status: int, body: str, *, retry_after: str = "", is_login: bool = False) -> None:
        super().__init__(status)
        self.status = status
        self.is_login = is_login
        document = _document(body)
        error = document.get("error")
        self.tags = tags_in(error)
        self.scope = str(error.get("required_scope", "")) if isinstance(error, dict) else ""
        inner = error.get("retry_after", "") if isinstance(error, dict) else ""
        self.retry_after = retry_after or str(inner)
        said = document.get("error_description") or document.get("error_summary") or (body if not document else "")
        self.text = " ".join(str(said).split())[:_TEXT_MAX_CHARACTERS]


def tags_in(node: object) -> tuple[str, ...]:
    """Return the tags of an error in JSON, the outermost first.  What is no such error has none."""
    found: list[str] = []
    while isinstance(node, dict):
        tag = node.get(".tag")
        if tag is not None:
            found.append(str(tag))
        # What belongs to a tag lies under its name, or, where that is a record, beside it under `reason`.
        node = node.get(str(tag)) if isinstance(node.get(str(tag)), dict) else node.get("reason")
    return tuple(found)


def refused(refusal: Refusal, settings: CloudSettings, place: DropboxPlace, name: str) -> CloudError:
    """Return the error for an answer that is not what was asked for."""
    if refusal.is_login and 400 <= refusal.status < 500 and refusal.status not in (408, 429):
        said = f" ({_quoted(refusal.text)})" if refusal.text else ""
        kind: type[CloudError] = CloudNeedsLogin
        text = f"the login was revoked, or is not one of this app{said}; {LOG_IN}"
    elif refusal.status < 400:  # a page of somebody else, or the way to one
        kind, text = CloudUnavailable, NOT_JSON
    else:
        kind, text = _meaning(refusal)
    text = text.format(cloud=settings.name, scope=refusal.scope, endpoint=place.endpoint)
    text = hide_secrets(text, settings)
    if kind is CloudBusy:
        return busy(text, refusal.retry_after, cloud=settings.name, name=name)
    return kind(text, cloud=settings.name, name=name)


def _meaning(refusal: Refusal) -> tuple[type[CloudError], str]:
    for tag in reversed(refusal.tags):
        if tag in _BY_TAG:
            kind, text = _BY_TAG[tag]
            if kind is CloudMissing and refusal.tags[0] not in _ABOUT_OBJECTS:
                return CloudUnavailable, "what was begun in several requests was broken off; try again"
            return kind, text
    known = _BY_STATUS.get(refusal.status)
    said = f": {_quoted(refusal.text)}" if refusal.text else ""
    if known is not None:
        kind, text = known
        return kind, f"{text} (HTTP status {refusal.status})"
    if refusal.tags:
        return CloudUnavailable, f"{{endpoint}} refused it: {_quoted('/'.join(refusal.tags))}"
    return CloudUnavailable, f"{{endpoint}} answered HTTP status {refusal.status}{said}"


def _quoted(text: str) -> str:
    """Return `text` such that formatting leaves it as it is."""
    return text.replace("{", "{{").replace("}", "}}")


def broken(error: Exception, settings: CloudSettings, place: DropboxPlace, name: str) -> CloudError:
    """Return the error for a request that got no whole answer, or one that is not of the API."""
    kinds = {parent.__name__ for cause in causes_of(error) for parent in type(cause).__mro__}
    if kinds & _TLS:
        trouble = "check the clock, and whether this machine trusts its certificate (option ca_file)"
        text = f"no secure connection to {place.endpoint}: {describe(error, settings)}; {trouble}"
    elif kinds & _NOTHING_THERE:
        text = f"nothing answers at {place.endpoint}; check the network"
    elif kinds & {"Timeout", "TimeoutError"}:
        return CloudTimeout(f"no answer in time from {place.endpoint}", cloud=settings.name, name=name)
    elif kinds & _NO_API:
        text = NOT_JSON.format(endpoint=place.endpoint)
    else:
        text = f"the connection to {place.endpoint} broke: {describe(error, settings)}"
    kind = CloudTimeout if "ConnectTimeoutError" in kinds else CloudUnavailable
    return kind(text, cloud=settings.name, name=name)


def causes_of(error: BaseException) -> Sequence[BaseException]:
    """Return `error` and what it was made of, as requests and urllib3 nest them."""
    found: list[BaseException] = []
    following: object = error
    while isinstance(following, BaseException) and following not in found:
        found.append(following)
        inner = [argument for argument in following.args if isinstance(argument, BaseException)]
        following = getattr(following, "reason", None)
        if not isinstance(following, BaseException):
            following = inner[0] if inner else found[-1].__cause__
    return found


def _document(body: str) -> dict[str, object]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}

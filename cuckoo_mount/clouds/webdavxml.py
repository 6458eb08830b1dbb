"""What is asked by PROPFIND, and what a multistatus answer (RFC 4918) says.  Used by webdav.py.  Pure, any thread."""

from __future__ import annotations

from email.utils import parsedate_to_datetime
from typing import Final
from urllib.parse import unquote, urlsplit
from xml.etree import ElementTree

from attrs import frozen

from cuckoo_mount.clouds.walking import Entry

_DAV: Final = "{DAV:}"
_TOO_MUCH: Final = 507


def question(*properties: str) -> bytes:
    """Return the body of a PROPFIND that asks for `properties` of the namespace DAV:."""
    wanted = "".join(f"<D:{name}/>" for name in properties)
    start = '<?xml version="1.0" encoding="utf-8"?><D:propfind xmlns:D="DAV:">'
    return f"{start}<D:prop>{wanted}</D:prop></D:propfind>".encode()


ABOUT_ENTRIES: Final = question("resourcetype", "getcontentlength", "getlastmodified")
ABOUT_SPACE: Final = question("quota-available-bytes", "quota-used-bytes")


@frozen(slots=True)
class Found:
    """One resource of an answer: unquoted path without `/` at its ends, whether it is a collection, its properties."""

    path: str
    is_folder: bool
    properties: dict[str, str]


def parse_multistatus(body: bytes) -> list[Found]:
    """Return the resources of an answer.  Raises: ValueError if it is none, or says that it is not complete."""
    try:
        root = ElementTree.fromstring(body)
    except ElementTree.ParseError as error:
        raise ValueError("the answer is not XML") from error
    if root.tag != f"{_DAV}multistatus":
        raise ValueError("the answer is no multistatus")
    found = []
    for response in root.findall(f"{_DAV}response"):
        status = _status(response)
        if status == _TOO_MUCH:
            raise ValueError("the server left a part of the listing out")
        if status in (None, 200):
            found.append(_found(response))
    return found


def entries_of(found: list[Found], path: str) -> list[Entry]:
    """Return what lies directly in the folder that was asked for by its URL's unquoted `path`, with Depth 1.

    Paths in answers need not begin as the one asked for: there may be a proxy in front that maps them.
    Raises: ValueError if it is no folder, or sizes are missing.
    """
    asked = path.strip("/")
    # What lies in it has its path, and more.
    shortest = min(found, key=lambda resource: len(resource.path), default=None)
    own = asked
    if shortest is not None and (shortest.path == asked or _leads(shortest.path, found)):
        if not shortest.is_folder:
            raise ValueError("there is a file where a folder should be")
        own = shortest.path
    entries = []
    for resource in found:
        name = resource.path.rpartition("/")[2]
        if resource.path == own or not name:
            continue
        entries.append(_entry(name, resource))
    return entries


def _leads(path: str, found: list[Found]) -> bool:
    start = f"{path}/" if path else ""
    return all(resource.path == path or resource.path.startswith(start) for resource in found)


def _entry(name: str, resource: Found) -> Entry:
    if resource.is_folder:
        return Entry(name, None)
    size = resource.properties.get("getcontentlength", "")
    if not size.isdecimal():
        raise ValueError("the server does not tell the sizes of files")
    return Entry(name, int(size), _time(resource.properties.get("getlastmodified", "")))


def _time(text: str) -> float:
    try:
        return parsedate_to_datetime(text).timestamp()
    except ValueError:
        return 0.0


def _status(element: ElementTree.Element) -> int | None:
    text = element.findtext(f"{_DAV}status")
    words = (text or "").split()
    return int(words[1]) if len(words) > 1 and words[1].isdecimal() else None


def _found(response: ElementTree.Element) -> Found:
    path = unquote(urlsplit((response.findtext(f"{_DAV}href") or "").strip()).path).strip("/")
    is_folder, properties = False, {}
    for part in response.findall(f"{_DAV}propstat"):
        given = part.find(f"{_DAV}prop")
        if given is None or _status(part) not in (None, 200):
            continue
        is_folder = is_folder or given.find(f"{_DAV}resourcetype/{_DAV}collection") is not None
        properties.update({item.tag.removeprefix(_DAV): (item.text or "").strip() for item in given})
    return Found(path, is_folder, properties)

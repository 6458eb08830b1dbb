"""The services of OpenDAL as file systems of fsspec's shape: Google Drive, OneDrive and what else it knows.

Used by fsspeckinds.py.  opendal (extra `opendal`) is imported when one is made.  Any thread without a loop of
asyncio's.  Why not fsspec's own: gdrive-fsspec makes a second file of the same name when one is stored again, and then
takes both for missing; msgraphfs logs in to companies' accounts only.
"""

from __future__ import annotations

import asyncio
import importlib
import re
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final, Protocol, cast

from cuckoo_mount.clouds.fsspectypes import Entry, FsspecPlace

_MISSING: Final = "NotFound"
_STATUS: Final = re.compile(r"\bstatus: (\d{3})\b")
_RETRY_AFTER: Final = re.compile(r"\"retry-after\": \"([^\"]*)\"", re.IGNORECASE)


class _Metadata(Protocol):
    @property
    def content_length(self) -> int: ...
    @property
    def is_dir(self) -> bool: ...


class _Item(Protocol):
    @property
    def path(self) -> str: ...
    @property
    def metadata(self) -> _Metadata: ...


class _AsyncOperator(Protocol):
    async def list(self, path: str, **options: object) -> AsyncIterator[_Item]: ...


class _Operator(Protocol):
    """The part of opendal.Operator that is used."""

    def layer(self, layer: object) -> _Operator: ...
    def stat(self, path: str) -> _Metadata: ...
    def to_async_operator(self) -> _AsyncOperator: ...
    def create_dir(self, path: str) -> None: ...
    def write(self, path: str, data: bytes) -> None: ...
    def read(self, path: str, **options: object) -> bytes: ...
    def delete(self, path: str) -> None: ...


class OpenDalError(OSError):
    """What OpenDAL says, in one line: its own text has URLs with secrets in them.

    `kind`: the class of its error.  `status`: of HTTP, 0 if there was no answer.  `retry_after`: that header.
    """

    def __init__(self, kind: str, text: str, status: int = 0, retry_after: str = "") -> None:
        super().__init__(text)
        self.kind = kind
        self.status = status
        self.retry_after = retry_after


@contextmanager
def _one_line() -> Iterator[None]:
    """Raises: FileNotFoundError or OpenDalError in place of what opendal raises."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise _told(error) from None  # without the cause, which would be shown in a traceback


def _told(error: Exception) -> OSError:
    """Return what an error of opendal says, without what may be secret in its text."""
    kind, text = type(error).__name__, str(error)
    lines = text.splitlines()
    source = [lines[at + 1].strip() for at, line in enumerate(lines[:-1]) if line.strip() == "Source:"]
    found = _STATUS.search(text)
    # Where there was an answer, what follows is its body.
    said = (
        lines[0].partition("=>")[0].strip() + f": HTTP status {found[1]}" if found else ": ".join([*lines[:1], *source])
    )
    if kind == _MISSING:
        return FileNotFoundError(said)
    if found is None:
        return OpenDalError(kind, said)
    waits = _RETRY_AFTER.search(text)
    return OpenDalError(kind, said, int(found[1]), waits[1] if waits else "")


class OpenDalFileSystem:
    """Service `service` with its options, as `opendal.Operator` takes them; paths have no `/` at either end.

    Its root is that of the account, as OpenDAL believes without asking that its own root is there.
    Raises: OpenDalError, FileNotFoundError.
    """

    def __init__(self, service: str, timeout_s: float, **options: str) -> None:
        """Nothing is sent.  Raises: ImportError; OpenDalError for options that are missing or wrong."""
        opendal = importlib.import_module("opendal")
        layers = importlib.import_module("opendal.layers")
        with _one_line():
            made = cast(_Operator, opendal.Operator(service, **options))
            self._operator = made.layer(layers.TimeoutLayer(timeout=timeout_s, io_timeout=timeout_s))

    def info(self, path: str) -> Entry:
        with _one_line():
            try:
                found = self._operator.stat(path or "/")
            except Exception as error:
                if type(error).__name__ != _MISSING:
                    raise
                found = self._operator.stat(f"{path}/")
            return {"name": path, "size": found.content_length, "type": "directory" if found.is_dir else "file"}

    def ls(self, path: str, detail: bool = True) -> Sequence[Entry]:
        return self._listed(path, recursive=False)

    def find(self, path: str, detail: bool = True) -> Mapping[str, Entry]:
        return {str(entry["name"]): entry for entry in self._listed(path, recursive=True) if entry["type"] == "file"}

    def mkdir(self, path: str, create_parents: bool = True) -> None:
        with _one_line():
            self._operator.create_dir(f"{path}/")

    def pipe_file(self, path: str, value: bytes) -> None:
        with _one_line():
            self._operator.write(path, value)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        """Return nothing for a range that goes beyond the end, which it does not tell from an answer that was cut."""
        with _one_line():
            if start is None or end is None:
                return bytes(self._operator.read(path))
            try:
                return bytes(self._operator.read(path, offset=start, size=end - start))
            except Exception as error:
                if type(error).__name__ != _MISSING and self._operator.stat(path).content_length < end:
                    return b""
                raise

    def rm_file(self, path: str) -> None:
        with _one_line():
            self._operator.delete(path)

    def rmdir(self, path: str) -> None:
        with _one_line():
            self._operator.delete(f"{path}/")

    def _listed(self, path: str, *, recursive: bool) -> list[Entry]:
        # Its blocking lister keeps the GIL while it waits for the server, which would stop all transfers of a worker.
        with _one_line():
            return asyncio.run(_collect(self._operator.to_async_operator(), path, recursive=recursive))


async def _collect(operator: _AsyncOperator, path: str, *, recursive: bool) -> list[Entry]:
    found: list[Entry] = []
    async for item in await operator.list(f"{path}/" if path else "", recursive=recursive):
        name = item.path.strip("/")
        if name == path or not name:
            continue  # the folder itself
        folder = item.path.endswith("/")
        size = 0 if folder else item.metadata.content_length
        found.append({"name": name, "size": size, "type": "directory" if folder else "file"})
    return found


def service_at(place: FsspecPlace) -> tuple[dict[str, object], str]:
    """Return the arguments for the service that `place` names by its protocol, `opendal+SERVICE` or just that."""
    service = place.protocol.rpartition("+")[2]
    return {"service": service, "timeout_s": place.timeout_s, "root": "/"}, place.target.strip("/")

"""Copies a source into a folder: folders as they are, files several at a time, each whole or not at all.

Used by `cuckoo import`.  Blocks; one call at a time.  A file is written under a name of its own beside its place, and
renamed when it has all the bytes that were announced.  Run again, it goes on: what is there with the same size and time
is left as it is.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Final

from attrs import define, field, frozen

from cuckoo_mount.clouds.walking import Entry
from cuckoo_mount.errors import CloudCorrupt, CloudError, CloudMissing, NoSpace, ReadOnly
from cuckoo_mount.sources.base import Source
from cuckoo_mount.types import NAME_MAX_BYTES

QUEUED_PER_JOB: Final = 16
"""Files that wait for a thread, so that a listing of millions of names is not held in memory."""
TROUBLES_KEPT: Final = 1000
_TEMPORARY: Final = ".cuckoo-import-"
_ENDS_IT: Final = frozenset({NoSpace.errno, ReadOnly.errno})
"""With these errors of the target no other file would fare better."""
_NOT_NAMES: Final = frozenset({"", ".", ".."})


@frozen(slots=True, kw_only=True)
class Wishes:
    """`jobs`: files at a time.  `overwrite`: replace files that are there and differ.  `dry_run`: only count."""

    jobs: int = 4
    overwrite: bool = False
    dry_run: bool = False


@define(slots=True)
class Outcome:
    """What was done.  `present`: files that were there already; `differing`: those left as they are, though they
    differ; `troubles`: lines on what was not copied, the first 1,000; `failed`: how many there are."""

    folders: int = 0
    files: int = 0
    size_bytes: int = 0
    present: int = 0
    failed: int = 0
    differing: list[str] = field(factory=list)
    troubles: list[str] = field(factory=list)


class Importer:
    """One import of `source`, from its folder `root` on, into the folder `target`, which exists.

    `tell` is called now and then, by any thread, with what was done so far.
    """

    def __init__(
        self, source: Source, target: Path, wishes: Wishes, *, root: str, tell: Callable[[Outcome], None]
    ) -> None:
        self._source = source
        self._target = target
        self._wishes = wishes
        self._root = root
        self._tell = tell
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._room = threading.BoundedSemaphore(wishes.jobs * QUEUED_PER_JOB)
        self._outcome = Outcome()
        self._broken: BaseException | None = None

    def run(self) -> Outcome:
        """Copy everything; what fails is a line in the outcome.  Interrupted, it leaves no part of a file behind.

        Raises: CloudError if the root cannot be listed; OSError if the target's disk is full, or will not do.
        """
        pending = [("", self._source.entries(self._root))]
        with ThreadPoolExecutor(self._wishes.jobs) as threads:
            try:
                while pending and not self._stop.is_set():
                    folder, entries = pending.pop()
                    for entry in entries:
                        path = f"{folder}{entry.name}"
                        if not _is_name(entry.name):
                            self._fail(path, "its name cannot be one of a file here")
                        elif entry.size_bytes is not None:
                            self._room.acquire()
                            threads.submit(self._copy_guarded, path, entry)
                        elif self._make_folder(path):
                            pending.append((f"{path}/", self._listed(path)))
            except BaseException:
                self._stop.set()
                threads.shutdown(cancel_futures=True)
                raise
        if self._broken is not None:
            raise self._broken
        return self._outcome

    def _listed(self, path: str) -> list[Entry]:
        try:
            return self._source.entries(self._name(path))
        except CloudError as error:
            self._fail(path, str(error))
            return []

    def _name(self, path: str) -> str:
        return f"{self._root}/{path}" if self._root else path

    def _make_folder(self, path: str) -> bool:
        try:
            if not self._wishes.dry_run:
                (self._target / path).mkdir(exist_ok=True)
        except OSError as error:
            self._fail(path, error.strerror or str(error))
            return False
        self._outcome.folders += 1
        return True

    def _copy_guarded(self, path: str, entry: Entry) -> None:
        try:
            if not self._stop.is_set():
                self._copy(path, entry)
        except CloudMissing:
            self._fail(path, "it is there no more")
        except CloudError as error:
            self._fail(path, str(error))
        except OSError as error:
            if error.errno in _ENDS_IT:
                self._end(error)
            self._fail(path, error.strerror or str(error))
        except BaseException as error:  # raised where the threads were started
            self._end(error)
        finally:
            self._room.release()

    def _end(self, error: BaseException) -> None:
        with self._lock:
            self._broken = self._broken or error
        self._stop.set()

    def _copy(self, path: str, entry: Entry) -> None:
        place = self._target / path
        if os.path.lexists(place):
            if _is_same(place, entry):
                with self._lock:
                    self._outcome.present += 1
                return
            if not self._wishes.overwrite:
                with self._lock:
                    self._outcome.differing.append(path)
                return
        size_bytes = entry.size_bytes or 0
        if not self._wishes.dry_run:
            self._write(path, place, size_bytes, entry.changed_s)
        if not self._stop.is_set():
            with self._lock:
                self._outcome.files += 1
                self._outcome.size_bytes += size_bytes
                self._tell(self._outcome)

    def _write(self, path: str, place: Path, size_bytes: int, changed_s: float) -> None:
        digest = hashlib.sha256(place.name.encode("utf-8", "surrogateescape")).hexdigest()
        temporary = place.with_name(f"{_TEMPORARY}{digest[:16]}")
        written = 0
        try:
            with temporary.open("wb") as file:
                for block in self._source.blocks(self._name(path), size_bytes):
                    if self._stop.is_set():
                        break
                    file.write(block)
                    written += len(block)
            if self._stop.is_set():
                temporary.unlink()
                return
            if written != size_bytes:
                raise CloudCorrupt(f"{size_bytes} bytes announced, {written} came; was it changed?", name=path)
            if changed_s:
                os.utime(temporary, (changed_s, changed_s))
            temporary.rename(place)
        except BaseException:
            with suppress(FileNotFoundError):
                temporary.unlink()
            raise

    def _fail(self, path: str, why: str) -> None:
        with self._lock:
            self._outcome.failed += 1
            if len(self._outcome.troubles) < TROUBLES_KEPT:
                self._outcome.troubles.append(f"{path}: {why}")


def _is_name(name: str) -> bool:
    if name in _NOT_NAMES or "/" in name or "\0" in name:
        return False
    try:
        return len(os.fsencode(name)) <= NAME_MAX_BYTES
    except UnicodeEncodeError:
        return False


def _is_same(place: Path, entry: Entry) -> bool:
    """Return whether what is at `place` has the size, and the time where one is known, of what is to be copied."""
    found = place.lstat()
    return found.st_size == entry.size_bytes and (not entry.changed_s or int(found.st_mtime) == int(entry.changed_s))

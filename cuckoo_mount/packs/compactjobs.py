"""Bringing chunks that still live from an old pack into a plain file, in a worker process.

Used by packs/compaction.py through PackReader.  May run several times for one `SaveRun`, also at the same time: it
always writes the same verified bytes to the same place.  Owns: only what was compared with its keyed hash is written
(I-11).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Final

from attrs import frozen

from cuckoo_mount.errors import DataUnavailable
from cuckoo_mount.multi.stripejobs import Source
from cuckoo_mount.packs.jobs import OpenSpec, fetch_run
from cuckoo_mount.types import Location

SAVE_GAP_BYTES: Final = 1 << 20
"""Dead bytes that are transferred rather than making one more request: nobody waits for a compaction."""
SAVE_MAX_BYTES: Final = 16 << 20


@frozen(slots=True)
class SaveRun:
    """Chunks of one pack, to be written back to back from `start` on into the file `path`, which exists."""

    locations: tuple[Location, ...]
    path: str
    start: int


def save_run(source: Source, name: str, spec: OpenSpec, run: SaveRun) -> int:
    """Fetch the chunks of a run with one range request and write their plain bytes; return how many.

    Raises: CloudCorrupt and what `Cloud.get_range` raises; DataUnavailable when the local disk refuses.
    """
    plain = b"".join(fetch_run(source, name, spec, run.locations))
    try:
        # Not made here: one that was removed meanwhile is not wanted any more.
        descriptor = os.open(run.path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            left, offset = memoryview(plain), run.start
            while left:
                written = os.pwrite(descriptor, left, offset)
                left, offset = left[written:], offset + written
        finally:
            os.close(descriptor)
    except OSError as error:
        raise DataUnavailable(f"cannot write a chunk to {run.path}: {error.strerror}; check the local disk") from None
    return len(plain)


def save_runs(locations: Sequence[Location], path: str, start: int) -> Iterator[SaveRun]:
    """Yield few, long runs that together bring all of these chunks of one pack, given by offset, into `path`."""
    group: list[Location] = []
    for location in locations:
        if group:
            gap_bytes = location.offset - (group[-1].offset + group[-1].length_bytes)
            length_bytes = location.offset + location.length_bytes - group[0].offset
            if gap_bytes > SAVE_GAP_BYTES or length_bytes > SAVE_MAX_BYTES:
                yield SaveRun(tuple(group), path, start)
                start += sum(saved.plain_bytes for saved in group)
                group = []
        group.append(location)
    if group:
        yield SaveRun(tuple(group), path, start)


def one_by_one(run: SaveRun) -> Iterator[SaveRun]:
    """Yield runs of one chunk each that together do what `run` does."""
    start = run.start
    for location in run.locations:
        yield SaveRun((location,), run.path, start)
        start += location.plain_bytes

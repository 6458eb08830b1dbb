"""Reading chunks in a worker process: one range request, then unseal and compare.

Used by packs/reader.py through MultiFS.first_whole.  Importable functions of picklable arguments, may be repeated.
Owns: nothing leaves here that was not compared with its keyed hash (I-11).
"""

from __future__ import annotations

from collections.abc import Sequence

from attrs import field, frozen

from cuckoo_mount.errors import CloudCorrupt, FormatError
from cuckoo_mount.layers.base import SealContext
from cuckoo_mount.layers.keys import DriveKeys
from cuckoo_mount.layers.stack import stack_of
from cuckoo_mount.multi.stripejobs import Source, read_range
from cuckoo_mount.types import Location


@frozen(slots=True, kw_only=True)
class OpenSpec:
    """What opens the bodies of one pack."""

    drive_id: bytes
    pack_id: bytes
    keys: DriveKeys = field(repr=False)
    encrypted: bool


def fetch_chunk(source: Source, name: str, spec: OpenSpec, location: Location) -> bytes:
    """Return the verified plain bytes of the chunk at `location` of object `name`.

    Raises: CloudCorrupt when they are not what was stored; otherwise as `Cloud.get_range`.
    """
    return fetch_run(source, name, spec, (location,))[0]


def fetch_run(source: Source, name: str, spec: OpenSpec, locations: Sequence[Location]) -> list[bytes]:
    """Return the verified plain bytes of several chunks of one object, in order, with one range request over them all.

    `locations`: at least one; what lies between them is transferred too.  Raises: as `fetch_chunk`, for any of them.
    """
    start, data = _get_span(source, name, locations)
    return [_open(source, name, spec, location, data[location.offset - start :]) for location in locations]


def fetch_ahead(source: Source, name: str, spec: OpenSpec, locations: Sequence[Location]) -> list[bytes | None]:
    """As `fetch_run`, but only the first chunk has to be right: another one that is not is None.

    Raises: as `fetch_chunk`, for the first one.
    """
    start, data = _get_span(source, name, locations)
    first, *others = [(location, data[location.offset - start :]) for location in locations]
    found: list[bytes | None] = [_open(source, name, spec, *first)]
    for location, body in others:
        try:
            found.append(_open(source, name, spec, location, body))
        except CloudCorrupt:
            # Nobody waits for it.  Who reads it one day asks for it alone, and for its other copies.
            found.append(None)
    return found


def _get_span(source: Source, name: str, locations: Sequence[Location]) -> tuple[int, memoryview]:
    """Return where the first of these locations begins, and the bytes from there to the end of the last."""
    start = min(location.offset for location in locations)
    end = max(location.offset + location.length_bytes for location in locations)
    data = memoryview(read_range(source, name, start, end - start))
    if len(data) != end - start:
        raise CloudCorrupt(f"{len(data)} bytes came instead of {end - start}", cloud=source.name, name=name)
    return start, data


def _open(source: Source, name: str, spec: OpenSpec, location: Location, data: memoryview) -> bytes:
    context = SealContext(spec.drive_id, spec.pack_id, location.offset, location.digest, location.plain_bytes)
    sealed = bytes(data[: location.length_bytes])
    try:
        plain = stack_of(spec.keys, encrypted=spec.encrypted).unseal(sealed, context)
        spec.keys.check_chunk(plain, location.digest)
    except (CloudCorrupt, FormatError) as error:
        where = f"chunk of {location.length_bytes} bytes at {location.offset}"
        raise CloudCorrupt(f"{where}: {error}", cloud=source.name, name=name) from None
    return plain

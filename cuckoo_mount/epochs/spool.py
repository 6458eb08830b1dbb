"""Records of a cut, put aside on the local disk so that the cut can be closed before its content is on the clouds.

Used by engine.py.  Blocks; runs in threads.  Plain text below the state folder, like everything there; it survives
nothing: whoever is interrupted makes the cut again.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from cuckoo_mount.epochs.records import decode, encode
from cuckoo_mount.metadata.records import JournalRecord

_PART_BYTES: Final = 256 << 10
_LENGTH: Final = struct.Struct("<I")


def write_spool(path: Path, records: Iterable[JournalRecord]) -> None:
    """Write the records to file `path`.  Raises: OSError, and whatever `records` raises."""
    with open(path, "wb", opener=_private) as file:
        parts: list[bytes] = []
        length = 0
        for record in records:
            parts.append(encode(record))
            length += len(parts[-1])
            if length >= _PART_BYTES:
                file.write(_LENGTH.pack(length) + b"".join(parts))
                parts, length = [], 0
        file.write(_LENGTH.pack(length) + b"".join(parts))


def read_spool(path: Path) -> Iterator[JournalRecord]:
    """Yield the records of a file that was written whole.  Raises: OSError."""
    with open(path, "rb") as file:
        while head := file.read(_LENGTH.size):
            yield from decode(file.read(_LENGTH.unpack(head)[0]))


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)

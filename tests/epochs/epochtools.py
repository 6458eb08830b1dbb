"""What the tests of epochs share: keys, names, headers, and records of every table with odd values."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from hypothesis import strategies as st

from cuckoo_mount.epochformat import NO_PREDECESSOR, EpochHeader, EpochKind, EpochName
from cuckoo_mount.epochs.objects import EpochSummary, new_header, read_epoch, write_epoch
from cuckoo_mount.epochs.sealing import EpochKeys
from cuckoo_mount.layers.keys import DriveKeys
from cuckoo_mount.metadata.records import JournalRecord
from cuckoo_mount.metadata.schema import JOURNALED

DRIVE = bytes(range(16))
KEYS = EpochKeys(DriveKeys(bytes(range(32))))
OTHER_KEYS = EpochKeys(DriveKeys(bytes(32)))

INTS = st.integers(-(1 << 63), (1 << 63) - 1) | st.sampled_from(
    [sign * ((1 << bits) + step) for bits in range(7, 63) for step in (-1, 0, 1) for sign in (1, -1)]
)
# Names are any bytes but / and NUL, up to 255 of them; values of attributes may be empty.
BYTES = st.binary(max_size=300) | st.sampled_from([b"", b"\xff" * 255, b"\xc3\x28", b"x" * 127, b"x" * 128])
TEXT = st.text(max_size=40) | st.sampled_from(["", "ä" * 127, "\U0001f426", "a\x00b"])


@st.composite
def records(draw: st.DrawFn) -> JournalRecord:
    """Any record that the format can carry, also values that no column takes."""
    table = draw(st.sampled_from(JOURNALED))
    key = tuple(draw(INTS | BYTES | TEXT) for _ in table.keys)
    if draw(st.booleans()):
        return JournalRecord(table.name, key, None)
    return JournalRecord(table.name, key, tuple(draw(st.none() | INTS | BYTES | TEXT) for _ in table.values))


def name_of(epoch: int, *, term: int = 1, writer: int = 7, kind: EpochKind | None = None) -> EpochName:
    return EpochName(term, epoch, writer, kind or ("snapshot" if epoch == 1 else "journal"))


def header_of(name: EpochName, predecessor: bytes | None = None, *, encrypted: bool = True) -> EpochHeader:
    before = predecessor or (NO_PREDECESSOR if name.epoch == 1 else b"\x01" * 32)
    return new_header(DRIVE, name, time_ns=5, predecessor=before, encrypted=encrypted)


def write(
    folder: Path,
    found: Iterable[JournalRecord],
    name: EpochName | None = None,
    predecessor: bytes | None = None,
    *,
    encrypted: bool = True,
) -> tuple[Path, EpochName, EpochSummary]:
    """Write an object into `folder` under its name."""
    name = name or name_of(1)
    path = folder / str(name)
    return path, name, write_epoch(path, header_of(name, predecessor, encrypted=encrypted), KEYS, found)


def read(source: Path | bytes, name: EpochName) -> list[JournalRecord]:
    """Return all records of an object, verified to the end."""
    with read_epoch(source, KEYS, DRIVE, name) as epoch:
        return list(epoch.records())

"""Versions being sealed: their bytes stay readable, here or aside, until they are thawed (I-7).

Used by content.py and truncate.py (before every change of bytes), cutting.py, writeback.py and sending.py.  Loop only,
no checkpoints.  Nothing is copied when a version is frozen: only the first write to its chunk copies it.  Truncation
and removal copy nothing: the local file keeps the bytes until the version is thawed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from attrs import define

from cuckoo_mount.cache.files import LocalFiles
from cuckoo_mount.cache.pressure import Pressure
from cuckoo_mount.cache.sparse import reserve
from cuckoo_mount.types import CHUNK_SIZE_BYTES, ChunkIndex, DirtyChunk, InodeNo, Location, Partial, VersionNo


@define(slots=True, eq=False)
class Frozen:
    """A dirty version being sealed.  `policy`: the redundancy that its file had then.

    `is_aside`: its bytes were copied aside.  `is_displaced`: its file does not consist of it any more, as it was
    written, cut or removed since.  `partial`, `base`: what of its bytes is missing both here and aside, and where that
    is stored.
    """

    ino: InodeNo
    index: ChunkIndex
    version: VersionNo
    length_bytes: int
    policy: str
    is_aside: bool = False
    is_displaced: bool = False
    partial: Partial | None = None
    base: Location | None = None

    @property
    def chunk(self) -> DirtyChunk:
        """The version as a pack names it."""
        return DirtyChunk(self.ino, self.index, self.version, self.length_bytes)


class FrozenChunks:
    """All frozen versions; at most one per chunk.

    `Pressure.displaced_bytes` is kept here: bytes on the local disk that no row and no pending slot accounts for.
    """

    def __init__(self, files: LocalFiles, aside_folder: Path, pressure: Pressure) -> None:
        self._files = files
        self._aside_folder = aside_folder
        self._pressure = pressure
        self._items: dict[InodeNo, dict[ChunkIndex, Frozen]] = {}

    def __iter__(self) -> Iterator[Frozen]:
        """Yield all frozen versions."""
        return (frozen for chunks in self._items.values() for frozen in chunks.values())

    def __contains__(self, ino: InodeNo) -> bool:
        """Return whether anything of a file is frozen, so that its local file must stay where it is."""
        return ino in self._items

    def get(self, ino: InodeNo, index: ChunkIndex) -> Frozen | None:
        """Return what is frozen of a chunk."""
        chunks = self._items.get(ino)
        return None if chunks is None else chunks.get(index)

    def add(self, frozen: Frozen) -> None:
        """Promise that the version's bytes can be read until `thaw`."""
        chunks = self._items.setdefault(frozen.ino, {})
        assert frozen.index not in chunks, "a chunk is frozen twice"
        chunks[frozen.index] = frozen

    def thaw(self, frozen: Frozen) -> None:
        """End the promise: the copy aside, if any, goes."""
        chunks = self._items[frozen.ino]
        del chunks[frozen.index]
        if not chunks:
            del self._items[frozen.ino]
        if frozen.is_displaced:
            self._pressure.displaced_bytes -= frozen.length_bytes
        if frozen.is_aside:
            os.unlink(self.aside_path(frozen.version))

    def aside_path(self, version: VersionNo) -> str:
        """Return where a frozen version's bytes are copied before they change."""
        return f"{self._aside_folder}/{version:x}"

    def copy_cost(self, ino: InodeNo, indexes: Sequence[ChunkIndex]) -> int:
        """Return how many bytes `copy_aside` would copy."""
        chunks = self._items.get(ino)
        if chunks is None:
            return 0
        found = [chunks[index] for index in indexes if index in chunks]
        return sum(frozen.length_bytes for frozen in found if not frozen.is_aside)

    def copy_aside(self, ino: InodeNo, indexes: Iterable[ChunkIndex]) -> None:
        """Before bytes of these chunks change: save those that are being sealed.  Raises: OSError."""
        chunks = self._items.get(ino)
        if chunks is None:
            return
        for index in indexes:
            frozen = chunks.get(index)
            if frozen is None or frozen.is_aside:
                continue
            self.put_aside(frozen, self.read(frozen))
            self._displace(frozen)

    def put_aside(self, frozen: Frozen, data: bytes) -> None:
        """Let `data` be the version's bytes from now on, whatever the local file has.  Raises: OSError."""
        path = self.aside_path(frozen.version)
        # By a rename, so that a worker that looks for it finds it whole or not at all (packs/builder.py).
        try:
            with open(f"{path}.new", "wb") as file:
                reserve(file.fileno(), 0, len(data))
                file.write(data)
            os.rename(f"{path}.new", path)
        except OSError:
            Path(f"{path}.new").unlink(missing_ok=True)  # the disk is full, probably
            raise
        frozen.is_aside = True

    def read(self, frozen: Frozen) -> bytes:
        """Return the version's bytes, as far as they are here.  Raises: OSError."""
        if frozen.is_aside:
            return Path(self.aside_path(frozen.version)).read_bytes()
        file = self._files.get(frozen.ino)
        data = b"" if file is None else os.pread(file.fd, frozen.length_bytes, frozen.index * CHUNK_SIZE_BYTES)
        return data.ljust(frozen.length_bytes, b"\0")

    def needs_local(self, ino: InodeNo, first: ChunkIndex) -> bool:
        """Return whether the local file has bytes of frozen versions from chunk `first` on, so that it cannot be
        cut."""
        chunks = self._items.get(ino, {})
        return any(index >= first and not frozen.is_aside for index, frozen in chunks.items())

    def displace(self, ino: InodeNo, first: ChunkIndex) -> None:
        """The chunks of a file from `first` on were cut off or removed: their frozen bytes stay where they are."""
        for index, frozen in self._items.get(ino, {}).items():
            if index >= first:
                self._displace(frozen)

    def displace_chunk(self, ino: InodeNo, index: ChunkIndex) -> None:
        """A chunk was cut: what is frozen of it stays where it is."""
        frozen = self.get(ino, index)
        if frozen is not None:
            self._displace(frozen)

    def _displace(self, frozen: Frozen) -> None:
        if not frozen.is_displaced:
            frozen.is_displaced = True
            self._pressure.displaced_bytes += frozen.length_bytes

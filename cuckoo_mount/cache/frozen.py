"""Versions being sealed: their bytes stay readable, here or aside, until they are thawed (I-7).

Used by content.py (before every change of bytes) and writeback.py.  Loop only, no checkpoints.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from attrs import define

from cuckoo_mount.cache.files import LocalFiles
from cuckoo_mount.types import CHUNK_SIZE_BYTES, ChunkIndex, InodeNo, VersionNo


@define(slots=True, eq=False)
class Frozen:
    """A dirty version being sealed.  `is_aside`: its bytes were copied aside before the first write after the
    freeze."""

    ino: InodeNo
    index: ChunkIndex
    version: VersionNo
    length_bytes: int
    is_aside: bool = False


class FrozenChunks:
    """All frozen versions; at most one per chunk."""

    def __init__(self, files: LocalFiles, aside_folder: Path) -> None:
        self._files = files
        self._aside_folder = aside_folder
        self._items: dict[tuple[InodeNo, ChunkIndex], Frozen] = {}

    def __iter__(self) -> Iterator[Frozen]:
        """Yield all frozen versions."""
        return iter(self._items.values())

    def get(self, ino: InodeNo, index: ChunkIndex) -> Frozen | None:
        """Return what is frozen of a chunk."""
        return self._items.get((ino, index))

    def add(self, frozen: Frozen) -> None:
        """Promise that the version's bytes can be read until `thaw`."""
        assert (frozen.ino, frozen.index) not in self._items, "a chunk is frozen twice"
        self._items[frozen.ino, frozen.index] = frozen

    def thaw(self, frozen: Frozen) -> None:
        """End the promise: the copy aside, if any, goes."""
        del self._items[frozen.ino, frozen.index]
        if frozen.is_aside:
            os.unlink(self.aside_path(frozen.version))

    def aside_path(self, version: VersionNo) -> str:
        """Return where a frozen version's bytes are copied before they change."""
        return f"{self._aside_folder}/{version:x}"

    def copy_aside(self, ino: InodeNo, indexes: Iterable[ChunkIndex]) -> None:
        """Before bytes of these chunks change: save those that are being sealed.  Raises: OSError."""
        if not self._items:
            return
        for index in indexes:
            frozen = self._items.get((ino, index))
            if frozen is None or frozen.is_aside:
                continue
            file = self._files.get(ino)
            data = os.pread(file.fd, frozen.length_bytes, index * CHUNK_SIZE_BYTES) if file is not None else b""
            path = self.aside_path(frozen.version)
            # By a rename, so that a worker that looks for it finds it whole or not at all (packs/builder.py).
            Path(f"{path}.new").write_bytes(data.ljust(frozen.length_bytes, b"\0"))
            os.rename(f"{path}.new", path)
            frozen.is_aside = True

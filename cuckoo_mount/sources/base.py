"""What is imported into a drive: files that lie in a storage already, under names of their own.

Used by `cuckoo import`.  A source is read, never written.  Unlike a Cloud (clouds/base.py) it has folders, times and
names of any kind.  Any number of threads.  Errors are CloudError and its children.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Protocol

from cuckoo_mount.clouds.walking import Entry

PART_BYTES: Final = 8 << 20
"""What is read at a time, by one request where the storage knows ranges."""


class Source(Protocol):
    """One opened storage.  Names are paths with `/` between their parts and none at their ends."""

    def entries(self, folder: str) -> list[Entry]:
        """Return what lies directly in `folder`, of the root if it is empty.  Raises: CloudMissing, CloudError."""

    def blocks(self, name: str, size_bytes: int) -> Iterator[bytes]:
        """Yield the content of a file that had `size_bytes` when it was listed.

        What comes may be shorter or longer than that if the file was changed since.  Raises: CloudMissing, CloudError.
        """

    def close(self) -> None:
        """Give back connections."""


def part_sizes(size_bytes: int) -> Iterator[tuple[int, int]]:
    """Yield (offset, length) of the parts in which so many bytes are read."""
    for offset in range(0, size_bytes, PART_BYTES):
        yield offset, min(PART_BYTES, size_bytes - offset)

"""Records that only the metadata and its callers share.

Used by the protocols in this folder and by parted.  Frozen, no behaviour.
"""

from __future__ import annotations

from collections.abc import Mapping

from attrs import Factory, frozen

from cuckoo_mount.types import Inode, InodeNo


@frozen(slots=True, kw_only=True)
class NewNode:
    """A node to be made.  `mode` with file type; `target` for symbolic links only; `xattrs` e.g. inherited ACLs."""

    mode: int
    uid: int
    gid: int
    now_ns: int
    rdev: int = 0
    target: bytes | None = None
    xattrs: Mapping[bytes, bytes] = Factory(dict)


@frozen(slots=True)
class Renamed:
    """The moved node, and the one that lost its name (nlink perhaps 0) or, after an exchange, changed places."""

    moved: Inode
    replaced: Inode | None


@frozen(slots=True)
class JournalRecord:
    """One row of a journaled table as it is now: `values` None means the row is gone."""

    table: str
    key: tuple[int | bytes | str, ...]
    values: tuple[int | bytes | str | None, ...] | None


@frozen(slots=True)
class MetadataStatistics:
    """Counters.  `*_bytes` are plain bytes except `stored_bytes`; `commits`, `syncs` and `pack_died_bytes` (stopped
    living in packs) since the store was opened."""

    inodes: int
    dirty_files: int
    dirty_chunks: int
    dirty_bytes: int
    clean_bytes: int
    packs: int
    pack_live_bytes: int
    pack_stored_bytes: int
    pack_died_bytes: int
    outbox_rows: int
    commits: int
    syncs: int


@frozen(slots=True)
class DamagedName:
    """A name of a file with a chunk that cannot be read.  `path`: from the root of the drive."""

    parent: InodeNo
    name: bytes
    ino: InodeNo
    path: bytes


@frozen(slots=True)
class Repaired:
    """What a repair did.  `rows`: how many of those asked for; `moved`: (old path, new path) of files set aside.

    `names`: (directory, name) that are there now or are no more; `nodes`: those whose attributes changed.
    """

    rows: int
    names: tuple[tuple[InodeNo, bytes], ...] = ()
    nodes: tuple[InodeNo, ...] = ()
    moved: tuple[tuple[bytes, bytes], ...] = ()

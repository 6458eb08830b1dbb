"""The words of the project as types: names for numbers, and the records that several layers share.

Used by every layer; imports nothing of the project.  All records are frozen; a change is a new record.
Units are in the names: `_ns` nanoseconds since the epoch, `_bytes` bytes, `_s` seconds.
"""

from __future__ import annotations

from enum import Enum
from typing import Final, NewType

from attrs import frozen

InodeNo = NewType("InodeNo", int)
"""Number of a file, directory or other node; ≥ 1, never reused within a drive."""

ChunkIndex = NewType("ChunkIndex", int)
"""Position of a chunk in its file: byte offset // CHUNK_SIZE_BYTES; ≥ 0."""

VersionNo = NewType("VersionNo", int)
"""Number of one state of one chunk's bytes; ≥ 1, never reused within a drive."""

PackNo = NewType("PackNo", int)
"""Number of a pack's row in the catalogue; the object's name comes from its 16-byte id."""

CloudName = NewType("CloudName", str)
"""The name the user gave to a cloud; unique within a drive."""

ROOT_INODE: Final = InodeNo(1)
LOST_PACK: Final = PackNo(0)
"""No real pack has this number.  It has no shares: what is in it cannot be read."""
CHUNK_SIZE_BYTES: Final = 1 << 20
"""Size of every chunk but a file's last one.  Part of the on-cloud format: never changes within a drive."""
PACK_SIZE_BYTES: Final = 16 << 20
"""A pack is closed when the chunks in it reach this many plain bytes; one chunk may go over it."""
NAME_MAX_BYTES: Final = 255
SYMLINK_MAX_BYTES: Final = 4095
SIZE_MAX_BYTES: Final = (1 << 63) - 1
LINK_MAX: Final = 65000
REDUNDANCY_XATTR: Final = b"user.cuckoo.redundancy"
"""Extended attribute of files and directories: the policy of a pack, as docs/format.md writes it."""


@frozen(slots=True)
class Inode:
    """One node as the metadata knows it.  `chunk_count` is the number of chunk rows (holes have none)."""

    ino: InodeNo
    mode: int
    uid: int
    gid: int
    rdev: int
    nlink: int
    size_bytes: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    btime_ns: int
    chunk_count: int


@frozen(slots=True, kw_only=True)
class InodeChanges:
    """New values for some attributes of an inode; None leaves one as it is."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size_bytes: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
    ctime_ns: int | None = None


@frozen(slots=True)
class DirectoryEntry:
    """A name in a directory.  `cookie` ≥ 3 grows with every entry made and is stable while the entry exists."""

    cookie: int
    name: bytes
    inode: Inode


@frozen(slots=True)
class Location:
    """Where a version is stored: `length_bytes` sealed bytes at `offset` of pack `pack`."""

    pack: PackNo
    offset: int
    length_bytes: int
    plain_bytes: int
    digest: bytes


@frozen(slots=True)
class Held:
    """What the local file holds of a chunk, as committed.

    `dirty`: the version has no location yet, these bytes are the only ones.  `length_bytes` are valid, the rest of
    the chunk reads as zeros.  `tick`: when it was last used (see metadata/schema.py).
    """

    version: VersionNo
    dirty: bool
    length_bytes: int
    tick: int


@frozen(slots=True)
class Partial:
    """A dirty version of which only `ranges` are here: the rest is the first `base_bytes` bytes of version `base`.

    `ranges`: sorted, disjoint (start, end) offsets within the chunk.
    """

    base: VersionNo
    base_bytes: int
    ranges: tuple[tuple[int, int], ...]


@frozen(slots=True)
class ChunkRow:
    """One chunk of a file as committed: its version, where that is stored, and what is held of it here.

    `location` None: dirty.  `held` None: absent (then there is a location).
    `base_location`: where `partial.base` is stored, if `partial` is given.
    """

    index: ChunkIndex
    version: VersionNo
    location: Location | None
    held: Held | None
    partial: Partial | None
    base_location: Location | None


@frozen(slots=True)
class AbsentChunk:
    """A chunk that is on clouds and, as far as the metadata knows, not held here."""

    ino: InodeNo
    index: ChunkIndex
    version: VersionNo
    location: Location


@frozen(slots=True)
class ChunkWritten:
    """A chunk version whose `length_bytes` bytes are on the local disk and may now be named by its file's row."""

    index: ChunkIndex
    version: VersionNo
    length_bytes: int
    partial: Partial | None


@frozen(slots=True)
class DirtyChunk:
    """A dirty version ready to be frozen and packed."""

    ino: InodeNo
    index: ChunkIndex
    version: VersionNo
    length_bytes: int


@frozen(slots=True)
class SealedChunk:
    """The outcome of sealing one dirty version into a pack."""

    chunk: DirtyChunk
    offset: int
    length_bytes: int
    digest: bytes


@frozen(slots=True)
class Duplicate:
    """A dirty chunk whose bytes are those of the stored version `of`."""

    chunk: DirtyChunk
    of: VersionNo


@frozen(slots=True)
class Linked:
    """A chunk that was dirty and now names `version`, which is stored at `location`."""

    chunk: DirtyChunk
    version: VersionNo
    location: Location


@frozen(slots=True)
class StoredVersion:
    """A version in a pack.  `chunk`: its number and plain length, and one place that names it (inode 0: none)."""

    chunk: DirtyChunk
    location: Location


@frozen(slots=True)
class PackFill:
    """How much of a pack lives: `used_bytes` sealed of its `size_bytes`, `live_bytes` plain, in `versions` versions."""

    number: PackNo
    policy: str
    size_bytes: int
    live_bytes: int
    used_bytes: int
    versions: int


@frozen(slots=True)
class ShareRow:
    """One share of a pack on one cloud; `digest` is the keyed hash of the share's whole content."""

    share: int
    cloud: CloudName
    digest: bytes


@frozen(slots=True)
class PackRow:
    """A pack in the catalogue.  `dead`: nothing refers to it and nothing ever will again.

    `live_bytes`, `used_bytes`: of the versions that still live in it, plain and sealed.
    """

    number: PackNo
    pack_id: bytes
    policy: str
    size_bytes: int
    live_bytes: int
    dead: bool
    shares: tuple[ShareRow, ...]
    used_bytes: int = 0


class CloudUse(Enum):
    """What the drive does with a cloud; the values are part of the format (docs/format.md, `use.<cloud>`).

    Neither of the others gets a pack or an epoch.  *Draining*: it is being emptied; *drained*: it is empty, and is not
    asked for anything.
    """

    NORMAL = "normal"
    NO_NEW = "no-new"
    DRAINING = "draining"
    DRAINED = "drained"


@frozen(slots=True)
class CloudRow:
    """A cloud as the drive's metadata lists it.  `cloud_id` 16 bytes, also in the cloud's drive.json."""

    name: CloudName
    cloud_id: bytes
    url: str
    capacity_bytes: int | None
    reserve_bytes: int
    group: str
    read_only: bool
    use: CloudUse = CloudUse.NORMAL


@frozen(slots=True)
class CloudLoad:
    """What packs have on one cloud: how many living ones, their bytes there, and how many dead ones."""

    living: int
    living_bytes: int
    dead: int

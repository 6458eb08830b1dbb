"""What the layers above ask of the metadata, as a protocol: SQLite is one engine, another may stand beside it.

Used by cache, parted, packs' callers and drive.  Every method is atomic: it happens whole, in one transaction, or
raises and changes nothing.  Methods are async because another engine may wait; an engine that never waits need not
checkpoint, except in `make_durable`, which always does.  Callers therefore must not rely on either.
Changes to journaled tables put a row into the outbox in the same transaction (docs/format.md, "Journal").
Names are bytes and already validated.  Times are nanoseconds since the epoch.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from attrs import Factory, frozen

from cuckoo_mount.types import (
    AbsentChunk,
    ChunkIndex,
    ChunkRow,
    ChunkWritten,
    CloudName,
    CloudRow,
    DirectoryEntry,
    DirtyChunk,
    Duplicate,
    Inode,
    InodeChanges,
    InodeNo,
    Linked,
    Location,
    PackFill,
    PackNo,
    PackRow,
    SealedChunk,
    ShareRow,
    StoredVersion,
    VersionNo,
)


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
    """Counters.  `*_bytes` are plain bytes except `stored_bytes`; `commits` and `syncs` since the store was opened."""

    inodes: int
    dirty_files: int
    dirty_chunks: int
    dirty_bytes: int
    clean_bytes: int
    packs: int
    pack_live_bytes: int
    pack_stored_bytes: int
    outbox_rows: int
    commits: int
    syncs: int


class Metadata(Protocol):
    """The whole protocol; split by subject in the SQLite engine's modules."""

    # -- names and nodes --

    async def get_inode(self, ino: InodeNo) -> Inode:
        """Return the node.  Raises: StaleInode when there is none with that number (any more)."""

    async def lookup(self, parent: InodeNo, name: bytes) -> Inode:
        """Return the node called `name` in `parent` (never `.` or `..`).  Raises: NotFound, NotADirectory,
        StaleInode."""

    async def get_parent(self, ino: InodeNo) -> Inode:
        """Return the directory that directory `ino` lies in (the root's is itself).  Raises: NotFound, StaleInode."""

    async def list_directory(self, ino: InodeNo, after_cookie: int, limit: int) -> list[DirectoryEntry]:
        """Return up to `limit` entries with cookie > `after_cookie` in cookie order, with their nodes."""

    async def make_node(self, parent: InodeNo, name: bytes, node: NewNode) -> Inode:
        """Make a node (a directory gets nlink 2 and raises its parent's) and stamp the parent's mtime and ctime.

        Raises: AlreadyExists, NotFound (parent unlinked), NotADirectory, TooManyLinks.
        """

    async def add_link(self, ino: InodeNo, parent: InodeNo, name: bytes, now_ns: int) -> Inode:
        """Give a non-directory one more name.  Raises: AlreadyExists, NotPermitted (directory), TooManyLinks,
        NotFound."""

    async def remove_link(self, parent: InodeNo, name: bytes, now_ns: int) -> Inode:
        """Take a name from a non-directory; return the node as it is now: with nlink 0 it stays until `purge_inode`.

        Raises: NotFound, IsADirectory.
        """

    async def remove_directory(self, parent: InodeNo, name: bytes, now_ns: int) -> Inode:
        """Remove an empty directory; its node stays with nlink 0 until `purge_inode`.

        Raises: NotFound, NotADirectory, DirectoryNotEmpty.
        """

    async def rename(
        self,
        old_parent: InodeNo,
        old_name: bytes,
        new_parent: InodeNo,
        new_name: bytes,
        *,
        now_ns: int,
        no_replace: bool = False,
        exchange: bool = False,
    ) -> Renamed:
        """Move a name atomically, as rename(2): same node under both names is a no-op, a directory never into itself.

        Raises: NotFound, AlreadyExists (no_replace), NotADirectory, IsADirectory, DirectoryNotEmpty, InvalidArgument
        (a directory into its own subtree), TooManyLinks.
        """

    async def change_inode(self, ino: InodeNo, changes: InodeChanges) -> Inode:
        """Set attributes exactly as given and return the node as it is now.  Raises: StaleInode."""

    async def read_symlink(self, ino: InodeNo) -> bytes:
        """Return a symbolic link's target.  Raises: InvalidArgument when it is none, StaleInode."""

    async def get_xattr(self, ino: InodeNo, name: bytes) -> bytes:
        """Return an extended attribute.  Raises: NoAttribute."""

    async def list_xattrs(self, ino: InodeNo) -> list[bytes]:
        """Return the names of a node's extended attributes."""

    async def set_xattrs(self, ino: InodeNo, values: Mapping[bytes, bytes | None], changes: InodeChanges) -> Inode:
        """Set (or with None remove) attributes together with `changes` (ctime, mode after an ACL), atomically.

        Raises: NoAttribute when one to remove is not there, StaleInode.
        """

    async def orphans(self) -> list[InodeNo]:
        """Return every node with nlink 0: still open somewhere, or left by a crash."""

    async def purge_inode(self, ino: InodeNo) -> None:
        """Remove a node with nlink 0 and all that belongs to it: its versions die when nothing else names them."""

    # -- content --

    async def new_versions(self, count: int) -> VersionNo:
        """Reserve `count` (≥ 1) version numbers that were never used and never will be again; return the first."""

    async def chunk_rows(self, ino: InodeNo, first: ChunkIndex, last: ChunkIndex) -> list[ChunkRow]:
        """Return the rows with first ≤ index ≤ last in index order; a hole has none."""

    async def apply_written(self, ino: InodeNo, changes: InodeChanges, chunks: Sequence[ChunkWritten]) -> None:
        """Name written versions in their file's rows, as dirty, together with the file's size and times.

        The caller has made the bytes durable before.  A version that a row named before loses that reference; a
        partial's base keeps one.  Rows of the same version update length and partial.  Raises: StaleInode.
        """

    async def truncate_rows(
        self, ino: InodeNo, changes: InodeChanges, first_removed: ChunkIndex, boundary: ChunkWritten | None
    ) -> Inode:
        """Remove all chunk rows from `first_removed` on, apply `boundary` (the cut chunk, dirty) and `changes`."""

    async def drop_held(self, chunks: Collection[tuple[InodeNo, ChunkIndex]]) -> None:
        """Forget that clean chunks are held here.  A chunk held dirty is never dropped: AssertionError."""

    async def drop_held_files(self, inodes: Collection[InodeNo]) -> None:
        """Forget all clean chunks of these files (their local file is gone)."""

    async def add_held(self, ino: InodeNo, chunks: Sequence[tuple[ChunkIndex, VersionNo, int]], tick: int) -> None:
        """Record (index, version, length) fetched from a cloud as held clean; ignored where the row changed
        meanwhile."""

    async def touch_held(self, chunks: Collection[tuple[InodeNo, ChunkIndex]], tick: int) -> None:
        """Record that these chunks were used at `tick`."""

    async def evictable(self, wanted_bytes: int) -> list[tuple[InodeNo, ChunkIndex, VersionNo, int]]:
        """Return held clean chunks, least recently used first, of at least `wanted_bytes` in all (fewer if all)."""

    async def files_with_clean_chunks(self) -> list[InodeNo]:
        """Return every file of which at least one clean chunk is recorded as held."""

    async def has_dirty(self, ino: InodeNo) -> bool:
        """Return whether any chunk of the file is held dirty."""

    async def dirty_chunks(self, limit: int, exclude: Collection[VersionNo]) -> list[DirtyChunk]:
        """Return up to `limit` complete dirty chunks, oldest version first, without those in `exclude`."""

    async def partial_chunks(self, limit: int) -> list[tuple[InodeNo, ChunkIndex]]:
        """Return up to `limit` dirty chunks whose base is still missing here."""

    async def absent_neighbours(self, pack: PackNo, start: int, end: int, limit: int) -> list[AbsentChunk]:
        """Return up to `limit` chunks stored in `pack` at offsets start ≤ offset < end and not held here, by offset.

        Without chunks of nodes that lost their last name, and without versions that so many chunks name that bringing
        them all here for one of them would be waste.  A version named by several chunks is there for each of them.
        """

    # -- packs and clouds --

    async def begin_pack(self, pack_id: bytes) -> None:
        """Record the intention to store a pack.  Must be made durable before its first byte is sent."""

    async def pack_intents(self) -> list[bytes]:
        """Return the ids of all packs begun and neither finished nor abandoned."""

    async def finish_pack(
        self,
        pack_id: bytes,
        policy: str,
        size_bytes: int,
        shares: Sequence[ShareRow],
        sealed: Sequence[SealedChunk],
        overwritten: Collection[VersionNo],
        strays: Collection[CloudName] = (),
    ) -> PackNo:
        """Enter a stored pack: location rows for the versions still named, pack and share rows; the intent goes.

        Chunks held dirty become clean, or, if their version is in `overwritten` (the local bytes are newer already),
        are no longer held.  A pack in which nothing is named any more is entered as dead.
        `strays`: clouds that may hold a share that `shares` does not list, see `strays()`.
        """

    async def find_duplicates(
        self, policy: str, clouds: Collection[CloudName], wanted: Collection[tuple[bytes, int]]
    ) -> dict[tuple[bytes, int], VersionNo]:
        """Return living versions with these (digest, plain bytes), where there are any in packs of this policy.

        Only in packs with as many shares on `clouds`, which are those that are up, as a new pack would have.
        """

    async def link_duplicates(
        self, duplicates: Sequence[Duplicate], overwritten: Collection[VersionNo]
    ) -> list[Linked]:
        """Let dirty chunks name stored versions with their bytes; return those for which that was done.

        Not for one whose row names another version by now, or whose stored version died.  Held rows as `finish_pack`.
        """

    async def pack_fills(self, percent: int, small_bytes: int) -> list[PackFill]:
        """Return the packs alive of whose bytes at most `percent` % live, or < `small_bytes` sealed bytes."""

    async def versions_in(self, pack: PackNo) -> list[StoredVersion]:
        """Return the versions that live in a pack, by offset."""

    async def move_versions(
        self,
        pack_id: bytes,
        policy: str,
        size_bytes: int,
        shares: Sequence[ShareRow],
        moved: Sequence[SealedChunk],
        strays: Collection[CloudName] = (),
    ) -> Mapping[VersionNo, Location]:
        """Enter a stored pack into which versions of other packs were sealed again; return where these are now.

        A version that died meanwhile is left out; a pack that nothing is left in is dead.  Else as `finish_pack`.
        """

    async def abandon_pack(self, pack_id: bytes) -> None:
        """Remove the intent of a pack of which nothing is stored any more."""

    async def get_pack(self, number: PackNo) -> PackRow:
        """Return a pack with its shares.  Raises: MetadataError when there is none."""

    async def find_pack(self, pack_id: bytes) -> PackRow | None:
        """Return the pack of this id, None when there is none."""

    async def packs(self, limit: int, *, after: PackNo | None = None) -> list[PackRow]:
        """Return up to `limit` packs, dead ones included, by number, from behind `after` on."""

    async def dead_packs(
        self, limit: int, *, after: PackNo | None = None, oldest_kept_epoch: int | None = None
    ) -> list[PackRow]:
        """Return up to `limit` dead packs, by number, from behind `after` on.

        `oldest_kept_epoch`: only those that no kept epoch refers to: dead in it already, or never alive at a cut.
        None: there are no epochs.
        """

    async def forget_shares(self, number: PackNo, clouds: Collection[CloudName]) -> None:
        """Remove the rows of a dead pack's shares on these clouds, where they are deleted."""

    async def forget_pack(self, number: PackNo) -> None:
        """Remove the rows of a dead pack whose shares are deleted."""

    async def strays(self) -> list[tuple[bytes, CloudName]]:
        """Return (pack id, cloud) where an object may lie that no share row lists: an upload given up there."""

    async def forget_stray(self, pack_id: bytes, cloud: CloudName) -> None:
        """Remove such an entry: the cloud confirmed that nothing of the kind is there."""

    async def note_unknown(self, cloud: CloudName, names: Collection[str], now_ns: int) -> dict[str, int]:
        """Record that exactly these objects of a cloud are unknown; return since when each of them is."""

    async def clouds(self) -> list[CloudRow]:
        """Return the drive's clouds in the order they were added."""

    async def put_cloud(self, cloud: CloudRow) -> None:
        """Add a cloud or change the one of that name."""

    async def remove_cloud(self, cloud: CloudName) -> None:
        """Remove a cloud, and its shares of packs that lie elsewhere too.

        Those that lie nowhere else stay on record (I-8): they can be read again if the cloud ever comes back.

        Raises: MetadataError when there is no such cloud.
        """

    async def only_on(self, cloud: CloudName) -> tuple[int, int]:
        """Return how many living packs lie on this cloud and on no other, and their bytes."""

    async def degraded_packs(self) -> int:
        """Return how many living packs have fewer shares on the drive's clouds than their policy wants.

        Reads all of them.
        """

    async def cloud_usage(self) -> dict[CloudName, tuple[int, int]]:
        """Return per cloud: packs with a share there, and bytes of those shares."""

    # -- settings --

    async def get_setting(self, key: str) -> str | None:
        """Return a setting of the drive (journaled)."""

    async def set_setting(self, key: str, value: str) -> None:
        """Set a setting of the drive."""

    async def delete_setting(self, key: str) -> None:
        """Remove a setting of the drive; nothing happens if there is none."""

    async def settings(self, prefix: str) -> dict[str, str]:
        """Return all settings of the drive whose key begins with `prefix`, sorted by key."""

    async def get_local(self, key: str) -> str | None:
        """Return a setting of this machine's copy (not journaled)."""

    async def set_local(self, key: str, value: str) -> None:
        """Set a setting of this machine's copy."""

    # -- durability --

    async def commit(self) -> bool:
        """Commit what was changed so far, so that it survives a kill of this process; return whether there was any.

        Never waits for the disk.
        """

    async def make_durable(self) -> None:
        """Commit, and return when everything changed before this call survives a power cut.  Checkpoint.

        Calls at the same time share one disk flush.  Raises: MetadataError when the disk refused; then the store is
        read-only until it is opened again.
        """

    async def journal(self, limit: int) -> list[JournalRecord]:
        """Return up to `limit` rows of the outbox with the present values of what they name, oldest first."""

    async def clear_journal(self, records: Sequence[JournalRecord]) -> None:
        """Remove outbox rows whose records reached the clouds and did not change again since they were read."""

    def held_bytes(self) -> int:
        """Return dirty_bytes + clean_bytes of `statistics`; cheap enough for every write."""

    def statistics(self) -> MetadataStatistics:
        """Return the counters."""

    async def check_invariants(self) -> list[str]:
        """Return one line per violated invariant of docs/invariants.md (I-1 … I-…); empty when all hold."""

    async def aclose(self) -> None:
        """Make durable and close, even if that fails; may be called twice."""

"""What the layers above ask of the metadata, as a protocol: SQLite is one engine, another may stand beside it.

Used by cache, parted, packs' callers and drive.  Every method is atomic: it happens whole, in one transaction, or
raises and changes nothing.  Methods are async because another engine may wait; an engine that never waits need not
checkpoint, except in `make_durable`, which always does.  Callers therefore must not rely on either.
Changes to journaled tables put a row into the outbox in the same transaction (docs/format.md, "Journal").
Names are bytes and already validated.  Times are nanoseconds since the epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol

from cuckoo_mount.metadata.basecontent import ContentMetadata
from cuckoo_mount.metadata.basenames import NameMetadata
from cuckoo_mount.metadata.basepacks import PackMetadata
from cuckoo_mount.metadata.counters import Row
from cuckoo_mount.metadata.cut import Cut
from cuckoo_mount.metadata.problems import Kind, Problem
from cuckoo_mount.metadata.records import DamagedName, JournalRecord, MetadataStatistics, Repaired
from cuckoo_mount.types import InodeNo, VersionNo


class Metadata(NameMetadata, ContentMetadata, PackMetadata, Protocol):
    """The whole protocol; split by subject, as the SQLite engine's modules are."""

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

    async def local_settings(self, prefix: str) -> dict[str, str]:
        """Return all settings of this machine's copy whose key begins with `prefix`, sorted by key."""

    async def set_locals(self, local: Mapping[str, str | None]) -> None:
        """Set settings of this machine's copy, in one change; None removes one."""

    async def commit(self) -> bool:
        """Commit what was changed so far, so that it survives a kill of this process; return whether there was any.

        Never waits for the disk.
        """

    async def make_durable(self) -> None:
        """Commit, and return when everything changed before this call survives a power cut.  Checkpoint.

        Calls at the same time share one disk flush.  Raises: MetadataError when the disk refused; then the store is
        read-only until it is opened again.
        """

    async def open_cut(self) -> Cut:
        """Prepare a cut: whatever blocks is done here.  Checkpoint.  The caller closes it, in a thread.

        Raises: MetadataError.
        """

    async def take_cut(self, cut: Cut) -> int:
        """Take the cut now: mark the outbox, commit, let `cut` see exactly this state; return the mark.

        Never waits, so that it is one step with the freezing of what is dirty.  Not durable: `make_durable` comes
        before anything of the cut is sent, else a power cut leaves a store that is older than its clouds.
        """

    async def clear_outbox(self, mark: int, local: Mapping[str, str | None]) -> None:
        """Remove the outbox rows of a cut that is in an epoch (I-20), and do as `set_locals`, in one change."""

    def outbox_changes(self, limit: int) -> tuple[int, int]:
        """Return how many rows the outbox has, each at most `limit`: of names, attributes, content and settings; and
        of the catalogue alone (versions, packs, shares), which changes by itself when packs are sent or moved.

        Cheap enough for every second.
        """

    async def journal(self, limit: int) -> list[JournalRecord]:
        """Return up to `limit` rows of the outbox with the present values of what they name, oldest first."""

    async def clear_journal(self, records: Sequence[JournalRecord]) -> None:
        """Remove outbox rows whose records reached the clouds and did not change again since they were read."""

    def has_room(self) -> bool:
        """Return whether programs may make the store grow; else the local disk is full, and what is left of the
        store's reserve is for commits and for removing.  Cheap enough for every write."""

    def held_bytes(self) -> int:
        """Return dirty_bytes + clean_bytes of `statistics`; cheap enough for every write."""

    def dirty_bytes(self) -> int:
        """Return dirty_bytes of `statistics`; cheap enough for every write."""

    def statistics(self) -> MetadataStatistics:
        """Return the counters."""

    async def check_invariants(self) -> list[str]:
        """Return one line per violated invariant of docs/invariants.md (I-1 … I-…); empty when all hold."""

    async def find_problems(self) -> list[Problem]:
        """Return what is wrong in the tables, also what `check_invariants` names.  Checkpoint; reads every row.

        In threads, from what was committed, so that nobody waits for it.  Raises: MetadataError.
        """

    async def damaged_names(self, versions: Collection[VersionNo]) -> list[DamagedName]:
        """Return every name of every file with a chunk that cannot be read, by inode: in one of `versions`, in pack 0,
        or with a version that is neither stored nor held dirty.  Checkpoint; as `find_problems`.
        """

    async def repair(
        self, kind: Kind, rows: Sequence[Row], *, now_ns: int, is_used: Callable[[InodeNo], bool] = lambda ino: False
    ) -> Repaired:
        """Repair what a problem of `find_problems` named, as far as it is still so, in one change.

        Some hundred rows at a time: it reads all names for them.  Nodes without a name get one in /lost+found.
        `is_used`: files whose chunk rows are left as they are, because somebody works with them.
        """

    async def set_aside(self, names: Sequence[DamagedName], now_ns: int) -> Repaired:
        """Move names that still are what they were into /lost+found, in one change; their paths stay readable there."""

    async def aclose(self) -> None:
        """Make durable and close, even if that fails; may be called twice."""

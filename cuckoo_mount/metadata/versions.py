"""Counting who names a stored version: unnamed it goes, and with its last version its pack is dead (I-10, I-16).

Used by content.py, sharing.py and catalogue.py, within their changes.  Runs in the loop, never waits.
Death is final: a row of `version` never comes back, and nothing makes `dead_epoch` NULL again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from cuckoo_mount.metadata.database import Part

_DELETE_LAST_NAMED: Final = """
    DELETE FROM version WHERE version IN (
        SELECT c.version FROM chunk c JOIN version v ON v.version = c.version WHERE c.ino = ? AND c.idx >= ?
        GROUP BY c.version HAVING count(*) = v.refs)
    RETURNING pack, plain, length"""
_COUNT_DOWN: Final = """
    UPDATE version SET refs = refs - rows FROM (
        SELECT version AS named, count(*) AS rows FROM chunk WHERE ino = ? AND idx >= ? GROUP BY version)
    WHERE version = named"""


class Versions(Part):
    """No public methods."""

    def _refer(self, version: int) -> None:
        """Count one more row that names a stored version."""
        named = self._db.run("UPDATE version SET refs = refs + 1 WHERE version = ?", (version,))
        assert named, f"version {version} is not stored, so nothing can be based on it"

    def _release(self, version: int) -> None:
        """Count one row less that names `version`; a version that is not stored was dirty and simply is no more."""
        row = self._db.row("SELECT refs, pack, plain, length FROM version WHERE version = ?", (version,))
        if row is None:
            return
        refs, pack, plain, sealed = row
        if refs > 1:
            self._db.run("UPDATE version SET refs = refs - 1 WHERE version = ?", (version,))
        else:
            self._db.run("DELETE FROM version WHERE version = ?", (version,))
            self._lighten(pack, plain, sealed)

    def _release_file(self, ino: int, first: int) -> None:
        """Release what the chunk rows of `ino` from index `first` on name; the caller removes those rows next.

        Several of them may name one version (dedup).
        """
        self._lighten_all(self._db.rows(_DELETE_LAST_NAMED, (ino, first)))
        self._db.run(_COUNT_DOWN, (ino, first))

    def _lighten_all(self, gone: Iterable[tuple[int, int, int]]) -> None:
        """Take the removed versions, given as (pack, plain bytes, sealed bytes), from their packs."""
        by_pack: dict[int, tuple[int, int]] = {}
        for pack, plain, sealed in gone:
            before = by_pack.get(pack, (0, 0))
            by_pack[pack] = (before[0] + plain, before[1] + sealed)
        for pack, (plain, sealed) in by_pack.items():
            self._lighten(pack, plain, sealed)

    def _lighten(self, pack: int, plain_bytes: int, sealed_bytes: int) -> None:
        """Take the bytes of removed versions from their pack's counters; mark it dead if it has no version left."""
        row = self._db.row(
            "UPDATE pack SET live = live - ?, used = used - ? WHERE number = ? RETURNING used",
            (plain_bytes, sealed_bytes, pack),
        )
        assert row is not None, f"pack {pack} is not in the catalogue"
        self._db.counters.pack_live_bytes -= plain_bytes
        self._db.counters.pack_died_bytes += plain_bytes
        # Not by the counter alone: one that is off must not kill a pack in which something lives.
        if row[0] == 0 and self._db.row("SELECT 1 FROM version WHERE pack = ? LIMIT 1", (pack,)) is None:
            self._db.run("UPDATE pack SET dead_epoch = ? WHERE number = ?", (self._epoch(), pack))

    def _epoch(self) -> int:
        """Return the epoch that is being written: local setting `epoch`, 0 before there are epochs."""
        row = self._db.row("SELECT value FROM local_setting WHERE key = 'epoch'")
        return int(row[0]) if row is not None else 0

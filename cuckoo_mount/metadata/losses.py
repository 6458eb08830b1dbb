"""Shares that a scrub found lost or damaged: their rows go; and the names of files that cannot be read any more.

Used by store.py.  Runs in the loop, never waits.  Keeps I-8: a living pack never has fewer rows than reading it takes.
"""

from __future__ import annotations

from collections.abc import Collection

from cuckoo_mount.metadata.catalogue import Catalogue
from cuckoo_mount.metadata.cloudrows import NEEDED_SQL
from cuckoo_mount.types import ROOT_INODE, CloudName, PackNo, ShareRow, VersionNo

_LIVING_SQL = f"SELECT {NEEDED_SQL} FROM pack p WHERE p.number = ? AND p.dead_epoch IS NULL"
_SAME_SQL = "SELECT 1 FROM share WHERE pack = ? AND share = ? AND cloud = ? AND digest = ?"
_COUNT_SQL = """
    SELECT count(*), coalesce(sum(s.length), 0) FROM share s JOIN pack p ON p.number = s.pack
    WHERE p.dead_epoch IS NULL AND p.number > ? AND p.number <= ?"""


class Losses(Catalogue):
    """See `Metadata` for every public method."""

    async def newest_pack(self) -> PackNo:
        row = self._db.row("SELECT coalesce(max(number), 0) FROM pack")
        assert row is not None, "an aggregate has a row"
        return PackNo(row[0])

    async def count_shares(self, after: PackNo, last: PackNo) -> tuple[int, int]:
        row = self._db.row(_COUNT_SQL, (after, last))
        assert row is not None, "an aggregate has a row"
        return row[0], row[1]

    async def drop_shares(
        self, number: PackNo, shares: Collection[ShareRow], *, left_over: Collection[CloudName] = ()
    ) -> int:
        living = self._db.row(_LIVING_SQL, (number,))
        known = [share for share in shares if self._db.row(_SAME_SQL, (number, share.share, share.cloud, share.digest))]
        ((count,),) = self._db.rows("SELECT count(*) FROM share WHERE pack = ?", (number,))
        if living is None or count - len(known) < living[0]:
            return 0
        with self._db.change:
            before = self._usage_of(number)
            for share in known:
                self._db.run("DELETE FROM share WHERE pack = ? AND share = ?", (number, share.share))
                if share.cloud in left_over:
                    self._db.run(
                        "INSERT OR IGNORE INTO stray (pack_id, cloud) SELECT pack_id, ? FROM pack WHERE number = ?",
                        (share.cloud, number),
                    )
            self._db.counters.share_made(before, -1)
            self._db.counters.share_made(self._usage_of(number), 1)
        return len(known)

    async def paths_of(self, versions: Collection[VersionNo], limit: int) -> list[bytes]:
        inodes: set[int] = set()
        for version in versions:
            inodes.update(ino for (ino,) in self._db.rows("SELECT ino FROM chunk WHERE version = ?", (version,)))
        marks = ", ".join("?" * len(inodes))
        sql = f"SELECT parent, name FROM dentry WHERE ino IN ({marks}) ORDER BY ino LIMIT ?"
        return [self._path(parent, name) for parent, name in self._db.rows(sql, (*sorted(inodes), limit))]

    def _path(self, directory: int, name: bytes) -> bytes:
        parts = [name]
        while directory != ROOT_INODE:
            row = self._db.row(
                "SELECT i.parent, d.name FROM inode i JOIN dentry d ON d.parent = i.parent AND d.ino = i.ino"
                " WHERE i.ino = ?",
                (directory,),
            )
            if row is None:  # removed, and still open somewhere
                return b"/".join(reversed(parts))
            directory = row[0]
            parts.append(row[1])
        return b"/" + b"/".join(reversed(parts))

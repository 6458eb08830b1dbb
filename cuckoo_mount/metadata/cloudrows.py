"""Clouds that leave a drive, and packs with fewer shares than they should have.

Used by store.py.  Runs in the loop, never waits.  Keeps I-16 for the usage of clouds.
"""

from __future__ import annotations

from typing import Final

from cuckoo_mount.errors import MetadataError
from cuckoo_mount.metadata.catalogue import USE_PREFIX
from cuckoo_mount.metadata.database import Part
from cuckoo_mount.types import CloudLoad, CloudName, PackNo

# '2' → 1 share is enough, '4+2' → 4: what stands before the plus, if there is one.
NEEDED_SQL: Final = "CASE WHEN instr(p.policy, '+') THEN CAST(p.policy AS INTEGER) ELSE 1 END"
_ONLY_THERE = f"""
    FROM pack p WHERE p.dead_epoch IS NULL
    AND EXISTS (SELECT 1 FROM share s WHERE s.pack = p.number AND s.cloud = ?)
    AND (SELECT count(*) FROM share s WHERE s.pack = p.number AND s.cloud <> ?) < {NEEDED_SQL}"""
_SPARE_SHARES = f"""
    SELECT s.pack, sum(s.length) FROM share s JOIN pack p ON p.number = s.pack WHERE s.cloud = ?
    AND (SELECT count(*) FROM share o WHERE o.pack = s.pack AND o.cloud <> ?) >= {NEEDED_SQL} GROUP BY s.pack"""
# '2' → 2 shares, '4+2' → 6: what stands before the plus, and what stands behind it, or nothing.
_HAVE = "(SELECT count(*) FROM share s JOIN cloud c ON c.name = s.cloud WHERE s.pack = p.number)"
_DEGRADED = f"""
    FROM pack p WHERE p.dead_epoch IS NULL
    AND {_HAVE} < CAST(p.policy AS INTEGER) + CAST(substr(p.policy, instr(p.policy || '+', '+') + 1) AS INTEGER)"""


class CloudRows(Part):
    """See `Metadata` for every public method."""

    async def only_on(self, cloud: CloudName) -> tuple[int, int]:
        row = self._db.row(f"SELECT count(*), coalesce(sum(p.size), 0) {_ONLY_THERE}", (cloud, cloud))
        assert row is not None, "an aggregate has a row"
        return row[0], row[1]

    async def degraded_packs(self) -> int:
        row = self._db.row(f"SELECT count(*) {_DEGRADED}")
        assert row is not None, "an aggregate has a row"
        return int(row[0])

    async def degraded(self, limit: int) -> list[PackNo]:
        rows = self._db.rows(f"SELECT p.number {_DEGRADED} ORDER BY {_HAVE} - {NEEDED_SQL}, p.number LIMIT ?", (limit,))
        return [PackNo(number) for (number,) in rows]

    async def load_of(self, cloud: CloudName) -> CloudLoad:
        rows = self._db.rows(
            """SELECT p.dead_epoch IS NULL, count(DISTINCT p.number), sum(s.length)
            FROM share s JOIN pack p ON p.number = s.pack WHERE s.cloud = ? GROUP BY 1""",
            (cloud,),
        )
        found = {bool(lives): (count, length) for lives, count, length in rows}
        return CloudLoad(*found.get(True, (0, 0)), found.get(False, (0, 0))[0])

    async def living_on(self, cloud: CloudName, limit: int) -> list[PackNo]:
        rows = self._db.rows(
            """SELECT DISTINCT s.pack FROM share s JOIN pack p ON p.number = s.pack
            WHERE s.cloud = ? AND p.dead_epoch IS NULL ORDER BY s.pack LIMIT ?""",
            (cloud, limit),
        )
        return [PackNo(number) for (number,) in rows]

    async def remove_cloud(self, cloud: CloudName) -> None:
        with self._db.change:
            if not self._db.run("DELETE FROM cloud WHERE name = ?", (cloud,)):
                raise MetadataError(f"there is no cloud {cloud!r} in the metadata")
            self._db.run("DELETE FROM setting WHERE key = ?", (f"{USE_PREFIX}{cloud}",))
            for pack, length in self._db.rows(_SPARE_SHARES, (cloud, cloud)):
                self._db.run("DELETE FROM share WHERE pack = ? AND cloud = ?", (pack, cloud))
                self._db.counters.share_made({cloud: length}, -1)

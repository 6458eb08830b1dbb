"""What `statistics()` and the throttles ask for at every turn, kept in memory.

Used by database.py, which loads them, and by the modules that change what they count, after each change.
They are not in the transaction: when a change that changed rows is rolled back they are thrown away and counted again
(database.py), so whoever counts first and then fails before any row changed leaves them wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attrs import define, field

Row = tuple[Any, ...]
"""One row; whoever wrote the SQL knows its columns' types, no checker can."""


@define(slots=True, eq=True)
class Counters:
    """Counts and sums over the tables.  `dirty_files`: number of dirty chunks by inode, never 0.

    `usage`: by cloud name, [packs with a share there, bytes of those shares].  `pack_died_bytes`: plain bytes in packs
    that stopped living since the store was opened.
    """

    inodes: int
    packs: int
    pack_live_bytes: int
    pack_stored_bytes: int
    clean_bytes: int
    dirty_bytes: int
    dirty_chunks: int
    dirty_files: dict[int, int] = field(factory=dict)
    usage: dict[str, list[int]] = field(factory=dict)
    pack_died_bytes: int = field(default=0, eq=False)

    @classmethod
    def load(cls, rows: Callable[[str], list[Row]]) -> Counters:
        """Count everything with `rows`, which runs a statement.  Reads every row of `held`, `pack` and `share`."""
        (inodes,) = rows("SELECT count(*) FROM inode")[0]
        packs, live, stored = rows("SELECT count(*), coalesce(sum(live), 0), coalesce(sum(size), 0) FROM pack")[0]
        (clean,) = rows("SELECT coalesce(sum(length), 0) FROM held WHERE dirty = 0")[0]
        dirty = rows("SELECT ino, count(*), sum(length) FROM held WHERE dirty = 1 GROUP BY ino")
        usage = rows("SELECT cloud, count(DISTINCT pack), sum(length) FROM share GROUP BY cloud")
        return cls(
            inodes=inodes,
            packs=packs,
            pack_live_bytes=live,
            pack_stored_bytes=stored,
            clean_bytes=clean,
            dirty_bytes=sum(length for _, _, length in dirty),
            dirty_chunks=sum(count for _, count, _ in dirty),
            dirty_files={ino: count for ino, count, _ in dirty},
            usage={cloud: [count, length] for cloud, count, length in usage},
        )

    def held_made(self, ino: int, length_bytes: int, *, dirty: bool) -> None:
        """Count a new row of `held`."""
        if dirty:
            self.dirty_bytes += length_bytes
            self.dirty_chunks += 1
            self.dirty_files[ino] = self.dirty_files.get(ino, 0) + 1
        else:
            self.clean_bytes += length_bytes

    def held_gone(self, ino: int, length_bytes: int, *, dirty: bool) -> None:
        """Count a removed row of `held`."""
        if not dirty:
            self.clean_bytes -= length_bytes
            return
        self.dirty_bytes -= length_bytes
        self.dirty_chunks -= 1
        left = self.dirty_files[ino] - 1
        if left:
            self.dirty_files[ino] = left
        else:
            del self.dirty_files[ino]

    def share_made(self, clouds: dict[str, int], sign: int) -> None:
        """Count (sign 1) or forget (sign -1) one pack's shares; `clouds`: bytes of it by cloud."""
        for cloud, length in clouds.items():
            entry = self.usage.setdefault(cloud, [0, 0])
            entry[0] += sign
            entry[1] += sign * length
            if not entry[0]:
                del self.usage[cloud]

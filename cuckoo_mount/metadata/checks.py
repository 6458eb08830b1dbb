"""The ✓ metadata rows of docs/invariants.md as SQL: every statement returns what violates it.

Used by store.py's `check_invariants`, that is by tests after every step and by fsck.  Reads every row; changes nothing.
"""

from __future__ import annotations

from typing import Final

from cuckoo_mount.metadata.counters import Counters
from cuckoo_mount.metadata.database import Part
from cuckoo_mount.metadata.schema import JOURNALED

_SHOWN: Final = 10
"""Of each kind of violation so many are named, and the rest counted."""

_CHECKS: Final = (
    (
        "I-1: chunk (inode, index, version) is neither stored nor held dirty",
        """SELECT c.ino, c.idx, c.version FROM chunk c LEFT JOIN version v ON v.version = c.version
        LEFT JOIN held h ON h.ino = c.ino AND h.idx = c.idx AND h.version = c.version AND h.dirty = 1
        WHERE v.version IS NULL AND h.ino IS NULL""",
    ),
    (
        "I-1: chunk (inode, index, version) is stored and yet held dirty",
        """SELECT h.ino, h.idx, h.version FROM held h JOIN version v ON v.version = h.version WHERE h.dirty = 1""",
    ),
    (
        "I-1: held row (inode, index, version) is not what the chunk row names",
        """SELECT h.ino, h.idx, h.version FROM held h LEFT JOIN chunk c ON c.ino = h.ino AND c.idx = h.idx
        WHERE c.version IS NOT h.version""",
    ),
    (
        "I-1: held row (inode, index, version) is clean, but its version is stored nowhere",
        """SELECT ino, idx, version FROM held WHERE dirty = 0 AND version NOT IN (SELECT version FROM version)""",
    ),
    (
        "I-1: partial chunk (inode, index, base) is not held dirty, or its base is not stored",
        """SELECT p.ino, p.idx, p.base FROM partial p
        LEFT JOIN held h ON h.ino = p.ino AND h.idx = p.idx AND h.dirty = 1
        WHERE h.ino IS NULL OR p.base NOT IN (SELECT version FROM version)""",
    ),
    (
        "I-1: chunk (inode, index) belongs to no node",
        "SELECT ino, idx FROM chunk WHERE ino NOT IN (SELECT ino FROM inode)",
    ),
    (
        "I-6: sequence (name, next) is not past what was given (last)",
        """SELECT s.name, s.next, m.last FROM sequence s JOIN (
            SELECT 'inode' AS name, max(ino) AS last FROM inode UNION ALL SELECT 'cookie', max(cookie) FROM dentry
            UNION ALL SELECT 'version', max(version) FROM chunk UNION ALL SELECT 'version', max(version) FROM version
            UNION ALL SELECT 'pack', max(number) FROM pack) m USING (name) WHERE s.next <= m.last""",
    ),
    (
        "I-6: dirty version is named by more than one chunk row",
        """SELECT version, count(*) FROM chunk WHERE version NOT IN (SELECT version FROM version)
        GROUP BY version HAVING count(*) > 1""",
    ),
    (
        "I-6: directory has two entries with one cookie (directory, cookie)",
        "SELECT parent, cookie FROM dentry GROUP BY parent, cookie HAVING count(*) > 1",
    ),
    (
        "I-8: version (version, pack) lies in a pack that is not in the catalogue",
        "SELECT version, pack FROM version WHERE pack NOT IN (SELECT number FROM pack)",
    ),
    (
        "I-8: pack (number, policy) has fewer shares than reading it needs",
        """SELECT p.number, p.policy FROM pack p WHERE p.dead_epoch IS NULL
        AND (SELECT count(*) FROM share s WHERE s.pack = p.number)
            < CASE WHEN instr(p.policy, '+') THEN CAST(p.policy AS INTEGER) ELSE 1 END""",
    ),
    (
        "I-8: share (pack, share) of a pack that is not in the catalogue",
        "SELECT pack, share FROM share WHERE pack NOT IN (SELECT number FROM pack)",
    ),
    ("I-10: version without references", "SELECT version FROM version WHERE refs < 1"),
    (
        "I-10: version (version, pack) lies in a dead pack",
        "SELECT v.version, v.pack FROM version v JOIN pack p ON p.number = v.pack WHERE p.dead_epoch IS NOT NULL",
    ),
    (
        "I-10: pack has no version and is not dead",
        "SELECT number FROM pack WHERE dead_epoch IS NULL AND number NOT IN (SELECT pack FROM version)",
    ),
    (
        "I-15: node (inode, nlink, names) is not a directory and has another number of names than its nlink",
        """SELECT i.ino, i.nlink, count(d.ino) FROM inode i LEFT JOIN dentry d ON d.ino = i.ino
        WHERE i.mode & 61440 <> 16384 GROUP BY i.ino HAVING i.nlink <> count(d.ino)""",
    ),
    (
        "I-15: directory (inode, nlink) has neither 2 + its subdirectories nor, removed, 0",
        """SELECT i.ino, i.nlink FROM inode i WHERE i.mode & 61440 = 16384 AND i.nlink <> CASE
            WHEN i.parent = 0 THEN 0
            ELSE 2 + (SELECT count(*) FROM dentry d JOIN inode c ON c.ino = d.ino
                      WHERE d.parent = i.ino AND c.mode & 61440 = 16384) END""",
    ),
    (
        "I-15: directory (inode, parent) does not lie in its parent under exactly one name",
        """SELECT i.ino, i.parent FROM inode i WHERE i.mode & 61440 = 16384 AND i.ino <> 1 AND
        ((SELECT count(*) FROM dentry d JOIN inode p ON p.ino = d.parent WHERE d.ino = i.ino) <> (i.parent <> 0)
        OR (SELECT count(*) FROM dentry d WHERE d.ino = i.ino AND d.parent = i.parent) <> (i.parent <> 0))""",
    ),
    (
        "I-15: directory cannot be reached from the root",
        """WITH RECURSIVE reached (ino) AS (SELECT 1 UNION SELECT i.ino FROM reached r JOIN dentry d ON d.parent = r.ino
            JOIN inode i ON i.ino = d.ino WHERE i.mode & 61440 = 16384)
        SELECT ino FROM inode WHERE mode & 61440 = 16384 AND parent <> 0 AND ino NOT IN (SELECT ino FROM reached)""",
    ),
    (
        "I-15: name (directory, name, inode) of a node that does not exist, or in no directory that has a name",
        """SELECT d.parent, d.name, d.ino FROM dentry d LEFT JOIN inode i ON i.ino = d.ino
        LEFT JOIN inode p ON p.ino = d.parent WHERE i.ino IS NULL OR p.ino IS NULL OR p.parent = 0""",
    ),
    (
        "I-15: symbolic link or attributes of a node that does not exist",
        """SELECT ino FROM (SELECT ino FROM symlink UNION SELECT ino FROM xattr)
        WHERE ino NOT IN (SELECT ino FROM inode)""",
    ),
    (
        "I-16: version (version, refs, rows) counts its references wrong",
        """SELECT v.version, v.refs, count(c.version) FROM version v LEFT JOIN (
            SELECT version FROM chunk UNION ALL SELECT base FROM partial) c ON c.version = v.version
        GROUP BY v.version HAVING v.refs <> count(c.version)""",
    ),
    (
        "I-16: pack (number, live, sum) counts its live bytes wrong",
        """SELECT p.number, p.live, coalesce(sum(v.plain), 0) AS total FROM pack p
        LEFT JOIN version v ON v.pack = p.number GROUP BY p.number HAVING p.live <> total""",
    ),
    (
        "I-16: pack (number, used, sum) counts its sealed live bytes wrong",
        """SELECT p.number, p.used, coalesce(sum(v.length), 0) AS total FROM pack p
        LEFT JOIN version v ON v.pack = p.number GROUP BY p.number HAVING p.used <> total""",
    ),
    (
        "I-16: node (inode, chunks, rows) counts its chunks wrong",
        """SELECT i.ino, i.chunks, count(c.ino) FROM inode i LEFT JOIN chunk c ON c.ino = i.ino
        GROUP BY i.ino HAVING i.chunks <> count(c.ino)""",
    ),
)


class Checks(Part):
    """See `Metadata` for the public method."""

    async def check_invariants(self) -> list[str]:
        lines: list[str] = []
        for text, sql in _CHECKS:
            rows = self._db.rows(sql)
            lines += [f"{text}: {row[0] if len(row) == 1 else row}" for row in rows[:_SHOWN]]
            if len(rows) > _SHOWN:
                lines.append(f"{text}: and {len(rows) - _SHOWN} more")
        lines += self._trigger_lines()
        counted = Counters.load(self._db.rows)
        if counted != self._db.counters:
            lines.append(f"I-16: counters in memory are {self._db.counters}, the tables say {counted}")
        return lines

    def _trigger_lines(self) -> list[str]:
        wanted = {name: statement for table in JOURNALED for name, statement in table.triggers()}
        found: dict[str, str] = dict(self._db.rows("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'"))
        return [
            f"I-14: trigger {name} is missing, changed or unknown"
            for name in sorted(wanted.keys() | found.keys())
            if wanted.get(name) != found.get(name)
        ]

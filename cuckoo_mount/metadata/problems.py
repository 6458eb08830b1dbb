"""What may be wrong in the tables: the ✓ metadata rows of docs/invariants.md as SQL, with a name for each violation.

Used by checks.py, survey.py, repairs.py and fsck.  Every statement returns the rows that are wrong; it reads every row,
and changes nothing.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from attrs import frozen

from cuckoo_mount.metadata.counters import Row


class Kind(Enum):
    """What is wrong.  Contract: `kind` in `fsck --json`."""

    DANGLING = "dangling-chunk"
    STORED_DIRTY = "stored-and-dirty"
    HELD = "wrong-held-row"
    PARTIAL = "wrong-partial-row"
    CONTENT = "content-without-node"
    SEQUENCE = "number-given-twice"
    TWICE = "dirty-version-named-twice"
    COOKIE = "cookie-given-twice"
    PACK = "version-without-pack"
    SHARES = "pack-without-shares"
    SHARE = "share-without-pack"
    REFERENCES = "wrong-reference-count"
    DEAD = "version-in-dead-pack"
    EMPTY = "empty-pack"
    LINKS = "wrong-link-count"
    SUBDIRECTORIES = "wrong-subdirectory-count"
    PARENT = "misplaced-directory"
    REACH = "unreachable-directory"
    NAME = "name-of-nothing"
    ATTRIBUTE = "attribute-of-nothing"
    PACK_BYTES = "wrong-pack-counter"
    CHUNKS = "wrong-chunk-count"
    TRIGGER = "journal-trigger"


@frozen(slots=True)
class Check:
    """One statement.  `text`: invariant, what is wrong, and what the first columns of a row are."""

    kind: Kind
    text: str
    sql: str


@frozen(slots=True)
class Problem:
    """Rows that one check found, at most `survey.ROWS_MAX`; `count`: how many there are in all."""

    kind: Kind
    text: str
    rows: tuple[Row, ...]
    count: int


CHECKS: Final = (
    Check(
        Kind.DANGLING,
        "I-1: chunk (inode, index, version) is neither stored nor held dirty",
        """SELECT c.ino, c.idx, c.version FROM chunk c LEFT JOIN version v ON v.version = c.version
        LEFT JOIN held h ON h.ino = c.ino AND h.idx = c.idx AND h.version = c.version AND h.dirty = 1
        WHERE v.version IS NULL AND h.ino IS NULL""",
    ),
    Check(
        Kind.STORED_DIRTY,
        "I-1: chunk (inode, index, version) is stored and yet held dirty",
        """SELECT h.ino, h.idx, h.version FROM held h JOIN version v ON v.version = h.version WHERE h.dirty = 1""",
    ),
    Check(
        Kind.HELD,
        "I-1: held row (inode, index, version) is not what the chunk row names",
        """SELECT h.ino, h.idx, h.version FROM held h LEFT JOIN chunk c ON c.ino = h.ino AND c.idx = h.idx
        WHERE c.version IS NOT h.version""",
    ),
    Check(
        Kind.HELD,
        "I-1: held row (inode, index, version) is clean, but its version is stored nowhere",
        """SELECT ino, idx, version FROM held WHERE dirty = 0 AND version NOT IN (SELECT version FROM version)""",
    ),
    Check(
        Kind.PARTIAL,
        "I-1: partial chunk (inode, index, base) is not held dirty, or its base is not stored",
        """SELECT p.ino, p.idx, p.base FROM partial p
        LEFT JOIN held h ON h.ino = p.ino AND h.idx = p.idx AND h.dirty = 1
        WHERE h.ino IS NULL OR p.base NOT IN (SELECT version FROM version)""",
    ),
    Check(
        Kind.CONTENT,
        "I-1: chunks (inode, rows) belong to no node",
        "SELECT ino, count(*) FROM chunk WHERE ino NOT IN (SELECT ino FROM inode) GROUP BY ino",
    ),
    Check(
        Kind.SEQUENCE,
        "I-6: sequence (name, next) is not past what was given (last)",
        """SELECT s.name, s.next, m.last FROM sequence s JOIN (
            SELECT 'inode' AS name, max(ino) AS last FROM inode UNION ALL SELECT 'cookie', max(cookie) FROM dentry
            UNION ALL SELECT 'version', max(version) FROM chunk UNION ALL SELECT 'version', max(version) FROM version
            UNION ALL SELECT 'pack', max(number) FROM pack) m USING (name) WHERE s.next <= m.last""",
    ),
    Check(
        Kind.TWICE,
        "I-6: dirty version is named by more than one chunk row",
        """SELECT version, count(*) FROM chunk WHERE version NOT IN (SELECT version FROM version)
        GROUP BY version HAVING count(*) > 1""",
    ),
    Check(
        Kind.COOKIE,
        "I-6: directory has two entries with one cookie (directory, cookie)",
        "SELECT parent, cookie FROM dentry GROUP BY parent, cookie HAVING count(*) > 1",
    ),
    Check(
        Kind.PACK,
        "I-8: version (version, pack) lies in a pack that is not in the catalogue",
        "SELECT version, pack FROM version WHERE pack NOT IN (SELECT number FROM pack)",
    ),
    Check(
        Kind.SHARES,
        "I-8: pack (number, policy) has fewer shares than reading it needs",
        """SELECT p.number, p.policy FROM pack p WHERE p.dead_epoch IS NULL AND p.number <> 0
        AND (SELECT count(*) FROM share s WHERE s.pack = p.number)
            < CASE WHEN instr(p.policy, '+') THEN CAST(p.policy AS INTEGER) ELSE 1 END""",
    ),
    Check(
        Kind.SHARE,
        "I-8: share (pack, share) of a pack that is not in the catalogue",
        "SELECT pack, share FROM share WHERE pack NOT IN (SELECT number FROM pack)",
    ),
    Check(
        Kind.REFERENCES,
        "I-10: version without references",
        "SELECT version FROM version WHERE refs < 1",
    ),
    Check(
        Kind.DEAD,
        "I-10: version (version, pack) lies in a dead pack",
        "SELECT v.version, v.pack FROM version v JOIN pack p ON p.number = v.pack WHERE p.dead_epoch IS NOT NULL",
    ),
    Check(
        Kind.EMPTY,
        "I-10: pack has no version and is not dead",
        "SELECT number FROM pack WHERE dead_epoch IS NULL AND number NOT IN (SELECT pack FROM version)",
    ),
    Check(
        Kind.LINKS,
        "I-15: node (inode, nlink, names) is not a directory and has another number of names than its nlink",
        """SELECT i.ino, i.nlink, count(d.ino) FROM inode i LEFT JOIN dentry d ON d.ino = i.ino
        WHERE i.mode & 61440 <> 16384 GROUP BY i.ino HAVING i.nlink <> count(d.ino)""",
    ),
    Check(
        Kind.SUBDIRECTORIES,
        "I-15: directory (inode, nlink) has neither 2 + its subdirectories nor, removed, 0",
        """SELECT i.ino, i.nlink FROM inode i WHERE i.mode & 61440 = 16384 AND i.nlink <> CASE
            WHEN i.parent = 0 THEN 0
            ELSE 2 + (SELECT count(*) FROM dentry d JOIN inode c ON c.ino = d.ino
                      WHERE d.parent = i.ino AND c.mode & 61440 = 16384) END""",
    ),
    Check(
        Kind.PARENT,
        "I-15: directory (inode, parent) does not lie in its parent under exactly one name",
        """SELECT i.ino, i.parent FROM inode i LEFT JOIN (
            SELECT d.ino, count(p.ino) AS names, sum(d.parent = c.parent) AS there FROM dentry d
            JOIN inode c ON c.ino = d.ino AND c.mode & 61440 = 16384 LEFT JOIN inode p ON p.ino = d.parent
            GROUP BY d.ino) n ON n.ino = i.ino
        WHERE i.mode & 61440 = 16384 AND i.ino <> 1
        AND (coalesce(n.names, 0) <> (i.parent <> 0) OR coalesce(n.there, 0) <> (i.parent <> 0))""",
    ),
    Check(
        Kind.REACH,
        "I-15: directory cannot be reached from the root",
        """WITH RECURSIVE reached (ino) AS (SELECT 1 UNION SELECT i.ino FROM reached r JOIN dentry d ON d.parent = r.ino
            JOIN inode i ON i.ino = d.ino WHERE i.mode & 61440 = 16384)
        SELECT ino FROM inode WHERE mode & 61440 = 16384 AND parent <> 0 AND ino NOT IN (SELECT ino FROM reached)""",
    ),
    Check(
        Kind.NAME,
        "I-15: name (directory, name, inode) of a node that does not exist, or in no directory that has a name",
        """SELECT d.parent, d.name, d.ino FROM dentry d LEFT JOIN inode i ON i.ino = d.ino
        LEFT JOIN inode p ON p.ino = d.parent WHERE i.ino IS NULL OR p.ino IS NULL OR p.parent = 0
        OR p.mode & 61440 <> 16384""",
    ),
    Check(
        Kind.ATTRIBUTE,
        "I-15: symbolic link or attributes of a node that does not exist",
        """SELECT ino FROM (SELECT ino FROM symlink UNION SELECT ino FROM xattr)
        WHERE ino NOT IN (SELECT ino FROM inode)""",
    ),
    Check(
        Kind.REFERENCES,
        "I-16: version (version, refs, rows) counts its references wrong",
        """SELECT v.version, v.refs, count(c.version) FROM version v LEFT JOIN (
            SELECT version FROM chunk UNION ALL SELECT base FROM partial) c ON c.version = v.version
        GROUP BY v.version HAVING v.refs <> count(c.version)""",
    ),
    Check(
        Kind.PACK_BYTES,
        "I-16: pack (number, live, sum) counts its live bytes wrong",
        """SELECT p.number, p.live, coalesce(sum(v.plain), 0) AS total FROM pack p
        LEFT JOIN version v ON v.pack = p.number GROUP BY p.number HAVING p.live <> total""",
    ),
    Check(
        Kind.PACK_BYTES,
        "I-16: pack (number, used, sum) counts its sealed live bytes wrong",
        """SELECT p.number, p.used, coalesce(sum(v.length), 0) AS total FROM pack p
        LEFT JOIN version v ON v.pack = p.number GROUP BY p.number HAVING p.used <> total""",
    ),
    Check(
        Kind.CHUNKS,
        "I-16: node (inode, chunks, rows) counts its chunks wrong",
        """SELECT i.ino, i.chunks, count(c.ino) FROM inode i LEFT JOIN chunk c ON c.ino = i.ino
        GROUP BY i.ino HAVING i.chunks <> count(c.ino)""",
    ),
)

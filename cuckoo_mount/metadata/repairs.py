"""Sets right what problems.py finds: counters, names, nodes, chunks that are nowhere.

Used by store.py.  Runs in the loop, never waits.  Everything is looked at once more before it is changed, so that what
happened since it was found does no harm.  A repair may show the next one: fsck goes on until nothing is left.

What is not repaired here, because it would have to guess which of two is right: STORED_DIRTY, PARTIAL, DEAD, TRIGGER,
TWICE (but where DANGLING does it), and a HELD row that is dirty.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from attrs import define, field

from cuckoo_mount.format import DIGEST_BYTES, ID_BYTES
from cuckoo_mount.metadata.counters import Row
from cuckoo_mount.metadata.lostfound import LostFound
from cuckoo_mount.metadata.names import INSERT_INODE
from cuckoo_mount.metadata.nodes import is_directory
from cuckoo_mount.metadata.problems import Kind
from cuckoo_mount.metadata.records import Repaired
from cuckoo_mount.metadata.versions import Versions
from cuckoo_mount.types import CHUNK_SIZE_BYTES, LOST_PACK, ROOT_INODE, InodeNo

_NOWHERE: Final = """
    SELECT c.version FROM chunk c LEFT JOIN version v ON v.version = c.version
    LEFT JOIN held h ON h.ino = c.ino AND h.idx = c.idx AND h.version = c.version AND h.dirty = 1
    WHERE c.ino = ? AND c.idx = ? AND v.version IS NULL AND h.ino IS NULL"""
_SUBDIRECTORIES: Final = """
    SELECT count(*) FROM dentry d JOIN inode c ON c.ino = d.ino
    WHERE d.parent = ? AND c.mode & 61440 = 16384"""
_LAST_CHUNK: Final = """
    SELECT c.idx, coalesce(v.plain, h.length, 0) FROM chunk c LEFT JOIN version v ON v.version = c.version
    LEFT JOIN held h ON h.ino = c.ino AND h.idx = c.idx WHERE c.ino = ? ORDER BY c.idx DESC LIMIT 1"""


@define(slots=True, eq=False)
class _Work:
    """What one change has done so far."""

    now_ns: int
    is_used: Callable[[InodeNo], bool]
    rows: int = 0
    names: list[tuple[InodeNo, bytes]] = field(factory=list)
    nodes: list[InodeNo] = field(factory=list)


class Repairs(LostFound, Versions):
    """See `Metadata` for the public method."""

    async def repair(
        self, kind: Kind, rows: Sequence[Row], *, now_ns: int, is_used: Callable[[InodeNo], bool] = lambda ino: False
    ) -> Repaired:
        repairers: dict[Kind, Callable[[_Work, Sequence[Row]], None]] = {
            Kind.DANGLING: self._lose_chunks,
            Kind.HELD: self._forget_held,
            Kind.CONTENT: self._give_nodes,
            Kind.SEQUENCE: self._raise_sequences,
            Kind.COOKIE: self._give_cookies,
            Kind.PACK: self._lose_homeless,
            Kind.SHARES: self._lose_shareless,
            Kind.SHARE: self._remove_shares,
            Kind.REFERENCES: self._count_references,
            Kind.EMPTY: self._bury_packs,
            Kind.LINKS: self._count_names,
            Kind.SUBDIRECTORIES: self._count_subdirectories,
            Kind.PARENT: self._place_directories,
            Kind.REACH: self._reach_directories,
            Kind.NAME: self._mend_names,
            Kind.ATTRIBUTE: self._remove_attributes,
            Kind.PACK_BYTES: self._count_packs,
            Kind.CHUNKS: self._count_chunks,
        }
        work = _Work(now_ns, is_used)
        repairer = repairers.get(kind)
        if repairer is None:
            return Repaired(0)
        try:
            with self._db.change:
                repairer(work, rows)
        finally:
            self._db.forget_counters()
        return Repaired(work.rows, tuple(dict.fromkeys(work.names)), tuple(dict.fromkeys(work.nodes)))

    # -- counters --

    def _count_references(self, work: _Work, rows: Sequence[Row]) -> None:
        for version, *_ in rows:
            ((count,),) = self._db.rows(
                "SELECT (SELECT count(*) FROM chunk WHERE version = ?) + (SELECT count(*) FROM partial WHERE base = ?)",
                (version, version),
            )
            row = self._db.row("SELECT refs, pack FROM version WHERE version = ?", (version,))
            if row is None or (row[0] == count and count):
                continue
            if count:
                self._db.run("UPDATE version SET refs = ? WHERE version = ?", (count, version))
            else:
                self._db.run("DELETE FROM version WHERE version = ?", (version,))
                self._count_pack(row[1])
            work.rows += 1

    def _count_packs(self, work: _Work, rows: Sequence[Row]) -> None:
        for number, *_ in rows:
            work.rows += self._count_pack(number)

    def _count_pack(self, number: int) -> int:
        """Count what lives in a pack; return 1, 0 if the counters were right."""
        ((live, used),) = self._db.rows(
            "SELECT coalesce(sum(plain), 0), coalesce(sum(length), 0) FROM version WHERE pack = ?", (number,)
        )
        return self._db.run(
            "UPDATE pack SET live = ?, used = ? WHERE number = ? AND (live, used) IS NOT (?, ?)",
            (live, used, number, live, used),
        )

    def _bury_packs(self, work: _Work, rows: Sequence[Row]) -> None:
        for (number,) in rows:
            work.rows += self._bury_pack(number)

    def _bury_pack(self, number: int) -> int:
        self._count_pack(number)
        return self._db.run(
            "UPDATE pack SET dead_epoch = ? WHERE number = ? AND dead_epoch IS NULL"
            " AND NOT EXISTS (SELECT 1 FROM version WHERE pack = number)",
            (self._epoch(), number),
        )

    def _count_chunks(self, work: _Work, rows: Sequence[Row]) -> None:
        for ino, *_ in rows:
            work.rows += self._db.run(
                "UPDATE inode SET chunks = (SELECT count(*) FROM chunk c WHERE c.ino = inode.ino) WHERE ino = ?", (ino,)
            )
            work.nodes.append(InodeNo(ino))

    def _raise_sequences(self, work: _Work, rows: Sequence[Row]) -> None:
        for name, _, last in rows:
            work.rows += self._db.run("UPDATE sequence SET next = max(next, ?) WHERE name = ?", (last + 1, name))
        self._db.forget_reserves()

    # -- names and nodes --

    def _mend_names(self, work: _Work, rows: Sequence[Row]) -> None:
        """Names of nothing go; a directory that names speak of and that is not there is made again."""
        for parent, name, ino in rows:
            if self._names_now(parent, name) != ino:
                continue
            above = self._db.row("SELECT mode, parent FROM inode WHERE ino = ?", (parent,))
            node = self._db.row("SELECT mode FROM inode WHERE ino = ?", (ino,))
            if node is None or parent < ROOT_INODE or (above is not None and not is_directory(above[0])):
                self._remove_name(InodeNo(parent), name)  # a node without name is found next
            elif above is None:
                self._make_again(work, parent, stat.S_IFDIR | 0o700, 0)
            elif above[1] == 0 and parent != ROOT_INODE:
                self._attach(work, parent)
            else:
                continue
            work.rows += 1
            work.names.append((InodeNo(parent), name))

    def _give_nodes(self, work: _Work, rows: Sequence[Row]) -> None:
        for ino, *_ in rows:
            last = self._db.row(_LAST_CHUNK, (ino,))
            if last is None or self._db.row("SELECT 1 FROM inode WHERE ino = ?", (ino,)) is not None:
                continue
            self._make_again(work, ino, stat.S_IFREG | 0o600, last[0] * CHUNK_SIZE_BYTES + last[1])
            self._count_chunks(work, [(ino,)])

    def _make_again(self, work: _Work, ino: int, mode: int, size_bytes: int) -> None:
        """Make a node that is gone, under its number; it gets a name if it has none (one of a directory is lost)."""
        root, now = self._inode(ROOT_INODE), work.now_ns
        directory = is_directory(mode)
        names = self._places_of([ino])
        links = 2 if directory else len(names)
        row = (ino, mode, root.uid, root.gid, 0, links, size_bytes, now, now, now, now, 0)
        self._db.run(INSERT_INODE, (*row, names[0][1] if directory and names else 0))
        if not names:
            self._attach(work, ino)

    def _attach(self, work: _Work, ino: int) -> None:
        """Give a node a name in /lost+found; a directory lies there then."""
        folder = self._lost_found(work.now_ns)
        name = self._free_name(folder, b"#%d" % ino)
        self._put_name(folder, name, InodeNo(ino))
        row = self._db.row("SELECT mode FROM inode WHERE ino = ?", (ino,))
        if row is not None and is_directory(row[0]):
            self._db.run("UPDATE inode SET parent = ? WHERE ino = ?", (folder, ino))
            self._count_subdirectories(None, [(ino,), (folder,)])
        else:
            self._db.run("UPDATE inode SET nlink = 1 WHERE ino = ?", (ino,))
        self._stamp(folder, work.now_ns)
        self._stamp(ROOT_INODE, work.now_ns)
        self._count_subdirectories(None, [(ROOT_INODE,)])
        work.names += [(folder, name), (ROOT_INODE, self._lost_found_path()[1:])]
        work.nodes += [folder, InodeNo(ino), ROOT_INODE]

    def _count_names(self, work: _Work, rows: Sequence[Row]) -> None:
        counts: dict[int, int] = {}
        for ino, _, _ in self._places_of([row[0] for row in rows]):
            counts[ino] = counts.get(ino, 0) + 1
        for ino, *_ in rows:
            node = self._db.row("SELECT mode, nlink FROM inode WHERE ino = ?", (ino,))
            names = counts.get(ino, 0)
            if node is None or is_directory(node[0]) or node[1] == names:
                continue
            if names:
                self._db.run("UPDATE inode SET nlink = ? WHERE ino = ?", (names, ino))
            else:
                self._attach(work, ino)
            work.nodes.append(InodeNo(ino))
            work.rows += 1

    def _count_subdirectories(self, work: _Work | None, rows: Iterable[Row]) -> None:
        for ino, *_ in rows:
            ((count,),) = self._db.rows(_SUBDIRECTORIES, (ino,))
            changed = self._db.run(
                "UPDATE inode SET nlink = CASE WHEN parent = 0 THEN 0 ELSE 2 + ? END WHERE ino = ?"
                " AND mode & 61440 = 16384 AND nlink <> CASE WHEN parent = 0 THEN 0 ELSE 2 + ? END",
                (count, ino, count),
            )
            if work is not None and changed:
                work.rows += 1
                work.nodes.append(InodeNo(ino))

    def _place_directories(self, work: _Work, rows: Sequence[Row]) -> None:
        """Leave each directory one name, where it says it lies if it can be, and let it lie there."""
        places = self._places_of([row[0] for row in rows])
        for ino, *_ in rows:
            node = self._db.row("SELECT mode, parent FROM inode WHERE ino = ?", (ino,))
            if node is None or not is_directory(node[0]) or ino == ROOT_INODE:
                continue
            names = [(parent, name) for found, parent, name in places if found == ino]
            good = [place for place in names if self._is_directory_now(place[0])]
            if not good:
                if not names:
                    self._attach(work, ino)
                    work.rows += 1
                continue  # names in what is no directory are mended first
            keep = next((place for place in good if place[0] == node[1]), good[0])
            if names == [keep] and node[1] == keep[0]:
                continue
            work.rows += 1
            self._db.run("UPDATE inode SET parent = ? WHERE ino = ?", (keep[0], ino))
            for parent, name in names:
                if (parent, name) != keep:
                    self._remove_name(InodeNo(parent), name)
                work.names.append((InodeNo(parent), name))
            self._count_subdirectories(None, [(ino,), *names])
            work.nodes += [InodeNo(ino), *(InodeNo(parent) for parent, _ in names)]

    def _reach_directories(self, work: _Work, rows: Sequence[Row]) -> None:
        """Cut each ring of directories open, and put it into /lost+found."""
        for (ino,) in rows:
            above = self._ring_of(ino)
            if above is None:
                continue  # it hangs on another one, which is mended
            for _, parent, name in self._places_of([ino]):
                self._remove_name(InodeNo(parent), name)
                work.names.append((InodeNo(parent), name))
            self._attach(work, ino)
            self._count_subdirectories(None, [(above,)])
            work.rows += 1

    def _ring_of(self, ino: int) -> int | None:
        """Return the parent of a directory that lies in itself, None if it does not."""
        seen: set[int] = set()
        at, first = ino, None
        while at not in seen and at != ROOT_INODE:
            seen.add(at)
            row = self._db.row("SELECT parent FROM inode WHERE ino = ?", (at,))
            if row is None or row[0] == 0:
                return None
            at = int(row[0])
            first = at if first is None else first
        return first if at == ino else None

    def _give_cookies(self, work: _Work, rows: Sequence[Row]) -> None:
        for parent, cookie, *_ in rows:
            same = self._db.rows("SELECT name FROM dentry WHERE parent = ? AND cookie = ?", (parent, cookie))
            for (name,) in same[1:]:
                sql = "UPDATE dentry SET cookie = ? WHERE parent = ? AND name = ?"
                work.rows += self._db.run(sql, (self._db.take("cookie"), parent, name))

    def _remove_attributes(self, work: _Work, rows: Sequence[Row]) -> None:
        for (ino,) in rows:
            if self._db.row("SELECT 1 FROM inode WHERE ino = ?", (ino,)) is None:
                removed = [self._db.run(f"DELETE FROM {table} WHERE ino = ?", (ino,)) for table in ("symlink", "xattr")]
                work.rows += any(removed)

    def _is_directory_now(self, ino: int) -> bool:
        row = self._db.row("SELECT mode FROM inode WHERE ino = ?", (ino,))
        return row is not None and is_directory(row[0])

    def _places_of(self, inos: Sequence[int]) -> list[tuple[int, int, bytes]]:
        """Return every (inode, directory, name) of these.  Reads all names once: no index leads from node to name."""
        marks = ", ".join("?" * len(inos))
        return self._db.rows(f"SELECT ino, parent, name FROM dentry WHERE ino IN ({marks})", tuple(inos))

    # -- content --

    def _lose_chunks(self, work: _Work, rows: Sequence[Row]) -> None:
        """Let chunks that are nowhere be in pack 0, under new versions, so that reading them is an error."""
        for ino, index, version in rows:
            now = self._db.row(_NOWHERE, (ino, index))
            if now is None or now[0] != version or work.is_used(InodeNo(ino)):
                continue
            size = self._db.row("SELECT size FROM inode WHERE ino = ?", (ino,))
            left = (size[0] if size is not None else 0) - index * CHUNK_SIZE_BYTES
            plain = min(max(left, 1), CHUNK_SIZE_BYTES)
            new = self._db.take("version")
            self._open_lost_pack()
            self._db.run(
                "INSERT INTO version (version, pack, offset, length, plain, digest, refs) VALUES (?, ?, 0, 1, ?, ?, 1)",
                (new, LOST_PACK, plain, bytes(DIGEST_BYTES)),
            )
            self._db.run("UPDATE chunk SET version = ? WHERE ino = ? AND idx = ?", (new, ino, index))
            self._db.run("DELETE FROM held WHERE ino = ? AND idx = ? AND dirty = 0", (ino, index))
            for (base,) in self._db.rows("DELETE FROM partial WHERE ino = ? AND idx = ? RETURNING base", (ino, index)):
                self._release(base)
            work.rows += 1
        if work.rows:
            self._count_pack(LOST_PACK)

    def _open_lost_pack(self) -> None:
        """Make pack 0, as an epoch does for what could not be sent (docs/format.md).  It has no share that could be
        deleted, so that it may live again."""
        self._db.run(
            "INSERT INTO pack (number, pack_id, policy, size, live, used, born_epoch) VALUES (?, ?, '1', 0, 0, 0, 0)"
            " ON CONFLICT (number) DO UPDATE SET dead_epoch = NULL",
            (LOST_PACK, bytes(ID_BYTES)),
        )

    def _lose_homeless(self, work: _Work, rows: Sequence[Row]) -> None:
        for version, number in rows:
            if self._db.row("SELECT 1 FROM pack WHERE number = ?", (number,)) is None:
                work.rows += self._lose_versions(work, "version = ? AND pack = ?", (version, number))

    def _lose_shareless(self, work: _Work, rows: Sequence[Row]) -> None:
        """Bury packs without any share; one that has some keeps them: parts of it may be readable."""
        for number, *_ in rows:
            if self._db.row("SELECT 1 FROM share WHERE pack = ?", (number,)) is None:
                self._lose_versions(work, "pack = ?", (number,))
                work.rows += self._bury_pack(number)

    def _lose_versions(self, work: _Work, where: str, values: tuple[int, ...]) -> int:
        """Move stored versions to pack 0, but those of files that somebody uses; return how many."""
        lost = 0
        for (version,) in self._db.rows(f"SELECT version FROM version WHERE {where}", values):
            files = self._db.rows("SELECT DISTINCT ino FROM chunk WHERE version = ?", (version,))
            if any(work.is_used(InodeNo(ino)) for (ino,) in files):
                continue
            self._open_lost_pack()
            lost += self._db.run(
                "UPDATE version SET pack = ?, offset = 0, length = 1, digest = ? WHERE version = ?",
                (LOST_PACK, bytes(DIGEST_BYTES), version),
            )
            # What is held of it was clean by the digest that went.
            self._db.run("DELETE FROM held WHERE version = ? AND dirty = 0", (version,))
        if lost:
            self._count_pack(LOST_PACK)
        return lost

    def _forget_held(self, work: _Work, rows: Sequence[Row]) -> None:
        for ino, index, version in rows:
            if not work.is_used(InodeNo(ino)):
                work.rows += self._db.run(
                    "DELETE FROM held WHERE ino = ? AND idx = ? AND version = ? AND dirty = 0"
                    " AND (version NOT IN (SELECT version FROM version) OR version IS NOT"
                    " (SELECT c.version FROM chunk c WHERE c.ino = held.ino AND c.idx = held.idx))",
                    (ino, index, version),
                )

    def _remove_shares(self, work: _Work, rows: Sequence[Row]) -> None:
        for number, share in rows:
            work.rows += self._db.run(
                "DELETE FROM share WHERE pack = ? AND share = ? AND pack NOT IN (SELECT number FROM pack)",
                (number, share),
            )

"""Packs, shares, clouds and settings.

Used by store.py.  Runs in the loop, never waits.  Keeps I-8 (a location only for what is still named) and, with
versions.py, I-10 and I-16.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from cuckoo_mount.errors import MetadataError
from cuckoo_mount.metadata.counters import Row
from cuckoo_mount.metadata.versions import Versions
from cuckoo_mount.types import CloudName, CloudRow, PackNo, PackRow, SealedChunk, ShareRow, VersionNo

SETTINGS_SQL = "SELECT key, value FROM setting WHERE substr(key, 1, length(?)) = ? ORDER BY key"
_PACK_COLUMNS = "number, pack_id, policy, size, live, used, dead_epoch"


def share_length_bytes(policy: str, size_bytes: int) -> int:
    """Return the length of each share of a pack of `size_bytes`: all of it for copies, its K-th part for K+M."""
    needed, plus, _ = policy.partition("+")
    return -(-size_bytes // int(needed)) if plus else size_bytes


class Catalogue(Versions):
    """See `Metadata` for every public method."""

    async def begin_pack(self, pack_id: bytes) -> None:
        self._db.ready()
        self._db.run("INSERT INTO pack_intent (pack_id) VALUES (?)", (pack_id,))

    async def pack_intents(self) -> list[bytes]:
        return [pack_id for (pack_id,) in self._db.rows("SELECT pack_id FROM pack_intent ORDER BY pack_id")]

    async def finish_pack(
        self,
        pack_id: bytes,
        policy: str,
        size_bytes: int,
        shares: Sequence[ShareRow],
        sealed: Sequence[SealedChunk],
        overwritten: Collection[VersionNo],
    ) -> PackNo:
        with self._db.change:
            begun = self._db.run("DELETE FROM pack_intent WHERE pack_id = ?", (pack_id,))
            assert begun, f"pack {pack_id.hex()} was not begun"
            number = self._db.take("pack")
            live, used, named = 0, 0, 0
            for item in sealed:
                if self._place(number, item, overwritten):
                    live += item.chunk.length_bytes
                    used += item.length_bytes
                    named += 1
            epoch = self._epoch()
            self._db.run(
                "INSERT INTO pack (number, pack_id, policy, size, live, used, born_epoch, dead_epoch)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (number, pack_id, policy, size_bytes, live, used, epoch, None if named else epoch),
            )
            length = share_length_bytes(policy, size_bytes)
            for share in shares:
                self._db.run(
                    "INSERT INTO share (pack, share, cloud, digest, length) VALUES (?, ?, ?, ?, ?)",
                    (number, share.share, share.cloud, share.digest, length),
                )
            counters = self._db.counters
            counters.packs += 1
            counters.pack_live_bytes += live
            counters.pack_stored_bytes += size_bytes
            counters.share_made(self._usage_of(number), 1)
        return PackNo(number)

    async def abandon_pack(self, pack_id: bytes) -> None:
        self._db.ready()
        self._db.run("DELETE FROM pack_intent WHERE pack_id = ?", (pack_id,))

    async def get_pack(self, number: PackNo) -> PackRow:
        row = self._db.row(f"SELECT {_PACK_COLUMNS} FROM pack WHERE number = ?", (number,))
        if row is None:
            raise MetadataError(f"there is no pack {number} in the catalogue")
        return self._pack(row)

    async def dead_packs(self, limit: int) -> list[PackRow]:
        sql = f"SELECT {_PACK_COLUMNS} FROM pack WHERE dead_epoch IS NOT NULL ORDER BY number LIMIT ?"
        return [self._pack(row) for row in self._db.rows(sql, (limit,))]

    async def forget_pack(self, number: PackNo) -> None:
        pack = await self.get_pack(number)
        assert pack.dead, f"pack {number} is not dead"
        with self._db.change:
            usage = self._usage_of(number)
            self._db.run("DELETE FROM share WHERE pack = ?", (number,))
            self._db.run("DELETE FROM pack WHERE number = ?", (number,))
            counters = self._db.counters
            counters.packs -= 1
            counters.pack_stored_bytes -= pack.size_bytes
            counters.share_made(usage, -1)

    async def clouds(self) -> list[CloudRow]:
        rows = self._db.rows(
            "SELECT name, cloud_id, url, capacity, reserve, grp, read_only FROM cloud ORDER BY position, name"
        )
        return [
            CloudRow(CloudName(name), cloud_id, url, capacity, reserve, group, read_only == 1)
            for name, cloud_id, url, capacity, reserve, group, read_only in rows
        ]

    async def put_cloud(self, cloud: CloudRow) -> None:
        self._db.ready()
        self._db.run(
            """INSERT INTO cloud (name, cloud_id, url, capacity, reserve, grp, read_only, position)
            VALUES (?, ?, ?, ?, ?, ?, ?, (SELECT coalesce(max(position), 0) + 1 FROM cloud))
            ON CONFLICT (name) DO UPDATE SET cloud_id = excluded.cloud_id, url = excluded.url,
            capacity = excluded.capacity, reserve = excluded.reserve, grp = excluded.grp,
            read_only = excluded.read_only""",
            (
                *(cloud.name, cloud.cloud_id, cloud.url, cloud.capacity_bytes, cloud.reserve_bytes, cloud.group),
                int(cloud.read_only),
            ),
        )

    async def cloud_usage(self) -> dict[CloudName, tuple[int, int]]:
        usage = {CloudName(name): (0, 0) for (name,) in self._db.rows("SELECT name FROM cloud")}
        for name, (packs, length) in self._db.counters.usage.items():
            usage[CloudName(name)] = (packs, length)
        return usage

    async def get_setting(self, key: str) -> str | None:
        return self._setting("setting", key)

    async def set_setting(self, key: str, value: str) -> None:
        self._put_setting("setting", key, value)

    async def delete_setting(self, key: str) -> None:
        self._db.ready()
        self._db.run("DELETE FROM setting WHERE key = ?", (key,))

    async def settings(self, prefix: str) -> dict[str, str]:
        return dict(self._db.rows(SETTINGS_SQL, (prefix, prefix)))

    async def get_local(self, key: str) -> str | None:
        return self._setting("local_setting", key)

    async def set_local(self, key: str, value: str) -> None:
        self._put_setting("local_setting", key, value)

    def _place(self, pack: int, item: SealedChunk, overwritten: Collection[VersionNo]) -> bool:
        """Enter where a version is stored and settle its held row, if its file still names it and it is still dirty."""
        chunk = item.chunk
        row = self._db.row(
            """SELECT h.length FROM chunk c JOIN held h ON h.ino = c.ino AND h.idx = c.idx
            WHERE c.ino = ? AND c.idx = ? AND c.version = ? AND h.version = c.version AND h.dirty = 1""",
            (chunk.ino, chunk.index, chunk.version),
        )
        if row is None:
            return False
        self._db.run(
            "INSERT INTO version (version, pack, offset, length, plain, digest, refs) VALUES (?, ?, ?, ?, ?, ?, 1)",
            (chunk.version, pack, item.offset, item.length_bytes, chunk.length_bytes, item.digest),
        )
        self._db.counters.held_gone(chunk.ino, row[0], dirty=True)
        if chunk.version in overwritten:
            self._db.run("DELETE FROM held WHERE ino = ? AND idx = ?", (chunk.ino, chunk.index))
        else:
            self._db.run("UPDATE held SET dirty = 0 WHERE ino = ? AND idx = ?", (chunk.ino, chunk.index))
            self._db.counters.held_made(chunk.ino, row[0], dirty=False)
        return True

    def _usage_of(self, number: int) -> dict[str, int]:
        """Return the bytes of a pack's shares by cloud."""
        rows = self._db.rows("SELECT cloud, sum(length) FROM share WHERE pack = ? GROUP BY cloud", (number,))
        return dict(rows)

    def _pack(self, row: Row) -> PackRow:
        number, pack_id, policy, size, live, used, dead = row
        shares = self._db.rows("SELECT share, cloud, digest FROM share WHERE pack = ? ORDER BY share", (number,))
        return PackRow(
            number=PackNo(number),
            pack_id=pack_id,
            policy=policy,
            size_bytes=size,
            live_bytes=live,
            dead=dead is not None,
            shares=tuple(ShareRow(*share) for share in shares),
            used_bytes=used,
        )

    def _setting(self, table: str, key: str) -> str | None:
        row = self._db.row(f"SELECT value FROM {table} WHERE key = ?", (key,))
        return None if row is None else str(row[0])

    def _put_setting(self, table: str, key: str, value: str) -> None:
        self._db.ready()
        self._db.run(
            f"INSERT INTO {table} (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
            (key, value),
        )

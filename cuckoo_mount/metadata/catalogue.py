"""Packs, shares, clouds and settings.

Used by store.py.  Runs in the loop, never waits.  Keeps I-8 (a location only for what is still named) and, with
versions.py, I-10 and I-16.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final

from cuckoo_mount.errors import MetadataError
from cuckoo_mount.format import share_length
from cuckoo_mount.metadata.counters import Row
from cuckoo_mount.metadata.sharing import Sharing
from cuckoo_mount.types import (
    CloudName,
    CloudRow,
    CloudUse,
    Location,
    PackNo,
    PackRow,
    SealedChunk,
    ShareRow,
    VersionNo,
)

SETTINGS_SQL = "SELECT key, value FROM setting WHERE substr(key, 1, length(?)) = ? ORDER BY key"
LOCAL_SETTINGS_SQL = SETTINGS_SQL.replace("FROM setting", "FROM local_setting")
_PACK_COLUMNS = "number, pack_id, policy, size, live, used, dead_epoch"
USE_PREFIX: Final = "use."
"""Settings `use.<cloud>`: a `CloudUse`; none: normal.  Not a column, so that no epoch needs another schema for it."""
CLOUD_USES_SQL: Final = f"SELECT c.name, s.value FROM cloud c LEFT JOIN setting s ON s.key = '{USE_PREFIX}' || c.name"
_LAST_EPOCH: Final = (1 << 63) - 1


def use_of(value: str | None) -> CloudUse:
    """Return what a setting `use.<cloud>` says, None if there is none; of what a newer version says: nothing new."""
    if value is None:
        return CloudUse.NORMAL
    try:
        return CloudUse(value)
    except ValueError:
        return CloudUse.NO_NEW


def share_length_bytes(policy: str, size_bytes: int) -> int:
    """Return the length of each share of a pack of `size_bytes`: all of it for copies, its K-th part for K+M."""
    needed, plus, _ = policy.partition("+")
    return share_length(size_bytes, int(needed) if plus else 1)


class Catalogue(Sharing):
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
        strays: Collection[CloudName] = (),
        epoch: int | None = None,
    ) -> PackNo:
        with self._db.change:
            number = self._enter_pack(pack_id, policy, size_bytes, shares, strays, epoch)
            live = used = 0
            for item in sealed:
                if self._place(number, item, overwritten):
                    live += item.chunk.length_bytes
                    used += item.length_bytes
            self._fill(number, live, used)
        return number

    async def enter_epoch(self, number: int) -> None:
        with self._db.change:
            if self._epoch() > number:
                # Not only in name: a pack with born_epoch = dead_epoch may be deleted at once (`dead_packs`), so a
                # pack that is alive in this epoch must not count as born in the next one.
                self._db.run("UPDATE pack SET dead_epoch = ? WHERE dead_epoch > ?", (number, number))
                self._db.run("UPDATE pack SET born_epoch = ? WHERE born_epoch > ?", (number, number))
            self._put_setting("local_setting", "epoch", str(number + 1))

    async def move_versions(
        self,
        pack_id: bytes,
        policy: str,
        size_bytes: int,
        shares: Sequence[ShareRow],
        moved: Sequence[SealedChunk],
        strays: Collection[CloudName] = (),
    ) -> Mapping[VersionNo, Location]:
        with self._db.change:
            number = self._enter_pack(pack_id, policy, size_bytes, shares, strays)
            places = self._move_versions(number, moved)
            live = sum(place.plain_bytes for place in places.values())
            self._fill(number, live, sum(place.length_bytes for place in places.values()))
        return places

    def _enter_pack(
        self,
        pack_id: bytes,
        policy: str,
        size_bytes: int,
        shares: Sequence[ShareRow],
        strays: Collection[CloudName],
        epoch: int | None = None,
    ) -> PackNo:
        """Turn an intent into the rows of a pack in which nothing lives yet; `_fill` must follow."""
        begun = self._db.run("DELETE FROM pack_intent WHERE pack_id = ?", (pack_id,))
        assert begun, f"pack {pack_id.hex()} was not begun"
        number = self._db.take("pack")
        self._db.run(
            "INSERT INTO pack (number, pack_id, policy, size, live, used, born_epoch) VALUES (?, ?, ?, ?, 0, 0, ?)",
            (number, pack_id, policy, size_bytes, self._epoch() if epoch is None else epoch),
        )
        length = share_length_bytes(policy, size_bytes)
        for share in shares:
            self._db.run(
                "INSERT INTO share (pack, share, cloud, digest, length) VALUES (?, ?, ?, ?, ?)",
                (number, share.share, share.cloud, share.digest, length),
            )
        for cloud in strays:
            self._db.run("INSERT INTO stray (pack_id, cloud) VALUES (?, ?)", (pack_id, cloud))
        counters = self._db.counters
        counters.packs += 1
        counters.pack_stored_bytes += size_bytes
        counters.share_made(self._usage_of(number), 1)
        return PackNo(number)

    def _fill(self, number: PackNo, live_bytes: int, used_bytes: int) -> None:
        """Set the counters of a new pack; one in which nothing lives is dead (no sealed chunk has 0 bytes)."""
        self._db.run(
            "UPDATE pack SET live = ?, used = ?, dead_epoch = ? WHERE number = ?",
            (live_bytes, used_bytes, None if used_bytes else self._epoch(), number),
        )
        self._db.counters.pack_live_bytes += live_bytes

    async def abandon_pack(self, pack_id: bytes) -> None:
        self._db.ready()
        self._db.run("DELETE FROM pack_intent WHERE pack_id = ?", (pack_id,))

    async def get_pack(self, number: PackNo) -> PackRow:
        row = self._db.row(f"SELECT {_PACK_COLUMNS} FROM pack WHERE number = ?", (number,))
        if row is None:
            raise MetadataError(f"there is no pack {number} in the catalogue")
        return self._pack(row)

    async def packs(self, limit: int, *, after: PackNo | None = None) -> list[PackRow]:
        sql = f"SELECT {_PACK_COLUMNS} FROM pack WHERE number > ? ORDER BY number LIMIT ?"
        return [self._pack(row) for row in self._db.rows(sql, (after or 0, limit))]

    async def dead_packs(
        self, limit: int, *, after: PackNo | None = None, oldest_kept_epoch: int | None = None
    ) -> list[PackRow]:
        sql = (
            f"SELECT {_PACK_COLUMNS} FROM pack WHERE dead_epoch IS NOT NULL AND number > ?"
            " AND (dead_epoch <= ? OR dead_epoch = born_epoch) ORDER BY number LIMIT ?"
        )
        epoch = _LAST_EPOCH if oldest_kept_epoch is None else oldest_kept_epoch
        return [self._pack(row) for row in self._db.rows(sql, (after or 0, epoch, limit))]

    async def forget_shares(self, number: PackNo, clouds: Collection[CloudName]) -> None:
        pack = await self.get_pack(number)
        assert pack.dead, f"pack {number} is not dead"
        with self._db.change:
            usage = {cloud: length for cloud, length in self._usage_of(number).items() if cloud in clouds}
            for cloud in usage:
                self._db.run("DELETE FROM share WHERE pack = ? AND cloud = ?", (number, cloud))
            self._db.counters.share_made(usage, -1)

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

    async def strays(self) -> list[tuple[bytes, CloudName]]:
        rows = self._db.rows("SELECT pack_id, cloud FROM stray ORDER BY pack_id, cloud")
        return [(pack_id, CloudName(cloud)) for pack_id, cloud in rows]

    async def forget_stray(self, pack_id: bytes, cloud: CloudName) -> None:
        self._db.ready()
        self._db.run("DELETE FROM stray WHERE pack_id = ? AND cloud = ?", (pack_id, cloud))

    async def find_pack(self, pack_id: bytes) -> PackRow | None:
        row = self._db.row(f"SELECT {_PACK_COLUMNS} FROM pack WHERE pack_id = ?", (pack_id,))
        return None if row is None else self._pack(row)

    async def note_unknown(self, cloud: CloudName, names: Collection[str], now_ns: int) -> dict[str, int]:
        with self._db.change:
            before: dict[str, int] = dict(
                self._db.rows("SELECT name, seen FROM unknown_object WHERE cloud = ?", (cloud,))
            )
            for name in before.keys() - set(names):
                self._db.run("DELETE FROM unknown_object WHERE cloud = ? AND name = ?", (cloud, name))
            for name in set(names) - before.keys():
                self._db.run("INSERT INTO unknown_object (cloud, name, seen) VALUES (?, ?, ?)", (cloud, name, now_ns))
        return {name: before.get(name, now_ns) for name in names}

    async def clouds(self) -> list[CloudRow]:
        uses = {name: use_of(value) for name, value in self._db.rows(CLOUD_USES_SQL)}
        rows = self._db.rows(
            "SELECT name, cloud_id, url, capacity, reserve, grp, read_only FROM cloud ORDER BY position, name"
        )
        return [
            CloudRow(CloudName(name), cloud_id, url, capacity, reserve, group, read_only == 1, uses[name])
            for name, cloud_id, url, capacity, reserve, group, read_only in rows
        ]

    async def put_cloud(self, cloud: CloudRow) -> None:
        key = f"{USE_PREFIX}{cloud.name}"
        with self._db.change:
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
            if cloud.use is CloudUse.NORMAL:
                self._db.run("DELETE FROM setting WHERE key = ?", (key,))
            elif self._setting("setting", key) != cloud.use.value:
                self._put_setting("setting", key, cloud.use.value)

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

    async def local_settings(self, prefix: str) -> dict[str, str]:
        return dict(self._db.rows(LOCAL_SETTINGS_SQL, (prefix, prefix)))

    async def get_local(self, key: str) -> str | None:
        return self._setting("local_setting", key)

    async def set_local(self, key: str, value: str) -> None:
        self._put_setting("local_setting", key, value)

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

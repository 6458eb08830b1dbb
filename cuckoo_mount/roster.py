"""The drive's list of clouds: who is on it, who joins, changes and leaves.

Used by drive.py, and through it by commands.  Loop only.  The list lives in the metadata; the TOML file keeps a copy
with what belongs to this machine: options and secrets (design §4), which cloudsettings.py stores for other machines.
Owns the order that makes every step safe to be interrupted: a cloud is signed (drive.json, key slots) before it is on
the list, and off the list before anything there is given up; the TOML file is written before the metadata when a cloud
joins or leaves, so that a crash in between leaves a cloud that is signed again at the next mount, or one that is still
on the list.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Final

import trio
from attrs import asdict, evolve

from cuckoo_mount.clouds import jobs
from cuckoo_mount.cloudsettings import (
    CloudAccess,
    access_of,
    cloud_of,
    forget_access,
    load_access,
    merge_clouds,
    refresh_access,
    row_of,
    settings_of,
    shown_url,
    store_access,
    without_credentials,
)
from cuckoo_mount.config import CloudConfig, DriveConfig, DrivePaths
from cuckoo_mount.config.files import store_clouds, store_redundancy
from cuckoo_mount.errors import CloudRefused, ConfigurationError, CuckooError, UsageError
from cuckoo_mount.layers.keys import DriveKeys
from cuckoo_mount.listchecks import check_new, check_not_listed, only_there, removal_plan
from cuckoo_mount.metadata.base import Metadata
from cuckoo_mount.multi.jobs import Trial
from cuckoo_mount.multi.multifs import MultiFS
from cuckoo_mount.multi.records import CloudEntry, CloudStatistics, entry_of
from cuckoo_mount.multi.requests import Pool, gather
from cuckoo_mount.packs.writer import PackWriter
from cuckoo_mount.preparing import cloud_entry
from cuckoo_mount.slotcopies import LoadSlots, SlotCopies
from cuckoo_mount.trial import try_listed
from cuckoo_mount.types import CloudName, CloudRow, CloudUse

log = logging.getLogger(__name__)
IDENTITY_DEADLINE_S: Final = 30.0


class Roster:
    """The clouds of one open drive."""

    def __init__(
        self,
        config: DriveConfig,
        paths: DrivePaths,
        metadata: Metadata,
        multifs: MultiFS,
        pool: Pool,
        writer: PackWriter,
        *,
        keys: DriveKeys,
        load_slots: LoadSlots,
    ) -> None:
        self.config = config
        self._paths = paths
        self._metadata = metadata
        self._multifs = multifs
        self._pool = pool
        self._writer = writer
        self._keys = keys
        self.slots: Final = SlotCopies(metadata, multifs, load_slots)
        self.lock: Final = trio.Lock()
        self._apart: dict[CloudName, CloudRow] = {}

    async def load(self, *, writing: bool = True) -> None:
        """Have the MultiFS know the clouds on the list, and no others.  Those only in the TOML file join by `sign_new`.

        What other machines did to the list comes into `config` and the TOML file, and how this machine opens its clouds
        into the metadata; so it is to be called when these are the newest.  `writing`: else `config` alone is changed.
        Checkpoint.  Raises: MetadataError.
        """
        async with self.lock:
            rows = await self._metadata.clouds()
            stored = await load_access(self._metadata, self._keys)
            await self._take_over_list(rows, stored, writing=writing)
            known = {cloud.name: cloud for cloud in self.config.clouds}
            self._apart = {row.name: row for row in rows if row.use is CloudUse.DRAINED}
            for row in rows:
                config = known.get(row.name) or cloud_of(row, stored.get(row.name, CloudAccess()))
                if row_of(config) != evolve(row, url=row_of(config).url, use=CloudUse.NORMAL):
                    log.warning(
                        "cloud %s: %s and the drive's own list differ, the list counts; change it with "
                        "`cuckoo cloud set`",
                        row.name,
                        self._paths.config_file,
                    )
                if row.use is CloudUse.DRAINED:
                    continue  # nothing is there, so that it is not asked for anything
                entry = await cloud_entry(self.config.name, row, config)
                # What opens another place is nothing that others should have for this one.
                if writing and row.name in known and config.cloud_id == row.cloud_id:
                    await self._share(row, access_of(config, dict(entry.settings.secrets)))
                self._multifs.set_cloud(row.name, entry)
            for name in set(self._multifs.names) - ({row.name for row in rows} - self._apart.keys()):
                self._multifs.drop_cloud(name)

    async def _share(self, row: CloudRow, access: CloudAccess | None) -> None:
        """Have the metadata know how a cloud is opened, if all of that is known here."""
        if (clean := without_credentials(row)) != row:
            await self._metadata.put_cloud(clean)
        if access is not None:
            await refresh_access(self._metadata, row.name, access, self._keys, encrypted=self.config.encrypted)

    async def _take_over_list(
        self, rows: Sequence[CloudRow], access: Mapping[str, CloudAccess], *, writing: bool
    ) -> None:
        """Let `config` and the TOML file have the clouds that other machines made of the drive's list."""
        noted = [cloud.name for cloud in self.config.clouds if await self.slots.was_listed(cloud.name)]
        merged, gone = merge_clouds(self.config, rows, access, noted)
        if merged == self.config:
            return
        try:
            if writing:
                await self._write(merged)
        except (ConfigurationError, OSError) as error:
            # The drive works all the same, and the next mount tries again.
            log.warning("the changed list of clouds is not in the configuration file: %s", error)
            gone = []
        self.config = merged
        if writing and gone:
            for name in gone:
                await self.slots.forget(name)
            # Else a cloud of that name that is added later could go without key slots.
            await self._metadata.make_durable()

    async def sign_new(self) -> None:
        """Take in the clouds that only the TOML file has, and put key slots where they are missing.

        What does not answer is tried again at the next call.  Checkpoint, raises nothing of the clouds'.
        """
        async with self.lock:
            listed = {cloud.name for cloud in await self._metadata.clouds()}
            new = [cloud for cloud in self.config.clouds if cloud.name not in listed]
            entries = await gather([partial(self._sign_quietly, cloud) for cloud in new])
            # One after the other, so that the list has the order of the file.
            for cloud, entry in zip(new, entries, strict=True):
                if isinstance(entry, CloudEntry):
                    await self._enter(cloud, entry)
            await gather([partial(self.slots.put_quietly, name) for name in self._multifs.names])

    async def _sign_quietly(self, cloud: CloudConfig) -> CloudEntry | None:
        try:
            return await self._sign(cloud, row_of(cloud))
        except CuckooError as error:
            log.warning("%s; cloud %s is left out until that is mended", error, cloud.name)
            return None

    async def _sign(self, cloud: CloudConfig, row: CloudRow) -> CloudEntry:
        """Put drive.json there; return the cloud's entry.  Raises: CloudError."""
        entry = await cloud_entry(self.config.name, row, cloud)
        if entry.trouble:
            raise CloudRefused(entry.trouble, cloud=cloud.name)
        await self._pool.run(
            jobs.write_identity, entry.settings, self.config.drive_id, row.cloud_id, deadline_s=IDENTITY_DEADLINE_S
        )
        return entry

    async def put_slots(self) -> list[str]:
        """After the slots changed: bring them to every cloud; return what failed, to be tried again each minute."""
        async with self.lock:
            answers = await gather([partial(self.slots.put, name) for name in self._multifs.names])
        return [str(answer) for answer in answers if isinstance(answer, CuckooError)]

    async def note_redundancy(self, redundancy: str) -> None:
        """Have `config` and the TOML file say the drive's redundancy.  Raises: ConfigurationError, OSError."""
        await trio.to_thread.run_sync(store_redundancy, redundancy, self._paths)
        self.config = evolve(self.config, redundancy=redundancy)

    def listing(self) -> list[dict[str, object]]:
        """Return what `cuckoo cloud list` shows, without secrets."""
        found: list[dict[str, object]] = []
        for figures in (*self._multifs.statistics(), *self.apart()):
            row = self._apart.get(figures.name) or self._multifs.entry(figures.name)
            found.append(
                asdict(figures) | {"reserve_bytes": row.reserve_bytes, "group": row.group, "read_only": row.read_only}
            )
        listed = {figures["name"] for figures in found}
        waiting = [cloud for cloud in self.config.clouds if cloud.name not in listed]
        return found + [{"name": cloud.name, "url": shown_url(cloud), "state": "not signed yet"} for cloud in waiting]

    def apart(self) -> list[CloudStatistics]:
        """Return the clouds that are drained, or just being cleared, as the MultiFS returns those that it knows."""
        urls = {cloud.name: shown_url(cloud) for cloud in self.config.clouds}
        return [
            CloudStatistics(
                name=row.name,
                url=urls.get(row.name, row.url),
                state=row.use.value,
                use=row.use.value,
                capacity_bytes=row.capacity_bytes,
            )
            for row in self._apart.values()
        ]

    async def add(self, cloud: CloudConfig, secrets: Mapping[str, str], *, use: CloudUse = CloudUse.NORMAL) -> None:
        """Make a place one of the drive's clouds, and use it from now on.  Checkpoint.

        `secrets`: the values of what `cloud.secrets` refers to.  A place that was this drive's before and was removed
        keeps its old identity.  Raises: UsageError, CloudError, OSError; nothing has changed then.
        """
        async with self.lock:
            check_new(cloud, self.config, self._multifs.names)
            settings = settings_of(cloud, secrets)
            found = await self._pool.run(
                jobs.find_identity, settings, self.config.drive_id, deadline_s=IDENTITY_DEADLINE_S
            )
            if found is not None:
                check_not_listed(cloud, found, self._ids())
                cloud = evolve(cloud, cloud_id=found)
            await self._pool.run(
                jobs.write_identity, settings, self.config.drive_id, cloud.cloud_id, deadline_s=IDENTITY_DEADLINE_S
            )
            await self._write(evolve(self.config, clouds=(*self.config.clouds, cloud)))
            await self._enter(cloud, entry_of(evolve(row_of(cloud), use=use), settings))
            await self._multifs.refresh_space([CloudName(cloud.name)])
            await self.slots.put_quietly(CloudName(cloud.name))

    async def change(self, cloud: CloudConfig, secrets: Mapping[str, str]) -> None:
        """Use a cloud of that name and id in another way from now on.  Checkpoint.

        Raises: UsageError, CloudError (with the new URL or secrets it is not that cloud), OSError; nothing has changed.
        """
        async with self.lock:
            old, key = self._named(cloud.name), CloudName(cloud.name)
            if key in self._apart:
                raise UsageError(
                    f"cloud {cloud.name!r} is drained; use it again first: cuckoo cloud set {cloud.name} --new"
                )
            use = self._multifs.entry(key).use if key in self._multifs.names else CloudUse.NORMAL
            settings = settings_of(cloud, secrets)
            if (cloud.url, cloud.options, cloud.secrets) != (old.url, old.options, old.secrets):
                await self._pool.run(
                    jobs.check_identity, settings, self.config.drive_id, old.cloud_id, deadline_s=IDENTITY_DEADLINE_S
                )
            others = tuple(cloud if each.name == cloud.name else each for each in self.config.clouds)
            if cloud not in others:  # on the list, but not in the TOML file so far
                others = (*others, cloud)
            await self._write(evolve(self.config, clouds=others))
            await self._enter(cloud, entry_of(evolve(row_of(cloud), use=use), settings))

    async def use_as(self, name: str, use: CloudUse) -> None:
        """Have the drive do something else with a cloud from now on; a drained one is signed anew first.

        Checkpoint.  Raises: UsageError, CloudError, OSError; nothing has changed then.
        """
        async with self.lock:
            cloud, key, row = self._named(name), CloudName(name), await self.row(name)
            if row.use is not CloudUse.DRAINED and not await self.slots.is_swept(name):
                with trio.CancelScope(shield=True):  # on the list and in use as the same
                    await self._put_row(evolve(row, use=use))
                    self._multifs.set_cloud(key, evolve(self._multifs.entry(key), use=use))
                return
            entry = await self._sign(cloud, evolve(row, use=use))
            with trio.CancelScope(shield=True):
                # The slots that were noted as put there are gone.
                await self.slots.forget(name)
                await self._put_row(evolve(row, use=use))
                self._apart.pop(key, None)
                self._multifs.set_cloud(key, entry)
            await self._multifs.probe([key])
            await self._multifs.refresh_space([key])
            await self.slots.put_quietly(key)

    async def row(self, name: str) -> CloudRow:
        """Return a cloud as the drive's list has it.  Raises: UsageError."""
        self._named(name)
        row = next((row for row in await self._metadata.clouds() if row.name == name), None)
        if row is None:
            raise UsageError(f"cloud {name!r} is not signed yet; `cuckoo cloud list` shows when it is")
        return row

    async def _put_row(self, row: CloudRow) -> None:
        await self._metadata.put_cloud(row)
        await self._metadata.make_durable()

    def set_apart_locked(self, row: CloudRow) -> CloudEntry:
        """Have nobody ask this cloud any more; return how it was used.  `lock` is held."""
        entry = self._multifs.entry(row.name)
        self._apart[row.name] = row
        self._multifs.drop_cloud(row.name)
        return entry

    def use_again_locked(self, row: CloudRow, entry: CloudEntry) -> None:
        """Undo `set_apart_locked`."""
        del self._apart[row.name]
        self._multifs.set_cloud(row.name, entry)

    async def note_drained_locked(self, row: CloudRow) -> None:
        """Have a cloud that was set apart, and on which nothing is left, count as drained."""
        self._apart[row.name] = evolve(row, use=CloudUse.DRAINED)
        await self._put_row(self._apart[row.name])

    async def plan_removal(self, name: str) -> dict[str, object]:
        """See `removal_plan`.  Raises: UsageError."""
        self._named(name)
        return await removal_plan(self._metadata, CloudName(name))

    async def remove(self, name: str, *, lost: bool) -> dict[str, object]:
        """Take a cloud off the list.  `lost`: also if some packs lie nowhere else; they cannot be read any more.

        Waits for what is on its way there.  Returns figures, JSON-able.  Raises: UsageError when it would lose data.
        """
        async with self.lock:
            cloud, key = self._named(name), CloudName(name)
            is_drained = key in self._apart
            is_used = key in self._multifs.names
            if is_used:
                before = self._multifs.entry(key)
                self._multifs.set_cloud(key, evolve(before, read_only=True))
                try:
                    await self._writer.wait_until_quiet()
                    packs, size_bytes = await self._metadata.only_on(key)
                    if packs and not lost:
                        raise UsageError(only_there(name, packs, size_bytes))
                    await self._write_without(cloud)
                except BaseException:
                    self._multifs.set_cloud(key, before)
                    raise
            else:
                packs, size_bytes = 0, 0
                await self._write_without(cloud)
            if is_used or is_drained:
                # All of it: a cancellation in between would leave a cloud that is on the list and never used.
                with trio.CancelScope(shield=True):
                    await self._metadata.remove_cloud(key)
                    await forget_access(self._metadata, name)
                    await self.slots.forget(name)
                    await self._metadata.make_durable()
                    self._multifs.drop_cloud(key)
                    self._apart.pop(key, None)
            degraded = await self._metadata.degraded_packs()
            return {"lost_packs": packs, "lost_bytes": size_bytes, "degraded": degraded, "drained": is_drained}

    async def test(self, name: str) -> Trial:
        """See `try_listed`.  Raises: UsageError, CloudError."""
        key = CloudName(name)
        self._named(name)
        if key not in self._multifs.names:
            await self.sign_new()
        return await try_listed(self._metadata, self._multifs, self._writer, key, self.config.drive_id)

    def _ids(self) -> dict[bytes, str]:
        """Return the names of all clouds by their ids."""
        entries = {self._multifs.entry(name).cloud_id: str(name) for name in self._multifs.names}
        return {cloud.cloud_id: cloud.name for cloud in self.config.clouds} | entries

    def _named(self, name: str) -> CloudConfig:
        for cloud in self.config.clouds:
            if cloud.name == name:
                return cloud
        row = CloudName(name)
        if row in self._multifs.names:
            entry = self._multifs.entry(row)
            return CloudConfig(name=name, url=entry.settings.url, cloud_id=entry.cloud_id)
        if row in self._apart:
            return cloud_of(self._apart[row], CloudAccess())
        names = ", ".join(cloud.name for cloud in self.config.clouds) or "none yet"
        raise UsageError(f"there is no cloud {name!r}; the drive's clouds: {names}")

    async def _enter(self, cloud: CloudConfig, entry: CloudEntry) -> None:
        """Put a signed cloud on the list, with how it is opened, and use it."""
        access = access_of(cloud, dict(entry.settings.secrets))
        with trio.CancelScope(shield=True):  # never on the list without being used
            if access is not None:
                await store_access(self._metadata, cloud.name, access, self._keys, encrypted=self.config.encrypted)
            await self._metadata.put_cloud(evolve(row_of(cloud), use=entry.use))
            await self._metadata.make_durable()
            self._multifs.set_cloud(CloudName(cloud.name), entry)
        if not self._multifs.is_up(CloudName(cloud.name)):
            await self._multifs.probe([CloudName(cloud.name)])

    async def _write_without(self, cloud: CloudConfig) -> None:
        left = tuple(each for each in self.config.clouds if each.name != cloud.name)
        await self._write(evolve(self.config, clouds=left))

    async def _write(self, config: DriveConfig) -> None:
        await trio.to_thread.run_sync(store_clouds, config.clouds, self._paths)
        self.config = config

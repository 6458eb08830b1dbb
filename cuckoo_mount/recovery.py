"""A drive on a machine that has nothing of it: found through one cloud, made again from all of them (design §3.6).

Used by cli/recover.py.  For one trio loop; the drive's lock is held by the caller.  Order: everything is found, fetched
and verified before the first file that makes a drive of it; the configuration file comes last.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Final

import trio
from attrs import evolve, field, frozen

from cuckoo_mount.clock import Moment
from cuckoo_mount.clouds import jobs
from cuckoo_mount.clouds.base import CloudSettings
from cuckoo_mount.clouds.registry import parse_place
from cuckoo_mount.cloudsettings import ACCESS_PREFIX, CloudAccess, cloud_of, decode_access, row_of
from cuckoo_mount.config import CloudConfig, DriveConfig, DrivePaths, write_config, write_drive_key
from cuckoo_mount.config.making import RECOVERING
from cuckoo_mount.epochs.chain import Chain, EpochObject, Unusable
from cuckoo_mount.epochs.claims import Claim, highest_claim, read_notes, watch_claim, write_notes
from cuckoo_mount.epochs.ledger import LOCAL_EPOCH, from_chain
from cuckoo_mount.epochs.looking import EpochSearch, Look, look
from cuckoo_mount.epochs.sealing import EpochKeys
from cuckoo_mount.errors import (
    CloudCorrupt,
    ConfigurationError,
    DataUnavailable,
    FormatError,
    UsageError,
)
from cuckoo_mount.format import drive_prefix, keys_prefix, parse_key_slot_name
from cuckoo_mount.layers.keys import DriveKeys
from cuckoo_mount.layers.keyslots import KeySlot, decode_slot
from cuckoo_mount.metadata.catalogue import USE_PREFIX, use_of
from cuckoo_mount.metadata.records import JournalRecord
from cuckoo_mount.metadata.replay import build_store
from cuckoo_mount.multi.health import Health
from cuckoo_mount.multi.multifs import MultiFS
from cuckoo_mount.multi.policies import Policies
from cuckoo_mount.multi.records import CloudEntry
from cuckoo_mount.multi.requests import Pool
from cuckoo_mount.packs.repacking import POLICIES_SETTING
from cuckoo_mount.preparing import EPOCHS_FOLDER, cloud_entry
from cuckoo_mount.types import PACK_SIZE_BYTES, CloudName, CloudRow, CloudUse

log = logging.getLogger(__name__)
DOOR_DEADLINE_S: Final = 600.0
"""Finding the drives of a place lists all of it."""
ROUNDS: Final = 10


@frozen(slots=True)
class Door:
    """The cloud through which a drive was found.  `settings.name`: its URL, without secrets, as errors call it.

    `slots`: those of its key slots that are whole.
    """

    settings: CloudSettings
    drive_id: bytes
    cloud_id: bytes
    slots: tuple[KeySlot, ...]


@frozen(slots=True, kw_only=True)
class Wishes:
    """What the user asked for.

    `urls`: where clouds are now, by name.  `secrets`: values, by cloud and key, in place of those that the drive knows.
    """

    name: str
    accept_stale: bool = False
    at_least_epoch: int = 0
    ask: bool = False
    urls: Mapping[str, str] = field(factory=dict)
    secrets: Mapping[str, Mapping[str, str]] = field(factory=dict, repr=False)


@frozen(slots=True, kw_only=True)
class Found:
    """The drive as the clouds show it.  `silent`: the clouds that do not answer, and why.  `claim`: who writes it.

    `uses`: what the drive does with each cloud, by name.
    """

    config: DriveConfig
    chain: Chain
    found: Look
    tip: EpochObject
    silent: Mapping[CloudName, str]
    wanted: int
    search: EpochSearch
    claim: Claim | None = None
    uses: Mapping[str, CloudUse] = field(factory=dict)

    @property
    def asked(self) -> tuple[CloudConfig, ...]:
        """The clouds on which something is: those that are not drained."""
        return tuple(cloud for cloud in self.config.clouds if self.uses[cloud.name] is not CloudUse.DRAINED)

    @property
    def newer(self) -> tuple[Unusable, ...]:
        """What is newer than the tip and cannot be loaded."""
        return self.chain.newer


async def open_door(pool: Pool, settings: CloudSettings, wanted_id: str = "") -> Door:
    """Find the drive at a place.  `wanted_id`: the beginning of its id, needed where there are several.  Checkpoint.

    Raises: UsageError (no drive, or several, there), CloudError, CloudCorrupt (its key slots are damaged).
    """
    ids = await pool.run(jobs.find_drives, settings, deadline_s=DOOR_DEADLINE_S)
    fitting = [drive_id for drive_id in ids if drive_id.hex().startswith(wanted_id.lower())]
    if not fitting:
        what = f"no drive whose id begins with {wanted_id}" if ids else "no drive of cuckoo-mount"
        raise UsageError(
            f"there is {what} at {settings.name}; check the URL, its folder or prefix, and the credentials"
        )
    if len(fitting) > 1:
        known = ", ".join(drive_id.hex()[:8] for drive_id in fitting)
        raise UsageError(f"there are {len(fitting)} drives at {settings.name}; say which with --id, one of: {known}")
    drive_id = fitting[0]
    cloud_id = await pool.run(jobs.find_identity, settings, drive_id, deadline_s=DOOR_DEADLINE_S)
    if cloud_id is None:
        raise CloudCorrupt(
            f"{drive_prefix(drive_id)} has no drive.json; try another cloud of the drive", cloud=settings.name
        )
    slots: list[KeySlot] = []
    listed = await pool.run(jobs.list_objects, settings, keys_prefix(drive_id), deadline_s=DOOR_DEADLINE_S)
    for item in listed:
        try:
            number, kind = parse_key_slot_name(drive_id, item.name)
            data = await pool.run(jobs.get, settings, item.name, deadline_s=DOOR_DEADLINE_S)
            slots.append(decode_slot(data, drive_id=drive_id, number=number, kind=kind))
        except (CloudCorrupt, FormatError) as error:
            log.warning("%s is left out: %s", item.name, error)
    if not slots:
        raise CloudCorrupt(f"no key slot of the drive at {settings.name} is whole; try another cloud of the drive")
    return Door(settings, drive_id, cloud_id, tuple(slots))


class Recovery:
    """Finds the newest state of a drive on all of its clouds, and makes it this machine's."""

    def __init__(self, pool: Pool, door: Door, drive_key: bytes, paths: DrivePaths, wishes: Wishes) -> None:
        self._pool = pool
        self._door = door
        self._drive_key = drive_key
        self._keys = DriveKeys(drive_key)
        self._paths = paths
        self._wishes = wishes
        self._folder = paths.state / EPOCHS_FOLDER

    async def find(self) -> Found:
        """Ask the door for the list of clouds, and all of these for the newest epoch.  Checkpoint.

        Raises: UsageError, ConfigurationError (nothing can be loaded, or something stale only; it says), CloudError,
        DataUnavailable, OSError.
        """
        door = CloudEntry(settings=self._door.settings, cloud_id=self._door.cloud_id)
        multifs = MultiFS({CloudName(self._door.settings.name): door}, self._pool, Health(), self._door.drive_id)
        await multifs.probe()
        found = await self._load(multifs, None)
        for _ in range(ROUNDS):
            entries = {CloudName(cloud.name): await self._entry(found.config.name, cloud) for cloud in found.asked}
            multifs = MultiFS(entries, self._pool, Health(), self._door.drive_id)
            await multifs.probe()
            newer = await self._load(multifs, found)
            if newer.config == found.config:
                self._check(newer)
                return newer
            found = newer  # the list of clouds is another one there
        raise DataUnavailable("the clouds change while they are asked; is the drive mounted elsewhere?")

    async def _entry(self, name: str, cloud: CloudConfig) -> CloudEntry:
        if cloud.cloud_id == self._door.cloud_id:
            return CloudEntry(settings=evolve(self._door.settings, name=cloud.name), cloud_id=cloud.cloud_id)
        return await cloud_entry(name, row_of(cloud), cloud)

    async def _load(self, multifs: MultiFS, before: Found | None) -> Found:
        """Fetch the newest chain that these clouds show, and read the drive's settings from it."""
        search = EpochSearch(multifs, EpochKeys(self._keys), self._door.drive_id, self._folder)
        found = await look(multifs, self._door.drive_id)
        for _ in range(ROUNDS):
            chain = await search.choose(found)
            if chain.tip is None:
                why = "; ".join(f"{item.name}: {item.reason}" for item in chain.newer) or "there is none"
                raise ConfigurationError(
                    f"no epoch of the drive can be loaded from {self._door.settings.name} ({why}); "
                    "try another of its clouds"
                )
            if await search.fetch(found, chain, chain.parts):
                settings, rows = await trio.to_thread.run_sync(self._read_settings, search, chain)
                config = self._config(settings, rows)
                silent = {cloud.name: cloud.last_error or cloud.state for cloud in multifs.statistics()}
                for name in found.listings:
                    silent.pop(name, None)
                policies = Policies(config.redundancy, settings.get(POLICIES_SETTING, "").split())
                uses = {cloud.name: use_of(settings.get(f"{USE_PREFIX}{cloud.name}")) for cloud in config.clouds}
                normal = [cloud for cloud in config.clouds if uses[cloud.name] is CloudUse.NORMAL]
                writable = sum(not cloud.read_only for cloud in normal)
                wanted = max(1, min(writable, max(policies.losses + 1, 2)))
                claim = await highest_claim(multifs, found, self._keys, self._door.drive_id)
                return Found(
                    config=config,
                    chain=chain,
                    found=found,
                    tip=chain.tip,
                    silent=silent,
                    wanted=wanted,
                    search=search,
                    claim=claim,
                    uses=uses,
                )
        raise DataUnavailable("the epochs on the clouds are damaged again and again; try another cloud as URL")

    def _read_settings(self, search: EpochSearch, chain: Chain) -> tuple[dict[str, str], list[tuple[int, CloudRow]]]:
        settings: dict[str, str] = {}
        rows: dict[str, tuple[int, CloudRow]] = {}
        for part in chain.parts:
            with search.open(part) as opened:
                for record in opened.records():
                    if record.table == "setting":
                        _note(settings, str(record.key[0]), record)
                    elif record.table == "cloud":
                        rows.pop(str(record.key[0]), None)
                        if record.values is not None:
                            rows[str(record.key[0])] = _row(record)
                    else:
                        break  # what follows are names and content
        return settings, sorted(rows.values(), key=lambda item: (item[0], item[1].name))

    def _config(self, settings: Mapping[str, str], rows: Sequence[tuple[int, CloudRow]]) -> DriveConfig:
        if settings.get("drive_id") != self._door.drive_id.hex():
            raise ConfigurationError(f"the epochs are those of drive {settings.get('drive_id')}; nothing was changed")
        names = {row.name for _, row in rows}
        if unknown := sorted({*self._wishes.urls, *self._wishes.secrets} - names):
            raise UsageError(f"the drive has no cloud {unknown[0]!r}; its clouds: {', '.join(sorted(names))}")
        return DriveConfig(
            name=self._wishes.name,
            drive_id=self._door.drive_id,
            redundancy=settings.get("redundancy", "none"),
            pack_size_bytes=int(settings.get("pack_size", PACK_SIZE_BYTES)),
            encrypted=settings.get("encryption") != "none",
            ask=self._wishes.ask,
            clouds=tuple(self._cloud(row, settings) for _, row in rows),
        )

    def _cloud(self, row: CloudRow, settings: Mapping[str, str]) -> CloudConfig:
        access = CloudAccess()
        if (text := settings.get(f"{ACCESS_PREFIX}{row.name}")) is not None:
            try:
                access = decode_access(text, row.name, self._keys)
            except (CloudCorrupt, FormatError) as error:
                log.warning("%s", error)
        url = row.url
        if row.cloud_id == self._door.cloud_id:
            # How the user opened it works here, whatever the drive remembers.
            url = self._door.settings.url
            access = CloudAccess(self._door.settings.options, self._door.settings.secrets)
        url = self._wishes.urls.get(row.name, url)
        parse_place(url)
        given = {**dict(access.secrets), **self._wishes.secrets.get(row.name, {})}
        return cloud_of(evolve(row, url=url), evolve(access, secrets=tuple(given.items())))

    def _check(self, found: Found) -> None:
        """Raises: ConfigurationError when that may not be the newest state, and nobody said that this is all right."""
        epoch, names = found.tip.name.epoch, [cloud.name for cloud in found.asked]
        if epoch < self._wishes.at_least_epoch:
            raise ConfigurationError(
                f"the newest epoch is {epoch}, older than {self._wishes.at_least_epoch}; nothing was changed"
            )
        if self._wishes.accept_stale:
            return
        if found.newer:
            newest = found.newer[-1]
            raise ConfigurationError(
                f"epoch {newest.name.epoch} is newer and cannot be loaded ({newest.reason}); epoch {epoch} can.  "
                "Try again when all clouds answer, or take the older one with --accept-stale"
            )
        if len(found.silent) >= found.wanted:
            whys = {name: why.removeprefix(f"cloud {name}: ") for name, why in found.silent.items()}
            silent = "; ".join(f"{name}: {why}" for name, why in sorted(whys.items()))
            raise ConfigurationError(
                f"only {len(names) - len(found.silent)} of {len(names)} clouds answer, so that something newer than "
                f"epoch {epoch} may lie on the others ({silent}).  Name where one has moved with --cloud NAME=URL, or "
                "go on with --accept-stale"
            )

    async def keep(self, found: Found) -> None:
        """Make the drive this machine's: metadata, key file, configuration file.  Checkpoint.

        Raises: MetadataError, ConfigurationError, OSError; then nothing of it is left.
        """
        await trio.to_thread.run_sync(partial(self._keep, found))
        if found.claim is not None and not found.claim.released:
            # From now on it can be seen whether its holder still lives.
            notes = watch_claim(read_notes(self._paths.state), found.claim, found.found.epoch_names, Moment.now())
            await trio.to_thread.run_sync(write_notes, self._paths.state, notes)

    def _keep(self, found: Found) -> None:
        epoch = found.tip.name.epoch
        sizes = {name: found.found.size_bytes(name) for name in found.found.epoch_names}
        ledger = from_chain(found.chain.history, sizes, epoch if len(found.tip.clouds) >= found.wanted else 0)
        local = {key: value for key, value in ledger.as_local().items() if value is not None}
        begin_recovery(self._paths)
        with ExitStack() as stack:
            parts = [stack.enter_context(found.search.open(part)).records() for part in found.chain.parts]
            build_store(self._paths.metadata, parts, epoch=epoch, local=local | {LOCAL_EPOCH: str(epoch + 1)})
        if not found.config.ask and not self._paths.key_file.exists():
            write_drive_key(self._paths.key_file, self._drive_key)
        write_config(found.config, self._paths)
        (self._paths.state / RECOVERING).unlink()


def begin_recovery(paths: DrivePaths) -> None:
    """Mark the state folder; what an earlier recovery left that did not end goes.  Blocks.  Raises: OSError."""
    paths.state.mkdir(parents=True, exist_ok=True, mode=0o700)
    clear_unfinished(paths)
    (paths.state / RECOVERING).touch(mode=0o600)


def clear_unfinished(paths: DrivePaths) -> None:
    """Delete what a recovery made that did not end; nothing else.  Blocks.  Raises: OSError."""
    if (paths.state / RECOVERING).exists() and not paths.config_file.exists():
        for file in paths.state.glob(f"{paths.metadata.name}*"):
            file.unlink()
        (paths.state / RECOVERING).unlink()


def give_up(paths: DrivePaths) -> None:
    """Take back what `find` fetched and an interrupted `keep` made.  Blocks.  Raises: OSError."""
    if paths.config_file.exists():
        return
    clear_unfinished(paths)
    shutil.rmtree(paths.state / EPOCHS_FOLDER, ignore_errors=True)


def _note(settings: dict[str, str], key: str, record: JournalRecord) -> None:
    if record.values is None:
        settings.pop(key, None)
    else:
        settings[key] = str(record.values[0])


def _row(record: JournalRecord) -> tuple[int, CloudRow]:
    assert record.values is not None
    cloud_id, url, capacity, reserve, group, read_only, position = record.values
    if not isinstance(cloud_id, bytes) or not isinstance(reserve, int) or not isinstance(position, int):
        raise FormatError("the epoch has a damaged list of clouds")
    row = CloudRow(
        name=CloudName(str(record.key[0])),
        cloud_id=cloud_id,
        url=str(url),
        capacity_bytes=capacity if isinstance(capacity, int) else None,
        reserve_bytes=reserve,
        group=str(group),
        read_only=read_only == 1,
    )
    return position, row

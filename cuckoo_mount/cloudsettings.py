"""How each cloud of a drive is opened, as settings of its metadata: `access.<cloud>` → options and secrets, as values.

Used by roster.py, and by whatever opens a drive from one of its clouds.  So one cloud and the passphrase lead to all
others (design §3.6).  On an encrypted drive the settings are sealed under the drive key; on one that is not, everybody
can read them, and they have no secrets.  Loop only but for the pure functions; no function waits for a cloud.

The clouds' rows are journaled, too, so a URL in them has no credentials: `row_of` takes them out, `access_of` keeps
them among the secrets, where every driver finds them just as well.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import json
import logging
import os
from collections.abc import Collection, Mapping, Sequence
from typing import Final, cast

from attrs import evolve, field, frozen
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cuckoo_mount.clouds.base import CloudSettings
from cuckoo_mount.clouds.registry import DRIVERS
from cuckoo_mount.clouds.translate import hide_secrets
from cuckoo_mount.config import CloudConfig, DriveConfig
from cuckoo_mount.config.secrets import part_url, prompted
from cuckoo_mount.errors import CloudCorrupt, FormatError, UsageError
from cuckoo_mount.layers.encryption import NONCE_BYTES, TAG_BYTES
from cuckoo_mount.layers.keys import DriveKeys
from cuckoo_mount.metadata.base import Metadata
from cuckoo_mount.types import CloudName, CloudRow

log = logging.getLogger(__name__)
ACCESS_PREFIX: Final = "access."
NOTED_PREFIX: Final = "access_noted."
"""Local settings `access_noted.<cloud>`: what this machine stored or found last, as a keyed hash."""
ACCESS_CONTEXT: Final = "cuckoo-mount 2026-11 cloud access"
NOTED_CONTEXT: Final = "cuckoo-mount 2026-11 cloud access noted"
SALT_BYTES: Final = 16
_SEALED: Final = "1:"
# The key depends on a salt that was never used before, so the nonce need not vary.
_NONCE: Final = bytes(NONCE_BYTES)

Pairs = tuple[tuple[str, str], ...]


def _as_pairs(pairs: Sequence[tuple[str, str]]) -> Pairs:
    return tuple(sorted(pairs))


@frozen(slots=True)
class CloudAccess:
    """How one cloud is opened, besides its URL: (key, value) pairs, sorted by key, each key once."""

    options: Pairs = field(default=(), converter=_as_pairs)
    secrets: Pairs = field(default=(), converter=_as_pairs, repr=False)


def access_of(cloud: CloudConfig, secrets: Mapping[str, str]) -> CloudAccess | None:
    """Return how `cloud` is opened, None if `secrets` has not the value of every secret it refers to."""
    if any(key not in secrets for key, _ in cloud.secrets):
        return None
    return CloudAccess(cloud.options, tuple({**dict(_parted(cloud.url)[1]), **secrets}.items()))


def row_of(cloud: CloudConfig) -> CloudRow:
    """Return the cloud's row in the metadata."""
    return CloudRow(
        name=CloudName(cloud.name),
        cloud_id=cloud.cloud_id,
        url=_parted(cloud.url)[0],
        capacity_bytes=cloud.capacity_bytes,
        reserve_bytes=cloud.reserve_bytes,
        group=cloud.group,
        read_only=cloud.read_only,
    )


def without_credentials(row: CloudRow) -> CloudRow:
    """Return a row as `row_of` makes it; earlier versions left credentials in its URL."""
    return evolve(row, url=_parted(row.url)[0])


def settings_of(cloud: CloudConfig, secrets: Mapping[str, str]) -> CloudSettings:
    """Return what opens the cloud on this machine; `secrets`: the values, as far as they are known."""
    return CloudSettings(name=cloud.name, url=cloud.url, options=cloud.options, secrets=tuple(sorted(secrets.items())))


def shown_url(cloud: CloudConfig) -> str:
    """Return the cloud's URL as it may be shown."""
    return hide_secrets(cloud.url, settings_of(cloud, {}))


def cloud_of(row: CloudRow, access: CloudAccess) -> CloudConfig:
    """Return the cloud for this machine's TOML file, with its secrets as if they had been typed in here.

    Raises: UsageError, ValueError for a row that no cloud can have.
    """
    return CloudConfig(
        name=row.name,
        url=row.url,
        cloud_id=row.cloud_id,
        capacity_bytes=row.capacity_bytes,
        reserve_bytes=row.reserve_bytes,
        group=row.group,
        read_only=row.read_only,
        options=access.options,
        secrets=tuple((key, prompted(value)) for key, value in access.secrets),
    )


def encode_access(access: CloudAccess, name: str, keys: DriveKeys, *, encrypted: bool) -> str:
    """Return the setting of cloud `name`; on an encrypted drive another text at every call, else without secrets."""
    if not encrypted:
        return _as_json({"options": dict(access.options)})
    plain = _as_json({"options": dict(access.options), "secrets": dict(access.secrets)})
    salt = os.urandom(SALT_BYTES)
    body = AESGCM(keys.derive(ACCESS_CONTEXT, salt)).encrypt(_NONCE, plain.encode(), name.encode())
    return _SEALED + base64.b64encode(salt + body).decode()


def decode_access(text: str, name: str, keys: DriveKeys) -> CloudAccess:
    """Return what `encode_access` was given, without the secrets if the drive is not encrypted.

    Raises: CloudCorrupt (not made with this drive's key for cloud `name`, or changed), FormatError (made by a newer
    version).  No message shows anything of the content.
    """
    plain = text if _is_plain(text) else _unseal(text, name, keys)
    try:
        document = json.loads(plain)
        if not isinstance(document, dict) or not document.keys() <= {"options", "secrets"}:
            raise ValueError
        return CloudAccess(*(_pairs_in(document.get(key, {})) for key in ("options", "secrets")))
    except (ValueError, RecursionError):
        raise FormatError(
            f"the stored access of cloud {name} has a content that this program does not know; update it, "
            f"or store it anew with: cuckoo cloud set {name}"
        ) from None


async def store_access(metadata: Metadata, name: str, access: CloudAccess, keys: DriveKeys, *, encrypted: bool) -> None:
    """Store how cloud `name` is opened; it travels with the next epoch.

    Nothing is written if that is what is stored: sealed anew it would be other bytes, and cost an epoch at every mount.
    Raises: MetadataError.
    """
    text = await metadata.get_setting(f"{ACCESS_PREFIX}{name}")
    wanted = access if encrypted else evolve(access, secrets=())
    # A text of the other kind is not as it should be, whatever it says.
    if text is None or _is_plain(text) == encrypted or _readable(text, name, keys) != wanted:
        await metadata.set_setting(f"{ACCESS_PREFIX}{name}", encode_access(access, name, keys, encrypted=encrypted))
    noted = _noted(access, keys)
    if await metadata.get_local(f"{NOTED_PREFIX}{name}") != noted:
        await metadata.set_local(f"{NOTED_PREFIX}{name}", noted)


async def refresh_access(
    metadata: Metadata, name: str, access: CloudAccess, keys: DriveKeys, *, encrypted: bool
) -> None:
    """As `store_access`, for a mount, where nobody asked for a change: what another machine stored since is kept.

    Else a machine with an old password would undo the change of a password at its next mount, and two machines with
    settings of their own would write an epoch each time they take turns.  Raises: MetadataError.
    """
    text = await metadata.get_setting(f"{ACCESS_PREFIX}{name}")
    noted = await metadata.get_local(f"{NOTED_PREFIX}{name}") or ""
    stored = None if text is None else _readable(text, name, keys)
    if stored is None or not hmac.compare_digest(noted, _noted(access, keys)):
        await store_access(metadata, name, access, keys, encrypted=encrypted)
    elif stored != (access if encrypted else evolve(access, secrets=())):
        log.info(
            "cloud %s: another machine opens it with other options or secrets; if it refuses this machine, use: "
            "cuckoo cloud set %s",
            name,
            name,
        )


async def load_access(metadata: Metadata, keys: DriveKeys) -> dict[str, CloudAccess]:
    """Return how each cloud is opened, by name; what cannot be decoded is left out, with a warning.

    Raises: MetadataError.
    """
    found = {}
    for key, text in (await metadata.settings(ACCESS_PREFIX)).items():
        name = key.removeprefix(ACCESS_PREFIX)
        try:
            found[name] = decode_access(text, name, keys)
        except (CloudCorrupt, FormatError) as error:
            log.warning("%s", error)
    return found


async def forget_access(metadata: Metadata, name: str) -> None:
    """Remove what is stored for a cloud that leaves the drive.  Raises: MetadataError."""
    await metadata.delete_setting(f"{ACCESS_PREFIX}{name}")
    await metadata.set_local(f"{NOTED_PREFIX}{name}", "")


def merge_clouds(
    config: DriveConfig, rows: Sequence[CloudRow], access: Mapping[str, CloudAccess], signed: Collection[str]
) -> tuple[DriveConfig, list[str]]:
    """Return the configuration with the clouds that the drive's list (`rows`) makes of it, and the names of those gone.

    Clouds that other machines added come in, with the stored `access`; those that other machines removed, or replaced
    under the same name, go.  A cloud that is only here, and not in `signed` (was put on the list here before), is new
    and stays, and so is what this machine knows better: URL, options and secrets.  Every change is logged.  Pure.
    """
    listed = {row.name: row for row in rows}
    ids = {row.cloud_id: row.name for row in rows}
    kept: list[CloudConfig] = []
    gone: list[str] = []
    for cloud in config.clouds:
        row = listed.get(CloudName(cloud.name))
        why = ""
        if row is not None:
            # Without its access the new place could not be opened; then the old entry says more than none.
            if row.cloud_id != cloud.cloud_id and cloud.name in access:
                why = "was replaced by another place of that name by another machine"
        elif cloud.name in signed:
            why = "was removed from the drive by another machine"
        elif cloud.cloud_id in ids:
            # Signed under this name too, one place would count as two.
            why = f"is called {ids[cloud.cloud_id]} on the drive's list"
        if why:
            log.warning("cloud %s %s; its entry in the configuration file is taken out", cloud.name, why)
            gone.append(cloud.name)
        else:
            kept.append(cloud)
    merged = evolve(config, clouds=tuple(kept))
    for name in [row.name for row in rows if row.name not in {cloud.name for cloud in kept}]:
        if name not in access:
            log.warning("cloud %s is on the drive's list but not in the configuration file, nor is its access", name)
            continue
        try:
            merged = evolve(merged, clouds=(*merged.clouds, cloud_of(listed[name], access[name])))
        except (UsageError, ValueError) as error:
            log.warning("cloud %s cannot be entered in the configuration file: %s", name, error)
        else:
            log.warning("cloud %s was added by another machine; it is in the configuration file now", name)
    return merged, gone


def _parted(url: str) -> tuple[str, Pairs]:
    """Return `url` without credentials, and these; a folder's path has none, whatever it looks like."""
    # Not `parse_place`, which imports PyFilesystem for most schemes.
    scheme = url.partition("://")[0].rpartition("+")[2]
    is_folder = any(driver.folder and scheme in driver.schemes for driver in DRIVERS)
    return (url, ()) if is_folder else part_url(url)


def _as_json(document: Mapping[str, object]) -> str:
    return json.dumps(document, sort_keys=True, separators=(",", ":"))


def _pairs_in(value: object) -> Pairs:
    """Raises: ValueError unless `value` is a table of texts."""
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise ValueError
    return tuple(cast(dict[str, str], value).items())


def _is_plain(text: str) -> bool:
    return text.startswith("{")


def _readable(text: str, name: str, keys: DriveKeys) -> CloudAccess | None:
    """Return what is stored, None if that cannot be read: then it is to be written anew."""
    try:
        return decode_access(text, name, keys)
    except (CloudCorrupt, FormatError) as error:
        log.warning("%s", error)
        return None


def _unseal(text: str, name: str, keys: DriveKeys) -> bytes:
    kind, separator, encoded = text.partition(":")
    if separator and kind.isdecimal() and f"{kind}:" != _SEALED:
        raise FormatError(f"the stored access of cloud {name} has kind {kind:.20}, this program knows 1; update it")
    try:
        if not separator or f"{kind}:" != _SEALED:
            raise ValueError
        sealed = base64.b64decode(encoded, validate=True)
        # Several texts stand for the same bytes; only one of them was written.
        if len(sealed) < SALT_BYTES + TAG_BYTES or base64.b64encode(sealed) != encoded.encode():
            raise ValueError
        salt, body = sealed[:SALT_BYTES], sealed[SALT_BYTES:]
        return AESGCM(keys.derive(ACCESS_CONTEXT, salt)).decrypt(_NONCE, body, name.encode())
    except (binascii.Error, ValueError, InvalidTag):
        raise CloudCorrupt(
            "the stored access was not made with this drive's key for this cloud, or was changed", cloud=name
        ) from None


def _noted(access: CloudAccess, keys: DriveKeys) -> str:
    """Return a keyed hash, which shows nothing to whoever has the local disk but not the drive key."""
    return keys.derive(NOTED_CONTEXT, _as_json({"o": access.options, "s": access.secrets}).encode()).hex()

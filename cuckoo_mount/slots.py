"""The drive's key slots, as settings of its metadata: `keyslot.<number>.<kind>` → the slot's bytes in hexadecimal.

Used by drive.py and commands.  The metadata are the original; the roster copies every slot to every cloud and deletes
the copies of those that are gone.  Loop only, but for `unlock_store`, which runs before any loop.
Invariant: once a slot for the recovery key is durable, there is always one; once there is one for a passphrase, too:
an older slot is removed only after the newer one is durable.  A number never comes back.

A drive that is not encrypted has a slot for a passphrase that everybody knows, `OPEN_PASSPHRASE`: nothing is to be
guarded there, but whoever opens the drive from its clouds needs the drive key for the keyed hashes.
"""

from __future__ import annotations

import hmac
import logging
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import trio
from attrs import define, field, frozen
from blake3 import blake3

from cuckoo_mount.errors import CloudCorrupt, FormatError, MetadataError, UsageError, WrongKey
from cuckoo_mount.format import ID_BYTES, SlotKind, key_slot_name, keys_prefix, parse_key_slot_name
from cuckoo_mount.layers.keyslots import (
    DEFAULT_COST,
    SALT_BYTES,
    Argon2Cost,
    KeySlot,
    Passphrase,
    Secret,
    decode_slot,
    encode_slot,
    make_slot,
    open_slots,
)
from cuckoo_mount.layers.recoverykey import recovery_key_of
from cuckoo_mount.metadata.base import Metadata
from cuckoo_mount.metadata.peek import peek_settings

log = logging.getLogger(__name__)
SLOT_PREFIX: Final = "keyslot."
RECOVERY_KEY_SHOWN: Final = "recovery_key_shown"
"""Local setting: "1" once the recovery key was asked for on this machine."""
OPEN_PASSPHRASE: Final = Passphrase("cuckoo-mount: this drive is not encrypted")
OPEN_COST: Final = Argon2Cost(memory_kib=8, iterations=1, lanes=1)
"""There is nothing to be guessed: the least that Argon2 can do."""
ENCRYPTION: Final = "encryption"
UNENCRYPTED: Final = "none"
"""The drive's setting that says whether it is encrypted, and its value if it is not."""
PROOF_CONTEXT: Final = "cuckoo-mount 2026-11 proof of the drive key"
_ANY: Final = bytes(ID_BYTES)


@frozen(slots=True)
class StoredSlot:
    """One slot as it is kept; `data` is the content of its object."""

    number: int
    kind: SlotKind
    data: bytes


async def slots(metadata: Metadata) -> list[StoredSlot]:
    """Return the drive's slots, the oldest first.  Raises: MetadataError for a setting that is none."""
    return _stored(await metadata.settings(SLOT_PREFIX))


async def objects(metadata: Metadata, drive_id: bytes) -> dict[str, bytes]:
    """Return what belongs below keys/ on every cloud: object name → bytes."""
    return {key_slot_name(drive_id, slot.number, slot.kind): slot.data for slot in await slots(metadata)}


async def ensure_recovery_slot(metadata: Metadata, drive_id: bytes, drive_key: bytes) -> None:
    """Make the slot of the recovery key if there is none, durably; else check that `drive_key` is this drive's.

    To be called at every open; takes no time.  Raises: WrongKey, MetadataError.
    """
    secret = recovery_key_of(drive_key)
    stored = await slots(metadata)
    if not any(slot.kind == "recovery" for slot in stored):
        await _put(metadata, _next_slot(stored, drive_id, drive_key, secret, DEFAULT_COST))
        return
    try:
        known = open_slots(_whole(stored, drive_id), secret)
    except WrongKey:
        known = b""
    if not hmac.compare_digest(known, drive_key):
        raise WrongKey("the drive key is that of another drive; put this drive's key file back, or its state folder")


async def is_open(metadata: Metadata) -> bool:
    """Return whether the drive was made without encryption."""
    return await metadata.get_setting(ENCRYPTION) == UNENCRYPTED


async def ensure_open_slot(metadata: Metadata, drive_id: bytes, drive_key: bytes) -> None:
    """Make the slot that `OPEN_PASSPHRASE` opens, durably, if the drive is not encrypted and has none for a passphrase.

    To be called at every open; takes no time.  Raises: MetadataError.
    """
    if await is_open(metadata):
        stored = await slots(metadata)
        if not any(slot.kind == "passphrase" for slot in stored):
            await _put(metadata, _next_slot(stored, drive_id, drive_key, OPEN_PASSPHRASE, OPEN_COST))


async def set_passphrase(
    metadata: Metadata, drive_id: bytes, drive_key: bytes, passphrase: Passphrase, cost: Argon2Cost = DEFAULT_COST
) -> None:
    """Make `passphrase` the only one that opens the drive; durable on return.  Takes some 0.25 s in a thread.

    Cancelled or killed, the old one opens the drive, or the new one, or both.  One call at a time.
    """
    stored = await slots(metadata)
    slot = await trio.to_thread.run_sync(_next_slot, stored, drive_id, drive_key, passphrase, cost)
    await _put(metadata, slot)
    for old in stored:
        if old.kind == "passphrase":
            await metadata.delete_setting(_key(old.number, old.kind))
    await metadata.make_durable()


async def unlock(metadata: Metadata, drive_id: bytes, secret: Secret) -> bytes:
    """Return the drive key.  Raises: WrongKey; CloudCorrupt or FormatError if the slots are damaged; MetadataError."""
    whole = _whole(await slots(metadata), drive_id)
    return await trio.to_thread.run_sync(open_slots, whole, secret)


def unlock_store(path: Path, drive_id: bytes, secret: Secret) -> bytes:
    """As `unlock`, for the store in file `path`, open in another process or not.  Blocks."""
    return open_slots(_whole(stored_slots(path), drive_id), secret)


def stored_slots(path: Path) -> list[StoredSlot]:
    """As `slots`, for the store in file `path`.  Blocks.  Raises: MetadataError."""
    return _stored(peek_settings(path, SLOT_PREFIX))


async def note_recovery_key_shown(metadata: Metadata) -> None:
    """Remember on this machine that the user has seen the recovery key, durably."""
    await metadata.set_local(RECOVERY_KEY_SHOWN, "1")
    await metadata.make_durable()


async def recovery_key_shown(metadata: Metadata) -> bool:
    """Return whether that was noted."""
    return await metadata.get_local(RECOVERY_KEY_SHOWN) == "1"


def proof_of(drive_key: bytes) -> str:
    """Return what shows a daemon that whoever asks has the drive key, without saying the key."""
    return blake3(drive_key, derive_key_context=PROOF_CONTEXT).hexdigest()


@define(slots=True, eq=False)
class DriveSlots:
    """What an open drive lets commands do with its slots."""

    metadata: Metadata = field(repr=False)
    drive_id: bytes
    drive_key: bytes = field(repr=False)
    _changing: trio.Lock = field(init=False, repr=False, factory=trio.Lock)

    async def ensure_recovery(self) -> None:
        """See `ensure_recovery_slot` and `ensure_open_slot`."""
        await ensure_recovery_slot(self.metadata, self.drive_id, self.drive_key)
        await ensure_open_slot(self.metadata, self.drive_id, self.drive_key)

    async def objects(self) -> dict[str, bytes]:
        """See `objects`."""
        return await objects(self.metadata, self.drive_id)

    async def change_passphrase(self, passphrase: Passphrase, proof: str) -> None:
        """See `set_passphrase`.

        Raises: WrongKey if `proof` is not that of the drive key; UsageError on a drive that is not encrypted, which a
        passphrase would not guard, but keep from being opened without one.

        A process that reaches the control socket may read what is mounted; it is not to get at the key as well.
        """
        if not hmac.compare_digest(proof.encode(), proof_of(self.drive_key).encode()):
            raise WrongKey("the passphrase is changed only by somebody who has the drive's key or passphrase")
        if await is_open(self.metadata):
            raise UsageError("a drive that is not encrypted has no passphrase; nobody needs one to read it")
        async with self._changing:
            await set_passphrase(self.metadata, self.drive_id, self.drive_key, passphrase)

    async def note_recovery_key_shown(self) -> None:
        """See `note_recovery_key_shown`."""
        await note_recovery_key_shown(self.metadata)

    async def recovery_key_shown(self) -> bool:
        """See `recovery_key_shown`; True as well where nobody needs that key, on a drive that is not encrypted."""
        return await is_open(self.metadata) or await recovery_key_shown(self.metadata)


def _key(number: int, kind: SlotKind) -> str:
    return f"{SLOT_PREFIX}{number}.{kind}"


def _stored(settings: Mapping[str, str]) -> list[StoredSlot]:
    found = []
    for key, value in settings.items():
        try:
            # The same rules as for the objects' names.
            number, kind = parse_key_slot_name(_ANY, keys_prefix(_ANY) + key.removeprefix(SLOT_PREFIX))
            found.append(StoredSlot(number, kind, bytes.fromhex(value)))
        except (FormatError, ValueError):
            raise MetadataError(f"the setting {key} of the metadata is no key slot") from None
    return sorted(found, key=lambda slot: slot.number)


def _whole(stored: list[StoredSlot], drive_id: bytes) -> list[KeySlot]:
    """Return the slots that can be read.  Raises: the error of one that cannot, when there is no other."""
    whole: list[KeySlot] = []
    trouble: CloudCorrupt | FormatError | None = None
    for slot in stored:
        try:
            whole.append(decode_slot(slot.data, drive_id=drive_id, number=slot.number, kind=slot.kind))
        except (CloudCorrupt, FormatError) as error:
            log.warning("%s; it is left out", error)
            trouble = error
    if trouble is not None and not whole:
        raise trouble
    return whole


def _next_slot(
    stored: list[StoredSlot], drive_id: bytes, drive_key: bytes, secret: Secret, cost: Argon2Cost
) -> KeySlot:
    number = max((slot.number for slot in stored), default=0) + 1
    salt = secrets.token_bytes(SALT_BYTES)
    return make_slot(drive_key, secret, drive_id=drive_id, number=number, salt=salt, cost=cost)


async def _put(metadata: Metadata, slot: KeySlot) -> None:
    await metadata.set_setting(_key(slot.number, slot.kind), encode_slot(slot).hex())
    await metadata.make_durable()

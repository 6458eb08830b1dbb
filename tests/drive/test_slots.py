"""Key slots in a real store: made, changed, opened again, also from outside while the store is open or was killed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Final

import pytest
import trio

from cuckoo_mount import slots
from cuckoo_mount.errors import CloudCorrupt, MetadataError, UsageError, WrongKey
from cuckoo_mount.format import parse_key_slot_name
from cuckoo_mount.layers.keyslots import SLOT_BYTES, Argon2Cost, Passphrase
from cuckoo_mount.layers.recoverykey import recovery_key_of
from cuckoo_mount.metadata.peek import peek_settings
from cuckoo_mount.metadata.store import SqliteMetadata, create_store, open_store
from cuckoo_mount.slots import OPEN_PASSPHRASE, DriveSlots, proof_of, unlock_store
from tests.metadata.helpers import copy_as_after_kill

KEY: Final = bytes(range(32))
DRIVE_ID: Final = b"d" * 16
CHEAP: Final = Argon2Cost(memory_kib=64, iterations=1, lanes=1)
OLD, NEW = Passphrase("old"), Passphrase("new")
set_passphrase = partial(slots.set_passphrase, cost=CHEAP)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metadata.sqlite"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SqliteMetadata]:
    async with await create_store(path, uid=0, gid=0, now_ns=1) as opened:
        yield opened


async def kinds(store: SqliteMetadata) -> list[tuple[int, str]]:
    return [(slot.number, slot.kind) for slot in await slots.slots(store)]


async def test_the_recovery_slot_is_made_once(store: SqliteMetadata) -> None:
    assert await slots.objects(store, DRIVE_ID) == {}
    await slots.ensure_recovery_slot(store, DRIVE_ID, KEY)
    made = await slots.slots(store)
    await slots.ensure_recovery_slot(store, DRIVE_ID, KEY)
    assert await slots.slots(store) == made
    assert await kinds(store) == [(1, "recovery")]
    assert await slots.unlock(store, DRIVE_ID, recovery_key_of(KEY)) == KEY


async def test_another_drives_key_is_noticed(store: SqliteMetadata) -> None:
    await slots.ensure_recovery_slot(store, DRIVE_ID, KEY)
    with pytest.raises(WrongKey, match="that of another drive"):
        await slots.ensure_recovery_slot(store, DRIVE_ID, KEY[::-1])


async def test_a_changed_passphrase(store: SqliteMetadata) -> None:
    await slots.ensure_recovery_slot(store, DRIVE_ID, KEY)
    await set_passphrase(store, DRIVE_ID, KEY, OLD)
    assert await kinds(store) == [(1, "recovery"), (2, "passphrase")]
    await set_passphrase(store, DRIVE_ID, KEY, NEW)
    assert await kinds(store) == [(1, "recovery"), (3, "passphrase")]
    assert await slots.unlock(store, DRIVE_ID, NEW) == KEY
    with pytest.raises(WrongKey, match="wrong passphrase"):
        await slots.unlock(store, DRIVE_ID, OLD)
    assert await slots.unlock(store, DRIVE_ID, recovery_key_of(KEY)) == KEY


async def test_the_objects_are_the_slots(store: SqliteMetadata) -> None:
    await slots.ensure_recovery_slot(store, DRIVE_ID, KEY)
    await set_passphrase(store, DRIVE_ID, KEY, OLD)
    objects = await slots.objects(store, DRIVE_ID)
    assert [parse_key_slot_name(DRIVE_ID, name) for name in objects] == await kinds(store)
    assert all(len(data) == SLOT_BYTES and KEY not in data for data in objects.values())


async def test_slots_travel_with_the_journal(store: SqliteMetadata, tmp_path: Path) -> None:
    await slots.ensure_recovery_slot(store, DRIVE_ID, KEY)
    await set_passphrase(store, DRIVE_ID, KEY, OLD)
    await set_passphrase(store, DRIVE_ID, KEY, NEW)
    async with await create_store(tmp_path / "other", uid=0, gid=0, now_ns=1) as other:
        await other.replay(await store.journal(1000))
        assert await slots.slots(other) == await slots.slots(store)


async def test_many_slots_are_in_the_order_of_their_numbers(store: SqliteMetadata) -> None:
    for number in range(12):
        await set_passphrase(store, DRIVE_ID, KEY, Passphrase(str(number)))
    assert await kinds(store) == [(12, "passphrase")]
    await slots.ensure_recovery_slot(store, DRIVE_ID, KEY)
    await set_passphrase(store, DRIVE_ID, KEY, NEW)
    assert await kinds(store) == [(13, "recovery"), (14, "passphrase")]


async def test_a_killed_change_leaves_a_passphrase_that_opens(path: Path, store: SqliteMetadata) -> None:
    # At every durable moment of a change, as another process sees it, the old one opens the drive, or the new one.
    await set_passphrase(store, DRIVE_ID, KEY, OLD)
    seen = []

    class Watched:
        def __getattr__(self, name: str) -> object:
            return getattr(store, name)

        async def make_durable(self) -> None:
            await store.make_durable()
            seen.append([unlocks(path, secret) for secret in (OLD, NEW)])

    await set_passphrase(Watched(), DRIVE_ID, KEY, NEW)  # type: ignore[arg-type]
    assert seen == [[True, True], [False, True]]


def unlocks(path: Path, secret: Passphrase) -> bool:
    try:
        return unlock_store(path, DRIVE_ID, secret) == KEY
    except WrongKey:
        return False


async def test_a_cancelled_change_changes_nothing(store: SqliteMetadata) -> None:
    await set_passphrase(store, DRIVE_ID, KEY, OLD)
    before = await slots.slots(store)
    with trio.CancelScope() as scope:
        scope.cancel()
        await set_passphrase(store, DRIVE_ID, KEY, NEW)
    assert scope.cancelled_caught
    assert await slots.slots(store) == before


async def test_a_damaged_slot_does_not_hide_the_others(store: SqliteMetadata) -> None:
    await slots.ensure_recovery_slot(store, DRIVE_ID, KEY)
    good = await store.get_setting("keyslot.1.recovery")
    assert good is not None
    await store.set_setting("keyslot.2.recovery", good[:-2] + "00")
    assert await slots.unlock(store, DRIVE_ID, recovery_key_of(KEY)) == KEY
    await store.delete_setting("keyslot.1.recovery")
    with pytest.raises(CloudCorrupt, match=r"2\.recovery is damaged"):
        await slots.unlock(store, DRIVE_ID, recovery_key_of(KEY))


@pytest.mark.parametrize(("key", "value"), [("keyslot.1.recovery", "xy"), ("keyslot.x", "00"), ("keyslot.1.nix", "00")])
async def test_other_settings_are_no_slots(key: str, value: str, store: SqliteMetadata) -> None:
    await store.set_setting(key, value)
    with pytest.raises(MetadataError, match=f"the setting {key} of the metadata is no key slot"):
        await slots.slots(store)


async def test_from_outside_while_the_store_is_open(path: Path, store: SqliteMetadata) -> None:
    await set_passphrase(store, DRIVE_ID, KEY, OLD)
    await store.set_setting("keyslot.9.recovery", "not committed")
    assert unlock_store(path, DRIVE_ID, OLD) == KEY
    with pytest.raises(WrongKey, match="has no recovery key"):
        unlock_store(path, DRIVE_ID, recovery_key_of(KEY))


async def test_from_outside_when_closed(path: Path) -> None:
    async with await create_store(path, uid=0, gid=0, now_ns=1) as store:
        await set_passphrase(store, DRIVE_ID, KEY, OLD)
    assert unlock_store(path, DRIVE_ID, OLD) == KEY
    async with await open_store(path) as store:
        assert await slots.unlock(store, DRIVE_ID, OLD) == KEY


def log_bytes(path: Path) -> int:
    return Path(f"{path}-wal").stat().st_size


async def test_from_outside_after_a_kill(path: Path, store: SqliteMetadata, tmp_path: Path) -> None:
    await set_passphrase(store, DRIVE_ID, KEY, OLD)
    copy = tmp_path / "copy.sqlite"
    copy_as_after_kill(path, copy)
    assert log_bytes(copy)
    assert unlock_store(copy, DRIVE_ID, OLD) == KEY
    async with await open_store(copy) as opened:
        assert await slots.unlock(opened, DRIVE_ID, OLD) == KEY


def test_no_store(path: Path) -> None:
    with pytest.raises(MetadataError, match="cannot read"):
        peek_settings(path, "")
    assert not path.exists()
    path.write_bytes(b"no database" * 1000)
    with pytest.raises(MetadataError, match="cannot read"):
        peek_settings(path, "")


async def test_what_an_open_drive_lets_commands_do(store: SqliteMetadata) -> None:
    drive = DriveSlots(store, DRIVE_ID, KEY)
    assert "drive_key" not in repr(drive)
    await drive.ensure_recovery()
    assert not await drive.recovery_key_shown()
    await drive.note_recovery_key_shown()
    assert await drive.recovery_key_shown()
    with pytest.raises(WrongKey, match="only by somebody who has"):
        await drive.change_passphrase(NEW, proof_of(KEY[::-1]))
    with pytest.raises(WrongKey, match="only by somebody who has"):
        await drive.change_passphrase(NEW, "é")
    assert list(await drive.objects()) == list(await slots.objects(store, DRIVE_ID))


async def test_a_drive_that_is_not_encrypted_opens_for_everybody(path: Path, store: SqliteMetadata) -> None:
    await store.set_setting("encryption", "none")
    drive = DriveSlots(store, DRIVE_ID, KEY)
    await drive.ensure_recovery()
    made = await drive.objects()
    await drive.ensure_recovery()
    assert await drive.objects() == made
    assert await kinds(store) == [(1, "recovery"), (2, "passphrase")]
    assert await slots.unlock(store, DRIVE_ID, OPEN_PASSPHRASE) == unlock_store(path, DRIVE_ID, OPEN_PASSPHRASE) == KEY
    assert OPEN_PASSPHRASE.text == "cuckoo-mount: this drive is not encrypted", "docs/format.md says so"
    with pytest.raises(UsageError, match="has no passphrase"):
        await drive.change_passphrase(NEW, proof_of(KEY))
    assert await drive.objects() == made
    assert await drive.recovery_key_shown(), "there is nothing to remind of"


@pytest.mark.parametrize("encryption", ["aes-256-gcm", None])
async def test_an_encrypted_drive_does_not(encryption: str | None, store: SqliteMetadata) -> None:
    if encryption is not None:
        await store.set_setting("encryption", encryption)
    await DriveSlots(store, DRIVE_ID, KEY).ensure_recovery()
    assert await kinds(store) == [(1, "recovery")]
    with pytest.raises(WrongKey):
        await slots.unlock(store, DRIVE_ID, OPEN_PASSPHRASE)


async def test_a_passphrase_that_was_set_before_is_kept(store: SqliteMetadata) -> None:
    await store.set_setting("encryption", "none")
    await set_passphrase(store, DRIVE_ID, KEY, OLD)
    await DriveSlots(store, DRIVE_ID, KEY).ensure_recovery()
    assert await kinds(store) == [(1, "passphrase"), (2, "recovery")]


@pytest.mark.slow
async def test_changes_at_the_same_time_come_one_after_the_other(store: SqliteMetadata) -> None:
    drive = DriveSlots(store, DRIVE_ID, KEY)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(drive.change_passphrase, OLD, proof_of(KEY))
        nursery.start_soon(drive.change_passphrase, NEW, proof_of(KEY))
    assert await kinds(store) == [(2, "passphrase")]

"""Clouds that join, change and leave an open drive: real folders, real workers, no mount."""

from __future__ import annotations

import shutil
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve, field, frozen

from cuckoo_mount.clouds.base import CloudSettings
from cuckoo_mount.clouds.identity import read_identity
from cuckoo_mount.clouds.registry import FAULT_PLAN, open_cloud
from cuckoo_mount.cloudsettings import CloudAccess, encode_access, load_access, row_of
from cuckoo_mount.config import CloudConfig, DriveConfig, DrivePaths, drive_paths, read_config, write_config
from cuckoo_mount.drive import Drive, open_drive
from cuckoo_mount.errors import (
    CloudError,
    CloudNotOurs,
    CloudUnavailable,
    ConfigurationError,
    DataUnavailable,
    UsageError,
)
from cuckoo_mount.format import drive_prefix
from cuckoo_mount.layers.keys import DriveKeys
from cuckoo_mount.metadata.peek import peek_local, peek_settings
from cuckoo_mount.metadata.store import SqliteMetadata, open_store
from cuckoo_mount.parted.tree import Caller
from cuckoo_mount.types import ROOT_INODE, CloudName

pytestmark = pytest.mark.slow
DRIVE_ID, KEY = b"d" * 16, b"k" * 32
KEYS = DriveKeys(KEY)
CONTENT = bytes(range(256)) * 40
# The one key that a folder takes, as a secret, too; there it has no effect.
SECRET = "hunter2"
IN_VARIABLE = ((FAULT_PLAN, "env:SECRET_HERE"),)


@frozen
class Place:
    """Where a drive and its clouds lie."""

    root: Path
    paths: DrivePaths
    redundancy: str = "none"
    clouds: tuple[CloudConfig, ...] = field(factory=tuple)

    def cloud(self, name: str, **values: Any) -> CloudConfig:  # noqa: ANN401 (as attrs.evolve has it)
        folder = self.root / name
        folder.mkdir(exist_ok=True)
        return evolve(CloudConfig(name=name, url=str(folder), cloud_id=(name * 16)[:16].encode()), **values)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Drive]:
        config = read_config(self.paths)
        if config is None:
            config = DriveConfig(name="d", drive_id=DRIVE_ID, redundancy=self.redundancy, clouds=self.clouds)
            write_config(config, self.paths)
        async with open_drive(config, self.paths, KEY) as drive:
            yield drive
            assert await drive.check_invariants() == []

    @property
    def plan(self) -> tuple[tuple[str, str], ...]:
        """An option that a folder takes, with CUCKOO_TESTING=1, and that changes nothing."""
        return ((FAULT_PLAN, str(self.root / "plan")),)

    def config(self) -> DriveConfig:
        config = read_config(self.paths)
        assert config is not None
        return config

    def access_texts(self) -> dict[str, str]:
        return peek_settings(self.paths.metadata, "access.")

    @asynccontextmanager
    async def store(self) -> AsyncIterator[SqliteMetadata]:
        """The closed drive's metadata, to do to them what an epoch of another machine would do."""
        async with await open_store(self.paths.metadata) as store:
            yield store

    async def access(self) -> dict[str, CloudAccess]:
        async with self.store() as store:
            return await load_access(store, KEYS)

    def objects(self, name: str, below: str = "packs") -> list[Path]:
        return sorted(path for path in (self.root / name / drive_prefix(DRIVE_ID) / below).rglob("*") if path.is_file())


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    for name in ("CONFIG", "STATE", "CACHE", "DATA"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / "xdg" / name))
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    (tmp_path / "xdg").mkdir()
    return Place(tmp_path, drive_paths("d"))


async def write(drive: Drive, name: bytes, content: bytes = CONTENT) -> None:
    handle, _ = await drive.filesystem.create(ROOT_INODE, name, stat.S_IRUSR | stat.S_IWUSR, Caller(0, 0))
    await drive.filesystem.write(handle, 0, content)
    await drive.filesystem.release(handle)
    await drive.send_all()


async def read(drive: Drive, name: bytes) -> bytes:
    inode = await drive.filesystem.tree.lookup(ROOT_INODE, name)
    handle = await drive.filesystem.open(inode.ino, 0)
    try:
        return await drive.filesystem.read(handle, 0, inode.size_bytes)
    finally:
        await drive.filesystem.release(handle)


def names(drive: Drive) -> list[object]:
    return [cloud["name"] for cloud in drive.roster.listing()]


async def test_a_cloud_joins_and_is_used(place: Place) -> None:
    async with place.opened() as drive:
        await drive.roster.add(place.cloud("a"), {})
        await write(drive, b"f")
        assert len(place.objects("a")) == 1
        assert {path.name for path in place.objects("a", "keys")} == {"1.recovery"}
        assert names(drive) == ["a"]
    config = read_config(place.paths)
    assert config is not None
    assert [cloud.name for cloud in config.clouds] == ["a"]
    async with place.opened() as drive:
        await drive.evict_all()
        assert await read(drive, b"f") == CONTENT
        assert [cloud["state"] for cloud in drive.roster.listing()] == ["ok"]


async def test_the_same_name_or_place_is_refused(place: Place) -> None:
    async with place.opened() as drive:
        await drive.roster.add(place.cloud("a"), {})
        with pytest.raises(UsageError, match="cloud 'a' already"):
            await drive.roster.add(place.cloud("a", url=str(place.root / "b"), cloud_id=b"b" * 16), {})
        with pytest.raises(UsageError, match="already cloud 'a'"):
            await drive.roster.add(place.cloud("b", url=f"osfs://{place.root}/a/"), {})
        (place.root / "link").symlink_to(place.root / "a")
        with pytest.raises(UsageError, match="same place as cloud 'a'"):
            await drive.roster.add(place.cloud("b", url=str(place.root / "link")), {})
        with pytest.raises(CloudUnavailable, match="create the folder"):
            await drive.roster.add(place.cloud("b", url=str(place.root / "nowhere")), {})
        assert names(drive) == ["a"]


async def test_a_cloud_that_did_not_answer_is_signed_later(place: Place) -> None:
    place = evolve(place, clouds=(place.cloud("a"), place.cloud("b")))
    (place.root / "b").rmdir()
    async with place.opened() as drive:
        assert [cloud["state"] for cloud in drive.roster.listing()] == ["ok", "not signed yet"]
        (place.root / "b").mkdir()
        await drive.roster.sign_new()
        assert names(drive) == ["a", "b"]
        cloud = open_cloud(CloudSettings(name="b", url=str(place.root / "b")))
        assert read_identity(cloud, DRIVE_ID) == place.clouds[1].cloud_id


async def test_changing_a_cloud(place: Place) -> None:
    async with place.opened() as drive:
        for name in ("a", "b"):
            await drive.roster.add(place.cloud(name), {})
        await drive.roster.change(place.cloud("a", read_only=True, group="house"), {})
        for number in range(4):
            await write(drive, b"%d" % number, CONTENT + bytes([number]))
        assert (len(place.objects("a")), len(place.objects("b"))) == (0, 4)
        with pytest.raises(CloudNotOurs):
            await drive.roster.change(place.cloud("a", url=str(place.root / "b")), {})
        assert [(cloud["read_only"], cloud["group"]) for cloud in drive.roster.listing()] == [
            (True, "house"),
            (False, ""),
        ]
    shutil.move(place.root / "a", place.root / "moved")
    async with place.opened() as drive:
        assert [cloud["state"] for cloud in drive.roster.listing()] == ["down", "ok"]
        await drive.roster.change(place.cloud("a", url=str(place.root / "moved")), {})
        await write(drive, b"again", b"again")
        assert len(place.objects("moved")) == 1


async def test_removing_a_cloud_loses_nothing_unless_told_so(place: Place) -> None:
    async with place.opened() as drive:
        await drive.roster.add(place.cloud("a"), {})
        await write(drive, b"f")
        await drive.roster.add(place.cloud("b"), {})
        with pytest.raises(UsageError, match=r"1 pack .* nowhere else"):
            await drive.roster.remove("a", lost=False)
        await write(drive, b"g", CONTENT[::-1])
        assert sum(len(place.objects(name)) for name in "ab") == 2, "it is used again after the refusal"
        with pytest.raises(UsageError, match=r"no cloud 'c'.*a, b"):
            await drive.roster.remove("c", lost=True)
        holder = "a" if len(place.objects("a")) == 2 else "b"
        figures = await drive.roster.remove("a", lost=True)
        assert figures["lost_packs"] == (2 if holder == "a" else 1)
        assert names(drive) == ["b"]
        await drive.evict_all()
        with pytest.raises(DataUnavailable, match="not one of this drive's any more"):
            await read(drive, b"f")
    async with place.opened() as drive:
        assert names(drive) == ["b"]
        await drive.roster.add(place.cloud("a", cloud_id=b"other id of 16 b"), {})
        assert await read(drive, b"f") == CONTENT, "the place is what it was before"


async def test_removing_one_of_two_copies(place: Place) -> None:
    place = evolve(place, redundancy="2", clouds=(place.cloud("a"), place.cloud("b")))
    async with place.opened() as drive:
        await write(drive, b"f")
        assert (await drive.roster.remove("b", lost=False))["lost_packs"] == 0
        await drive.evict_all()
        assert await read(drive, b"f") == CONTENT
        status = await drive.status()
        assert (status["state"], status["packs"]) == ("degraded", status["packs"] | {"degraded": 1})  # type: ignore[operator]


async def test_trying_a_cloud_leaves_nothing(place: Place) -> None:
    async with place.opened() as drive:
        await drive.roster.add(place.cloud("a"), {})
        trial = await drive.roster.test("a")
        assert not trial.error
        assert [step.step for step in trial.steps][:2] == ["connect", "store"]
        assert place.objects("a") == []
        shutil.rmtree(place.root / "a")
        with pytest.raises((CloudError, ConfigurationError)):
            raise CloudUnavailable((await drive.roster.test("a")).error)


async def test_a_secret_that_is_not_there_is_that_clouds_trouble_alone(place: Place) -> None:
    place = evolve(place, clouds=(place.cloud("a"), place.cloud("b", secrets=(("password", "env:NOT_SET_ANYWHERE"),))))
    async with place.opened() as drive:
        await write(drive, b"f")
        listing = drive.roster.listing()
        assert [cloud["state"] for cloud in listing] == ["ok", "not signed yet"]


async def test_what_is_only_in_the_metadata_stays_on_the_list(place: Place) -> None:
    async with place.opened() as drive:
        await drive.roster.add(place.cloud("a", capacity_bytes=1 << 30), {})
    config = read_config(place.paths)
    assert config is not None
    write_config(evolve(config, clouds=()), place.paths)
    async with place.opened() as drive:
        assert [(cloud["name"], cloud["state"], cloud["capacity_bytes"]) for cloud in drive.roster.listing()] == [
            ("a", "ok", 1 << 30)
        ]


async def test_new_clouds_keep_the_order_of_the_file(place: Place) -> None:
    place = evolve(place, clouds=tuple(place.cloud(name) for name in "dbca"))
    async with place.opened() as drive:
        assert names(drive) == ["d", "b", "c", "a"]


async def test_how_a_cloud_is_opened_is_stored(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUCKOO_TESTING", "1")
    monkeypatch.setenv("SECRET_HERE", SECRET)
    async with place.opened() as drive:
        await drive.roster.add(place.cloud("a"), {})
        await drive.roster.add(place.cloud("b", secrets=IN_VARIABLE), {FAULT_PLAN: SECRET})
    secret = CloudAccess((), ((FAULT_PLAN, SECRET),))
    assert await place.access() == {"a": CloudAccess(), "b": secret}
    before = place.access_texts()
    assert SECRET not in "".join(before.values())
    for _ in range(2):
        async with place.opened():
            pass
        assert place.access_texts() == before, "nothing changed, so nothing is written"
    async with place.opened() as drive:
        await drive.roster.change(place.cloud("a", options=place.plan), {})
    assert await place.access() == {"a": CloudAccess(place.plan), "b": secret}
    assert place.access_texts()["access.b"] == before["access.b"]


async def test_what_changed_while_it_was_closed_is_stored_at_the_next_mount(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUCKOO_TESTING", "1")
    monkeypatch.setenv("SECRET_HERE", SECRET)
    place = evolve(place, clouds=(place.cloud("a", secrets=IN_VARIABLE),))
    async with place.opened():
        pass
    assert await place.access() == {"a": CloudAccess((), ((FAULT_PLAN, SECRET),))}
    monkeypatch.setenv("SECRET_HERE", "")
    before = place.access_texts()
    async with place.opened() as drive:
        assert [cloud["state"] for cloud in drive.roster.listing()] == ["needs-login"]
    assert place.access_texts() == before, "a secret that cannot be found changes nothing"
    monkeypatch.setenv("SECRET_HERE", f"{SECRET} ")
    async with place.opened():
        pass
    assert await place.access() == {"a": CloudAccess((), ((FAULT_PLAN, f"{SECRET} "),))}


async def test_a_drive_that_is_not_encrypted_stores_no_secrets(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUCKOO_TESTING", "1")
    monkeypatch.setenv("SECRET_HERE", SECRET)
    write_config(DriveConfig(name="d", drive_id=DRIVE_ID, encrypted=False, clouds=()), place.paths)
    async with place.opened() as drive:
        await drive.roster.add(place.cloud("a", secrets=IN_VARIABLE), {FAULT_PLAN: SECRET})
        assert {path.name for path in place.objects("a", "keys")} == {"1.recovery", "2.passphrase"}
    assert place.access_texts() == {"access.a": '{"options":{}}'}


async def test_removing_a_cloud_forgets_how_it_is_opened(place: Place) -> None:
    async with place.opened() as drive:
        await drive.roster.add(place.cloud("a"), {})
        await drive.roster.remove("a", lost=True)
    assert place.access_texts() == {}


async def test_a_cloud_that_another_machine_added_is_used(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUCKOO_TESTING", "1")
    there = place.cloud("b", group="house", options=place.plan)
    async with place.opened() as drive:
        await drive.roster.add(place.cloud("a"), {})
        await drive.roster.add(there, {})
        await write(drive, b"f")
    # Nothing of b is known on this machine, as after an epoch of another one.
    write_config(evolve(place.config(), clouds=place.config().clouds[:1]), place.paths)
    async with place.store() as store:
        await store.set_local("signed.b", "")
        await store.set_local("access_noted.b", "")
    before = place.access_texts()
    async with place.opened() as drive:
        assert [(cloud["name"], cloud["state"]) for cloud in drive.roster.listing()] == [("a", "ok"), ("b", "ok")]
        assert drive.config.clouds[1:] == (there,)
        await drive.evict_all()
        assert await read(drive, b"f") == CONTENT
    assert place.config().clouds[1:] == (there,)
    assert place.access_texts() == before


async def test_its_secrets_come_along(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUCKOO_TESTING", "1")
    async with place.opened() as drive:
        await drive.roster.add(place.cloud("a"), {})
    there = place.cloud("b")
    access = CloudAccess((), ((FAULT_PLAN, SECRET),))
    async with place.store() as store:
        await store.put_cloud(row_of(there))
        await store.set_setting("access.b", encode_access(access, "b", KEYS, encrypted=True))
    async with place.opened() as drive:
        adopted = evolve(there, secrets=((FAULT_PLAN, f"value:{SECRET}"),))
        assert drive.config.clouds[1:] == place.config().clouds[1:] == (adopted,)
        assert dict(drive.roster.listing()[1])["state"] == "not-ours", "nobody signed it in this test"
    assert (await place.access())["b"] == access


async def test_a_cloud_that_another_machine_removed_is_not_signed_again(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    async with place.opened() as drive:
        for name in "ab":
            await drive.roster.add(place.cloud(name), {})
    async with place.store() as store:
        await store.remove_cloud(CloudName("b"))
        await store.delete_setting("access.b")
    async with place.opened() as drive:
        await drive.roster.sign_new()
        assert names(drive) == ["a"]
        assert [cloud.name for cloud in drive.config.clouds] == ["a"]
    assert "cloud b was removed from the drive by another machine" in caplog.text
    assert [cloud.name for cloud in place.config().clouds] == ["a"]
    assert peek_local(place.paths.metadata, "signed.b") == {"signed.b": ""}
    assert place.access_texts().keys() == {"access.a"}
    async with place.opened() as drive:
        await drive.roster.add(place.cloud("b"), {})
        assert names(drive) == ["a", "b"]


async def test_a_file_that_cannot_be_written_keeps_nobody_from_mounting(place: Place) -> None:
    async with place.opened() as drive:
        for name in "ab":
            await drive.roster.add(place.cloud(name), {})
    async with place.store() as store:
        await store.remove_cloud(CloudName("b"))
    config = place.config()
    place.paths.config_file.unlink()
    async with open_drive(config, place.paths, KEY) as drive:
        await drive.roster.sign_new()
        assert names(drive) == ["a"]
    assert peek_local(place.paths.metadata, "signed.b") != {"signed.b": ""}, "the next mount is to know it again"


async def test_credentials_in_a_url_do_not_travel_in_the_list(place: Place) -> None:
    folder = place.cloud("a")
    async with place.opened() as drive:
        await drive.roster.add(folder, {})
    async with place.store() as store:
        await store.put_cloud(evolve(row_of(folder), url="s3://KEY:SECRET@bucket"))
    async with place.opened():
        pass
    async with place.store() as store:
        assert [row.url for row in await store.clouds()] == ["s3://bucket"]

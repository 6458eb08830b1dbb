"""How clouds are opened, as settings: there and back, sealed, changed only when they have to be; and merged lists."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from cuckoo_mount.cloudsettings import (
    CloudAccess,
    access_of,
    cloud_of,
    decode_access,
    encode_access,
    forget_access,
    load_access,
    merge_clouds,
    refresh_access,
    row_of,
    store_access,
    without_credentials,
)
from cuckoo_mount.config import CloudConfig, DriveConfig
from cuckoo_mount.config.secrets import part_url, resolve_secrets
from cuckoo_mount.errors import CloudCorrupt, FormatError
from cuckoo_mount.layers.keys import DriveKeys
from cuckoo_mount.metadata.store import SqliteMetadata, create_store

KEYS: Final = DriveKeys(bytes(range(32)))
SECRET: Final = "hunter2 und €"
ACCESS: Final = CloudAccess(
    (("fault.plan", "down"), ("region", "eu")), (("password", SECRET), ("user", "ich")),
)  # fmt: skip
OTHER: Final = evolve(ACCESS, secrets=(("password", "new"),))
CLOUD: Final = CloudConfig(name="a", url="s3://bucket", cloud_id=b"a" * 16)

tables = st.dictionaries(st.text(), st.text(), max_size=4).map(lambda table: tuple(table.items()))


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteMetadata]:
    async with await create_store(tmp_path / "metadata.sqlite", uid=0, gid=0, now_ns=1) as opened:
        yield opened


@given(options=tables, secrets=tables, encrypted=st.booleans())
def test_there_and_back(options: Any, secrets: Any, encrypted: bool) -> None:  # noqa: ANN401 (tables of texts)
    access = CloudAccess(options, secrets)
    text = encode_access(access, "a", KEYS, encrypted=encrypted)
    assert decode_access(text, "a", KEYS) == (access if encrypted else evolve(access, secrets=()))
    assert text.isascii()


def test_sealed_it_shows_nothing() -> None:
    text = encode_access(ACCESS, "a", KEYS, encrypted=True)
    seen = base64.b64decode(text.removeprefix("1:"))
    assert not any(word in seen for word in (SECRET.encode(), b"hunter2", b"password", b"region"))
    assert text != encode_access(ACCESS, "a", KEYS, encrypted=True), "no salt serves twice"
    assert "hunter2" not in repr(ACCESS)


def test_without_encryption_there_are_no_secrets() -> None:
    text = encode_access(ACCESS, "a", KEYS, encrypted=False)
    assert json.loads(text) == {"options": dict(ACCESS.options)}


def test_another_key_or_name_is_refused() -> None:
    text = encode_access(ACCESS, "a", KEYS, encrypted=True)
    for name, keys in (("b", KEYS), ("a", DriveKeys(bytes(32)))):
        with pytest.raises(CloudCorrupt, match="was not made with this drive's key"):
            decode_access(text, name, keys)


def test_every_changed_sign_is_refused() -> None:
    text = encode_access(ACCESS, "a", KEYS, encrypted=True)
    for at, sign in enumerate(text):
        for other in ("A", "B", "=", "é", "\n"):
            if other != sign:
                with pytest.raises((CloudCorrupt, FormatError)):
                    decode_access(text[:at] + other + text[at + 1 :], "a", KEYS)
        with pytest.raises((CloudCorrupt, FormatError)):
            decode_access(text[:at], "a", KEYS)


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("", CloudCorrupt, "was changed"),
        ("1:", CloudCorrupt, "was changed"),
        ("hello", CloudCorrupt, "was changed"),
        ("2:AAAA", FormatError, "kind 2, this program knows 1"),
        ("{", FormatError, "does not know"),
        ('{"options": {"a": 1}}', FormatError, "does not know"),
        ('{"options": ["a"]}', FormatError, "does not know"),
        ('{"options": {}, "more": {}}', FormatError, "does not know"),
        ('{"options": ' * 100_000, FormatError, "does not know"),
    ],
)
def test_what_is_no_access(text: str, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        decode_access(text, "a", KEYS)


@pytest.mark.parametrize("encrypted", [True, False])
async def test_nothing_is_written_when_nothing_changed(store: SqliteMetadata, encrypted: bool) -> None:
    await store_access(store, "a", ACCESS, KEYS, encrypted=encrypted)
    # A row that changes goes to the end of the outbox, even if it is as before.
    await store.set_setting("last", "")
    before = await store.journal(100)
    await store_access(store, "a", ACCESS, KEYS, encrypted=encrypted)
    await refresh_access(store, "a", ACCESS, KEYS, encrypted=encrypted)
    assert await store.journal(100) == before
    await store_access(store, "a", CloudAccess(), KEYS, encrypted=encrypted)
    assert (await store.journal(100))[-1].key == ("access.a",)
    assert await load_access(store, KEYS) == {"a": CloudAccess()}


async def test_what_cannot_be_read_is_written_anew(store: SqliteMetadata, caplog: pytest.LogCaptureFixture) -> None:
    for text in ("1:AAAA", encode_access(ACCESS, "b", KEYS, encrypted=True), json.dumps({"options": {}})):
        await store.set_setting("access.a", text)
        await store_access(store, "a", ACCESS, KEYS, encrypted=True)
        assert await load_access(store, KEYS) == {"a": ACCESS}
    assert "hunter2" not in caplog.text


async def test_what_cannot_be_decoded_is_left_out(store: SqliteMetadata, caplog: pytest.LogCaptureFixture) -> None:
    await store_access(store, "a", ACCESS, KEYS, encrypted=True)
    await store.set_setting("access.b", encode_access(ACCESS, "a", KEYS, encrypted=True))
    assert await load_access(store, KEYS) == {"a": ACCESS}
    assert "cloud b: the stored access" in caplog.text
    await forget_access(store, "a")
    assert await store.settings("access.a") == {}


async def test_a_mount_keeps_what_another_machine_stored(
    store: SqliteMetadata, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await refresh_access(store, "a", ACCESS, KEYS, encrypted=True)
    await store.set_setting("access.a", encode_access(OTHER, "a", KEYS, encrypted=True))
    await refresh_access(store, "a", ACCESS, KEYS, encrypted=True)
    assert await load_access(store, KEYS) == {"a": OTHER}
    assert "another machine opens it with other options or secrets" in caplog.text
    mine = evolve(ACCESS, options=())
    await refresh_access(store, "a", mine, KEYS, encrypted=True)
    assert await load_access(store, KEYS) == {"a": mine}, "changed here, by hand"
    await store.set_setting("access.a", "damaged")
    await refresh_access(store, "a", mine, KEYS, encrypted=True)
    assert await load_access(store, KEYS) == {"a": mine}


@pytest.mark.parametrize(
    ("url", "bare", "secrets"),
    [
        ("/srv/cloud", "/srv/cloud", {}),
        ("s3://bucket/p?region=x", "s3://bucket/p?region=x", {}),
        ("s3://KEY:a/b%2B@bucket?region=x", "s3://bucket?region=x", {"user": "KEY", "password": "a/b+"}),
        ("faulty+s3://K:S@bucket", "faulty+s3://bucket", {"user": "K", "password": "S"}),
        ("ftp://me@host/f?passive=1", "ftp://me@host/f?passive=1", {}),
        ("ftp://me:pw@host/f", "ftp://host/f", {"user": "me", "password": "pw"}),
        ("x://host?access_token=t%20t&a=1&b", "x://host?a=1&b", {"access_token": "t t"}),
        ("x://host?token=t", "x://host", {"token": "t"}),
        ("osfs:///a:b@c?token=d", "osfs:///a:b@c?token=d", {}),
    ],
)
def test_a_row_has_no_credentials(url: str, bare: str, secrets: dict[str, str]) -> None:
    cloud = evolve(CLOUD, url=url)
    assert row_of(cloud).url == bare
    assert without_credentials(evolve(row_of(cloud), url=url)) == row_of(cloud)
    access = access_of(cloud, {})
    assert access is not None
    assert dict(access.secrets) == secrets
    again = cloud_of(row_of(cloud), access)
    assert (again.url, dict(resolve_secrets("d", again))) == (bare, secrets)


def test_secrets_win_over_the_url() -> None:
    cloud = evolve(CLOUD, url="s3://K:S@bucket", secrets=(("password", "env:X"),))
    assert access_of(cloud, {}) is None
    assert access_of(cloud, {"password": "T"}) == CloudAccess((), (("password", "T"), ("user", "K")))


def test_a_plain_path_is_not_parted() -> None:
    assert part_url("/a?token=b") == ("/a?token=b", ())


def config(*clouds: CloudConfig) -> DriveConfig:
    return DriveConfig(name="d", drive_id=b"d" * 16, clouds=clouds)


def cloud_named(name: str, **values: Any) -> CloudConfig:  # noqa: ANN401 (as attrs.evolve has it)
    return CloudConfig(**{"name": name, "url": f"/clouds/{name}", "cloud_id": (name * 16)[:16].encode()} | values)


A, B, C = (cloud_named(name) for name in "abc")
BARE: Final = CloudAccess()


def test_merged_lists() -> None:
    # b was removed elsewhere, c is new here, a is known better here.
    mine = evolve(A, url="/elsewhere", secrets=(("password", "keyring"),))
    assert merge_clouds(config(mine, B, C), [row_of(A)], {"a": ACCESS}, ["a", "b"]) == (config(mine, C), ["b"])
    assert merge_clouds(config(mine), [row_of(A)], {"a": ACCESS}, ["a"]) == (config(mine), [])


def test_a_cloud_added_elsewhere_comes_in() -> None:
    row = evolve(row_of(A), capacity_bytes=5, reserve_bytes=6, group="g", read_only=True)
    merged, gone = merge_clouds(config(B), [row, row_of(B)], {"a": ACCESS, "b": BARE}, [])
    assert gone == []
    assert merged.clouds == (
        B,
        cloud_named(
            "a",
            capacity_bytes=5,
            reserve_bytes=6,
            group="g",
            read_only=True,
            options=ACCESS.options,
            secrets=(("password", f"value:{SECRET}"), ("user", "value:ich")),
        ),
    )


def test_without_its_access_it_does_not() -> None:
    assert merge_clouds(config(), [row_of(A)], {}, []) == (config(), [])


def test_another_place_under_the_same_name() -> None:
    new = evolve(A, url="/new", cloud_id=b"n" * 16)
    assert merge_clouds(config(A), [row_of(new)], {"a": BARE}, ["a"]) == (config(new), ["a"])
    assert merge_clouds(config(A), [row_of(new)], {}, ["a"]) == (config(A), [])


def test_the_same_place_under_another_name() -> None:
    new = evolve(A, name="new")
    assert merge_clouds(config(A), [row_of(new)], {"new": BARE}, []) == (config(new), ["a"])


def test_what_cannot_stand_beside_the_others_stays_out(caplog: pytest.LogCaptureFixture) -> None:
    # Two machines, each with a cloud in a folder of the same path.
    row = evolve(row_of(A), url=B.url)
    assert merge_clouds(config(B), [row], {"a": BARE}, []) == (config(B), [])
    assert "cloud a cannot be entered in the configuration file: two clouds have the url" in caplog.text

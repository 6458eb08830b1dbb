"""A drive over Dropbox and two folders: what its packs cost there, a token that expires, a login that is revoked."""

from __future__ import annotations

import os
import random
import re
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, cast

import pytest

from cuckoo_mount.config import CloudConfig
from cuckoo_mount.config.secrets import VALUE
from tests.clouds.dropboxserver import DropboxServer, dropbox_server
from tests.pool.conftest import MakePool
from tests.pool.pooling import Place, PoolMount, bring_back, folder_place, hide

pytestmark = [pytest.mark.slow]

KIB: Final = 1 << 10
SEED: Final = 20_261_201


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DropboxServer]:
    with dropbox_server(tmp_path_factory.mktemp("dropbox")) as running:
        yield running


def dropbox_place(server: DropboxServer) -> Place:
    """Return a fresh folder there, as a cloud; the drive and the test have a login each."""
    folder = server.fresh_folder()
    config = CloudConfig(
        name="dropbox",
        url=server.url(folder),
        cloud_id=secrets.token_bytes(16),
        secrets=(("refresh_token", VALUE + server.logins.log_in()),),
    )
    return Place(config, server.settings(folder, name="dropbox from outside"))


async def test_what_packs_cost_and_that_too_many_writes_are_no_trouble(
    make_pool: MakePool, server: DropboxServer
) -> None:
    """One request per stored pack, and one per ranged read."""
    dice = random.Random(SEED)
    files = {f"f{number}": dice.randbytes(30 * KIB) for number in range(6)}
    place = dropbox_place(server)
    mount = make_pool((place,))
    async with mount.opened() as opened:
        server.reset()
        for name, data in files.items():
            await opened.write(name, data)
            await opened.sync()
        stored = server.asked("files/upload", "/packs/")
        in_all = server.requests()
        for name, data in files.items():
            await opened.evict()
            assert await opened.read(name) == data
        print(f"{len(files)} packs stored: {in_all}; then read: {server.requests()}")
        assert stored == len(place.packs()) == len(files)
        assert server.asked("files/upload", "/packs/") == stored
        assert server.asked("files/download", "/packs/") == len(files)
        assert server.asked("files/get_metadata", "/packs/") == 0

        server.reject_writes(1, retry_after_s=1)
        await opened.write("more", b"x")
        await opened.sync()
        clouds = cast(list[dict[str, Any]], (await opened.drive.status())["clouds"])
    assert (clouds[0]["state"], clouds[0]["rejected"]) == ("ok", 1)
    assert clouds[0]["requests_per_second"] is not None


# -- mounted --


def cloud_of(mount: PoolMount) -> dict[str, Any]:
    """Return what `status` says of the cloud."""
    clouds: list[dict[str, Any]] = mount.status()["clouds"]
    return next(cloud for cloud in clouds if cloud["name"] == "dropbox")


def write(mount: PoolMount, names: str) -> dict[str, bytes]:
    """Write a file of each name, each into a pack of its own; return their contents."""
    dice = random.Random(f"{SEED} {names}")
    files = {name: dice.randbytes(200 * KIB) for name in names}
    for name, data in files.items():
        (mount.path / name).write_bytes(data)
        mount.sync()
    return files


def log_in(mount: PoolMount, server: DropboxServer) -> str:
    """Run `cuckoo cloud login`, and do in a browser what it says; return its output."""
    command = [sys.executable, "-m", "cuckoo_mount.cli.main", "cloud", "login", "dropbox"]
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(command, text=True, env=mount.environment, cwd="/", **pipes) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        page = next(line for line in process.stderr if "https://" in line).strip()
        process.stdin.write(f"{server.logins.approve(page)}\n")
        process.stdin.close()
        said, trouble = process.stdout.read() if process.stdout is not None else "", process.stderr.read()
    assert process.returncode == 0, trouble
    return said


def assert_no_token_shows(mount: PoolMount, status: str) -> None:
    """Fail if a token can be seen in a process's arguments, the log, or the status."""
    processes = [path.read_bytes().decode("latin-1") for path in Path("/proc").glob("[0-9]*/cmdline") if _is_ours(path)]
    for text in (mount.log_text(), str(mount.status()), status, *processes):
        assert not re.search(r"refresh-[\w-]{20,}|sl\.[\w-]{30,}", text)


def _is_ours(path: Path) -> bool:
    try:
        return path.stat().st_uid == os.getuid() and b"cuckoo" in path.read_bytes()
    except OSError:  # it has ended
        return False


@pytest.mark.mount
def test_a_token_expires_and_a_login_is_revoked(make_pool: MakePool, server: DropboxServer, tmp_path: Path) -> None:
    clouds = [dropbox_place(server), *(folder_place(tmp_path / "clouds", name) for name in ("one", "two"))]
    revoked = clouds[0].config.secrets[0][1].removeprefix(VALUE)
    mount = make_pool(clouds, redundancy="2")
    mount.start()
    files = write(mount, "abc")
    assert mount.place("dropbox").packs()

    before = server.logins.refreshes
    server.logins.expire()
    files |= write(mount, "def")
    assert server.logins.refreshes > before
    assert cloud_of(mount)["state"] == "ok"
    assert cloud_of(mount)["errors"] == 0

    server.logins.revoke(revoked)
    files |= write(mount, "gh")  # the others take it
    assert cloud_of(mount)["state"] == "needs-login"
    status = mount.cuckoo("status").stdout.decode()
    assert "Log in again: cuckoo cloud login dropbox" in status

    assert log_in(mount, server) == "Logged in to cloud 'dropbox'.\n"
    assert cloud_of(mount)["state"] == "ok"
    packs = len(mount.place("dropbox").packs())
    files |= write(mount, "ijk")
    assert len(mount.place("dropbox").packs()) > packs
    assert_no_token_shows(mount, status)

    # What lies on that folder and on Dropbox, Dropbox has to give.
    on = {name: {share.rpartition(".")[0] for share in mount.place(name).packs()} for name in ("dropbox", "one")}
    assert on["dropbox"] & on["one"]
    server.reset()
    hide([mount.place("one")])
    mount.evict()
    is_dropped = mount.drop_caches()
    assert {name: (mount.path / name).read_bytes() for name in files} == files
    assert server.asked("files/download", "/packs/") > 0 or not is_dropped
    bring_back([mount.place("one")])

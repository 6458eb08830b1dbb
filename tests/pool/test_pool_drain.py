"""A cloud is emptied while programs work in the mount: nothing is left there, nothing is lost, whoever is killed."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Final

import pytest

from cuckoo_mount.config import read_config
from cuckoo_mount.testing.httpproxy import http_proxy
from cuckoo_mount.testing.servers import S3Server
from tests.pool.conftest import MakeMachine, MakePool
from tests.pool.loading import Load, asked, slow_down, small_packs
from tests.pool.pooling import Place, PoolMount, folder_place, take_inventory
from tests.pool.threeservers import s3_place

pytestmark = [pytest.mark.mount, pytest.mark.slow]
FILES: Final = 16


def assert_nothing_is_missing(mount: PoolMount) -> None:
    """Fail unless every pack has all of its shares, where the metadata says, and nothing else is there; unmounts."""
    mount.check()
    mount.umount()
    inventory = take_inventory(mount)
    assert (inventory.orphans, inventory.dangling, inventory.intents, inventory.single) == ([], [], 0, 0)


@pytest.mark.long
def test_under_load_from_s3(tmp_path: Path, make_pool: MakePool, rclone: S3Server) -> None:
    """Every object goes from a real server's bucket, and `remove` afterwards is a word."""
    with http_proxy(rclone.endpoint_url) as proxy:
        server = s3_place("server", rclone, proxy)
        mount = make_pool([server, *(folder_place(tmp_path / "clouds", name) for name in "bc")], redundancy="2")
        small_packs(mount)
        mount.start()
        load = Load(mount, files=FILES)
        load.make()
        assert server.packs()
        with load.running():
            plan = json.loads(mount.cuckoo("cloud", "drain", "server", "--dry-run", "--json").stdout)
            assert plan["packs"] >= len(server.packs()) - 1 > 0
            assert plan["use"] == "normal"
            said = mount.cuckoo("cloud", "drain", "server", "--yes").stdout.decode()
            assert said == "Cloud 'server' is drained: nothing of the drive is left there.\n"
            assert server.sizes() == {}, "the proof"
        assert load.reads > FILES
        listed = {cloud["name"]: cloud for cloud in json.loads(mount.cuckoo("cloud", "list", "--json").stdout)}
        assert (listed["server"]["state"], listed["server"]["packs"]) == ("drained", 0)
        assert mount.cuckoo("status", "--check", check=False).returncode in (0, 3)
        load.verify()
        mount.sync()
        assert server.sizes() == {}, "nothing comes back"
        assert mount.status()["state"] == "ok"
        proxy.reset()
        said = mount.cuckoo("cloud", "remove", "server").stdout.decode()
        assert said == "Cloud 'server' removed.  Nothing of the drive is left there.\n"
        assert proxy.counts().total == 0
        assert_nothing_is_missing(mount)


@pytest.mark.parametrize("redundancy", ["2", pytest.param("3+2", marks=pytest.mark.long)])
def test_killed_in_the_middle_and_resumed(tmp_path: Path, make_pool: MakePool, redundancy: str) -> None:
    """kill -9 while packs are moved, and while the rest is deleted; whoever mounts next goes on by himself."""
    names = "abc" if redundancy == "2" else "abcdef"
    places = [folder_place(tmp_path / "clouds", name) for name in names]
    mount = make_pool(places, redundancy=redundancy)
    small_packs(mount)
    mount.start()
    load = Load(mount, files=FILES)
    load.make()
    before = len(places[0].packs())
    slow_down(places[1:], "put", "/packs/", 0.15)
    with load.running(), asked(mount, "cloud-drain", name="a") as progress:
        for told in progress:
            if told["packs_left"] and told["packs_left"] <= before - 2:
                break
        load.kill()
    slow_down(places[1:], "put", "/packs/", 0.0)
    slow_down(places[:1], "delete", "/meta/", 0.3)
    assert len(places[0].packs()) >= 2, "nothing was at risk"
    mount.start()
    with load.running(), asked(mount, "cloud-drain", name="a"):
        wait_for_the_last_objects(places[0])
        load.kill()
    left = places[0].sizes()
    assert left, "nothing was at risk"
    assert not places[0].packs()
    slow_down(places[:1], "delete", "/meta/", 0.0)
    mount.start()
    with load.running():
        mount.cuckoo("cloud", "drain", "a", "--yes")
        assert places[0].sizes() == {}
    load.verify()
    mount.sync()
    assert mount.status()["packs"]["degraded"] == 0
    assert_nothing_is_missing(mount)
    assert list(Path(places[0].config.url).iterdir()) == [], "no empty folders either"


def wait_for_the_last_objects(place: Place) -> None:
    """Return when packs are gone there, and something of the rest."""
    stop, sizes = threading.Event(), place.sizes()
    for _ in range(3000):
        sizes = place.sizes()
        if not any("/packs/" in name or "/lease/" in name or "/keys/" in name for name in sizes):
            return
        stop.wait(0.02)
    raise AssertionError(f"still there: {sorted(sizes)}")


@pytest.mark.long
def test_another_machine_finds_it_drained(tmp_path: Path, make_machine: MakeMachine) -> None:
    """Recovered through another cloud: what is drained is not asked for, and can be used again."""
    places = [folder_place(tmp_path / "clouds", name) for name in "abc"]
    first = make_machine(places)
    first.make()
    first.start()
    load = Load(first, files=4)
    load.make()
    first.cuckoo("cloud", "drain", "a", "--yes")
    first.umount()
    second = make_machine(places)
    second.recover(places[1])
    second.start()
    assert [cloud["state"] for cloud in second.status()["clouds"]] == ["ok", "ok", "drained"]
    assert second.status()["state"] == "ok"
    Load(second, files=4).verify()
    second.cuckoo("cloud", "set", "a", "--new")
    (second.path / "more").write_bytes(b"more" * 1000)
    second.sync()
    assert {name.rsplit("/", 2)[-2] for name in places[0].sizes()} >= {"keys", "meta"}
    second.umount()
    config = read_config(second.paths)
    assert config is not None
    assert [cloud.name for cloud in config.clouds] == ["a", "b", "c"]

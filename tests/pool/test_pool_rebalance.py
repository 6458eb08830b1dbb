"""After `cloud add` the clouds are filled evenly again, while programs work in the mount, and whoever is killed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import pytest
from attrs import evolve

from cuckoo_mount.config import write_config
from cuckoo_mount.multi.balancing import SPREAD_MAX
from tests.pool.conftest import MakePool
from tests.pool.loading import Load, asked, slow_down, small_packs
from tests.pool.pooling import Place, PoolMount, folder_place
from tests.pool.test_pool_drain import assert_nothing_is_missing

pytestmark = [pytest.mark.mount, pytest.mark.slow]
MIB: Final = 1 << 20
FILES: Final = 20
CAPACITY: Final = "24MiB"


def levels(places: list[Place]) -> list[float]:
    """Return which part of its capacity each cloud has, by what really lies there."""
    return [place.used_bytes() / (24 * MIB) for place in places]


def add_cloud(mount: PoolMount, place: Place) -> None:
    plan = "=".join(place.config.options[0])
    mount.cuckoo("cloud", "add", place.name, place.config.url, "--capacity", CAPACITY, "--option", plan)


def rebalance(mount: PoolMount, *options: str) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(mount.cuckoo("rebalance", "--yes", "--json", *options).stdout)
    return result


def filled(tmp_path: Path, make_pool: MakePool, redundancy: str) -> tuple[PoolMount, Load, list[Place]]:
    """Return a mounted drive whose clouds are about half full, and one more that is empty."""
    count = 3 if redundancy == "2" else 5
    places = [folder_place(tmp_path / "clouds", name, capacity=CAPACITY) for name in "abcdef"[: count + 1]]
    mount = make_pool(places, redundancy=redundancy)
    config = mount.configure()
    write_config(evolve(config, clouds=config.clouds[:-1]), mount.paths)
    small_packs(mount)
    mount.start()
    load = Load(mount, files=FILES)
    load.make()
    add_cloud(mount, places[-1])
    return mount, load, places


@pytest.mark.parametrize("redundancy", ["2", pytest.param("3+2", marks=pytest.mark.long)])
def test_levels_come_together_after_add(tmp_path: Path, make_pool: MakePool, redundancy: str) -> None:
    mount, load, places = filled(tmp_path, make_pool, redundancy)
    shown = json.loads(mount.cuckoo("rebalance", "--dry-run", "--json").stdout)
    assert shown["spread"] > 3 * SPREAD_MAX
    assert shown["spread_after"] <= SPREAD_MAX
    assert shown["packs"] > 0
    assert not places[-1].packs(), "a dry run moves nothing"
    said = mount.cuckoo("rebalance", "--dry-run").stdout.decode()
    assert said.splitlines()[0].split() == ["cloud", "used", "of", "full", "after"]
    assert f"would be written anew; the levels would differ by {100 * shown['spread_after']:.1f} %" in said
    with load.running():
        done = rebalance(mount)
    assert done["spread_after"] <= SPREAD_MAX, done
    if not load.written:
        raise AssertionError("nobody wrote meanwhile")
    for name in load.written:
        (mount.path / name).unlink()
    load.written.clear()
    rebalance(mount)
    real = levels(places)
    assert max(real) - min(real) <= SPREAD_MAX, real
    load.verify()
    again = rebalance(mount)
    assert (again["packs"], again["trouble"]) == (0, ""), "what is even stays as it is"
    assert mount.status()["packs"]["degraded"] == 0
    assert_nothing_is_missing(mount)


def test_killed_in_the_middle_and_run_again(tmp_path: Path, make_pool: MakePool) -> None:
    mount, load, places = filled(tmp_path, make_pool, "2")
    slow_down(places, "put", "/packs/", 0.15)
    with load.running(), asked(mount, "rebalance") as progress:
        first = 0
        for told in progress:
            first = first or told.get("packs_left", 0)
            if 0 < told.get("packs_left", 0) <= first - 2:
                break
        load.kill()
    assert len(places[-1].packs()) > 0, "nothing was under way"
    slow_down(places, "put", "/packs/", 0.0)
    mount.start()
    load.verify()
    for name in load.written:
        (mount.path / name).unlink()
    load.written.clear()
    mount.umount()
    result = rebalance(mount)  # not mounted
    assert result["spread_after"] <= SPREAD_MAX, result
    real = levels(places)
    assert max(real) - min(real) <= SPREAD_MAX, real
    mount.start()
    load.verify()
    assert_nothing_is_missing(mount)


@pytest.mark.long
def test_stopped_by_whoever_asked(tmp_path: Path, make_pool: MakePool) -> None:
    """Ctrl-C closes the connection: nothing goes on in the daemon, and nothing is broken."""
    mount, load, places = filled(tmp_path, make_pool, "2")
    slow_down(places, "put", "/packs/", 0.1)
    with asked(mount, "rebalance") as progress:
        for told in progress:
            if told.get("packs_left"):
                break
    slow_down(places, "put", "/packs/", 0.0)
    mount.sync()
    mount.cuckoo("gc", "--keep", "1")  # waits for its turn
    assert json.loads(mount.cuckoo("rebalance", "--dry-run", "--json").stdout)["packs"] > 0
    load.verify()
    mount.umount()
    mount.start()  # an upload that was cut in the middle is withdrawn after a minute, or at the next mount
    assert_nothing_is_missing(mount)

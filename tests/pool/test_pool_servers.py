"""A drive over a folder, S3 on weed and S3 on rclone: what was stored comes back the same from an empty cache."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.pool import trees
from tests.pool.conftest import MakePool
from tests.pool.pooling import take_inventory
from tests.pool.threeservers import ThreeServers

pytestmark = [pytest.mark.mount, pytest.mark.slow]


def store_and_compare(
    tmp_path: Path, make_pool: MakePool, servers: ThreeServers, *, files: int, mib: int, commits: int
) -> None:
    """Store a tree, a big file and a clone; delete the cache; compare all of it with what is outside."""
    source, big, repository = tmp_path / "source", tmp_path / "big", tmp_path / "repository"
    total_bytes = trees.make_source_tree(source, files)
    trees.make_random_file(big, mib)
    trees.make_repository(repository, source, commits=commits)
    mount = make_pool(servers.places, redundancy="2", deadline_s=3000)
    began = time.monotonic()
    mount.start()
    (mount.path / "tree").mkdir()
    trees.copy(source, mount.path / "tree")
    trees.run("cp", big, mount.path / "big")
    trees.clone(repository, mount.path / "clone")
    mount.sync(timeout_s=1200)
    stored = time.monotonic()
    mount.umount()
    servers.reset()
    mount.delete_cache()
    mount.start()
    trees.assert_same(source, mount.path / "tree")
    trees.run("cmp", big, mount.path / "big")
    trees.check_clone(mount.path / "clone")
    read = time.monotonic()
    print(
        f"{files} files with {total_bytes / trees.MIB:.0f} MiB, {mib} MiB, a clone: stored in {stored - began:.1f} s,"
    )
    print(f"compared in {read - stored:.1f} s with {servers.requests()}")
    assert [cloud["state"] for cloud in mount.status()["clouds"]] == ["ok"] * 3
    mount.check()
    mount.umount()
    inventory = take_inventory(mount)
    assert (inventory.orphans, inventory.dangling, inventory.intents, inventory.single) == ([], [], 0, 0)


@pytest.mark.long
def test_three_servers(tmp_path: Path, make_pool: MakePool, three_servers: ThreeServers) -> None:
    store_and_compare(tmp_path, make_pool, three_servers, files=600, mib=64, commits=3)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_three_servers_with_10000_files_and_1_gib(
    tmp_path: Path, make_pool: MakePool, three_servers: ThreeServers
) -> None:
    store_and_compare(tmp_path, make_pool, three_servers, files=10_000, mib=1024, commits=20)

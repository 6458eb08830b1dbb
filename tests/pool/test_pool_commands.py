"""The way a user goes: init with a passphrase, add three clouds, mount, store; then search the clouds for secrets."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from cuckoo_mount.clouds.registry import FAULT_PLAN
from cuckoo_mount.config import read_config, read_drive_key
from tests.pool import trees
from tests.pool.conftest import MakePool
from tests.pool.pooling import Place, PoolMount, take_inventory
from tests.pool.threeservers import ThreeServers

pytestmark = [pytest.mark.mount, pytest.mark.slow]

PASSPHRASE = "correct horse battery staple 1936"


def set_up(mount: PoolMount, folder: Path) -> list[bytes]:
    """Make the drive by commands; return every secret that must not show on a cloud."""
    shown = [PASSPHRASE.encode()]
    passphrase = folder / "passphrase"
    passphrase.write_text(PASSPHRASE + "\n")
    mount.cuckoo("init", "--redundancy", "2", "--passphrase-file", passphrase)
    for place in mount.places:
        sources = []
        for key, value in place.outside.secrets:
            source = folder / f"{place.name}.{key}"
            source.write_text(value + "\n")
            sources += ["--secret", f"{key}=file:{source}"]
            shown.append(value.encode())
        plan = [pair for pair in place.config.options if pair[0] == FAULT_PLAN]
        options = ["--option", "=".join(plan[0])] if plan else []
        mount.cuckoo("cloud", "add", place.name, place.config.url, *sources, *options)
    drive_key = read_drive_key(mount.paths.key_file)
    recovery = mount.cuckoo("key", "show-recovery").stdout.strip()
    return [
        *shown,
        drive_key,
        drive_key.hex().encode(),
        base64.b64encode(drive_key),
        base64.b32encode(drive_key)[:40],
        recovery,
        recovery.replace(b"-", b""),
    ]


def objects(places: tuple[Place, ...]) -> dict[tuple[str, str], bytes]:
    return {(place.name, name): place.read(name) for place in places for name in place.sizes()}


def test_from_init_to_an_empty_cache(tmp_path: Path, make_pool: MakePool, three_servers: ThreeServers) -> None:
    source = tmp_path / "source"
    trees.make_source_tree(source, 200)
    mount = make_pool(three_servers.places)
    shown = set_up(mount, tmp_path)
    mount.start()
    trees.copy(source, mount.path)
    mount.sync()
    listed = json.loads(mount.cuckoo("cloud", "list", "--json").stdout)
    assert "folder" in str(listed)
    assert not any(secret.decode() in str(listed) for secret in shown[:3])
    mount.umount()
    mount.delete_cache()
    mount.start()
    trees.assert_same(source, mount.path)
    mount.umount()
    found = objects(three_servers.places)
    kinds = {name.split("/")[2] for _, name in found}
    assert kinds == {"drive.json", "keys", "lease", "meta", "packs"}
    for (cloud, name), data in found.items():
        for secret in shown:
            assert secret not in data, f"{name} on {cloud} shows a secret"
    inventory = take_inventory(mount)
    assert (inventory.orphans, inventory.dangling, inventory.single) == ([], [], 0)
    config = read_config(mount.paths)
    assert config is not None
    assert [cloud.name for cloud in config.clouds] == ["folder", "weed", "rclone"]
    assert config.redundancy == "2"

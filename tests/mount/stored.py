"""What lies on the cloud of a mount's drive, compared with what the metadata knows; for tests of crashes and of gc."""

from __future__ import annotations

import trio

from cuckoo_mount.config import read_config
from cuckoo_mount.drive import METADATA_FILE
from cuckoo_mount.format import pack_share_name, packs_prefix
from cuckoo_mount.metadata.store import open_store
from tests.mount.mounting import Mount


def objects(mount: Mount) -> dict[str, int]:
    """Return the packs on the cloud, by name, with their sizes; not the driver's own temporary files."""
    config = read_config(mount.paths)
    assert config is not None
    root = mount.cloud / packs_prefix(config.drive_id)
    files = [path for path in root.rglob("*") if path.is_file() and not path.name.startswith("~")]
    return {str(path.relative_to(mount.cloud)): path.stat().st_size for path in files}


async def _explained(mount: Mount) -> set[str]:
    config = read_config(mount.paths)
    assert config is not None
    async with await open_store(mount.paths.state / METADATA_FILE) as store:
        assert await store.check_invariants() == []
        packs = await store.packs(100_000)
    return {pack_share_name(config.drive_id, pack.pack_id, share.share) for pack in packs for share in pack.shares}


def unexplained(mount: Mount) -> set[str]:
    """Return the objects that the metadata knows nothing of; of a drive that is not mounted."""
    return set(objects(mount)) - trio.run(_explained, mount)

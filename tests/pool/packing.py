"""Packs through the real PackWriter and MultiFS onto folders, in this process: thousands of packs in seconds.

Used by the tests of weights and of failing writes.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from cuckoo_mount.clouds.base import CloudSettings
from cuckoo_mount.clouds.registry import FAULT_PLAN
from cuckoo_mount.multi.health import Health
from cuckoo_mount.multi.multifs import MultiFS
from cuckoo_mount.multi.policies import Policies
from cuckoo_mount.multi.records import CloudEntry
from cuckoo_mount.packs.writer import PackWriter
from cuckoo_mount.types import CloudName
from tests.packs.packtools import DRIVE, KEYS, InlinePool, SmallCatalogue, make_cloud, make_sources

KIB: Final = 1 << 10
MIB: Final = 1 << 20
UNIT_BYTES: Final = 2 * MIB
"""Capacity per weight."""
SEED: Final = 20_261_122


class PackPool:
    """Clouds a test names with their weights; what was stored is in `catalogue.packs`."""

    def __init__(self, root: Path, policy: str, *, weights: Mapping[str, int]) -> None:
        self.root = root
        self.clouds = {CloudName(name): self._entry(name, weight) for name, weight in weights.items()}
        self.health = Health(jitter=lambda: 0.0)
        self.multifs = MultiFS(self.clouds, InlinePool(), self.health, DRIVE)
        self.catalogue = SmallCatalogue()
        self.largest_bytes = 0
        self.writer = PackWriter(
            self.catalogue,
            self.multifs,
            InlinePool(),
            KEYS,
            root / "staging",
            drive_id=DRIVE,
            encrypted=True,
            policies=Policies(policy),
        )
        self._dice = random.Random(SEED)

    def _entry(self, name: str, weight: int) -> CloudEntry:
        entry = make_cloud(self.root, name, capacity_bytes=weight * UNIT_BYTES)
        settings = CloudSettings(name=name, url=entry.settings.url, options=((FAULT_PLAN, self.plan(name)),))
        return CloudEntry(settings=settings, cloud_id=entry.cloud_id, capacity_bytes=entry.capacity_bytes)

    def plan(self, name: str) -> str:
        """Return the path of a cloud's fault plan."""
        return str(self.root / f"{name}.plan")

    async def begin(self) -> None:
        await self.multifs.probe()
        await self.writer.recover()

    async def store(self, total_bytes: int, *, largest_bytes: int = 48 * KIB) -> None:
        """Store packs of random sizes until they are `total_bytes` in all, each counted once."""
        while total_bytes > 0:
            size_bytes = self._dice.randrange(largest_bytes // 4, largest_bytes)
            built = await self.writer.build(make_sources(self.root, [self._dice.randbytes(size_bytes)]))
            self.catalogue.finish(await self.writer.store(built))
            self.largest_bytes = max(self.largest_bytes, built.size_bytes)
            total_bytes -= built.size_bytes

    def used(self) -> dict[str, int]:
        """Return what really lies on each cloud."""
        return {str(name): _bytes_below(Path(entry.settings.url)) for name, entry in self.clouds.items()}


def _bytes_below(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.[0-9]"))

"""Which packs are worth writing anew: pure functions of how full they are.

Used by packs/compaction.py and tests.  A *sparse* pack is mostly dead bytes.  A *small* one is far from full; small
ones are merged with others of about their size only, as in a log-structured merge tree, so that a byte is written again
at most once per tier (four of them), however long a trickle of small files goes on.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Final

from cuckoo_mount.format import ENTRY_BYTES, FOOTER_BYTES, HEADER_BYTES
from cuckoo_mount.types import PackFill, PackRow

MAX_CHUNKS_PER_PACK: Final = 4096
"""So many chunks close a pack, however small they are: its index is 80 bytes for each."""
SPARSE_FILL: Final = 0.5
"""In the background a pack is written anew when at most this part of it lives."""
SPARSE_GAIN: Final = 16
"""… and when that frees at least 1/16 of a full pack: less is not worth two requests."""
STORED_RATIO: Final = 1.25
"""`gc` goes on until what is stored is at most this much more than what lives."""
SMALL: Final = 4
"""A pack is small when it is less than 1/4 full."""
MERGE_COUNT: Final = 8
"""So many small packs of one tier are merged; also the ratio between tiers."""
_SEAL_BYTES: Final = 17

Batch = tuple[PackFill, ...]


def needed_bytes(pack: PackFill) -> int:
    """Return how long a pack would at most be that has only what lives in this one."""
    return HEADER_BYTES + FOOTER_BYTES + _SEAL_BYTES + pack.used_bytes + ENTRY_BYTES * pack.versions


def fullness(pack: PackFill, pack_size_bytes: int) -> float:
    """Return how much of what closes a pack lives in this one, 0 … about 1: plain bytes, or the number of chunks."""
    return max(pack.live_bytes / pack_size_bytes, pack.versions / MAX_CHUNKS_PER_PACK)


def batches_of(packs: Iterable[PackRow], pack_size_bytes: int) -> Iterator[Batch]:
    """Yield all of these packs in their order, small ones together as far as they fit into one."""
    batch: list[PackRow] = []
    live = 0
    for pack in packs:
        if batch and live + pack.live_bytes > pack_size_bytes:
            yield tuple(fill_of(pack) for pack in batch)
            batch, live = [], 0
        batch.append(pack)
        live += pack.live_bytes
    if batch:
        yield tuple(fill_of(pack) for pack in batch)


def fill_of(pack: PackRow) -> PackFill:
    """Return how much of a pack lives; how many versions that is, is not counted."""
    return PackFill(pack.number, pack.policy, pack.size_bytes, pack.live_bytes, pack.used_bytes, 0)


def choose_now_and_then(packs: Sequence[PackFill], pack_size_bytes: int) -> list[Batch]:
    """Return batches, each to become one pack of one policy, that are worth it while nobody asked for it."""
    return [batch for group in _by_policy(packs) for batch in _choose_some(group, pack_size_bytes)]


def choose_thoroughly(packs: Sequence[PackFill], pack_size_bytes: int) -> list[Batch]:
    """Return batches after which what is stored is within `STORED_RATIO` and small packs are merged, or none."""
    return [batch for group in _by_policy(packs) for batch in _choose_all(group, pack_size_bytes)]


def _by_policy(packs: Sequence[PackFill]) -> Collection[Sequence[PackFill]]:
    groups: dict[str, list[PackFill]] = {}
    for pack in packs:
        groups.setdefault(pack.policy, []).append(pack)
    return groups.values()


def _choose_some(packs: Sequence[PackFill], pack_size_bytes: int) -> list[Batch]:
    sparse = [
        pack
        for pack in packs
        if needed_bytes(pack) <= SPARSE_FILL * pack.size_bytes
        and pack.size_bytes - needed_bytes(pack) >= pack_size_bytes // SPARSE_GAIN
    ]
    taken = {pack.number for pack in sparse}
    tiers: dict[int, list[PackFill]] = {}
    for pack in packs:
        part = fullness(pack, pack_size_bytes)
        if pack.number not in taken and part < 1 / SMALL:
            tiers.setdefault(math.floor(math.log(part, MERGE_COUNT)), []).append(pack)
    batches = fill_batches(sparse, pack_size_bytes)
    for _, members in sorted(tiers.items()):
        batches += [batch for batch in fill_batches(members, pack_size_bytes) if len(batch) >= MERGE_COUNT]
    return batches


def choose_to_squeeze(packs: Sequence[PackFill], pack_size_bytes: int) -> list[Batch]:
    """Return batches, those that free most for what is written first, for clouds that have no room any more."""
    wanted = [pack for pack in packs if pack.size_bytes - needed_bytes(pack) >= pack_size_bytes // SPARSE_GAIN]
    emptiest = sorted(wanted, key=lambda pack: needed_bytes(pack) / pack.size_bytes)
    return [batch for group in _by_policy(emptiest) for batch in fill_batches(group, pack_size_bytes)]


def _choose_all(packs: Sequence[PackFill], pack_size_bytes: int) -> list[Batch]:
    stored = sum(pack.size_bytes for pack in packs)
    needed = sum(needed_bytes(pack) for pack in packs)
    sparse: list[PackFill] = []
    for pack in sorted(packs, key=lambda pack: needed_bytes(pack) / pack.size_bytes):
        gain = pack.size_bytes - needed_bytes(pack)
        if stored <= STORED_RATIO * needed or gain <= 0:
            break
        sparse.append(pack)
        stored -= gain
    taken = {pack.number for pack in sparse}
    small = [pack for pack in packs if pack.number not in taken and fullness(pack, pack_size_bytes) < 1 / SMALL]
    # Together, so that sparse ones and small ones fill each other up; alone a small one is not written again.
    batches = fill_batches(sorted([*sparse, *small], key=lambda pack: pack.number), pack_size_bytes)
    return [batch for batch in batches if len(batch) > 1 or batch[0].number in taken]


def fill_batches(packs: Iterable[PackFill], pack_size_bytes: int) -> list[Batch]:
    """Part packs into batches that are at most one full pack, keeping the order: neighbours stay neighbours."""
    batches: list[Batch] = []
    batch: list[PackFill] = []
    live = versions = 0
    for pack in packs:
        live, versions = live + pack.live_bytes, versions + pack.versions
        if batch and (live > pack_size_bytes or versions > MAX_CHUNKS_PER_PACK):
            batches.append(tuple(batch))
            batch, live, versions = [], pack.live_bytes, pack.versions
        batch.append(pack)
    if batch:
        batches.append(tuple(batch))
    return batches

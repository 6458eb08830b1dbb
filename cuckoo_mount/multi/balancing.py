"""Which packs are written anew so that clouds fill evenly, and whether a cloud can be emptied: pure functions.

Used by rebalancing.py and draining.py; the neighbour of placement.py, which has the quantity that is evened out, the
fill level.  Nothing can be moved to a cloud of choice: a pack that is written anew goes where `placement.choose` says,
so the plan foresees that, and a pack is chosen only if that makes things better.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

from attrs import evolve, frozen

from cuckoo_mount.multi.placement import CloudState, choose, fill_level, is_wanted, total_bytes, usable_bytes
from cuckoo_mount.multi.redundancy import Policy
from cuckoo_mount.types import CloudName, PackNo

SPREAD_MAX: Final = 0.05
"""Fill levels that differ by no more than this are even."""


@frozen(slots=True)
class PackPlace:
    """Where a pack is: `clouds` have a share of `share_bytes` each.  `shares`: how many it gets when written anew."""

    number: PackNo
    share_bytes: int
    shares: int
    clouds: tuple[CloudName, ...]


@frozen(slots=True)
class Moves:
    """Packs to be written anew, in this order, and the clouds as they are then, in the order they were given."""

    packs: tuple[PackNo, ...]
    after: tuple[CloudState, ...]


def takes_part(cloud: CloudState) -> bool:
    """Return whether a cloud's level can be evened out: it is up, and may get something new."""
    return cloud.is_up and is_wanted(cloud)


def spread(clouds: Sequence[CloudState]) -> float:
    """Return by how much the levels of those that take part differ at most, 0 to 1."""
    levels = [fill_level(cloud) for cloud in clouds if takes_part(cloud)]
    return max(levels) - min(levels) if levels else 0.0


def choose_moves(
    clouds: Sequence[CloudState],
    packs: Sequence[PackPlace],
    *,
    spread_max: float = SPREAD_MAX,
    most_bytes: float = math.inf,
) -> Moves:
    """Return what to write anew until levels differ by at most `spread_max`, or nothing more would help.

    `most_bytes`: of all shares of these packs; from there on it is enough for now.

    Each pack at most once; the fullest cloud's go first, big ones before small ones.  Each step leaves the fullest
    cloud as it is or emptier, and the spread as it is or smaller.  Packs with a share on a cloud that does not take
    part stay, and so do those that lack a share: they are healed.
    """
    states = {cloud.name: cloud for cloud in clouds}
    waiting = _by_cloud(states, packs)
    moved: dict[PackNo, None] = {}
    moved_bytes = 0
    while waiting and moved_bytes < most_bytes and spread(list(states.values())) > spread_max:
        fullest = max(waiting, key=lambda name: (fill_level(states[name]), name))
        pack = waiting[fullest].pop()
        if not waiting[fullest]:
            del waiting[fullest]
        if pack.number not in moved and (after := _moved(states, pack)) is not None:
            moved[pack.number] = None
            moved_bytes += pack.share_bytes * pack.shares
            states |= after
    return Moves(tuple(moved), tuple(states[cloud.name] for cloud in clouds))


def _by_cloud(states: Mapping[CloudName, CloudState], packs: Sequence[PackPlace]) -> dict[CloudName, list[PackPlace]]:
    """Return the packs that may move by the clouds they are on, the first to go last."""
    waiting: dict[CloudName, list[PackPlace]] = {}
    for pack in sorted(packs, key=lambda pack: (pack.share_bytes, -pack.number)):
        if len(pack.clouds) >= pack.shares and all(name in states and takes_part(states[name]) for name in pack.clouds):
            for name in pack.clouds:
                waiting.setdefault(name, []).append(pack)
    return waiting


def _moved(states: Mapping[CloudName, CloudState], pack: PackPlace) -> dict[CloudName, CloudState] | None:
    """Return the clouds that change when this pack is written anew; None if that makes nothing better."""
    before = list(states.values())
    # The old shares are there until the new ones are.
    chosen = choose(before, pack.share_bytes, pack.shares)
    if len(chosen) < pack.shares:
        return None
    old, new = set(pack.clouds), set(chosen)
    after = {name: _with(states[name], -pack.share_bytes) for name in old - new}
    after |= {name: _with(states[name], pack.share_bytes) for name in new - old}
    whole = [*{**states, **after}.values()]
    gain = sum(_weight(states[name]) - _weight(cloud) for name, cloud in after.items())
    if gain <= 0 or _highest(whole) > _highest(before) or spread(whole) > spread(before):
        return None
    return after


def _with(cloud: CloudState, difference_bytes: int) -> CloudState:
    free_bytes = None if cloud.free_bytes is None else max(0, cloud.free_bytes - difference_bytes)
    return evolve(cloud, placed_bytes=max(0, cloud.placed_bytes + difference_bytes), free_bytes=free_bytes)


def _weight(cloud: CloudState) -> float:
    """Return what is least in sum when all levels are the same: each step makes that smaller, so steps end."""
    return cloud.placed_bytes * fill_level(cloud)


def _highest(clouds: Sequence[CloudState]) -> float:
    return max((fill_level(cloud) for cloud in clouds if takes_part(cloud)), default=0.0)


def fits_without(clouds: Sequence[CloudState], name: CloudName, policy: Policy, stored_bytes: int) -> bool:
    """Return whether packs of `stored_bytes` in all can lie on the other clouds, with all shares that `policy` wants.

    Clouds count even if down.
    """
    rooms = [total_bytes(cloud) for cloud in clouds if cloud.name != name and is_wanted(cloud)]
    return len(rooms) >= policy.shares and policy.data * usable_bytes(rooms, policy.shares) >= stored_bytes

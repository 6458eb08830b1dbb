"""Which clouds get the shares of a pack: pure functions of what is known about the clouds.

Used by multi/multifs.py.  Nothing here waits, remembers or looks at a clock; the same question gives the same answer.
Rule: distinct clouds always; distinct groups as far as there are any; within that those that are well before slow ones,
and the largest deficit first.  A cloud's
deficit is the part of its room that is still free, so that clouds of different sizes fill up evenly.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

from attrs import frozen

from cuckoo_mount.types import CloudName

UNKNOWN_ROOM_BYTES: Final = 1 << 40
"""Room assumed on a cloud that neither tells its space nor has a capacity set: it is filled by bytes placed alone."""


@frozen(slots=True, kw_only=True)
class CloudState:
    """What placement knows about one cloud.

    `is_up`: identity confirmed and last requests answered.  `is_full`: it said so lately.  `is_slow`: or fails often,
    wants fewer requests, or has perhaps stopped answering: it takes what nobody else in a group as good can.
    `is_no_new`: what is there stays, nothing comes.  `placed_bytes`: of our shares, including those under way.
    `capacity_bytes`: limit the user set on them, or None.  `free_bytes`: what the cloud says is free, or None if it
    does not say.  `reserve_bytes`: of that, how much is not ours to take.
    `spare_bytes`: of what we may take, how much is not for what is asked about here.
    `group`: clouds with the same non-empty group may be lost together.
    """

    name: CloudName
    is_up: bool = True
    is_full: bool = False
    is_slow: bool = False
    is_read_only: bool = False
    is_no_new: bool = False
    placed_bytes: int = 0
    capacity_bytes: int | None = None
    free_bytes: int | None = None
    reserve_bytes: int = 0
    spare_bytes: int = 0
    group: str = ""


def room_bytes(cloud: CloudState) -> int | None:
    """Return how many more bytes may be placed there, ≥ 0, or None where nothing limits it."""
    limits = []
    if cloud.capacity_bytes is not None:
        limits.append(cloud.capacity_bytes - cloud.placed_bytes)
    if cloud.free_bytes is not None:
        limits.append(cloud.free_bytes - cloud.reserve_bytes)
    return max(0, min(limits) - cloud.spare_bytes) if limits else None


def total_bytes(cloud: CloudState) -> int:
    """Return how many bytes of ours the cloud can have in all."""
    room = room_bytes(cloud)
    return cloud.placed_bytes + (max(0, UNKNOWN_ROOM_BYTES - cloud.placed_bytes) if room is None else room)


def fill_level(cloud: CloudState) -> float:
    """Return which part of that is used, 0 to 1; 1 where there is no room at all.  What placement evens out."""
    total = total_bytes(cloud)
    return cloud.placed_bytes / total if total else 1.0


def is_wanted(cloud: CloudState) -> bool:
    """Return whether the user lets new shares go there."""
    return not (cloud.is_read_only or cloud.is_no_new)


def can_take(cloud: CloudState, size_bytes: int) -> bool:
    """Return whether a share of `size_bytes` may go there now."""
    if not cloud.is_up or cloud.is_full or not is_wanted(cloud):
        return False
    room = room_bytes(cloud)
    return room is None or room >= size_bytes


def choose(
    clouds: Sequence[CloudState], size_bytes: int, copies: int, *, taken: Collection[CloudName] = ()
) -> list[CloudName]:
    """Return up to `copies` distinct clouds for shares of `size_bytes` each, best first; fewer if fewer can take one.

    `taken`: clouds that hold shares of the same pack already; they are not chosen, and others of their groups last.
    """
    groups = {cloud.group for cloud in clouds if cloud.name in taken and cloud.group}
    candidates = [cloud for cloud in clouds if cloud.name not in taken and can_take(cloud, size_bytes)]
    chosen: list[CloudName] = []
    while candidates and len(chosen) < copies:
        best = min(candidates, key=lambda cloud: (cloud.group in groups, cloud.is_slow, *_preference(cloud)))
        candidates.remove(best)
        chosen.append(best.name)
        if best.group:
            groups.add(best.group)
    return chosen


def largest_share_bytes(clouds: Sequence[CloudState], shares: int, *, needed: int, at_least: int) -> int:
    """Return how long shares may be at most so that `shares` distinct clouds can take one each now.

    Where fewer than `shares` can take `at_least` bytes: all of these.  0 where they are fewer than `needed`.
    """
    rooms = [room_bytes(cloud) for cloud in clouds if can_take(cloud, at_least)]
    sizes = sorted((UNKNOWN_ROOM_BYTES if room is None else room for room in rooms), reverse=True)
    count = min(shares, len(sizes))
    return sizes[count - 1] if count >= max(needed, 1) else 0


def _preference(cloud: CloudState) -> tuple[float, int, str]:
    # Smallest first.  The name makes the order total: equal clouds must not depend on the order they were added in.
    return (fill_level(cloud), cloud.placed_bytes, cloud.name)


def usable_bytes(rooms: Sequence[int], copies: int) -> int:
    """Return how many bytes can be stored `copies` times on distinct clouds with these rooms (bytes, ≥ 0).

    With fewer clouds than copies, as often as there are clouds.  A cloud bigger than the others together cannot be used
    in full: x bytes fit if every cloud takes at most x and all together take copies · x.
    """
    copies = min(copies, len(rooms))
    if copies == 0:
        return 0
    low, high = 0, sum(rooms) // copies
    while low < high:
        middle = (low + high + 1) // 2
        if sum(min(room, middle) for room in rooms) >= copies * middle:
            low = middle
        else:
            high = middle - 1
    return low

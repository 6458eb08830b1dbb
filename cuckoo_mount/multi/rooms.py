"""Who has how much room: what the metadata counts, what clouds say, and what is on its way.

Used by multi/multifs.py and multi/storing.py.  For one trio loop, never waits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from attrs import evolve

from cuckoo_mount.clouds.base import Space
from cuckoo_mount.multi.health import Health
from cuckoo_mount.multi.placement import UNKNOWN_ROOM_BYTES, CloudState, is_wanted, room_bytes, usable_bytes
from cuckoo_mount.multi.records import CloudEntry
from cuckoo_mount.multi.redundancy import Policy
from cuckoo_mount.types import CloudName, CloudUse


class Rooms:
    """The book of room and usage per cloud; every change is one synchronous step."""

    def __init__(self, clouds: Mapping[CloudName, CloudEntry], health: Health) -> None:
        self._clouds = clouds
        self._health = health
        self._usage: dict[CloudName, tuple[int, int]] = {}
        self._under_way: dict[CloudName, int] = {}
        self._space: dict[CloudName, Space | None] = {}
        self._changed: set[CloudName] = set()

    def set_usage(self, usage: Mapping[CloudName, tuple[int, int]]) -> None:
        """Replace what is counted per cloud: (packs with a share there, bytes of those shares)."""
        self._usage = dict(usage)

    def usage(self, cloud: CloudName) -> tuple[int, int]:
        """Return (packs, bytes) on a cloud."""
        return self._usage.get(cloud, (0, 0))

    def set_space(self, cloud: CloudName, space: Space | None) -> None:
        """Take note of what a cloud said about its room just now; None: that it never tells."""
        self._space[cloud] = space
        self._changed.discard(cloud)

    def forget_space(self, cloud: CloudName) -> None:
        """Drop what a cloud said about its room."""
        self._space.pop(cloud, None)

    def may_tell(self, cloud: CloudName) -> bool:
        """Return whether it is worth asking the cloud for its room."""
        return cloud not in self._space or self._space[cloud] is not None

    def changed(self) -> list[CloudName]:
        """Return the clouds on which something was stored or deleted since they last told their room, or never told."""
        return [name for name in self._clouds if name in self._changed or name not in self._space]

    def begin(self, cloud: CloudName, size_bytes: int) -> None:
        """Count a share as placed while it is on its way, so that others see the room it takes."""
        self._under_way[cloud] = self._under_way.get(cloud, 0) + size_bytes

    def end(self, cloud: CloudName, size_bytes: int, *, stored: bool) -> None:
        """Count it as stored, or as not there; ends what `begin` began."""
        self._under_way[cloud] -= size_bytes
        if stored:
            packs, used = self.usage(cloud)
            self._usage[cloud] = (packs + 1, used + size_bytes)
            self._add_free(cloud, -size_bytes)
            self._changed.add(cloud)

    def sending_bytes(self, cloud: CloudName) -> int:
        """Return the bytes of shares on their way to a cloud."""
        return self._under_way.get(cloud, 0)

    def note_deleted(self, cloud: CloudName, sizes_bytes: Sequence[int]) -> None:
        """Count shares of these sizes as gone."""
        packs, used = self.usage(cloud)
        self._usage[cloud] = (max(0, packs - len(sizes_bytes)), max(0, used - sum(sizes_bytes)))
        self._add_free(cloud, sum(sizes_bytes))
        self._changed.add(cloud)

    def _add_free(self, cloud: CloudName, difference_bytes: int) -> None:
        space = self._space.get(cloud)
        if space is not None:
            self._space[cloud] = evolve(space, free_bytes=max(0, space.free_bytes + difference_bytes))

    def capacity_bytes(self, cloud: CloudName) -> int | None:
        """Return what the user allowed there, or else what the cloud says it has in all."""
        capacity, space = self._clouds[cloud].capacity_bytes, self._space.get(cloud)
        return capacity if capacity is not None or space is None else space.total_bytes

    def states(self) -> list[CloudState]:
        """Return what placement needs to know about every cloud, as of now."""
        return [self._state(name, entry) for name, entry in self._clouds.items()]

    def usable(self, policy: Policy) -> Space:
        """Return the plain bytes that fit in all and still, stored as `policy` wants.  Clouds count even if down."""
        free, total = [], []
        for state in self.states():
            if not is_wanted(state):
                continue
            room = room_bytes(state)
            room = UNKNOWN_ROOM_BYTES if room is None else room
            free.append(room)
            total.append(room + state.placed_bytes)
        return Space(*(policy.data * usable_bytes(rooms, policy.shares) for rooms in (total, free)))

    def _state(self, name: CloudName, entry: CloudEntry) -> CloudState:
        space, under_way = self._space.get(name), self._under_way.get(name, 0)
        return CloudState(
            name=name,
            is_up=self._health.is_up(name),
            is_full=self._health.takes_nothing(name),
            is_slow=not self._health.is_well(name) or self._health.is_suspect(name),
            is_read_only=entry.read_only,
            is_no_new=entry.use is not CloudUse.NORMAL,
            placed_bytes=self.usage(name)[1] + under_way,
            capacity_bytes=entry.capacity_bytes,
            free_bytes=None if space is None else max(0, space.free_bytes - under_way),
            reserve_bytes=entry.reserve_bytes,
            group=entry.group,
        )

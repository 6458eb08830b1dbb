"""Who has how much room: what the metadata counts, what clouds say, and what is on its way.

Used by multi/multifs.py and multi/storing.py.  For one trio loop, never waits.

Not all room is for what programs write.  A cloud keeps `spare_bytes`, about one share of a full pack, for compaction
and healing: full to the last byte, nothing could be rewritten, and half empty packs would never become room again.
Where the cloud itself tells its room, `epochs_bytes` stay for epochs, without which nothing may be deleted.
Programs get NoSpace with all of the spare left (`usable`); packs of what was accepted may take half of it, because
what is left on each cloud is never a whole number of chunks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from attrs import evolve

from cuckoo_mount.clouds.base import Space
from cuckoo_mount.multi.health import Health
from cuckoo_mount.multi.placement import (
    UNKNOWN_ROOM_BYTES,
    CloudState,
    choose,
    is_wanted,
    largest_share_bytes,
    room_bytes,
    usable_bytes,
)
from cuckoo_mount.multi.records import CloudEntry
from cuckoo_mount.multi.redundancy import ONE_COPY, Policy
from cuckoo_mount.types import CHUNK_SIZE_BYTES, PACK_SIZE_BYTES, CloudName, CloudUse

SPARE_PART: Final = 0.05
"""At most this part of a cloud is spare, …"""
SPARE_MIN_BYTES: Final = 2 * CHUNK_SIZE_BYTES + (128 << 10)
"""… but at least this, or a quarter of a tiny one, so that one chunk that was accepted finds room."""
EPOCHS_PART: Final = 0.02
EPOCHS_MAX_BYTES: Final = 16 << 20


class Rooms:
    """The book of room and usage per cloud; every change is one synchronous step.

    `share_bytes`: how long the shares of a full pack are.
    """

    def __init__(
        self, clouds: Mapping[CloudName, CloudEntry], health: Health, *, share_bytes: int = PACK_SIZE_BYTES
    ) -> None:
        self._clouds = clouds
        self._health = health
        self._share_bytes = share_bytes
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

    def check(self, usage: Mapping[CloudName, tuple[int, int]], *, is_exact: bool) -> list[str]:
        """Return how this differs from `usage` of the metadata: more may be counted, of packs that have no rows yet.

        `is_exact`: there are no such packs.
        """
        problems = []
        for name in self._clouds:
            counted, known = self.usage(name), usage.get(name, (0, 0))
            if counted != known and (is_exact or counted[0] < known[0] or counted[1] < known[1]):
                problems.append(f"I-34: {counted} packs and bytes are counted on cloud {name}, the rows say {known}")
        return problems

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

    def note_deleted(self, clouds: Iterable[CloudName], share_bytes: int) -> None:
        """Count one share of that size as gone on each of these clouds."""
        for cloud in clouds:
            packs, used = self.usage(cloud)
            self._usage[cloud] = (max(0, packs - 1), max(0, used - share_bytes))
            self._add_free(cloud, share_bytes)
            self._changed.add(cloud)

    def _add_free(self, cloud: CloudName, difference_bytes: int) -> None:
        space = self._space.get(cloud)
        if space is not None:
            self._space[cloud] = evolve(space, free_bytes=max(0, space.free_bytes + difference_bytes))

    def capacity_bytes(self, cloud: CloudName) -> int | None:
        """Return what the user allowed there, or else what the cloud says it has in all."""
        capacity, space = self._clouds[cloud].capacity_bytes, self._space.get(cloud)
        return capacity if capacity is not None or space is None else space.total_bytes

    def states(self, *, rewriting: bool = True) -> list[CloudState]:
        """Return what placement needs to know about every cloud, as of now.

        `rewriting`: for what is stored already, which may take the spare.
        """
        return [
            self._state(name, 0 if rewriting else self.spare_bytes(name) // 2, self.sending_bytes(name))
            for name in self._clouds
        ]

    def spare_bytes(self, name: CloudName) -> int:
        """Return how much of a cloud's room is kept for compaction and healing."""
        capacity = self.capacity_bytes(name)
        if capacity is None:
            return 0
        return max(min(SPARE_MIN_BYTES, capacity // 4), min(self._share_bytes, int(capacity * SPARE_PART)))

    def short(self) -> list[CloudName]:
        """Return the clouds that have no room for programs' data, or said that they are full."""
        return [name for name in self._clouds if self._is_wanted(name) and self._room_bytes(name) <= 0]

    def has_room(self, pack_bytes: int, policy: Policy) -> bool:
        """Return whether enough clouds that are up would take a share of a pack of that size, as far as is known."""
        chosen = choose(self.states(rewriting=False), policy.share_bytes(pack_bytes), policy.data)
        return len(chosen) == policy.data

    def largest_pack_bytes(self, policy: Policy, *, at_least: int) -> int:
        """Return how long a pack may be at most so that it gets as many shares as one of `at_least` bytes; 0: none."""
        size = policy.share_bytes(at_least)
        states = self.states(rewriting=False)
        return policy.data * largest_share_bytes(states, policy.shares, needed=policy.data, at_least=size)

    def usable(self, policy: Policy = ONE_COPY) -> Space:
        """Return the plain bytes of programs that fit in all and still, stored as `policy` wants.

        Never asks a cloud: what they told last, and what was stored since.  Clouds that are down count as they were, so
        that `df` does not jump.  What is unsent is still to be subtracted, what is under way included.
        """
        free, total = [], []
        borrowed = 0
        for name in self._clouds:
            if self._is_wanted(name):
                room = self._room_bytes(name)
                borrowed += max(0, -room)
                free.append(max(0, room))
                total.append(max(0, room + self.usage(name)[1]))
        free_bytes = policy.data * usable_bytes(free, policy.shares)
        total_bytes = policy.data * usable_bytes(total, policy.shares)
        # What packs took of the spare is given back first: else each cloud would be filled a little more in its turn.
        return Space(total_bytes, max(0, free_bytes - policy.data * borrowed // policy.shares))

    def _is_wanted(self, name: CloudName) -> bool:
        return is_wanted(self._state(name, 0, 0))

    def _room_bytes(self, name: CloudName) -> int:
        """Return the room for programs' data; negative as far as the spare was taken."""
        if self._health.takes_nothing(name):
            return 0
        room = room_bytes(self._state(name, 0, 0))
        return UNKNOWN_ROOM_BYTES if room is None else room - self.spare_bytes(name)

    def _state(self, name: CloudName, spare_bytes: int, under_way: int) -> CloudState:
        entry, space = self._clouds[name], self._space.get(name)
        free_bytes = None
        if space is not None:
            for_epochs = min(EPOCHS_MAX_BYTES, int(space.total_bytes * EPOCHS_PART))
            free_bytes = max(0, space.free_bytes - under_way - for_epochs)
        return CloudState(
            name=name,
            is_up=self._health.is_up(name),
            is_full=self._health.takes_nothing(name),
            is_slow=not self._health.is_well(name) or self._health.is_suspect(name),
            is_read_only=entry.read_only,
            is_no_new=entry.use is not CloudUse.NORMAL,
            placed_bytes=self.usage(name)[1] + under_way,
            capacity_bytes=entry.capacity_bytes,
            free_bytes=free_bytes,
            reserve_bytes=entry.reserve_bytes,
            spare_bytes=spare_bytes,
            group=entry.group,
        )

"""Which epochs make up the drive: the newest unbroken chain among what the clouds show.

Used by recovery, at mount and before each epoch.  Pure functions.  Nothing here is read but names, headers and footers;
that an object has the hash its footer gives is verified when it is read whole (objects.py).  Whoever finds that one has
not leaves that sighting out and chooses again.

The rule: an object can be loaded if it is a snapshot, or a journal whose header names an object that can be loaded, has
the number before and no higher term.  Of those that can be loaded the one with the highest term is the tip, then the
one with the highest epoch.  By the term alone a stalled writer's objects are never taken for the drive, however many it
still sends: it does not raise its term, and whoever took over did.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Final, Literal

from attrs import field, frozen

from cuckoo_mount.epochformat import NO_PREDECESSOR, EpochHeader, EpochName
from cuckoo_mount.types import CloudName

Standing = Literal["equal", "behind", "ahead", "forked", "unknown"]

NO_SNAPSHOT: Final = "nothing is left of the epochs before it"


@frozen(slots=True)
class Sighting:
    """One object on one cloud.  `ends`: its header and the object hash that its footer gives; None: not readable."""

    cloud: CloudName
    name: EpochName
    ends: tuple[EpochHeader, bytes] | None


@frozen(slots=True)
class EpochObject:
    """An object as one or more clouds show it.  `clouds`: those that do, sorted."""

    name: EpochName
    header: EpochHeader
    object_hash: bytes
    clouds: tuple[CloudName, ...]


@frozen(slots=True)
class Unusable:
    """An object that is newer than the tip and cannot be loaded, and why not."""

    name: EpochName
    reason: str


@frozen(slots=True)
class Fork:
    """A branch that is not the drive.  `newest`: its last object.  `after`: the last epoch both have in common, None if
    none is known."""

    newest: EpochObject
    after: int | None


@frozen(slots=True, kw_only=True)
class Chain:
    """What was chosen, and what was not.

    `parts`: what to load: a snapshot, then the journals after it; empty if nothing can be loaded.
    `history`: the parts and all that is known before them, oldest first, each named by the next one.
    `newer`: not empty means that the clouds know of something newer than `tip`, which needs `--accept-stale`.
    `missing`: per cloud that answered, the parts it lacks.  `damaged`: sightings whose ends could not be read.
    """

    parts: tuple[EpochObject, ...] = ()
    history: tuple[EpochObject, ...] = ()
    newer: tuple[Unusable, ...] = ()
    forks: tuple[Fork, ...] = ()
    missing: Mapping[CloudName, tuple[EpochName, ...]] = field(factory=dict)
    damaged: tuple[tuple[CloudName, EpochName], ...] = ()

    @property
    def tip(self) -> EpochObject | None:
        """The newest epoch that can be loaded."""
        return self.parts[-1] if self.parts else None

    def standing(self, epoch: int, object_hash: bytes) -> Standing:
        """Return how a copy whose last epoch was this one stands to the chain.

        `ahead`: its number is above the tip's, so the clouds show an old state, or it is another branch; `unknown`:
        too old to compare.  A copy that never had an epoch (0) is behind any.
        """
        if not self.history:
            return "ahead" if epoch else "equal"
        if epoch > self.history[-1].name.epoch:
            return "ahead"
        if epoch == 0:
            return "behind"
        known = {entry.name.epoch: entry for entry in self.history}
        if epoch not in known:
            # The oldest one known names its predecessor, though nobody has that one any more.
            oldest = self.history[0]
            if epoch == oldest.name.epoch - 1:
                return "behind" if oldest.header.predecessor == object_hash else "forked"
            return "unknown"
        if known[epoch].object_hash != object_hash:
            return "forked"
        return "equal" if epoch == self.history[-1].name.epoch else "behind"

    @property
    def loadable(self) -> tuple[int, ...]:
        """The epochs that can be loaded: all from the oldest snapshot of the history on."""
        numbers = [entry.name.epoch for entry in self.history]
        first = next((place for place, entry in enumerate(self.history) if entry.name.kind == "snapshot"), len(numbers))
        return tuple(numbers[first:])

    def parts_of(self, epoch: int) -> tuple[EpochObject, ...]:
        """Return what loading this epoch of the history takes; empty if it cannot be loaded."""
        if epoch not in self.loadable:
            return ()
        line = [entry for entry in self.history if entry.name.epoch <= epoch]
        base = max(place for place, entry in enumerate(line) if entry.name.kind == "snapshot")
        return tuple(line[base:])

    def parts_after(self, epoch: int) -> tuple[EpochObject, ...]:
        """Return what brings a copy of this epoch, of the same chain, to the tip.

        If it begins with a snapshot, the copy is too old for the journals that are left: make it anew.
        """
        later = tuple(entry for entry in self.history if entry.name.epoch > epoch)
        if not later or (later[0].name.epoch == epoch + 1 and all(entry.name.kind == "journal" for entry in later)):
            return later
        return self.parts


class _Graph:
    """All objects, and who names whom."""

    def __init__(self, objects: Iterable[EpochObject]) -> None:
        self.objects: Final = sorted(objects, key=lambda item: (item.name.epoch, item.name, item.object_hash))
        self._at: Final = {(item.name.epoch, item.object_hash): item for item in self.objects}
        self._loadable: Final[set[tuple[EpochName, bytes]]] = set()
        for item in self.objects:  # by epoch, so that the one before is decided
            before = self.before(item)
            if item.name.kind == "snapshot" or (before is not None and self.can_load(before)):
                self._loadable.add((item.name, item.object_hash))

    def can_load(self, item: EpochObject) -> bool:
        """Return whether everything is here that loading `item` takes."""
        return (item.name, item.object_hash) in self._loadable

    def before(self, item: EpochObject) -> EpochObject | None:
        """Return the object that `item` names as its predecessor, if it is here and may be one."""
        found = self._at.get((item.name.epoch - 1, item.header.predecessor))
        return found if found is not None and found.name.term <= item.name.term else None

    def ancestry(self, item: EpochObject) -> list[EpochObject]:
        """Return `item` and all before it, newest first."""
        line = [item]
        while (before := self.before(line[-1])) is not None:
            line.append(before)
        return line

    def why_not(self, item: EpochObject) -> str:
        """Return why `item` cannot be loaded."""
        first = self.ancestry(item)[-1]
        wanted = first.name.epoch - 1
        if first.header.predecessor == NO_PREDECESSOR:
            return NO_SNAPSHOT
        others = [other for other in self.objects if other.name.epoch == wanted]
        if others:
            return f"epoch {wanted} is there as {others[-1].name}, which is not the one that {first.name} follows"
        return f"epoch {wanted} is missing, which {first.name} follows"


def choose_chain(sightings: Iterable[Sighting], clouds: Collection[CloudName]) -> Chain:
    """Return the newest unbroken chain in what `clouds`, all that answered, showed; see the module for the rule."""
    shown = tuple(sightings)
    damaged = tuple(sorted({(seen.cloud, seen.name) for seen in shown if seen.ends is None}))
    graph = _Graph(_merge(shown))
    usable = [item for item in graph.objects if graph.can_load(item)]
    if not usable:
        return Chain(newer=_newer(graph, None, damaged), damaged=damaged)
    tip = max(usable, key=lambda item: (item.name, item.object_hash))
    line = graph.ancestry(tip)
    base = next(place for place, item in enumerate(line) if item.name.kind == "snapshot")
    parts = tuple(reversed(line[: base + 1]))
    return Chain(
        parts=parts,
        history=tuple(reversed(line)),
        newer=_newer(graph, tip, damaged),
        forks=_forks(graph, line),
        missing={
            cloud: tuple(part.name for part in parts if cloud not in part.clouds) for cloud in sorted(set(clouds))
        },
        damaged=damaged,
    )


def _merge(shown: Iterable[Sighting]) -> list[EpochObject]:
    """Return one object per name and hash, with all clouds that show it."""
    merged: dict[tuple[EpochName, bytes], tuple[EpochHeader, set[CloudName]]] = {}
    for seen in shown:
        if seen.ends is not None:
            header, object_hash = seen.ends
            merged.setdefault((seen.name, object_hash), (header, set()))[1].add(seen.cloud)
    return [
        EpochObject(name, header, object_hash, tuple(sorted(clouds)))
        for (name, object_hash), (header, clouds) in merged.items()
    ]


def _newer(
    graph: _Graph, tip: EpochObject | None, damaged: Iterable[tuple[CloudName, EpochName]]
) -> tuple[Unusable, ...]:
    """Return what is above the tip, in the order of names, and cannot be loaded."""
    found = {
        item.name: Unusable(item.name, graph.why_not(item))
        for item in graph.objects
        if not graph.can_load(item) and (tip is None or item.name > tip.name)
    }
    readable = {item.name for item in graph.objects}
    for _, name in damaged:
        if name not in readable and (tip is None or name > tip.name):
            found[name] = Unusable(name, "it is damaged wherever it is")
    return tuple(found[name] for name in sorted(found))


def _forks(graph: _Graph, line: list[EpochObject]) -> tuple[Fork, ...]:
    """Return the branches that leave the chain `line`, newest first; what is older than all known of it is no fork."""
    chain = {item.object_hash for item in line}
    oldest = line[-1].name.epoch
    outside = [item for item in graph.objects if item.object_hash not in chain and item.name.epoch >= oldest]
    named = {before.object_hash for item in outside if (before := graph.before(item)) is not None}
    forks = []
    for item in outside:
        # A broken branch above the tip is in `newer`; it may be the drive's own future with a piece missing.
        if item.object_hash in named or (item.name > line[0].name and not graph.can_load(item)):
            continue
        common = [before.name.epoch for before in graph.ancestry(item) if before.object_hash in chain]
        forks.append(Fork(item, max(common, default=None)))
    return tuple(forks)

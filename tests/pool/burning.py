"""A laptop that is lost while somebody works on it, and the one that is set up in its place.

Used by test_pool_burnt.py.  A `Fire` is one drive over three folders, seen through one laptop after the other:

    work ─▶ epochs on the clouds meanwhile ─▶ kill -9, everything local deleted ─▶ recover, mount ─▶ compare

What was promised meanwhile: laptops.py.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from attrs import define, field

from cuckoo_mount.preparing import EPOCHS_FOLDER
from cuckoo_mount.testing.faulty import read_counts, write_plan
from tests.pool.laptops import Laptop, Work
from tests.pool.machines import wait_until
from tests.pool.numbered import find_state, look
from tests.pool.pooling import Place

WORK_S: Final = 1.5
"""A laptop burns so long at most after its first steps."""
FIRST_STEPS: Final = 40
DURABLE_ON: Final = 2
FAULTS: Final = ("slow epochs", "slow packs", "one slow", "one fails", "one stops")
"""With each of these one cloud fails now and then, or for good."""
AIMS: Final = {"slow epochs": "not_durable", "slow packs": "cutting"}
"""With these faults the moment is one of which this is so (`Tally`)."""
SLOW: Final = {"slow epochs": "/meta/", "slow packs": "/packs/"}
SLOW_S: Final = 1.5
SPOOL: Final = "cut.spool"
Rule = dict[str, object]


@define
class Tally:
    """What was seen, over all moments.

    `not_durable`: an epoch was whole on the laptop, but on too few clouds.  `half_sent`: and on one.  `cutting`: a cut
    was taken, and its content was on its way.  `collecting`: packs were compacted or deleted just then.  `failing`: one
    cloud failed, or could not be reached; `faults`: how often one failed.
    """

    moments: int = 0
    not_durable: int = 0
    half_sent: int = 0
    cutting: int = 0
    with_loss: int = 0
    steps: int = 0
    steps_lost: int = 0
    epochs: int = 0
    syncs: int = 0
    packs_compacted: int = 0
    packs_deleted: int = 0
    collecting: int = 0
    failing: int = 0
    faults: int = 0
    clouds_missing: int = 0


@define(eq=False)
class Fire:
    """One drive, from its first laptop on.

    `promised`: what was said to be on the clouds, over all laptops: a step, and an epoch.  `step`: the state it is in.
    `away`: the cloud that cannot be reached now; `failing`: the one with a plan of faults, if none is away.
    """

    folder: Path
    places: Sequence[Place]
    seed: str
    tally: Tally
    laptops: list[Laptop] = field(factory=list)
    works: list[Work] = field(factory=list)
    step: int = 0
    promised: int = 0
    promised_epoch: int = 0
    away: Place | None = None
    failing: Place | None = None
    choose: random.Random = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.choose = random.Random(self.seed)

    # -- clouds --

    def send_away(self, place: Place) -> None:
        """Let a cloud be unreachable."""
        assert self.away is None
        self.away = place
        self.tally.clouds_missing += 1
        _set_aside(place).parent.mkdir(exist_ok=True)
        Path(place.config.url).rename(_set_aside(place))

    def bring_back(self) -> None:
        """Let it be reachable again, as it was."""
        if self.away is not None:
            _set_aside(self.away).rename(self.away.config.url)
            self.away = None

    def break_clouds(self, kind: str) -> None:
        """Put plans in place for one of `FAULTS`; at most one cloud fails."""
        first, other, _ = self.choose.sample(self.places, len(self.places))
        self.failing = first if self.away is None else None
        rules: dict[str, list[Rule]] = {place.name: [] for place in self.places}
        if kind in SLOW:
            for place in self.places:
                rules[place.name] = [_slow(SLOW[kind], SLOW_S)]
        elif kind == "one slow":
            rules[first.name] = [_slow("", self.choose.uniform(0.2, 1.5))]
        else:
            rules[other.name] = [_slow("/meta/", SLOW_S / 2)]
        if self.failing is not None:
            rules[first.name][:0] = self._failures(stops=kind == "one stops")
        for place in self.places:
            write_plan(place.plan, *rules[place.name], seed=self.choose.randrange(10**6))

    def _failures(self, *, stops: bool) -> list[Rule]:
        """Return rules for the cloud that fails; none lets it say that it did what it did not."""
        if stops:
            return [{"from": self.choose.randrange(2, 40), "action": "fail"}]
        often = self.choose.choice((0.1, 0.3, 0.5))
        return [
            {"calls": ["put"], "match": "/packs/", "times": 1, "action": "cut"},
            {"probability": often, "action": "fail"},
            {"calls": ["put", "delete"], "probability": often, "action": "lie_failure"},
            {"calls": ["put", "get", "get_range"], "probability": often / 3, "action": "cut"},
            {"probability": often / 10, "action": "timeout"},
        ]

    def repair_clouds(self) -> None:
        """Let everything work that is there."""
        if self.failing is not None:
            counts = read_counts(self.failing.plan)
            self.tally.faults += sum(count for key, count in counts.items() if key.startswith("acted "))
        for place in self.places:
            write_plan(place.plan)

    # -- laptops --

    @property
    def laptop(self) -> Laptop:
        """The newest one."""
        return self.laptops[-1]

    def buy(self) -> Laptop:
        """Return a laptop that has nothing of the drive."""
        self.laptops.append(Laptop(self.folder / f"laptop{len(self.laptops)}", self.places, deadline_s=120.0))
        return self.laptop

    def begin(self) -> None:
        """Make the drive on the first laptop, and let the first epoch be durable."""
        laptop = self.buy()
        laptop.make()
        laptop.start(cache_limit="32MiB")

    def work_and_burn(self, faults: str) -> None:
        """Let the writer go on from the present state, and the laptop burn at a random moment."""
        laptop, tally = self.laptop, self.tally
        if self.step == 0:
            work = self._work()
            work.wait(FIRST_STEPS)
            wait_until(lambda: work.syncs > 0, "the first sync")
            self.break_clouds(faults)
        else:
            self.break_clouds(faults)
            work = self._work()
            work.wait(FIRST_STEPS)
        if self.choose.random() < 0.75:
            before = max(1, self.promised_epoch)
            wait_until(lambda: work.cloud > before, "an epoch of this laptop")
        wait_until(lambda: self._has_collected(work), "packs that were compacted and deleted")
        self._pass(WORK_S)
        if faults in AIMS:
            wait_until(lambda: AIMS[faults] in self._at_risk(), AIMS[faults])
            self._pass(SLOW_S / 6)
        work.burn()
        self.repair_clouds()
        laptop.check_log()
        tally.moments += 1
        tally.syncs += work.syncs
        tally.packs_deleted += work.collected["packs_deleted"]
        tally.packs_compacted += work.collected["packs_compacted"]
        tally.collecting += work.was_collecting
        tally.failing += self.away is not None or self.failing is not None
        tally.steps += work.done - self.step
        tally.epochs += work.polls[-1].local - work.polls[0].local
        at_risk = self._at_risk()
        tally.not_durable += "not_durable" in at_risk
        tally.half_sent += "half_sent" in at_risk
        tally.cutting += "cutting" in at_risk
        self.promised = max(self.promised, work.promised, work.bound(work.cloud))
        self.promised_epoch = max(self.promised_epoch, work.cloud)
        laptop.wipe()
        self._recover(work, faults)

    def _has_collected(self, work: Work) -> bool:
        """Return whether packs were compacted, and some deleted, until now; once is enough."""
        compacted = self.tally.packs_compacted + work.collected["packs_compacted"]
        return compacted > 0 and self.tally.packs_deleted + work.collected["packs_deleted"] > 0

    def _work(self) -> Work:
        self.works.append(Work(self.laptop, self.seed, self.step + 1))
        return self.works[-1]

    def _pass(self, most_s: float) -> None:
        """Let a random time pass."""
        end = time.monotonic() + self.choose.uniform(0.0, most_s)
        wait_until(lambda: time.monotonic() >= end, "the moment")

    def _at_risk(self) -> set[str]:
        """Return what the laptop has not brought to the clouds, as names of `Tally`'s counts."""
        folder = self.laptop.paths.state / EPOCHS_FOLDER
        # Complete ones: they are written under another name.
        objects = [path for path in folder.iterdir() if path.suffix in (".journal", ".snapshot")]
        newest = max(objects, key=lambda path: path.stat().st_mtime_ns)
        present = [place for place in self.places if place is not self.away]
        holding = sum(any(name.endswith(f"/{newest.name}") for name in place.sizes()) for place in present)
        spool = folder / SPOOL
        is_cutting = spool.exists() and spool.stat().st_mtime_ns > newest.stat().st_mtime_ns
        found = {"not_durable": holding < DURABLE_ON, "half_sent": 0 < holding < DURABLE_ON, "cutting": is_cutting}
        return {name for name, holds in found.items() if holds}

    def _recover(self, work: Work, faults: str) -> None:
        """Set a new laptop up, and compare."""
        if self.choose.random() < 0.7:
            self.bring_back()
        if self.away is None and self.choose.random() < 0.5:
            self.send_away(self.choose.choice(self.places))
        laptop = self.buy()
        door = self._door(laptop)
        record: Mapping[str, object] = json.loads(laptop.recover(door, "--json").stdout)
        epoch, at_s = record["epoch"], record["time"]
        assert isinstance(epoch, int)
        assert isinstance(at_s, float)
        assert epoch >= self.promised_epoch, f"epoch {epoch}, but {self.promised_epoch} was said to be durable"
        laptop.start("--take-over", cache_limit="32MiB")
        laptop.check()
        seen = look(laptop)
        # An epoch that an earlier laptop had brought to one cloud may come back with that cloud, as long as none of a
        # later laptop is durable.  Whoever made it, it has nothing that was begun after its cut.
        at_ns = int(at_s * 1e9) + 1000
        last = max(self.step, *(each.begun_before(at_ns) for each in self.works))
        bound = max(self.promised, work.bound(epoch) if at_ns > work.began_ns else 0)
        done, self.step = work.done, find_state(self.seed, seen, bound, last)
        print(
            f"{faults}: epoch {epoch} (promised {self.promised_epoch}) through {door.name}, without "
            f"{self.away.name if self.away else 'none'}: step {self.step}, promised {bound}, done {done}"
        )
        self.tally.with_loss += self.step < done
        self.tally.steps_lost += max(0, done - self.step)
        laptop.check()

    def _door(self, laptop: Laptop) -> Place:
        """Choose a cloud to recover through: one that has an epoch, be it old, as it knows the others from that.

        A third cloud gets its first epoch within a minute of the drive's first one.
        """
        places = [place for place in self.places if place is not self.away]
        empty = [place for place in places if not any("/meta/" in name for name in place.sizes())]
        for place in empty:
            assert "no epoch of the drive" in laptop.recovery_refused(1, place)
            assert laptop.leftovers() == []
        assert len(empty) < len(places), "none of the clouds that are left has an epoch"
        return self.choose.choice([place for place in places if place not in empty])

    def end(self) -> None:
        """Unmount in order, and look at the log."""
        self.bring_back()
        self.laptop.finish()

    def clear_away(self) -> None:
        """After anything: nothing of it goes on running or stays mounted."""
        for laptop in self.laptops:
            laptop.clear_away()


def _slow(match: str, seconds: float) -> Rule:
    return {"calls": ["put"], "match": match, "action": "delay", "seconds": seconds}


def _set_aside(place: Place) -> Path:
    folder = Path(place.config.url)
    return folder.parent / "away" / folder.name

"""The newest epoch is hidden or damaged: another cloud has it, or it is said, and nothing older is taken in silence."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

import pytest
from attrs import field, frozen

from cuckoo_mount.epochformat import EPOCH_FOOTER_BYTES, EPOCH_HEADER_BYTES
from tests.pool.conftest import MakeMachine
from tests.pool.machines import Machine, fill, three_folders
from tests.pool.pooling import Place
from tests.pool.surveys import Survey, assert_same_survey, survey, write_settled

pytestmark = [pytest.mark.mount, pytest.mark.slow]


@frozen
class Harm:
    """One way to harm an object: `change` gets its bytes and those of the epoch before; None: it is deleted."""

    name: str
    change: Callable[[bytes, bytes], bytes | None] = field(repr=False)


def flip(data: bytes, at: int) -> bytes:
    """Return `data` with one bit changed."""
    at %= len(data)
    return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]


HARMS: Final = {
    harm.name: harm
    for harm in (
        Harm("hidden", lambda data, _: None),
        Harm("bit in the header", lambda data, _: flip(data, EPOCH_HEADER_BYTES // 2)),
        Harm("bit in the body", lambda data, _: flip(data, EPOCH_HEADER_BYTES + 20)),
        Harm("bit in the footer", lambda data, _: flip(data, 1 - EPOCH_FOOTER_BYTES)),
        Harm("last bit", lambda data, _: flip(data, -1)),
        Harm("cut short", lambda data, _: data[: len(data) // 2]),
        Harm("emptied", lambda data, _: b""),
        Harm("an older one", lambda _, older: older),
    )
}


def short_form(harms: Iterable[str], *names: str) -> list[object]:
    """Return parameters of which only those named are not `long`."""
    return [name if name in names else pytest.param(name, marks=pytest.mark.long) for name in sorted(harms)]


@frozen
class Past:
    """A drive with an old and a new state, on three clouds; nobody has it mounted.  `epoch`: the newest one."""

    machine: Machine
    epoch: int
    old: Survey
    new: Survey

    def objects(self, place: Place) -> tuple[str, str]:
        """Return the names of the newest epoch on a cloud and of the one before."""
        names = sorted(name for name in place.sizes() if "/meta/" in name)
        return names[-1], names[-2]

    def harm(self, harm: Harm, *places: Place) -> None:
        """Do it to the newest epoch on these clouds."""
        for place in places:
            newest, older = self.objects(place)
            broken = harm.change(place.read(newest), place.read(older))
            if broken is None:
                place.delete(newest)
            else:
                place.write(newest, broken)

    def verify(self, machine: Machine, wanted: Survey) -> None:
        """Mount, compare everything, unmount."""
        machine.start()
        assert_same_survey(survey(machine.path), wanted)
        machine.check()
        machine.umount()


@pytest.fixture
def past(tmp_path: Path, make_machine: MakeMachine) -> Past:
    """The drive, with its first machine unmounted."""
    machine = make_machine(three_folders(tmp_path))
    machine.make()
    machine.start()
    fill(machine, tmp_path / "source", files=30, random_mib=1)
    write_settled(machine.path / "file", b"old")
    machine.umount()
    machine.start()
    old = survey(machine.path)
    write_settled(machine.path / "file", b"new")
    write_settled(machine.path / "later", b"later")
    (machine.path / "d0" / "f0").unlink()
    machine.sync()
    new = survey(machine.path)
    epoch = int(machine.status()["epoch"]["cloud"])
    machine.umount()
    found = Past(machine, epoch, old, new)
    for place in machine.places:
        newest, older = found.objects(place)
        assert (f"-{epoch:016x}-" in newest, f"-{epoch - 1:016x}-" in older) == (True, True)
    return found


@pytest.mark.long
def test_on_one_cloud(past: Past, make_machine: MakeMachine) -> None:
    """No flag is needed, neither through that cloud nor through another one, and nothing is lost."""
    sick, well, _ = past.machine.places
    newest, _ = past.objects(sick)
    whole = sick.read(newest)
    other = make_machine(past.machine.places)
    for number, harm in enumerate(HARMS.values()):
        past.harm(harm, sick)
        record = json.loads(other.recover((sick, well)[number % 2], "--json").stdout)
        assert (record["epoch"], record["silent"], record["left_out"]) == (past.epoch, {}, []), harm.name
        other.wipe()
        sick.write(newest, whole)


@pytest.mark.parametrize("harm", ["bit in the body", "an older one"])
def test_on_the_cloud_that_is_the_door(past: Past, make_machine: MakeMachine, harm: str) -> None:
    past.harm(HARMS[harm], past.machine.places[0])
    other = make_machine(past.machine.places)
    other.recover(past.machine.places[0])
    past.verify(other, past.new)
    # The machine that has its state does not care either.
    past.verify(past.machine, past.new)


@pytest.mark.parametrize("harm", short_form(HARMS.keys() - {"hidden"}))
def test_on_every_cloud(past: Past, make_machine: MakeMachine, harm: str) -> None:
    places = past.machine.places
    past.harm(HARMS[harm], *places)
    other = make_machine(places)
    said = other.recovery_refused(1, places[1])
    assert f"epoch {past.epoch} is newer and cannot be loaded" in said
    assert f"epoch {past.epoch - 1} can" in said
    assert "--accept-stale" in said
    assert other.leftovers() == []
    said = other.recovery_refused(1, places[1], "--accept-stale", "--at-least-epoch", str(past.epoch))
    assert f"the newest epoch is {past.epoch - 1}, older than {past.epoch}" in said
    assert other.leftovers() == []
    said = other.recover(places[1], "--accept-stale", "--at-least-epoch", str(past.epoch - 1)).stdout.decode()
    assert f"Recovered drive 'default': epoch {past.epoch - 1}, " in said
    assert "Left out: " in said
    other.start("--take-over")
    assert_same_survey(survey(other.path), past.old)


def test_nobody_can_know_what_is_hidden_everywhere(past: Past, make_machine: MakeMachine) -> None:
    """But who remembers how far the drive was is not given less."""
    places = past.machine.places
    past.harm(HARMS["hidden"], *places)
    other = make_machine(places)
    said = other.recovery_refused(1, places[2], "--at-least-epoch", str(past.epoch))
    assert f"the newest epoch is {past.epoch - 1}, older than {past.epoch}" in said
    other.recover(places[2])
    past.verify(other, past.old)


@pytest.mark.parametrize("harm", short_form(HARMS, "hidden"))
def test_the_machine_that_has_its_state_is_not_hurt(past: Past, make_machine: MakeMachine, harm: str) -> None:
    """Whatever its clouds show; and what can be seen to be wrong with them is right again after it."""
    places = past.machine.places
    past.harm(HARMS[harm], *places)
    machine = past.machine
    machine.start()
    assert_same_survey(survey(machine.path), past.new)
    write_settled(machine.path / "more", b"more")
    machine.cuckoo("sync")
    wanted = survey(machine.path)
    machine.check()
    machine.umount()
    if "bit" in harm:
        return  # not seen by names and sizes
    other = make_machine(places)
    other.recover(places[0])
    past.verify(other, wanted)


@pytest.mark.long
def test_a_machine_that_is_behind_says_so(past: Past, make_machine: MakeMachine) -> None:
    """It does not go on from what it has, as if nothing newer was there."""
    places = past.machine.places
    other = make_machine(places)
    other.recover(places[0])
    past.machine.start()
    write_settled(past.machine.path / "more", b"more")
    past.machine.sync()
    wanted = survey(past.machine.path)
    past.machine.umount()
    whole = {place.name: place.read(past.objects(place)[0]) for place in places}
    past.harm(HARMS["bit in the header"], *places)
    said = other.start_refused()
    assert f"the clouds know of epoch {past.epoch + 1}, which cannot be loaded" in said
    assert f"this machine has epoch {past.epoch}" in said
    assert "--take-over" in said
    places[2].write(past.objects(places[2])[0], whole[places[2].name])
    past.verify(other, wanted)


@pytest.mark.long
def test_too_few_clouds_answer(past: Past, make_machine: MakeMachine) -> None:
    """With two of three silent something newer may be there; who knows better says so."""
    places = past.machine.places
    for place in places[1:]:
        Path(place.config.url).rename(f"{place.config.url}.away")
    other = make_machine(places)
    said = other.recovery_refused(1, places[0])
    assert f"only 1 of 3 clouds answer, so that something newer than epoch {past.epoch} may lie on the others" in said
    assert "b: folder " in said
    assert other.leftovers() == []
    said = other.recover(places[0], "--accept-stale").stdout.decode()
    assert "Clouds: a, b, c; a answered." in said
    other.start()
    assert sorted(survey_names(other)) == sorted(past.new)
    for place in places[1:]:
        Path(f"{place.config.url}.away").rename(place.config.url)
    other.umount()
    past.verify(other, past.new)


def survey_names(machine: Machine) -> list[bytes]:
    """Return all names, without reading a file: its bytes may lie elsewhere."""
    done = machine.run("find", ".", "-mindepth", "1", "-print0", cwd=machine.path)
    return [b"", *(name.removeprefix(b"./") for name in done.stdout.split(b"\0") if name)]

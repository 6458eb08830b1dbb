"""What extract.py makes of epochs, records, key slots and recovery keys, compared with what the drive's own code does.

Neither shares code with the other; docs/format.md is what both follow.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import pytest
from attrs import define, field
from hypothesis import given, settings
from hypothesis import strategies as st

from cuckoo_mount.epochformat import NO_PREDECESSOR, EpochKind, EpochName
from cuckoo_mount.epochs.chain import Chain, Sighting, choose_chain
from cuckoo_mount.epochs.objects import EpochSummary
from cuckoo_mount.epochs.sealing import parse_ends
from cuckoo_mount.layers.keyslots import Argon2Cost, Passphrase, encode_slot, make_slot
from cuckoo_mount.layers.recoverykey import parse_recovery_key, recovery_key_of
from cuckoo_mount.metadata.records import JournalRecord
from cuckoo_mount.metadata.schema import JOURNALED
from cuckoo_mount.multi.erasure import parity_of
from cuckoo_mount.multi.redundancy import parse_policy
from cuckoo_mount.types import CloudName
from tests.epochs.epochtools import DRIVE, KEYS, name_of, records, write
from tools import extract

DRIVE_KEY: Final = KEYS.drive.drive_key
CLOUDS: Final = ("a", "b")
NAMES: Final = {table.name: table for table in JOURNALED}


def drive_folder(root: Path, cloud: str) -> Path:
    """Return the folder of the drive on a cloud, as it lies in `root`."""
    folder = root / cloud / "cuckoo" / DRIVE.hex()
    (folder / "meta").mkdir(parents=True, exist_ok=True)
    return folder


def stored(root: Path) -> extract.Stored:
    """Return the drive as extract.py finds it in all folders of `root`."""
    return extract.find_drive([path for path in sorted(root.iterdir()) if path.is_dir()], None)


def test_tables_are_those_of_the_metadata() -> None:
    ours = {table.number: (table.name, len(table.keys), " ".join((*table.keys, *table.values))) for table in JOURNALED}
    assert ours == extract.TABLES


@settings(max_examples=60, deadline=None)
@given(st.lists(records(), max_size=30), st.booleans())
def test_records_come_back(found: list[JournalRecord], encrypted: bool) -> None:
    with TemporaryDirectory() as folder:
        meta = drive_folder(Path(folder), "a") / "meta"
        write(meta, found, encrypted=encrypted)
        epochs = extract.Epochs(stored(Path(folder)), DRIVE_KEY)
        assert epochs.tip.encrypted == encrypted
        read = [
            (extract.TABLES[number][0], is_gone, tuple(values))
            for segment in epochs.records(epochs.tip)
            for number, is_gone, values in extract.RecordReader(segment)
        ]
    assert read == [(record.table, record.values is None, (*record.key, *(record.values or ()))) for record in found]


@define
class Branch:
    """Epochs made one after the other, as objects in `root`; others may go on from any of them."""

    root: Path
    made: list[tuple[EpochName, EpochSummary]] = field(factory=list)

    def add(self, kind: EpochKind, *, term: int, writer: int, clouds: tuple[str, ...]) -> None:
        """Make one more; on no cloud it is an epoch that was lost."""
        epoch = self.made[-1][0].epoch + 1 if self.made else 1
        before = self.made[-1][1].object_hash if self.made else NO_PREDECESSOR
        path, name, summary = write(self.root, [], name_of(epoch, term=term, writer=writer, kind=kind), before)
        for cloud in clouds:
            os.link(path, drive_folder(self.root, cloud) / "meta" / str(name))
        path.unlink()
        self.made.append((name, summary))


def sightings(root: Path) -> Iterator[Sighting]:
    """Yield what our own code sees in the folders."""
    for cloud in CLOUDS:
        for path in sorted((drive_folder(root, cloud) / "meta").iterdir()):
            data = path.read_bytes()
            term, epoch, rest = path.name.split("-")
            writer, _, kind = rest.partition(".")
            name = EpochName(
                int(term, 16), int(epoch, 16), int(writer, 16), "journal" if kind == "journal" else "snapshot"
            )
            header, footer = parse_ends(data[:160], data[-96:], KEYS, DRIVE, name)
            yield Sighting(CloudName(cloud), name, (header, footer.object_hash))


STEPS: Final = st.lists(
    st.tuples(
        st.sampled_from(["snapshot", "journal", "journal"]),
        st.sampled_from([0, 0, 0, 1, -1]),
        st.sampled_from([("a", "b"), ("a",), ("b",), ()]),
        st.integers(0, 9),
    ),
    min_size=1,
    max_size=9,
)


@settings(max_examples=60, deadline=None)
@given(STEPS)
def test_the_same_chain_is_chosen(steps: list[tuple[EpochKind, int, tuple[str, ...], int]]) -> None:
    """With forks, gaps, terms that rise and fall, and branches that were given up."""
    with TemporaryDirectory() as folder:
        root = Path(folder)
        for cloud in CLOUDS:
            drive_folder(root, cloud)
        branch, term = Branch(root), 5
        for writer, (kind, step, clouds, back) in enumerate(steps):
            term = max(1, term + step)
            if back < len(branch.made):
                branch = Branch(root, branch.made[:back])
            branch.add(kind, term=term, writer=writer, clouds=clouds)
        chain = choose_chain(sightings(root), [CloudName(cloud) for cloud in CLOUDS])
        assert_same_choice(root, chain)


def assert_same_choice(root: Path, chain: Chain) -> None:
    """Fail unless extract.py finds the same tip, parts, history, and newer ones that cannot be loaded."""
    try:
        epochs = extract.Epochs(stored(root), DRIVE_KEY)
        tip = epochs.tip
    except extract.Failure:
        assert chain.tip is None
        return
    assert chain.tip is not None

    def plain(name: EpochName | extract.EpochName) -> tuple[int, int, int, str]:
        return name.term, name.epoch, name.writer, name.kind

    assert plain(tip.name) == plain(chain.tip.name)
    assert [plain(part.name) for part in epochs.parts(tip)] == [plain(part.name) for part in chain.parts]
    assert [plain(seen.name) for seen in epochs.history[::-1]] == [plain(seen.name) for seen in chain.history]
    assert sorted(plain(name) for name, _ in epochs.newer()) == sorted(plain(newer.name) for newer in chain.newer)
    for number in chain.loadable:
        assert [part.name.epoch for part in epochs.parts(epochs.choose(number))] == [
            part.name.epoch for part in chain.parts_of(number)
        ]


def test_a_flipped_bit_anywhere_makes_another_epoch_the_newest(tmp_path: Path) -> None:
    branch = Branch(tmp_path)
    branch.add("snapshot", term=1, writer=1, clouds=("a",))
    branch.add("journal", term=1, writer=1, clouds=("a",))
    (newest,) = (drive_folder(tmp_path, "a") / "meta").glob("*.journal")
    whole = newest.read_bytes()
    assert extract.Epochs(stored(tmp_path), DRIVE_KEY).tip.name.epoch == 2
    for at in range(len(whole)):
        newest.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        epochs = extract.Epochs(stored(tmp_path), DRIVE_KEY)
        assert epochs.tip.name.epoch == 1, at
        assert [name.epoch for name, _ in epochs.newer()] == [2], at
    for length in range(len(whole)):
        newest.write_bytes(whole[:length])
        assert extract.Epochs(stored(tmp_path), DRIVE_KEY).tip.name.epoch == 1, length


def slots(root: Path, *, passphrase: str, cost: Argon2Cost) -> extract.Stored:
    """Store both slots of a drive, and return it."""
    folder = drive_folder(root, "a") / "keys"
    folder.mkdir()
    for number, secret in ((1, Passphrase(passphrase)), (2, recovery_key_of(DRIVE_KEY))):
        slot = make_slot(DRIVE_KEY, secret, drive_id=DRIVE, number=number, salt=bytes([number] * 16), cost=cost)
        (folder / f"{number}.{slot.kind}").write_bytes(encode_slot(slot))
    return stored(root)


def test_key_slots(tmp_path: Path) -> None:
    """In either Unicode form; a recovery key in its own place, and where a passphrase is asked for."""
    drive = slots(tmp_path, passphrase="caf\u00e9", cost=Argon2Cost(memory_kib=64, iterations=2, lanes=2))
    words = recovery_key_of(DRIVE_KEY).shown()
    for secret in (
        extract.passphrase_of("caf\u00e9"),
        extract.passphrase_of("cafe\u0301"),
        extract.recovery_key_of(words),
        extract.passphrase_of(words),
        extract.drive_key_of(DRIVE_KEY.hex()),
    ):
        assert extract.find_drive_key(drive, secret) == DRIVE_KEY
    with pytest.raises(extract.Failure, match="wrong passphrase"):
        extract.find_drive_key(drive, extract.passphrase_of("cafe"))


def test_a_cloud_cannot_pass_its_own_drive_off(tmp_path: Path) -> None:
    """A slot that everybody can open is not taken where a passphrase was given."""
    drive = slots(tmp_path, passphrase="right", cost=Argon2Cost(memory_kib=64, iterations=2, lanes=2))
    forged = make_slot(
        bytes(32),
        Passphrase(extract.PUBLIC_PASSPHRASE),
        drive_id=DRIVE,
        number=9,
        salt=bytes(16),
        cost=Argon2Cost(memory_kib=8, iterations=1, lanes=1),
    )
    (drive.folders[0] / "keys" / "9.passphrase").write_bytes(encode_slot(forged))
    assert extract.find_drive_key(drive, extract.passphrase_of("right")) == DRIVE_KEY
    with pytest.raises(extract.Failure, match="the drive is not encrypted: leave it out"):
        extract.find_drive_key(drive, extract.passphrase_of("wrong"))


def test_damaged_key_slots_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drive = slots(tmp_path, passphrase="right", cost=Argon2Cost(memory_kib=64, iterations=2, lanes=2))
    paths = sorted((drive.folders[0] / "keys").iterdir())
    for path in paths:
        whole = path.read_bytes()
        for at in range(0, len(whole), 9):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x40]) + whole[at + 1 :])
            assert len(extract.find_slots(drive)) == len(paths) - 1
            assert capsys.readouterr().err == f"extract.py: left out: key slot {path}: it is damaged\n"
        path.write_bytes(whole)


@given(st.binary(min_size=16, max_size=16), st.data())
def test_recovery_keys_as_they_are_scribbled(secret: bytes, data: st.DataObject) -> None:
    shown = recovery_key_of(secret * 2).shown()
    scribbled = "".join(
        data.draw(st.sampled_from([sign, sign.lower(), {"0": "o", "1": "l", "-": " \u2013"}.get(sign, sign)]))
        for sign in shown
    )
    assert extract.recovery_key_of(scribbled).value == parse_recovery_key(shown).secret


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 12), st.integers(1, 6), st.integers(1, 200), st.randoms(use_true_random=False))
def test_any_shares_give_the_data(data: int, parity: int, length: int, dice: random.Random) -> None:
    policy = parse_policy(f"{data}+{parity}")
    whole = [dice.randbytes(length) for _ in range(data)]
    shares = [*whole, *parity_of(whole, policy)]
    numbers = tuple(sorted(dice.sample(range(data + parity), data)))
    for wanted in range(data):
        factors = extract.factors_for(wanted, numbers)
        parts = [(factor, shares[number]) for factor, number in zip(factors, numbers, strict=True)]
        assert extract.summed(parts, length) == whole[wanted]


def test_paths_that_are_selected() -> None:
    chosen = extract.Selection([b"/a/b/", b"c"])
    wanted = {
        b"": True,
        b"a": True,
        b"a/b": True,
        b"a/b/x": True,
        b"a/bb": False,
        b"c/d": True,
        b"cc": False,
        b"d": False,
    }
    assert {path: chosen.has(path) for path in wanted} == wanted
    assert extract.Selection([]).has(b"anything")
    assert extract.Selection([b"/"]).has(b"anything")


def test_names_are_shown_in_one_line() -> None:
    assert extract.shown("ü x".encode()) == "ü x"
    assert extract.shown(b"a\nb\xff\x1b") == "a\\nb\\xff\\x1b"

"""The way out: tools/extract.py restores a drive from its clouds alone, byte for byte, without cuckoo-mount."""

from __future__ import annotations

import os
import random
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Final

import pytest
from attrs import evolve

from cuckoo_mount.layers.recoverykey import recovery_key_of
from tests.pool.conftest import MakeMachine
from tests.pool.extracting import EXTRACT, extract, folders, known, refused, restored, run_isolated
from tests.pool.machines import CLOUDS, Machine, fill, three_folders
from tests.pool.pooling import folder_place
from tests.pool.surveys import (
    FUTURE_NS,
    MIB,
    Survey,
    as_copied,
    assert_same_survey,
    make_random_file,
    survey,
    write_settled,
)

pytestmark = [pytest.mark.mount, pytest.mark.slow]

KIB: Final = 1 << 10
NOBODY: Final = 65534
AS_NOBODY: Final = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--")
SEED: Final = 20_261_122
OWN: Final = {"coded": "2+1", "thrice": "3"}
NOT_ENCRYPTED: Final = "this drive is not encrypted: who could write to its clouds could change what is restored now"


def made(machine: Machine, *options: str) -> Machine:
    """Return the machine with a new drive, mounted."""
    machine.make(*options)
    machine.start()
    return machine


def synced(machine: Machine) -> tuple[int, Survey]:
    """Bring everything to the clouds; return the number of the epoch, and what the drive shows."""
    machine.cuckoo("sync")
    return int(machine.status()["epoch"]["cloud"]), survey(machine.path)


def add_more(folder: Path) -> None:
    """Add what the varied tree has not: devices, a socket, a hole at each end, a file that was cut."""
    (folder / "more").mkdir()
    if os.geteuid() == 0:
        os.mknod(folder / "more" / "character", stat.S_IFCHR | 0o640, os.makedev(4, 300))
        os.mknod(folder / "more" / "block", stat.S_IFBLK | 0o606, os.makedev(300, 70_000))
        os.setxattr(folder / "more" / "block", "trusted.of a device", b"\0")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(folder / "more" / "socket"))
    (folder / "more" / "empty").touch()
    with (folder / "more" / "holes").open("wb") as file:
        file.seek(2 * MIB + 5)
        file.write(b"between holes")
        file.truncate(7 * MIB + 3)
    with (folder / "more" / "cut").open("wb") as file:
        file.write(random.Random(SEED).randbytes(MIB + 5000))
        file.flush()
        os.fsync(file.fileno())
        file.truncate(MIB + 7)
    for path in sorted((folder / "more").iterdir()):
        os.utime(path, ns=(4_300_000_000 * 10**9 + 1, 1_300_000_000 * 10**9 + 999_999_999))


def make_deep(folder: Path, levels: int) -> None:
    """Make folders with long names, each in the one before, and a file with two names at the bottom."""
    script = (
        "import os, sys\nos.chdir(sys.argv[1])\n"
        "for number in range(int(sys.argv[2])):\n os.mkdir('d' * 250); os.chdir('d' * 250)\n"
        "open('leaf', 'w').write('deep down')\nos.link('leaf', 'other')\n"
    )
    subprocess.run(("python3", "-c", script, folder, str(levels)), check=True, timeout=60)


def find_deep(folder: Path) -> list[str]:
    """Return depth, links and content of the files that `make_deep` made."""
    named = ("(", "-name", "leaf", "-o", "-name", "other", ")")
    command = ("find", folder, *named, "-printf", "%d %n ", "-execdir", "cat", "{}", ";", "-printf", "\n")
    return subprocess.run(command, check=True, capture_output=True, timeout=60).stdout.decode().splitlines()


def test_it_runs_without_us(tmp_path: Path) -> None:
    """What the other tests run cannot import cuckoo_mount, nor what only cuckoo_mount needs."""
    for name in ("cuckoo_mount", "attrs", "trio", "fs"):
        program = tmp_path / f"{name}.py"
        program.write_text(f"import {name}\n")
        done = run_isolated(program)
        assert done.returncode == 1
        assert f"not for you: {name}" in done.stderr.decode()


def test_any_two_of_three_folders_and_any_secret(tmp_path: Path, make_machine: MakeMachine) -> None:
    machine = made(make_machine(three_folders(tmp_path)))
    fill(machine, tmp_path / "source", files=60, random_mib=2)
    add_more(machine.path)
    _, wanted = synced(machine)
    recovery_key = machine.recovery_key()
    machine.umount()
    words = machine.secret_file("words", recovery_key)
    scribbled = machine.secret_file("scribbled", recovery_key.lower().replace("-", " "))
    target = tmp_path / "restored"
    for lost, option, secret in (
        ("a", "--passphrase-file", machine.passphrase_file),
        ("b", "--recovery-key-file", words),
        ("c", "--key-file", machine.paths.key_file),
    ):
        done = restored(target, wanted, option, secret, *folders(machine, without=[lost]))
        assert done.lines == (() if os.geteuid() == 0 else ("owners are not restored: that needs root",))
    together = tmp_path / "together"
    for folder in folders(machine):
        shutil.copytree(folder, together, dirs_exist_ok=True)
    restored(target, wanted, "--passphrase-file", scribbled, together)
    only_part(machine, target, wanted)
    if os.geteuid() == 0 and is_reachable_for_others():
        as_ordinary_user(together, machine.passphrase_file, wanted)


def only_part(machine: Machine, target: Path, wanted: Survey) -> None:
    """Fail unless --only takes just what it names, with the folders that lead there."""
    given = known(machine)
    chosen = ("names", "d1/f25", b"kinds/fifo")
    only = [argument for path in chosen for argument in ("--only", f"/{os.fsdecode(path)}")]
    assert extract("--to", target, *only, *given).status == 0
    below = {
        name: seen
        for name, seen in as_copied(wanted).items()
        if name in (b"", b"d1", b"d1/f25", b"kinds", b"kinds/fifo") or (name + b"/").startswith(b"names/")
    }
    found = as_copied(survey(target))
    assert found.keys() == below.keys()
    assert {name: seen.digest for name, seen in found.items()} == {name: seen.digest for name, seen in below.items()}
    listed = extract("--list-names", *only, *given)
    assert len(listed.said.splitlines()) == len(below) - 1
    assert "names/not \\xff\\xfe utf-8" in listed.said.splitlines()
    assert "names/new\\nline" in listed.said.splitlines()


def is_reachable_for_others() -> bool:
    """Whether an ordinary user can run this Python and read this checkout."""
    command = (*AS_NOBODY, sys.executable, "-I", EXTRACT, "--help")
    return subprocess.run(command, capture_output=True, cwd="/", check=False, timeout=60).returncode == 0


def as_ordinary_user(cloud: Path, passphrase_file: Path, wanted: Survey) -> None:
    """Fail unless somebody else gets everything but owners, devices and other people's set-id bits."""
    with tempfile.TemporaryDirectory(prefix="cuckoo-user-") as name:
        folder = Path(name)
        shutil.copytree(cloud, folder / "cloud")
        shutil.copy(passphrase_file, folder / "passphrase")
        (folder / "home").mkdir()
        for path in (folder, *folder.rglob("*")):
            os.chown(path, NOBODY, NOBODY)
        secret = ("--passphrase-file", folder / "passphrase")
        done = extract("--to", folder / "home" / "all", *secret, folder / "cloud", through=AS_NOBODY)
        found = as_copied(survey(folder / "home" / "all"))
    left_out = {b"more/block", b"more/character"}
    assert done.status == 1, done
    assert {line.partition(": ")[0] for line in done.lines if "cannot be made: Operation not permitted" in line} == {
        os.fsdecode(name) for name in left_out
    }
    assert "owners are not restored: that needs root" in done.lines
    assert "2 problems, named above; everything else is restored" in done.lines
    others = {
        path: evolve(seen, uid=NOBODY, gid=NOBODY, mode=seen.mode if stat.S_ISDIR(seen.mode) else seen.mode & ~0o6000)
        for path, seen in as_copied(wanted).items()
        if path not in left_out
    }
    assert_same_survey(found, others)


def contents(folder: Path) -> dict[str, bytes]:
    """Return the files in a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_no_encryption_and_no_copies(tmp_path: Path, make_machine: MakeMachine) -> None:
    """Nothing is needed to open it.  What only a lost folder had is named, and nothing else is missing or wrong."""
    machine = made(make_machine(three_folders(tmp_path), redundancy="none"), "--no-encryption")
    wanted = {f"f{number}": random.Random(number).randbytes(300 * KIB) for number in range(4)}
    wanted["text"] = b"compressible " * 300_000
    for name, data in wanted.items():
        (machine.path / name).write_bytes(data)
        machine.cuckoo("sync")
    os.link(machine.path / "f0", machine.path / "g0")
    wanted["g0"] = wanted["f0"]
    make_deep(machine.path, 20)
    machine.cuckoo("sync")
    machine.umount()
    target = tmp_path / "restored"
    done = extract("--to", target, *folders(machine))
    assert (done.status, done.lines[0]) == (0, NOT_ENCRYPTED), done
    assert contents(target) == wanted
    assert find_deep(target) == ["21 2 deep down", "21 2 deep down"]
    shutil.rmtree(target)
    lost = 0
    for cloud in CLOUDS:
        done = extract("--to", target, *folders(machine, without=[cloud]))
        named = {line.partition(": ")[0] for line in done.lines if ": its part at byte " in line}
        named |= {line.partition(": ")[0] for line in done.lines if ": it is another name of a file that" in line}
        assert contents(target) == {name: data for name, data in wanted.items() if name not in named}
        assert done.status == (1 if named else 0), done
        lost += len([name for name in named if name in wanted])
        shutil.rmtree(target)
    assert lost >= len(wanted), "each of them lies in one folder only, so that it is missing once"
    given = known(machine)
    assert "the drive is not encrypted: leave it out" in refused("--list", *given)


def test_older_epochs_and_what_gc_leaves(tmp_path: Path, make_machine: MakeMachine) -> None:
    """Chunks that moved to other packs, names that went, an older state; `gc --keep 1` leaves all of the newest.

    Folders with a redundancy of their own are in it: copies and K+M in one drive.
    """
    machine = made(make_machine(three_folders(tmp_path)))
    fill(machine, tmp_path / "source", files=30, random_mib=1)
    for name, redundancy in OWN.items():
        (machine.path / name).mkdir()
        machine.cuckoo("set", str(machine.path / name), "--redundancy", redundancy)
        for number in range(4):
            write_settled(machine.path / name / f"f{number}", random.Random(f"{name}{number}").randbytes(MIB // 4))
    for number in range(16):
        write_settled(machine.path / f"f{number}", random.Random(number).randbytes(MIB // 2))
        if number % 8 == 7:
            machine.cuckoo("sync")
    older, first = synced(machine)
    assert machine.status()["redundancies"] == sorted(OWN.values())
    for number in range(0, 16, 2):
        (machine.path / f"f{number}").unlink()
    for name in OWN:
        for number in range(1, 4):
            (machine.path / name / f"f{number}").unlink()
    shutil.rmtree(machine.path / "names")
    (machine.path / "d1").rename(machine.path / "renamed")
    with (machine.path / "f1").open("r+b") as file:
        file.write(b"changed")
    os.truncate(machine.path / "f3", 1000)
    before = {name for place in machine.places for name in place.packs()}
    machine.cuckoo("gc")
    written = Counter(name.rpartition(".")[0] for place in machine.places for name in place.packs().keys() - before)
    shares = Counter(written.values())
    assert shares >= Counter({2: 1, 3: 2}), "2 copies, 3 copies and 2+1 were compacted"
    newest, wanted = synced(machine)
    given = known(machine, without=["b"])
    target = tmp_path / "restored"
    restored(target, wanted, *given)
    restored(target, first, "--epoch", str(older), *given)
    listed = extract("--list", *given).said.splitlines()
    numbers = [int(line.split()[1]) for line in listed[1:]]
    assert listed[0] == f"drive {machine.configure().drive_id.hex()}"
    assert numbers == sorted(numbers, reverse=True)
    assert (numbers[0], older in numbers) == (newest, True)
    machine.cuckoo("gc", "--keep", "1")
    restored(target, wanted, *given)


def test_damage(tmp_path: Path, make_machine: MakeMachine) -> None:
    """Another folder is taken; what is damaged everywhere is named, and never wrong."""
    machine = made(make_machine(three_folders(tmp_path)))
    wanted = {f"f{number}": random.Random(number).randbytes(200 * KIB) for number in range(4)}
    wanted["three parts"] = random.Random(7).randbytes(2 * MIB + 100)
    for name, data in wanted.items():
        (machine.path / name).write_bytes(data)
        machine.cuckoo("sync")
    machine.umount()
    target = tmp_path / "restored"
    given = ("--to", target, *known(machine))
    sick = machine.places[0]
    assert len(sick.packs()) >= 3
    for number, name in enumerate(sorted(sick.packs())):
        whole = sick.read(name)
        sick.write(name, (flipped(whole), whole[: len(whole) // 3], bytes(len(whole)))[number % 3])
    slots = [name for name in sick.sizes() if "/keys/" in name]
    for name in slots:
        sick.write(name, flipped(sick.read(name)))
    newest = max(name for name in sick.sizes() if "/meta/" in name)
    sick.write(newest, flipped(sick.read(newest)))
    done = extract(*given)
    assert done.status == 0, done
    assert contents(target) == wanted
    assert sum("left out: key slot" in line for line in done.lines) == len(slots)
    first = [name for name in sick.packs() if name.endswith(".0")]
    assert sum(" is damaged; " in line for line in done.lines) == len(first) > 0, "the others were not needed"
    shutil.rmtree(target)
    lose_one(machine, target, wanted, given)
    for place in machine.places[1:]:
        if newest in place.sizes():
            place.write(newest, flipped(place.read(newest)))
    shutil.rmtree(target)
    done = extract(*given)
    number = int(newest.split("-")[1], 16)
    assert done.status == 1, done
    assert (
        f"epoch {number} is newer and cannot be loaded: epoch {number} is damaged in every folder that has it"
        in done.lines
    )
    assert f"restored epoch {number - 1} of " in done.said


def flipped(data: bytes) -> bytes:
    """Return `data` with one bit in the middle changed."""
    at = len(data) // 2
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def lose_one(machine: Machine, target: Path, wanted: dict[str, bytes], given: tuple[str | Path, ...]) -> None:
    """Damage the pack that has the middle of `three parts` wherever it is; then --keep-damaged keeps the rest."""
    for place in machine.places:
        for name in place.packs():
            whole = place.read(name)
            if 2 * MIB < len(whole) < 3 * MIB:
                place.write(name, whole[:MIB] + bytes(MIB // 8) + whole[MIB + MIB // 8 :])
    done = extract(*given)
    assert done.status == 1, done
    assert [line for line in done.lines if line.startswith("three parts: its part at byte ")], done
    assert contents(target) == {name: data for name, data in wanted.items() if name != "three parts"}
    shutil.rmtree(target)
    done = extract("--keep-damaged", *given)
    found, whole = contents(target), wanted["three parts"]
    assert done.status == 1, done
    kept = found.pop("three parts")
    assert found.items() < wanted.items()
    assert len(kept) == len(whole)
    parts = [(kept[at : at + MIB], whole[at : at + MIB]) for at in range(0, len(whole), MIB)]
    assert all(found in (part, bytes(len(part))) for found, part in parts)
    assert [found != part for found, part in parts].count(True) in (1, 2)


def test_what_is_said_when_it_cannot_go_on(tmp_path: Path, make_machine: MakeMachine) -> None:
    machine = made(make_machine(three_folders(tmp_path)))
    write_settled(machine.path / "file", b"content")
    machine.cuckoo("sync")
    machine.umount()
    target, passphrase = tmp_path / "restored", ("--passphrase-file", machine.passphrase_file)
    given, here = known(machine), folders(machine)
    foreign_key = bytes(range(32))
    wrong = machine.secret_file("wrong", "incorrect horse battery")
    foreign = machine.secret_file("foreign", recovery_key_of(foreign_key).shown())
    foreign_file = machine.secret_file("key", foreign_key.hex())
    assert refused("--list", "--passphrase-file", wrong, *here).startswith("wrong passphrase; ")
    assert refused("--list", "--recovery-key-file", foreign, *here).startswith("wrong recovery key: ")
    assert refused("--list", "--recovery-key-file", wrong, *here).startswith("a recovery key has 32 letters")
    assert refused("--list", "--key-file", wrong, *here).startswith("the key file has no drive key in it: ")
    assert refused("--list", "--key-file", foreign_file, *here).endswith("belongs to another key than the one given")
    assert refused("--list", *here).startswith("a --passphrase-file, ")
    assert refused("--list", *passphrase, tmp_path / "nowhere").endswith("nowhere is not a folder")
    (tmp_path / "empty").mkdir()
    assert refused("--list", *passphrase, tmp_path / "empty", lines=2) == (
        "there is no drive in these folders; give those that hold `cuckoo`"
    )
    drive, other = machine.configure().drive_id.hex(), foreign_key[:16].hex()
    (tmp_path / "empty" / "cuckoo" / other).mkdir(parents=True)
    both: tuple[str | Path, ...] = (*passphrase, *here, tmp_path / "empty")
    assert refused("--list", *both).endswith(f"choose one with --drive: {', '.join(sorted((drive, other)))}")
    assert refused("--list", "--drive", other[:9], *both).startswith("there is no whole key slot ")
    assert refused("--to", target, "--only", "nothing", *given).startswith("there is no nothing in epoch ")
    said = refused("--to", target, "--epoch", "99", *given)
    assert said.startswith("there is no epoch 99 here that can be loaded; there are ")
    assert not target.exists()
    target.mkdir()
    (target / "something").touch()
    assert refused("--to", target, *given).startswith(f"{target} is not empty; ")
    (target / "something").unlink()
    lone = tmp_path / "lone"
    shutil.copytree(here[0], lone)
    shutil.rmtree(lone / "cuckoo" / drive / "meta")
    assert refused("--to", target, *passphrase, lone).startswith("there is no epoch in these folders ")


def test_erasure_coded(tmp_path: Path, make_machine: MakeMachine) -> None:
    """3+2: any two folders may be missing, or lie; with three of them gone what cannot be read is named."""
    places = [folder_place(tmp_path / "clouds", name) for name in "abcde"]
    machine = made(make_machine(places, redundancy="3+2"))
    wanted = {f"f{number}": random.Random(number).randbytes(9000 * number) for number in range(8)}
    wanted["big"] = random.Random(9).randbytes(5 * MIB + 17)
    for name, data in wanted.items():
        (machine.path / name).write_bytes(data)
    machine.cuckoo("sync")
    machine.umount()
    target = tmp_path / "restored"
    for lost in ("ab", "ce"):
        done = extract("--to", target, *known(machine, without=[*lost]))
        assert (done.status, [line for line in done.lines if "owners" not in line]) == (0, []), done
        assert contents(target) == wanted
        shutil.rmtree(target)
    done = extract("--to", target, *known(machine, without=["a", "c", "d"]))
    named = {
        line.partition(": ")[0] for line in done.lines if "needs 3 whole shares; 2 are there, of which 0 are" in line
    }
    assert done.status == 1, done
    assert contents(target) == {name: data for name, data in wanted.items() if name not in named}
    assert "big" in named
    shutil.rmtree(target)
    for place in places[1:3]:
        for name in place.packs():
            whole = place.read(name)
            place.write(name, bytes(len(whole)) if place is places[1] else flipped(whole))
    done = extract("--to", target, *known(machine))
    assert done.status == 0, done
    assert contents(target) == wanted
    assert [line for line in done.lines if " is damaged; " in line], done


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_gib_takes_little_memory(tmp_path: Path, make_machine: MakeMachine) -> None:
    machine = make_machine(three_folders(tmp_path), redundancy="none", deadline_s=900)
    made(machine)
    make_random_file(machine.path / "big", 1024)
    os.utime(machine.path / "big", ns=(FUTURE_NS, 1))  # reading does not move an access time that is in the future
    machine.cuckoo("sync")
    wanted = as_copied(survey(machine.path))
    machine.umount()
    target = tmp_path / "restored"
    done = extract("--to", target, *known(machine), timeout_s=600)
    assert done.status == 0, done
    assert_same_survey(as_copied(survey(target)), wanted)
    print(f"{done.peak_kib} KiB")
    assert done.peak_kib < 128 * KIB

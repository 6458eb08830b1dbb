"""`cuckoo key` and drives without a key file: on a drive that is mounted, and on one that is not."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio
from attrs import evolve

from cuckoo_mount.cli import common, main
from cuckoo_mount.cli.daemon import _is_journal
from cuckoo_mount.cli.lock import read_holder
from cuckoo_mount.cli.unlocking import find_drive_key
from cuckoo_mount.config import DrivePaths, create_default_drive, drive_paths, read_config, read_drive_key, write_config
from cuckoo_mount.errors import ConfigurationError, UsageError, WrongKey
from cuckoo_mount.layers.keyslots import Argon2Cost, Passphrase
from cuckoo_mount.layers.recoverykey import recovery_key_of
from cuckoo_mount.metadata.store import create_store
from cuckoo_mount.slots import ensure_recovery_slot, set_passphrase
from tests.cli.test_daemon import Machine
from tests.cli.test_daemon import machine as machine

CHEAP = Argon2Cost(memory_kib=64, iterations=1, lanes=1)


def cuckoo(*arguments: str) -> int:
    return common.run(main.group, "cuckoo", arguments)


def file_with(base: Path, text: str) -> str:
    file = base / "secret"
    file.write_text(text, "utf-8")
    file.chmod(0o600)
    return str(file)


@pytest.fixture
def key(paths: DrivePaths) -> bytes:
    """The key of a drive with slots, passphrase `horse`, that was never mounted."""
    config = create_default_drive(paths)
    drive_key = read_drive_key(paths.key_file)
    paths.state.mkdir(parents=True)

    async def make() -> None:
        async with await create_store(paths.metadata, uid=0, gid=0, now_ns=1) as store:
            await store.set_setting("drive_id", config.drive_id.hex())
            await ensure_recovery_slot(store, config.drive_id, drive_key)
            await set_passphrase(store, config.drive_id, drive_key, Passphrase("horse"), CHEAP)

    trio.run(make)
    return drive_key


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        pytest.param(["key", "rotate"], "key rotate comes with a later release", id="rotate"),
        pytest.param(["key", "show"], "No such command 'show'", id="command"),
        pytest.param(["key", "show-recovery"], "there is no drive 'default' here", id="no-drive"),
        pytest.param(
            ["key", "change-passphrase", "--passphrase-file", "-", "--old-passphrase-file", "-"],
            "only one of the two passphrases can come from standard input",
            id="twice",
        ),
        pytest.param(["key", "show-recovery", "--drive", "../x"], "cannot name a drive", id="name"),
    ],
)
def test_wrong_use(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cuckoo(*arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert says in output.err
    assert 1 <= len(output.err.splitlines()) <= 2


def test_the_recovery_key_is_shown(key: bytes, paths: DrivePaths, capsys: pytest.CaptureFixture[str]) -> None:
    shown = recovery_key_of(key).shown()
    assert cuckoo("key", "show-recovery") == 0
    output = capsys.readouterr()
    assert output.out == f"{shown}\n"
    assert "Keep it off this machine" in output.err
    assert cuckoo("key", "show-recovery", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"drive": "default", "recovery_key": shown}


def test_the_recovery_key_without_a_key_file(
    key: bytes, paths: DrivePaths, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths.key_file.unlink()
    assert cuckoo("key", "show-recovery") == 1
    assert "put its backup there, or mount with --passphrase-file FILE" in capsys.readouterr().err
    assert cuckoo("key", "show-recovery", "--passphrase-file", file_with(base, "hose\n")) == 1
    assert "wrong passphrase; check capitals" in capsys.readouterr().err
    assert cuckoo("key", "show-recovery", "--passphrase-file", file_with(base, "horse\n")) == 0
    assert capsys.readouterr().out == f"{recovery_key_of(key).shown()}\n"
    assert not paths.key_file.exists()


def find(paths: DrivePaths, file: str | None = None) -> bytes:
    config = read_config(paths)
    assert config is not None
    return find_drive_key(config, paths, file)


def test_who_has_the_key(key: bytes, paths: DrivePaths, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find(paths, "/nowhere") == key  # with a key file nothing is asked
    paths.key_file.unlink()
    assert find(paths, file_with(base, "horse")) == key
    assert find(paths, file_with(base, recovery_key_of(key).shown().lower())) == key
    with pytest.raises(WrongKey, match="wrong passphrase"):
        find(paths, file_with(base, "hose"))
    with pytest.raises(WrongKey, match="wrong recovery key"):
        find(paths, file_with(base, recovery_key_of(bytes(32)).shown()))
    with pytest.raises(UsageError, match="has no passphrase in it"):
        find(paths, file_with(base, ""))
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(base))
    (base / "cuckoo-default").write_text("horse\n")
    assert find(paths) == key


async def test_a_key_that_is_nowhere(paths: DrivePaths) -> None:
    create_default_drive(paths)
    paths.key_file.unlink()
    with pytest.raises(ConfigurationError, match=r"neither .*default.key nor .*metadata.sqlite is here"):
        find(paths, "-")
    paths.state.mkdir(parents=True)
    async with await create_store(paths.metadata, uid=0, gid=0, now_ns=1):
        pass
    with pytest.raises(ConfigurationError, match="the drive has no key slots"):
        find(paths, "-")


def test_a_typed_passphrase_may_be_wrong_twice(
    key: bytes, paths: DrivePaths, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    paths.key_file.unlink()
    ask(paths)
    monkeypatch.setattr("cuckoo_mount.config.passphrase._typed", typing("hose", "house", "horse"))
    assert find(paths) == key
    assert capsys.readouterr().err.count("wrong passphrase") == 2
    monkeypatch.setattr("cuckoo_mount.config.passphrase._typed", typing("hose", "house", "mouse", "horse"))
    with pytest.raises(WrongKey):
        find(paths)


def typing(*texts: str) -> Callable[[str], Passphrase]:
    """A terminal where these are typed."""
    left: Iterator[str] = iter(texts)
    return lambda prompt: Passphrase(next(left))


def ask(paths: DrivePaths) -> None:
    """Make the drive one that was made with --ask."""
    paths.config_file.write_text("ask = true\n" + paths.config_file.read_text())


def test_that_it_asks_stands_in_the_file(paths: DrivePaths) -> None:
    config = create_default_drive(paths)
    assert not config.ask
    assert "\nask" not in paths.config_file.read_text()
    write_config(evolve(config, ask=True), paths)
    assert read_config(paths) == evolve(config, ask=True)
    paths.config_file.write_text(paths.config_file.read_text().replace("ask = true", "ask = 1"))
    with pytest.raises(ConfigurationError, match="ask: has to be true or false, not 1"):
        read_config(paths)


def test_the_journal_is_recognized(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (base / "journal").open("wb") as file:
        status = os.fstat(file.fileno())
        assert not _is_journal(file.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
        assert _is_journal(file.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino + 1}")
        assert not _is_journal(file.fileno())


def slots_on(cloud: Path) -> list[str]:
    return sorted(file.name for file in cloud.glob("cuckoo/*/keys/*"))


@pytest.mark.mount
@pytest.mark.slow
def test_the_first_mount_shows_the_recovery_key(machine: Machine) -> None:
    said = machine.mount().stdout.splitlines()
    shown = recovery_key_of(read_drive_key(machine.paths.key_file)).shown()
    assert f"    {shown}" in said
    assert slots_on(machine.paths.data / "local") == ["1.recovery"]
    reminder = "Keep the recovery key somewhere else"
    assert reminder in machine.cuckoo("status").stdout
    assert machine.cuckoo("key", "show-recovery").stdout == f"{shown}\n"
    assert reminder not in machine.cuckoo("status").stdout
    assert shown not in machine.log


@pytest.mark.mount
@pytest.mark.slow
def test_shown_while_it_is_not_mounted_counts_too(machine: Machine) -> None:
    machine.mount()
    machine.cuckoo("umount")
    assert machine.cuckoo("key", "show-recovery").returncode == 0
    machine.mount()
    assert json.loads(machine.cuckoo("status", "--json").stdout)["recovery_key_shown"] is True


@pytest.mark.mount
@pytest.mark.slow
def test_a_drive_that_asks(machine: Machine, base: Path) -> None:
    machine.mount()
    (machine.mountpoint / "a").write_bytes(b"first")
    done = machine.cuckoo("key", "change-passphrase", "--passphrase-file", file_with(base, "horse\n"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "The passphrase is changed.\n", "")
    assert slots_on(machine.paths.data / "local") == ["1.recovery", "2.passphrase"]
    assert machine.cuckoo("umount").returncode == 0
    machine.paths.key_file.unlink()
    done = machine.run("mount", machine.mountpoint)
    assert (done.returncode, "put its backup there" in done.stderr) == (1, True)
    ask(machine.paths)
    done = machine.run("mount", machine.mountpoint, "--passphrase-file", file_with(base, "hose"))
    assert (done.returncode, done.stderr.count("wrong passphrase")) == (1, 1)
    machine.mount(machine.mountpoint, "--passphrase-file", file_with(base, "horse"))
    assert (machine.mountpoint / "a").read_bytes() == b"first"
    assert not machine.paths.key_file.exists()
    assert "horse" not in machine.log
    change_on_a_drive_that_asks(machine, base)


def change_on_a_drive_that_asks(machine: Machine, base: Path) -> None:
    """The old passphrase is needed, mounted or not; the new one is the only one afterwards, here and on the cloud."""
    (base / "new").write_text("mouse\n")
    (base / "new").chmod(0o600)
    change = ["key", "change-passphrase", "--passphrase-file", str(base / "new"), "--old-passphrase-file"]
    assert "wrong passphrase" in machine.cuckoo(*change, file_with(base, "hose")).stderr
    done = machine.cuckoo(*change, file_with(base, "horse"), "--json")
    assert json.loads(done.stdout) == {"drive": "default", "changed": True, "missing": []}
    assert slots_on(machine.paths.data / "local") == ["1.recovery", "3.passphrase"]
    assert "wrong passphrase" in machine.cuckoo(*change, file_with(base, "horse")).stderr
    assert machine.cuckoo("umount").returncode == 0
    done = machine.cuckoo(*change, file_with(base, "mouse"))
    assert (done.returncode, done.stderr) == (0, "")
    assert slots_on(machine.paths.data / "local") == ["1.recovery", "4.passphrase"]
    holder = read_holder(machine.paths.lock)
    assert holder is None or not holder.alive


@pytest.mark.mount
@pytest.mark.slow
def test_the_key_of_another_drive_is_refused(machine: Machine) -> None:
    machine.mount()
    machine.cuckoo("umount")
    machine.paths.key_file.write_text("00" * 32)
    done = machine.run("mount", machine.mountpoint)
    assert done.returncode == 1
    assert "the drive key is that of another drive" in done.stderr
    assert not os.path.ismount(machine.mountpoint)


@pytest.mark.mount
@pytest.mark.slow
def test_a_cloud_that_is_away_gets_the_slot_later(machine: Machine, base: Path) -> None:
    machine.mount()
    machine.block_sending()
    done = machine.cuckoo("key", "change-passphrase", "--passphrase-file", file_with(base, "horse"))
    assert done.returncode == 3
    assert "changed here, not everywhere" in done.stdout
    (machine.paths.data / "away").rename(machine.paths.data / "local")
    machine.cuckoo("umount")
    machine.mount()
    assert slots_on(machine.paths.data / "local") == ["1.recovery", "2.passphrase"]


def test_another_drive_name(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = drive_paths("second")
    create_default_drive(paths)
    assert cuckoo("key", "show-recovery", "--drive", "second") == 0
    assert capsys.readouterr().out == f"{recovery_key_of(read_drive_key(paths.key_file)).shown()}\n"

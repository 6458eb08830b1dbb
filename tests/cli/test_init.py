"""`cuckoo init`: what it makes and says, what it refuses, and that half a drive is never left behind."""

from __future__ import annotations

import getpass
import stat
import sys
from pathlib import Path

import pytest
import trio

from cuckoo_mount.cli import operate
from cuckoo_mount.cli.lock import hold
from cuckoo_mount.config import DrivePaths, create_default_drive, drive_paths, read_config, read_drive_key
from cuckoo_mount.config.keys import write_drive_key
from cuckoo_mount.errors import ConfigurationError, WrongKey
from cuckoo_mount.layers.keyslots import Passphrase
from cuckoo_mount.layers.recoverykey import parse_recovery_key, recovery_key_of
from cuckoo_mount.metadata.store import open_store
from cuckoo_mount.slots import OPEN_PASSPHRASE, unlock_store
from tests.cli.commanding import Shell

slow = pytest.mark.slow


def settings(paths: DrivePaths) -> dict[str, str | None]:
    """Return what the drive itself has noted."""

    async def read() -> dict[str, str | None]:
        metadata = await open_store(paths.metadata)
        try:
            return {key: await metadata.get_setting(key) for key in ("drive_id", "redundancy", "encryption")}
        finally:
            await metadata.aclose()

    return trio.run(read)


@slow
def test_a_drive_without_anything_said(shell: Shell, paths: DrivePaths) -> None:
    said = shell.done("init")
    config = read_config(paths)
    assert config is not None
    assert (config.clouds, config.redundancy, config.pack_size_bytes, config.encrypted, config.ask) == (
        (),
        "none",
        16 << 20,
        True,
        False,
    )
    key = read_drive_key(paths.key_file)
    assert recovery_key_of(key).shown() in said
    assert f"Its key is in {paths.key_file};" in said
    assert "Next:  cuckoo cloud add NAME URL" in said
    assert "Then:  cuckoo-mount ~/Cuckoo\n" in said
    assert settings(paths) == {"drive_id": config.drive_id.hex(), "redundancy": "none", "encryption": "aes-256-gcm"}
    assert unlock_store(paths.metadata, config.drive_id, recovery_key_of(key)) == key
    with pytest.raises(WrongKey, match="has no passphrase"):
        unlock_store(paths.metadata, config.drive_id, Passphrase("anything"))


@slow
def test_a_drive_with_everything_said(shell: Shell, base: Path) -> None:
    (base / "passphrase").write_text("correct horse\n")
    (base / "passphrase").chmod(0o600)
    made = shell.record(
        *("init", "--drive", "photos", "--redundancy", "1+2", "--pack-size", "4MiB", "--ask"),
        *("--passphrase-file", base / "passphrase"),
    )
    paths = drive_paths("photos")
    config = read_config(paths)
    assert config is not None
    assert (config.redundancy, config.pack_size_bytes, config.ask) == ("3", 4 << 20, True)
    assert not paths.key_file.exists()
    key = unlock_store(paths.metadata, config.drive_id, Passphrase("correct horse"))
    assert unlock_store(paths.metadata, config.drive_id, parse_recovery_key(made.pop("recovery_key"))) == key
    assert made == {
        "drive": "photos",
        "config": str(paths.config_file),
        "key_file": None,
        "encrypted": True,
        "redundancy": "3",
        "pack_size_bytes": 4 << 20,
    }
    texts = [path.read_bytes() for path in base.rglob("*") if path.is_file() and path.name != "passphrase"]
    assert not any(b"correct horse" in text or key in text or key.hex().encode() in text for text in texts)
    assert stat.S_IMODE(paths.state.stat().st_mode) == 0o700


@slow
def test_a_drive_that_is_not_encrypted(shell: Shell, paths: DrivePaths) -> None:
    assert "NOT encrypted" in shell.done("init", "--no-encryption")
    assert settings(paths)["encryption"] == "none"
    config, key = read_config(paths), read_drive_key(paths.key_file)
    assert config is not None
    assert unlock_store(paths.metadata, config.drive_id, OPEN_PASSPHRASE) == key
    assert "is not encrypted and has no passphrase" in shell.refused(2, "key", "change-passphrase")
    paths.key_file.unlink()
    assert shell("key", "show-recovery") == 0, "nobody needs the key file"
    assert (shell.out, "Nobody needs it" in shell.err) == (f"{recovery_key_of(key).shown()}\n", True)


@slow
@pytest.mark.parametrize("typed", [[""], ["secret", "secret"]])
def test_a_passphrase_is_asked_for_on_a_terminal(
    typed: list[str], shell: Shell, paths: DrivePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = list(typed)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    monkeypatch.setattr(getpass, "getpass", lambda prompt: answers.pop(0))
    shell.done("init")
    assert answers == []
    config = read_config(paths)
    assert config is not None
    key = read_drive_key(paths.key_file)
    if typed[0]:
        assert unlock_store(paths.metadata, config.drive_id, Passphrase(typed[0])) == key


def test_a_passphrase_typed_differently_makes_nothing(
    shell: Shell, paths: DrivePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = ["secret", "secrte"]
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    monkeypatch.setattr(getpass, "getpass", lambda prompt: answers.pop(0))
    assert "not the same; nothing was made" in shell.refused(2, "init")
    assert not paths.config_file.exists()
    assert not paths.key_file.exists()


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["--redundancy", "two"], 2, "redundancy 'two' is not understood; write none, a number of copies"),
        (["--redundancy", "0"], 2, "redundancy '0' is not understood"),
        (["--redundancy", "1"], 2, "write none, or 2 for two copies"),
        (["--redundancy", "30+9"], 2, "at most 32 shares in all"),
        (["--redundancy", "4+0"], 2, "redundancy '4+0' is not understood"),
        (["--redundancy", "300"], 2, "at most 256"),
        (["--pack-size", "huge"], 2, "'huge' is no size"),
        (["--pack-size", "1KiB"], 2, "choose from 1MiB to 256MiB"),
        (["--pack-size", "1GiB"], 2, "choose from 1MiB to 256MiB"),
        (["--no-encryption", "--ask"], 2, "has no passphrase"),
        (["--no-encryption", "--passphrase-file", "x"], 2, "has no passphrase"),
        (["--passphrase-file", "/absent"], 1, "/absent cannot be read"),
        (["--drive", "../x"], 2, "cannot name a drive"),
    ],
)
def test_mistakes(arguments: list[str], status: int, says: str, shell: Shell, base: Path) -> None:
    assert says in shell.refused(status, "init", *arguments)
    assert [path for path in base.rglob("*") if path.is_file()] == []


@slow
def test_a_drive_that_exists_is_not_touched(shell: Shell, paths: DrivePaths) -> None:
    create_default_drive(paths)
    before = (paths.config_file.read_bytes(), paths.key_file.read_bytes())
    said = shell.refused(1, "init", "--redundancy", "2")
    assert "there is a drive 'default' already" in said
    assert "choose another name with --drive" in said
    assert (paths.config_file.read_bytes(), paths.key_file.read_bytes()) == before
    shell.done("init", "--drive", "other")


def test_what_an_earlier_drive_left_is_not_hidden(shell: Shell, paths: DrivePaths) -> None:
    paths.state.mkdir(parents=True)
    paths.metadata.touch()
    assert "of an earlier drive" in shell.refused(1, "init")
    assert not paths.config_file.exists()


def test_a_key_file_without_a_drive_is_not_overlooked(shell: Shell, base: Path, paths: DrivePaths) -> None:
    (base / "passphrase").write_text("x")
    (base / "passphrase").chmod(0o600)
    write_drive_key(paths.key_file, b"\x07" * 32)
    said = shell.refused(1, "init", "--ask", "--passphrase-file", base / "passphrase")
    assert "may be the only copy" in said
    assert not paths.config_file.exists()


def test_a_drive_that_is_just_being_mounted_is_left_alone(shell: Shell, paths: DrivePaths) -> None:
    with hold(paths.lock):
        shell.refused(1, "init")
    assert not paths.config_file.exists()


def test_half_a_drive_is_taken_back(
    shell: Shell, paths: DrivePaths, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (base / "passphrase").write_text("x")
    (base / "passphrase").chmod(0o600)

    def fail(*_: object) -> None:
        paths.metadata.touch()
        raise ConfigurationError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(operate, "run_opened", fail)
        shell.refused(1, "init", "--ask", "--passphrase-file", base / "passphrase")
    assert not paths.config_file.exists()
    assert not paths.metadata.exists()

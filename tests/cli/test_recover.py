"""Mistakes with `cuckoo recover`: one line that says what to do, the right exit status, and nothing is left behind.

What it brings back is tested in tests/pool/test_pool_recover.py.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import pytest

from cuckoo_mount.config import DrivePaths, drive_paths, read_config, write_drive_key
from cuckoo_mount.config.making import RECOVERING
from tests.cli.commanding import Shell

pytestmark = [pytest.mark.slow]

PASSPHRASE: Final = "correct horse battery"
FOLDERS: Final = ("config", "state", "cache", "data")
MANY_CLOUDS_S: Final = 60.0


def secret(base: Path, text: str) -> str:
    """Write a secret into a file of its owner's; return its path."""
    file = base / "typed"
    file.touch(mode=0o600)
    file.write_text(f"{text}\n", "utf-8")
    return str(file)


def forget(base: Path) -> None:
    """Take everything from this machine but what its user knows."""
    for name in FOLDERS:
        shutil.rmtree(base / name)
        (base / name).mkdir(mode=0o700)


def make(base: Path, shell: Shell, *clouds: str) -> str:
    """Make a drive with these clouds, forget it, and return its recovery key."""
    shell.done("init", "--redundancy", "2", "--passphrase-file", secret(base, PASSPHRASE))
    for name in clouds:
        (base / name).mkdir(exist_ok=True)
        shell.done("cloud", "add", name, base / name)
    shell("key", "show-recovery")
    recovery_key = shell.out.strip()
    forget(base)
    return recovery_key


@pytest.fixture
def recovery_key(base: Path, shell: Shell) -> str:
    """The recovery key of a drive with the clouds `a` and `b`, of which this machine knows nothing any more."""
    return make(base, shell, "a", "b")


def leftovers(base: Path, drive: str = "default") -> list[str]:
    """Return the files that are left on this machine, but for the drive's lock and log."""
    paths = drive_paths(drive)
    found = [file for name in FOLDERS for file in (base / name).rglob("*") if file.is_file()]
    return sorted(str(file) for file in found if file != paths.lock and file.parent != paths.log.parent)


@pytest.fixture
def nothing_left(base: Path) -> Iterator[None]:
    """Fail if the test leaves anything of a drive."""
    yield
    assert leftovers(base) == []


def test_it_works_and_says_what_is_next(base: Path, paths: DrivePaths, recovery_key: str, shell: Shell) -> None:
    """As the mistakes below would be none if nothing worked."""
    said = shell.done("recover", base / "b", "--passphrase-file", secret(base, PASSPHRASE))
    assert "Recovered drive 'default': epoch " in said
    assert "Clouds: a, b; all answer." in said
    assert "Now mount it: cuckoo-mount ~/Cuckoo" in said
    config = read_config(paths)
    assert config is not None
    assert {cloud.name: cloud.url for cloud in config.clouds} == {name: str(base / name) for name in "ab"}
    assert paths.key_file.stat().st_mode & 0o777 == 0o600
    assert paths.config_file.stat().st_mode & 0o777 == 0o600


@pytest.mark.usefixtures("nothing_left")
def test_the_secret_is_wrong(base: Path, recovery_key: str, shell: Shell) -> None:
    other = make_other_key(recovery_key)
    mistyped = recovery_key[:-1] + ("0" if recovery_key[-1] != "0" else "1")
    for option, text, status, says in (
        ("--passphrase-file", "correct horse buttery", 1, "passphrase"),
        ("--recovery-key-file", other, 1, "recovery key"),
        ("--recovery-key-file", mistyped, 2, "recovery key"),
        ("--passphrase-file", mistyped, 1, "recovery key"),
        ("--recovery-key-file", recovery_key[:-5], 2, "recovery key"),
        ("--recovery-key-file", PASSPHRASE, 2, "recovery key"),
    ):
        said = shell.refused(status, "recover", base / "a", option, secret(base, text))
        assert says in said
        assert text not in said
    said = shell.refused(1, "recover", base / "a", "--passphrase-file", base / "absent")
    assert "cannot be read" in said


def make_other_key(recovery_key: str) -> str:
    """Return another drive's recovery key."""
    from cuckoo_mount.layers.recoverykey import recovery_key_of

    other = recovery_key_of(bytes(range(32))).shown()
    assert other != recovery_key
    return other


@pytest.mark.usefixtures("nothing_left")
def test_two_secrets(base: Path, recovery_key: str, shell: Shell) -> None:
    file = secret(base, recovery_key)
    said = shell.refused(2, "recover", base / "a", "--passphrase-file", file, "--recovery-key-file", file)
    assert "give --passphrase-file or --recovery-key-file" in said


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize(
    ("url", "status", "says"),
    [
        pytest.param("{base}/empty", 2, "there is no drive of cuckoo-mount at {base}/empty; check the URL", id="empty"),
        pytest.param("{base}/absent", 1, "{base}/absent is not there", id="absent"),
        pytest.param("{base}/file", 1, "{base}/file is ", id="file"),
        pytest.param("{base}/a/cuckoo", 2, "there is no drive of cuckoo-mount", id="too-deep"),
        pytest.param("s4://bucket", 2, "s4:// is not known", id="scheme"),
        pytest.param("", 2, "cannot be the place of a cloud", id="nothing"),
        pytest.param("dropbox:///x", 2, "a login needs the key of an app", id="no-app"),
        pytest.param("s3://bucket/x?endpoint_url=http://127.0.0.1:9", 1, "127.0.0.1:9", id="unreachable"),
    ],
)
def test_the_place_is_wrong(url: str, status: int, says: str, base: Path, recovery_key: str, shell: Shell) -> None:
    (base / "empty").mkdir()
    (base / "file").touch()
    user = ("--secret", f"user=file:{secret(base, PASSPHRASE)}", "--secret", f"password=file:{base / 'typed'}")
    said = shell.refused(
        status,
        "recover",
        url.format(base=base),
        *(user if url.startswith("s3") else ()),
        "--passphrase-file",
        base / "typed",
    )
    assert says.format(base=base) in said
    assert PASSPHRASE not in said


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        pytest.param(["--cloud", "c={base}/a"], "the drive has no cloud 'c'; its clouds: a, b", id="cloud"),
        pytest.param(["--cloud", "b"], "--cloud is written NAME=URL", id="cloud-without-url"),
        pytest.param(["--cloud", "../x={base}/a"], "cannot name a cloud", id="cloud-name"),
        pytest.param(["--cloud", "b=s4://x"], "s4:// is not known", id="cloud-scheme"),
        pytest.param(["--secret", "c/user=file:{base}/typed"], "the drive has no cloud 'c'", id="secret-of-another"),
        pytest.param(["--secret", "user=hush"], "user=prompt", id="secret"),
        pytest.param(["--secret", "user=prompt"], "there is no terminal", id="prompt"),
        pytest.param(["--secret", "user=file:{base}/absent"], "absent", id="secret-file"),
        pytest.param(["--option", "colour"], "--option is written K=V", id="option"),
        pytest.param(["--option", "colour=red"], "has no option 'colour'", id="unknown-option"),
        pytest.param(["--id", "zzzz"], "no drive whose id begins with zzzz", id="id"),
    ],
)
def test_what_was_typed_is_wrong(arguments: list[str], says: str, base: Path, recovery_key: str, shell: Shell) -> None:
    given = [argument.format(base=base) for argument in arguments]
    status = shell("recover", base / "a", *given, "--passphrase-file", secret(base, PASSPHRASE))
    assert says in shell.err
    assert "hush" not in shell.err
    assert shell.err.startswith("cuckoo: ")
    assert shell.err.count("\n") == 1, shell.err
    assert (status in (1, 2), shell.out) == (True, "")


def test_two_drives_in_one_place(base: Path, paths: DrivePaths, shell: Shell) -> None:
    first = make(base, shell, "a", "b")
    second = make(base, shell, "a", "c")
    ids = sorted(path.name for path in (base / "a" / "cuckoo").iterdir())
    assert len(ids) == 2
    said = shell.refused(2, "recover", base / "a", "--passphrase-file", secret(base, PASSPHRASE))
    assert f"there are 2 drives at {base}/a; say which with --id, one of: {ids[0][:8]}, {ids[1][:8]}" in said
    assert leftovers(base) == []
    for drive_id in ids:
        shell.done("recover", base / "a", "--id", drive_id[:8], "--passphrase-file", secret(base, PASSPHRASE))
        config = read_config(paths)
        assert config is not None
        assert config.drive_id.hex() == drive_id
        shell("key", "show-recovery")
        assert shell.out.strip() in (first, second)
        forget(base)
    # Where there is only one of them it need not be said.
    shell.done("recover", base / "c", "--recovery-key-file", secret(base, second))


def test_there_is_a_drive_already(base: Path, paths: DrivePaths, recovery_key: str, shell: Shell) -> None:
    shell.done("init")
    before = {file: file.read_bytes() for file in (paths.config_file, paths.key_file, paths.metadata)}
    said = shell.refused(1, "recover", base / "a", "--passphrase-file", secret(base, PASSPHRASE))
    assert "there is a drive 'default' already" in said
    assert "--drive" in said
    assert {file: file.read_bytes() for file in before} == before
    said = shell.done("recover", base / "a", "--passphrase-file", secret(base, PASSPHRASE), "--drive", "old")
    assert "cuckoo-mount ~/Cuckoo --drive old" in said
    assert {file: file.read_bytes() for file in before} == before
    assert drive_paths("old").metadata.exists()


def test_another_key_file_stands_in_the_way(base: Path, paths: DrivePaths, recovery_key: str, shell: Shell) -> None:
    """It may be all that is left of another drive: it is never written over."""
    paths.key_file.parent.mkdir(parents=True)
    write_drive_key(paths.key_file, bytes(32))
    precious = paths.key_file.read_bytes()
    for content in (precious, b"precious\n"):
        paths.key_file.write_bytes(content)
        said = shell.refused(1, "recover", base / "a", "--passphrase-file", secret(base, PASSPHRASE))
        assert str(paths.key_file) in said
        assert leftovers(base) == [str(paths.key_file)]
        assert paths.key_file.read_bytes() == content


def test_its_own_key_file_is_still_there(base: Path, paths: DrivePaths, recovery_key: str, shell: Shell) -> None:
    """After a loss of the state and the settings alone."""
    arguments = ("recover", base / "a", "--passphrase-file", secret(base, PASSPHRASE))
    shell.done(*arguments)
    shutil.rmtree(paths.state)
    paths.config_file.unlink()
    before = paths.key_file.read_bytes()
    shell.done(*arguments)
    assert paths.key_file.read_bytes() == before


@pytest.mark.parametrize("when", ["fetching", "making"])
def test_killed_in_the_middle(base: Path, paths: DrivePaths, recovery_key: str, shell: Shell, when: str) -> None:
    """It is no drive, other commands say so, and a second try works."""
    marker = paths.state / RECOVERING
    command = [sys.executable, "-m", "cuckoo_mount.cli.main", "recover", str(base / "a")]
    arguments = ["--passphrase-file", secret(base, PASSPHRASE)]
    is_there = marker.exists if when == "making" else (paths.state / "epochs").exists
    for _ in range(20):
        process = subprocess.Popen([*command, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        end = time.monotonic() + MANY_CLOUDS_S
        while process.poll() is None and not is_there():
            assert time.monotonic() < end
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
        process.wait()
        if not paths.config_file.exists():
            break
        forget(base)  # it was quicker than we
    assert (marker.exists(), paths.config_file.exists()) == (when == "making", False)
    assert "there is no drive 'default' here" in shell.refused(2, "cloud", "list")
    shell.done("recover", base / "a", *arguments)
    assert not marker.exists()
    assert [cloud["name"] for cloud in shell.records("cloud", "list")] == ["a", "b"]

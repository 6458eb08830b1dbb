"""Command lines: every error is a line or two that says what to do, with the exit status of the contract."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import click
import pytest

from cuckoo_mount.cli import common, main, mount, mount_helper
from cuckoo_mount.cli.background import PipeReporter, TerminalReporter
from cuckoo_mount.cli.lock import LockHolder, hold
from cuckoo_mount.cli.mount_helper import INTERRUPTED, MOUNT_FAILED, WRONG_USE
from cuckoo_mount.cli.status import is_fine
from cuckoo_mount.cli.statusview import notes_on
from cuckoo_mount.config import DrivePaths, create_default_drive, drive_paths
from cuckoo_mount.errors import ConfigurationError, CuckooError, UsageError
from cuckoo_mount.fuse.controlsocket import listen

ROOT = Path(__file__).resolve().parents[2]
needs_fuse = pytest.mark.skipif(not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="/dev/fuse is missing")


def cuckoo(*arguments: str) -> int:
    return common.run(main.group, "cuckoo", arguments)


def cuckoo_mount(*arguments: str) -> int:
    return common.run(mount.command, "cuckoo-mount", arguments)


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        pytest.param(["nix"], 2, "there is no command 'nix'; there are: mount, status", id="command"),
        pytest.param(["stauts"], 2, "did you mean status?", id="misspelt"),
        pytest.param(["fsck"], 2, "there is no drive 'default' here", id="fsck"),
        pytest.param(["status", "--nix"], 2, "--nix", id="option"),
        pytest.param(["status", "more"], 2, "more", id="argument"),
        pytest.param(["status", "--watch", "--json"], 2, "--watch is for people", id="watch-json"),
        pytest.param(["status", "--log-level", "loud"], 2, "loud", id="log-level"),
        pytest.param(["status", "--drive", "../x"], 2, "cannot name a drive", id="name"),
        pytest.param(["status"], 2, "there is no drive 'default' here", id="no-drive"),
        pytest.param(["sync"], 2, "`cuckoo-mount MOUNTPOINT` makes one", id="sync"),
        pytest.param(["gc"], 2, "`cuckoo init` one for clouds of your own", id="gc"),
        pytest.param(["sync", "/"], 2, "lies in no mounted drive", id="sync-path"),
        pytest.param(["umount"], 2, "there is no drive 'default' here", id="umount"),
        pytest.param(["umount", "/nowhere"], 1, "no drive is mounted at /nowhere", id="umount-where"),
        pytest.param(["mount", "/", "--epoch", "3"], 2, "there is no drive 'default' here whose epoch 3", id="epoch"),
        pytest.param(["mount", "--epoch", "0"], 2, "--epoch", id="epoch-0"),
        pytest.param(["mount", "--epoch", "3", "--take-over"], 2, "nothing to take over; leave one out", id="both"),
    ],
)
def test_errors_of_cuckoo(arguments: list[str], status: int, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cuckoo(*arguments) == status
    output = capsys.readouterr()
    assert output.out == ""
    assert says in output.err
    assert 1 <= len(output.err.splitlines()) <= 2
    assert output.err.startswith("cuckoo: ")


@needs_fuse
@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        pytest.param([], 2, "where is the drive to be mounted?", id="nowhere"),
        pytest.param(["{base}/absent"], 2, "mkdir -p {base}/absent", id="absent"),
        pytest.param(["{base}/file"], 2, "is no folder", id="file"),
        pytest.param(["{base}/full"], 2, "is not empty (there is thing)", id="full"),
        pytest.param(["{base}"], 2, "contains cuckoo-mount's own folder", id="own"),
        pytest.param(["{base}/mnt", "-o", "nix"], 2, "unknown mount option 'nix'", id="option"),
        pytest.param(["{base}/mnt", "--drive", "-x"], 2, "cannot name a drive", id="name"),
        pytest.param(["{base}/mnt", "{base}/other"], 2, "unexpected", id="two"),
    ],
)
def test_errors_of_cuckoo_mount(
    arguments: list[str], status: int, says: str, base: Path, paths: DrivePaths, capsys: pytest.CaptureFixture[str]
) -> None:
    (base / "mnt").mkdir()
    (base / "file").touch()
    (base / "full" / "thing").mkdir(parents=True)
    assert cuckoo_mount(*(argument.format(base=base) for argument in arguments)) == status
    output = capsys.readouterr()
    assert output.out == ""
    assert says.format(base=base) in output.err
    assert 1 <= len(output.err.splitlines()) <= 2
    assert not paths.config_file.exists()
    assert not paths.key_file.exists()


def test_no_fuse_is_explained(base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("cuckoo_mount.cli.checks.FUSE_DEVICE", str(base / "fuse"))
    assert cuckoo_mount(str(base)) == 1
    assert "modprobe fuse" in capsys.readouterr().err
    (base / "fuse").touch(mode=0o000)
    if os.getuid() != 0:
        assert cuckoo_mount(str(base)) == 1
        assert "chmod 666" in capsys.readouterr().err


@needs_fuse
@pytest.mark.parametrize("ending", [False, True])
def test_a_drive_that_somebody_has_is_refused(
    ending: bool, base: Path, paths: DrivePaths, capsys: pytest.CaptureFixture[str]
) -> None:
    (base / "mnt").mkdir()
    with hold(paths.lock) as lock:
        # An ending daemon with a process id of nobody cannot be asked to hurry.
        lock.describe(LockHolder(pid=0 if ending else os.getpid(), mountpoint=base / "mnt", ending=ending))
        assert cuckoo_mount(str(base / "mnt")) == 1
    said = capsys.readouterr().err
    assert "is just being mounted" in said if ending else f"already mounted at {base}/mnt (pid {os.getpid()})" in said


def all_commands() -> list[tuple[str, ...]]:
    """Return every command as it is typed, those of groups included, and the groups."""
    found: list[tuple[str, ...]] = []
    for name in main.COMMANDS:
        command = command_of(name)
        found.append((name,))
        if isinstance(command, click.Group):
            found += [(name, inner) for inner in command.commands]
    return found


def command_of(*names: str) -> click.Command:
    """Return a command, or one in a group."""
    command = main.LazyGroup("cuckoo").get_command(click.Context(main.group), names[0])
    for name in names[1:]:
        assert isinstance(command, click.Group)
        command = command.commands[name]
    assert command is not None
    return command


def test_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ((), *all_commands()):
        if arguments != ("key", "rotate"):  # comes later
            assert cuckoo(*arguments, "--help") == 0
            assert "Example:  " in capsys.readouterr().out
    assert cuckoo_mount("--help") == 0
    assert "Example:  cuckoo-mount ~/Cuckoo" in capsys.readouterr().out


@pytest.mark.parametrize("names", all_commands(), ids=" ".join)
def test_every_command_takes_the_common_options(names: tuple[str, ...]) -> None:
    command = command_of(*names)
    options = {option for parameter in command.params for option in parameter.opts}
    assert isinstance(command, click.Group) or options >= {"--drive", "--json", "--log-level"}


def test_without_arguments_there_is_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cuckoo() == 2
    assert "Commands:\n  mount" in capsys.readouterr().err


def test_status_starts_without_the_big_libraries() -> None:
    program = "import sys, cuckoo_mount.cli.main, cuckoo_mount.cli.status; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, check=True, text=True)
    assert not {"trio", "pyfuse3", "fs", "rich", "apsw", "tomli_w", "zstandard"} & set(done.stdout.split())


def test_drives(paths: DrivePaths, capsys: pytest.CaptureFixture[str]) -> None:
    assert cuckoo("drives") == 0
    assert "No drives yet" in capsys.readouterr().out
    create_default_drive(paths)
    (paths.config_file.parent / "bad.toml").write_text("x")
    assert cuckoo("drives", "--json") == 0
    output = capsys.readouterr()
    assert [(line["name"], line["state"]) for line in json.loads(output.out)] == [
        ("bad", "broken"),
        ("default", "not mounted"),
    ]
    assert "bad.toml is no valid TOML" in output.err
    with hold(paths.lock) as lock:
        lock.describe(LockHolder(pid=7, mountpoint=Path("/mnt")))
        assert cuckoo("drives", "--drive", "default") == 0
    assert capsys.readouterr().out == "default: mounted at /mnt (pid 7), 1 cloud\n"


# -- a daemon that is not there, or not well --


def test_a_drive_that_is_not_mounted(paths: DrivePaths, capsys: pytest.CaptureFixture[str]) -> None:
    create_default_drive(paths)
    assert cuckoo("status") == 1
    assert capsys.readouterr().err == (
        "cuckoo: drive 'default' is not mounted; mount it with: cuckoo-mount MOUNTPOINT\n"
    )
    with hold(paths.lock) as lock:
        lock.describe(LockHolder(pid=7, mountpoint=Path("/mnt/x")))
        assert cuckoo("status") == 1
        assert "just being mounted or unmounted (pid 7)" in capsys.readouterr().err
    listen(paths.socket).close()  # as a daemon leaves it that was killed
    assert cuckoo("sync") == 1
    assert "mount it with: cuckoo-mount /mnt/x\n" in capsys.readouterr().err


@pytest.mark.parametrize("answer", [b"", b"{", b"[]\n", b"{}\n{}\n"])
def test_a_daemon_that_ends_in_the_middle(answer: bytes, paths: DrivePaths, capsys: pytest.CaptureFixture[str]) -> None:
    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(1 << 16)
            connection.sendall(answer)

    with listen(paths.socket) as listener:
        daemon = threading.Thread(target=serve, args=(listener,))
        daemon.start()
        assert cuckoo("status") == 1
        daemon.join()
    assert f"ended before it answered; see {paths.log}" in capsys.readouterr().err


def test_a_daemon_that_says_nothing(
    paths: DrivePaths, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("cuckoo_mount.cli.client.REPLY_TIMEOUT_S", 0.01)
    with listen(paths.socket):
        assert cuckoo("status") == 1
    assert f"(pid {os.getpid()}) has not answered" in capsys.readouterr().err


# -- errors of every kind --


def raising(error: BaseException) -> click.Command:
    @click.command("fail")
    @common.drive_option
    @common.log_level_option
    def fail(drive: str) -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (CuckooError("a"), 1),
        (UsageError("a"), 2),
        (ConfigurationError("a"), 1),
        (PermissionError(13, "Permission denied", "/x"), 1),
        (KeyboardInterrupt(), 130),
        (ZeroDivisionError("a"), 1),
    ],
)
def test_exit_statuses(error: BaseException, status: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert common.run(raising(error), "cuckoo", []) == status
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("arguments", [["--drive", "photos"], ["--drive=photos"], []])
def test_a_bug_is_found_again_in_the_log(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert common.run(raising(ZeroDivisionError("a")), "cuckoo", arguments) == 1
    log = drive_paths("photos" if arguments else "default").log
    assert str(log) in capsys.readouterr().err
    assert "ZeroDivisionError: a" in log.read_text()


def test_debug_shows_where(capsys: pytest.CaptureFixture[str]) -> None:
    assert common.run(raising(CuckooError("a")), "cuckoo", ["--log-level", "debug"]) == 1
    assert "Traceback" in capsys.readouterr().err
    assert logging.getLogger().level == logging.DEBUG


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], WRONG_USE),
        (["default", "/nowhere", "-o", "nix"], WRONG_USE),
        (["../x", "/nowhere"], WRONG_USE),
        (["default", "/nowhere", "-f"], 0),
        (["cuckoo:default", "/nowhere", "-f", "-o", "rw,user,noauto", "-n", "-v", "-s"], 0),
    ],
)
def test_the_mount_helper_speaks_mounts_language(given: list[str], expected: int) -> None:
    assert mount_helper.main(given) == expected


@pytest.mark.parametrize(
    ("error", "expected"),
    [(ConfigurationError("a"), MOUNT_FAILED), (UsageError("a"), WRONG_USE), (KeyboardInterrupt(), INTERRUPTED)],
)
def test_the_mount_helpers_other_statuses(error: BaseException, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> int:
        raise error

    monkeypatch.setattr("cuckoo_mount.cli.daemon.mount_drive", fail)
    assert mount_helper.main(["default", "/nowhere"]) == expected


# -- what status says --


def test_status_warns_of_what_is_no_backup() -> None:
    cloud = {"name": "local", "url": "/srv/cloud", "state": "ok"}
    status: dict[str, object] = {"state": "ok", "clouds": [cloud], "pending": {"bytes": 0}, "epoch": {"cloud": 1}}
    assert [note.split(" is no backup")[0] for note in notes_on(status)] == ["One folder on the same disk"]
    assert is_fine(status)
    status["clouds"] = [cloud, {"name": "b", "url": "s3://b", "state": "down", "last_error": "no route"}]
    assert [note.split(".  It is asked")[0] for note in notes_on(status)] == ["cloud b is down: no route"]
    assert not is_fine({**status, "state": "degraded"})
    assert not is_fine({**status, "pending": {"bytes": 1}})
    assert is_fine({**status, "state": "read-only"})


# -- telling who started us --


def test_systemd_is_told(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(base / "notify"))
        manager.settimeout(5.0)
        monkeypatch.setenv("NOTIFY_SOCKET", str(base / "notify"))
        TerminalReporter().ready()
        assert manager.recv(100) == b"READY=1"
    TerminalReporter().ready()  # nobody listens any more: no error


def test_a_parent_that_is_gone_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    reporter = PipeReporter(writing)
    reporter.say("hello")
    reporter.ready()
    reporter.fail("late", 1)


def test_closed_standard_streams_are_filled() -> None:
    program = (
        "import os\nfor fd in range(3): os.close(fd)\n"
        "from cuckoo_mount.cli.background import fill_standard_streams\n"
        "fill_standard_streams(); os._exit(os.open(os.devnull, os.O_RDONLY))"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 3

"""Commands on a drive that is not mounted: who holds it meanwhile, and what an interruption leaves."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cuckoo_mount.cli.lock import read_holder
from cuckoo_mount.config import DrivePaths
from tests.cli.commanding import Shell, clouds_in_file, empty_drive

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_ctrl_c_ends_a_command_and_leaves_the_drive_as_it_was(
    shell: Shell, base: Path, paths: DrivePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty_drive(paths)
    (base / "usb").mkdir()
    shell.done("cloud", "add", "usb", base / "usb")
    monkeypatch.setenv("SECRET", "x")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"s3://bucket?endpoint_url=http://127.0.0.1:{silent.getsockname()[1]}"
        process = subprocess.Popen(
            [
                *(sys.executable, "-bb", "-m", "cuckoo_mount.cli.main", "cloud", "add", "off", url),
                *("--secret", "user=env:SECRET", "--secret", "password=env:SECRET"),
            ],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        silent.settimeout(60)
        connection, _ = silent.accept()  # it is in the middle of asking the cloud
        with connection:
            holder = read_holder(paths.lock)
            assert holder is not None
            assert (holder.alive, holder.command, holder.pid) == (True, True, process.pid)
            assert "another command is at work" in shell.refused(1, "cloud", "list")
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err.strip()) == (130, "", "")
    holder = read_holder(paths.lock)
    assert holder is not None
    assert not holder.alive
    assert list(clouds_in_file(paths)) == ["usb"]
    (listed,) = shell.records("cloud", "list")
    assert listed["state"] == "ok"


@pytest.mark.slow
def test_nothing_a_command_makes_is_for_others(shell: Shell, base: Path, paths: DrivePaths) -> None:
    shell.done("init")
    os.umask(0o022)
    (base / "usb").mkdir()
    shell.done("cloud", "add", "usb", base / "usb")
    open_to_others = [path for path in paths.state.rglob("*") if path.stat().st_mode & 0o077]
    assert open_to_others == []
    assert paths.config_file.stat().st_mode & 0o077 == 0

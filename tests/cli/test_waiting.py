"""`sync`, `umount` and `status` of a real mount whose clouds come and go: what is shown, said and returned."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.cli.test_daemon import ROOT, Machine, read_until
from tests.cli.test_daemon import machine as machine

pytestmark = [pytest.mark.mount, pytest.mark.slow]


@pytest.fixture
def terminal_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal that can move its cursor, whatever the tests run on."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)


@pytest.mark.usefixtures("terminal_kind")
def test_sync_shows_what_it_waits_for_and_asks_clouds_at_once(machine: Machine) -> None:
    machine.mount()
    (machine.mountpoint / "a").write_bytes(b"x" * 1000)
    machine.block_sending()
    terminal, other_end = os.openpty()
    process = subprocess.Popen([*machine.program("main"), "sync"], cwd=ROOT, stdout=other_end, stderr=other_end)
    os.close(other_end)
    with os.fdopen(terminal, "rb", buffering=0) as shown:
        # 80 columns: the line may be wrapped behind the first words of why.
        seen = read_until(shown, b"waiting: cloud local is down: ")
        assert b"1000 B in 1 file left" in seen
        (machine.paths.data / "away").rename(machine.paths.data / "local")
        seen = read_until(shown, None)
    assert process.wait(60) == 0
    assert b"Everything written before is on the clouds." in seen


def test_in_a_pipe_there_are_plain_lines(machine: Machine) -> None:
    machine.mount()
    (machine.mountpoint / "a").write_bytes(b"x" * 1000)
    machine.block_sending()
    quickly = "from cuckoo_mount.cli import sending\nsending.PLAIN_EVERY_S = 0.0"
    process = subprocess.Popen(
        [*machine.program("main", before=quickly), "sync"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    line = b""
    while b"local is down" not in line:
        line = process.stderr.readline()
        assert line.startswith(b"sending: 1000 B in 1 file left")
    process.send_signal(signal.SIGINT)
    said, rest = process.communicate(timeout=60)
    assert process.returncode == 3
    assert said == b""
    last = rest.decode().splitlines()[-1]
    assert last.startswith("cuckoo sync: not waited for: 1000 B in 1 file not yet on the clouds; the drive goes on")
    assert "cloud local is down: " in last


def test_an_interrupted_sync_for_programs(machine: Machine) -> None:
    machine.mount()
    (machine.mountpoint / "a").write_bytes(b"x" * 1000)
    machine.block_sending()
    # Told when it waits: the daemon tells nobody that somebody does.
    told = "from cuckoo_mount.cli import sending\nsending.SendingLine.update = lambda *_: print('waits', flush=True)"
    process = subprocess.Popen(
        [*machine.program("main", before=told), "sync", "--json"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"waits\n"
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    record = json.loads(said[said.index(b"{") :])
    assert process.returncode == 3
    assert record["sent"] is False
    assert record["pending"]["bytes"] == 1000
    assert [trouble["name"] for trouble in record["troubles"]] in ([], ["local"])


def test_too_few_copies_are_no_success(machine: Machine, base: Path) -> None:
    for name in ("usb", "nas"):
        (base / name).mkdir()
    assert machine.cuckoo("init", "--redundancy", "2", "--passphrase-file", phrase(base)).returncode == 0
    for name in ("usb", "nas"):
        assert machine.cuckoo("cloud", "add", name, base / name).returncode == 0
    machine.mount()
    (base / "nas").rename(base / "away")
    (machine.mountpoint / "a").write_bytes(os.urandom(1000))
    synced = machine.cuckoo("sync")
    assert synced.returncode == 3
    assert synced.stderr.startswith(
        "cuckoo sync: everything written before is on the clouds, but 1 pack has fewer copies than the drive's "
        "redundancy asks for; cloud nas is down: "
    )
    record = json.loads(machine.cuckoo("sync", "--json").stdout)
    assert (record["sent"], record["degraded"], record["troubles"][0]["name"]) == (True, 1, "nas")
    checked = machine.cuckoo("status", "--check")
    assert checked.returncode == 3
    assert "lose none of the clouds that have them" in checked.stdout
    assert "cloud nas is down: " in checked.stdout
    done = machine.cuckoo("umount")
    assert done.returncode == 3
    assert done.stdout.startswith("Unmounted.  Everything is on the clouds, but 1 pack has fewer copies")


def phrase(base: Path) -> Path:
    (base / "phrase").write_text("correct horse battery staple\n")
    (base / "phrase").chmod(0o600)
    return base / "phrase"


@pytest.mark.usefixtures("terminal_kind")
def test_status_is_watched_until_ctrl_c(machine: Machine) -> None:
    machine.mount()
    terminal, other_end = os.openpty()
    process = subprocess.Popen(
        [*machine.program("main"), "status", "--watch"], cwd=ROOT, stdout=other_end, stderr=other_end
    )
    os.close(other_end)
    with os.fdopen(terminal, "rb", buffering=0) as shown:
        read_until(shown, b"not yet sent")
        (machine.mountpoint / "a").write_bytes(b"x" * 1000)
        read_until(shown, b"1000 B in 1 file")
        process.send_signal(signal.SIGINT)
        rest = read_until(shown, None)
    assert process.wait(60) == 0
    assert b"Traceback" not in rest


def test_status_is_watched_through_a_pipe(machine: Machine) -> None:
    machine.mount()
    process = subprocess.Popen(
        [*machine.program("main"), "status", "--watch"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    seen = 0
    while seen < 2:
        line = process.stdout.readline()
        assert line, "it ended"
        seen += line.startswith(b"mountpoint")
    assert machine.cuckoo("umount").returncode in (0, 3)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert said.decode().startswith("cuckoo: ")
    assert said.count(b"\n") == 1


def test_colours_can_be_had_and_left_out(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.mount()
    for variable, coloured in (("NO_COLOR", False), ("FORCE_COLOR", True)):
        monkeypatch.setenv(variable, "1")
        done = subprocess.run(
            [*machine.program("main"), "status"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
        )
        monkeypatch.delenv(variable)
        assert done.returncode == 0
        assert ("\x1b[" in done.stdout) == coloured

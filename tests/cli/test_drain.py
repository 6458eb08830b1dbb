"""`cuckoo cloud drain`, `--no-new` and `cuckoo rebalance` on a drive that is not mounted."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cuckoo_mount.cli.sending import SendingLine
from cuckoo_mount.cli.statusview import notes_on
from cuckoo_mount.config import DrivePaths
from tests.cli.commanding import Shell, empty_drive
from tests.cli.test_cloud import write_file


def objects(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.slow
def test_a_cloud_is_emptied_and_removed(shell: Shell, base: Path, paths: DrivePaths) -> None:
    empty_drive(paths)
    for name in ("usb", "disk"):
        (base / name).mkdir()
        shell.done("cloud", "add", name, base / name, "--no-new")
    assert {cloud["use"] for cloud in shell.records("cloud", "list")} == {"no-new"}
    assert "ok, no-new" in shell.done("cloud", "list")
    said = shell.refused(2, "cloud", "drain", "usb", "--dry-run")
    assert "without cloud 'usb' there are 0 clouds that take packs, one copy needs 1; first: cuckoo cloud add" in said
    shell.done("cloud", "set", "usb", "--new")
    write_file(paths, os.urandom(100_000))
    shell.done("cloud", "set", "disk", "--new")
    said = shell.done("cloud", "drain", "usb", "--dry-run")
    assert said == "Cloud 'usb' has 97.9 KiB of 1 pack that the other clouds get, with all of their shares.\n"
    assert "say --yes" in shell.refused(2, "cloud", "drain", "usb")
    assert len(objects(base / "usb" / "cuckoo")) > 2
    result = shell.record("cloud", "drain", "usb", "--yes")
    assert (result["packs"], result["use"], result["objects_left"]) == (1, "drained", 0)
    assert objects(base / "usb") == []
    assert "usb" in shell.done("cloud", "list")
    assert [cloud["state"] for cloud in shell.records("cloud", "list")] == ["ok", "drained"]
    assert shell.done("cloud", "drain", "usb", "--dry-run") == "Cloud 'usb' is drained already.\n"
    assert "Nothing of the drive is left there" in shell.done("cloud", "remove", "usb")
    assert [cloud["packs"] for cloud in shell.records("cloud", "list")] == [1]
    said = shell.done("rebalance", "--dry-run")
    assert said.splitlines()[-1] == "The levels differ by 0.0 %; that is even."


def test_what_status_says_of_such_clouds() -> None:
    clouds = [
        {"name": "a", "state": "ok", "use": "draining", "packs": 5},
        {"name": "b", "state": "drained", "use": "drained", "packs": 0},
        {"name": "c", "state": "ok", "use": "normal", "packs": 3},
    ]
    notes = notes_on({"drive": "default", "redundancy": "2", "clouds": clouds, "epoch": {"cloud": 5}})
    assert notes == [
        "Cloud a is being drained, 5 packs are left there.",
        "Cloud b is drained; to take it off the list: cuckoo cloud remove b",
        "2 copies need 2 clouds, there are 1: cuckoo cloud add NAME URL",
    ]


def test_how_far_it_is_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    now_s = 0.0
    with SendingLine(quiet=False, clock=lambda: now_s) as line:
        line.moving({})
        for left in range(4, 0, -1):
            line.moving({"packs_left": left, "bytes_left": left << 20, "step": "moving packs", "trouble": ""})
            now_s += 10.0
        line.moving({"packs_left": 1, "bytes_left": 1 << 20, "trouble": "cloud a does not answer"})
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("moving packs: 3.0 MiB in 3 packs left, 102 KiB/s, about 30 s")
    assert said[-1].endswith("; cloud a does not answer")

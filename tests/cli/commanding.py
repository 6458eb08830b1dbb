"""What the tests of `cuckoo cloud`, `init` and `gc` share: commands run in this process, and a drive without clouds.

Used by the modules beside it.  A command on a drive that is not mounted opens it, with worker processes: 0.5 s each.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from cuckoo_mount.cli import common, main
from cuckoo_mount.config import CloudConfig, DriveConfig, DrivePaths, create_empty_drive, read_config


class Shell:
    """Runs `cuckoo` and keeps what it said last."""

    def __init__(self, capture: pytest.CaptureFixture[str]) -> None:
        self._capture = capture
        self.out = ""
        self.err = ""

    def __call__(self, *arguments: object) -> int:
        """Return the exit status."""
        status = common.run(main.group, "cuckoo", [str(argument) for argument in arguments])
        self.out, self.err = self._capture.readouterr()
        return status

    def done(self, *arguments: object) -> str:
        """Run what has to succeed without a word on stderr; return its output."""
        assert self(*arguments) == 0, self.err
        assert self.err == ""
        return self.out

    def record(self, *arguments: object) -> dict[str, Any]:
        """As `done`, with --json, for a command that prints an object."""
        record: dict[str, Any] = json.loads(self.done(*arguments, "--json"))
        return record

    def records(self, *arguments: object) -> list[dict[str, Any]]:
        """As `done`, with --json, for a command that prints a list."""
        records: list[dict[str, Any]] = json.loads(self.done(*arguments, "--json"))
        return records

    def refused(self, status: int, *arguments: object) -> str:
        """Run what has to fail with `status` and one line on stderr; return that line."""
        assert self(*arguments) == status, self.out + self.err
        assert self.out == ""
        assert self.err.startswith("cuckoo: ")
        assert self.err.count("\n") == 1, self.err
        return self.err


def empty_drive(paths: DrivePaths, *, redundancy: str = "none") -> DriveConfig:
    """Make a drive as `cuckoo init` leaves it on the disk, but for the metadata, which the first command makes."""
    config, _ = create_empty_drive(paths, redundancy=redundancy, pack_size_bytes=16 << 20, encrypted=True, ask=False)
    return config


def clouds_in_file(paths: DrivePaths) -> dict[str, CloudConfig]:
    """Return the clouds of the TOML file by name."""
    config = read_config(paths)
    assert config is not None
    return {cloud.name: cloud for cloud in config.clouds}

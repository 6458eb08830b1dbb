"""dbench: the calls that a file server makes for office programs, by several clients at once.

dbench compares the outcome of every call with what was recorded, and stops at the first that differs.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

from tests.mount.mounting import Mount
from tests.programs.running import need

pytestmark = [pytest.mark.mount, pytest.mark.slow, pytest.mark.timeout(240)]

CALLS: Final = Path("/usr/share/dbench/client.txt")


def run_dbench(mount: Mount, clients: int, seconds: int) -> None:
    need("dbench")
    mount.start()
    folder = mount.path / "dbench"
    folder.mkdir()
    done = mount.run("dbench", "-c", CALLS, "-t", str(seconds), "-D", folder, str(clients), timeout_s=seconds + 120)
    found = re.search(rb"^Throughput ([0-9.]+) MB/sec .*", done.stdout, re.MULTILINE)
    assert found is not None, done.stdout
    assert float(found[1]) > 0
    print(found[0].decode())
    mount.run("rm", "-r", folder)
    assert list(mount.path.iterdir()) == []


@pytest.mark.long
def test_dbench(mount: Mount) -> None:
    run_dbench(mount, 4, 3)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_dbench_for_a_minute(mount: Mount) -> None:
    mount.deadline_s = 600
    run_dbench(mount, 16, 60)

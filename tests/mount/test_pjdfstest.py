"""pjdfstest, a suite of some thousand POSIX calls, on a drive of its own: see docs/posix.md."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

TOOL: Final = Path(__file__).resolve().parents[2] / "tools" / "pjdfstest"
CHECKOUT: Final = os.environ.get("CUCKOO_PJDFSTEST", "")
SMALLEST_KIB: Final = 1 << 20

pytestmark = [
    pytest.mark.mount,
    pytest.mark.long,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(os.geteuid() != 0, reason="becomes other users, so it has to start as root"),
    pytest.mark.skipif(
        not CHECKOUT,
        reason="CUCKOO_PJDFSTEST names no checkout of https://github.com/pjd/pjdfstest in which "
        "`autoreconf -ifs && ./configure && make pjdfstest` was run",
    ),
]


def test_all_of_pjdfstest_in_one_gibibyte_of_address_space() -> None:
    done = subprocess.run(
        [TOOL, "--limit-kib", str(SMALLEST_KIB), CHECKOUT],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=3500,
        check=False,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stderr
    total = re.search(r"^all +\d+ +(\d+) +(\d+) ", done.stdout, re.MULTILINE)
    assert total is not None
    assert int(total[2]) == 0
    assert int(total[1]) > 8000

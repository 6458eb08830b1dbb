"""CPython's own tests of files, run in a folder on the mount.

What fails there has to fail in a folder of the local disk as well; else the file system is wrong, not the test.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest

from tests.mount.mounting import Mount
from tests.programs.running import PROGRAM_S

pytestmark = [pytest.mark.mount, pytest.mark.slow, pytest.mark.timeout(240)]

PYTHON: Final = Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
"""Not that of the virtual environment: some tests look at where Python lies."""
QUICK: Final = ("test_posix", "test_posixpath", "test_genericpath", "test_mmap", "test_fileio")
OTHERS: Final = (
    *("test_os", "test_shutil", "test_sqlite3", "test_tarfile", "test_zipfile", "test_mailbox", "test_pathlib"),
    *("test_glob", "test_largefile"),
)
_FAILED: Final = re.compile(rb"^(?:(?:FAIL|ERROR): .*|test_\w+ (?:failed|crashed|timed out))", re.MULTILINE)


def present(names: Sequence[str]) -> list[str]:
    """Return the tests that are installed; Debian leaves test_sqlite3 out of its package."""
    looks = "import importlib.util, sys; print(*[n for n in sys.argv[1:] if importlib.util.find_spec('test.' + n)])"
    done = subprocess.run(
        [PYTHON, "-I", "-c", looks, *names], stdout=subprocess.PIPE, text=True, check=False, timeout=60
    )
    found = done.stdout.split()
    if not found:
        pytest.skip("CPython's tests are not installed: libpython3.11-testsuite")
    print("not installed:", *sorted(set(names) - set(found)))
    return found


def run_tests(mount: Mount, folder: Path, names: Sequence[str], timeout_s: float) -> subprocess.CompletedProcess[bytes]:
    """Run the tests in `folder`, which is also where they put their temporary files."""
    folder.mkdir()
    # With the home folder of the mount's commands, and no PYTHON… of ours.
    environment = {key: text for key, text in mount.environment.items() if not key.startswith("PYTHON")}
    command: list[str | Path] = [
        PYTHON,
        "-I",
        "-m",
        "test",
        "--timeout",
        str(int(timeout_s)),
        "-W",
        "--tempdir",
        folder,
    ]
    return subprocess.run(
        [*command, *names],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env=environment | {"TMPDIR": os.fspath(folder)},
        timeout=timeout_s,
        check=False,
    )


def run_here_and_there(mount: Mount, local: Path, names: Sequence[str], timeout_s: float) -> None:
    found = present(names)
    mount.deadline_s = 2 * timeout_s
    mount.start()
    done = run_tests(mount, mount.path / "tests", found, timeout_s)
    print(done.stdout.decode("utf-8", "replace"))
    if done.returncode == 0:
        assert not _FAILED.search(done.stdout)
        return
    beside = run_tests(mount, local, found, timeout_s)
    only_here = set(_FAILED.findall(done.stdout)) - set(_FAILED.findall(beside.stdout))
    assert only_here == set(), done.stdout.decode("utf-8", "replace")
    assert beside.returncode != 0, "failed on the mount, and says nothing of what"


def test_quick_tests_of_cpython(mount: Mount, tmp_path: Path) -> None:
    run_here_and_there(mount, tmp_path / "local", QUICK, PROGRAM_S)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_all_tests_of_cpython_about_files(mount: Mount, tmp_path: Path) -> None:
    run_here_and_there(mount, tmp_path / "local", (*QUICK, *OTHERS), 850)

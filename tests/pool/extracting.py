"""Runs tools/extract.py as somebody does who has nothing of cuckoo-mount: a process of its own, a few packages only.

Used by the tests of the way out.  An import of anything but the standard library and `ALLOWED` fails in there.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Final

from attrs import frozen

from tests.pool.machines import Machine
from tests.pool.surveys import Survey, as_copied, assert_same_survey, survey
from tools.extract import main

EXTRACT: Final = Path(__file__).resolve().parents[2] / "tools" / "extract.py"
ALLOWED: Final = ("blake3", "cryptography", "zstandard", "_openssl", "_cffi_backend")
TIMEOUT_S: Final = 120.0
# Run with -I: neither PYTHONPATH nor the folder of the file is searched.
RUNNER: Final = """
import resource, runpy, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in known:
            raise ModuleNotFoundError(f"not for you: {name}", name=name)

known = {*sys.stdlib_module_names, *sys.argv.pop(1).split(",")}
for name in [name for name in sys.modules if name.partition(".")[0] not in known and name != "__main__"]:
    del sys.modules[name]
sys.meta_path.insert(0, Refuse())
del sys.argv[0]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    strangers = {name.partition(".")[0] for name in sys.modules} - known - {"__main__", "__mp_main__"}
    assert not strangers, strangers
    print("peak KiB", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@frozen
class Extraction:
    """What a run of extract.py said.  `lines`: on standard error, without the program's name."""

    status: int
    said: str
    lines: tuple[str, ...]
    peak_kib: int


def extract(*arguments: str | Path, through: Sequence[str] = (), timeout_s: float = TIMEOUT_S) -> Extraction:
    """Run extract.py.  `through`: a command that runs it, as another user perhaps."""
    done = run_isolated(EXTRACT, *arguments, through=through, timeout_s=timeout_s)
    said, found, peak_kib = done.stdout.decode().rpartition("peak KiB ")
    stderr = done.stderr.decode()
    assert found, stderr
    lines = stderr.splitlines()
    assert all(line.startswith(("extract.py: ", "usage: ", " ")) for line in lines), stderr
    return Extraction(done.returncode, said, tuple(line.removeprefix("extract.py: ") for line in lines), int(peak_kib))


def run_isolated(
    program: Path, *arguments: str | Path, through: Sequence[str] = (), timeout_s: float = TIMEOUT_S
) -> subprocess.CompletedProcess[bytes]:
    """Run a Python program that may import the standard library and `ALLOWED`, and nothing else."""
    return subprocess.run(
        (*through, sys.executable, "-I", "-c", RUNNER, ",".join(ALLOWED), program, *arguments),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        cwd="/",
        timeout=timeout_s,
        check=False,
    )


def refused(*arguments: str | Path, lines: int = 1) -> str:
    """Run extract.py, here, for it has to do nothing; return the last of the lines in which it says why."""
    with redirect_stdout(io.StringIO()) as stdout, redirect_stderr(io.StringIO()) as stderr:
        status = main([str(argument) for argument in arguments])
    said = stderr.getvalue().splitlines()
    assert (status, len(said), stdout.getvalue()) == (2, lines, ""), said
    return said[-1].removeprefix("extract.py: ")


def folders(machine: Machine, *, without: Sequence[str] = ()) -> list[Path]:
    """Return the folders that are the machine's clouds."""
    return [Path(place.config.url) for place in machine.places if place.name not in without]


def known(machine: Machine, *, without: Sequence[str] = ()) -> tuple[str | Path, ...]:
    """Return the arguments that name the passphrase and the folders."""
    return ("--passphrase-file", machine.passphrase_file, *folders(machine, without=without))


def restored(target: Path, wanted: Survey, *arguments: str | Path) -> Extraction:
    """Restore into `target`, fail unless it is `wanted` and all is well, and delete it again."""
    done = extract("--to", target, *arguments)
    assert done.status == 0, done
    assert_same_survey(as_copied(survey(target)), as_copied(wanted))
    shutil.rmtree(target)
    return done

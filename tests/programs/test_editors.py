"""How editors save: a temporary file that is renamed over the document, and vim with its own settings.

Meanwhile another process reads the document, and the daemon is told to send and to evict.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.mount.mounting import Mount
from tests.programs import saving
from tests.programs.running import PROGRAM_S, without_cache

pytestmark = [pytest.mark.mount, pytest.mark.slow, pytest.mark.timeout(240)]

PROGRAM: Final = (sys.executable, "-I", saving.__file__)


@contextmanager
def reader(document: Path) -> Iterator[list[int]]:
    """Read `document` in another process meanwhile; at the end the list has reads, versions seen and the last one."""
    found: list[int] = []
    with subprocess.Popen(
        [*PROGRAM, "read", document], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"reading\n"
            yield found
            said, error = process.communicate(b"end\n", timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0, error.decode("utf-8", "replace")
    found += [int(number) for number in said.split()]


def save_and_read(mount: Mount, count: int, *, sync: bool) -> None:
    mount.start()
    document = mount.path / "document"
    document.write_bytes(saving.version(0))
    with (
        reader(document) as found,
        subprocess.Popen([*PROGRAM, "save", document, str(count), str(int(sync))]) as writer,
    ):
        try:
            while writer.poll() is None:
                mount.sync()
                mount.evict()
            assert writer.returncode == 0
        finally:
            writer.kill()
    reads, versions, last = found
    print(f"{reads} reads saw {versions} versions")
    assert versions > 1
    assert last == count or document.read_bytes() == saving.version(count)
    assert sorted(path.name for path in mount.path.iterdir()) == ["document"]
    without_cache(mount)
    assert document.read_bytes() == saving.version(count)


@pytest.mark.parametrize("sync", [True, False])
def test_a_save_is_never_seen_half(mount: Mount, sync: bool) -> None:
    save_and_read(mount, 80, sync=sync)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_many_saves_are_never_seen_half(mount: Mount) -> None:
    mount.deadline_s = 900
    save_and_read(mount, 10_000, sync=True)


# -- vim --


VIM_SETTINGS: Final[tuple[list[str], ...]] = ([], ["set backup"], ["set backupcopy=yes"], ["set nowritebackup"])
"""The first is vim's default: 'writebackup' with 'backupcopy' auto.  The second leaves the old text as document~.
'backupskip' has /tmp in it, where the tests' folders lie."""


def find_vim() -> str:
    found = shutil.which("vim.tiny") or shutil.which("vim")
    if found is None:
        pytest.skip("not installed: vim.tiny or vim")
    return found


def look(document: Path, old: bytes, new: bytes, editor: subprocess.Popen[bytes]) -> int:
    """Read the document until the editor ends.  vim moves the old one away and writes the new one: it may be missing
    or shorter for a moment, on any disk, but it is never a mixture.  Return how often it was whole."""
    whole = 0
    end = time.monotonic() + PROGRAM_S
    while editor.poll() is None:
        assert time.monotonic() < end, "vim does not end"
        try:
            found = document.read_bytes()
        except FileNotFoundError:
            continue
        assert found == old or new.startswith(found), f"a mixture of {len(found)} bytes"
        whole += found in (old, new)
    return whole


def test_vim_saves_with_a_backup_while_it_writes(mount: Mount) -> None:
    vim = find_vim()
    mount.start()
    document = mount.path / "document"
    text = b"".join(b"edit0 %d\n" % number for number in range(50_000))
    document.write_bytes(text)
    document.chmod(0o640)
    for number, settings in enumerate(VIM_SETTINGS):
        new = text.replace(b"edit%d " % number, b"edit%d " % (number + 1))
        orders = ["set backupskip=", *settings, f"1,$s/^edit{number} /edit{number + 1} /", "wq"]
        commands = [word for order in orders for word in ("-c", order)]
        with subprocess.Popen(
            [vim, "-N", "-u", "NONE", "-i", "NONE", "-es", *commands, document],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env=mount.environment,
        ) as editor:
            try:
                if number < 2:
                    look(document, text, new, editor)
                editor.wait(PROGRAM_S)
            finally:
                editor.kill()
        assert editor.returncode == 0, settings
        assert document.read_bytes() == new
        assert document.stat().st_mode & 0o7777 == 0o640
        backup = mount.path / "document~"
        if "set backup" in settings:
            assert backup.read_bytes() == text
            backup.unlink()
        assert [path.name for path in mount.path.iterdir()] == ["document"]
        text = new
    without_cache(mount)
    assert document.read_bytes() == text

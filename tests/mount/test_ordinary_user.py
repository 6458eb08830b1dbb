"""Everything as an ordinary user: mounting by fusermount3, working, and what is refused to others.

When the tests run as root: in a mount namespace of its own, with a /dev/fuse that everybody may open.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

pytestmark = [pytest.mark.mount]

NOBODY: Final = 65534
TIMEOUT_S: Final = 100.0
AS_NOBODY: Final = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
SCRIPT: Final = """
set -eu
mount -t tmpfs none /mnt
mknod /mnt/fuse c 10 229
chmod 666 /mnt/fuse
mount --bind /mnt/fuse /dev/fuse
as_user() { setpriv --reuid=65534 --regid=65534 --clear-groups -- "$@"; }
as_user "$PYTHON" -m cuckoo_mount.cli.mount "$PLACE/mnt"
trap 'as_user fusermount3 -uz "$PLACE/mnt" 2>/dev/null' EXIT
as_user sh -euc '
    cd "$PLACE/mnt"
    echo one >a
    ln a b
    mkdir d
    mkfifo d/fifo
    chmod 2750 d
    setfattr -n user.note -v text a
    mv b d/c
    cmp a d/c
    df . >/dev/null
    ! chown 0 a 2>/dev/null
    ! mknod device c 1 3 2>/dev/null
'
! ls "$PLACE/mnt" 2>/dev/null || { echo "root got in without allow_root"; exit 1; }
as_user "$PYTHON" -m cuckoo_mount.cli.main umount "$PLACE/mnt" >/dev/null
as_user "$PYTHON" -m cuckoo_mount.cli.mount "$PLACE/mnt"
as_user sh -euc 'cd "$PLACE/mnt"; stat -c "%n %a %h %u" a d d/c; getfattr --only-values -n user.note a; cat d/c'
as_user "$PYTHON" -m cuckoo_mount.cli.main umount "$PLACE/mnt" >/dev/null
trap - EXIT
"""


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that an ordinary user may reach; pytest's own are closed to others."""
    folder = Path(tempfile.mkdtemp(prefix="cuckoo-user-"))
    folder.chmod(0o755)
    for name in ("home", "run", "mnt"):
        (folder / name).mkdir(mode=0o700)
        os.chown(folder / name, NOBODY, NOBODY)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="all other tests are run as an ordinary user here")
def test_an_ordinary_user_mounts_and_works(place: Path) -> None:
    package = str(Path(__file__).resolve().parents[2])
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(place / "home"),
        "XDG_RUNTIME_DIR": str(place / "run"),
        "PYTHON": sys.executable,
        "PYTHONPATH": package,
        "PLACE": str(place),
        "LC_ALL": "C.UTF-8",
    }
    reachable = [*AS_NOBODY, "--", sys.executable, "-c", "import cuckoo_mount"]
    if subprocess.run(reachable, env=environment, cwd="/", capture_output=True, check=False).returncode:
        pytest.skip("an ordinary user cannot reach this Python or this checkout")
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", SCRIPT],
        env=environment,
        cwd="/",
        capture_output=True,
        check=False,
        timeout=TIMEOUT_S,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith(f"a 644 2 {NOBODY}\nd 2750 2 {NOBODY}\nd/c 644 2 {NOBODY}\ntextone\n"), (
        done.stdout + done.stderr
    )

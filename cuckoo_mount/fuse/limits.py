"""How many requests the kernel may have under way: by itself it stops at 12, and then writes wait behind reads.

Used by mount.py.  READs of the page cache and late WRITEs share that limit; a READ that waits for a cloud takes its
place until the deadline.  The limit is a file of fusectl, which belongs to who mounted; containers often lack fusectl.
"""

from __future__ import annotations

import logging
import os
import subprocess
from pathlib import Path
from typing import Final

import trio

from cuckoo_mount.cache.content import WAITING_READS_MAX

log = logging.getLogger(__name__)
MAX_BACKGROUND: Final = WAITING_READS_MAX
_CONGESTION: Final = MAX_BACKGROUND * 3 // 4
_CONNECTIONS: Final = Path("/sys/fs/fuse/connections")
_PATIENCE_S: Final = 10.0
_ELSEWHERE: Final = """
mount -t fusectl none "$1" && echo "$3" > "$1/$2/max_background" && echo "$4" > "$1/$2/congestion_threshold"
"""


async def raise_background_limit(mountpoint: Path) -> None:
    """Let the kernel have more requests under way, where it offers that; else a line in the log says what to do."""
    try:
        await trio.to_thread.run_sync(_write_limits, mountpoint, abandon_on_cancel=True)
    except (OSError, subprocess.SubprocessError) as error:
        log.info(
            "as root: mount -t fusectl none %s, else reads that wait may hold back writes (%s)", _CONNECTIONS, error
        )


def _write_limits(mountpoint: Path) -> None:
    number = _connection_number(mountpoint)
    connection = _CONNECTIONS / number
    if not connection.exists() and os.geteuid() == 0:
        _write_elsewhere(number)
        return
    for name, value in (("max_background", MAX_BACKGROUND), ("congestion_threshold", _CONGESTION)):
        fd = os.open(connection / name, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, b"%d\n" % value)
        finally:
            os.close(fd)


def _write_elsewhere(number: str) -> None:
    """Mount fusectl where only one short-lived process sees it, and write the limits there.  Raises: OSError, …"""
    command = ["unshare", "--mount", "sh", "-c", _ELSEWHERE, "sh"]
    subprocess.run(
        [*command, str(_CONNECTIONS), number, str(MAX_BACKGROUND), str(_CONGESTION)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=True,
        timeout=_PATIENCE_S,
    )


def _connection_number(mountpoint: Path) -> str:
    """Return the number of the mount's connection.

    Not by stat(2): a thread that waits for the mount would keep a killed daemon from ending (cli/outside.py).
    Raises: OSError when it is not mounted (any more).
    """
    place = os.fsencode(mountpoint)
    for char in b"\\ \t\n":
        place = place.replace(bytes([char]), b"\\%03o" % char)
    for line in reversed(Path("/proc/self/mountinfo").read_bytes().splitlines()):
        fields = line.split(b" ")
        if fields[4] == place:
            return fields[2].partition(b":")[2].decode("ascii")
    raise FileNotFoundError(f"{mountpoint} is not in the table of mounts")

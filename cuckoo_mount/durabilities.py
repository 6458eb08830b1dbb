"""What fsync may wait for: the names, and how they are kept.

Used by parted/durability.py and commands.  Pure.
"""

from __future__ import annotations

from typing import Final

from cuckoo_mount.errors import UsageError

LOCAL: Final = "local"
CLOUD: Final = "cloud"
DURABILITY_XATTR: Final = b"user.cuckoo.durability"
"""Extended attribute of files and directories."""
DURABILITY_SETTING: Final = "durability"
DURABILITY_USED_SETTING: Final = "durability.used"
"""Settings of the drive: its own durability (none: local), and that files were given others."""


def check_durability(text: str) -> str:
    """Return a durability.  Raises: UsageError."""
    if text not in (LOCAL, CLOUD):
        raise UsageError(f"durability {text!r} is not understood; write {LOCAL} or {CLOUD}")
    return text

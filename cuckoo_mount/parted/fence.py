"""Whether this machine may still write to the drive: once not, never again while it is mounted.

Used by partedfs.py and tree.py.  Loop only, no I/O.
"""

from __future__ import annotations

from attrs import define, field

from cuckoo_mount.errors import ReadOnly


@define(slots=True, eq=False)
class Fence:
    """Open until `refuse`.  `reason`: why nothing may be changed any more, empty while everything may."""

    reason: str = field(default="", init=False)

    def refuse(self, reason: str) -> None:
        """Let `check` raise from now on; the first reason stays."""
        assert reason, "whoever refuses says why"
        self.reason = self.reason or reason

    def check(self) -> None:
        """Return if changes are allowed.  No checkpoint.  Raises: ReadOnly."""
        if self.reason:
            raise ReadOnly(self.reason)

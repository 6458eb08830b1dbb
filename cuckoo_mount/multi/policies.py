"""Which redundancy the files of one drive have: its own, and others that files or directories were given.

Used by packs, the cache, PartedFS and the drive, which share one object.  Loop only, never waits.  What is kept in the
metadata, and how stored packs follow a change, is in packs/repacking.py.
"""

from __future__ import annotations

from collections.abc import Iterable

from cuckoo_mount.multi.redundancy import format_policy, parse_policy


class Policies:
    """All redundancies of a drive, each as `format_policy` writes it.

    `default`: of every file without one of its own.  `others`: those that files may have besides.
    """

    def __init__(self, default: str = "1", others: Iterable[str] = ()) -> None:
        """Raises: UsageError for what is no policy."""
        self._default = format_policy(parse_policy(default))
        self._others = {format_policy(parse_policy(text)) for text in others}

    @property
    def default(self) -> str:
        """The drive's own redundancy."""
        return self._default

    @property
    def others(self) -> frozenset[str]:
        """What files may have besides; a policy stays here when the last of them is gone."""
        return frozenset(self._others)

    @property
    def is_uniform(self) -> bool:
        """Whether no file was ever given a redundancy of its own, so that none has to be looked for."""
        return not self._others

    def set_default(self, text: str) -> None:
        """Let the drive have another redundancy from now on.  Raises: UsageError."""
        self._default = format_policy(parse_policy(text))

    def add(self, text: str) -> bool:
        """Count a policy among `others`; return whether it was new.  Raises: UsageError."""
        text = format_policy(parse_policy(text))
        is_new = text not in self._others
        self._others.add(text)
        return is_new

    @property
    def losses(self) -> int:
        """How many clouds may be lost at most under any of the policies: what the metadata has to survive."""
        return max(parse_policy(text).parity for text in self._all)

    @property
    def most_shares(self) -> int:
        """How many shares a pack of this drive has at most."""
        return max(parse_policy(text).shares for text in self._all)

    @property
    def _all(self) -> frozenset[str]:
        return frozenset({self._default, *self._others})

    def strongest(self, texts: Iterable[str | None]) -> str:
        """Return, of these policies, one that survives most losses; None stands for the default.

        Among equals the one that is read with the fewest shares.  Of a version that several files name, this is the
        redundancy: each of them gets at least its own.
        """
        return max(
            (self._default if text is None else text for text in texts),
            key=lambda text: (parse_policy(text).parity, -parse_policy(text).data),
            default=self._default,
        )

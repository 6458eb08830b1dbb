"""Jobs for worker processes on packs whose shares are fragments: reading a range of the pack, from one share or from
several.

Importable functions of picklable arguments, may be repeated, raise as clouds/jobs.py.  A job on a pack takes a `Source`
first, and its ranges are those of the pack; `read_range` turns them into what lies where.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeVar

from attrs import frozen

from cuckoo_mount.clouds import jobs
from cuckoo_mount.clouds.base import CloudSettings
from cuckoo_mount.errors import CloudCorrupt
from cuckoo_mount.multi.erasure import data_of, ways
from cuckoo_mount.multi.redundancy import Policy

T = TypeVar("T")
WAYS_MAX: Final = 64
"""So many choices of shares are tried when bytes are wrong and it is not known which share has them."""
Range = tuple[int, int]
"""Start and end, in bytes."""


@frozen(slots=True)
class Fragment:
    """A share that is the bytes of the pack from `base` on."""

    settings: CloudSettings
    base: int

    @property
    def name(self) -> str:
        """The cloud's name."""
        return self.settings.name


@frozen(slots=True)
class HeldRange:
    """Bytes of the pack from `start` on, put together here.  `name`: where they come from."""

    name: str
    start: int
    data: bytes


Source = CloudSettings | Fragment | HeldRange
"""Where the bytes of a pack are; a cloud's settings stand for a copy of it."""


def read_range(source: Source, name: str, offset: int, length_bytes: int) -> bytes:
    """Return bytes of the pack from a share with object name `name`.  Raises: as `Cloud.get_range`."""
    if isinstance(source, HeldRange):
        return source.data[offset - source.start :][:length_bytes]
    if isinstance(source, Fragment):
        return jobs.get_range(source.settings, name, offset - source.base, length_bytes)
    return jobs.get_range(source, name, offset, length_bytes)


def on_fragment(settings: CloudSettings, name: str, base: int, job: Callable[..., T], *args: object) -> T:
    """Return `job(source, name, *args)` for a share that has all the bytes it wants."""
    return job(Fragment(settings, base), name, *args)


def get_columns(settings: CloudSettings, name: str, columns: Sequence[Range]) -> list[bytes]:
    """Return several ranges of one share.  Raises: as `Cloud.get_range`."""
    return [jobs.get_range(settings, name, start, end - start) for start, end in columns]


@frozen(slots=True)
class Stripe:
    """What is wanted of a pack, and the `columns` of its shares (the same ranges of each) that it takes.

    `share_bytes`: length of every share.
    """

    start: int
    end: int
    share_bytes: int
    columns: tuple[Range, ...]

    def put_together(self, found: Mapping[int, Sequence[bytes]], policy: Policy) -> bytes:
        """Return the wanted bytes, out of the columns of enough shares."""
        data = [
            data_of({number: parts[at] for number, parts in found.items()}, policy) for at in range(len(self.columns))
        ]
        wanted = []
        for share, low, high in pieces_of(self.start, self.end, self.share_bytes):
            at = next(at for at, (start, end) in enumerate(self.columns) if start <= low and high <= end)
            start = self.columns[at][0]
            wanted.append(data[at][share][low - start : high - start])
        return b"".join(wanted)


def stripe_of(start: int, end: int, share_bytes: int) -> Stripe:
    """Return what has to be read of each share for a range of the pack, 0 ≤ start < end."""
    columns: list[Range] = []
    for low, high in sorted((low, high) for _, low, high in pieces_of(start, end, share_bytes)):
        if columns and low <= columns[-1][1]:
            columns[-1] = (columns[-1][0], max(columns[-1][1], high))
        else:
            columns.append((low, high))
    return Stripe(start, end, share_bytes, tuple(columns))


def pieces_of(start: int, end: int, share_bytes: int) -> list[tuple[int, int, int]]:
    """Cut a range of a pack into (data share, start, end) with start and end within the share."""
    pieces = []
    while start < end:
        share, low = divmod(start, share_bytes)
        high = min(share_bytes, low + end - start)
        pieces.append((share, low, high))
        start += high - low
    return pieces


def on_stripe(
    stripe: Stripe,
    found: Mapping[int, Sequence[bytes]],
    policy: Policy,
    where: str,
    job: Callable[..., T],
    *args: object,
) -> T:
    """Return `job(source, "", *args)` for bytes put together from any shares that make it succeed.

    `found`: the columns of each share, at least as many as are needed.  Raises: CloudCorrupt when none do.
    """
    error = CloudCorrupt("too few shares", cloud=where)
    for chosen in ways(sorted(found), policy, most=WAYS_MAX):
        data = stripe.put_together({number: found[number] for number in chosen}, policy)
        try:
            return job(HeldRange(where, stripe.start, data), "", *args)
        except CloudCorrupt as wrong:
            error = wrong
    raise error

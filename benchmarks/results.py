"""What was measured, and the tables of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

from attrs import field, frozen

BASELINE: Final = "folder"
FLOOR: Final = "floor"
_NAME_WIDTH: Final = 19
_WIDTH: Final = 11
_UPCALLS_SHOWN: Final = 6
_MEASURABLE_S: Final = 0.001
"""Below that there was nothing to do, and a ratio says nothing."""


@frozen(slots=True)
class Result:
    """One piece of work on one peer.  `problem`: why it failed; empty if it did not.

    `disturbed`: somebody on this machine dropped the page cache meanwhile or just before.
    """

    peer: str
    work: str
    seconds: float
    cpu_seconds: float = 0.0
    problem: str = ""
    disturbed: bool = False
    upcalls: Counter[str] = field(factory=Counter)
    link: Counter[str] = field(factory=Counter)


class Results:
    """All results of a run, in the order in which they were measured."""

    def __init__(self) -> None:
        self.all: Final[list[Result]] = []

    def add(self, result: Result) -> None:
        self.all.append(result)

    def get(self, peer: str, work: str) -> Result | None:
        """Return a result, None if there is none or it failed."""
        found = [r for r in self.all if (r.peer, r.work) == (peer, work) and not r.problem]
        return found[0] if found else None

    def tables(self) -> str:
        """Return everything as text."""
        peers = list(dict.fromkeys(result.peer for result in self.all))
        parts = [self._table("seconds", peers, self._seconds)]
        for reference in (BASELINE, FLOOR):
            others = [peer for peer in peers if peer != reference]
            if reference in peers and others:
                parts.append(self._table(f"times {reference}", others, self._ratio_to(reference)))
        parts.append(self._table("daemon CPU s", [p for p in peers if p != BASELINE], self._cpu))
        parts += [self._upcalls(peer) for peer in peers if any(r.upcalls for r in self.all if r.peer == peer)]
        parts += [self._link(peer) for peer in peers if any(r.link for r in self.all if r.peer == peer)]
        if any(result.disturbed for result in self.all):
            parts.append("* another program dropped the page cache meanwhile or just before; measure again")
        return "\n\n".join(parts)

    def _table(self, title: str, peers: Sequence[str], cell: Callable[[str, str], str]) -> str:
        works = list(dict.fromkeys(result.work for result in self.all))
        lines = [title.ljust(_NAME_WIDTH) + "".join(peer.rjust(_WIDTH) for peer in peers)]
        for work in works:
            cells = [cell(peer, work) for peer in peers]
            if any(cells):
                lines.append(work.ljust(_NAME_WIDTH) + "".join((text or "-").rjust(_WIDTH) for text in cells))
        return "\n".join(lines)

    def _seconds(self, peer: str, work: str) -> str:
        if any(r.problem for r in self.all if (r.peer, r.work) == (peer, work)):
            return "FAILED"
        result = self.get(peer, work)
        return "" if result is None else f"{'*' if result.disturbed else ''}{result.seconds:.3f}"

    def _cpu(self, peer: str, work: str) -> str:
        result = self.get(peer, work)
        return "" if result is None else f"{result.cpu_seconds:.2f}"

    def _ratio_to(self, reference: str) -> Callable[[str, str], str]:
        def cell(peer: str, work: str) -> str:
            result, base = self.get(peer, work), self.get(reference, work)
            if result is None or base is None or base.seconds < _MEASURABLE_S:
                return ""
            return f"{result.seconds / base.seconds:.1f}"

        return cell

    def _upcalls(self, peer: str) -> str:
        lines = [f"upcalls of {peer}"]
        for result in self.all:
            if result.peer == peer and result.upcalls:
                most = result.upcalls.most_common()
                shown = ", ".join(f"{name} {count}" for name, count in most[:_UPCALLS_SHOWN])
                more = ", …" if len(most) > _UPCALLS_SHOWN else ""
                lines.append(f"{result.work:<{_NAME_WIDTH}}{result.upcalls.total():>{_WIDTH}}  {shown}{more}")
        return "\n".join(lines)

    def _link(self, peer: str) -> str:
        lines = [f"over the link of {peer}"]
        for result in self.all:
            if result.peer == peer and result.link:
                up, down = (result.link[key] / 1e6 for key in ("up", "down"))
                lines.append(
                    f"{result.work:<{_NAME_WIDTH}}{result.link['requests']:>{_WIDTH}} requests"
                    f" {up:.1f} MB up {down:.1f} MB down"
                )
        return "\n".join(lines)

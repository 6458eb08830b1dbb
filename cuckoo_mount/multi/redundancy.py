"""Redundancy policies: their text, and how many shares they mean.

Used by multi/multifs.py and by commands.  Pure functions.  The text is part of the format (docs/format.md, "Policies"):
`1` one copy, `N` copies on distinct clouds, `K+M` erasure code of K data and M parity shares.
"""

from __future__ import annotations

import re
from typing import Final

from attrs import frozen

from cuckoo_mount.errors import UsageError
from cuckoo_mount.format import share_length

NO_REDUNDANCY: Final = "none"
"""One copy, as people write it."""
ERASURE_SHARES_MAX: Final = 32
"""More the library cannot do, and nobody has so many clouds."""
SHARES_MAX: Final = 256
"""Share numbers are 0 … 255."""
_TEXT: Final = re.compile(r"([1-9][0-9]{0,2})(?:\+([1-9][0-9]{0,2}))?", re.ASCII)


@frozen(slots=True)
class Policy:
    """`data` shares carry the bytes, `parity` more can replace as many of them; copies have 1 data share.

    For N copies, data = 1 and parity = N - 1: any one share is enough and N - 1 may be lost.
    """

    data: int
    parity: int

    def __attrs_post_init__(self) -> None:
        if self.data < 1 or self.parity < 0 or self.shares > SHARES_MAX:
            raise UsageError(f"redundancy {self.data}+{self.parity} is out of range; at most {SHARES_MAX} in all")

    @property
    def shares(self) -> int:
        """Number of shares in all; as many clouds are wanted."""
        return self.data + self.parity

    def share_bytes(self, pack_bytes: int) -> int:
        """Return the length of each share of a pack of `pack_bytes`."""
        return share_length(pack_bytes, self.data)

    @property
    def is_copies(self) -> bool:
        """Whether each share is the whole pack."""
        return self.data == 1


ONE_COPY: Final = Policy(1, 0)


def parse_policy(text: str) -> Policy:
    """Return the policy that `text` means: `none` and `1` are one copy, `N` copies, `K+M` shares.

    Raises: UsageError with what to write instead.
    """
    if text == NO_REDUNDANCY:
        return Policy(1, 0)
    found = _TEXT.fullmatch(text)
    if found is None:
        raise UsageError(f"redundancy {text!r} is not understood; write none, a number of copies such as 2, or K+M")
    first, second = int(found[1]), found[2]
    return Policy(1, first - 1) if second is None else Policy(first, int(second))


def check_redundancy(text: str) -> str:
    """Return a redundancy as it is kept: `none`, the number of copies, ≥ 2, or K+M for an erasure code.

    Raises: UsageError for what is no redundancy.
    """
    if text == NO_REDUNDANCY:
        return text
    policy = parse_policy(text)
    if not policy.is_copies and not policy.parity:
        raise UsageError(f"redundancy {text} survives no loss; write {policy.data}+1 to survive one cloud, or none")
    if not policy.is_copies and policy.shares > ERASURE_SHARES_MAX:
        raise UsageError(f"redundancy {text}: at most {ERASURE_SHARES_MAX} shares in all; on how many clouds?")
    if policy.shares == 1:
        raise UsageError(f"redundancy {text} is one copy, which is none; write none, or 2 for two copies")
    return format_policy(policy)


def format_policy(policy: Policy) -> str:
    """Return the text of a policy, as packs and settings keep it.  1+M is the same as M+1 copies and written so."""
    return str(policy.shares) if policy.is_copies else f"{policy.data}+{policy.parity}"


def describe_policy(policy: Policy) -> str:
    """Return what people call it: "one copy", "2 copies", "3+2 shares"."""
    if policy.shares == 1:
        return "one copy"
    return f"{policy.shares} copies" if policy.is_copies else f"{format_policy(policy)} shares"


def shares_needed(text: str) -> int:
    """Return how many shares of a pack are enough to read it.  Raises: UsageError for text that is no policy."""
    return parse_policy(text).data

"""Reed-Solomon: parity shares of a pack, and any share from as many others as there are data shares.

Used by the pack builder and by reads, in worker processes: the library holds the GIL.  Pure functions of bytes.
The code (docs/format.md, "Shares"): over GF(2^8) with polynomial 0x11d, byte by byte, parity share i is the sum over
all data shares j of data[j] / ((K + i) xor j), a Cauchy matrix; every K of the K + M shares are enough.
Source: J. Blömer et al., "An XOR-Based Erasure-Resilient Coding Scheme", 1995, for the matrix; ISA-L computes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import combinations
from typing import Any, Final, Protocol, cast

from cuckoo_mount.multi.redundancy import Policy

_ALIGN_BYTES: Final = 64
_LIBRARY_HEADER_BYTES: Final = 80
"""What liberasurecode puts before each share in memory: where it belongs and how long it is.  None of it is stored."""


class _Driver(Protocol):
    def encode(self, data: bytes) -> list[bytes]: ...

    def decode(self, fragments: list[bytes]) -> bytes: ...


@lru_cache(maxsize=8)
def _driver(data: int, parity: int) -> _Driver:
    from pyeclib.ec_iface import ECDriver  # loads native libraries: only where something is erasure-coded

    return cast(_Driver, ECDriver(k=data, m=parity, ec_type="isa_l_rs_cauchy", chksum_type="none"))


@lru_cache(maxsize=64)
def _headers(data: int, parity: int, length_bytes: int) -> tuple[bytes, ...]:
    """Return what the library wants before each share of that length: it depends on nothing else."""
    shares: list[Any] = _driver(data, parity).encode(bytes(data * length_bytes))
    return tuple(bytes(share[:_LIBRARY_HEADER_BYTES]) for share in shares)


def parity_path(path: str, share: int) -> str:
    """Return where a parity share of the local pack file `path` is."""
    return f"{path}.{share}"


def split(pack: bytes, policy: Policy) -> list[bytes]:
    """Return the data shares of a pack: equally long ranges of it, the last ones filled up with zeros."""
    length = policy.share_bytes(len(pack))
    return [pack[start : start + length].ljust(length, b"\0") for start in range(0, policy.data * length, length)]


def parity_of(shares: Sequence[bytes], policy: Policy) -> list[bytes]:
    """Return the parity shares that belong to all data shares, or to the same range of each of them."""
    (length,) = {len(share) for share in shares}
    padded = length + -length % _ALIGN_BYTES
    found = _driver(policy.data, policy.parity).encode(b"".join(share.ljust(padded, b"\0") for share in shares))
    return [bytes(share[_LIBRARY_HEADER_BYTES:][:length]) for share in found[policy.data :]]


def data_of(shares: Mapping[int, bytes], policy: Policy) -> list[bytes]:
    """Return all data shares from any `policy.data` of the shares, or from the same range of each of them.

    Wrong bytes in one of them make wrong bytes here: compare digests.  Raises: ValueError for too few shares.
    """
    if len(shares) < policy.data:
        raise ValueError(f"{len(shares)} shares are not enough for {policy.data}")
    chosen = dict(sorted(shares.items())[: policy.data])
    (length,) = {len(share) for share in chosen.values()}
    if all(number < policy.data for number in chosen) or not length:
        return list(chosen.values()) if length else [b""] * policy.data
    padded = length + -length % _ALIGN_BYTES
    headers = _headers(policy.data, policy.parity, padded)
    whole = _driver(policy.data, policy.parity).decode(
        [headers[number] + share.ljust(padded, b"\0") for number, share in chosen.items()]
    )
    return [whole[start : start + length] for start in range(0, policy.data * padded, padded)]


def ways(numbers: Sequence[int], policy: Policy, *, most: int) -> Iterator[tuple[int, ...]]:
    """Yield up to `most` ways to choose enough of these shares, those with the first numbers first."""
    for count, chosen in enumerate(combinations(sorted(numbers), policy.data)):
        if count == most:
            return
        yield chosen

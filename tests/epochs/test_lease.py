"""Claims of the right to write: there and back, every bit counts, bound to name, drive and key."""

from __future__ import annotations

import pytest
from attrs import evolve

from cuckoo_mount.epochformat import LeaseName
from cuckoo_mount.epochs.lease import Lease, seal_lease, unseal_lease
from cuckoo_mount.errors import CloudCorrupt, CuckooError, FormatError
from tests.epochs.epochtools import DRIVE, KEYS, OTHER_KEYS

LEASE = Lease(1_800_000_000_000_000_000, "büro-pc", 3)
NAME = LeaseName(4, 0xC0FFEE)


@pytest.mark.parametrize("encrypted", [True, False])
def test_there_and_back(encrypted: bool) -> None:
    data = seal_lease(LEASE, NAME, KEYS.drive, DRIVE, encrypted=encrypted)
    assert unseal_lease(data, NAME, KEYS.drive, DRIVE) == LEASE
    assert (b'"host"' in data) != encrypted
    assert data != seal_lease(LEASE, NAME, KEYS.drive, DRIVE, encrypted=encrypted)


@pytest.mark.parametrize("encrypted", [True, False])
def test_every_bit_counts(encrypted: bool) -> None:
    data = seal_lease(LEASE, NAME, KEYS.drive, DRIVE, encrypted=encrypted)
    for bit in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[bit >> 3] ^= 1 << (bit & 7)
        with pytest.raises((CloudCorrupt, FormatError)):
            unseal_lease(bytes(flipped), NAME, KEYS.drive, DRIVE)
    for length in range(len(data)):
        with pytest.raises(CloudCorrupt):
            unseal_lease(data[:length], NAME, KEYS.drive, DRIVE)


def test_of_another_name_drive_or_key() -> None:
    data = seal_lease(LEASE, NAME, KEYS.drive, DRIVE, encrypted=True)
    tries = (
        (evolve(NAME, term=5), KEYS, DRIVE),
        (evolve(NAME, writer=1), KEYS, DRIVE),
        (NAME, KEYS, bytes(16)),
        (NAME, OTHER_KEYS, DRIVE),
    )
    for name, keys, drive in tries:
        with pytest.raises(CuckooError):
            unseal_lease(data, name, keys.drive, drive)

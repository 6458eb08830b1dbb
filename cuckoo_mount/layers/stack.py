"""Which layers a drive's bodies go through, in which order: the only place that knows.

Used by packs.  A drive has one stack for its life; it depends on the drive's settings, never on what an object claims
about itself, so that a cloud cannot talk a reader out of decrypting.
"""

from __future__ import annotations

from cuckoo_mount.layers.base import Stack
from cuckoo_mount.layers.compression import Compression
from cuckoo_mount.layers.encryption import Encryption
from cuckoo_mount.layers.keys import DriveKeys


def stack_of(keys: DriveKeys, *, encrypted: bool) -> Stack:
    """Return the stack of a drive: compression, then encryption unless the drive was made without."""
    if encrypted:
        return Stack((Compression(), Encryption(keys)))
    return Stack((Compression(),))

"""What a layer is: bytes in, bytes out, and a small context; and the stack that puts layers in order.

Used by packs and by whatever reads packs without the daemon.  Pure functions of their arguments, safe in any number of
threads and processes, never a checkpoint.  A layer knows no pack, no cloud and no other layer (docs/format.md, "Pack").
"""

from __future__ import annotations

from typing import Protocol

from attrs import frozen

from cuckoo_mount.errors import CloudCorrupt
from cuckoo_mount.format import DIGEST_BYTES, ID_BYTES


@frozen(slots=True)
class SealContext:
    """What a body is bound to: it opens only with exactly the context it was sealed with.

    `offset`: of the body in its pack.  `digest`: keyed hash of the plain bytes, 32 zero bytes for the index.
    `plain_bytes`: how many bytes the body has when unsealed; a layer never makes more than that from what it is given.
    """

    drive_id: bytes
    pack_id: bytes
    offset: int
    digest: bytes
    plain_bytes: int

    def __attrs_post_init__(self) -> None:
        sizes = (len(self.drive_id), len(self.pack_id), len(self.digest))
        if sizes != (ID_BYTES, ID_BYTES, DIGEST_BYTES) or self.offset < 0 or self.plain_bytes < 0:
            raise ValueError(f"not a context: ids and digest of {sizes} bytes, offset {self.offset}")


class Layer(Protocol):
    """One reversible step between plain bytes and what is stored: decode(encode(x)) == x for the same context."""

    def encode(self, data: bytes, context: SealContext) -> bytes:
        """Return `data` in this layer's form.  Deterministic, so that a repeated job makes the same pack."""

    def decode(self, data: bytes, context: SealContext) -> bytes:
        """Return what was encoded.

        Raises: CloudCorrupt (the bytes or the context are not those of encode), FormatError (damaged, or made by a
        newer version); never anything else, whatever `data` is.
        """


@frozen(slots=True)
class Stack:
    """Layers in the order of sealing: the first one sees the plain bytes."""

    layers: tuple[Layer, ...]

    def seal(self, plain: bytes, context: SealContext) -> bytes:
        """Return the body to store; its length is at least 1, so that two bodies never share an offset."""
        if len(plain) != context.plain_bytes:
            raise ValueError(f"context is for {context.plain_bytes} bytes, not {len(plain)}")
        for layer in self.layers:
            plain = layer.encode(plain, context)
        return plain

    def unseal(self, sealed: bytes, context: SealContext) -> bytes:
        """Return exactly `context.plain_bytes` plain bytes; comparing their keyed hash is up to the caller.

        Raises: CloudCorrupt, FormatError, as `Layer.decode`.
        """
        for layer in reversed(self.layers):
            sealed = layer.decode(sealed, context)
        if len(sealed) != context.plain_bytes:
            raise CloudCorrupt(f"unsealed to {len(sealed)} bytes instead of {context.plain_bytes}")
        return sealed

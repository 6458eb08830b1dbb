"""Makes pack files out of chunks: the job that seals, run in a worker process.

Used by packs/writer.py through WorkerPool, and by tests directly.  Blocks; no shared state; memory stays at a few MiB
because one chunk after the other is read, sealed and written.  Owns: a version is read once into memory, and hash and
sealed form come from that one buffer, so that they can never contradict each other (docs/format.md, "Pack").
May run twice for one spec when a worker dies: nothing of the first run has left the machine, so that its nonces count
as never used.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final

from attrs import evolve, field, frozen

from cuckoo_mount.errors import DataUnavailable, FileSystemError, NoSpace
from cuckoo_mount.format import (
    DIGEST_BYTES,
    PackEntry,
    PackFooter,
    pack_footer,
    pack_header,
    pack_index,
)
from cuckoo_mount.layers.base import SealContext, Stack
from cuckoo_mount.layers.keys import DriveKeys
from cuckoo_mount.layers.stack import stack_of
from cuckoo_mount.multi.erasure import parity_of, parity_path, split
from cuckoo_mount.multi.redundancy import ONE_COPY, Policy
from cuckoo_mount.types import DirtyChunk, Duplicate, SealedChunk, VersionNo

INDEX_DIGEST_BYTES: Final = 16
_WRITE_BUFFER_BYTES: Final = 1 << 20


@frozen(slots=True)
class ChunkSource:
    """Where a frozen version's bytes are: `chunk.length_bytes` at `offset` of the local file `path`.

    Past the end of that file they are zeros.

    `aside_path`: where, from offset 0, a complete copy of them will be before the first write to the frozen chunk
    changes `path`; it must appear there by a rename.  The builder looks for it after it has read `path`: if it is not
    there then, what was read is older than any such write.  Empty: nobody writes while the pack is built.
    """

    chunk: DirtyChunk
    path: str
    offset: int
    aside_path: str = ""


@frozen(slots=True, kw_only=True)
class BuildSpec:
    """All that a worker needs to build one pack.  `target`: path of the pack file, made or overwritten.

    `seal_repeats`: give every source a body of its own, even if an earlier one has the same bytes.  `policy`: with an
    erasure code the parity shares are made, too, in files beside the target (`parity_path`).
    """

    drive_id: bytes
    pack_id: bytes
    keys: DriveKeys = field(repr=False)
    encrypted: bool
    sources: tuple[ChunkSource, ...]
    target: str
    seal_repeats: bool = False
    policy: Policy = ONE_COPY


@frozen(slots=True)
class BuiltPack:
    """A complete pack file on the local disk.  `share_digest`: keyed hash of all its bytes, digest of each copy.

    `fragments`: the digest of each share, where shares are not copies.

    `policy`: that of the specification.
    `missing`: chunks whose local file was gone; they are not in the pack.  `sealed` may be empty because of them.
    `repeats`: chunks with the bytes of an earlier one, which is sealed; they are not in the pack either.
    """

    pack_id: bytes
    path: str
    size_bytes: int
    share_digest: bytes
    sealed: tuple[SealedChunk, ...]
    missing: tuple[DirtyChunk, ...]
    repeats: tuple[Duplicate, ...] = ()
    fragments: tuple[bytes, ...] = ()
    policy: Policy = ONE_COPY


def build_pack(spec: BuildSpec) -> BuiltPack:
    """Build the pack file `spec.target` and return what is in it; file and directory entry are then on the disk.

    Chunks lie in the order of the sources.  Overwrites what an earlier run of the same spec left.
    Raises: NoSpace (local disk full), DataUnavailable (the local disk refused to read or write); the target is then
    incomplete and may be removed.
    """
    try:
        with open(spec.target, "wb", buffering=_WRITE_BUFFER_BYTES) as file:
            os.fchmod(file.fileno(), 0o600)
            body = _PackBody(spec)
            for part in body.parts():
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        fragments = () if spec.policy.is_copies else _write_parity(spec)
        _sync_directory(os.path.dirname(spec.target))
    except OSError as error:
        raise _local_error(error, "pack file", spec.target) from None
    return evolve(body.result(), fragments=fragments, policy=spec.policy)


def _write_parity(spec: BuildSpec) -> tuple[bytes, ...]:
    """Write the parity shares of the finished pack file, and return the digest of every share.  Raises: OSError."""
    with open(spec.target, "rb", buffering=0) as file:
        shares = split(file.readall(), spec.policy)
    for number, share in enumerate(parity_of(shares, spec.policy), spec.policy.data):
        shares.append(share)
        with open(parity_path(spec.target, number), "wb", buffering=_WRITE_BUFFER_BYTES) as parity:
            os.fchmod(parity.fileno(), 0o600)
            parity.write(share)
            parity.flush()
            os.fsync(parity.fileno())  # what a full disk would drop must not be sent
    return tuple(spec.keys.share_hasher().update(share).digest() for share in shares)


class _PackBody:
    """The bytes of one pack, part by part, and what is learnt on the way."""

    def __init__(self, spec: BuildSpec) -> None:
        self._spec = spec
        self._stack: Stack = stack_of(spec.keys, encrypted=spec.encrypted)
        self._hasher = spec.keys.share_hasher()
        self._size_bytes = 0
        self._entries: list[PackEntry] = []
        self._sealed: list[SealedChunk] = []
        self._missing: list[DirtyChunk] = []
        self._repeats: list[Duplicate] = []
        self._first: dict[tuple[bytes, int], VersionNo] = {}

    def parts(self) -> Iterator[bytes]:
        """Yield header, bodies, index and footer; each is counted and hashed as it passes."""
        yield self._pass(pack_header(self._spec.drive_id, self._spec.pack_id, encrypted=self._spec.encrypted))
        with _SourceReader() as reader:
            for source in self._spec.sources:
                plain = reader.read(source)
                if plain is None:
                    self._missing.append(source.chunk)
                elif body := self._seal_chunk(source.chunk, plain):
                    yield self._pass(body)
        yield from self._tail()

    def result(self) -> BuiltPack:
        return BuiltPack(
            pack_id=self._spec.pack_id,
            path=self._spec.target,
            size_bytes=self._size_bytes,
            share_digest=self._hasher.digest(),
            sealed=tuple(self._sealed),
            missing=tuple(self._missing),
            repeats=tuple(self._repeats),
        )

    def _pass(self, part: bytes) -> bytes:
        self._hasher.update(part)
        self._size_bytes += len(part)
        return part

    def _seal(self, plain: bytes, digest: bytes) -> bytes:
        spec = self._spec
        return self._stack.seal(plain, SealContext(spec.drive_id, spec.pack_id, self._size_bytes, digest, len(plain)))

    def _seal_chunk(self, chunk: DirtyChunk, plain: bytes) -> bytes:
        """Return the body of a chunk, or nothing if it repeats an earlier one."""
        digest = self._spec.keys.chunk_digest(plain)
        first = self._first.setdefault((digest, len(plain)), chunk.version)
        if first != chunk.version and not self._spec.seal_repeats:
            self._repeats.append(Duplicate(chunk, first))
            return b""
        body = self._seal(plain, digest)
        offset = self._size_bytes
        self._sealed.append(SealedChunk(chunk, offset, len(body), digest))
        self._entries.append(PackEntry(chunk.version, chunk.ino, chunk.index, offset, len(body), len(plain), digest))
        return body

    def _tail(self) -> Iterator[bytes]:
        index = pack_index(self._entries)
        index_offset = self._size_bytes
        body = self._seal(index, bytes(DIGEST_BYTES))
        yield self._pass(body)
        digest = self._spec.keys.chunk_digest(index)[:INDEX_DIGEST_BYTES]
        yield self._pass(pack_footer(PackFooter(index_offset, len(body), len(self._entries), digest)))


class _SourceReader:
    """Reads chunks of local files, keeping the last file open: chunks of one file usually follow each other."""

    def __init__(self) -> None:
        self._path = ""
        self._descriptor = -1

    def __enter__(self) -> _SourceReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def read(self, source: ChunkSource) -> bytes | None:
        """Return the version's bytes, or None when there is no such file (any more).

        Raises: DataUnavailable when the local disk refuses.
        """
        try:
            plain = self._read_path(source.path, source.offset, source.chunk.length_bytes)
            if source.aside_path:
                # Not before the read above: a copy that appears between a look and the read would go unnoticed.
                copied = self._read_path(source.aside_path, 0, source.chunk.length_bytes)
                return plain if copied is None else copied
        except OSError as error:
            raise _local_error(error, "local file of the cache", source.path) from None
        return plain

    def _read_path(self, path: str, offset: int, length_bytes: int) -> bytes | None:
        if path != self._path:
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                return None
            self._close()
            self._path, self._descriptor = path, descriptor
        return _read_padded(self._descriptor, offset, length_bytes)

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._path, self._descriptor = "", -1


def _read_padded(descriptor: int, offset: int, length_bytes: int) -> bytes:
    data = os.pread(descriptor, length_bytes, offset)
    while 0 < len(data) < length_bytes:
        more = os.pread(descriptor, length_bytes - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data.ljust(length_bytes, b"\0")


def _sync_directory(path: str) -> None:
    descriptor = os.open(path or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _local_error(error: OSError, what: str, path: str) -> FileSystemError:
    text = f"{what} {os.path.basename(path)}: {error.strerror}"
    if error.errno == NoSpace.errno:
        return NoSpace(f"{text}; free some space on the local disk")
    return DataUnavailable(f"{text}; check the local disk")

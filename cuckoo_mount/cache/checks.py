"""The cache's invariants, checked against the local files and the metadata.  Called by tests and by `fsck`.

Loop only; reads every clean chunk, so it is slow on a large cache.  One line per violation, empty when all hold.
"""

from __future__ import annotations

import os

from cuckoo_mount.cache.content import Content
from cuckoo_mount.types import CHUNK_SIZE_BYTES, ChunkIndex, ChunkRow, InodeNo

_ALL = ChunkIndex(1 << 40)


async def check_cache(content: Content) -> list[str]:
    """Check I-3, I-7, I-8, I-13 and I-18."""
    problems = [line for state in list(content.states) for line in _check_slots(content, state)]
    for ino in list(content.states):
        problems += await _check_rows_of(content, ino)
    inodes = set(content.files.inodes(in_state=True)) | set(content.files.inodes(in_state=False))
    for ino in sorted(inodes):
        for row in await content.metadata.chunk_rows(ino, ChunkIndex(0), _ALL):
            problems += _check_row(content, ino, row)
    problems += _check_frozen(content)
    limits = content.pressure.limits
    top = limits.limit_bytes + limits.overshoot_bytes + (64 << 20)
    if content.pressure.used_bytes > top:
        problems.append(f"I-18: {content.pressure.used_bytes} bytes are held, the limit is {limits.limit_bytes}")
    if content.pressure.pending_bytes != sum(state.extra_bytes for state in content.states.values()):
        problems.append("I-18: the account of pending bytes does not add up")
    return problems


def _check_frozen(content: Content) -> list[str]:
    problems = []
    for frozen in content.frozen:
        where = f"version {frozen.version} (inode {frozen.ino} chunk {frozen.index})"
        path = content.frozen.aside_path(frozen.version)
        if frozen.is_aside and os.stat(path).st_size != frozen.length_bytes:
            problems.append(f"I-7: the copy aside of {where} is incomplete")
        if not frozen.is_aside and not os.path.exists(content.files.path(frozen.ino, in_state=True)):
            problems.append(f"I-7: {where} is frozen, and its bytes are neither here nor aside")
    displaced = sum(frozen.length_bytes for frozen in content.frozen if frozen.is_displaced)
    if displaced != content.pressure.displaced_bytes:
        problems.append("I-18: the account of displaced bytes does not add up")
    return problems


def _check_slots(content: Content, ino: InodeNo) -> list[str]:
    state = content.states[ino]
    problems = []
    for index, slot in state.slots.items():
        where = f"inode {ino} chunk {index}"
        if slot.promised and not (slot.present and slot.location is not None):
            problems.append(f"I-3: {where} is promised but not clean")
        if slot.location is None and not slot.present:
            problems.append(f"I-1: {where} is dirty but not here")
        if slot.location is None and slot.committed != slot.version and not slot.pending:
            problems.append(f"I-12: {where} will never reach its row")
        if slot.length_bytes > CHUNK_SIZE_BYTES:
            problems.append(f"{where} has {slot.length_bytes} bytes")
    if not state.users and not state.is_pending:
        problems.append(f"inode {ino} is kept in memory for nothing")
    return problems


async def _check_rows_of(content: Content, ino: InodeNo) -> list[str]:
    """Check what is in memory of a file's rows: those may change without the file's doing (placing.py)."""
    rows = {row.index: row for row in await content.metadata.chunk_rows(ino, ChunkIndex(0), _ALL)}
    state = content.states.get(ino)
    if state is None or state.removed:
        return []
    problems = []
    for index, slot in state.slots.items():
        row = rows.get(index)
        if slot.pending:
            continue
        if row is None or (slot.version, slot.location) != (row.version, row.location):
            problems.append(f"I-8: inode {ino} chunk {index} is not where it is thought to be")
        elif slot.base is not None and slot.base.location != row.base_location:
            problems.append(f"I-8: the base of inode {ino} chunk {index} is not where it is thought to be")
    return problems


def _check_row(content: Content, ino: InodeNo, row: ChunkRow) -> list[str]:
    """Check one committed row against the local file."""
    where = f"inode {ino} chunk {row.index}"
    if row.held is None:
        return []
    file = content.files.get(ino)
    if file is None:
        return [f"I-3: {where} is held but there is no local file"]
    if row.held.dirty:
        return [] if file.in_state else [f"I-13: {where} is dirty in the cache folder"]
    assert row.location is not None, f"I-1: {where} is clean without location"
    if content.is_unverified(row.held.tick):
        return []
    data = os.pread(file.fd, row.held.length_bytes, row.index * CHUNK_SIZE_BYTES)
    if content.digest(data.ljust(row.held.length_bytes, b"\0")) != row.location.digest:
        return [f"I-3: {where} is held as clean with other bytes than its version has"]
    return []

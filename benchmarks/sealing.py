#!/usr/bin/env python3
"""What redundancy costs in CPU on this machine: sealing a pack of 16 MiB of random bytes, one copy and K+M.

    benchmarks/sealing.py [--rounds 5] [POLICY …]

Copies cost nothing to make: the same file is sent to each cloud.  What is sent is measured at the clouds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cuckoo_mount.layers.keys import DriveKeys
from cuckoo_mount.multi.redundancy import parse_policy
from cuckoo_mount.packs.builder import BuildSpec, ChunkSource, build_pack
from cuckoo_mount.types import ChunkIndex, DirtyChunk, InodeNo, VersionNo

CHUNKS = 16
CHUNK_BYTES = 1 << 20


def seal(folder: str, policy: str) -> float:
    """Build a pack; return the seconds of CPU per MiB of content."""
    sources = tuple(
        ChunkSource(
            DirtyChunk(InodeNo(2), ChunkIndex(number), VersionNo(number + 1), CHUNK_BYTES),
            f"{folder}/source",
            number * CHUNK_BYTES,
        )
        for number in range(CHUNKS)
    )
    spec = BuildSpec(
        drive_id=bytes(16),
        pack_id=os.urandom(16),
        keys=DriveKeys(bytes(32)),
        encrypted=True,
        sources=sources,
        target=f"{folder}/pack",
        policy=parse_policy(policy),
    )
    begin = time.process_time()
    build_pack(spec)
    return (time.process_time() - begin) / CHUNKS


def main() -> None:
    """Measure in turn, and print medians and ratios to one copy."""
    parser = argparse.ArgumentParser(description="CPU of sealing a pack, by redundancy.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("policies", nargs="*", default=["1", "3+2", "4+2", "8+3"])
    options = parser.parse_args()
    found: dict[str, list[float]] = {policy: [] for policy in ["1", *options.policies]}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "source").write_bytes(os.urandom(CHUNKS * CHUNK_BYTES))
        for policy in found:
            seal(folder, policy)  # loads libraries
        for _ in range(options.rounds):
            for policy, seconds in found.items():
                seconds.append(seal(folder, policy))
    plain = statistics.median(found["1"])
    for policy, seconds in found.items():
        median = statistics.median(seconds)
        shares = parse_policy(policy)
        print(
            f"{policy:>5}: {1000 * median:5.2f} ms of CPU per MiB, {median / plain:4.2f} × one copy; "
            f"{shares.shares / shares.data:.2f} bytes stored per byte"
        )


if __name__ == "__main__":
    main()

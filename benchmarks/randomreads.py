#!/usr/bin/env python3
"""What pushing chunks into the page cache brings: random reads of 4 KiB with it and without, in pairs.

    benchmarks/randomreads.py [--mib 64] [--reads 60000] [--pairs 3] [--memory-mib 0]

The file is in the drive's cache, the kernel has none of its pages.  `--memory-mib`: daemon, workers and reader share a
cgroup of so much memory (root, cgroup v1), to see what it costs where pushed pages cannot stay.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.peers import HERE, Cuckoo
from benchmarks.processes import cache_drops, run

MIB: Final = 1 << 20
ATTEMPTS: Final = 10
MODES: Final[dict[str, tuple[str, ...]]] = {"nopush": ("-o", "nopush"), "push": ()}
_MEMORY: Final = Path("/sys/fs/cgroup/memory")


class Reading(Cuckoo):
    """The drive with mount options."""

    def remount(self, *options: str) -> None:
        """Mount anew: the kernel keeps nothing of the old mount."""
        self.unmount()
        self.mount_options = options
        self.mount()

    def pushed_bytes(self) -> int:
        """Return the bytes pushed since the mount."""
        return int(json.loads(self._ask("status", "--json"))["fuse"]["pushed_bytes"])


@contextmanager
def limited(memory_mib: int) -> Iterator[None]:
    """Put this process, and all that it starts, into a cgroup of its own; 0: leave it where it is."""
    if not memory_mib:
        yield
        return
    before = next(line for line in Path("/proc/self/cgroup").read_text().splitlines() if ":memory:" in line)
    parent, group = _MEMORY / before.split(":")[2].lstrip("/"), _MEMORY / f"cuckoo-bench-{os.getpid()}"
    group.mkdir()
    (group / "memory.limit_in_bytes").write_text(str(memory_mib * MIB))
    (group / "cgroup.procs").write_text("0")
    try:
        yield
    finally:
        ((parent if parent.is_dir() else _MEMORY) / "cgroup.procs").write_text("0")
        group.rmdir()


def measure(peer: Reading, mode: str, reads: int, seed: int) -> float:
    """Mount anew, read, and return the seconds."""
    peer.remount(*MODES[mode])
    command: list[str | Path] = [sys.executable, HERE / "randomreader.py", peer.mnt / "file", str(reads), str(seed)]
    seconds = float(run(command, timeout_s=900))
    pushed = peer.pushed_bytes() / (reads * 4096)
    print(
        f"{mode:>7}: {reads / seconds:8.0f} reads/s, {peer.upcalls()['read']} upcalls, "
        f"{pushed:.2f} bytes pushed per byte read",
        flush=True,
    )
    return seconds


def main() -> int:
    """Compare."""
    parser = argparse.ArgumentParser(description="Random reads of 4 KiB with and without pushing.")
    parser.add_argument("--mib", type=int, default=64, help="size of the file")
    parser.add_argument("--reads", type=int, default=60_000)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--memory-mib", type=int, default=0, help="memory of daemon and reader together")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="cuckoo-randomreads-"))
    peer = Reading(folder)
    ratios = []
    try:
        peer.prepare()
        with limited(options.memory_mib):
            peer.mount()
            with open(peer.mnt / "file", "wb") as file:
                for _ in range(options.mib):
                    file.write(os.urandom(MIB))
            peer.send()
            for seed in range(ATTEMPTS * options.pairs):
                dropped = cache_drops()
                seconds = {name: measure(peer, name, options.reads, seed) for name in MODES}
                if cache_drops() == dropped:
                    ratios.append(seconds["nopush"] / seconds["push"])
                else:
                    print("somebody dropped the page cache: this pair does not count", flush=True)
                if len(ratios) == options.pairs:
                    break
            peer.unmount()
    finally:
        peer.give_up()
        shutil.rmtree(folder)
    if not ratios:
        print("no pair was undisturbed")
        return 1
    print(f"with pushing : without = {statistics.median(ratios):.2f} (median of {len(ratios)})")
    return 0


if __name__ == "__main__":
    sys.exit(main())

